//! The C interface, as include/mamba_integer_tokenizer.h documents it.
//!
//! Everything unsafe of the crate is here. What every function relies on is what the header asks of the caller: a pointer is null or points to
//! what its type and the size beside it say, a path is null or ends in a zero, and a tokenizer is null or comes from this library and has not been
//! freed. Null pointers and sizes beyond the address space are errors; panics end here and become `MI_TOKENIZER_ERR_INTERNAL`.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::ptr;

use crate::{train_files, AllowSpecial, DecodeStream, Error, Tokenizer};

/// `mi_tokenizer_status`.
#[derive(Clone, Copy)]
#[repr(C)]
pub enum Status {
    Ok = 0,
    Io = 1,
    Format = 2,
    Argument = 3,
    Special = 4,
    Capacity = 5,
    Internal = 6,
}

/// Why a call fails: the status it returns, and the message for `mi_tokenizer_last_error`.
struct Failure(Status, String);

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match error {
            Error::VocabSize(_) | Error::UnknownToken { .. } | Error::NotUtf8 { .. } => Status::Argument,
            Error::Special { .. } => Status::Special,
            Error::Format { .. } | Error::Vocabulary(_) => Status::Format,
            Error::Io { .. } => Status::Io,
        };
        Failure(status, error.to_string())
    }
}

fn argument(message: &str) -> Failure {
    Failure(Status::Argument, message.into())
}

thread_local! {
    /// Message of the last failed call in this thread.
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of a function: its failures, panics among them, become a status and a message.
fn status(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    // A body that panics leaves nothing behind that could be seen half-changed: it writes to the caller's memory as its last step.
    let Failure(status, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(_) => Failure(Status::Internal, "a bug of the tokenizer: it panicked".into()),
    };
    let message = CString::new(message.replace('\0', "\u{fffd}")).unwrap_or_default();
    // In a thread that is being taken down the message may be gone; the status is not.
    _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = message);
    status
}

/// What a pointer points to.
///
/// # Safety
///
/// It is null or points to a `T` that does not change during `'a`.
unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: as promised by the caller.
    unsafe { pointer.as_ref() }.ok_or_else(|| argument(&format!("{name} is NULL")))
}

/// An array of the caller's. It may be null if it is empty.
///
/// # Safety
///
/// The pointer is null or points to `length` values that do not change during `'a`.
unsafe fn array<'a, T>(pointer: *const T, length: usize, name: &str) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    // SAFETY: as promised by the caller.
    unsafe { reference(pointer, name) }?;
    if length > isize::MAX as usize / size_of::<T>() {
        return Err(argument(&format!("the size of {name} is beyond the address space")));
    }
    // SAFETY: not null, of a size that can be, and the rest as promised by the caller.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// A path of the caller's.
///
/// # Safety
///
/// The pointer is null or points to bytes that end in a zero.
unsafe fn path(pointer: *const c_char, name: &str) -> Result<PathBuf, Failure> {
    // SAFETY: as promised by the caller.
    unsafe { reference(pointer, name) }?;
    // SAFETY: not null, and the rest as promised by the caller.
    let bytes = unsafe { CStr::from_ptr(pointer) };
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Ok(std::ffi::OsStr::from_bytes(bytes.to_bytes()).into())
    }
    #[cfg(not(unix))]
    {
        bytes
            .to_str()
            .map(PathBuf::from)
            .map_err(|_| argument(&format!("{name} is not UTF-8")))
    }
}

/// A text of the caller's.
///
/// # Safety
///
/// The pointer is null or points to bytes that end in a zero.
unsafe fn string(pointer: *const c_char, name: &str) -> Result<String, Failure> {
    // SAFETY: as promised by the caller.
    unsafe { reference(pointer, name) }?;
    // SAFETY: not null, and the rest as promised by the caller.
    let text = unsafe { CStr::from_ptr(pointer) }.to_str();
    text.map(str::to_owned)
        .map_err(|_| argument(&format!("{name} is not UTF-8")))
}

