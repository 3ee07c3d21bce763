//! `mamba_integer._native`: the engine and the tokenizer as Python classes.
//!
//! This is the only place that knows PyO3. It converts types, maps each native error to its exception in `mamba_integer.errors` and releases the
//! interpreter lock while the engine or the tokenizer works; it decides nothing. Logits cross the border as bytes of little-endian int32, row by row.

mod engine;
mod error;
mod tokenizer;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("engine_version", mamba_integer_engine::version())?;
    module.add_class::<engine::Model>()?;
    module.add_class::<engine::Session>()?;
    module.add_class::<tokenizer::Tokenizer>()?;
    module.add_function(wrap_pyfunction!(engine::sha256, module)?)?;
    module.add_function(wrap_pyfunction!(tokenizer::documents, module)?)?;
    Ok(())
}
