//! The circuit of a segment of a run: ARITHMETIC sections 3 to 9, from the embedding of the tokens that are fed to the vectors that the logits are made of.

pub mod activation;
pub mod builder;
pub mod conv;
pub mod head;
pub mod layer;
pub mod linear;
pub mod norm;
pub mod scan;
pub mod slots;
pub mod values;

use std::ops::Range;
use std::sync::Arc;

use self::builder::{Builder, Run};
use self::values::Values;
use crate::ir::{self, Bind, Carry, Circuit, Factor, Kernel, Oracle, SlotId, Term};
use crate::shape::ModelShape;

/// sat18 and sat15 of ARITHMETIC section 8.
pub const MAX_RESIDUAL: i64 = (1 << 17) - 1;
pub const MAX_GATE: i64 = (1 << 14) - 1;

/// A segment: what is public about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// 2^log_steps steps, log_steps ≥ 3.
    pub log_steps: usize,
    /// The token fed at each step; `usize::MAX` where there is none, after the last of the run.
    pub fed: Vec<usize>,
    /// The state comes from the segment before; otherwise it is zero.
    pub has_in: bool,
    /// The state passes to a segment after; then all steps have tokens.
    pub has_out: bool,
}

/// A slot for each block of channels, variables (channel, t).
#[derive(Clone, Debug)]
pub struct Tensor {
    pub slots: Vec<SlotId>,
    /// Variables of the channel.
    pub log: usize,
}

/// Something of the state before and after a segment, where it has such.
#[derive(Clone, Debug)]
pub struct Ends<A> {
    pub before: Option<A>,
    pub after: Option<A>,
}

impl<A> Ends<A> {
    fn map<B>(&self, f: impl Fn(&A) -> B) -> Ends<B> {
        Ends {
            before: self.before.as_ref().map(&f),
            after: self.after.as_ref().map(&f),
        }
    }
}

/// What the head needs: logits[v, t] = Σ_d e[v, d] · u[d, t].
#[derive(Clone, Debug)]
pub struct HeadInput {
    /// norm_f's result by block of channels.
    pub u: Tensor,
    /// By block of tokens and of channels, variables (v, d).
    pub e: Vec<Vec<SlotId>>,
    pub log_vocab: usize,
}

/// The time in a table that has `log` variables before it.
fn time(log: usize, steps: usize) -> Range<usize> {
    log..log + steps
}

/// A slot as a factor of a sum: its variables are coordinates `point` of the table's point, then variables `vars` of the sum.
fn factor(slot: SlotId, point: Range<usize>, vars: Range<usize>) -> Factor {
    let binds = point.map(Bind::Point).chain(vars.map(Bind::Var)).collect();
    Factor::Slots {
        constant: 0,
        parts: vec![(1, slot)],
        shift: 0,
        binds,
    }
}

/// One slot, its time a kernel of the table's: steps before, or the last ones. `log`: its variables without the time.
fn over_time(kernel: Kernel, slot: SlotId, log: usize, steps: usize) -> Vec<Term> {
    let factors = vec![Factor::Kernel(kernel), factor(slot, 0..log, 0..steps)];
    vec![Term {
        coef: 1,
        vars: steps,
        factors,
    }]
}

/// What a state adds to a sum at a step.
fn carry(step: usize, slot: SlotId, log: usize) -> Carry {
    Carry {
        coef: 1,
        at_step: Some(step),
        slot,
        vars: (0..log).collect(),
    }
}

/// The values of the slots that come from outside.
pub struct Inputs<'a> {
    /// Of `model_slots`.
    pub model: &'a [Values],
    /// Of `state_slots`; the first segment has none.
    pub state: Option<&'a [Values]>,
    /// See `Run::lies`.
    #[cfg(test)]
    pub lies: &'a [builder::Lie],
}

/// The circuit up to the head, with its values if there are inputs. Slots: the model's, the states' before and after, the trace.
pub fn build(shape: &ModelShape, segment: &Segment, inputs: Option<Inputs>) -> Result<(Builder, HeadInput), String> {
    shape.validate()?;
    check(shape, segment)?;
    let run = inputs.as_ref().map(|_inputs| Run {
        #[cfg(test)]
        lies: _inputs.lies.to_vec(),
        ..Run::default()
    });
    let mut b = Builder {
        run,
        ..Builder::default()
    };
    b.circuit = Circuit {
        log_steps: segment.log_steps,
        ranges: ir::ranges(),
        fed: segment.fed.clone(),
        chosen: vec![usize::MAX; segment.fed.len()],
        ..Circuit::default()
    };
    let (list, weights) = slots::weights(shape);
    for (i, slot) in list.into_iter().enumerate() {
        b.slot(
            Oracle::Model,
            &slot.name,
            slot.log,
            slot.range,
            inputs.as_ref().map(|v| v.model[i].clone()),
        );
    }
    let (list, states) = slots::states(shape);
    let add_states = |b: &mut Builder, oracle, there: bool, value: &dyn Fn(usize) -> Option<Values>| {
        let first = b.circuit.slots.len();
        for (i, slot) in list.iter().enumerate().filter(|_| there) {
            b.slot(oracle, &slot.name, slot.log, slot.range, value(i));
        }
        there.then(|| states.iter().map(|layer| layer.at(first)).collect::<Vec<_>>())
    };
    let state_in = |i: usize| {
        inputs
            .as_ref()
            .map(|v| v.state.expect("the state before the segment")[i].clone())
    };
    let before = add_states(&mut b, Oracle::StateIn, segment.has_in, &state_in);
    // Filled in by the links, which say what they are.
    let later = |i: usize| inputs.is_some().then(|| Arc::new(vec![0; 1 << list[i].log]));
    let after = add_states(&mut b, Oracle::StateOut, segment.has_out, &later);

    let (d, vocab) = (shape.d_axis(), shape.vocab_axis());
    let mut r = linear::embed(&mut b, &weights.embedding, vocab.log, d.log, shape.embed_mul);
    for (i, w) in weights.layers.iter().enumerate() {
        let ends = Ends {
            before: before.as_ref().map(|s| s[i].clone()),
            after: after.as_ref().map(|s| s[i].clone()),
        };
        r = layer::layer(&mut b, shape, i, w, &r, &ends);
        b.forget_columns();
    }
    let u = norm::norm(
        &mut b,
        "norm_f",
        &r,
        &weights.norm_f,
        shape.d_model,
        shape.norm_mantissa,
    );
    Ok((
        b,
        HeadInput {
            u,
            e: weights.embedding,
            log_vocab: vocab.log,
        },
    ))
}

