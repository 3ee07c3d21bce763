//! The C interface, one function for all operations: `mamba_integer/encrypted/native.py` is its only caller and has the same numbers.
//!
//! A status of 0 is done; 1 is refused, with the message in the output. Nothing unwinds into the caller.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::{Arc, Mutex};

use crate::{bfv, fail, micro, Error, Result};

/// What a handle may be.
pub enum Object {
    BfvClient(bfv::Client),
    BfvMatrix(bfv::Matrix),
    MicroClient(Box<micro::Client>),
    MicroServer(Arc<micro::Server>),
    MicroSession(Mutex<micro::Session>),
}

/// Bytes that belong to the caller until `mie_free_bytes`.
#[repr(C)]
pub struct Bytes {
    pub data: *mut u8,
    pub len: usize,
}

type Outcome = (Vec<u8>, Option<Object>);

fn numbers(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn run(operation: u32, object: Option<&Object>, input: &[u8], a: u64, b: u64) -> Result<Outcome> {
    use Object::{BfvClient, BfvMatrix, MicroClient, MicroServer, MicroSession};
    let (small, size) = (a as usize, b as usize);
    let bytes = |data: Vec<u8>| Ok((data, None));
    let made = |object: Object| Ok((Vec::new(), Some(object)));
    match (operation, object) {
        (0, None) => made(BfvClient(bfv::Client::generate())),
        (1, None) => made(BfvClient(bfv::Client::from_bytes(input)?)),
        (2, Some(BfvClient(client))) => bytes(client.to_bytes()),
        (3, Some(BfvClient(client))) => {
            let x: Vec<i64> = input
                .chunks_exact(8)
                .map(|v| i64::from_le_bytes(v.try_into().expect("eight bytes")))
                .collect();
            bytes(client.encrypt(&x)?)
        }
        (4, Some(BfvClient(client))) => bytes(numbers(&client.decrypt(input, small, size)?)),
        (5 | 6, None) => {
            let weights: Vec<i8> = input.iter().map(|w| *w as i8).collect();
            let most = if operation == 5 { 127 } else { 1 };
            made(BfvMatrix(bfv::Matrix::new(&weights, small, size, most)?))
        }
        (7, Some(BfvMatrix(matrix))) => bytes(matrix.apply(input)?),
        (10, None) => {
            let (client, keys) = micro::Client::generate()?;
            Ok((keys, Some(MicroClient(Box::new(client)))))
        }
        (11, None) => made(MicroClient(Box::new(micro::Client::from_bytes(input)?))),
        (12, Some(MicroClient(client))) => bytes(client.to_bytes()?),
        (13, Some(MicroClient(client))) => bytes(client.encrypt(small, size)?),
        (14, Some(MicroClient(client))) => {
            let (logits, distance) = client.decrypt(input, small)?;
            let mut out = numbers(&logits);
            out.extend(distance.to_le_bytes());
            bytes(out)
        }
        (15, None) => {
            let Some((circuit, keys)) = input.split_at_checked(small) else {
                return fail("the circuit is damaged");
            };
            let circuit = std::str::from_utf8(circuit).map_err(|_| Error("the circuit is damaged".into()))?;
            made(MicroServer(Arc::new(micro::Server::new(keys, circuit)?)))
        }
        (16, Some(MicroServer(server))) => made(MicroSession(Mutex::new(micro::Session::new(server)))),
        (17, Some(MicroSession(session))) => {
            let mut session = session.lock().map_err(|_| Error("the session failed before".into()))?;
            session.feed(input)?;
            bytes(session.logits())
        }
        _ => fail("no such operation on this object"),
    }
}

/// Runs an operation on an object (or null) with `len` bytes of input and two numbers. The output is bytes and, of some operations, a new object.
///
/// # Safety
/// `object` is null or was made here and not freed; `input` points to `len` bytes (or `len` is 0); `output` and `made` may be written.
#[no_mangle]
pub unsafe extern "C" fn mie_run(
    operation: u32,
    object: *const Object,
    input: *const u8,
    len: usize,
    a: u64,
    b: u64,
    output: *mut Bytes,
    made: *mut *mut Object,
) -> i32 {
    // SAFETY: as the caller promises.
    let (object, input) = unsafe {
        let input = if len == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(input, len)
        };
        (object.as_ref(), input)
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| run(operation, object, input, a, b)))
        .unwrap_or_else(|_| fail("a fault inside the encryption library"));
    let (status, data, new) = match outcome {
        Ok((data, new)) => (0, data, new),
        Err(error) => (1, error.0.into_bytes(), None),
    };
    let data = Box::leak(data.into_boxed_slice());
    // SAFETY: as the caller promises.
    unsafe {
        output.write(Bytes {
            data: data.as_mut_ptr(),
            len: data.len(),
        });
        made.write(new.map_or(ptr::null_mut(), |object| Box::into_raw(Box::new(object))));
    }
    status
}

/// # Safety
/// `bytes` came from [`mie_run`] and were not freed.
#[no_mangle]
pub unsafe extern "C" fn mie_free_bytes(bytes: Bytes) {
    // SAFETY: they are the box that `mie_run` leaked.
    drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(bytes.data, bytes.len)) });
}

/// # Safety
/// `object` came from [`mie_run`], was not freed, and nothing uses it.
#[no_mangle]
pub unsafe extern "C" fn mie_free_object(object: *mut Object) {
    // SAFETY: it is the box that `mie_run` gave away.
    drop(unsafe { Box::from_raw(object) });
}
