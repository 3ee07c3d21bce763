//! Integer-only inference of Mamba-Integer models, bit for bit as `spec/ARITHMETIC.md` says.
//!
//! The work is done by the C++ engine behind `include/mamba_integer.h`, which this crate compiles; here is that interface in safe Rust. This
//! file holds all `unsafe` of the crate, and knows neither text nor Python.

use std::any::Any;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::fmt;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::path::Path;
use std::ptr::{null_mut, NonNull};
use std::sync::Arc;

/// The declarations of `mamba_integer.h`, in its order.
mod c {
    use super::{c_char, c_int, c_void};

    #[repr(C)]
    pub struct Model {
        _opaque: [u8; 0],
    }

    #[repr(C)]
    pub struct Session {
        _opaque: [u8; 0],
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct Config {
        pub d_model: u32,
        pub n_layers: u32,
        pub n_heads: u32,
        pub head_dim: u32,
        pub d_state: u32,
        pub vocab_size: u32,
        pub context_length: u32,
        pub scan: u32,
        pub activation: u32,
        pub gate: u32,
        pub norm_mantissa: u32,
        pub rotation: u32,
        pub ternary: u32,
        pub embed_mul: u32,
        pub logit_shift: u32,
    }

    #[repr(C)]
    pub struct Sampling {
        pub temperature: u32,
        pub top_k: u32,
        pub top_p: u32,
        pub seed: u64,
    }

    #[repr(C)]
    pub struct Feed {
        pub session: *mut Session,
        pub tokens: *const u32,
        pub n: usize,
        pub all_logits: *mut i32,
    }

    pub type TraceFn = unsafe extern "C" fn(*mut c_void, u64, *const c_char, *const i32, usize);

    extern "C" {
        pub fn mi_last_error() -> *const c_char;
        pub fn mi_version() -> *const c_char;
        pub fn mi_isa() -> *const c_char;
        pub fn mi_model_load(path: *const c_char, out: *mut *mut Model) -> c_int;
        pub fn mi_model_load_memory(data: *const c_void, size: usize, out: *mut *mut Model) -> c_int;
        pub fn mi_model_free(model: *mut Model);
        pub fn mi_model_get_config(model: *const Model, out: *mut Config);
        pub fn mi_model_name(model: *const Model) -> *const c_char;
        pub fn mi_model_digest(model: *const Model) -> *const c_char;
        pub fn mi_model_tokenizer(model: *const Model, size: *mut usize) -> *const c_char;
        pub fn mi_session_new_on(model: *const Model, device: *const c_char, out: *mut *mut Session) -> c_int;
        pub fn mi_session_free(session: *mut Session);
        pub fn mi_session_reset(session: *mut Session);
        pub fn mi_session_position(session: *const Session) -> u64;
        pub fn mi_session_set_threads(session: *mut Session, threads: u32) -> c_int;
        pub fn mi_session_feed(session: *mut Session, tokens: *const u32, n: usize, all_logits: *mut i32) -> c_int;
        pub fn mi_feed_many(feeds: *const Feed, count: usize) -> c_int;
        pub fn mi_session_state_size(session: *const Session) -> usize;
        pub fn mi_session_save(session: *const Session, out: *mut c_void, size: usize) -> c_int;
        pub fn mi_session_restore(session: *mut Session, data: *const c_void, size: usize) -> c_int;
        pub fn mi_session_logits(session: *const Session) -> *const i32;
        pub fn mi_session_sample(session: *mut Session, sampling: *const Sampling, step: u64, token: *mut u32)
            -> c_int;
        pub fn mi_session_set_trace(session: *mut Session, trace: Option<TraceFn>, user: *mut c_void) -> c_int;
        pub fn mi_sha256(data: *const c_void, size: usize, out: *mut u8);
    }
}

/// What went wrong, in the words of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A file could not be opened or read.
    Io(String),
    /// The model file breaks `spec/FORMAT.md`; nothing of it was used.
    Format(String),
    /// A token outside the vocabulary, a parameter outside its range, a buffer of the wrong length.
    Argument(String),
    /// Memory could not be had.
    Memory(String),
    /// A device other than the CPU is not there, or failed.
    Device(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn message(&self) -> &str {
        match self {
            Error::Io(m) | Error::Format(m) | Error::Argument(m) | Error::Memory(m) | Error::Device(m) => m,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Error {}

/// A status of the C interface as a `Result`. To be called at once, in the thread that made the call: the message is that thread's.
fn check(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: never null, zero-terminated, and valid until this thread's next call of the engine; it is copied here.
    let message = unsafe { CStr::from_ptr(c::mi_last_error()) }
        .to_string_lossy()
        .into_owned();
    Err(match status {
        1 => Error::Io(message),
        2 => Error::Format(message),
        3 => Error::Argument(message),
        5 => Error::Device(message),
        _ => Error::Memory(message),
    })
}

/// How the state forgets: ARITHMETIC §7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    Convex,
    Literal,
}

impl Scan {
    /// The word that stands for it in a model file.
    pub fn as_str(self) -> &'static str {
        match self {
            Scan::Convex => "convex",
            Scan::Literal => "literal",
        }
    }
}

/// Form of an activation: ARITHMETIC §3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    Squareplus,
}

impl Activation {
    /// The word that stands for it in a model file.
    pub fn as_str(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::Squareplus => "squareplus",
        }
    }

