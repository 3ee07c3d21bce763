//! Random calls of the C interface, in several threads: whatever the arguments that the header allows, no call crashes, and none writes where it should
//! not.

#[path = "../fuzz/c_interface.rs"]
mod c_interface;
mod common;

use std::ffi::{c_int, CString};
use std::ptr;

use c_interface::*;
use common::Random;
use mamba_integer_tokenizer::{train, AllowSpecial, Tokenizer};

const INTERNAL: c_int = 6;

/// A buffer of the caller's: what lies beyond its capacity must stay as it is.
struct Buffer<T> {
    values: Vec<T>,
    capacity: usize,
    null: bool,
}

impl<T: Copy + PartialEq + std::fmt::Debug> Buffer<T> {
    fn new(random: &mut Random, mark: T) -> Buffer<T> {
        let capacity = [0, 1, 3, 50, 400][random.below(5)];
        Buffer {
            values: vec![mark; capacity + 64],
            capacity,
            null: random.below(8) == 0,
        }
    }

    fn pointer(&mut self) -> *mut T {
        if self.null {
            ptr::null_mut()
        } else {
            self.values.as_mut_ptr()
        }
    }

    #[track_caller]
    fn check(&self, status: c_int, needed: usize, mark: T) -> &[T] {
        assert!(self.values[self.capacity..].iter().all(|&value| value == mark));
        if status != OK {
            assert!(self.values.iter().all(|&value| value == mark));
            return &[];
        }
        assert!(needed <= self.capacity);
        &self.values[..needed]
    }
}

fn maybe<T>(random: &mut Random, pointer: *const T) -> *const T {
    match random.below(10) {
        0 => ptr::null(),
        _ => pointer,
    }
}

