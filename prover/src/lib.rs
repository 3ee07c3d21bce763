//! Proofs that a sequence of tokens is what a registered Mamba-Integer model generates. The protocol is spec/PROTOCOL.md.

#[cfg(test)]
mod attacks;
pub mod circuit;
pub mod container;
pub mod field;
pub mod generation;
pub mod ir;
pub mod logup;
#[cfg(test)]
mod mutants;
pub mod pcs;
pub mod plan;
pub mod registration;
pub mod sampler;
pub mod satisfy;
pub mod segment;
pub mod shape;
pub mod soundness;
pub mod statement;
pub mod sumcheck;
#[cfg(test)]
pub mod testing;
pub mod witness;

/// Why something is not proven, or not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read as what it should be.
    #[error("{0}")]
    Malformed(String),
    /// What is claimed is not what was asked for, or contradicts itself.
    #[error("statement: {0}")]
    Statement(String),
    /// A check of the protocol fails.
    #[error("proof: {0}")]
    Proof(String),
    #[error("commitment: {0}")]
    Commitment(#[from] pcs::Error),
    #[error("lookups: {0}")]
    Lookups(#[from] logup::Error),
    /// The prover was given something that it cannot prove.
    #[error("cannot prove: {0}")]
    Prover(String),
}
