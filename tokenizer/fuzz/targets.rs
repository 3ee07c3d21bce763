//! What is fuzzed: functions that take any bytes and must come back. `scripts/fuzz.sh` calls them with what libFuzzer thinks of, `tests/fuzz_corpus.rs`
//! with the files that it kept.

#[path = "c_interface.rs"]
mod c_interface;

use std::ffi::c_int;
use std::ptr;
use std::sync::OnceLock;

use c_interface::*;
use mamba_integer_tokenizer::{byte_level, train, AllowSpecial, Error, Tokenizer};

pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 4] = [
    ("tokenizer-file", tokenizer_file),
    ("tiktoken", tiktoken),
    ("tokenizer-json", tokenizer_json),
    ("c-api", c_api),
];

fn tokenizer_file(data: &[u8]) {
    let tokenizer = used(Tokenizer::from_bytes(data));
    // There is one file for each tokenizer.
    assert!(tokenizer.is_none_or(|tokenizer| tokenizer.to_bytes().unwrap() == data));
}

/// Alone, and after the tokens that every such file has.
fn tiktoken(data: &[u8]) {
    used(Tokenizer::from_tiktoken(data, &[]));
    let special = [("<|a|>".to_string(), 1000), ("<|a|><|b|>".to_string(), 301)];
    used(Tokenizer::from_tiktoken(&[&least()[0], data].concat(), &special));
}

/// As the whole file; and what is before the first zero as tokens, what is after it as merges of a file.
fn tokenizer_json(data: &[u8]) {
    used(Tokenizer::from_huggingface(data));
    let (tokens, merges) = data.split_at(data.iter().position(|&byte| byte == 0).unwrap_or(data.len()));
    let [_, least] = least();
    let at = |text: &[u8]| least.windows(text.len()).position(|window| window == text).unwrap();
    // Where the special token stands among the others, and where merges are.
    let (before, after) = least.split_at(at(b",\"<|endoftext|>\":"));
    let (between, end) = after.split_at(at(b"]}}") - before.len());
    used(Tokenizer::from_huggingface(
        &[before, tokens, between, merges.get(1..).unwrap_or_default(), end].concat(),
    ));
}

/// The tokenizer of bytes alone, and its files.
fn least() -> &'static [Vec<u8>; 2] {
    static LEAST: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    LEAST.get_or_init(|| {
        let tokenizer = train([""], 257).unwrap();
        [tokenizer.to_tiktoken().unwrap(), tokenizer.to_huggingface().unwrap()]
    })
}

/// Whatever has been read encodes, decodes and can be written.
fn used(read: Result<Tokenizer, Error>) -> Option<Tokenizer> {
    let tokenizer = read.ok()?;
    for text in [
        "",
        "a ab abc\n\n  the  \u{e9}\u{1f600}'ll 12345 \0\u{3000}<|a|><|b|>",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "\u{fffd}",
    ] {
        let tokens = tokenizer.encode(text, AllowSpecial::AsText).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text.as_bytes());
        let tokens = tokenizer.encode(text, AllowSpecial::All).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text.as_bytes());
        assert_eq!(tokenizer.offsets(text.as_bytes(), &tokens).unwrap().len(), tokens.len());
    }
    for (id, token) in tokenizer.ordinary() {
        assert_eq!(tokenizer.token_bytes(id).unwrap(), token);
        assert_eq!(byte_level::to_bytes(&byte_level::to_text(token)).unwrap(), token);
    }
    if let Ok(file) = tokenizer.to_bytes() {
        assert_eq!(Tokenizer::from_bytes(&file).unwrap(), tokenizer);
    }
    if let Ok(file) = tokenizer.to_tiktoken() {
        let again = Tokenizer::from_tiktoken(&file, tokenizer.specials()).unwrap();
        assert_eq!(again.to_tiktoken().unwrap(), file);
    }
    if let Ok(file) = tokenizer.to_huggingface() {
        assert_eq!(Tokenizer::from_huggingface(&file).unwrap(), tokenizer);
    }
    Some(tokenizer)
}

/// What is left of the bytes that say what to call.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.part(1).first().copied().unwrap_or(0)
    }

    fn part(&mut self, length: usize) -> &'a [u8] {
        let (part, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        part
    }

    fn short_part(&mut self) -> &'a [u8] {
        let length = self.byte();
        self.part(length.into())
    }

    /// Now and then NULL in place of a pointer.
    fn pointer<T>(&mut self, pointer: *const T) -> *const T {
        match self.byte() {
            255 => ptr::null(),
            _ => pointer,
        }
    }
}

/// A buffer of just its capacity, so that what is written beyond it is seen.
fn buffer<T: Copy>(input: &mut Input<'_>, value: T) -> (Vec<T>, *mut T, usize) {
    let mut values = vec![value; input.byte().into()];
    let at = input.pointer(values.as_mut_ptr().cast_const()).cast_mut();
    let length = values.len();
    (values, at, length)
}

