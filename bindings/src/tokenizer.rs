//! The tokenizer: immutable, shared by threads.

use std::path::PathBuf;
use std::sync::OnceLock;

use mamba_integer_tokenizer as native;
use mamba_integer_tokenizer::AllowSpecial;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::error::{from_tokenizer, tokenizer_error};

/// Below this many bytes, giving the interpreter away costs more than others could gain.
const SHORT: usize = 1 << 12;
/// Larger vocabularies have no numbers ready.
const READY: usize = 1 << 18;

/// The documents of a text, which lines `<|endoftext|>` separate.
#[pyfunction]
pub fn documents(text: &str) -> Vec<&str> {
    native::documents(text).collect()
}

/// The bytes of a `str` or `bytes`.
fn text_of<'a>(text: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    let py = text.py();
    if let Ok(text) = text.cast::<PyString>() {
        return match text.to_str() {
            Ok(text) => Ok(text.as_bytes()),
            Err(_) => {
                let whole = text.to_string_lossy();
                let at = text.len()?.min(whole.chars().count());
                let half = (0..at).find(|&at| {
                    let one = text.get_item(at).and_then(|one| Ok(one.cast_into::<PyString>()?));
                    one.is_ok_and(|one| one.to_str().is_err())
                });
                Err(tokenizer_error(
                    py,
                    format!(
                        "the text is not valid Unicode (character {} is half of a surrogate pair)",
                        half.unwrap_or(0)
                    ),
                ))
            }
        };
    }
    match text.cast::<PyBytes>() {
        Ok(text) => Ok(text.as_bytes()),
        Err(_) => Err(PyTypeError::new_err("a text must be str or bytes")),
    }
}

/// One number for each special token: 0 refused, 1 allowed, 2 text.
fn policy_of(policy: &[u8]) -> Vec<AllowSpecial> {
    let meaning = |&number: &u8| match number {
        0 => AllowSpecial::Refuse,
        1 => AllowSpecial::All,
        _ => AllowSpecial::AsText,
    };
    policy.iter().map(meaning).collect()
}

/// Tokens, and where in the text each begins and ends, in characters.
type Offsets = (Vec<u32>, Vec<(usize, usize)>);

/// Numbers that NumPy can take without copying them: `numpy.asarray`.
#[pyclass(frozen, module = "mamba_integer._native")]
pub struct Numbers {
    /// Kept for as long as the array is. Nothing here reads or changes them any more, so that the array may be written to.
    _owner: Kept,
    address: usize,
    length: usize,
    kind: &'static str,
}

enum Kept {
    Tokens(#[allow(dead_code)] Vec<u32>),
    Ends(#[allow(dead_code)] Vec<u64>),
}

impl Numbers {
    fn tokens(mut tokens: Vec<u32>) -> Numbers {
        Numbers {
            address: tokens.as_mut_ptr() as usize,
            length: tokens.len(),
            kind: if cfg!(target_endian = "little") { "<u4" } else { ">u4" },
            _owner: Kept::Tokens(tokens),
        }
    }

    fn ends(mut ends: Vec<u64>) -> Numbers {
        Numbers {
            address: ends.as_mut_ptr() as usize,
            length: ends.len(),
            kind: if cfg!(target_endian = "little") { "<i8" } else { ">i8" },
            _owner: Kept::Ends(ends),
        }
    }
}

#[pymethods]
impl Numbers {
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", self.kind)?;
        interface.set_item("shape", (self.length,))?;
        interface.set_item("data", (self.address, false))?;
        Ok(interface)
    }
}

#[pyclass(frozen, module = "mamba_integer._native")]
pub struct Tokenizer {
    inner: native::Tokenizer,
    /// The id numbers as Python objects, made when first needed.
    ready: OnceLock<Vec<Py<PyAny>>>,
}

impl Tokenizer {
    fn new(inner: native::Tokenizer) -> Tokenizer {
        Tokenizer {
            inner,
            ready: OnceLock::new(),
        }
    }

    fn encode_native(&self, py: Python<'_>, text: &[u8], policy: &[u8]) -> PyResult<Vec<u32>> {
        let work = || self.inner.encode_each(text, &policy_of(policy));
        let tokens = if text.len() < SHORT { work() } else { py.detach(work) };
        tokens.map_err(|e| from_tokenizer(py, e))
    }

    fn list<'py>(&self, py: Python<'py>, tokens: &[u32]) -> PyResult<Bound<'py, PyList>> {
        if self.inner.vocab_size() > READY {
            return PyList::new(py, tokens);
        }
        let ready = self.ready.get_or_init(|| {
            let all = 0..self.inner.vocab_size() as u32;
            let object = |id: u32| id.into_pyobject(py).map(|id| id.into_any().unbind());
            all.map(object).collect::<Result<_, _>>().unwrap_or_default()
        });
        PyList::new(py, tokens.iter().map(|&token| ready[token as usize].bind(py)))
    }
}

