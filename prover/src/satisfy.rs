//! Whether values satisfy a circuit, by the definitions of `ir.rs` and nothing else: slow, for tests. It shares no code with what makes the values.

use crate::circuit::values::Values;
use crate::ir::{Bind, Circuit, Factor, Kernel, Linear, Oracle, Public, Source, Sum, SumId, Tokens, P};
use crate::witness::Witness;

/// One of the things that a circuit demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Of a table, by number.
    Constraint(usize, usize),
    Lookup(usize, usize),
    /// A sum is zero.
    Link(SumId),
    /// A column that is a sum has the values of that sum.
    Sum(SumId),
}

/// The first part that fails, and the row.
pub fn satisfied(circuit: &Circuit, w: &Witness) -> Result<(), String> {
    first(circuit, failures(circuit, &w.slots, Some(&w.sums))?)
}

/// As `satisfied`, with the sums that these slots have.
pub fn slots_satisfy(circuit: &Circuit, slots: &[Values]) -> Result<(), String> {
    first(circuit, failures(circuit, slots, None)?)
}

fn first(circuit: &Circuit, failures: Vec<(Part, usize)>) -> Result<(), String> {
    match failures.first() {
        None => Ok(()),
        Some((part, row)) => Err(format!("{} fails in row {row}", part.name(circuit))),
    }
}

impl Part {
    pub fn name(self, circuit: &Circuit) -> String {
        let of = |table: usize| &circuit.tables[table];
        match self {
            Part::Constraint(t, i) => format!("{}: {}", of(t).name, of(t).constraints[i].name),
            Part::Lookup(t, i) => format!("{}: {}", of(t).name, of(t).lookups[i].name),
            Part::Link(id) | Part::Sum(id) => circuit.sums[id].name.clone(),
        }
    }
}

/// Every part that fails, with the first row where it does. `sums`: the values that the columns which are sums are said to have; otherwise what they are.
pub fn failures(circuit: &Circuit, slots: &[Values], sums: Option<&[Values]>) -> Result<Vec<(Part, usize)>, String> {
    let checker = Checker { circuit, slots };
    for (slot, values) in circuit.slots.iter().zip(slots) {
        if values.len() != 1 << slot.log {
            return Err(format!("{}: {} values", slot.name, values.len()));
        }
        // The ranges of what is committed elsewhere are somebody else's to prove; here they are a premise.
        let outside = values
            .iter()
            .find(|v| !(slot.range.0..=slot.range.1).contains(&i64::from(**v)));
        if let (true, Some(v)) = (slot.oracle != Oracle::Trace, outside) {
            return Err(format!("{}: {v} is not in {:?}", slot.name, slot.range));
        }
    }
    let mut out = vec![];
    let mut fails = |part: Part, rows: usize, holds: &dyn Fn(usize) -> bool| {
        out.extend((0..rows).find(|row| !holds(*row)).map(|row| (part, row)));
    };
    let true_sums: Vec<Vec<i64>> = circuit.sums.iter().map(|sum| checker.sum(sum)).collect();
    for (id, table) in circuit.tables.iter().enumerate() {
        let rows = 1 << table.log;
        let column = |source: &Source| match (source, sums) {
            (Source::Sum(sum), Some(said)) => said[*sum].iter().map(|v| i64::from(*v)).collect(),
            (Source::Sum(sum), None) => true_sums[*sum].clone(),
            _ => checker.column(id, source),
        };
        let columns: Vec<Vec<i64>> = table.columns.iter().map(|c| column(&c.source)).collect();
        for (i, constraint) in table.constraints.iter().enumerate() {
            fails(Part::Constraint(id, i), rows, &|row| {
                let value = constraint.terms.iter().fold(0, |sum, (c, cols)| {
                    sum + cols.iter().fold(c % P, |product, &col| product * columns[col][row] % P)
                });
                value % P == 0
            });
        }
        let linear = |form: &Linear, row: usize| {
            let sum = form
                .terms
                .iter()
                .fold(form.constant, |sum, &(c, col)| (sum + c * columns[col][row]) % P);
            halved(sum.rem_euclid(P), form.shift)
        };
        for (i, lookup) in table.lookups.iter().enumerate() {
            fails(Part::Lookup(id, i), rows, &|row| {
                let size = circuit
                    .ranges
                    .get(linear(&lookup.range, row) as usize)
                    .copied()
                    .unwrap_or(0);
                lookup.selector.iter().any(|&col| columns[col][row] == 0) || linear(&lookup.value, row) < size as i64
            });
        }
    }
    for (id, values) in true_sums.iter().enumerate() {
        if circuit.links.contains(&id) {
            fails(Part::Link(id), values.len(), &|row| values[row] % P == 0);
        } else if let Some(said) = sums {
            fails(Part::Sum(id), values.len(), &|row| {
                said[id].len() == values.len() && (values[row] - i64::from(said[id][row])) % P == 0
            });
        }
    }
    Ok(out)
}

struct Checker<'a> {
    circuit: &'a Circuit,
    slots: &'a [Values],
}

