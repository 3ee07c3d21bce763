//! The engine: `Model` (immutable, shared by threads) and `Session` (one sequence, one thread at a time).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use mamba_integer_engine as native;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::{argument_error, from_engine};

fn to_bytes<'py>(py: Python<'py>, values: &[i32]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, 4 * values.len(), |out| {
        for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    })
}

#[pyfunction]
pub fn sha256<'py>(py: Python<'py>, data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &native::sha256(data))
}

#[pyclass(frozen, module = "mamba_integer._native")]
pub struct Model {
    inner: Arc<native::Model>,
}

#[pymethods]
impl Model {
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let model = py
            .detach(|| native::Model::load(path))
            .map_err(|e| from_engine(py, e))?;
        Ok(Self { inner: Arc::new(model) })
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let model = py
            .detach(|| native::Model::from_bytes(data))
            .map_err(|e| from_engine(py, e))?;
        Ok(Self { inner: Arc::new(model) })
    }

    /// The fields of `mi_config`, each under its name in the model file.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = self.inner.config();
        let out = PyDict::new(py);
        out.set_item("d_model", config.d_model)?;
        out.set_item("n_layers", config.n_layers)?;
        out.set_item("n_heads", config.n_heads)?;
        out.set_item("head_dim", config.head_dim)?;
        out.set_item("d_state", config.d_state)?;
        out.set_item("vocab_size", config.vocab_size)?;
        out.set_item("context_length", config.context_length)?;
        out.set_item("scan", config.scan.as_str())?;
        out.set_item("activation", config.activation.as_str())?;
        out.set_item("gate", config.gate.as_str())?;
        out.set_item("norm_mantissa", config.norm_mantissa)?;
        out.set_item("rotation", config.rotation)?;
        out.set_item("weights", if config.ternary { "ternary" } else { "int8" })?;
        out.set_item("embed_mul", config.embed_mul)?;
        out.set_item("logit_shift", config.logit_shift)?;
        Ok(out)
    }

    #[getter]
    fn name(&self) -> &str {
        self.inner.name()
    }

    #[getter]
    fn digest(&self) -> &str {
        self.inner.digest()
    }

    fn tokenizer_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.inner.tokenizer_bytes())
    }

    #[pyo3(signature = (device = "cpu"))]
    fn session(&self, py: Python<'_>, device: &str) -> PyResult<Session> {
        let session = py
            .detach(|| native::Session::on(Arc::clone(&self.inner), device))
            .map_err(|e| from_engine(py, e))?;
        Ok(Session {
            inner: Mutex::new(session),
        })
    }
}

#[pyclass(frozen, module = "mamba_integer._native")]
pub struct Session {
    inner: Mutex<native::Session>,
}

impl Session {
    /// A session belongs to one thread at a time: a second one is told so instead of waiting (it might hold what the first needs).
    fn own(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, native::Session>> {
        self.inner
            .try_lock()
            .map_err(|_| argument_error(py, "this session is in use by another thread"))
    }
}

#[pymethods]
impl Session {
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.own(py)?.position())
    }

    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.own(py)?.reset();
        Ok(())
    }

    /// How many threads compute what is fed.
    fn set_threads(&self, py: Python<'_>, threads: u32) -> PyResult<()> {
        self.own(py)?.set_threads(threads).map_err(|e| from_engine(py, e))
    }

    /// The state as bytes.
    fn save<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let state = self.own(py)?.save().map_err(|e| from_engine(py, e))?;
        Ok(PyBytes::new(py, &state))
    }

    /// To a state that was saved; on an error nothing has changed.
    fn restore(&self, py: Python<'_>, state: &[u8]) -> PyResult<()> {
        self.own(py)?.restore(state).map_err(|e| from_engine(py, e))
    }

    /// Feeds tokens; with `all_logits` gives the logits after each, else None.
    #[pyo3(signature = (tokens, all_logits=false))]
    fn feed<'py>(&self, py: Python<'py>, tokens: Vec<u32>, all_logits: bool) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let mut session = self.own(py)?;
        let session = &mut *session;
        let logits = py
            .detach(|| session.feed(&tokens, all_logits))
            .map_err(|e| from_engine(py, e))?;
        logits.map(|values| to_bytes(py, &values)).transpose()
    }

    /// Feeds tokens, calling `callback(position, site, values)` for every intermediate that the spec names, in the spec's order.
    fn feed_traced<'py>(
        &self,
        py: Python<'py>,
        tokens: Vec<u32>,
        callback: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut session = self.own(py)?;
        let mut failure: Option<PyErr> = None;
        let fed = session.feed_traced(&tokens, |trace| {
            if failure.is_none() {
                let called = to_bytes(py, trace.values)
                    .and_then(|values| callback.call1((trace.position, trace.site, values)).map(drop));
                failure = called.err();
            }
        });
        match failure {
            Some(error) => Err(error),
            None => to_bytes(py, &fed.map_err(|e| from_engine(py, e))?),
        }
    }

    /// Logits after the last token fed; None before the first.
    fn logits<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let session = self.own(py)?;
        session.logits().map(|values| to_bytes(py, values)).transpose()
    }

    /// Chooses a token from the last logits by the sampling integers of the spec.
    fn sample(&self, py: Python<'_>, temperature: u32, top_k: u32, top_p: u32, seed: u64, step: u64) -> PyResult<u32> {
        let sampling = native::Sampling {
            temperature,
            top_k,
            top_p,
            seed,
        };
        self.own(py)?.sample(&sampling, step).map_err(|e| from_engine(py, e))
    }
}

#[pyfunction]
pub fn isa() -> &'static str {
    native::isa()
}

/// Feeds each session its tokens, all at once.
#[pyfunction]
pub fn feed_many(py: Python<'_>, sessions: Vec<Py<Session>>, tokens: Vec<Vec<u32>>) -> PyResult<()> {
    if sessions.len() != tokens.len() {
        return Err(argument_error(py, "every session needs its tokens"));
    }
    let mut owned = Vec::new();
    for session in &sessions {
        owned.push(session.get().own(py)?);
    }
    let mut feeds: Vec<(&mut native::Session, &[u32])> = Vec::new();
    for (session, tokens) in owned.iter_mut().zip(&tokens) {
        feeds.push((&mut **session, tokens));
    }
    native::Session::feed_many(&mut feeds).map_err(|e| from_engine(py, e))
}