/// Special tokens as Python has them.
type Special = Vec<(String, u32)>;

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py
            .detach(|| native::Tokenizer::load(path))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self::new(inner))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let inner = py
            .detach(|| native::Tokenizer::from_bytes(data))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self::new(inner))
    }

    #[staticmethod]
    fn from_tiktoken(py: Python<'_>, data: &[u8], special: Special) -> PyResult<Self> {
        let inner = py
            .detach(|| native::Tokenizer::from_tiktoken(data, &special))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self::new(inner))
    }

    #[staticmethod]
    fn from_huggingface(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let inner = py
            .detach(|| native::Tokenizer::from_huggingface(data))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self::new(inner))
    }

    #[staticmethod]
    fn train(py: Python<'_>, documents: &Bound<'_, PyAny>, vocab_size: usize, threads: usize) -> PyResult<Self> {
        /// How much is counted at a time.
        const PART: usize = 1 << 24;
        let mut trainer = native::Trainer::new();
        let (mut held, mut size) = (Vec::new(), 0);
        let count = |trainer: &mut native::Trainer, held: &[Bound<'_, PyAny>]| {
            let texts = held.iter().map(text_of).collect::<PyResult<Vec<_>>>()?;
            py.detach(|| trainer.add_all(&texts, threads));
            PyResult::Ok(())
        };
        for document in documents.try_iter()? {
            let document = document?;
            size += text_of(&document)?.len();
            held.push(document);
            if size >= PART {
                count(&mut trainer, &held)?;
                held.clear();
                size = 0;
            }
        }
        count(&mut trainer, &held)?;
        let inner = py
            .detach(|| trainer.finish(vocab_size))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self::new(inner))
    }

    #[staticmethod]
    fn train_files(py: Python<'_>, paths: Vec<PathBuf>, vocab_size: usize, threads: usize) -> PyResult<Self> {
        let inner = py
            .detach(|| native::train_files(&paths, vocab_size, threads))
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(Self::new(inner))
    }

    fn encode<'py>(&self, py: Python<'py>, text: &Bound<'py, PyAny>, policy: &[u8]) -> PyResult<Bound<'py, PyList>> {
        let tokens = self.encode_native(py, text_of(text)?, policy)?;
        self.list(py, &tokens)
    }

    fn encode_numbers(&self, py: Python<'_>, text: &Bound<'_, PyAny>, policy: &[u8]) -> PyResult<Numbers> {
        Ok(Numbers::tokens(self.encode_native(py, text_of(text)?, policy)?))
    }

    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyAny>>,
        policy: &[u8],
        threads: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let (tokens, ends) = self.batch(py, &texts, policy, threads)?;
        let lists = PyList::empty(py);
        let mut from = 0;
        for end in ends {
            lists.append(self.list(py, &tokens[from..end])?)?;
            from = end;
        }
        Ok(lists)
    }

    fn encode_batch_numbers(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyAny>>,
        policy: &[u8],
        threads: usize,
    ) -> PyResult<(Numbers, Numbers)> {
        let (tokens, ends) = self.batch(py, &texts, policy, threads)?;
        let ends = std::iter::once(0)
            .chain(ends.into_iter().map(|end| end as u64))
            .collect();
        Ok((Numbers::tokens(tokens), Numbers::ends(ends)))
    }

    /// Tokens, and for each where its characters begin and end.
    fn encode_offsets(&self, py: Python<'_>, text: &Bound<'_, PyAny>, policy: &[u8]) -> PyResult<Offsets> {
        let text = text_of(text)?;
        let tokens = self.encode_native(py, text, policy)?;
        let offsets = self.inner.offsets(text, &tokens).map_err(|e| from_tokenizer(py, e))?;
        Ok((tokens, offsets))
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

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let file = self.inner.to_bytes().map_err(|e| from_tokenizer(py, e))?;
        Ok(PyBytes::new(py, &file))
    }

    fn to_tiktoken<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let file = py
            .detach(|| self.inner.to_tiktoken())
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(PyBytes::new(py, &file))
    }

    fn to_huggingface<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let file = py
            .detach(|| self.inner.to_huggingface())
            .map_err(|e| from_tokenizer(py, e))?;
        Ok(PyBytes::new(py, &file))
    }

    #[getter]
    fn special(&self) -> Special {
        self.inner.specials().to_vec()
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

impl Tokenizer {
    fn batch(
        &self,
        py: Python<'_>,
        texts: &[Bound<'_, PyAny>],
        policy: &[u8],
        threads: usize,
    ) -> PyResult<(Vec<u32>, Vec<usize>)> {
        let texts = texts.iter().map(text_of).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.inner.encode_batch(&texts, &policy_of(policy), threads))
            .map_err(|e| from_tokenizer(py, e))
    }
}
