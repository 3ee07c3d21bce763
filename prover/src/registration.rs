//! The proof, made once by whoever commits to a model, that its weights are such as every circuit of a generation takes for granted: spec/PROTOCOL.md, section 7.

use std::collections::{HashMap, HashSet};

use p3_challenger::CanObserve;
use serde::{Deserialize, Serialize};

use crate::circuit::builder::{Builder, Run};
use crate::circuit::slots::{weights, ModelSlot, Projection, Weights};
use crate::circuit::values::Values;
use crate::field::{challenger, f, guarded, observe_bytes, Challenger, F};
use crate::generation::{model_shape, Registered, LEAST_BITS};
use crate::ir::{ranges, Bind, Circuit, ColId, Factor, Linear, Oracle, Public, SlotId, Term};
use crate::pcs::{self, Committed, OpeningProof, Regime};
use crate::segment::{self, SegmentProof, Times, SEED};
use crate::shape::{ModelShape, ROW_BOUND};
use crate::soundness;
use crate::statement::{hex, Card};
use crate::{container, Error};

const MAGIC: &[u8; 8] = b"MI-REGIS";
/// Bits of what a row lacks to the greatest that it may be: more than `most_in_a_row`.
const SLACK_BITS: usize = 23;

#[derive(Serialize, Deserialize)]
struct Body {
    weights: SegmentProof,
    model: OpeningProof,
}

/// The greatest m · Σ_c |w_c| with which 127 · m · Σ_c |w_c| + 2^(shift − 1) < 2^29.
fn most_in_a_row(shift: u32) -> i64 {
    (ROW_BOUND - 1 - (1 << shift >> 1)) / 127
}

/// By the slot of their multipliers: the slots of the weights of a block of rows, and the shift.
fn rows<'a>(shape: &ModelShape, weights: &'a Weights) -> HashMap<SlotId, (&'a [SlotId], u32)> {
    let mut all = HashMap::new();
    for (i, layer) in weights.layers.iter().enumerate() {
        let mut add = |projection: &'a Projection, shift| {
            all.extend(
                projection
                    .mul
                    .iter()
                    .zip(&projection.weights)
                    .map(|(mul, weights)| (*mul, (&weights[..], shift))),
            );
        };
        for part in [&layer.z, &layer.x, &layer.b, &layer.c, &layer.dt] {
            add(part, shape.in_proj_shift[i]);
        }
        add(&layer.out, shape.out_proj_shift[i]);
    }
    all
}

/// 1 in the places of the slot that stand for nothing; a column for each axis that has such, on its own variables.
fn paddings(b: &mut Builder, table: usize, slot: &ModelSlot) -> Vec<ColId> {
    let mut first = 0;
    let mut columns = vec![];
    for (axis, block) in slot.axes() {
        let mut values = vec![1; 1 << axis.log];
        axis.block(block).for_each(|(_, at)| values[at] = 0);
        if values.contains(&1) {
            let vars = (first..first + axis.log).collect();
            columns.push(b.public(table, "padding", Public::Dense { vars, values }));
        }
        first += axis.log;
    }
    columns
}

/// The circuit, with its values if those of the model's slots are given: a table for every slot of the model, in order.
pub(crate) fn build(shape: &ModelShape, run: Option<(Run, &[Values])>) -> Builder {
    let (list, weights) = weights(shape);
    let rows = rows(shape, &weights);
    let in_rows: HashSet<SlotId> = rows.values().flat_map(|(weights, _)| weights.iter().copied()).collect();
    let (run, values) = run.unzip();
    let mut b = Builder {
        run,
        ..Builder::default()
    };
    b.circuit = Circuit {
        ranges: ranges(),
        fed: vec![usize::MAX],
        chosen: vec![usize::MAX],
        ..Circuit::default()
    };
    for (id, slot) in list.iter().enumerate() {
        b.slot(
            Oracle::Model,
            &slot.name,
            slot.log,
            slot.range,
            values.map(|v| v[id].clone()),
        );
    }
    let mut magnitudes: HashMap<SlotId, SlotId> = HashMap::new();
    for (id, slot) in list.iter().enumerate() {
        let table = b.table(&slot.name, slot.log);
        let value = b.own(table, id);
        let padding = paddings(&mut b, table, slot);
        if !padding.is_empty() {
            b.constrain(
                table,
                "padding is zero",
                padding.iter().map(|p| (1, vec![value, *p])).collect(),
            );
        }
        if in_rows.contains(&id) {
            magnitudes.insert(id, magnitude(&mut b, table, value));
        } else {
            in_range(&mut b, table, value, &padding, slot.range);
        }
        if let Some((weights, shift)) = rows.get(&id) {
            let magnitudes: Vec<SlotId> = weights.iter().map(|w| magnitudes[w]).collect();
            row_bound(&mut b, table, value, &magnitudes, *shift);
        }
        b.forget_columns();
    }
    b
}

