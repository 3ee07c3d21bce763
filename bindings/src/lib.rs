//! `mamba_integer._native`: the engine, the tokenizer and the prover as Python classes, and the addresses of the training kernels.
//!
//! This is the only place that knows PyO3. It converts types, maps each native error to its exception in `mamba_integer.errors` and releases the
//! interpreter lock while the engine, the tokenizer or the prover works; it decides nothing. Logits cross the border as bytes of little-endian int32, row by row.

mod engine;
mod error;
mod prover;
mod tokenizer;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("engine_version", mamba_integer_engine::version())?;
    module.add("training_kernels", mamba_integer_trainer::functions().to_vec())?;
    module.add_class::<engine::Model>()?;
    module.add_class::<engine::Session>()?;
    module.add_class::<tokenizer::Tokenizer>()?;
    module.add_class::<tokenizer::Numbers>()?;
    module.add_class::<prover::Prover>()?;
    module.add_function(wrap_pyfunction!(engine::sha256, module)?)?;
    module.add_function(wrap_pyfunction!(engine::feed_many, module)?)?;
    module.add_function(wrap_pyfunction!(engine::isa, module)?)?;
    module.add_function(wrap_pyfunction!(tokenizer::documents, module)?)?;
    module.add_function(wrap_pyfunction!(prover::check_provable, module)?)?;
    module.add_function(wrap_pyfunction!(prover::read_card, module)?)?;
    module.add_function(wrap_pyfunction!(prover::read_proof, module)?)?;
    module.add_function(wrap_pyfunction!(prover::verify_proof, module)?)?;
    module.add_function(wrap_pyfunction!(prover::verify_registration, module)?)?;
    module.add_function(wrap_pyfunction!(prover::plan_segments, module)?)?;
    module.add_function(wrap_pyfunction!(prover::proof_size, module)?)?;
    module.add_function(wrap_pyfunction!(prover::commit_seconds, module)?)?;
    Ok(())
}
