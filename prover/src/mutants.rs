//! Whether every part of the circuits is needed: for each constraint, lookup, link and sum a witness that breaks this one part and no other, so that the
//! circuit without the part would accept it.
//!
//! A *kind* of part is the same definition in any block and layer; the norms are one definition. A liar changes cells, and computes all that follows from them as
//! the honest prover would; what then fails is what stands between the lie and a proof. Lies are found in four ways: one cell or one sum by itself; cells of one
//! row of a table together, solved from the other constraints of that row; where the liar must be cleverer, by a recipe below; and one by one in `by_hand`.
//! `tests/parts.txt` lists what is left.
//!
//! A witness is false if any cell is wrong, be it only a limb that means nothing without the part. Norms, the gate and the choice of tokens are also met by
//! themselves, on values that their inputs may have: there the liar needs no model that leads to them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use rayon::prelude::*;

use crate::circuit::builder::{Builder, Cells, Lie, Run, Told};
use crate::circuit::norm::norm;
use crate::circuit::scan::gate;
use crate::circuit::slots::model_values;
use crate::circuit::values::{least as small, residue, Values};
use crate::circuit::{head, HeadInput, Segment, Tensor};
use crate::ir::{Circuit, Constraint, Linear, Oracle, Source, P};
use crate::registration;
use crate::sampler;
use crate::satisfy::{failures, Part};
use crate::shape::{Activation, Model, ModelShape};
use crate::testing::{random_model, Random};
use crate::witness::{finish, Runner, State, Witness};

mod by_hand;

/// Kinds of parts that no lie below shows to be needed, as the others imply them, and why: `kind | redundant | reason`.
const EXCEPTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parts.txt");

/// What comes of lies.
type Liar = Box<dyn Fn(&[Lie]) -> Witness + Send + Sync>;

/// A circuit with an honest witness, and what a liar makes of it.
struct Scene {
    name: String,
    circuit: Circuit,
    honest: Witness,
    run: Liar,
    /// Whose slots the liar may choose.
    free: &'static [Oracle],
}

/// The kinds of parts that were caught, and by which lie.
type Caught = BTreeMap<String, String>;

/// The kinds of `EXCEPTIONS`, and why. Nothing is searched for them; that something is found by the way is an error.
type Listed = BTreeMap<String, String>;

/// A recipe: what it is about, the end of a kind's name ("" for any), and the lies.
type Recipe = (String, Vec<Lie>);

impl Scene {
    fn lie(&self, lies: &[Lie]) -> Option<Witness> {
        // Where the run cannot go on: a shift by a negative number, an index beyond a table.
        QUIET.set(true);
        let run = catch_unwind(AssertUnwindSafe(|| (self.run)(lies)));
        QUIET.set(false);
        run.ok()
    }

    /// The part that alone fails, if it is one.
    fn only(&self, w: &Witness) -> Option<Part> {
        match failures(&self.circuit, &w.slots, Some(&w.sums)).ok()?[..] {
            [(part, _)] => Some(part),
            _ => None,
        }
    }

    /// The kinds that nothing has caught yet and that are not listed, with the parts of each.
    fn wanted(&self, caught: &Caught, listed: &Listed) -> BTreeMap<String, Vec<Part>> {
        let mut out: BTreeMap<String, Vec<Part>> = BTreeMap::new();
        for part in self.parts() {
            let kind = self.kind(part);
            if !caught.contains_key(&kind) && !listed.contains_key(&kind) {
                out.entry(kind).or_default().push(part);
            }
        }
        out
    }

    /// Whether the circuit without the part accepts what the whole one refuses.
    fn without(&self, part: Part, w: &Witness) -> bool {
        let mut circuit = self.circuit.clone();
        match part {
            Part::Constraint(t, i) => drop(circuit.tables[t].constraints.remove(i)),
            Part::Lookup(t, i) => drop(circuit.tables[t].lookups.remove(i)),
            // A sum that is not asked for is whatever is said.
            Part::Link(_) | Part::Sum(_) => return self.only(w) == Some(part),
        }
        failures(&circuit, &w.slots, Some(&w.sums)).is_ok_and(|f| f.is_empty()) && self.only(w) == Some(part)
    }

    fn parts(&self) -> Vec<Part> {
        let mut out = vec![];
        for (t, table) in self.circuit.tables.iter().enumerate() {
            out.extend((0..table.constraints.len()).map(|i| Part::Constraint(t, i)));
            out.extend((0..table.lookups.len()).map(|i| Part::Lookup(t, i)));
        }
        let link = |id: usize| self.circuit.links.contains(&id);
        out.extend((0..self.circuit.sums.len()).map(|id| if link(id) { Part::Link(id) } else { Part::Sum(id) }));
        out
    }

    /// The part's name without the numbers of blocks and layers; and which it is among those of one name.
    fn kind(&self, part: Part) -> String {
        let table = |t: usize| blank(&self.circuit.tables[t].name);
        let nth = |names: &mut dyn Iterator<Item = &String>, i: usize| {
            let names: Vec<&String> = names.collect();
            let same = names[..i].iter().filter(|n| **n == names[i]).count();
            let all = names.iter().filter(|n| **n == names[i]).count();
            (
                names[i].clone(),
                if all > 1 {
                    format!(" {}", same + 1)
                } else {
                    String::new()
                },
            )
        };
        match part {
            Part::Constraint(t, i) => {
                let (name, nth) = nth(&mut self.circuit.tables[t].constraints.iter().map(|c| &c.name), i);
                let name = name
                    .strip_prefix(&self.circuit.tables[t].name)
                    .unwrap_or(&name)
                    .trim_start_matches('.');
                format!("{}: constraint {name}{nth}", table(t))
            }
            Part::Lookup(t, i) => {
                let (name, nth) = nth(&mut self.circuit.tables[t].lookups.iter().map(|l| &l.name), i);
                let name = name
                    .strip_prefix(&self.circuit.tables[t].name)
                    .unwrap_or(&name)
                    .trim_start_matches('.')
                    .to_owned();
                format!(
                    "{}: lookup {}{nth}",
                    table(t),
                    if name.starts_with(char::is_alphabetic) || name.starts_with('|') {
                        name
                    } else {
                        blank(&name)
                    }
                )
            }
            Part::Link(id) | Part::Sum(id) => {
                let sum = &self.circuit.sums[id];
                let name = &sum.name[self.circuit.tables[sum.table].name.len() + 1..];
                let what = if matches!(part, Part::Link(_)) { "link" } else { "sum" };
                format!("{}: {what} {name}", table(sum.table))
            }
        }
    }

    fn table_of(&self, part: Part) -> usize {
        match part {
            Part::Constraint(t, _) | Part::Lookup(t, _) => t,
            Part::Link(id) | Part::Sum(id) => self.circuit.sums[id].table,
        }
    }
}

