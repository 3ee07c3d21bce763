//! Each native error becomes its exception in `mamba_integer.errors`.

use mamba_integer_engine::Error as EngineError;
use mamba_integer_prover::Error as ProverError;
use mamba_integer_tokenizer::Error as TokenizerError;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::PyType;

fn raise(py: Python<'_>, class: &str, message: String) -> PyErr {
    let found = py
        .import("mamba_integer.errors")
        .and_then(|module| module.getattr(class))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match found {
        Ok(class) => PyErr::from_type(class, message),
        Err(error) => error,
    }
}

pub fn argument_error(py: Python<'_>, message: &str) -> PyErr {
    raise(py, "ArgumentError", message.to_owned())
}

pub fn from_engine(py: Python<'_>, error: EngineError) -> PyErr {
    match error {
        EngineError::Io(message) | EngineError::Argument(message) => raise(py, "ArgumentError", message),
        EngineError::Format(message) => raise(py, "ModelFormatError", message),
        EngineError::Memory(message) => PyMemoryError::new_err(message),
        EngineError::Device(message) => raise(py, "DeviceError", message),
    }
}

pub fn from_tokenizer(py: Python<'_>, error: TokenizerError) -> PyErr {
    tokenizer_error(py, error.to_string())
}

pub fn tokenizer_error(py: Python<'_>, message: String) -> PyErr {
    raise(py, "TokenizerError", message)
}

pub fn from_prover(py: Python<'_>, error: ProverError) -> PyErr {
    proof_error(py, error.to_string())
}

pub fn proof_error(py: Python<'_>, message: String) -> PyErr {
    raise(py, "ProofError", message)
}
