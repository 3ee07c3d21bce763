//! The tokenizer: immutable, shared by threads.

use std::path::PathBuf;

use mamba_integer_tokenizer as native;
use mamba_integer_tokenizer::AllowSpecial;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::from_tokenizer;

/// The documents of a text, which lines `<|endoftext|>` separate.
#[pyfunction]
pub fn documents(text: &str) -> Vec<&str> {
    native::documents(text).collect()
}

#[pyclass(frozen, module = "mamba_integer._native")]
pub struct Tokenizer {
    inner: native::Tokenizer,
}

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py
            .detach(|| native::Tokenizer::load(path))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self { inner })
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let inner = py
            .detach(|| native::Tokenizer::from_bytes(data))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self { inner })
    }

    #[staticmethod]
    fn train(py: Python<'_>, documents: Vec<String>, vocab_size: usize) -> PyResult<Self> {
        let inner = py
            .detach(|| native::train(documents, vocab_size))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self { inner })
    }

    #[pyo3(signature = (text, allow_special=false))]
    fn encode(&self, py: Python<'_>, text: &str, allow_special: bool) -> PyResult<Vec<u32>> {
        let special = if allow_special {
            AllowSpecial::All
        } else {
            AllowSpecial::Refuse
        };
        py.detach(|| self.inner.encode(text, special))
            .map_err(|e| from_tokenizer(py, e))
    }

    fn decode_bytes<'py>(&self, py: Python<'py>, tokens: Vec<u32>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py
            .detach(|| self.inner.decode(&tokens))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.inner.save(path)).map_err(|e| from_tokenizer(py, e))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.to_bytes())
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    #[getter]
    fn eot(&self) -> u32 {
        self.inner.eot()
    }
}
