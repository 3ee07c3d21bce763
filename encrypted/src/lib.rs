//! Inference on ciphertexts, the two profiles of `docs/ENCRYPTED.md`: [`bfv`] has the matrix products of the int8 models, [`micro`] the tables of
//! the low-bit model (section 12 of `spec/ARITHMETIC.md`). Knows neither sockets nor model files; those are `mamba_integer/encrypted`.
//!
//! Nothing that comes from the other side is trusted: every length and every residue is checked, and a panic inside a library becomes an [`Error`].

pub mod bfv;
pub mod c;
pub mod micro;

use std::panic::{catch_unwind, AssertUnwindSafe};

/// What is wrong with a key, a ciphertext or a model, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error(message.into()))
}

/// Runs what a library does with bytes from outside; if it panics, they were not what they should be.
pub(crate) fn guarded<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| fail(format!("{what} is damaged")))
}