impl Checker<'_> {
    /// Index of a slot's cell whose variables have the values `bits`.
    fn index(bits: impl Iterator<Item = usize>) -> usize {
        bits.fold(0, |at, bit| 2 * at + bit)
    }

    fn bit(row: usize, log: usize, variable: usize) -> usize {
        row >> (log - 1 - variable) & 1
    }

    fn column(&self, table: usize, source: &Source) -> Vec<i64> {
        let log = self.circuit.tables[table].log;
        let rows = 0..1 << log;
        let at = |row: usize, vars: &[usize]| Self::index(vars.iter().map(|&v| Self::bit(row, log, v)));
        match source {
            Source::Slot { slot, vars } => rows.map(|row| self.slots[*slot][at(row, vars)].into()).collect(),
            Source::Public(Public::Dense { vars, values }) => rows.map(|row| values[at(row, vars)]).collect(),
            Source::Public(Public::TokenAt { which, base }) => rows
                .map(|row| self.token(*which, *base, row, |v, token| v == token))
                .collect(),
            Source::Public(Public::TokenBelow { which, base }) => rows
                .map(|row| self.token(*which, *base, row, |v, token| v < token))
                .collect(),
            Source::Sum(sum) => self.sum(&self.circuit.sums[*sum]),
        }
    }

    fn token(&self, which: Tokens, base: usize, row: usize, holds: fn(usize, usize) -> bool) -> i64 {
        let tokens = match which {
            Tokens::Fed => &self.circuit.fed,
            Tokens::Chosen => &self.circuit.chosen,
        };
        let (v, token) = (row >> self.circuit.log_steps, tokens[self.time(row)]);
        (token != usize::MAX && holds(base + v, token)).into()
    }

    fn time(&self, row: usize) -> usize {
        row & ((1 << self.circuit.log_steps) - 1)
    }

    fn kernel(&self, kernel: Kernel, row: usize, x: usize) -> i64 {
        match kernel {
            Kernel::Lag(lag) => (self.time(x) + lag == self.time(row)).into(),
            Kernel::Last { back } => (self.time(x) + back + 1 == 1 << self.circuit.log_steps).into(),
            Kernel::Fed { base } => (self.circuit.fed[self.time(row)] == base + x).into(),
            Kernel::TokenAt { which, base } => self.token(which, base, x, |v, token| v == token),
            Kernel::TokenBelow { which, base } => self.token(which, base, x, |v, token| v < token),
        }
    }

    /// Every row, over the integers (but for divisions, which are modulo p).
    fn sum(&self, sum: &Sum) -> Vec<i64> {
        let log = self.circuit.tables[sum.table].log;
        let value = |row: usize| {
            let mut total = 0;
            for term in &sum.terms {
                for x in 0..1 << term.vars {
                    let kernels =
                        term.factors
                            .iter()
                            .filter_map(|f| if let Factor::Kernel(k) = f { Some(*k) } else { None });
                    let weight: i64 = kernels.map(|k| self.kernel(k, row, x)).product();
                    if weight == 0 {
                        continue;
                    }
                    let mut product = term.coef * weight;
                    for factor in &term.factors {
                        let Factor::Slots {
                            constant,
                            parts,
                            shift,
                            binds,
                        } = factor
                        else {
                            continue;
                        };
                        let at = Self::index(binds.iter().map(|bind| match *bind {
                            Bind::Point(v) => Self::bit(row, log, v),
                            Bind::Var(v) => Self::bit(x, term.vars, v),
                        }));
                        let value = parts
                            .iter()
                            .fold(*constant, |sum, &(c, slot)| sum + c * i64::from(self.slots[slot][at]));
                        // Where the division has a rest, a residue that the lookups refuse; its sums are taken modulo p.
                        product = product * halved(value, *shift) % P;
                    }
                    total += product;
                }
            }
            for carry in &sum.carries {
                if carry.at_step.is_none_or(|t| t == self.time(row)) {
                    let at = Self::index(carry.vars.iter().map(|&v| Self::bit(row, log, v)));
                    total += carry.coef * i64::from(self.slots[carry.slot][at]);
                }
            }
            total
        };
        (0..1 << log).map(value).collect()
    }
}

