//! The probability that a false statement is proven: the sum of spec/PROTOCOL.md, section 8, for the circuits of one statement.

use crate::field::EF;
use crate::generation::model_shape;
use crate::ir::{Circuit, Oracle};
use crate::pcs::{self, Batch, Regime, Shape};
use crate::plan::Plan;
use crate::segment::trace_shape;
use crate::statement::Card;
use crate::Error;
use p3_field::PrimeCharacteristicRing;

/// log2 |EF|, rounded down.
const FIELD_BITS: f64 = 154.9;

/// Batches of the right form at some point: an opening's security depends on nothing else.
fn batches(plan: &Plan, oracle: Oracle) -> Vec<Batch> {
    let batch = |g: &crate::plan::Group| Batch {
        slots: g.slots.iter().map(|(s, _)| *s).collect(),
        point: vec![EF::ZERO; g.point.len()],
    };
    plan.groups(oracle).iter().map(batch).collect()
}

fn opening(shape: &Shape, batches: &[Batch], regime: Regime) -> Result<(f64, f64), Error> {
    let (bits, list) = pcs::security(shape, batches, regime)?;
    Ok((2f64.powf(-bits), list))
}

/// Error of section 4 but for the openings, without the factor of the list of candidates.
fn reductions(circuit: &Circuit, plan: &Plan) -> f64 {
    let n = plan.log_leaves as f64;
    let constraints: usize = circuit.tables.iter().map(|t| t.constraints.len()).sum();
    let gkr: f64 = (0..plan.log_leaves).map(|i| (3 * i + 2) as f64).sum();
    let k = plan.main_vars as f64;
    let terms = (n + 1.0).exp2()
        + gkr
        + (k + constraints as f64 + 1.0)
        + 4.0 * k
        + k
        + circuit.sums.len() as f64
        + 3.0 * plan.second_vars as f64;
    terms / FIELD_BITS.exp2()
}

/// −log2 of the error of a whole proof, given the circuits of its segments.
pub fn bits(circuits: &[Circuit], card: &Card) -> Result<f64, Error> {
    let (mut error, mut widest) = (0.0, 0f64);
    let mut reduced = 0.0;
    let (mut model, mut states, mut state_logs) = (vec![], vec![], vec![]);
    for circuit in circuits {
        let plan = Plan::new(circuit);
        let (e, list) = opening(&trace_shape(circuit), &batches(&plan, Oracle::Trace), Regime::Johnson)?;
        error += e;
        widest = widest.max(list);
        reduced += reductions(circuit, &plan);
        model.extend(batches(&plan, Oracle::Model));
        // Every state between two segments is opened by both, at points of their own.
        for oracle in [Oracle::StateIn, Oracle::StateOut] {
            states.extend(batches(&plan, oracle));
        }
        let state_in = circuit.slots.iter().filter(|s| s.oracle == Oracle::StateIn);
        state_logs.extend(state_in.map(|s| s.log as u8));
    }
    let (e, list) = opening(&model_shape(&card.shape), &model, Regime::Unique)?;
    error += e;
    widest = widest.max(list);
    if !states.is_empty() {
        // Which boundary a batch belongs to does not matter here: the first one's slots stand for all.
        let shape = Shape {
            log_heights: state_logs,
        };
        let (e, list) = opening(&shape, &states, Regime::Johnson)?;
        error += e;
        widest = widest.max(list);
    }
    // Lists of the trace and of the states: a prover may choose among the candidates of each; the model is one.
    error += reduced * (2.0 * widest).exp2();
    error += (-124f64).exp2() + (-128f64).exp2();
    Ok(-error.log2())
}