fn calls(seed: u64, tokenizer: &Tokenizer, folder: &str) {
    let mut random = Random(seed);
    let mut stream: *mut Stream = ptr::null_mut();
    for round in 0..4000 {
        let mut needed = usize::MAX;
        let needed_pointer: *mut usize = maybe(&mut random, &needed).cast_mut();
        let of = maybe(&mut random, tokenizer);
        let text = match random.below(3) {
            0 => random.bytes(30),
            1 => random.text(30).into_bytes(),
            _ => b"one <|endoftext|> two".to_vec(),
        };
        let text_pointer = maybe(&mut random, text.as_ptr()).cast();
        let special = random.below(5) as c_int - 1;
        let id = [random.below(400) as u32, random.next() as u32, u32::MAX][random.below(3)];
        // SAFETY: each pointer is null or points to what the header asks for.
        let status = unsafe {
            match random.below(16) {
                0..=2 => {
                    let mut tokens = Buffer::new(&mut random, 0xAAAA_AAAA_u32);
                    let (at, capacity) = (tokens.pointer(), tokens.capacity);
                    let status = mi_tokenizer_encode(of, text_pointer, text.len(), special, at, capacity, &mut needed);
                    let found = tokens.check(status, needed, 0xAAAA_AAAA);
                    if status == OK && !text_pointer.is_null() {
                        let policy = [AllowSpecial::Refuse, AllowSpecial::All, AllowSpecial::AsText][special as usize];
                        assert_eq!(found, tokenizer.encode_bytes(&text, policy).unwrap());
                    }
                    status
                }
                3 | 4 => {
                    let other = random.text(10);
                    let texts = [text_pointer, other.as_ptr().cast(), ptr::null()];
                    let sizes = [text.len(), other.len(), 0];
                    let count = random.below(4);
                    let mut tokens = Buffer::new(&mut random, 0xAAAA_AAAA_u32);
                    let mut ends = [usize::MAX; 4];
                    let (at, capacity) = (tokens.pointer(), tokens.capacity);
                    let threads = random.below(4);
                    let status = mi_tokenizer_encode_batch(
                        of,
                        maybe(&mut random, texts.as_ptr()),
                        maybe(&mut random, sizes.as_ptr()),
                        count,
                        special,
                        threads,
                        at,
                        capacity,
                        ends.as_mut_ptr(),
                        &mut needed,
                    );
                    tokens.check(status, needed, 0xAAAA_AAAA);
                    assert!(ends[count..].iter().all(|&end| end == usize::MAX));
                    if status == OK && count > 0 {
                        assert_eq!(ends[count - 1], needed);
                    }
                    status
                }
                5 | 6 => {
                    let ids: Vec<u32> = (0..random.below(20)).map(|_| random.below(420) as u32).collect();
                    let mut bytes = Buffer::new(&mut random, 0xAA_u8);
                    let (at, capacity) = (bytes.pointer(), bytes.capacity);
                    let from = maybe(&mut random, ids.as_ptr());
                    let status = mi_tokenizer_decode(of, from, ids.len(), at, capacity, &mut needed);
                    if status == OK {
                        assert_eq!(bytes.check(status, needed, 0xAA), tokenizer.decode(&ids).unwrap());
                    }
                    status
                }
                7 => {
                    let mut bytes = Buffer::new(&mut random, 0xAA_u8);
                    let (at, capacity) = (bytes.pointer(), bytes.capacity);
                    mi_tokenizer_token_bytes(of, id, at, capacity, needed_pointer)
                }
                8 if stream.is_null() => mi_tokenizer_stream_new(of, maybe(&mut random, &stream).cast_mut()),
                8 | 9 => {
                    let mut bytes = Buffer::new(&mut random, 0xAA_u8);
                    let (at, capacity) = (bytes.pointer(), bytes.capacity);
                    let status = mi_tokenizer_stream_push(stream, id, at, capacity, &mut needed);
                    assert!(std::str::from_utf8(bytes.check(status, needed, 0xAA)).is_ok());
                    status
                }
                10 => {
                    let mut bytes = Buffer::new(&mut random, 0xAA_u8);
                    let (at, capacity) = (bytes.pointer(), bytes.capacity);
                    let status = mi_tokenizer_stream_finish(stream, at, capacity, needed_pointer);
                    if random.below(3) == 0 {
                        mi_tokenizer_stream_free(stream);
                        stream = ptr::null_mut();
                    }
                    status
                }
                11 => {
                    let mut file = tokenizer.to_bytes().unwrap();
                    let at = random.below(file.len());
                    file[at] = random.next() as u8;
                    let mut made: *mut Tokenizer = ptr::null_mut();
                    let status = mi_tokenizer_from_bytes(file.as_ptr().cast(), file.len(), &mut made);
                    assert_eq!(status == OK, !made.is_null());
                    mi_tokenizer_free(made);
                    status
                }
                12 => {
                    let mut file = tokenizer.to_tiktoken().unwrap();
                    let at = random.below(file.len());
                    file[at] = if random.below(2) == 0 {
                        file[at]
                    } else {
                        random.next() as u8
                    };
                    let names = [
                        c"<|a|>".as_ptr(),
                        c"<|endoftext|>".as_ptr(),
                        c"".as_ptr(),
                        c"\xff".as_ptr(),
                    ];
                    let ids = [5000, 5001, 5002, 5003];
                    let count = random.below(5);
                    let mut made: *mut Tokenizer = ptr::null_mut();
                    let names = maybe(&mut random, names.as_ptr());
                    let ids = maybe(&mut random, ids.as_ptr());
                    let status =
                        mi_tokenizer_from_tiktoken(file.as_ptr().cast(), file.len(), names, ids, count, &mut made);
                    assert_eq!(status == OK, !made.is_null());
                    if count == 2 && status == OK {
                        assert_eq!(mi_tokenizer_eot_id(made), 5001);
                        assert_eq!(mi_tokenizer_special_id(made, c"<|a|>".as_ptr()), 5000);
                        assert_eq!(mi_tokenizer_vocab_size(made), 5002);
                        assert_ne!(mi_tokenizer_save(made, c"/".as_ptr()), OK);
                    }
                    mi_tokenizer_free(made);
                    status
                }
                13 => {
                    let mut file = tokenizer.to_huggingface().unwrap();
                    let at = random.below(file.len());
                    file[at] = random.next() as u8;
                    let mut made: *mut Tokenizer = ptr::null_mut();
                    let status = mi_tokenizer_from_huggingface(file.as_ptr().cast(), file.len(), &mut made);
                    assert_eq!(status == OK, !made.is_null());
                    mi_tokenizer_free(made);
                    status
                }
                14 => {
                    let (to, expected): (unsafe extern "C" fn(_, _, _, _) -> c_int, _) = match random.below(3) {
                        0 => (mi_tokenizer_to_bytes, tokenizer.to_bytes()),
                        1 => (mi_tokenizer_to_tiktoken, tokenizer.to_tiktoken()),
                        _ => (mi_tokenizer_to_huggingface, tokenizer.to_huggingface()),
                    };
                    let expected = expected.unwrap();
                    let mut bytes = vec![0xAA; expected.len() + 1];
                    let capacity = expected.len() - random.below(2);
                    let status = to(of, bytes.as_mut_ptr(), capacity, needed_pointer);
                    assert!(status != OK || bytes[..expected.len()] == expected);
                    assert_eq!(bytes[capacity..].iter().find(|&&byte| byte != 0xAA), None);
                    status
                }
                _ => {
                    let none = CString::new(format!("{folder}/none")).unwrap();
                    let here = CString::new(format!("{folder}/{seed}")).unwrap();
                    let mut made: *mut Tokenizer = ptr::null_mut();
                    match round % 5 {
                        0 => mi_tokenizer_load(none.as_ptr(), &mut made),
                        1 => mi_tokenizer_save(of, maybe(&mut random, here.as_ptr())),
                        2 => mi_tokenizer_train_file(none.as_ptr(), random.below(600), here.as_ptr()),
                        3 => {
                            let id = mi_tokenizer_special_id(of, maybe(&mut random, c"<|endoftext|>".as_ptr()));
                            assert!([u32::MAX, tokenizer.eot()].contains(&id));
                            OK
                        }
                        _ => {
                            assert_eq!(mi_tokenizer_vocab_size(of) == 0, of.is_null());
                            assert_eq!(mi_tokenizer_eot_id(of) == u32::MAX, of.is_null());
                            OK
                        }
                    }
                }
            }
        };
        assert_ne!(status, INTERNAL, "round {round}");
        assert!((OK..=CAPACITY).contains(&status));
        if status != OK {
            // SAFETY: it is valid until this thread's next call.
            let message = unsafe { std::ffi::CStr::from_ptr(mi_tokenizer_last_error()) };
            assert!(!message.to_bytes().is_empty());
        }
    }
    // SAFETY: null or from `mi_tokenizer_stream_new`.
    unsafe { mi_tokenizer_stream_free(stream) };
}

#[test]
fn random_calls_in_threads() {
    let tokenizer = train([Random(40).text(2000)], 400).unwrap();
    let folder = std::env::temp_dir().join(format!("mamba-integer-tokenizer-calls-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let name = folder.to_str().unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let tokenizer = &tokenizer;
            scope.spawn(move || calls(seed, tokenizer, name));
        }
    });
    std::fs::remove_dir_all(&folder).unwrap();
}