/// a = |w| ≤ 127: a is w or −w, and not negative.
fn magnitude(b: &mut Builder, table: usize, w: ColId) -> SlotId {
    let (a, slot) = b.commit(table, "|w|", (0, 127), [w], |[w]| w.abs());
    b.bits_of(table, "|w|", Linear::col(a), 7);
    // (a − w)(a + w) = 0: a product in the field is zero only if a factor is.
    b.constrain_cases(
        table,
        "|w| is w or -w",
        vec![(1, vec![a, a]), (-1, vec![w, w])],
        vec![vec![]],
    );
    slot
}

/// The value is within its range; one that has the least value 0 is that only in padding.
fn in_range(b: &mut Builder, table: usize, value: ColId, padding: &[ColId], (lo, hi): (i64, i64)) {
    let (least, mut terms) = (if lo == 0 { 1 } else { lo }, vec![(1, value)]);
    if lo == 0 {
        terms.extend(padding.iter().map(|p| (1, *p)));
    }
    let size = (hi - least + 1) as u64;
    let range = b
        .circuit
        .ranges
        .iter()
        .position(|s| *s == size)
        .expect("there is a range for every kind of weight");
    b.circuit.lookup(
        table,
        "range",
        Linear::of(-least, &terms),
        Linear::constant(range as i64),
    );
}

/// m · Σ_c |w_c| ≤ most_in_a_row, in every row.
fn row_bound(b: &mut Builder, table: usize, m: ColId, magnitudes: &[SlotId], shift: u32) {
    let rows = b.circuit.tables[table].log;
    let columns = b.circuit.slots[magnitudes[0]].log - rows;
    let binds: Vec<Bind> = (0..rows).map(Bind::Point).chain((0..columns).map(Bind::Var)).collect();
    let term = |slot: &SlotId| {
        let factors = vec![Factor::Slots {
            constant: 0,
            parts: vec![(1, *slot)],
            shift: 0,
            binds: binds.clone(),
        }];
        Term {
            coef: 1,
            vars: columns,
            factors,
        }
    };
    let range = (0, 127 * (magnitudes.len() << columns) as i64);
    let (sum, _) = b.sum(
        table,
        "sum of |w|",
        magnitudes.iter().map(term).collect(),
        vec![],
        range,
    );
    let most = most_in_a_row(shift);
    let (slack, _) = b.commit(table, "slack", (0, (1 << SLACK_BITS) - 1), [m, sum], |[m, sum]| {
        most - m * sum
    });
    b.bits_of(table, "slack", Linear::col(slack), SLACK_BITS);
    b.constrain(
        table,
        "row bound",
        vec![(1, vec![m, sum]), (1, vec![slack]), (-most, vec![])],
    );
}

/// The circuit of a registration as a verifier builds it, and the slots whose range is derived (none): it has passed its own check.
pub fn registration_circuit(shape: &ModelShape) -> Result<(Circuit, Vec<SlotId>), Error> {
    shape.validate().map_err(Error::Prover)?;
    let b = build(shape, None);
    b.circuit.check_for(Oracle::Model, &b.derived).map_err(Error::Prover)?;
    Ok((b.circuit, b.derived))
}

fn transcript(card: &Card) -> Result<Challenger, Error> {
    let mut ch = challenger(b"mamba-integer-registration-1");
    observe_bytes(&mut ch, &card.commitment());
    pcs::observe_root(&card.root_bytes()?, &model_shape(&card.shape), &mut ch);
    Ok(ch)
}

fn tail_transcript(end: &[F; SEED]) -> Challenger {
    let mut ch = challenger(b"mamba-integer-registration-tail-1");
    end.iter().for_each(|x| ch.observe(*x));
    ch
}