    fn from_c(value: u32) -> Self {
        if value == 0 {
            Activation::Silu
        } else {
            Activation::Squareplus
        }
    }
}

/// Shape and settings of a model, named as in `spec/FORMAT.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub d_model: u32,
    pub n_layers: u32,
    pub n_heads: u32,
    pub head_dim: u32,
    pub d_state: u32,
    pub vocab_size: u32,
    pub context_length: u32,
    pub scan: Scan,
    pub activation: Activation,
    pub gate: Activation,
    pub norm_mantissa: u32,
    pub rotation: bool,
    pub ternary: bool,
    pub embed_mul: u32,
    pub logit_shift: u32,
}

/// A loaded model: immutable, may be shared by threads.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<c::Model>,
}

// SAFETY: the header promises that a model is immutable after loading and may be shared by threads; any thread may free it.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: made by mi_model_load…, freed once; sessions hold an Arc of the model, so none outlives it.
        unsafe { c::mi_model_free(self.raw.as_ptr()) }
    }
}

impl Model {
    /// Reads a model file and checks it whole.
    pub fn load(path: impl AsRef<Path>) -> Result<Model> {
        let path = path.as_ref();
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::Io(format!("cannot read {path:?}: the name holds a zero byte")))?;
        let mut raw = null_mut();
        // SAFETY: a zero-terminated string and a place for the result.
        check(unsafe { c::mi_model_load(c_path.as_ptr(), &mut raw) })?;
        Ok(Model::from_raw(raw))
    }

    /// From the contents of a model file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Model> {
        let mut raw = null_mut();
        // SAFETY: a pointer and its length, and a place for the result; the engine copies the bytes.
        check(unsafe { c::mi_model_load_memory(bytes.as_ptr().cast(), bytes.len(), &mut raw) })?;
        Ok(Model::from_raw(raw))
    }

    fn from_raw(raw: *mut c::Model) -> Model {
        Model {
            raw: NonNull::new(raw).expect("the engine returns a model with MI_OK"),
        }
    }

    pub fn config(&self) -> Config {
        let mut raw = c::Config::default();
        // SAFETY: a live model and a place for the result.
        unsafe { c::mi_model_get_config(self.raw.as_ptr(), &mut raw) };
        Config {
            d_model: raw.d_model,
            n_layers: raw.n_layers,
            n_heads: raw.n_heads,
            head_dim: raw.head_dim,
            d_state: raw.d_state,
            vocab_size: raw.vocab_size,
            context_length: raw.context_length,
            scan: if raw.scan == 0 { Scan::Convex } else { Scan::Literal },
            activation: Activation::from_c(raw.activation),
            gate: Activation::from_c(raw.gate),
            norm_mantissa: raw.norm_mantissa,
            rotation: raw.rotation != 0,
            ternary: raw.ternary != 0,
            embed_mul: raw.embed_mul,
            logit_shift: raw.logit_shift,
        }
    }

    pub fn name(&self) -> &str {
        // SAFETY: zero-terminated and alive as long as the model.
        let name = unsafe { CStr::from_ptr(c::mi_model_name(self.raw.as_ptr())) };
        name.to_str().expect("the loader refuses names that are not UTF-8")
    }

    /// SHA-256 over tensors and metadata, 64 lowercase hexadecimal digits.
    pub fn digest(&self) -> &str {
        // SAFETY: zero-terminated and alive as long as the model.
        let digest = unsafe { CStr::from_ptr(c::mi_model_digest(self.raw.as_ptr())) };
        digest.to_str().expect("hexadecimal digits are UTF-8")
    }

    /// The tokenizer file inside the model file.
    pub fn tokenizer_bytes(&self) -> &[u8] {
        let mut size = 0;
        // SAFETY: a live model and a place for the size.
        let data = unsafe { c::mi_model_tokenizer(self.raw.as_ptr(), &mut size) };
        // SAFETY: the engine's pointer is never null and leads to `size` bytes that live as long as the model.
        unsafe { std::slice::from_raw_parts(data.cast(), size) }
    }
}