/// A sequence of calls, in which the bytes say which and with what.
fn c_api(data: &[u8]) {
    static TRAINED: OnceLock<Tokenizer> = OnceLock::new();
    let trained: *const Tokenizer = TRAINED.get_or_init(|| train(["the theme of these other themes"], 270).unwrap());
    let mut input = Input(data);
    let (mut made, mut stream): (*mut Tokenizer, *mut Stream) = (ptr::null_mut(), ptr::null_mut());
    while !input.0.is_empty() {
        let call = input.byte();
        let of = if call >= 128 && !made.is_null() {
            made.cast_const()
        } else {
            trained
        };
        let of = input.pointer(of);
        let mut needed = usize::MAX;
        let needed_at = input.pointer(&needed).cast_mut();
        let special = c_int::from(input.byte() % 5) - 1;
        // SAFETY: each pointer is null or points to what the header asks for; a tokenizer is freed after its stream.
        let status = unsafe {
            match call % 16 {
                0 => {
                    let text = input.short_part();
                    let (_tokens, at, capacity) = buffer(&mut input, 0_u32);
                    let text_at = input.pointer(text.as_ptr()).cast();
                    mi_tokenizer_encode(of, text_at, text.len(), special, at, capacity, needed_at)
                }
                1 => {
                    let texts = [(); 4].map(|()| input.short_part());
                    let pointers = texts.map(|text| input.pointer(text.as_ptr()).cast());
                    let sizes = texts.map(<[u8]>::len);
                    let count = usize::from(input.byte() % 5);
                    let (_tokens, at, capacity) = buffer(&mut input, 0_u32);
                    let mut ends = vec![0; count];
                    let ends_at = input.pointer(ends.as_mut_ptr().cast_const()).cast_mut();
                    let threads = usize::from(input.byte() % 3);
                    mi_tokenizer_encode_batch(
                        of,
                        input.pointer(pointers.as_ptr()),
                        input.pointer(sizes.as_ptr()),
                        count,
                        special,
                        threads,
                        at,
                        capacity,
                        ends_at,
                        needed_at,
                    )
                }
                2 => {
                    let ids: Vec<u32> = input.short_part().iter().map(|&id| u32::from(id) + 20).collect();
                    let (_bytes, at, capacity) = buffer(&mut input, 0_u8);
                    mi_tokenizer_decode(of, input.pointer(ids.as_ptr()), ids.len(), at, capacity, needed_at)
                }
                3 => {
                    let id = u32::from(input.byte()) << (input.byte() % 32);
                    let (_bytes, at, capacity) = buffer(&mut input, 0_u8);
                    mi_tokenizer_token_bytes(of, id, at, capacity, needed_at)
                }
                4 => {
                    mi_tokenizer_stream_free(stream);
                    stream = ptr::null_mut();
                    mi_tokenizer_stream_new(of, input.pointer(&raw mut stream).cast_mut())
                }
                5 => {
                    let id = u32::from(input.byte()) + 20;
                    let (bytes, at, capacity) = buffer(&mut input, 0_u8);
                    let status = mi_tokenizer_stream_push(stream, id, at, capacity, &mut needed);
                    assert!(status != OK || std::str::from_utf8(&bytes[..needed]).is_ok());
                    status
                }
                6 => {
                    let (_bytes, at, capacity) = buffer(&mut input, 0_u8);
                    mi_tokenizer_stream_finish(stream, at, capacity, needed_at)
                }
                7..=9 => {
                    mi_tokenizer_stream_free(stream);
                    stream = ptr::null_mut();
                    mi_tokenizer_free(made);
                    made = ptr::null_mut();
                    let length = usize::from(input.byte()) << 5;
                    let data = input.part(length);
                    let data_at = input.pointer(data.as_ptr()).cast();
                    let out = input.pointer(&raw mut made).cast_mut();
                    match call % 16 {
                        7 => mi_tokenizer_from_bytes(data_at, data.len(), out),
                        8 => mi_tokenizer_from_huggingface(data_at, data.len(), out),
                        _ => {
                            let name = [input.short_part(), &[0]].concat();
                            let names = [name.as_ptr().cast(), c"<|a|>".as_ptr(), ptr::null()];
                            let ids = [u32::from(input.byte()) << (input.byte() % 32), 300, 301];
                            let count = usize::from(input.byte() % 4);
                            let names = input.pointer(names.as_ptr());
                            mi_tokenizer_from_tiktoken(data_at, data.len(), names, ids.as_ptr(), count, out)
                        }
                    }
                }
                10..=12 => {
                    let to = [
                        mi_tokenizer_to_bytes,
                        mi_tokenizer_to_tiktoken,
                        mi_tokenizer_to_huggingface,
                    ][usize::from(call % 16) - 10];
                    let length = usize::from(input.byte()) << 6;
                    let mut bytes = vec![0; length];
                    to(of, input.pointer(bytes.as_mut_ptr()).cast_mut(), length, needed_at)
                }
                13 => {
                    let name = [input.short_part(), &[0]].concat();
                    mi_tokenizer_special_id(of, input.pointer(name.as_ptr()).cast());
                    mi_tokenizer_eot_id(of);
                    assert_eq!(mi_tokenizer_vocab_size(of) == 0, of.is_null());
                    OK
                }
                14 => {
                    let mut none: *mut Tokenizer = ptr::null_mut();
                    mi_tokenizer_load(
                        input.pointer(c"/dev/null/none".as_ptr()),
                        input.pointer(&raw mut none).cast_mut(),
                    )
                }
                _ => {
                    let path = input.pointer(c"/dev/null/none".as_ptr());
                    match input.byte() % 2 {
                        0 => mi_tokenizer_save(of, path),
                        _ => mi_tokenizer_train_file(path, input.byte().into(), path),
                    }
                }
            }
        };
        assert!((OK..=CAPACITY).contains(&status), "status {status}");
        // SAFETY: it is valid until this thread's next call.
        let message = unsafe { std::ffi::CStr::from_ptr(mi_tokenizer_last_error()) };
        assert!(status == OK || !message.to_bytes().is_empty());
    }
    // SAFETY: null or made above, the tokenizer after its stream.
    unsafe {
        mi_tokenizer_stream_free(stream);
        mi_tokenizer_free(made);
    }
}
