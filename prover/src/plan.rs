//! What follows from a circuit alone: which slots are opened where, where the leaves of the lookups lie, and what the verifier evaluates by itself.
//! Prover and verifier share it. Section numbers are those of spec/PROTOCOL.md.

use std::collections::HashMap;

use p3_field::{Field, PrimeCharacteristicRing};

use crate::field::{eq_table, eval_multilinear_ext, f, EF, F};
use crate::ir::{Bind, Circuit, Factor, Kernel, Linear, Oracle, Public, SlotId, Source, SumId, Tokens};

/// A coordinate of the point of the main or of the second sumcheck, counted from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coord {
    Main(usize),
    Second(usize),
}

pub type SymbolicPoint = Vec<Coord>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Opening {
    pub slot: SlotId,
    pub point: SymbolicPoint,
}

/// Where the value of a column at its table's point comes from.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Public,
    First(usize),
    Sum(usize),
}

/// A block of leaves. The ranges are the block whose table is one past the last.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    pub table: usize,
    pub lookup: usize,
    pub log: usize,
    pub offset: usize,
}

/// The slots opened at one point of one oracle: each with its index among the oracle's slots and the values it must have.
pub struct Group {
    pub point: SymbolicPoint,
    pub slots: Vec<(usize, Vec<ValueRef>)>,
}

#[derive(Clone, Copy, Debug)]
pub enum ValueRef {
    First(usize),
    Second(usize),
}

pub struct Plan {
    pub first: Vec<Opening>,
    pub second: Vec<Opening>,
    pub columns: Vec<Vec<Value>>,
    /// By sum: index in `first` of each carry.
    pub carries: Vec<Vec<usize>>,
    /// By sum, term, factor: index in `second` of each part (kernels have none).
    pub parts: Vec<Vec<Vec<Vec<usize>>>>,
    pub sum_columns: Vec<SumId>,
    pub leaves: Vec<Leaf>,
    pub log_leaves: usize,
    pub main_vars: usize,
    pub second_vars: usize,
    /// The slot of the multiplicities: one past the circuit's, the last of the trace.
    pub multiplicities: SlotId,
    /// By slot, multiplicities included: its oracle and its index there.
    pub places: Vec<(Oracle, usize)>,
}

impl Plan {
    pub fn new(circuit: &Circuit) -> Plan {
        let mut first = List::default();
        let mut second = List::default();
        let mut sum_columns = vec![];
        let mut columns = vec![];
        for table in &circuit.tables {
            columns.push(
                table
                    .columns
                    .iter()
                    .map(|column| match &column.source {
                        Source::Public(_) => Value::Public,
                        Source::Slot { slot, vars } => Value::First(first.add(*slot, at_table(table.log, vars))),
                        Source::Sum(sum) => {
                            sum_columns.push(*sum);
                            Value::Sum(sum_columns.len() - 1)
                        }
                    })
                    .collect(),
            );
        }
        let (mut carries, mut parts) = (vec![], vec![]);
        for sum in &circuit.sums {
            let log = circuit.tables[sum.table].log;
            carries.push(
                sum.carries
                    .iter()
                    .map(|c| first.add(c.slot, at_table(log, &c.vars)))
                    .collect(),
            );
            parts.push(
                sum.terms
                    .iter()
                    .map(|term| {
                        let coord = |bind: &Bind| match *bind {
                            Bind::Point(i) => Coord::Main(log - 1 - i),
                            Bind::Var(i) => Coord::Second(term.vars - 1 - i),
                        };
                        let list = |factor: &Factor| match factor {
                            Factor::Kernel(_) => vec![],
                            Factor::Slots { parts, binds, .. } => {
                                let point: SymbolicPoint = binds.iter().map(coord).collect();
                                parts.iter().map(|(_, slot)| second.add(*slot, point.clone())).collect()
                            }
                        };
                        term.factors.iter().map(list).collect()
                    })
                    .collect(),
            );
        }
        let log_ranges = circuit.log_ranges();
        let multiplicities = circuit.slots.len();
        first.add(multiplicities, (0..log_ranges).rev().map(Coord::Main).collect());

        let mut leaves: Vec<Leaf> = vec![];
        for (t, table) in circuit.tables.iter().enumerate() {
            leaves.extend((0..table.lookups.len()).map(|lookup| Leaf {
                table: t,
                lookup,
                log: table.log,
                offset: 0,
            }));
        }
        leaves.push(Leaf {
            table: circuit.tables.len(),
            lookup: 0,
            log: log_ranges,
            offset: 0,
        });
        leaves.sort_by_key(|leaf| std::cmp::Reverse(leaf.log));
        let mut total = 0;
        for leaf in &mut leaves {
            leaf.offset = total;
            total += 1usize << leaf.log;
        }
        let mut counts: HashMap<Oracle, usize> = HashMap::new();
        let mut places: Vec<(Oracle, usize)> = circuit
            .slots
            .iter()
            .map(|slot| {
                let count = counts.entry(slot.oracle).or_insert(0);
                *count += 1;
                (slot.oracle, *count - 1)
            })
            .collect();
        places.push((Oracle::Trace, counts.get(&Oracle::Trace).copied().unwrap_or(0)));
        Plan {
            first: first.openings,
            second: second.openings,
            columns,
            carries,
            parts,
            sum_columns,
            leaves,
            log_leaves: total.next_power_of_two().trailing_zeros() as usize,
            main_vars: circuit.tables.iter().map(|t| t.log).max().unwrap_or(0).max(log_ranges),
            second_vars: circuit
                .sums
                .iter()
                .flat_map(|s| &s.terms)
                .map(|t| t.vars)
                .max()
                .unwrap_or(0),
            multiplicities,
            places,
        }
    }

