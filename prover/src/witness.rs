//! A run of the model, segment by segment: the values of every slot and sum of its circuits.

use std::sync::Arc;

use crate::circuit::builder::Builder;
use crate::circuit::slots::{model_values, state_slots};
use crate::circuit::values::{self, Values};
use crate::circuit::{build, linear, HeadInput, Inputs, Segment};
use crate::ir::{Circuit, Oracle, Sum};
use crate::shape::{Model, ModelShape};

/// What fills a circuit, as integers.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Of every slot.
    pub slots: Vec<Values>,
    /// Of every sum that is a column, over its table's cube; empty for links.
    pub sums: Vec<Values>,
}

/// A model whose slots are filled: what runs start from.
pub struct Runner {
    pub shape: ModelShape,
    slots: Vec<Values>,
    /// See `builder::Run::lies`.
    #[cfg(test)]
    pub lies: Vec<crate::circuit::builder::Lie>,
}

/// The recurrent state between two segments, as the slots that hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(pub Vec<Values>);

impl State {
    /// The state at the start of a run.
    pub fn zero(shape: &ModelShape) -> Self {
        State(
            state_slots(shape)
                .iter()
                .map(|slot| Arc::new(vec![0; 1 << slot.log]))
                .collect(),
        )
    }
}

impl Runner {
    pub fn new(model: &Model) -> Self {
        Runner {
            shape: model.shape.clone(),
            slots: model_values(model).into_iter().map(Arc::new).collect(),
            #[cfg(test)]
            lies: vec![],
        }
    }

    /// Values of `model_slots`.
    pub fn slots(&self) -> &[Values] {
        &self.slots
    }

    /// Runs a segment: its circuit up to the head with all values, to which a head can be added before `finish`.
    pub fn run(&self, segment: &Segment, state: Option<&State>) -> Result<(Builder, HeadInput), String> {
        if segment.has_in != state.is_some() {
            return Err("a state comes in exactly where there is a segment before".into());
        }
        let inputs = Inputs {
            model: &self.slots,
            state: state.map(|s| &s.0[..]),
            #[cfg(test)]
            lies: &self.lies,
        };
        build(&self.shape, segment, Some(inputs))
    }

    /// int32 logits after each step of a run: [t][v].
    pub fn logits(&self, b: &Builder, head: &HeadInput) -> Vec<Vec<i32>> {
        let run = b.run.as_ref().expect("a run");
        // The same sums as a head's, in a table of their own.
        let mut scratch = Circuit {
            log_steps: b.circuit.log_steps,
            ..Circuit::default()
        };
        let table = scratch.table("logits", head.log_vocab + b.steps());
        let mut out = vec![vec![]; 1 << b.steps()];
        for e in &head.e {
            let terms = linear::product(e, head.log_vocab, &head.u, b.steps());
            let sum = Sum {
                name: "logits".into(),
                table,
                terms,
                carries: vec![],
            };
            for row in values::sum(&scratch, &run.slots, &sum).chunks(1 << b.steps()) {
                out.iter_mut().zip(row).for_each(|(logits, v)| logits.push(*v));
            }
        }
        out.iter_mut().for_each(|logits| logits.truncate(self.shape.vocab_size));
        out
    }
}

/// The circuit, its witness, and the state after it (empty if no segment follows).
pub fn finish(b: Builder) -> (Circuit, Witness, State) {
    let run = b.run.expect("a run");
    let after = b
        .circuit
        .slots
        .iter()
        .zip(&run.slots)
        .filter(|(slot, _)| slot.oracle == Oracle::StateOut);
    let state = State(after.map(|(_, values)| values.clone()).collect());
    assert_eq!(
        (run.slots.len(), run.sums.len()),
        (b.circuit.slots.len(), b.circuit.sums.len()),
        "a value for everything"
    );
    (
        b.circuit,
        Witness {
            slots: run.slots,
            sums: run.sums,
        },
        state,
    )
}