fn special_of(special: c_int) -> Result<AllowSpecial, Failure> {
    match special {
        0 => Ok(AllowSpecial::Refuse),
        1 => Ok(AllowSpecial::All),
        2 => Ok(AllowSpecial::AsText),
        _ => Err(argument("special is none of MI_TOKENIZER_SPECIAL_...")),
    }
}

/// Copies a result into the caller's buffer, if it fits, and says how long it is.
///
/// # Safety
///
/// `buffer` is null or has room for `capacity` values; `needed` is null or may be written to. They do not overlap what `values` points to.
unsafe fn deliver<T: Copy>(values: &[T], buffer: *mut T, capacity: usize, needed: *mut usize) -> Result<(), Failure> {
    if needed.is_null() {
        return Err(argument("needed is NULL"));
    }
    // SAFETY: not null, and the rest as promised by the caller.
    unsafe { needed.write(values.len()) };
    if values.len() > capacity {
        let message = format!("the buffer has room for {capacity}, {} are needed", values.len());
        return Err(Failure(Status::Capacity, message));
    }
    if values.is_empty() {
        return Ok(());
    }
    if buffer.is_null() {
        return Err(argument("the buffer is NULL"));
    }
    // SAFETY: not null, with room for as many, and the rest as promised by the caller.
    unsafe { ptr::copy_nonoverlapping(values.as_ptr(), buffer, values.len()) };
    Ok(())
}

/// Makes a tokenizer and hands it to the caller.
///
/// # Safety
///
/// `out` is null or may be written to.
unsafe fn create(out: *mut *mut Tokenizer, make: impl FnOnce() -> Result<Tokenizer, Failure>) -> Status {
    status(|| {
        if out.is_null() {
            return Err(argument("out is NULL"));
        }
        // SAFETY: not null, and the rest as promised by the caller.
        unsafe { out.write(ptr::null_mut()) };
        let tokenizer = Box::new(make()?);
        // SAFETY: as before.
        unsafe { out.write(Box::into_raw(tokenizer)) };
        Ok(())
    })
}