    /// The openings of one oracle, grouped by point in the order in which the points first appear (section 4, step 9).
    pub fn groups(&self, oracle: Oracle) -> Vec<Group> {
        let mut groups: Vec<Group> = vec![];
        let mut index: HashMap<&SymbolicPoint, usize> = HashMap::new();
        let all = self.first.iter().enumerate().map(|(i, o)| (ValueRef::First(i), o));
        let all = all.chain(self.second.iter().enumerate().map(|(i, o)| (ValueRef::Second(i), o)));
        for (value, opening) in all {
            let (of, place) = self.places[opening.slot];
            if of != oracle {
                continue;
            }
            let at = *index.entry(&opening.point).or_insert_with(|| {
                groups.push(Group {
                    point: opening.point.clone(),
                    slots: vec![],
                });
                groups.len() - 1
            });
            let slots = &mut groups[at].slots;
            match slots.iter_mut().find(|(slot, _)| *slot == place) {
                Some((_, values)) => values.push(value),
                None => slots.push((place, vec![value])),
            }
        }
        for group in &mut groups {
            group.slots.sort_by_key(|(slot, _)| *slot);
        }
        groups
    }
}

#[derive(Default)]
struct List {
    openings: Vec<Opening>,
    index: HashMap<Opening, usize>,
}

impl List {
    fn add(&mut self, slot: SlotId, point: SymbolicPoint) -> usize {
        let opening = Opening { slot, point };
        let openings = &mut self.openings;
        *self.index.entry(opening.clone()).or_insert_with(|| {
            openings.push(opening);
            openings.len() - 1
        })
    }
}

fn at_table(log: usize, vars: &[usize]) -> SymbolicPoint {
    vars.iter().map(|v| Coord::Main(log - 1 - v)).collect()
}

/// The coordinates of a symbolic point in the points r and q of the two sumchecks.
pub fn resolve(point: &[Coord], r: &[EF], q: &[EF]) -> Vec<EF> {
    point
        .iter()
        .map(|c| match *c {
            Coord::Main(i) => r[r.len() - 1 - i],
            Coord::Second(i) => q[q.len() - 1 - i],
        })
        .collect()
}

pub fn suffix(point: &[EF], k: usize) -> &[EF] {
    &point[point.len() - k..]
}

/// Σ_{i < m} eq(r, i) and Σ_{i < m} eq(r, i) · i, for 0 ≤ m ≤ 2^n.
pub fn below(r: &[EF], m: usize) -> (EF, EF) {
    let n = r.len();
    let mut tail: Vec<EF> = vec![EF::ZERO; n + 1]; // expected value of the bits from i on
    for i in (0..n).rev() {
        tail[i] = tail[i + 1] + r[i] * EF::from_u64(1 << (n - 1 - i));
    }
    if m >= 1 << n {
        return (EF::ONE, tail[0]);
    }
    let (mut count, mut weighted) = (EF::ZERO, EF::ZERO);
    let (mut prefix, mut base) = (EF::ONE, 0u64);
    for i in 0..n {
        let bit = 1usize << (n - 1 - i);
        if m & bit != 0 {
            let w = prefix * (EF::ONE - r[i]);
            count += w;
            weighted += w * (EF::from_u64(base) + tail[i + 1]);
            prefix *= r[i];
            base += bit as u64;
        } else {
            prefix *= EF::ONE - r[i];
        }
    }
    (count, weighted)
}