thread_local! {
    /// Panics of a liar's run are no news.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Numbers become #, but for those that are part of a word. The norms are one definition.
fn blank(name: &str) -> String {
    let name = without_numbers(name);
    ["blk.#.norm1", "blk.#.norm2", "norm_f"]
        .iter()
        .find_map(|norm| Some(format!("norm{}", name.strip_prefix(norm)?)))
        .unwrap_or(name)
}

fn without_numbers(name: &str) -> String {
    let parts = name.split('.').map(|p| {
        if p.chars().all(|c| c.is_ascii_digit()) && !p.is_empty() {
            "#"
        } else {
            p
        }
    });
    parts.collect::<Vec<_>>().join(".")
}

// ---- scenes ------------------------------------------------------------------------------------------------------------------------------------

struct Plan {
    name: &'static str,
    seed: u64,
    hostile: bool,
    shape: fn(&mut ModelShape),
    temperature: u32,
    top_k: u32,
    /// A step at which the statement has another token than the sampler's.
    wrong: Option<(usize, usize)>,
}

fn model(plan: &Plan) -> Model {
    let mut shape = random_model(plan.seed, false).shape;
    (
        shape.d_model,
        shape.n_layers,
        shape.n_heads,
        shape.head_dim,
        shape.d_state,
        shape.vocab_size,
    ) = (3, 1, 3, 1, 2, 5);
    (shape.k, shape.embed_mul, shape.logit_shift) = (vec![vec![8, 12, 10]], 900, 17);
    (shape.in_proj_shift, shape.out_proj_shift) = (vec![9], vec![8]);
    (plan.shape)(&mut shape);
    let r = &mut Random(plan.seed);
    let tensors = shape.tensors().into_iter().map(|(name, len, lo, hi)| {
        let value = |r: &mut Random| match &name[..] {
            _ if plan.hostile => [lo, hi][r.below(2)],
            n if n.ends_with("scan.A") => 1 << r.below(20),
            n if n.ends_with("scan.base") => r.below(1100) as i32 - 300,
            _ => lo + r.below((hi - lo + 1) as usize) as i32,
        };
        let values = (0..len).map(|_| value(r)).collect();
        (name.clone(), values)
    });
    let tensors = tensors.collect();
    Model::new(shape, tensors).unwrap()
}

/// The middle one of three segments of 8 steps, or the last of two that is not full.
fn scene(plan: &Plan, full: bool) -> Scene {
    let model = model(plan);
    let (mut runner, shape) = (Runner::new(&model), model.shape.clone());
    let r = &mut Random(plan.seed + 7);
    let mut segment = |has_in: bool, has_out: bool, tokens: usize| {
        let mut fed = vec![usize::MAX; 8];
        fed[..tokens].fill_with(|| r.below(shape.vocab_size));
        Segment {
            log_steps: 3,
            fed,
            has_in,
            has_out,
        }
    };
    let (first, second) = (segment(false, true, 8), segment(true, full, if full { 8 } else { 6 }));
    let (_, _, state) = finish(runner.run(&first, None).unwrap().0);
    let (b, input) = runner.run(&second, Some(&state)).unwrap();
    let logits = runner.logits(&b, &input);
    let sampling = sampler::Sampling {
        temperature: plan.temperature,
        top_k: plan.top_k,
        top_p: sampler::TOP_P_OFF,
        seed: 3,
    };
    let index = |t: usize| 5 + t as u64;
    let mut chosen: Vec<usize> = (0..8)
        .map(|t| sampler::sample(&logits[t], shape.embed_mul, shape.logit_shift, &sampling, index(t)))
        .collect();
    chosen[0] = usize::MAX;
    if let Some((step, token)) = plan.wrong {
        chosen[step] = token;
    }
    let choice = head::Choice {
        chosen,
        first_index: 5,
        temperature: plan.temperature,
        top_k: plan.top_k,
        seed: 3,
    };
    let made = move |runner: &Runner, state: &State| {
        let (mut b, input) = runner.run(&second, Some(state)).unwrap();
        head::head(&mut b, &shape, &input, &choice).unwrap();
        b
    };
    let b = made(&runner, &state);
    b.circuit.check(&b.derived).unwrap();
    let (circuit, honest, _) = finish(b);
    let run = move |lies: &[Lie]| {
        let mut with = Runner::new(&model);
        with.lies = lies.to_vec();
        finish(made(&with, &state)).1
    };
    runner.lies.clear();
    Scene {
        name: plan.name.into(),
        circuit,
        honest,
        run: Box::new(run),
        free: &[Oracle::Trace],
    }
}

/// A head on logits of many sizes, with ties and with distances at both sides of the last that counts.
fn head_alone(name: &str, temperature: u32, shift: u32, top_k: u32, wrong: Option<(usize, usize)>) -> Scene {
    let r = &mut Random(9);
    let far = (17 << 16) - 1;
    let logits: Vec<Vec<i32>> = (0..8)
        .map(|t| {
            let mut list: Vec<i32> = (0..31).map(|_| 400_000 - (r.below(1 << (4 + 2 * t)) as i32)).collect();
            list[0] = 400_001;
            list[1] = if t == 1 { 400_001 } else { list[1] };
            (list[3], list[4], list[5]) = (400_001 - far, 400_001 - far - 9 - t, 400_000 - 700_000);
            list.rotate_left(if t == 1 { 3 } else { 0 });
            list
        })
        .collect();
    head_of(name, (1, shift), logits, temperature, top_k, wrong)
}

/// A head by itself: u[d, t] = [d = t] and e[v, d] = logit v after step d. With T = 94548 and a shift of 16 the exponent is the distance.
fn head_of(
    name: &str,
    (embed_mul, shift): (i64, u32),
    logits: Vec<Vec<i32>>,
    temperature: u32,
    top_k: u32,
    wrong: Option<(usize, usize)>,
) -> Scene {
    let mut shape = random_model(1, false).shape;
    (shape.d_model, shape.vocab_size, shape.embed_mul, shape.logit_shift) = (64, 31, embed_mul, shift);
    let mut choice = head::Choice {
        chosen: vec![],
        first_index: 0,
        temperature,
        top_k,
        seed: 3,
    };
    let sampling = sampler::Sampling {
        temperature,
        top_k,
        top_p: sampler::TOP_P_OFF,
        seed: 3,
    };
    choice.chosen = (0..8)
        .map(|t| sampler::sample(&logits[t], embed_mul, shift, &sampling, t as u64))
        .collect();
    choice.chosen[0] = usize::MAX;
    if let Some((step, token)) = wrong {
        choice.chosen[step] = token;
    }
    let run = move |lies: &[Lie]| {
        let mut b = Builder {
            run: Some(Run {
                lies: lies.to_vec(),
                ..Run::default()
            }),
            ..Builder::default()
        };
        b.circuit = Circuit {
            log_steps: 3,
            ranges: crate::ir::ranges(),
            fed: vec![0; 8],
            ..Circuit::default()
        };
        let (axis, reach) = (shape.vocab_axis(), 127 * 127 * 64);
        let e = (0..axis.blocks).map(|block| {
            let mut values = vec![0; 8 << axis.log];
            axis.block(block)
                .for_each(|(v, at)| (0..8).for_each(|t| values[at * 8 + t] = logits[t][v]));
            vec![b.slot(
                Oracle::Model,
                "e",
                axis.log + 3,
                (-reach, reach),
                Some(Arc::new(values)),
            )]
        });
        let e = e.collect();
        let identity = (0..64).map(|i| (i / 8 == i % 8).into()).collect::<Vec<i32>>();
        let u = b.slot(Oracle::Model, "u", 6, (0, 1), Some(Arc::new(identity)));
        let input = HeadInput {
            u: Tensor { slots: vec![u], log: 3 },
            e,
            log_vocab: axis.log,
        };
        head::head(&mut b, &shape, &input, &choice).unwrap();
        let (circuit, witness, _) = finish(b);
        (circuit, witness)
    };
    let (circuit, honest) = run(&[]);
    Scene {
        name: name.into(),
        circuit,
        honest,
        run: Box::new(move |lies| run(lies).1),
        free: &[Oracle::Trace],
    }
}

/// A part of the circuit by itself, on values of its inputs: name, log2 of their number, range, values.
type Given = (&'static str, usize, (i64, i64), Vec<i32>);

fn alone(
    name: &str,
    log_steps: usize,
    inputs: Vec<Given>,
    build: impl Fn(&mut Builder, &[usize]) + Send + Sync + 'static,
) -> Scene {
    let inputs: Vec<(&str, usize, (i64, i64), Values)> = inputs
        .into_iter()
        .map(|(n, log, range, v)| (n, log, range, Arc::new(v)))
        .collect();
    let run = move |lies: &[Lie]| {
        let mut b = Builder {
            run: Some(Run {
                lies: lies.to_vec(),
                ..Run::default()
            }),
            ..Builder::default()
        };
        b.circuit = Circuit {
            log_steps,
            ranges: crate::ir::ranges(),
            fed: vec![0; 1 << log_steps],
            ..Circuit::default()
        };
        let slot = |(name, log, range, values): &(&str, usize, (i64, i64), Values)| {
            b.slot(Oracle::Model, name, *log, *range, Some(values.clone()))
        };
        let slots: Vec<usize> = inputs.iter().map(slot).collect();
        build(&mut b, &slots);
        let (circuit, witness, _) = finish(b);
        (circuit, witness)
    };
    let (circuit, honest) = run(&[]);
    Scene {
        name: name.into(),
        circuit,
        honest,
        run: Box::new(move |lies| run(lies).1),
        free: &[Oracle::Trace],
    }
}

/// A norm of 128 channels that are equal but for one, at every step: from the largest to small ones.
fn norm_of_many() -> Scene {
    let large = |step: i32| {
        if step < 8 {
            131_000 - 1777 * step
        } else {
            (131_000.0 * 0.5f64.powi(step - 7)) as i32
        }
    };
    let value =
        |channel: usize, step: usize| large(step as i32) - if channel == 0 { large(step as i32) / 7 } else { 0 };
    norm_alone("norm, many channels", 7, 4, value)
}

/// A norm of 4 channels, of all sizes.
fn norm_of_few() -> Scene {
    let random = std::cell::RefCell::new(Random(3));
    let value = |_, step: usize| {
        let top = (131_000.0 * 0.91f64.powi(step as i32)) as usize;
        random.borrow_mut().below(2 * top + 1) as i32 - top as i32
    };
    norm_alone("norm, few channels", 2, 7, value)
}

fn norm_alone(name: &str, log: usize, log_steps: usize, value: impl Fn(usize, usize) -> i32) -> Scene {
    let range = (-(1 << 17) + 1, (1 << 17) - 1);
    let values = (0..1 << (log + log_steps)).map(|at: usize| value(at >> log_steps, at & ((1 << log_steps) - 1)));
    let inputs: Vec<Given> = vec![
        ("x", log + log_steps, range, values.collect()),
        ("g", log, (-127, 127), (0..1 << log).map(|c| c % 255 - 127).collect()),
    ];
    alone(name, log_steps, inputs, move |b, slots| {
        let x = Tensor {
            slots: vec![slots[0]],
            log,
        };
        norm(b, "norm_f", &x, &slots[1..], 1 << log, 8);
    })
}

/// A gate and the norm after it, where a product is rounded to −2^17.
fn gate_alone() -> Scene {
    let mut inputs: Vec<Given> = vec![
        ("y", 4, (-32767, 32767), vec![100; 16]),
        ("g", 4, (0, (1 << 14) - 1), vec![200; 16]),
        ("w", 1, (-127, 127), vec![100, -50]),
    ];
    (inputs[0].3[5], inputs[1].3[5]) = (-32514, 258);
    alone("gate", 3, inputs, |b, slots| {
        let tensor = |slot| Tensor {
            slots: vec![slot],
            log: 1,
        };
        let o = gate(b, "blk.0.gated", &tensor(slots[0]), &tensor(slots[1]));
        norm(b, "blk.0.norm2", &o, &slots[2..], 2, 8);
    })
}

fn registration(seed: u64, shape: fn(&mut ModelShape)) -> Scene {
    let plan = Plan {
        name: "registration",
        seed,
        hostile: false,
        shape,
        temperature: 0,
        top_k: 0,
        wrong: None,
    };
    let model = model(&plan);
    let slots: Vec<Values> = model_values(&model).into_iter().map(Arc::new).collect();
    let shape = model.shape;
    let run = move |lies: &[Lie]| {
        let (mut slots, mut later) = (slots.clone(), vec![]);
        for lie in lies {
            match lie.of {
                Cells::Slot(id) if id < slots.len() => {
                    let cell = &mut Arc::make_mut(&mut slots[id])[lie.at];
                    *cell = match lie.value {
                        Told::Plus(add) => *cell + add,
                        Told::Just(value) => value,
                    };
                }
                _ => later.push(lie.clone()),
            }
        }
        let b: Builder = registration::build(
            &shape,
            Some((
                Run {
                    lies: later,
                    ..Run::default()
                },
                &slots,
            )),
        );
        let run = b.run.unwrap();
        (
            b.circuit,
            Witness {
                slots: run.slots,
                sums: run.sums,
            },
        )
    };
    let (mut circuit, honest) = run(&[]);
    // What it proves is not a premise.
    circuit.slots.iter_mut().for_each(|s| s.range = (i64::MIN, i64::MAX));
    Scene {
        name: "registration".into(),
        circuit,
        honest,
        run: Box::new(move |lies| run(lies).1),
        free: &[Oracle::Model, Oracle::Trace],
    }
}

// ---- one row of a table ------------------------------------------------------------------------------------------------------------------------

fn inverse(v: i64) -> i64 {
    let (mut base, mut exponent, mut out) = (v.rem_euclid(P), P - 2, 1);
    while exponent > 0 {
        if exponent & 1 == 1 {
            out = out * base % P;
        }
        (base, exponent) = (base * base % P, exponent >> 1);
    }
    out
}

fn value(c: &Constraint, row: &[i64]) -> i64 {
    c.terms.iter().fold(0, |sum, (k, cols)| {
        (sum + cols.iter().fold(*k % P, |p, &c| p * row[c] % P)) % P
    })
}

fn form(l: &Linear, row: &[i64]) -> i64 {
    let v = l
        .terms
        .iter()
        .fold(l.constant, |sum, &(c, col)| (sum + c * row[col]) % P);
    (0..l.shift).fold(v.rem_euclid(P), |v, _| if v % 2 == 0 { v / 2 } else { (v + P) / 2 })
}

/// The liar's view of a row: what may be changed, and what must hold.
struct Row<'a> {
    circuit: &'a Circuit,
    table: usize,
    part: Part,
    /// The slot of every column that is the liar's.
    own: Vec<Option<usize>>,
    /// How often `settle` may still try.
    patience: std::cell::Cell<usize>,
}

impl Row<'_> {
    fn constraint_holds(&self, i: usize, row: &[i64]) -> bool {
        value(&self.circuit.tables[self.table].constraints[i], row) == 0
    }

    fn lookup_holds(&self, i: usize, row: &[i64]) -> bool {
        let lookup = &self.circuit.tables[self.table].lookups[i];
        if lookup.selector.iter().any(|c| row[*c] == 0) {
            return true;
        }
        let size = usize::try_from(form(&lookup.range, row))
            .ok()
            .and_then(|r| self.circuit.ranges.get(r))
            .copied();
        form(&lookup.value, row) < size.unwrap_or(0) as i64
    }

    /// Mends what fails but for the part, one cell after the other, none twice.
    fn settle(&self, row: &mut Vec<i64>, touched: &mut Vec<usize>) -> bool {
        let Some(left) = self.patience.get().checked_sub(1) else {
            return false;
        };
        self.patience.set(left);
        let table = &self.circuit.tables[self.table];
        let failing = (0..table.constraints.len())
            .find(|&i| self.part != Part::Constraint(self.table, i) && !self.constraint_holds(i, row));
        if let Some(i) = failing {
            let constraint = &table.constraints[i];
            let mut columns: Vec<usize> = constraint.terms.iter().flat_map(|(_, c)| c.iter().copied()).collect();
            columns.sort_unstable();
            columns.dedup();
            for &y in columns.iter().rev().filter(|y| self.own[**y].is_some()) {
                if touched.contains(&y) || touched.len() > 4 {
                    continue;
                }
                let old = row[y];
                let mut at = |v: i64| {
                    row[y] = v;
                    value(constraint, row)
                };
                let (zero, one, two) = (at(0), at(1), at(2));
                let slope = (one - zero).rem_euclid(P);
                if slope != 0 && (two - one - slope) % P == 0 {
                    row[y] = small(-zero * inverse(slope) % P);
                    touched.push(y);
                    if self.settle(row, touched) {
                        return true;
                    }
                    touched.pop();
                }
                row[y] = old;
            }
            return false;
        }
        let failing =
            (0..table.lookups.len()).find(|&i| self.part != Part::Lookup(self.table, i) && !self.lookup_holds(i, row));
        let Some(i) = failing else {
            return match self.part {
                Part::Constraint(_, i) => !self.constraint_holds(i, row),
                Part::Lookup(_, i) => !self.lookup_holds(i, row),
                _ => false,
            };
        };
        // A low limb: what is left over.
        let value = &table.lookups[i].value;
        let Some(&(-1, low)) = value.terms.last().filter(|_| value.shift > 0) else {
            return false;
        };
        if self.own[low].is_none() || touched.contains(&low) {
            return false;
        }
        let old = row[low];
        row[low] = 0;
        let whole = small(form(
            &Linear {
                shift: 0,
                ..value.clone()
            },
            row,
        ));
        row[low] = whole & ((1 << value.shift) - 1);
        touched.push(low);
        if self.settle(row, touched) {
            return true;
        }
        touched.pop();
        row[low] = old;
        false
    }
}

