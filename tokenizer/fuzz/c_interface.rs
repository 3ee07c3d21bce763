//! The C interface as a caller declares it. `tests/c_header.rs` holds the header to the functions; these are for calling them.

// A tokenizer is opaque to C.
#![allow(improper_ctypes)]

use std::ffi::{c_char, c_int, c_void};

use mamba_integer_tokenizer::Tokenizer;

#[repr(C)]
pub struct Stream(c_void);

extern "C" {
    pub fn mi_tokenizer_last_error() -> *const c_char;
    pub fn mi_tokenizer_load(path: *const c_char, out: *mut *mut Tokenizer) -> c_int;
    pub fn mi_tokenizer_from_bytes(data: *const c_void, size: usize, out: *mut *mut Tokenizer) -> c_int;
    pub fn mi_tokenizer_from_tiktoken(
        data: *const c_void,
        size: usize,
        names: *const *const c_char,
        ids: *const u32,
        count: usize,
        out: *mut *mut Tokenizer,
    ) -> c_int;
    pub fn mi_tokenizer_from_huggingface(data: *const c_void, size: usize, out: *mut *mut Tokenizer) -> c_int;
    pub fn mi_tokenizer_free(tokenizer: *mut Tokenizer);
    pub fn mi_tokenizer_vocab_size(tokenizer: *const Tokenizer) -> usize;
    pub fn mi_tokenizer_eot_id(tokenizer: *const Tokenizer) -> u32;
    pub fn mi_tokenizer_special_id(tokenizer: *const Tokenizer, name: *const c_char) -> u32;
    pub fn mi_tokenizer_encode(
        tokenizer: *const Tokenizer,
        text: *const c_void,
        size: usize,
        special: c_int,
        tokens: *mut u32,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_encode_batch(
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
    ) -> c_int;
    pub fn mi_tokenizer_decode(
        tokenizer: *const Tokenizer,
        tokens: *const u32,
        count: usize,
        bytes: *mut u8,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_token_bytes(
        tokenizer: *const Tokenizer,
        id: u32,
        bytes: *mut u8,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_stream_new(tokenizer: *const Tokenizer, out: *mut *mut Stream) -> c_int;
    pub fn mi_tokenizer_stream_push(
        stream: *mut Stream,
        id: u32,
        bytes: *mut u8,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_stream_finish(
        stream: *mut Stream,
        bytes: *mut u8,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_stream_free(stream: *mut Stream);
    pub fn mi_tokenizer_to_bytes(
        tokenizer: *const Tokenizer,
        bytes: *mut u8,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_to_tiktoken(
        tokenizer: *const Tokenizer,
        bytes: *mut u8,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_to_huggingface(
        tokenizer: *const Tokenizer,
        bytes: *mut u8,
        capacity: usize,
        needed: *mut usize,
    ) -> c_int;
    pub fn mi_tokenizer_save(tokenizer: *const Tokenizer, out: *const c_char) -> c_int;
    pub fn mi_tokenizer_train_file(text: *const c_char, vocab_size: usize, out: *const c_char) -> c_int;
}

pub const OK: c_int = 0;
pub const CAPACITY: c_int = 5;