/// The polynomial of the rows v + β · j of the ranges at r (section 4, step 3).
pub fn ranges_at(sizes: &[u64], beta: EF, r: &[EF]) -> EF {
    let (mut sum, mut start) = (EF::ZERO, 0usize);
    let mut low = (EF::ZERO, EF::ZERO);
    for (j, size) in sizes.iter().enumerate() {
        let end = start + *size as usize;
        let high = below(r, end);
        let count = high.0 - low.0;
        sum += high.1 - low.1 - EF::from_u64(start as u64) * count + beta * EF::from_u64(j as u64) * count;
        (start, low) = (end, high);
    }
    sum
}

/// eq(first coordinates of ρ, bits of offset / 2^log): the weight of a block of leaves.
pub fn block_weight(rho: &[EF], leaf: &Leaf) -> EF {
    let high = rho.len() - leaf.log;
    let index = leaf.offset >> leaf.log;
    (0..high).fold(EF::ONE, |w, i| {
        if index >> (high - 1 - i) & 1 == 1 {
            w * rho[i]
        } else {
            w * (EF::ONE - rho[i])
        }
    })
}

fn tokens(circuit: &Circuit, which: Tokens) -> &[usize] {
    match which {
        Tokens::Fed => &circuit.fed,
        Tokens::Chosen => &circuit.chosen,
    }
}

/// token − base as a row of a block of 2^log values, where it is one.
fn in_block(token: usize, base: usize, log: usize) -> Option<usize> {
    token.checked_sub(base).filter(|v| *v < 1 << log)
}

/// How many v of the block satisfy base + v < token. No token: none.
fn count_below(token: usize, base: usize, log: usize) -> usize {
    if token == usize::MAX {
        0
    } else {
        token.saturating_sub(base).min(1 << log)
    }
}

/// Evaluates kernels and public columns at the points of the sumchecks.
pub struct Publics<'a> {
    circuit: &'a Circuit,
    /// eq(r_time, s) for the steps s.
    time_r: Vec<EF>,
    time_q: Vec<EF>,
    cache: HashMap<(u8, usize, usize, usize), EF>,
}

impl<'a> Publics<'a> {
    /// r, q: points of the main and of the second sumcheck (q empty before it).
    pub fn new(circuit: &'a Circuit, r: &[EF], q: &[EF]) -> Self {
        let t = circuit.log_steps;
        let time = |p: &[EF]| if p.len() >= t { eq_table(suffix(p, t)) } else { vec![] };
        Publics {
            circuit,
            time_r: time(r),
            time_q: time(q),
            cache: HashMap::new(),
        }
    }

    pub fn step(&self, s: usize) -> EF {
        self.time_r[s]
    }

    /// A kernel at the point x of a term (a suffix of q).
    pub fn kernel(&mut self, kernel: &Kernel, x: &[EF]) -> EF {
        let key = match *kernel {
            Kernel::Lag(lag) => (0, lag, 0, x.len()),
            Kernel::Last { back } => (1, back, 0, x.len()),
            Kernel::Fed { base } => (2, base, 0, x.len()),
            Kernel::TokenAt { which, base } => (3, base, which as usize, x.len()),
            Kernel::TokenBelow { which, base } => (4, base, which as usize, x.len()),
        };
        if let Some(value) = self.cache.get(&key) {
            return *value;
        }
        let steps = self.time_r.len();
        let value = match *kernel {
            Kernel::Lag(lag) => (lag..steps).map(|s| self.time_r[s] * self.time_q[s - lag]).sum(),
            Kernel::Last { back } => self.time_q[steps - 1 - back],
            Kernel::Fed { base } => {
                let eq = eq_table(x);
                let rows = self.circuit.fed.iter().zip(&self.time_r);
                rows.filter_map(|(token, w)| in_block(*token, base, x.len()).map(|v| *w * eq[v]))
                    .sum()
            }
            Kernel::TokenAt { which, base } => {
                self.token_at(which, base, &x[..x.len() - self.circuit.log_steps], &self.time_q)
            }
            Kernel::TokenBelow { which, base } => {
                self.token_below(which, base, &x[..x.len() - self.circuit.log_steps], &self.time_q)
            }
        };
        self.cache.insert(key, value);
        value
    }

    fn token_at(&self, which: Tokens, base: usize, v: &[EF], time: &[EF]) -> EF {
        let eq = eq_table(v);
        let rows = tokens(self.circuit, which).iter().zip(time);
        rows.filter_map(|(token, w)| in_block(*token, base, v.len()).map(|row| *w * eq[row]))
            .sum()
    }

    fn token_below(&self, which: Tokens, base: usize, v: &[EF], time: &[EF]) -> EF {
        let rows = tokens(self.circuit, which).iter().zip(time);
        rows.map(|(token, w)| *w * below(v, count_below(*token, base, v.len())).0)
            .sum()
    }