/// Lies in a row that break the part alone, as far as the row can tell.
fn lies_in_a_row(scene: &Scene, part: Part, row_number: usize, budget: usize, random: &mut Random) -> Vec<Vec<Lie>> {
    let t = scene.table_of(part);
    let table = &scene.circuit.tables[t];
    let log = table.log;
    let slot_at = |slot: usize, vars: &[usize]| {
        let at = vars.iter().fold(0, |at, v| 2 * at + (row_number >> (log - 1 - v) & 1));
        i64::from(scene.honest.slots[slot][at])
    };
    let honest: Vec<i64> = table
        .columns
        .iter()
        .map(|c| match &c.source {
            Source::Slot { slot, vars } => slot_at(*slot, vars),
            Source::Sum(id) => scene.honest.sums[*id][row_number].into(),
            Source::Public(public) => crate::circuit::values::public(&scene.circuit, public, log)[row_number].into(),
        })
        .collect();
    let own: Vec<Option<usize>> = table
        .columns
        .iter()
        .map(|c| match &c.source {
            Source::Slot { slot, vars }
                if vars.len() == log && scene.free.contains(&scene.circuit.slots[*slot].oracle) =>
            {
                // A view of another table's slot is not this table's to choose, where there is one of its own.
                let here = scene.circuit.slots[*slot].name.starts_with(&format!("{}.", table.name))
                    || scene.circuit.slots[*slot].oracle == Oracle::Model;
                here.then_some(*slot)
            }
            _ => None,
        })
        .collect();
    let view = Row {
        circuit: &scene.circuit,
        table: t,
        part,
        own,
        patience: 0.into(),
    };
    let mine: Vec<usize> = match part {
        Part::Constraint(_, i) => table.constraints[i]
            .terms
            .iter()
            .flat_map(|(_, c)| c.iter().copied())
            .collect(),
        Part::Lookup(_, i) => {
            let l = &table.lookups[i];
            l.value.terms.iter().chain(&l.range.terms).map(|(_, c)| *c).collect()
        }
        _ => vec![],
    };
    let others = if table.columns.len() > 20 || budget == 0 {
        0
    } else {
        table.columns.len()
    };
    let mut seeds: Vec<usize> = mine
        .into_iter()
        .chain(0..others)
        .filter(|c| view.own[*c].is_some())
        .collect();
    let mut seen = BTreeSet::new();
    seeds.retain(|c| seen.insert(*c));
    let mut out = vec![];
    let mut attempt = |x: usize, v: i64| {
        let mut row = honest.clone();
        row[x] = small(v);
        view.patience.set(12);
        if row[x] == honest[x] || !view.settle(&mut row, &mut vec![x]) {
            return false;
        }
        let cell = |(c, slot): (usize, &Option<usize>)| {
            slot.map(|slot| Lie {
                of: Cells::Slot(slot),
                at: row_number,
                value: Told::Just(residue(row[c])),
            })
        };
        out.push(view.own.iter().enumerate().filter_map(cell).collect());
        true
    };
    for &x in &seeds {
        for k in 0..=20 {
            for sign in [1, -1] {
                attempt(x, honest[x] + (sign << k));
            }
        }
        let (lo, hi) = scene.circuit.slots[view.own[x].unwrap()].range;
        for v in [0, lo, hi].into_iter().filter(|v| v.abs() < P) {
            attempt(x, v);
        }
    }
    for &x in &seeds {
        let slot = &scene.circuit.slots[view.own[x].unwrap()];
        let (lo, hi) = slot.range;
        let wide = hi.saturating_sub(lo) as usize;
        let (mut tries, mut found) = (0, 0);
        while tries < budget && found < 3 && wide < 1 << 30 {
            let v = if wide <= budget {
                lo + tries as i64
            } else {
                lo + random.below(wide + 1) as i64
            };
            found += usize::from(v <= hi && attempt(x, v));
            tries += 1;
        }
    }
    out
}