fn check(shape: &ModelShape, segment: &Segment) -> Result<(), String> {
    let Segment { log_steps, fed, .. } = segment;
    if !(3..=20).contains(log_steps) || fed.len() != 1 << log_steps {
        return Err(format!("a segment of {} tokens and 2^{log_steps} steps", fed.len()));
    }
    if let Some(token) = fed.iter().find(|t| **t >= shape.vocab_size && **t != usize::MAX) {
        return Err(format!(
            "token {token} is not in the vocabulary of {}",
            shape.vocab_size
        ));
    }
    if fed.windows(2).any(|w| w[0] == usize::MAX && w[1] != usize::MAX) || fed[0] == usize::MAX {
        return Err("steps without a token come only after the last token".into());
    }
    if segment.has_out && fed.contains(&usize::MAX) {
        return Err("a segment that others follow has a token at every step".into());
    }
    Ok(())
}

/// The circuit of a segment up to the head, as a verifier builds it, and the slots whose range is derived (`Circuit::check`).
pub fn segment_circuit(shape: &ModelShape, segment: &Segment) -> Result<(Circuit, HeadInput, Vec<SlotId>), String> {
    let (b, head) = build(shape, segment, None)?;
    Ok((b.circuit, head, b.derived))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Activation;
    use crate::testing::{random_model, Random};

    fn shipped() -> ModelShape {
        ModelShape {
            d_model: 192,
            n_layers: 4,
            n_heads: 12,
            head_dim: 32,
            d_state: 16,
            vocab_size: 2048,
            activation: Activation::Silu,
            gate: Activation::Silu,
            norm_mantissa: 8,
            embed_mul: 19,
            logit_shift: 17,
            in_proj_shift: vec![12, 13, 13, 12],
            out_proj_shift: vec![12, 12, 12, 11],
            k: vec![vec![8, 8, 8, 9, 10, 11, 11, 12, 13, 14, 15, 15]; 4],
        }
    }

    fn checked(shape: &ModelShape, log_steps: usize, has_in: bool, has_out: bool) -> Circuit {
        let segment = Segment {
            log_steps,
            fed: vec![0; 1 << log_steps],
            has_in,
            has_out,
        };
        let (circuit, _, derived) = segment_circuit(shape, &segment).unwrap();
        circuit
            .check(&derived)
            .unwrap_or_else(|error| panic!("{shape:?}: {error}"));
        circuit
    }

    #[test]
    fn the_shipped_shape() {
        let circuit = checked(&shipped(), 6, true, true);
        let trace = circuit.slots.iter().filter(|slot| slot.oracle == Oracle::Trace);
        let cells: usize = trace.map(|slot| 1 << slot.log).sum();
        let lookups: usize = circuit
            .tables
            .iter()
            .map(|table| table.lookups.len() << table.log)
            .sum();
        assert_eq!((cells, lookups), (7_470_720, 8_167_680));
    }

    #[test]
    fn ranges_hold_in_every_shape() {
        for seed in 0..100 {
            let r = &mut Random(seed);
            let mut shape = random_model(seed, false).shape;
            let shifts = |r: &mut Random| (0..shape.n_layers).map(|_| r.below(25) as u32).collect();
            (shape.in_proj_shift, shape.out_proj_shift) = (shifts(r), shifts(r));
            checked(&shape, 3 + r.below(3), r.below(2) == 1, r.below(2) == 1);
        }
        // The largest that are provable, with all shifts.
        let mut shape = shipped();
        (
            shape.d_model,
            shape.n_heads,
            shape.d_state,
            shape.vocab_size,
            shape.n_layers,
        ) = (4096, 128, 64, 1 << 17, 25);
        shape.k = vec![[8, 9, 10, 11, 12, 13, 14, 15].repeat(16); 25];
        (shape.in_proj_shift, shape.out_proj_shift) = ((0..25).collect(), (0..25).rev().collect());
        for activation in [Activation::Silu, Activation::Squareplus] {
            (shape.activation, shape.gate) = (activation, activation);
            checked(&shape, 3, true, true);
        }
        shape.n_heads = 129;
        shape.k = vec![vec![8; 129]; 25];
        assert!(shape.validate().unwrap_err().contains("not provable"));
    }
}