/// # Safety
///
/// None is needed; the message is valid until the next call in this thread.
#[no_mangle]
pub extern "C" fn mi_tokenizer_last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_load(file: *const c_char, out: *mut *mut Tokenizer) -> Status {
    // SAFETY: as promised by the caller.
    unsafe { create(out, || Ok(Tokenizer::load(path(file, "path")?)?)) }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_from_bytes(data: *const c_void, size: usize, out: *mut *mut Tokenizer) -> Status {
    // SAFETY: as promised by the caller.
    unsafe { create(out, || Ok(Tokenizer::from_bytes(array(data.cast(), size, "data")?)?)) }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_from_tiktoken(
    data: *const c_void,
    size: usize,
    names: *const *const c_char,
    ids: *const u32,
    count: usize,
    out: *mut *mut Tokenizer,
) -> Status {
    let make = || {
        // SAFETY: as promised by the caller.
        let (data, names, ids) = unsafe {
            (
                array(data.cast(), size, "data")?,
                array(names, count, "names")?,
                array(ids, count, "ids")?,
            )
        };
        let mut special = Vec::new();
        for (&name, &id) in names.iter().zip(ids) {
            // SAFETY: as promised by the caller.
            special.push((unsafe { string(name, "a name") }?, id));
        }
        Ok(Tokenizer::from_tiktoken(data, &special)?)
    };
    // SAFETY: as promised by the caller.
    unsafe { create(out, make) }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_from_huggingface(
    data: *const c_void,
    size: usize,
    out: *mut *mut Tokenizer,
) -> Status {
    // SAFETY: as promised by the caller.
    unsafe {
        create(out, || {
            Ok(Tokenizer::from_huggingface(array(data.cast(), size, "data")?)?)
        })
    }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_free(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        // SAFETY: it came from `create`, and the caller gives it up.
        drop(unsafe { Box::from_raw(tokenizer) });
    }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_vocab_size(tokenizer: *const Tokenizer) -> usize {
    // SAFETY: as promised by the caller.
    unsafe { tokenizer.as_ref() }.map_or(0, Tokenizer::vocab_size)
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_eot_id(tokenizer: *const Tokenizer) -> u32 {
    // SAFETY: as promised by the caller.
    unsafe { tokenizer.as_ref() }.map_or(u32::MAX, Tokenizer::eot)
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: *const c_void,
    size: usize,
    special: c_int,
    tokens: *mut u32,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    status(|| {
        let special = special_of(special)?;
        // SAFETY: as promised by the caller.
        let (tokenizer, text) = unsafe { (reference(tokenizer, "tokenizer")?, array(text.cast(), size, "text")?) };
        let found = tokenizer.encode_bytes(text, special)?;
        // SAFETY: as promised by the caller.
        unsafe { deliver(&found, tokens, capacity, needed) }
    })
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_encode_batch(
    tokenizer: *const Tokenizer,
    texts: *const *const c_void,
    sizes: *const usize,
    count: usize,
    special: c_int,
    threads: usize,
    tokens: *mut u32,
    capacity: usize,
    ends: *mut usize,
    needed: *mut usize,
) -> Status {
    status(|| {
        let special = special_of(special)?;
        // SAFETY: as promised by the caller.
        let (tokenizer, texts, sizes) = unsafe {
            (
                reference(tokenizer, "tokenizer")?,
                array(texts, count, "texts")?,
                array(sizes, count, "sizes")?,
            )
        };
        let mut bytes: Vec<&[u8]> = Vec::new();
        for (&text, &size) in texts.iter().zip(sizes) {
            // SAFETY: as promised by the caller.
            bytes.push(unsafe { array(text.cast(), size, "a text") }?);
        }
        let policy = vec![special; tokenizer.specials().len()];
        let (found, found_ends) = tokenizer.encode_batch(&bytes, &policy, threads.min(256))?;
        let mut as_many = 0;
        // SAFETY: as promised by the caller.
        unsafe {
            deliver(&found, tokens, capacity, needed)?;
            deliver(&found_ends, ends, count, &mut as_many)
        }
    })
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_decode(
    tokenizer: *const Tokenizer,
    tokens: *const u32,
    count: usize,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    status(|| {
        // SAFETY: as promised by the caller.
        let (tokenizer, tokens) = unsafe { (reference(tokenizer, "tokenizer")?, array(tokens, count, "tokens")?) };
        let decoded = tokenizer.decode(tokens)?;
        // SAFETY: as promised by the caller.
        unsafe { deliver(&decoded, bytes, capacity, needed) }
    })
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_token_bytes(
    tokenizer: *const Tokenizer,
    id: u32,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    status(|| {
        // SAFETY: as promised by the caller.
        let token = unsafe { reference(tokenizer, "tokenizer") }?.token_bytes(id)?;
        // SAFETY: as promised by the caller.
        unsafe { deliver(token, bytes, capacity, needed) }
    })
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_train_file(text: *const c_char, vocab_size: usize, out: *const c_char) -> Status {
    status(|| {
        // SAFETY: as promised by the caller.
        let (text, out) = unsafe { (path(text, "text_path")?, path(out, "out_path")?) };
        Ok(train_files(&[text], vocab_size, 1)?.save(out)?)
    })
}

/// A tokenizer's file of some kind.
///
/// # Safety
///
/// See the module.
unsafe fn written(
    tokenizer: *const Tokenizer,
    write: fn(&Tokenizer) -> Result<Vec<u8>, Error>,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    status(|| {
        // SAFETY: as promised by the caller.
        let file = write(unsafe { reference(tokenizer, "tokenizer") }?)?;
        // SAFETY: as promised by the caller.
        unsafe { deliver(&file, bytes, capacity, needed) }
    })
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_to_bytes(
    tokenizer: *const Tokenizer,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    // SAFETY: as promised by the caller.
    unsafe { written(tokenizer, Tokenizer::to_bytes, bytes, capacity, needed) }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_to_tiktoken(
    tokenizer: *const Tokenizer,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    // SAFETY: as promised by the caller.
    unsafe { written(tokenizer, Tokenizer::to_tiktoken, bytes, capacity, needed) }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_to_huggingface(
    tokenizer: *const Tokenizer,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    // SAFETY: as promised by the caller.
    unsafe { written(tokenizer, Tokenizer::to_huggingface, bytes, capacity, needed) }
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_save(tokenizer: *const Tokenizer, out: *const c_char) -> Status {
    status(|| {
        // SAFETY: as promised by the caller.
        let (tokenizer, out) = unsafe { (reference(tokenizer, "tokenizer")?, path(out, "out_path")?) };
        Ok(tokenizer.save(out)?)
    })
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_special_id(tokenizer: *const Tokenizer, name: *const c_char) -> u32 {
    let mut id = u32::MAX;
    status(|| {
        // SAFETY: as promised by the caller.
        let (tokenizer, name) = unsafe { (reference(tokenizer, "tokenizer")?, string(name, "name")?) };
        id = tokenizer
            .special(&name)
            .ok_or_else(|| argument("there is no such special token"))?;
        Ok(())
    });
    id
}

/// `mi_tokenizer_stream`: a stream and its text that the caller has not taken.
pub struct Stream {
    decoder: DecodeStream<'static>,
    text: String,
}

/// # Safety
///
/// See the module. The tokenizer is freed after the stream.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_stream_new(tokenizer: *const Tokenizer, out: *mut *mut Stream) -> Status {
    status(|| {
        if out.is_null() {
            return Err(argument("out is NULL"));
        }
        // SAFETY: not null, and the rest as promised by the caller.
        unsafe { out.write(ptr::null_mut()) };
        // SAFETY: as promised by the caller.
        let decoder = DecodeStream::new(unsafe { reference(tokenizer, "tokenizer") }?);
        let text = String::new();
        // SAFETY: as before.
        unsafe { out.write(Box::into_raw(Box::new(Stream { decoder, text }))) };
        Ok(())
    })
}

/// # Safety
///
/// See the module. No other thread uses the stream.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_stream_push(
    stream: *mut Stream,
    id: u32,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    status(|| {
        // SAFETY: as promised by the caller.
        let Some(stream) = (unsafe { stream.as_mut() }) else {
            return Err(argument("stream is NULL"));
        };
        let text = stream.decoder.push(id)?;
        stream.text += &text;
        // SAFETY: as promised by the caller.
        unsafe { take_text(stream, bytes, capacity, needed) }
    })
}

/// # Safety
///
/// See the module. No other thread uses the stream.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_stream_finish(
    stream: *mut Stream,
    bytes: *mut u8,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    status(|| {
        // SAFETY: as promised by the caller.
        let Some(stream) = (unsafe { stream.as_mut() }) else {
            return Err(argument("stream is NULL"));
        };
        let text = stream.decoder.finish();
        stream.text += &text;
        // SAFETY: as promised by the caller.
        unsafe { take_text(stream, bytes, capacity, needed) }
    })
}

/// Hands over the text that is there; what does not fit stays.
///
/// # Safety
///
/// As for [`deliver`].
unsafe fn take_text(stream: &mut Stream, bytes: *mut u8, capacity: usize, needed: *mut usize) -> Result<(), Failure> {
    // SAFETY: as promised by the caller.
    unsafe { deliver(stream.text.as_bytes(), bytes, capacity, needed) }?;
    stream.text.clear();
    Ok(())
}

/// # Safety
///
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn mi_tokenizer_stream_free(stream: *mut Stream) {
    if !stream.is_null() {
        // SAFETY: it came from `mi_tokenizer_stream_new`, and the caller gives it up.
        drop(unsafe { Box::from_raw(stream) });
    }
}