/// Proves that the weights of a model are what its circuits take for granted.
pub fn prove(registered: &Registered) -> Result<Vec<u8>, Error> {
    let (circuit, _) = registration_circuit(&registered.card.shape)?;
    let bits = soundness::bits(std::slice::from_ref(&circuit), &registered.card)?;
    if bits < LEAST_BITS {
        return Err(Error::Prover(format!("only {bits:.1} bits of security")));
    }
    let b = build(
        &registered.card.shape,
        Some((Run::default(), registered.runner.slots())),
    );
    let run = b.run.expect("a run");
    prove_values(&registered.card, &circuit, values(&run), &registered.committed)
}

fn values(run: &Run) -> segment::Values {
    let to_field = |all: &[Values]| all.iter().map(|v| v.iter().map(|x| f((*x).into())).collect()).collect();
    segment::Values {
        slots: to_field(&run.slots),
        sums: to_field(&run.sums),
    }
}

fn prove_values(
    card: &Card,
    circuit: &Circuit,
    values: segment::Values,
    committed: &Committed,
) -> Result<Vec<u8>, Error> {
    let (weights, left) = segment::prove(circuit, &values, &mut transcript(card)?, &mut Times::default())?;
    let (_, model) = pcs::open(
        committed.clone(),
        &left.model.batches,
        Regime::Unique,
        &mut tail_transcript(&left.end),
    )?;
    Ok(container::write(
        MAGIC,
        &[&card.to_bytes(), &container::encode(&Body { weights, model })],
    ))
}

/// The card of the model with this commitment, if its registration holds.
pub fn verify(bytes: &[u8], commitment: &[u8; 32]) -> Result<Card, Error> {
    let [card, body] = container::read(MAGIC, "registration", bytes)?;
    let card = Card::parse(card)?;
    if card.commitment() != *commitment {
        return Err(Error::Statement(format!(
            "it registers the model {:?} with the commitment {}, not the one with the commitment {}",
            card.name,
            hex(&card.commitment()),
            hex(commitment)
        )));
    }
    // Plonky3's verifiers may panic on malformed proofs.
    guarded(|| verify_body(&card, body)).map_err(Error::Proof)??;
    Ok(card)
}