// ---- recipes -----------------------------------------------------------------------------------------------------------------------------------

/// Σ over a list of multiples of the unit vectors e_j.
fn total(e: &[(usize, i64)], of: impl Fn(usize) -> i64) -> i64 {
    e.iter().map(|(j, n)| n * of(*j)).sum()
}

/// rest + unit · part = v modulo p, with `low` bits of the rest and `high` of the part.
fn split(v: i64, unit: i64, low: i64, high: i64) -> Option<(i64, i64)> {
    let whole = |m: i64| (v - m * P).div_euclid(unit);
    let parts = (-8..8).map(|m| (v - m * P - unit * whole(m), whole(m)));
    let exact = (0, (v * inverse(unit)).rem_euclid(P));
    let fits = |(rest, part): &(i64, i64)| (0..1 << low).contains(rest) && (0..1 << high).contains(part);
    parts.into_iter().chain([exact]).find(fits)
}

/// The limbs of low + 2^16 · high that satisfy the identities of a norm's scale with these multiples of the e_j, modulo p.
fn cut(low: i64, high: i64, e: &[(usize, i64)]) -> Option<[(&'static str, i64); 5]> {
    let (cut, deep) = (|j: usize| (2 * j).min(16), |j: usize| (2 * j).saturating_sub(16));
    let (c, d) = (total(e, |j| cut(j) as i64), total(e, |j| deep(j) as i64));
    let units = [
        total(e, |j| 1 << cut(j)),
        total(e, |j| 1 << deep(j)),
        total(e, |j| 1 << (16 - cut(j))),
    ];
    if !(0..=16).contains(&c) || !(0..=17).contains(&d) || units[..2].contains(&0) || total(e, |j| 1 << j) == 0 {
        return None;
    }
    let (x0, x1) = split(low, units[0], c, 16 - c)?;
    let (y0, y1) = split(high, units[1], d, c)?;
    let left = (x1 + units[2] * y1).rem_euclid(P);
    (1 << 14..1 << 16)
        .contains(&left)
        .then_some([("x0", x0), ("x1", x1), ("y0", y0), ("y1", y1), ("S'", left)])
}

/// A lie in the scale of a norm: the values of its limbs and of j, where they are told.
struct Scale<'a> {
    scene: &'a Scene,
    table: &'a str,
    step: usize,
}

impl Scale<'_> {
    fn slot(&self, name: &str) -> Option<usize> {
        let name = format!("{}.{name}", self.table);
        self.scene.circuit.slots.iter().position(|s| s.name == name)
    }

    fn get(&self, name: &str) -> i64 {
        let name = format!("{}.{name}", self.table);
        let sums = self.scene.circuit.sums.iter().position(|s| s.name == name);
        let values = sums.map(|id| &self.scene.honest.sums[id]).or_else(|| {
            let id = self.scene.circuit.slots.iter().position(|s| s.name == name)?;
            Some(&self.scene.honest.slots[id])
        });
        values.unwrap_or_else(|| panic!("{name}"))[self.step].into()
    }

    fn top(&self, name: &str) -> i64 {
        self.scene.circuit.slots[self.slot(name).unwrap()].range.1
    }

    fn told(&self, values: &[(&str, i64)]) -> Vec<Lie> {
        let lie = |(name, v): &(&str, i64)| Lie {
            of: Cells::Slot(self.slot(name).unwrap()),
            at: self.step,
            value: Told::Just(small(*v) as i32),
        };
        values.iter().map(lie).collect()
    }

    /// The limbs of `low` + 2^16 · `high` for a list of multiples of the unit vectors e_j, as far as they fit.
    fn cut(&self, low: i64, high: i64, e: &[(usize, i64)]) -> Option<Vec<Lie>> {
        let max = (0..).take_while(|j| self.slot(&format!("e{j}")).is_some()).count();
        if e.iter().any(|(j, _)| *j >= max) {
            return None;
        }
        let mut lies = self.told(&cut(low, high, e)?);
        for j in 0..max {
            let n = e.iter().find(|(i, _)| *i == j).map_or(0, |(_, n)| *n);
            lies.extend(self.told(&[(&format!("e{j}"), n)]));
        }
        Some(lies)
    }

    fn lies(&self) -> Vec<Recipe> {
        let [p0, p1, p2, a0, b0] = ["P0", "P1", "P2", "a0", "b0"].map(|n| self.get(n));
        let (a1, half) = (self.get("a1"), inverse(64));
        let ([x0, x1, y0, y1], s) = (["x0", "x1", "y0", "y1"].map(|n| self.get(n)), self.get("S'"));
        let [j, cut, deep, b1] = ["j", "cut", "deep", "b1"].map(|n| self.get(n));
        let (low, high) = (a0 + (b0 << 10), 4 * p2 + b1);
        let mut out: Vec<Recipe> = vec![];
        let mut add = |target: &str, lies: Vec<Lie>| out.push((target.into(), lies));
        let limit = self.top("b1") + 1;
        let plain = |low: i64, high: i64| {
            let s = low + (high << 16);
            (s >= 1 << 14).then(|| self.cut(low, high, &[((64 - s.leading_zeros() as usize - 15) >> 1, 1)]))?
        };
        // Limbs of the sums that are no integers: a quotient in the field.
        'a1: for other in (0..1024).filter(|v| *v != a0) {
            let quotient = small((p0 - other) * inverse(1024));
            for b in 0..64 {
                let carried = small((quotient + p1 + 16 - b) % P * half);
                if (-limit..limit).contains(&carried) && 4 * p2 + carried >= 0 {
                    if let Some(more) = plain(other + (b << 10), 4 * p2 + carried) {
                        let limbs = self.told(&[("a0", other), ("a1", quotient), ("b0", b), ("b1", carried)]);
                        add("lookup a1", [limbs, more].concat());
                        break 'a1;
                    }
                }
            }
        }
        for v in (0..1 << 16).filter(|v| *v != low) {
            let limb = small((v - a0) * inverse(1024));
            let carried = small((a1 + p1 + 16 - limb) % P * half);
            if !(0..64).contains(&limb) && (-limit..limit).contains(&carried) && 4 * p2 + carried >= 0 {
                if let Some(more) = plain(v, 4 * p2 + carried) {
                    add(
                        "lookup b0",
                        [self.told(&[("b0", limb), ("b1", carried)]), more].concat(),
                    );
                    break;
                }
            }
        }
        for b in (0..64).filter(|b| *b != b0) {
            let carried = small((a1 + p1 + 16 - b) % P * half);
            let high = small(4 * p2 + carried);
            if high >= 0 {
                if let Some(more) = plain(a0 + (b << 10), high) {
                    add("lookup b1", [self.told(&[("b0", b), ("b1", carried)]), more].concat());
                    break;
                }
            }
        }
        // Limbs of the cut.
        for k in [1, -1] {
            add(
                "lookup x0",
                self.told(&[("x0", x0 + (k << cut)), ("x1", x1 - k), ("S'", s - k)]),
            );
            let left = s - (k << (16 - cut));
            add(
                "lookup y0",
                self.told(&[("y0", y0 + (k << deep)), ("y1", y1 - k), ("S'", left)]),
            );
            // 2^16 · 32512 = p − 1.
            let more = k * 32512;
            add(
                "lookup x1",
                self.told(&[("x0", x0 + k), ("x1", x1 + more), ("S'", s + more)]),
            );
        }
        // Another j, or several.
        let count = (0..).take_while(|j| self.slot(&format!("e{j}")).is_some()).count();
        for other in [j + 1, j - 1] {
            if (0..count as i64).contains(&other) {
                let (c, d) = ((2 * other).min(16), (2 * other - 16).max(0));
                let mut lies = self.told(&[
                    ("x0", low & ((1 << c) - 1)),
                    ("x1", low >> c),
                    ("y0", high & ((1 << d) - 1)),
                    ("y1", high >> d),
                    ("S'", (low + (high << 16)) >> (2 * other)),
                ]);
                lies.extend(self.told(&[(&format!("e{j}"), 0), (&format!("e{other}"), 1)]));
                add("", lies);
            }
        }
        let mut pairs = 0;
        for a in 0..count {
            for b in 0..a {
                if let Some(lies) = self.cut(low, high, &[(a, 1), (b, 1)]).filter(|_| pairs < 4) {
                    pairs += 1;
                    add("constraint one j", lies);
                }
            }
        }
        for c in 0..count {
            let pairs = (0..count)
                .flat_map(|a| (0..a).map(move |b| (a, b)))
                .filter(|(a, b)| *a != c && *b != c);
            let several = pairs.filter_map(|(a, b)| self.cut(low, high, &[(a, 1), (b, 1), (c, -1)]));
            several
                .take(8)
                .for_each(|lies| add(&format!("constraint e{c} is 0 or 1"), lies));
        }
        if self.slot("mu").is_some() {
            // No integer μ: w0 = 0, so that c = 0.
            let over = |w: i64, rest: i64| (0..1 << 26).contains(&((w << 13) + s - (rest << 12) - 1));
            let none = [("w0", 0), ("c0", 0), ("c1", 0), ("R0", 0), ("carry", 0)];
            for w in 1..1i64 << 13 {
                let mu = small(w * 4096 % P * inverse(s));
                let rest = small((1 << 18) - mu * w % P);
                if (0..1 << 14).contains(&rest) && over(w, rest) {
                    add(
                        "",
                        self.told(&[&none[..], &[("mu", mu), ("w1", w), ("R1", rest)]].concat()),
                    );
                    break;
                }
            }
            // A larger μ: μ² · S' + R = 2^30 + p, with a carry or a limb c1 that is no integer. p − 1 = 4096 · 520192.
            let wrapped = (1 << 30) + P;
            let mu = (wrapped / s).isqrt();
            let [w0, rest] = [(mu * s) & 4095, wrapped - mu * mu * s];
            let (c0, c1) = ((mu * w0) & 4095, (mu * w0) >> 12);
            let limbs = [("mu", mu), ("R0", rest & 4095), ("R1", rest >> 12)];
            let carry = (c0 + (rest & 4095)) >> 12;
            add(
                "constraint carry is 0 or 1",
                self.told(&[&limbs[..], &[("carry", carry - 520_192)]].concat()),
            );
            if c0 > 0 {
                let c = [("c0", c0 - 1), ("c1", c1 - 520_192), ("carry", carry)];
                add("lookup c1", self.told(&[&limbs[..], &c].concat()));
            }
        }
        out
    }
}