/// The sampling integers: ARITHMETIC §11.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Q16; 0 is greedy; at most 2^22.
    pub temperature: u32,
    /// 0 is off.
    pub top_k: u32,
    /// Q16, 1 … 65536; 65536 is off.
    pub top_p: u32,
    pub seed: u64,
}

/// One intermediate of the computation, as a trace sees it. `include/mamba_integer.h` lists the sites.
#[derive(Debug, Clone, Copy)]
pub struct Trace<'a> {
    pub position: u64,
    pub site: &'a str,
    pub values: &'a [i32],
}

/// One sequence: its recurrent state and position.
#[derive(Debug)]
pub struct Session {
    raw: NonNull<c::Session>,
    model: Arc<Model>,
    vocab_size: usize,
}

// SAFETY: the header lets a session belong to one thread at a time; moving it moves that right. (It is not Sync: NonNull sees to that.)
unsafe impl Send for Session {}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: made by mi_session_new, freed once, before its model.
        unsafe { c::mi_session_free(self.raw.as_ptr()) }
    }
}

impl Session {
    /// A new sequence at position 0, on the CPU.
    pub fn new(model: Arc<Model>) -> Result<Session> {
        Session::on(model, "cpu")
    }

    /// A new sequence at position 0 on a device, "cpu" or "cuda"; the bits are the same.
    pub fn on(model: Arc<Model>, device: &str) -> Result<Session> {
        let c_device = CString::new(device).map_err(|_| Error::Argument("the device must be cpu or cuda".into()))?;
        let mut raw = null_mut();
        // SAFETY: a live model, which the session keeps alive, a zero-terminated string and a place for the result.
        check(unsafe { c::mi_session_new_on(model.raw.as_ptr(), c_device.as_ptr(), &mut raw) })?;
        let vocab_size = model.config().vocab_size as usize;
        Ok(Session {
            raw: NonNull::new(raw).expect("the engine returns a session with MI_OK"),
            model,
            vocab_size,
        })
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Feeds tokens in order. With `want_all` it gives the logits after each, row by row; else those of the last are computed alone (see
    /// [`Session::logits`]). On an error nothing was fed.
    pub fn feed(&mut self, tokens: &[u32], want_all: bool) -> Result<Option<Vec<i32>>> {
        if want_all {
            let mut all = self.rows(tokens.len())?;
            self.feed_into(tokens, &mut all)?;
            return Ok(Some(all));
        }
        // SAFETY: a live session of which we have the only reference; a pointer and its length.
        check(unsafe { c::mi_session_feed(self.raw.as_ptr(), tokens.as_ptr(), tokens.len(), null_mut()) })?;
        Ok(None)
    }

    /// Feeds tokens and writes the logits after each into `all`, which must hold `tokens.len() * vocab_size`.
    pub fn feed_into(&mut self, tokens: &[u32], all: &mut [i32]) -> Result<()> {
        if tokens.len().checked_mul(self.vocab_size) != Some(all.len()) {
            let (n, v, len) = (tokens.len(), self.vocab_size, all.len());
            return Err(Error::Argument(format!(
                "{n} tokens have {n} * {v} logits; the buffer holds {len}"
            )));
        }
        // SAFETY: as in `feed`; `all` has room for a row a token.
        check(unsafe { c::mi_session_feed(self.raw.as_ptr(), tokens.as_ptr(), tokens.len(), all.as_mut_ptr()) })
    }

    /// As `feed` with every logit, calling `trace` for every intermediate that the spec names. A panic of `trace` goes on after the tokens
    /// were fed, without further calls.
    pub fn feed_traced(&mut self, tokens: &[u32], trace: impl FnMut(Trace<'_>)) -> Result<Vec<i32>> {
        struct Sink<F> {
            trace: F,
            panic: Option<Box<dyn Any + Send>>,
        }

        unsafe extern "C" fn call<F: FnMut(Trace<'_>)>(
            user: *mut c_void,
            position: u64,
            site: *const c_char,
            values: *const i32,
            count: usize,
        ) {
            // SAFETY: `user` is the sink below, which nothing else touches while tokens are fed.
            let sink = unsafe { &mut *user.cast::<Sink<F>>() };
            if sink.panic.is_some() {
                return;
            }
            // SAFETY: the engine hands over a zero-terminated ASCII name and `count` values, alive for the call.
            let (site, values) = unsafe { (CStr::from_ptr(site), std::slice::from_raw_parts(values, count)) };
            let site = site.to_str().unwrap_or("?");
            sink.panic = catch_unwind(AssertUnwindSafe(|| (sink.trace)(Trace { position, site, values }))).err();
        }

        fn callback<F: FnMut(Trace<'_>)>(_: &Sink<F>) -> c::TraceFn {
            call::<F>
        }

        let mut all = self.rows(tokens.len())?;
        let mut sink = Sink { trace, panic: None };
        let function = callback(&sink);
        let user: *mut c_void = (&raw mut sink).cast();
        // SAFETY: a live session; the sink outlives the feed below, after which the trace is taken off again.
        check(unsafe { c::mi_session_set_trace(self.raw.as_ptr(), Some(function), user) })?;
        let result = self.feed_into(tokens, &mut all);
        // SAFETY: as above.
        unsafe { c::mi_session_set_trace(self.raw.as_ptr(), None, null_mut()) };
        if let Some(panic) = sink.panic {
            resume_unwind(panic);
        }
        result.map(|()| all)
    }

    /// Feeds many sequences of one model at once, each its own tokens, so that the weights are read once for all. The bits are those of one
    /// [`Session::feed`] after another; the first session's threads compute. On an error nothing was fed.
    pub fn feed_many(feeds: &mut [(&mut Session, &[u32])]) -> Result<()> {
        let feeds: Vec<c::Feed> = feeds
            .iter_mut()
            .map(|(session, tokens)| c::Feed {
                session: session.raw.as_ptr(),
                tokens: tokens.as_ptr(),
                n: tokens.len(),
                all_logits: null_mut(),
            })
            .collect();
        // SAFETY: live sessions, each of which we have the only reference to; pointers and their lengths.
        check(unsafe { c::mi_feed_many(feeds.as_ptr(), feeds.len()) })
    }

    /// How many threads compute what is fed to this session, the caller's among them; 1 at first. The bits are the same.
    pub fn set_threads(&mut self, threads: u32) -> Result<()> {
        // SAFETY: a live session.
        check(unsafe { c::mi_session_set_threads(self.raw.as_ptr(), threads) })
    }

    /// The state as bytes (`spec/FORMAT.md`, "State"), from which [`Session::restore`] continues with the same bits.
    pub fn save(&self) -> Result<Vec<u8>> {
        // SAFETY: a live session.
        let size = unsafe { c::mi_session_state_size(self.raw.as_ptr()) };
        let mut state = Vec::new();
        if state.try_reserve_exact(size).is_err() {
            return Err(Error::Memory(format!("no memory for a state of {size} bytes")));
        }
        state.resize(size, 0);
        // SAFETY: a live session, and a buffer of the size that it asks for.
        check(unsafe { c::mi_session_save(self.raw.as_ptr(), state.as_mut_ptr().cast(), size) })?;
        Ok(state)
    }

    /// To a state that was saved of this model. On an error nothing has changed.
    pub fn restore(&mut self, state: &[u8]) -> Result<()> {
        // SAFETY: a live session of which we have the only reference; a pointer and its length.
        check(unsafe { c::mi_session_restore(self.raw.as_ptr(), state.as_ptr().cast(), state.len()) })
    }

    /// Logits after the last token fed; `None` before the first.
    pub fn logits(&self) -> Option<&[i32]> {
        // SAFETY: a live session; the logits stay where and what they are until a call with `&mut self`.
        let logits = unsafe { c::mi_session_logits(self.raw.as_ptr()) };
        // SAFETY: not null, so a row of vocab_size values.
        (!logits.is_null()).then(|| unsafe { std::slice::from_raw_parts(logits, self.vocab_size) })
    }

    /// Chooses a token from the last logits; `step` is 0 for the first generated token.
    pub fn sample(&mut self, sampling: &Sampling, step: u64) -> Result<u32> {
        let &Sampling {
            temperature,
            top_k,
            top_p,
            seed,
        } = sampling;
        let sampling = c::Sampling {
            temperature,
            top_k,
            top_p,
            seed,
        };
        let mut token = 0;
        // SAFETY: a live session, the parameters, and a place for the result.
        check(unsafe { c::mi_session_sample(self.raw.as_ptr(), &sampling, step, &mut token) })?;
        Ok(token)
    }

    /// Tokens fed so far.
    pub fn position(&self) -> u64 {
        // SAFETY: a live session.
        unsafe { c::mi_session_position(self.raw.as_ptr()) }
    }

    /// Back to the empty state at position 0.
    pub fn reset(&mut self) {
        // SAFETY: a live session of which we have the only reference.
        unsafe { c::mi_session_reset(self.raw.as_ptr()) }
    }

    /// Room for the logits of `n` tokens, or an error instead of an abort.
    fn rows(&self, n: usize) -> Result<Vec<i32>> {
        let mut rows = Vec::new();
        let size = n
            .checked_mul(self.vocab_size)
            .filter(|&size| rows.try_reserve_exact(size).is_ok());
        let size = size.ok_or_else(|| Error::Memory(format!("no memory for the logits of {n} tokens")))?;
        rows.resize(size, 0);
        Ok(rows)
    }
}

/// SHA-256 as the digests use it.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    // SAFETY: a pointer and its length, and room for 32 bytes.
    unsafe { c::mi_sha256(data.as_ptr().cast(), data.len(), out.as_mut_ptr()) };
    out
}

/// Version of the engine.
pub fn version() -> &'static str {
    // SAFETY: a zero-terminated constant.
    unsafe { CStr::from_ptr(c::mi_version()) }
        .to_str()
        .expect("a version is ASCII")
}

/// Instruction set of this process's kernels: `"avx512"`, `"avx2"`, `"neon-dotprod"`, `"neon"` or `"scalar"`; the environment variable
/// `MAMBA_INTEGER_ISA` forces one. The bits are the same from all. `"none"` if the variable names one that this machine does not run; then no session can be made.
pub fn isa() -> &'static str {
    // SAFETY: a zero-terminated constant.
    unsafe { CStr::from_ptr(c::mi_isa()) }
        .to_str()
        .expect("a name of an instruction set is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version() {
        assert_eq!(version(), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn an_instruction_set_is_chosen() {
        if std::env::var_os("MAMBA_INTEGER_ISA").is_none() {
            assert!(["scalar", "avx2", "avx512", "neon", "neon-dotprod"].contains(&isa()));
        }
    }

    #[test]
    fn sha256_of_abc() {
        let hex: String = sha256(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn errors_keep_their_kind_and_cause() {
        let missing = Model::load("no/such/model.gguf").unwrap_err();
        assert_eq!(
            missing,
            Error::Io("cannot read 'no/such/model.gguf': no such file".into())
        );
        assert_eq!(
            Model::from_bytes(b"GGML").unwrap_err(),
            Error::Format("not a GGUF file".into())
        );
        assert!(matches!(Model::from_bytes(b"").unwrap_err(), Error::Format(_)));
        assert!(matches!(Model::load("zero\0byte").unwrap_err(), Error::Io(_)));
    }
}