fn verify_body(card: &Card, body: &[u8]) -> Result<(), Error> {
    let body: Body = container::decode("registration", body)?;
    let (circuit, _) = registration_circuit(&card.shape)?;
    let bits = soundness::bits(std::slice::from_ref(&circuit), card)?;
    if bits < LEAST_BITS {
        return Err(Error::Proof(format!("only {bits:.1} bits of security")));
    }
    let left = segment::verify(&circuit, &body.weights, &mut transcript(card)?)?;
    let mut ch = tail_transcript(&left.end);
    let opened = pcs::verify(
        &model_shape(&card.shape),
        &card.root_bytes()?,
        &left.model.batches,
        Regime::Unique,
        &body.model,
        &mut ch,
    )?;
    match opened == left.model.values {
        true => Ok(()),
        false => Err(Error::Proof("the opening of the model gives other values".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::circuit::builder;
    use crate::circuit::slots::{model_slots, model_values};
    use crate::satisfy::slots_satisfy;
    use crate::shape::{Activation, Model};
    use crate::testing::{random_model, Random};

    const DIGEST: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

    fn registered(model: &Model) -> Registered {
        Registered::new(model, "test", DIGEST, "no tokenizer").unwrap()
    }

    /// Rows of 150 weights, which the bound can forbid; padding on all axes.
    fn wide(in_shift: u32) -> Model {
        let mut shape = random_model(0, false).shape;
        (
            shape.d_model,
            shape.n_layers,
            shape.n_heads,
            shape.head_dim,
            shape.d_state,
            shape.vocab_size,
        ) = (150, 1, 3, 3, 2, 11);
        (shape.in_proj_shift, shape.out_proj_shift, shape.k) = (vec![in_shift], vec![9], vec![vec![8, 9, 10]]);
        let r = &mut Random(5);
        let tensors = shape.tensors().into_iter().map(|(name, len, lo, hi)| {
            let values = (0..len)
                .map(|_| (lo + r.below((hi - lo + 1) as usize) as i32) / 2)
                .map(|v| v.max(i32::from(lo > 0)))
                .collect();
            (name, values)
        });
        let tensors = tensors.collect();
        Model::new(shape, tensors).unwrap()
    }

    /// A model of the greatest and least values everywhere: rows of one weight hold any of them.
    fn extreme(high: bool) -> Model {
        let mut model = random_model(7, false);
        for (name, len, lo, hi) in model.shape.tensors() {
            model.tensors.insert(name, vec![if high { hi } else { lo }; len]);
        }
        Model::new(model.shape, model.tensors).unwrap()
    }

    /// A lie in one cell of the trace: slot, place, what is added. All else follows from it by the circuit's honest rules.
    type Lie<'a> = Option<(&'a str, usize, i32)>;

    fn run(shape: &ModelShape, lie: Lie) -> Run {
        let (circuit, _) = registration_circuit(shape).unwrap();
        Run {
            lies: lie
                .iter()
                .map(|&(name, at, add)| builder::Lie::add(of_trace(&circuit, name), at, add))
                .collect(),
            ..Run::default()
        }
    }

    fn honest(_: &Circuit, _: &mut segment::Values) {}

    /// What a registrant may do: commit to any slots, lie, and change what the circuit's honest rules give for them.
    fn accepted(
        shape: &ModelShape,
        slots: &[Values],
        lie: Lie,
        cheat: impl FnOnce(&Circuit, &mut segment::Values),
    ) -> bool {
        let (circuit, _) = registration_circuit(shape).unwrap();
        let fields = slots
            .iter()
            .map(|v| v.iter().map(|x| f((*x).into())).collect())
            .collect();
        let (root, committed) = pcs::commit(&model_shape(shape), fields).unwrap();
        let card = Card {
            protocol: crate::statement::PROTOCOL,
            spec: crate::statement::SPEC,
            name: "hostile".into(),
            model_digest: DIGEST.into(),
            tokenizer: String::new(),
            shape: shape.clone(),
            root: hex(&root),
        };
        let b = build(shape, Some((run(shape, lie), slots)));
        let mut all = values(b.run.as_ref().unwrap());
        cheat(&circuit, &mut all);
        match prove_values(&card, &circuit, all, &committed) {
            Ok(bytes) => verify(&bytes, &card.commitment()).is_ok(),
            Err(_) => false,
        }
    }

    fn slots(model: &Model) -> Vec<Values> {
        model_values(model).into_iter().map(Arc::new).collect()
    }

    fn set(slots: &mut [Values], slot: SlotId, at: usize, value: i32) {
        Arc::make_mut(&mut slots[slot])[at] = value;
    }

    fn named(shape: &ModelShape, name: &str) -> SlotId {
        let list = model_slots(shape);
        let found = list.iter().position(|s| s.name == name);
        found.unwrap_or_else(|| {
            panic!(
                "{name} is not one of {:?}",
                list.iter().map(|s| &s.name).collect::<Vec<_>>()
            )
        })
    }

    fn of_trace(circuit: &Circuit, name: &str) -> SlotId {
        circuit
            .slots
            .iter()
            .position(|s| s.name == name)
            .unwrap_or_else(|| panic!("{name}"))
    }

    /// Whether the honest rest satisfies the circuit, the declared ranges of the model's slots not being a premise.
    fn satisfied(shape: &ModelShape, slots: &[Values], lie: Lie) -> bool {
        let b = build(shape, Some((run(shape, lie), slots)));
        let mut circuit = b.circuit;
        circuit.slots.iter_mut().for_each(|s| s.range = (i64::MIN, i64::MAX));
        slots_satisfy(&circuit, &b.run.unwrap().slots).is_ok()
    }

    #[test]
    fn models_of_every_shape_are_registered() {
        let mut models: Vec<Model> = (0..4).map(|seed| random_model(seed, seed % 2 == 1)).collect();
        models.extend([extreme(true), extreme(false), wide(12)]);
        for model in &models {
            let registered = registered(model);
            let proof = prove(&registered).unwrap();
            assert_eq!(verify(&proof, &registered.card.commitment()).unwrap(), registered.card);
        }
    }

    #[test]
    fn every_shape_has_a_circuit_that_checks() {
        for seed in 0..200 {
            let model = random_model(seed, seed % 2 == 0);
            let (circuit, derived) = registration_circuit(&model.shape).unwrap();
            assert!(derived.is_empty());
            assert!(circuit
                .slots
                .iter()
                .zip(model_slots(&model.shape))
                .all(|(a, b)| (a.log, a.range, a.oracle) == (b.log, b.range, Oracle::Model)));
            assert!(satisfied(&model.shape, &slots(&model), None), "seed {seed}");
        }
        let mut shape = wide(0).shape;
        (
            shape.d_model,
            shape.n_heads,
            shape.head_dim,
            shape.d_state,
            shape.vocab_size,
        ) = (4096, 128, 32, 64, 1 << 17);
        (shape.n_layers, shape.k) = (25, vec![vec![8; 128]; 25]);
        (shape.in_proj_shift, shape.out_proj_shift) = ((0..25).collect(), (0..25).rev().collect());
        shape.activation = Activation::Squareplus;
        registration_circuit(&shape).unwrap();
    }

    #[test]
    fn the_row_bound_is_that_of_a_loader() {
        for shift in 0..=24 {
            let most = most_in_a_row(shift);
            assert!(most < 1 << SLACK_BITS);
            for product in [most - 1, most, most + 1] {
                let loader = 127 * product + (1 << shift >> 1) < ROW_BOUND;
                assert_eq!(loader, product <= most);
            }
        }
    }

    /// Σ|w| · m = 18705 · 226 = 4227330 = ⌊(2^29 − 1) / 127⌋ exactly, then one more, by one weight or by the multiplier.
    #[test]
    fn rows_at_the_bound() {
        let mut model = wide(0);
        let row = 4; // of z: head 1, channel 1
        let weights = model.tensors.get_mut("blk.0.in_proj.weight").unwrap();
        for (c, w) in weights[row * 150..][..150].iter_mut().enumerate() {
            *w = [127, 36, 0][usize::from(c >= 147) + usize::from(c > 147)] * [1, -1][c % 2];
        }
        model.tensors.get_mut("blk.0.in_proj.mul").unwrap()[row] = 226;
        let model = Model::new(model.shape, model.tensors).unwrap();
        let shape = &model.shape;
        assert!(accepted(shape, &slots(&model), None, honest));

        let place = |row: usize| shape.inner_axis().place(row);
        let (z, mul) = (
            named(shape, "blk.0.in_proj.weight.0.0.0"),
            named(shape, "blk.0.in_proj.mul.0.0"),
        );
        let d = shape.d_axis();
        let (block, column) = (0..d.blocks)
            .find_map(|b| d.block(b).find(|(i, _)| *i == 149).map(|(_, at)| (b, at)))
            .unwrap();
        assert_eq!(
            (shape.inner_axis().blocks, shape.inner_axis().log),
            (3, 2),
            "each head is a block"
        );
        let heads = place(row) >> 2;
        let (weight, mul) = (z + heads * (d.blocks + 1) - heads + block, mul + heads);
        let in_block = place(row) & 3;
        let at = in_block << d.log | column;
        assert_eq!((slots(&model)[mul][in_block], slots(&model)[weight][at]), (226, 0));
        let mut over = slots(&model);
        set(&mut over, weight, at, -1);
        assert!(!satisfied(shape, &over, None) && !accepted(shape, &over, None, honest));
        // The weight's magnitude is said to be 0; the slack is said to be what fits.
        let (weight_name, mul_name) = (
            model_slots(shape)[weight].name.clone(),
            model_slots(shape)[mul].name.clone(),
        );
        let (magnitude, slack_name) = (format!("{weight_name}.|w|"), format!("{mul_name}.slack"));
        let refused = |lie| !satisfied(shape, &over, Some(lie)) && !accepted(shape, &over, Some(lie), honest);
        assert!(refused((&magnitude, at, -1)));
        // The magnitude of another weight is negative, or less than it is.
        let other = at - column; // column 0 of the block
        let w = slots(&model)[weight][other];
        assert_eq!(w.abs(), 127);
        assert!(
            refused((&magnitude, other, -254))
                && refused((&magnitude, other, -127))
                && refused((&magnitude, other, -1))
        );
        assert!(refused((&slack_name, in_block, 226)) && refused((&slack_name, in_block, 1 << 23)));
        for slack in [0, (1 << 23) - 226, 226] {
            assert!(!accepted(shape, &over, None, |c, v| {
                v.slots[of_trace(c, &slack_name)][in_block] = f(slack);
                v.slots[of_trace(c, &format!("{mul_name}.slack.low"))][in_block] = f(slack & 2047);
            }));
        }
        // A sum that is said to be smaller, with the slack that goes with it.
        assert!(!accepted(shape, &over, None, |c, v| {
            let sum = c
                .sums
                .iter()
                .position(|s| s.name == format!("{mul_name}.sum of |w|"))
                .unwrap();
            v.sums[sum][in_block] = f(18705);
            for name in ["slack", "slack.low"] {
                v.slots[of_trace(c, &format!("{mul_name}.{name}"))][in_block] = f(0);
            }
        }));
        let mut over = slots(&model);
        set(&mut over, mul, in_block, 227);
        assert!(!satisfied(shape, &over, None) && !accepted(shape, &over, None, honest));
    }

    /// One forbidden value of each kind, through prover and verifier.
    #[test]
    fn hostile_weights_are_refused() {
        let model = wide(12);
        let shape = &model.shape;
        assert!(accepted(shape, &slots(&model), None, honest));
        let names = [
            "token_embd.weight.0.0.0",
            "blk.0.in_proj.weight.0.0.0",
            "blk.0.conv.weight.tap2.0.0",
            "norm1",
            "skip",
        ];
        let signed = names
            .into_iter()
            .take(3)
            .map(|n| named(shape, n))
            .chain(names[3..].iter().map(|n| {
                let list = model_slots(shape);
                list.iter().position(|s| s.name.contains(n)).unwrap()
            }));
        let mut cases: Vec<(SlotId, i32)> = signed.flat_map(|slot| [(slot, -128), (slot, 128)]).collect();
        let first = |part: &str| model_slots(shape).iter().position(|s| s.name.contains(part)).unwrap();
        cases.extend([0, 256, -1].map(|v| (first("in_proj.mul"), v)));
        cases.push((first("out_proj.mul"), 0));
        cases.extend([0, (1 << 19) + 1, -1].map(|v| (first("scan.A"), v)));
        for part in ["conv.bias", "scan.base"] {
            cases.extend([-32768, 32768].map(|v| (first(part), v)));
        }
        for (slot, value) in cases {
            let mut hostile = slots(&model);
            set(&mut hostile, slot, 0, value);
            let name = &model_slots(shape)[slot].name;
            assert!(!accepted(shape, &hostile, None, honest), "{name} = {value}");
        }
        // A weight of 128 or −128 with other magnitudes.
        let slot = named(shape, "blk.0.in_proj.weight.0.0.0");
        for (value, said) in [
            (128, 127),
            (-128, 127),
            (128, 0),
            (-128, -128),
            (128, -128),
            (5, 4),
            (5, 0),
            (5, -5),
            (-5, -5),
            (0, 1),
        ] {
            let mut hostile = slots(&model);
            set(&mut hostile, slot, 0, value);
            let lie = Some(("blk.0.in_proj.weight.0.0.0.|w|", 0, said - i32::abs(value)));
            assert!(
                !satisfied(shape, &hostile, lie) && !accepted(shape, &hostile, lie, honest),
                "{value} is said to be {said}"
            );
        }
        // What is argued about are good weights, what is committed and opened is not.
        let mut hostile = slots(&model);
        set(&mut hostile, slot, 0, 128);
        let good = build(shape, Some((Run::default(), &slots(&model))));
        let good = values(good.run.as_ref().unwrap());
        assert!(!accepted(shape, &hostile, None, |_, all| *all = good));
    }

    /// Every place of every slot of small models: just outside its range, and in padding anything but zero.
    #[test]
    fn every_place_is_bound() {
        let (mut places, mut padded) = (0, 0);
        for seed in [1, 3, 6, 8] {
            let model = random_model(seed, false);
            let (shape, honest) = (&model.shape, slots(&model));
            // 1 in the places that stand for something.
            let mut ones = model.clone();
            ones.tensors.values_mut().for_each(|t| t.fill(1));
            let real = slots(&ones);
            let list = model_slots(shape);
            let r = &mut Random(seed);
            for (slot, s) in list.iter().enumerate() {
                for (at, &is_real) in real[slot].iter().enumerate() {
                    let least = if s.range.0 == 0 { 1 } else { s.range.0 };
                    let wrong = match is_real {
                        1 => [least - 1, s.range.1 + 1][r.below(2)],
                        _ => [1, s.range.1, -1][r.below(3)],
                    };
                    (places, padded) = (places + 1, padded + usize::from(is_real == 0));
                    if r.below(4) == 0 {
                        let mut hostile = honest.clone();
                        set(&mut hostile, slot, at, wrong as i32);
                        assert!(!satisfied(shape, &hostile, None), "{} place {at}: {wrong}", s.name);
                    }
                }
            }
        }
        assert!(
            padded > 100 && places > 1000,
            "{places} places, {padded} of them padding"
        );
    }

    #[test]
    fn padding_is_refused_by_the_verifier() {
        let model = wide(12);
        let shape = &model.shape;
        let mut ones = model.clone();
        ones.tensors.values_mut().for_each(|t| t.fill(1));
        let real = slots(&ones);
        let list = model_slots(shape);
        let mut kinds = HashSet::new();
        for (slot, s) in list.iter().enumerate() {
            let kind: String = s.name.chars().filter(|c| !c.is_ascii_digit()).collect();
            let Some(at) = real[slot].iter().rposition(|v| *v == 0) else {
                continue;
            };
            if kinds.insert(kind) {
                let mut hostile = slots(&model);
                set(&mut hostile, slot, at, 1);
                assert!(!accepted(shape, &hostile, None, honest), "{} place {at}", s.name);
            }
        }
        assert!(kinds.len() > 8, "{kinds:?}");
    }

    #[test]
    fn changed_bytes_and_other_models_are_refused() {
        let first = registered(&random_model(2, false));
        let other = registered(&random_model(3, false));
        let bytes = prove(&first).unwrap();
        let commitment = first.card.commitment();
        assert!(verify(&bytes, &commitment).is_ok());
        assert!(matches!(
            verify(&bytes, &other.card.commitment()),
            Err(Error::Statement(_))
        ));
        // The proof of one model with the card of another.
        let [_, body] = container::read(MAGIC, "registration", &bytes).unwrap();
        let swapped = container::write(MAGIC, &[&other.card.to_bytes(), body]);
        assert!(verify(&swapped, &other.card.commitment()).is_err());
        // The same weights under another card: another shift, another name.
        for change in [
            |c: &mut Card| c.name.push('x'),
            |c: &mut Card| c.shape.in_proj_shift[0] ^= 1,
            |c: &mut Card| c.shape.embed_mul += 1,
        ] {
            let mut card = first.card.clone();
            change(&mut card);
            let moved = container::write(MAGIC, &[&card.to_bytes(), body]);
            assert!(verify(&moved, &commitment).is_err() && verify(&moved, &card.commitment()).is_err());
        }
        let step = bytes.len() / 150;
        let places = (0..60)
            .chain((60..bytes.len()).step_by(step))
            .chain(bytes.len() - 20..bytes.len());
        for (i, at) in places.enumerate() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (i % 8);
            assert!(verify(&changed, &commitment).is_err(), "byte {at}");
        }
        for length in [0, 7, 12, 27, 28, 1000, bytes.len() / 2, bytes.len() - 1] {
            assert!(verify(&bytes[..length], &commitment).is_err());
        }
        assert!(verify(&[&bytes[..], &[0]].concat(), &commitment).is_err());
    }

    /// `cargo test --release -p mamba-integer-prover -- --ignored --nocapture registration::tests::speed`: a model of the shipped shape.
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let mut shape = wide(12).shape;
        (
            shape.d_model,
            shape.n_heads,
            shape.head_dim,
            shape.d_state,
            shape.vocab_size,
        ) = (192, 12, 32, 16, 2048);
        (shape.n_layers, shape.k) = (4, vec![vec![8; 12]; 4]);
        (shape.in_proj_shift, shape.out_proj_shift) = (vec![12; 4], vec![12; 4]);
        let r = &mut Random(1);
        let mut tensors = HashMap::new();
        for (name, len, lo, hi) in shape.tensors() {
            let most = if name.ends_with(".mul") { 100 } else { hi };
            tensors.insert(
                name,
                (0..len)
                    .map(|_| lo + r.below((most - lo + 1) as usize) as i32)
                    .collect(),
            );
        }
        let registered = registered(&Model::new(shape, tensors).unwrap());
        let now = Instant::now();
        let proof = prove(&registered).unwrap();
        let proving = now.elapsed();
        let now = Instant::now();
        verify(&proof, &registered.card.commitment()).unwrap();
        let verifying = now.elapsed();
        let (circuit, _) = registration_circuit(&registered.card.shape).unwrap();
        let bits = soundness::bits(&[circuit], &registered.card).unwrap();
        println!(
            "proven in {proving:?}, verified in {verifying:?}, {} bytes, {bits:.1} bits",
            proof.len()
        );
    }
}