/// The cells of a row of a table, for recipes.
fn at_row<'a>(scene: &'a Scene, table: &'a str, row: usize) -> impl Fn(&str) -> Option<(usize, i64)> + 'a {
    move |name| {
        let name = format!("{table}.{name}");
        let id = scene.circuit.slots.iter().position(|s| s.name == name)?;
        Some((id, scene.honest.slots[id][row].into()))
    }
}

fn told(cells: &[(usize, usize, i64)]) -> Vec<Lie> {
    let lie = |&(slot, at, v): &(usize, usize, i64)| Lie {
        of: Cells::Slot(slot),
        at,
        value: Told::Just(small(v) as i32),
    };
    cells.iter().map(lie).collect()
}

/// A root or a quotient that is one modulo p only.
fn activations(scene: &Scene, table: usize, row: usize) -> Option<Vec<Recipe>> {
    let t = &scene.circuit.tables[table];
    let get = at_row(scene, &t.name, row);
    let ((s, root), (rest, _)) = (get("s")?, get("s.rest")?);
    let c = match &t.columns[0].source {
        Source::Slot { slot, .. } => i64::from(scene.honest.slots[*slot][row]),
        _ => return None,
    };
    let mut out = vec![];
    let fits = |s: i64, left: i64| left < 1 << 17 && (0..1 << 17).contains(&(2 * s - left));
    let other = (40_960..1i64 << 17).filter(|s| fits(*s, (c * c + (1 << 18) - s * s).rem_euclid(P)));
    let other = other.take(12);
    out.extend(other.map(|v| {
        (
            "lookup s".into(),
            told(&[(s, row, v), (rest, row, c * c + (1 << 18) - v * v)]),
        )
    }));
    if let (Some((q, _)), Some((rest, honest))) = (get("q"), get("q.rest")) {
        let half = inverse(2 * root);
        let quotients = (0..2 * root)
            .filter(|r| *r != honest)
            .map(|r| (r, small((4096 * (root + c) - r) % P * half)));
        let near = quotients.filter(|(_, v)| small(c * v).abs() < 1 << 26).take(12);
        out.extend(near.map(|(r, v)| ("lookup q".into(), told(&[(q, row, v), (rest, row, r)]))));
    }
    Some(out)
}

/// Two channels whose high limbs are no integers, with sums that fit all the same.
fn limbs(scene: &Scene, table: usize) -> Option<Recipe> {
    let t = &scene.circuit.tables[table];
    let (prefix, _) = t.name.split_once(".limbs.")?;
    let name = format!("{prefix}.scale");
    let Source::Slot { slot: x, .. } = t.columns[0].source else {
        return None;
    };
    let lo = scene
        .circuit
        .slots
        .iter()
        .position(|s| s.name == format!("{}.lo", t.name))?;
    let steps = 1 << scene.circuit.log_steps;
    let part = inverse(512);
    for step in (0..steps).filter(|_| scene.honest.slots[lo].len() >= 2 * steps) {
        let scale = Scale {
            scene,
            table: &name,
            step,
        };
        let [p0, p1, p2] = ["P0", "P1", "P2"].map(|n| scale.get(n));
        let limit = scale.top("b1") + 1;
        let top = (1i64 << 16) * (scale.top("y0") + 1);
        let cell = |channel: usize| channel * steps + step;
        let terms = |channel: usize, low: i64| {
            let high = (i64::from(scene.honest.slots[x][cell(channel)]) - low) % P * part % P;
            [low * low, low * high % P, high * high % P]
        };
        let honest = |channel: usize| terms(channel, scene.honest.slots[lo][cell(channel)].into());
        let (a, b) = (honest(0), honest(1));
        let others: Vec<[i64; 3]> = (0..512).map(|v| terms(1, v)).collect();
        for first in 0..512 {
            let one = terms(0, first);
            for (second, two) in others.iter().enumerate() {
                let [p0, p1, p2]: [i64; 3] =
                    std::array::from_fn(|i| small([p0, p1, p2][i] - a[i] - b[i] + one[i] + two[i]));
                let base = small((p0 >> 10) + p1 + 16);
                let high = small(4 * p2 + (base >> 6));
                let changed = (one, *two) != (a, b) && p0 >= 0;
                if changed
                    && (-limit..limit).contains(&(base >> 6))
                    && (1..top).contains(&high)
                    && i64::from(p2 as i32) == p2
                {
                    return Some((
                        "lookup hi".into(),
                        told(&[(lo, cell(0), first), (lo, cell(1), second as i64)]),
                    ));
                }
            }
        }
    }
    None
}

/// What is rounded and saturated: not saturated where it should be; saturated where it should not; a remainder, and so a value, that is another in the field.
fn rounded(scene: &Scene, table: usize) -> Vec<Recipe> {
    let name = &scene.circuit.tables[table].name;
    let mut out = vec![];
    for (a, slot) in scene.circuit.slots.iter().enumerate() {
        let Some(what) = slot
            .name
            .strip_suffix(".a")
            .and_then(|n| n.strip_prefix(&format!("{name}.")))
        else {
            continue;
        };
        let get = at_row(scene, name, 0);
        let (u, _) = get(what).unwrap();
        let (values, over) = (&scene.honest.slots[u], &scene.honest.slots[a]);
        let (_, limit) = scene.circuit.slots[u].range;
        let value = |row: usize| (i64::from(values[row]), i64::from(over[row]));
        let mut beyond: Vec<usize> = (0..values.len()).filter(|row| over[*row] != 0).collect();
        beyond.sort_by_key(|row| over[*row]);
        for row in beyond.into_iter().take(12) {
            let (v, more) = value(row);
            out.push((
                format!("lookup {what}"),
                told(&[(u, row, v + more * v.signum()), (a, row, 0)]),
            ));
        }
        let within: Vec<usize> = (0..values.len()).filter(|row| over[*row] == 0).collect();
        for &row in within.iter().rev().take(4) {
            for end in [limit, -limit] {
                out.push((
                    format!("lookup {what}.a"),
                    told(&[(u, row, end), (a, row, (value(row).0 - end) * end.signum())]),
                ));
            }
        }
        if let Some((r, _)) = get(&format!("{what}.r")) {
            let (_, top) = scene.circuit.slots[r].range;
            for &row in within.iter().rev().step_by(within.len().div_ceil(8).max(1)) {
                let old = i64::from(scene.honest.slots[r][row]);
                let step = (top as usize / 32).max(1);
                for new in (0..=top).step_by(step).filter(|r| *r != old) {
                    let other = small((value(row).0 + (old - new) * inverse(top + 1) % P) % P);
                    out.push((format!("lookup {what}"), told(&[(u, row, other), (r, row, new)])));
                }
            }
        }
    }
    out
}