    /// A public column at the point of its table.
    pub fn column(&self, public: &Public, point: &[EF]) -> EF {
        match public {
            Public::Dense { vars, values } => {
                let at: Vec<EF> = vars.iter().map(|v| point[*v]).collect();
                let values: Vec<EF> = values.iter().map(|v| EF::from(f(*v))).collect();
                eval_multilinear_ext(&values, &at)
            }
            Public::TokenAt { which, base } => {
                let v = &point[..point.len() - self.circuit.log_steps];
                self.token_at(*which, *base, v, &eq_table(suffix(point, self.circuit.log_steps)))
            }
            Public::TokenBelow { which, base } => {
                let v = &point[..point.len() - self.circuit.log_steps];
                self.token_below(*which, *base, v, &eq_table(suffix(point, self.circuit.log_steps)))
            }
        }
    }
}

/// The values of a kernel over {0,1}^vars, given eq(r_time, ·).
pub fn kernel_values(circuit: &Circuit, kernel: &Kernel, vars: usize, time_r: &[EF]) -> Vec<EF> {
    let t = circuit.log_steps;
    let steps = 1usize << t;
    let by_time = |value: &dyn Fn(usize) -> EF| {
        let row: Vec<EF> = (0..steps).map(value).collect();
        row.repeat(1 << (vars - t))
    };
    match *kernel {
        Kernel::Lag(lag) => by_time(&|s| if s + lag < steps { time_r[s + lag] } else { EF::ZERO }),
        Kernel::Last { back } => by_time(&|s| EF::from_bool(s == steps - 1 - back)),
        Kernel::Fed { base } => {
            let mut out = vec![EF::ZERO; 1 << vars];
            for (token, w) in circuit.fed.iter().zip(time_r) {
                if let Some(v) = in_block(*token, base, vars) {
                    out[v] += *w;
                }
            }
            out
        }
        Kernel::TokenAt { which, base } => token_values(circuit, which, base, vars, true),
        Kernel::TokenBelow { which, base } => token_values(circuit, which, base, vars, false),
    }
}

fn token_values<A: PrimeCharacteristicRing>(
    circuit: &Circuit,
    which: Tokens,
    base: usize,
    vars: usize,
    at: bool,
) -> Vec<A> {
    let t = circuit.log_steps;
    let mut out = vec![A::ZERO; 1 << vars];
    for (s, token) in tokens(circuit, which).iter().enumerate() {
        if at {
            if let Some(v) = in_block(*token, base, vars - t) {
                out[(v << t) + s] = A::ONE;
            }
        } else {
            for v in 0..count_below(*token, base, vars - t) {
                out[(v << t) + s] = A::ONE;
            }
        }
    }
    out
}

/// A public column over its table of `log` variables.
pub fn public_values(circuit: &Circuit, public: &Public, log: usize) -> Vec<F> {
    match public {
        Public::Dense { vars, values } => {
            let values: Vec<F> = values.iter().map(|v| f(*v)).collect();
            broadcast(&values, log, vars)
        }
        Public::TokenAt { which, base } => token_values(circuit, *which, *base, log, true),
        Public::TokenBelow { which, base } => token_values(circuit, *which, *base, log, false),
    }
}

/// Row of the slot for every row of a table of `log` variables, variable i of the slot being variable `vars[i]` of the table.
pub fn broadcast_index(log: usize, vars: &[usize]) -> Vec<u32> {
    let mut index = Vec::with_capacity(1 << log);
    index.push(0u32);
    for var in (0..log).rev() {
        let step: u32 = vars
            .iter()
            .enumerate()
            .filter(|(_, v)| **v == var)
            .map(|(i, _)| 1u32 << (vars.len() - 1 - i))
            .sum();
        for i in 0..index.len() {
            index.push(index[i] + step);
        }
    }
    index
}

pub fn broadcast<A: Copy>(values: &[A], log: usize, vars: &[usize]) -> Vec<A> {
    if vars.len() == log && vars.iter().enumerate().all(|(i, v)| i == *v) {
        return values.to_vec();
    }
    broadcast_index(log, vars).iter().map(|i| values[*i as usize]).collect()
}

/// A linear form in field terms: constant, coefficients, all divided by 2^shift.
pub fn linear_field(linear: &Linear) -> (F, Vec<(F, usize)>) {
    let scale = f(1 << linear.shift).inverse();
    (
        f(linear.constant) * scale,
        linear.terms.iter().map(|(c, col)| (f(*c) * scale, *col)).collect(),
    )
}