/// value / 2^shift in the field; the integer where there is one.
fn halved(value: i64, shift: u32) -> i64 {
    (0..shift).fold(value, |v, _| if v % 2 == 0 { v / 2 } else { (v + P) / 2 })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::circuit::builder::Lie;
    use crate::circuit::{segment_circuit, Segment};
    use crate::shape::Model;
    use crate::testing::{random_model, Random};
    use crate::witness::{finish, Runner};

    /// Segments of 8 steps with random tokens, the last not full: their circuits and witnesses.
    fn run(model: &Model, segments: usize, random: &mut Random) -> Vec<(Circuit, Witness)> {
        let (runner, mut state, mut out) = (Runner::new(model), None, vec![]);
        for i in 0..segments {
            let has_out = i + 1 < segments;
            let tokens = if has_out { 8 } else { 1 + random.below(8) };
            let mut fed = vec![usize::MAX; 8];
            fed[..tokens].fill_with(|| random.below(model.shape.vocab_size));
            let segment = Segment {
                log_steps: 3,
                fed,
                has_in: i > 0,
                has_out,
            };
            let (b, head) = runner.run(&segment, state.as_ref()).unwrap();
            assert_eq!(runner.logits(&b, &head).len(), 8);
            let derived = b.derived.clone();
            let (circuit, witness, after) = finish(b);
            circuit.check(&derived).unwrap();
            let (verifier, _, _) = segment_circuit(&model.shape, &segment).unwrap();
            assert_eq!(
                format!("{verifier:?}"),
                format!("{circuit:?}"),
                "the same with and without values"
            );
            state = Some(after);
            out.push((circuit, witness));
        }
        out
    }

    #[test]
    fn random_models_satisfy_their_circuits() {
        for seed in 0..12 {
            let model = random_model(seed, seed % 3 == 2);
            for (circuit, witness) in run(&model, 3, &mut Random(seed)) {
                if let Err(error) = satisfied(&circuit, &witness) {
                    panic!("seed {seed}, {:?}: {error}", model.shape);
                }
                for (slot, values) in circuit.slots.iter().zip(&witness.slots) {
                    let outside = values
                        .iter()
                        .find(|v| !(slot.range.0..=slot.range.1).contains(&i64::from(**v)));
                    assert!(
                        outside.is_none(),
                        "{}: {outside:?} is not in {:?}",
                        slot.name,
                        slot.range
                    );
                }
            }
        }
    }

    #[test]
    fn a_changed_cell_is_found() {
        let (mut tried, mut missed) = (0, BTreeMap::<String, usize>::new());
        let count = std::env::var("MUTATIONS").map_or(40, |n| n.parse().unwrap());
        for seed in 0..6 {
            let random = &mut Random(seed + 100);
            for (circuit, witness) in run(&random_model(seed, seed % 3 == 2), 2, random) {
                for _ in 0..count {
                    let open: Vec<usize> = (0..circuit.slots.len())
                        .filter(|&s| ![Oracle::Model, Oracle::StateIn].contains(&circuit.slots[s].oracle))
                        .collect();
                    let slot = open[random.below(open.len())];
                    let mut changed = witness.clone();
                    let values = Arc::make_mut(&mut changed.slots[slot]);
                    let (lo, hi) = circuit.slots[slot].range;
                    let (at, old) = (random.below(values.len()), values.len());
                    let before = values[at];
                    values[at] = match random.below(3) {
                        0 => before + 1,
                        1 => before - 1,
                        _ => (lo + random.below((hi - lo + 1) as usize) as i64) as i32,
                    };
                    if values[at] == before {
                        continue;
                    }
                    tried += 1;
                    if slots_satisfy(&circuit, &changed.slots).is_ok() {
                        let name = &circuit.slots[slot].name;
                        *missed
                            .entry(format!("{:?} {name}[{at} of {old}]", circuit.slots[slot].oracle))
                            .or_default() += 1;
                    }
                }
            }
        }
        eprintln!("{tried} tried, missed {missed:#?}");
        assert!(missed.is_empty(), "of {tried}: {missed:#?}");
    }

    /// A wrong value that everything after it is computed from, as a prover would that hopes for a weak constraint.
    #[test]
    fn a_lie_carried_on_is_found() {
        let count = std::env::var("MUTATIONS").map_or(60, |n| n.parse().unwrap());
        let (mut tried, mut stuck, mut missed) = (0, 0, BTreeMap::<String, usize>::new());
        for seed in 0..6 {
            let random = &mut Random(seed + 200);
            let mut runner = Runner::new(&random_model(seed, seed % 3 == 2));
            let fed = (0..8).map(|_| random.below(runner.shape.vocab_size)).collect();
            let segment = Segment {
                log_steps: 3,
                fed,
                has_in: false,
                has_out: false,
            };
            let (circuit, _, _) = segment_circuit(&runner.shape, &segment).unwrap();
            let open: Vec<usize> = (0..circuit.slots.len())
                .filter(|&s| circuit.slots[s].oracle == Oracle::Trace)
                .collect();
            for _ in 0..count {
                let slot = open[random.below(open.len())];
                let (lo, hi) = circuit.slots[slot].range;
                let add = [1, -1, 1 + random.below((hi - lo) as usize) as i32][random.below(3)];
                let at = random.below(1 << circuit.slots[slot].log);
                runner.lies = vec![Lie::add(slot, at, add)];
                tried += 1;
                // Where the run cannot go on: a shift by a negative j, a sum beyond 32 bits.
                let run = std::panic::AssertUnwindSafe(|| finish(runner.run(&segment, None).unwrap().0));
                let Ok((circuit, witness, _)) = std::panic::catch_unwind(run) else {
                    stuck += 1;
                    continue;
                };
                if slots_satisfy(&circuit, &witness.slots).is_ok() {
                    *missed
                        .entry(format!("{} {:?}", circuit.slots[slot].name, runner.lies))
                        .or_default() += 1;
                }
            }
        }
        eprintln!("{tried} tried, {stuck} stuck, missed {missed:#?}");
        assert!(missed.is_empty(), "of {tried}: {missed:#?}");
    }
}