/// The limbs of pow2neg that follow from f, S1 and S0, perhaps with another k or U0, all modulo p; None if none fit.
fn power(f: i64, s1: i64, s0: i64, k: Option<i64>, u0: Option<i64>) -> Option<[(&'static str, i64); 8]> {
    let k = k.unwrap_or(-((-327 * (s0 - f)) >> 13));
    let u = small(f * s1 % P);
    let u0 = u0.unwrap_or(u.rem_euclid(1 << 13));
    let u1 = small((u - u0) % P * inverse(1 << 13));
    let inner = small((2616 * u0 + (f + (1 << 15)) * k - 12572 * (s0 - f)) % P);
    let inner = [inner, inner + P, inner - P]
        .into_iter()
        .find(|v| (-20480..12288).contains(&(v >> 16)))?;
    let high = (-653 * f + (76802 << 14) - 11264 * s1 + 327 * u1 + (inner >> 16)).rem_euclid(P);
    (1 << 15..(1 << 15) + (1 << 13)).contains(&(high >> 15)).then_some([
        ("S1", s1),
        ("S0", s0),
        ("k", k),
        ("U1", u1),
        ("U0", u0),
        ("carry", inner >> 16),
        ("carry.rest", inner & 65535),
        ("J", high >> 15),
    ])
}

/// Of the weights: limbs in a row of a block of the vocabulary that are no integers, or too large.
fn weights(scene: &Scene, table: usize, row: usize, wanted: &dyn Fn(&str) -> bool) -> Option<Vec<Recipe>> {
    let t = &scene.circuit.tables[table];
    let get = at_row(scene, &t.name, row);
    let cells = |list: &[(&str, i64)]| {
        told(
            &list
                .iter()
                .map(|(n, v)| (get(n).unwrap().0, row, *v))
                .collect::<Vec<_>>(),
        )
    };
    let [(_, f), (_, int), (_, s1), (_, s0), (_, j), (_, z), (_, d)] = [
        get("f")?,
        get("I")?,
        get("S1")?,
        get("S0")?,
        get("J")?,
        get("z")?,
        get("d")?,
    ];
    let mut out: Vec<Recipe> = vec![];
    let (square, ceil) = (f * (f + 1), -((-327 * (s0 - f)) >> 13));
    let in_k = |s0: i64| (-2048..6144).contains(&-((-327 * (s0 - f)) >> 13));
    let mut limbs = |target: &str, found: &mut dyn Iterator<Item = [(&'static str, i64); 8]>| {
        if wanted(target) {
            out.extend(found.take(3).map(|list| (target.to_owned(), cells(&list))));
        }
    };
    let in_u = |list: &[(&str, i64); 8]| (-1 << 16..1 << 16).contains(&list[3].1);
    let other_s0 = (0..1i64 << 16).filter(|v| *v != s0 && in_k(*v));
    limbs(
        "lookup S1",
        &mut other_s0.filter_map(|v| power(f, small((square - v) % P * inverse(1 << 16)), v, None, None).filter(in_u)),
    );
    let other_s1 = [1, -1].map(|m| (s1 + m, s0 - (m << 16)));
    let other_s1 = other_s1
        .into_iter()
        .filter(|(s1, s0)| (0..1 << 14).contains(s1) && in_k(*s0));
    limbs(
        "lookup S0",
        &mut other_s1.filter_map(|(s1, s0)| power(f, s1, s0, None, None).filter(in_u)),
    );
    let other_k = (0..1i64 << 13)
        .map(|v| small((327 * (s0 - f) + v) % P * inverse(1 << 13)))
        .filter(|k| *k != ceil);
    limbs("lookup k", &mut other_k.filter_map(|k| power(f, s1, s0, Some(k), None)));
    let other_u = (0..1i64 << 13).filter(|u| *u != (f * s1).rem_euclid(1 << 13));
    limbs(
        "lookup U1",
        &mut other_u.filter_map(|u| power(f, s1, s0, None, Some(u))),
    );
    // 2^15 · 65024 = −1.
    for k in [65024, -65024] {
        out.push(("lookup J".into(), cells(&[("J", j + k)])));
    }
    let exponent = |whole: i64, f: i64| {
        let bit = |i: i64| (whole >> i) & 1;
        cells(&[
            ("I", whole),
            ("f", f),
            ("I0", bit(0)),
            ("I1", bit(1)),
            ("I2", bit(2)),
            ("I3", bit(3)),
        ])
    };
    for m in [1, -1] {
        let (f, int) = (f + (m << 16), int - m);
        let square = f * (f + 1) % P;
        if (0..17).contains(&int) && square < 1 << 30 {
            if let Some(list) = power(f, square >> 16, square & 65535, None, None).filter(in_u) {
                out.push(("lookup f".into(), [exponent(int, f), cells(&list)].concat()));
            }
        }
    }
    // Another distance or another carried limb, and the exponent that follows modulo p.
    let rest = t.lookups.iter().find(|l| l.name == "e.rest");
    let linear = |c: &Constraint| {
        c.terms
            .iter()
            .filter_map(|(k, cols)| Some((*k, *cols.first()?)))
            .collect()
    };
    let (e, shift): (Vec<(i64, usize)>, u32) = match rest {
        Some(lookup) => (lookup.value.terms.clone(), circuit_bits(lookup)),
        None => (linear(t.constraints.iter().find(|c| c.name == "e")?), 0),
    };
    let e_of = |d: i64, x: i64| {
        let whole = (e[0].0 * d + x).rem_euclid(P) >> shift;
        (whole < 17 << 16).then(|| exponent(whole >> 16, (whole & 65535) - (1 << 15)))
    };
    if let Some(&(1, column)) = e.get(3) {
        let name = t.columns[column].name.strip_prefix(&format!("{}.", t.name))?;
        let rest = t
            .lookups
            .iter()
            .find(|l| l.name == format!("{name}.rest"))
            .filter(|l| l.value.terms.len() == 2)?;
        let (m, x) = (circuit_bits(rest), get(name)?.1);
        let v = rest.value.terms[0].0 * d - (x << m);
        let others = (0..1i64 << m)
            .filter(|o| *o != v)
            .map(|o| small((x + (v - o) % P * inverse(1 << m)) % P));
        let target = format!("lookup {name}");
        if wanted(&target) {
            let found = others.filter_map(|x| Some([e_of(d, x)?, cells(&[(name, x)])].concat()));
            out.extend(found.take(3).map(|lies| (target.clone(), lies)));
        }
        for x in [x + 1, x - 1] {
            out.extend(e_of(d, x).map(|lies| (format!("{target}.rest"), [lies, cells(&[(name, x)])].concat())));
        }
    } else if z == 1 {
        let Source::Sum(logit) = t.columns[0].source else {
            return None;
        };
        let top = scene.circuit.slots.iter().position(|s| s.name == "head.steps.M")?;
        let step = row & ((1 << scene.circuit.log_steps) - 1);
        let distance = i64::from(scene.honest.slots[top][step]) - i64::from(scene.honest.sums[logit][row]);
        out.extend(
            e_of(distance, 0).map(|lies| ("lookup d".into(), [lies, cells(&[("d", distance), ("z", 0)])].concat())),
        );
    }
    Some(out)
}

/// The width that a lookup in a plain range of bits has.
fn circuit_bits(lookup: &crate::ir::Lookup) -> u32 {
    lookup.range.constant as u32
}

/// Step 0, for which no token is claimed: a threshold that one candidate less reaches, and a candidate that counts twice.
fn candidates(scene: &Scene) -> Option<Recipe> {
    let steps = 1 << scene.circuit.log_steps;
    let id = |name: &str| scene.circuit.slots.iter().position(|s| s.name == name);
    let (theta, beta) = (id("head.steps.theta")?, id("head.steps.beta")?);
    let least = i64::from(scene.honest.slots[theta][0]);
    let blocks = scene
        .circuit
        .tables
        .iter()
        .filter(|t| t.name.starts_with("head.") && t.name != "head.steps");
    for table in blocks {
        let Source::Sum(logit) = table.columns[0].source else {
            continue;
        };
        for row in (0..1 << table.log).step_by(steps) {
            let get = at_row(scene, &table.name, row);
            let [(c, kept), (_, d), (_, z), (_, f), (_, int), (_, j)] =
                ["c", "d", "z", "f", "I", "J"].map(|n| get(n).unwrap());
            if kept == 1 && d > 0 && z == 0 && i64::from(scene.honest.sums[logit][row]) > least {
                let twice = 2 * ((1 << 17) + 1 - j - f);
                let weight = [
                    (get("w")?.0, row, twice >> (int + 1)),
                    (get("w.rest")?.0, row, twice & ((2 << int) - 1)),
                ];
                let all = [
                    &[(theta, 0, least + 1), (beta, 0, (1 << 17) - 1), (c, row, 2)],
                    &weight[..],
                ]
                .concat();
                return Some(("constraint c is 0 or 1".into(), told(&all)));
            }
        }
    }
    None
}

/// Of the choice of tokens: exponents beyond the last, marks that are no bits, limbs that are no integers.
fn heads(scene: &Scene) -> Vec<Recipe> {
    let mut out = vec![];
    let steps = 1 << scene.circuit.log_steps;
    let all = |name: &str| {
        let id = scene.circuit.slots.iter().position(|s| s.name == name)?;
        Some((id, &scene.honest.slots[id]))
    };
    let blocks = scene
        .circuit
        .tables
        .iter()
        .filter(|t| t.name.starts_with("head.") && t.name != "head.steps");
    for table in blocks {
        let Some(Source::Sum(logit)) = table.columns.first().map(|c| &c.source) else {
            continue;
        };
        let Some((_, top)) = all("head.steps.M") else { continue };
        let far = table
            .constraints
            .iter()
            .find(|c| c.name == "where far, d is the largest")
            .map_or(0, |c| -c.terms.iter().find(|x| x.1.len() == 1).unwrap().0);
        for row in 0..1 << table.log {
            let get = at_row(scene, &table.name, row);
            let id = |name: &str| get(name).map_or(usize::MAX, |v| v.0);
            let (Some((z, near)), Some((_, exponent))) = (get("z"), get("I")) else {
                continue;
            };
            let distance = i64::from(top[row % steps]) - i64::from(scene.honest.sums[*logit][row]);
            if near == 1 && distance > far {
                out.push((
                    "constraint I is at most 16".into(),
                    told(&[(id("d"), row, distance), (z, row, 0)]),
                ));
            }
            if near == 0 {
                out.push(("lookup a".into(), told(&[(id("d"), row, far), (z, row, 1)])));
                if distance == far {
                    out.push(("lookup a".into(), told(&[(z, row, 1)])));
                }
                if let (Some((_, 0)), 1..=15) = (get("c"), exponent) {
                    let power = (16 + 65535 * exponent) % P * inverse(16);
                    let mut cells = vec![(id("2^(I - I mod 4)"), row, power), (id("2^I"), row, power)];
                    cells.extend((0..4).map(|i| (id(&format!("I{i}")), row, 0)));
                    out.push(("constraint the top bit of I".into(), told(&cells)));
                }
            }
            if distance == far {
                let [j, f, i] = ["J", "f", "I"].map(|n| get(n).unwrap().1);
                let twice = 2 * ((1 << 17) + 1 - j - f);
                out.push((
                    "constraint z is 0 or 1".into(),
                    told(&[
                        (z, row, -1),
                        (id("w"), row, twice >> (i + 1)),
                        (id("w.rest"), row, twice & ((2 << i) - 1)),
                    ]),
                ));
            }
            if let (Some((h, 1)), true) = (get("h"), row + steps < 1 << table.log) {
                out.push((
                    "constraint h is 0 or 1".into(),
                    told(&[(h, row, 2), (h, row + steps, -1)]),
                ));
            }
        }
    }
    if let Some((t1, _)) = all("head.steps.t1") {
        // 2^10 · 2080768 = p − 1.
        out.push((
            "lookup t1".into(),
            told(&[(t1, 0, 2_080_768), (all("head.steps.s0").unwrap().0, 0, 1)]),
        ));
    }
    let sum = |name: &str| scene.circuit.sums.iter().position(|s| s.name == name);
    let say = |id: usize, v: i64| Lie {
        of: Cells::Sum(id),
        at: 0,
        value: Told::Just(v as i32),
    };
    if let (Some(id), Some((theta, values))) = (sum("head.steps.candidates"), all("head.steps.theta")) {
        let (beta, _) = all("head.steps.beta").unwrap();
        let more = told(&[(theta, 0, i64::from(values[0]) - 300), (beta, 0, 0)]);
        out.push((String::new(), more.clone()));
        out.push((
            String::new(),
            [more, vec![say(id, scene.honest.sums[id][0].into())]].concat(),
        ));
    }
    if let Some(id) = sum("head.steps.maxima") {
        for (h, values) in scene
            .circuit
            .slots
            .iter()
            .zip(&scene.honest.slots)
            .enumerate()
            .filter(|(_, (s, _))| s.name.ends_with(".h") && s.name.starts_with("head."))
            .map(|(id, (_, v))| (id, v))
        {
            if let Some(row) = (0..values.len()).step_by(steps).find(|row| values[*row] == 1) {
                out.push((String::new(), [told(&[(h, row, 0)]), vec![say(id, 1)]].concat()));
            }
        }
    }
    out
}

fn recipes(scene: &Scene, table: usize, wanted: &dyn Fn(&str) -> bool) -> Vec<Recipe> {
    let t = &scene.circuit.tables[table];
    let steps = 1 << scene.circuit.log_steps;
    let mut out = rounded(scene, table);
    for row in (0..1 << t.log)
        .take(24)
        .filter(|_| wanted("lookup s") || wanted("lookup q"))
    {
        out.extend(activations(scene, table, row).into_iter().flatten());
    }
    if wanted("lookup hi") {
        out.extend(limbs(scene, table));
    }
    if t.name == "head.steps" {
        out.extend(heads(scene));
        out.extend(candidates(scene));
    } else if t.name.starts_with("head.") {
        let spread = (0..1usize << t.log).step_by((1usize << t.log).div_ceil(128));
        out.extend(spread.filter_map(|row| weights(scene, table, row, wanted)).flatten());
    }
    if t.name.ends_with(".scale") && t.name.contains("norm") {
        for step in 0..steps {
            let scale = Scale {
                scene,
                table: &t.name,
                step,
            };
            out.extend(scale.lies());
        }
    }
    out
}

// ---- the search --------------------------------------------------------------------------------------------------------------------------------

/// Notes the kind of the part that alone fails, if one does and it is new.
fn note(caught: &mut Caught, scene: &Scene, w: &Witness, how: &str) -> Option<Part> {
    let part = scene.only(w)?;
    let kind = scene.kind(part);
    caught.entry(kind).or_insert_with_key(|kind| {
        assert!(scene.without(part, w), "the circuit without {kind} accepts");
        format!("{} | {how}", scene.name)
    });
    Some(part)
}

/// Searches in parallel, each with what is known at the start: what is found does not depend on the order.
fn search<T: Sync>(caught: &mut Caught, list: &[T], one: impl Fn(&T, &mut Caught) + Sync) {
    let found: Vec<Caught> = list
        .par_iter()
        .map(|item| {
            let mut own = caught.clone();
            one(item, &mut own);
            own
        })
        .collect();
    for own in found {
        for (kind, how) in own {
            caught.entry(kind).or_insert(how);
        }
    }
}

/// What is told, for the list of what was caught.
fn said(scene: &Scene, lies: &[Lie]) -> String {
    let changed = lies.iter().filter_map(|lie| {
        let (name, old) = match lie.of {
            Cells::Slot(id) => (&scene.circuit.slots[id].name, scene.honest.slots[id][lie.at]),
            Cells::Sum(id) => (&scene.circuit.sums[id].name, scene.honest.sums[id][lie.at]),
        };
        let new = match lie.value {
            Told::Just(v) => v,
            Told::Plus(add) => old.wrapping_add(add),
        };
        (old != new).then(|| format!("{name}[{}] {old} → {new}", lie.at))
    });
    changed.collect::<Vec<_>>().join(", ")
}

/// Every cell and sum that the tables with wanted parts see, by itself.
fn single(scene: &Scene, caught: &mut Caught, listed: &Listed, seed: u64) {
    let wanted = scene.wanted(caught, listed);
    let tables: BTreeSet<usize> = wanted.values().flatten().map(|p| scene.table_of(*p)).collect();
    let mut cells: BTreeSet<(bool, usize)> = BTreeSet::new();
    for &t in &tables {
        for column in &scene.circuit.tables[t].columns {
            match column.source {
                Source::Slot { slot, .. } if scene.free.contains(&scene.circuit.slots[slot].oracle) => {
                    cells.insert((false, slot));
                }
                Source::Sum(id) => {
                    cells.insert((true, id));
                }
                _ => {}
            }
        }
    }
    let cells: Vec<(bool, usize)> = cells.into_iter().collect();
    search(caught, &cells, |&(sum, id), caught| {
        let random = &mut Random(seed + id as u64);
        let (of, log, (lo, hi)) = match sum {
            true => (
                Cells::Sum(id),
                scene.circuit.tables[scene.circuit.sums[id].table].log,
                (-1, 1),
            ),
            false => (
                Cells::Slot(id),
                scene.circuit.slots[id].log,
                scene.circuit.slots[id].range,
            ),
        };
        let len = 1usize << log;
        let wide = hi.saturating_sub(lo).clamp(1, 1 << 20);
        for i in 0..6 {
            // Last steps first: nothing comes after.
            let at = if i % 2 == 0 {
                len - 1 - (random.below(len / 8 + 1) * 8).min(len - 1)
            } else {
                random.below(len)
            };
            let add = [1, -1, wide + 1, 1 + random.below(wide as usize) as i64, -wide - 1, 1][i] as i32;
            let lies = [Lie {
                of,
                at,
                value: Told::Plus(add),
            }];
            if let Some(w) = scene.lie(&lies) {
                note(caught, scene, &w, &said(scene, &lies));
            }
        }
    });
}

fn by_recipe(scene: &Scene, caught: &mut Caught, listed: &Listed) {
    let wanted = scene.wanted(caught, listed);
    let tables: BTreeSet<usize> = wanted.values().flatten().map(|p| scene.table_of(*p)).collect();
    let mut tables: Vec<usize> = tables.into_iter().collect();
    // Some recipes of a table break parts of another.
    tables.extend(
        scene
            .circuit
            .tables
            .iter()
            .position(|t| t.name == "head.steps")
            .filter(|t| !tables.contains(t) && wanted.keys().any(|k| k.starts_with("head."))),
    );
    search(caught, &tables, |&t, caught| {
        let name = blank(&scene.circuit.tables[t].name);
        let blocks = if name == "head.steps" {
            "head.#".to_owned()
        } else {
            name.clone()
        };
        let open = |caught: &Caught, target: &str| {
            let kinds = [format!("{name}: {target}"), format!("{blocks}: {target}")];
            kinds
                .iter()
                .any(|kind| wanted.contains_key(kind) && !caught.contains_key(kind))
        };
        let first = caught.clone();
        for (target, lies) in recipes(scene, t, &|target| open(&first, target)) {
            let symmetric = ["", " 1", " 2"]
                .iter()
                .any(|nth| open(caught, &format!("{target}{nth}")));
            if target.is_empty() || symmetric {
                if let Some(w) = scene.lie(&lies) {
                    note(caught, scene, &w, &said(scene, &lies));
                }
            }
        }
    });
}

/// Cells of one row together. `thorough`: with many values, where a table has few columns. A kind that `tried` says was searched for twice is left.
fn rows(scene: &Scene, caught: &mut Caught, listed: &Listed, tried: &mut BTreeMap<String, usize>, thorough: bool) {
    let (many, widest) = if thorough { (120, 20) } else { (0, usize::MAX) };
    let mut wanted: Vec<(String, Part)> = vec![];
    for (kind, parts) in scene.wanted(caught, listed) {
        let part = parts.into_iter().find(|p| !matches!(p, Part::Sum(_) | Part::Link(_)));
        let part = part.filter(|p| scene.circuit.tables[scene.table_of(*p)].columns.len() <= widest);
        let times = tried.entry(kind.clone()).or_default();
        if let Some(part) = part.filter(|_| *times < 2) {
            *times += usize::from(thorough);
            wanted.push((kind, part));
        }
    }
    search(caught, &wanted, |&(ref kind, part), caught| {
        let (table, random) = (scene.table_of(part), &mut Random(1));
        let rows = 1usize << scene.circuit.tables[table].log;
        let overflows = overflowing(scene, table);
        for back in 0..rows.min(3) {
            // Last steps first: nothing comes after.
            let last = if back < rows / 8 {
                rows - 1 - 8 * back
            } else {
                random.below(rows)
            };
            let at = overflows
                .get(back / 2)
                .copied()
                .filter(|_| back % 2 == 1)
                .unwrap_or(last);
            for lies in lies_in_a_row(scene, part, at, many, random).iter().take(12) {
                if let Some(w) = scene.lie(lies) {
                    note(caught, scene, &w, &said(scene, lies));
                }
                if caught.contains_key(kind) {
                    return;
                }
            }
        }
    });
}

/// Rows in which something is saturated: those beyond both ends in turn.
fn overflowing(scene: &Scene, table: usize) -> Vec<usize> {
    let name = &scene.circuit.tables[table].name;
    let slots = scene.circuit.slots.iter().enumerate();
    let mut out = vec![];
    for (id, slot) in slots.filter(|(_, s)| s.name.starts_with(&format!("{name}.")) && s.name.ends_with(".a")) {
        let of = scene
            .circuit
            .slots
            .iter()
            .position(|s| s.name == slot.name[..slot.name.len() - 2])
            .unwrap();
        let rows = |sign: i32| {
            let values = scene.honest.slots[id]
                .iter()
                .zip(scene.honest.slots[of].iter())
                .enumerate();
            values
                .filter(move |(_, (a, u))| **a != 0 && **u * sign > 0)
                .map(|(row, _)| row)
        };
        let (mut low, mut high) = (rows(-1), rows(1));
        loop {
            let pair = [low.next(), high.next()];
            if pair == [None; 2] {
                break;
            }
            out.extend(pair.into_iter().flatten());
        }
    }
    out
}

fn links(scene: &Scene, caught: &mut Caught) {
    for &id in &scene.circuit.links {
        let mut w = scene.honest.clone();
        let out = scene.circuit.sums[id].carries[0].slot;
        let cell = &mut Arc::make_mut(&mut w.slots[out])[0];
        *cell += if *cell > 0 { -1 } else { 1 };
        assert_eq!(
            note(caught, scene, &w, &format!("{}[0]", scene.circuit.slots[out].name)),
            Some(Part::Link(id))
        );
    }
}

/// A scene is made when its turn comes.
type Make = Box<dyn FnOnce() -> Scene>;

fn scenes() -> Vec<Make> {
    let mut out: Vec<Make> = vec![
        Box::new(|| registration(6, |_| ())),
        Box::new(norm_of_many),
        Box::new(norm_of_few),
        Box::new(gate_alone),
    ];
    for (name, temperature, shift, top_k, wrong) in [
        ("head", 94548, 16, 0, None),
        ("head, top-k", 94548, 16, 3, None),
        ("head, steep", 65536, 10, 0, None),
        ("head, two limbs", 65536, 16, 0, None),
        ("head, wrong", 94548, 16, 0, Some((5, 0))),
        ("head, wrong", 94548, 16, 0, Some((5, 8))),
    ] {
        out.push(Box::new(move || head_alone(name, temperature, shift, top_k, wrong)));
    }
    for (i, plan) in PLANS.iter().enumerate() {
        out.push(Box::new(move || scene(plan, i % 2 == 0)));
    }
    out
}

const PLANS: &[Plan] = &[
    Plan {
        name: "greedy",
        seed: 1,
        hostile: false,
        shape: |s| (s.activation, s.gate, s.norm_mantissa) = (Activation::Silu, Activation::Silu, 8),
        temperature: 0,
        top_k: 0,
        wrong: None,
    },
    Plan {
        name: "greedy, wrong",
        seed: 1,
        hostile: false,
        shape: |s| (s.activation, s.gate, s.norm_mantissa) = (Activation::Silu, Activation::Silu, 8),
        temperature: 0,
        top_k: 0,
        wrong: Some((4, 2)),
    },
    Plan {
        name: "squareplus",
        seed: 2,
        hostile: false,
        shape: |s| {
            (s.activation, s.gate, s.norm_mantissa, s.k) =
                (Activation::Squareplus, Activation::Squareplus, 0, vec![vec![8, 9, 11]])
        },
        temperature: 65536,
        top_k: 0,
        wrong: None,
    },
    Plan {
        name: "top-k",
        seed: 3,
        hostile: false,
        shape: |s| {
            (s.activation, s.gate, s.norm_mantissa, s.k) =
                (Activation::Silu, Activation::Silu, 8, vec![vec![12, 9, 10]])
        },
        temperature: 45875,
        top_k: 2,
        wrong: None,
    },
    Plan {
        name: "hostile",
        seed: 4,
        hostile: true,
        shape: |s| {
            (s.activation, s.gate, s.norm_mantissa, s.embed_mul) = (Activation::Silu, Activation::Silu, 8, 1023);
            (s.n_layers, s.k) = (2, vec![vec![8, 9, 10]; 2]);
            (s.in_proj_shift, s.out_proj_shift) = (vec![8, 8], vec![8, 22]);
        },
        temperature: 0,
        top_k: 0,
        wrong: None,
    },
    Plan {
        name: "wide",
        seed: 7,
        hostile: false,
        shape: |s| {
            (s.activation, s.gate, s.norm_mantissa, s.d_model, s.vocab_size) =
                (Activation::Silu, Activation::Silu, 8, 48, 9)
        },
        temperature: 0,
        top_k: 0,
        wrong: None,
    },
    Plan {
        name: "wide shift",
        seed: 5,
        hostile: false,
        shape: |s| {
            (s.activation, s.gate, s.norm_mantissa, s.in_proj_shift) = (Activation::Silu, Activation::Silu, 8, vec![14])
        },
        temperature: 65536,
        top_k: 0,
        wrong: None,
    },
];

#[test]
fn every_part_of_the_circuits_is_needed() {
    let exceptions = std::fs::read_to_string(EXCEPTIONS).unwrap();
    let entries = exceptions.lines().filter(|l| !l.starts_with('#'));
    let listed: Listed = entries
        .filter_map(|l| l.split_once(" | "))
        .map(|(kind, why)| (kind.into(), why.into()))
        .collect();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            usual(info)
        }
    }));
    let (mut caught, mut kinds, tried) = (Caught::new(), BTreeSet::new(), RefCell::default());
    // What is caught by hand is not searched for; the scenes are searched last.
    let mut all = scenes();
    for (scene, lies) in by_hand::scenes() {
        for (kind, lies) in lies {
            let w = scene.lie(&lies).expect("a run");
            let failing = failures(&scene.circuit, &w.slots, Some(&w.sums)).unwrap();
            let failing: Vec<String> = failing.into_iter().map(|(part, _)| scene.kind(part)).collect();
            assert_eq!(failing, [kind], "{}: {}", scene.name, said(&scene, &lies));
            note(&mut caught, &scene, &w, &said(&scene, &lies));
        }
        all.push(Box::new(|| scene));
    }
    println!("{} kinds caught by hand", caught.len());
    for (i, make) in all.into_iter().enumerate() {
        let (scene, seed) = (&make(), 1000 * i as u64);
        let honest = failures(&scene.circuit, &scene.honest.slots, Some(&scene.honest.sums)).unwrap();
        kinds.extend(scene.parts().into_iter().map(|part| scene.kind(part)));
        if scene.name.contains("wrong") {
            note(&mut caught, scene, &scene.honest, "another token is claimed");
        } else {
            assert!(honest.is_empty(), "{}: {honest:?}", scene.name);
            let started = std::time::Instant::now();
            let mut laps = vec![];
            let phases: [&dyn Fn(&mut Caught); 5] = [
                &|caught| links(scene, caught),
                &|caught| single(scene, caught, &listed, seed),
                &|caught| by_recipe(scene, caught, &listed),
                &|caught| rows(scene, caught, &listed, &mut tried.borrow_mut(), false),
                &|caught| rows(scene, caught, &listed, &mut tried.borrow_mut(), true),
            ];
            for phase in phases {
                phase(&mut caught);
                laps.push(format!("{:.1} s: {}", started.elapsed().as_secs_f64(), caught.len()));
            }
            println!(
                "{}: {} parts, {} kinds so far; caught after {laps:?}",
                scene.name,
                scene.parts().len(),
                kinds.len()
            );
        }
    }
    for (kind, how) in &caught {
        println!("{kind} | {how}");
    }
    println!("{} of {} kinds caught", caught.len(), kinds.len());
    let missed: Vec<&String> = kinds
        .iter()
        .filter(|k| !caught.contains_key(*k) && !listed.contains_key(*k))
        .collect();
    let stale: Vec<&String> = listed
        .keys()
        .filter(|k| caught.contains_key(*k) || !kinds.contains(*k))
        .collect();
    assert!(missed.is_empty(), "neither caught nor listed: {missed:#?}");
    assert!(stale.is_empty(), "listed, but caught or no longer there: {stale:#?}");
}
