//! One segment: section 4 of spec/PROTOCOL.md, prover and verifier side by side. Knows circuits, not models.

use std::collections::HashMap;

use p3_challenger::{CanSample, FieldChallenger};
use p3_field::{Field, PackedValue, PrimeCharacteristicRing, PrimeField32};
use p3_sumcheck::generic_degree::{GenericDegreeProof, RoundProver};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::field::{
    challenger, eq_eval, eq_table, eval_multilinear_base, f, unpack, Challenger, Packed, PackedEF, EF, F,
};
use crate::ir::{Bind, Circuit, Factor, Oracle, SlotId, Source, Sum, MAX_DEGREE};
use crate::logup::{self, LogupProof};
use crate::pcs::{self, Batch, OpeningProof, Regime, Root, Shape};
use crate::plan::{
    block_weight, broadcast, broadcast_index, kernel_values, linear_field, public_values, ranges_at, resolve, suffix,
    Group, Plan, Publics, Value, ValueRef,
};
use crate::sumcheck::{MainSumcheck, MainTable, Monomial, SecondSumcheck, SecondTerm};
use crate::Error;

const MAIN_DEGREE: usize = MAX_DEGREE + 1;
const SECOND_DEGREE: usize = 3;
/// Elements of F that carry one transcript into another: 8 · 31 bits.
pub const SEED: usize = 8;

/// What the prover knows: the values of every slot of the circuit and of every sum that is a column, over its table (links: empty).
pub struct Values {
    pub slots: Vec<Vec<F>>,
    pub sums: Vec<Vec<F>>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct SegmentProof {
    pub trace: Root,
    pub lookups: LogupProof,
    pub main: GenericDegreeProof<F, EF>,
    pub first: Vec<EF>,
    pub sums: Vec<EF>,
    pub second_sumcheck: GenericDegreeProof<F, EF>,
    pub second: Vec<EF>,
    pub opening: OpeningProof,
}

/// Claims on an oracle that the segment leaves open: batches of slots (by index in the oracle) at points, and their values.
#[derive(Clone, Default)]
pub struct Claims {
    pub batches: Vec<Batch>,
    pub values: Vec<Vec<EF>>,
}

/// What is left of a segment.
pub struct Reduced {
    pub model: Claims,
    pub state_in: Claims,
    pub state_out: Claims,
    pub end: [F; SEED],
}

/// Where the time of a segment went, in seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Times {
    pub witness: f64,
    pub commit: f64,
    pub lookups: f64,
    pub main: f64,
    pub second: f64,
    pub open: f64,
    pub cells: usize,
    pub leaves: usize,
}

/// The transcript of segment `index`.
pub fn transcript(seed: &[F; SEED], index: usize) -> Challenger {
    use p3_challenger::CanObserve;
    let mut ch = challenger(b"mamba-integer-segment-1");
    for x in seed {
        ch.observe(*x);
    }
    ch.observe(F::from_usize(index));
    ch
}

pub fn sample_seed(ch: &mut Challenger) -> [F; SEED] {
    std::array::from_fn(|_| ch.sample())
}

fn sample(ch: &mut Challenger) -> EF {
    ch.sample_algebra_element()
}

fn observe(ch: &mut Challenger, values: &[EF]) {
    for v in values {
        ch.observe_algebra_element(*v);
    }
}

/// Shape of the trace's commitment: the trace slots in order, then the multiplicities.
pub fn trace_shape(circuit: &Circuit) -> Shape {
    let trace = circuit.slots.iter().filter(|s| s.oracle == Oracle::Trace);
    Shape {
        log_heights: trace.map(|s| s.log as u8).chain([circuit.log_ranges() as u8]).collect(),
    }
}

/// The main sumcheck's view of a table: coefficients of the linear part, and the other monomials.
struct Combined {
    constant: EF,
    linear: Vec<(usize, EF)>,
    monomials: Vec<(EF, Vec<usize>)>,
}

/// Combines the constraints (by powers of η) and lookups (by their blocks' weights) of every table: G of section 4, step 5.
fn combine(circuit: &Circuit, plan: &Plan, rho: &[EF], beta: EF, eta: EF) -> (Vec<Combined>, EF) {
    let mut power = EF::ONE;
    let mut tables: Vec<Combined> = vec![];
    for table in &circuit.tables {
        let mut c = Combined {
            constant: EF::ZERO,
            linear: vec![],
            monomials: vec![],
        };
        let mut linear: HashMap<usize, EF> = HashMap::new();
        for constraint in &table.constraints {
            for (coef, cols) in &constraint.terms {
                let coef = power * f(*coef);
                match cols[..] {
                    [] => c.constant += coef,
                    [col] => *linear.entry(col).or_insert(EF::ZERO) += coef,
                    _ => c.monomials.push((coef, cols.clone())),
                }
            }
            power *= eta;
        }
        c.linear = linear.into_iter().collect();
        tables.push(c);
    }
    let lookups = power;
    for leaf in &plan.leaves {
        if leaf.table == circuit.tables.len() {
            continue;
        }
        let weight = lookups * block_weight(rho, leaf);
        let lookup = &circuit.tables[leaf.table].lookups[leaf.lookup];
        let into = &mut tables[leaf.table];
        for (form, scale) in [(&lookup.value, weight), (&lookup.range, weight * beta)] {
            let (constant, terms) = linear_field(form);
            into.constant += scale * constant;
            for (coef, col) in terms {
                match into.linear.iter_mut().find(|(c, _)| *c == col) {
                    Some((_, e)) => *e += scale * coef,
                    None => into.linear.push((col, scale * coef)),
                }
            }
        }
    }
    for table in &mut tables {
        table.linear.sort_by_key(|(c, _)| *c);
    }
    (tables, lookups)
}

/// c_D, c_N and the weight W of the ranges' block (section 4, step 3).
fn lookup_claims(
    circuit: &Circuit,
    plan: &Plan,
    rho: &[EF],
    alpha: EF,
    beta: EF,
    numerator: EF,
    denominator: EF,
) -> (EF, EF, EF) {
    let publics = Publics::new(circuit, rho, &[]);
    let (mut weights, mut selected, mut of_ranges) = (EF::ZERO, EF::ZERO, EF::ZERO);
    for leaf in &plan.leaves {
        let w = block_weight(rho, leaf);
        let Some(table) = circuit.tables.get(leaf.table) else {
            of_ranges = w;
            continue;
        };
        weights += w;
        let point = suffix(rho, leaf.log);
        let selector = table.lookups[leaf.lookup]
            .selector
            .iter()
            .map(|col| match &table.columns[*col].source {
                Source::Public(public) => publics.column(public, point),
                _ => EF::ZERO, // selectors are public columns
            });
        selected += w * selector.product::<EF>();
    }
    let ranges = ranges_at(&circuit.ranges, beta, suffix(rho, circuit.log_ranges()));
    let c_d = weights * alpha + of_ranges * (alpha - ranges) + (EF::ONE - weights - of_ranges) - denominator;
    (c_d, selected - numerator, of_ranges)
}

/// Σ_s γ^s (value − carries): the claim of the second sumcheck.
fn second_claim(circuit: &Circuit, plan: &Plan, publics: &Publics, gamma: EF, first: &[EF], sums: &[EF]) -> EF {
    let mut values = vec![EF::ZERO; circuit.sums.len()];
    for (id, value) in plan.sum_columns.iter().zip(sums) {
        values[*id] = *value;
    }
    let mut power = EF::ONE;
    let mut claim = EF::ZERO;
    for ((sum, carries), value) in circuit.sums.iter().zip(&plan.carries).zip(values) {
        let mut target = value;
        for (carry, at) in sum.carries.iter().zip(carries) {
            let weight = carry.at_step.map_or(EF::ONE, |s| publics.step(s));
            target -= weight * first[*at] * f(carry.coef);
        }
        claim += power * target;
        power *= gamma;
    }
    claim
}

fn batches(groups: &[Group], r: &[EF], q: &[EF]) -> Vec<Batch> {
    let batch = |g: &Group| Batch {
        slots: g.slots.iter().map(|(s, _)| *s).collect(),
        point: resolve(&g.point, r, q),
    };
    groups.iter().map(batch).collect()
}

/// The values that the groups' slots must have; an error if one slot is claimed to have two at one point.
fn values(groups: &[Group], first: &[EF], second: &[EF]) -> Result<Vec<Vec<EF>>, Error> {
    let get = |v: &ValueRef| match *v {
        ValueRef::First(i) => first[i],
        ValueRef::Second(i) => second[i],
    };
    let of_slot = |(_, refs): &(usize, Vec<ValueRef>)| {
        let value = get(&refs[0]);
        if refs.iter().any(|v| get(v) != value) {
            refuse("one slot has two values at one point")?;
        }
        Ok(value)
    };
    groups.iter().map(|g| g.slots.iter().map(of_slot).collect()).collect()
}

fn claims(plan: &Plan, oracle: Oracle, r: &[EF], q: &[EF], first: &[EF], second: &[EF]) -> Result<Claims, Error> {
    let groups = plan.groups(oracle);
    Ok(Claims {
        batches: batches(&groups, r, q),
        values: values(&groups, first, second)?,
    })
}

// ---- prover ------------------------------------------------------------------------------------------------------------------------------------

/// A cheating prover of the tests: it changes the numerators of the leaves.
#[cfg(test)]
pub(crate) type Cheat = fn(&mut [F], &[EF]);

/// What else a cheating prover of the tests does: each satisfies all checks of the verifier but one.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trick {
    /// The sumchecks claim the sums of what the prover has.
    OwnClaims,
    /// A cell of the trace is committed that is not the one argued with.
    OtherTrace,
    /// In the second sumcheck the first cell of this slot is one more.
    OtherSlot(SlotId),
    /// A superfluous value at the end of the first values, of the sums', or of the second.
    More(usize),
}

#[cfg(test)]
thread_local! {
    pub(crate) static CHEAT: std::cell::Cell<Option<Cheat>> = const { std::cell::Cell::new(None) };
    static TRICK: std::cell::Cell<Option<Trick>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
impl Trick {
    fn claim(honest: EF, own: EF) -> EF {
        if TRICK.get() == Some(Trick::OwnClaims) {
            own
        } else {
            honest
        }
    }

    fn more(which: usize, list: &mut Vec<EF>) {
        if TRICK.get() == Some(Trick::More(which)) {
            list.push(EF::ONE);
        }
    }

    fn other_values(values: &Values) -> Option<Values> {
        let Some(Trick::OtherSlot(slot)) = TRICK.get() else {
            return None;
        };
        let (mut slots, sums) = (values.slots.clone(), values.sums.clone());
        slots[slot][0] += F::ONE;
        Some(Values { slots, sums })
    }
}

/// Proves that `values` satisfy the circuit. With values that do not, it returns an error or a proof that the verifier refuses.
pub fn prove(
    circuit: &Circuit,
    values: &Values,
    ch: &mut Challenger,
    times: &mut Times,
) -> Result<(SegmentProof, Reduced), Error> {
    let plan = Plan::new(circuit);
    let mut clock = Clock::new();

    let columns = Columns { circuit, values };
    let multiplicities = columns.multiplicities();
    let mut trace: Vec<Vec<F>> = circuit
        .slots
        .iter()
        .zip(&values.slots)
        .filter(|(s, _)| s.oracle == Oracle::Trace)
        .map(|(_, v)| v.clone())
        .collect();
    trace.push(multiplicities.clone());
    #[cfg(test)]
    if TRICK.get() == Some(Trick::OtherTrace) {
        trace[0][0] += F::ONE;
    }
    times.cells = trace.iter().map(Vec::len).sum();
    let shape = trace_shape(circuit);
    let (root, committed) = pcs::commit(&shape, trace)?;
    pcs::observe_root(&root, &shape, ch);
    times.commit = clock.lap();

    let (alpha, beta) = (sample(ch), sample(ch));
    #[cfg_attr(not(test), allow(unused_mut))]
    let (mut numerators, denominators) = columns.leaves(&plan, alpha, beta, &multiplicities);
    #[cfg(test)]
    if let Some(cheat) = CHEAT.get() {
        cheat(&mut numerators, &denominators);
    }
    times.leaves = numerators.len();
    let (lookups, rho, numerator, denominator) = logup::prove(numerators, denominators, ch)?;
    times.lookups = clock.lap();

    let eta = sample(ch);
    let (combined, lookup_power) = combine(circuit, &plan, &rho, beta, eta);
    let (c_d, c_n, of_ranges) = lookup_claims(circuit, &plan, &rho, alpha, beta, numerator, denominator);
    let claim = lookup_power * (c_d + eta * c_n);
    let mut tables: Vec<MainTable> = combined
        .iter()
        .enumerate()
        .map(|(t, c)| columns.main_table(t, c))
        .collect();
    let weight = lookup_power * eta * of_ranges;
    tables.push(MainTable::new(
        circuit.log_ranges(),
        vec![],
        multiplicities.iter().map(|m| weight * *m).collect(),
        vec![],
    ));
    let mut main = MainSumcheck::new(suffix(&rho, plan.main_vars), tables);
    #[cfg(test)]
    let claim = Trick::claim(claim, main.claim());
    let (main, r) = main.prove::<F, _>(ch, plan.main_vars, MAIN_DEGREE, 0, claim);
    let r = r.as_slice().to_vec();
    let slot_values = |slot: SlotId| {
        if slot == plan.multiplicities {
            &multiplicities
        } else {
            &values.slots[slot]
        }
    };
    #[cfg_attr(not(test), allow(unused_mut))]
    let mut first: Vec<EF> = plan
        .first
        .par_iter()
        .map(|o| eval_multilinear_base(slot_values(o.slot), &resolve(&o.point, &r, &[])))
        .collect();
    #[cfg_attr(not(test), allow(unused_mut))]
    let mut sums: Vec<EF> = plan
        .sum_columns
        .par_iter()
        .map(|id| {
            eval_multilinear_base(
                &values.sums[*id],
                suffix(&r, circuit.tables[circuit.sums[*id].table].log),
            )
        })
        .collect();
    #[cfg(test)]
    {
        Trick::more(0, &mut first);
        Trick::more(1, &mut sums);
    }
    observe(ch, &first);
    observe(ch, &sums);
    times.main = clock.lap();

    let gamma = sample(ch);
    let publics = Publics::new(circuit, &r, &[]);
    let claim = second_claim(circuit, &plan, &publics, gamma, &first, &sums);
    #[cfg(test)]
    let other = Trick::other_values(values);
    #[cfg(test)]
    let values = other.as_ref().unwrap_or(values);
    let columns = Columns { circuit, values };
    let mut second_sumcheck = SecondSumcheck::new(plan.second_vars, columns.second_terms(&r, gamma));
    #[cfg(test)]
    let claim = Trick::claim(claim, second_sumcheck.claim());
    let (second_sumcheck, q) = second_sumcheck.prove::<F, _>(ch, plan.second_vars, SECOND_DEGREE, 0, claim);
    let q = q.as_slice().to_vec();
    #[cfg_attr(not(test), allow(unused_mut))]
    let mut second: Vec<EF> = plan
        .second
        .par_iter()
        .map(|o| eval_multilinear_base(&values.slots[o.slot], &resolve(&o.point, &r, &q)))
        .collect();
    #[cfg(test)]
    Trick::more(2, &mut second);
    observe(ch, &second);
    let end = sample_seed(ch);
    times.second = clock.lap();

    let (_, opening) = pcs::open(
        committed,
        &batches(&plan.groups(Oracle::Trace), &r, &q),
        Regime::Johnson,
        ch,
    )?;
    times.open = clock.lap();
    let of = |oracle| claims(&plan, oracle, &r, &q, &first, &second);
    let reduced = Reduced {
        model: of(Oracle::Model)?,
        state_in: of(Oracle::StateIn)?,
        state_out: of(Oracle::StateOut)?,
        end,
    };
    Ok((
        SegmentProof {
            trace: root,
            lookups,
            main,
            first,
            sums,
            second_sumcheck,
            second,
            opening,
        },
        reduced,
    ))
}

struct Clock(std::time::Instant);

impl Clock {
    fn new() -> Self {
        Clock(std::time::Instant::now())
    }
    fn lap(&mut self) -> f64 {
        let seconds = self.0.elapsed().as_secs_f64();
        self.0 = std::time::Instant::now();
        seconds
    }
}

/// The prover's values, column by column.
struct Columns<'a> {
    circuit: &'a Circuit,
    values: &'a Values,
}

impl Columns<'_> {
    fn column(&self, table: usize, col: usize) -> std::borrow::Cow<'_, [F]> {
        let t = &self.circuit.tables[table];
        match &t.columns[col].source {
            Source::Slot { slot, vars } if vars.len() == t.log && vars.iter().enumerate().all(|(i, v)| i == *v) => {
                (&self.values.slots[*slot][..]).into()
            }
            Source::Slot { slot, vars } => broadcast(&self.values.slots[*slot], t.log, vars).into(),
            Source::Public(public) => public_values(self.circuit, public, t.log).into(),
            Source::Sum(id) => (&self.values.sums[*id][..]).into(),
        }
    }

    /// A linear form over the rows of its table.
    fn linear(&self, table: usize, form: &crate::ir::Linear) -> Vec<F> {
        let (constant, terms) = linear_field(form);
        let mut out = vec![constant; 1 << self.circuit.tables[table].log];
        for (coef, col) in terms {
            let column = self.column(table, col);
            if coef == F::ONE {
                out.iter_mut().zip(column.iter()).for_each(|(o, v)| *o += *v);
            } else {
                let packed = Packed::from(coef);
                let (o, o_rest) = Packed::pack_slice_with_suffix_mut(&mut out);
                let (v, v_rest) = Packed::pack_slice_with_suffix(&column);
                o.iter_mut().zip(v).for_each(|(o, v)| *o += packed * *v);
                o_rest.iter_mut().zip(v_rest).for_each(|(o, v)| *o += coef * *v);
            }
        }
        out
    }

    fn selector(&self, table: usize, cols: &[usize]) -> Option<Vec<F>> {
        let mut cols = cols.iter().map(|c| self.column(table, *c).into_owned());
        let first = cols.next()?;
        Some(cols.fold(first, |mut out, col| {
            out.iter_mut().zip(col).for_each(|(o, v)| *o *= v);
            out
        }))
    }

    /// How often each row of the ranges is looked up. Values outside their range are counted nowhere: then the sum of the leaves is not zero.
    fn multiplicities(&self) -> Vec<F> {
        let circuit = self.circuit;
        let starts: Vec<u64> = circuit
            .ranges
            .iter()
            .scan(0, |at, size| Some(std::mem::replace(at, *at + size)))
            .collect();
        let jobs: Vec<(usize, usize)> = circuit
            .tables
            .iter()
            .enumerate()
            .flat_map(|(t, table)| (0..table.lookups.len()).map(move |l| (t, l)))
            .collect();
        let counts = jobs
            .par_chunks(jobs.len().div_ceil(rayon::current_num_threads()).max(1))
            .map(|jobs| {
                let mut counts = vec![0u32; 1 << circuit.log_ranges()];
                for &(t, l) in jobs {
                    let lookup = &circuit.tables[t].lookups[l];
                    let selector = self.selector(t, &lookup.selector);
                    let value = self.linear(t, &lookup.value);
                    let range = if lookup.range.terms.is_empty() {
                        None
                    } else {
                        Some(self.linear(t, &lookup.range))
                    };
                    for (i, value) in value.iter().enumerate() {
                        if selector.as_ref().is_some_and(|s| s[i] == F::ZERO) {
                            continue;
                        }
                        let range = range
                            .as_ref()
                            .map_or(lookup.range.constant as usize, |r| r[i].as_canonical_u32() as usize);
                        let value = u64::from(value.as_canonical_u32());
                        if circuit.ranges.get(range).is_some_and(|size| value < *size) {
                            counts[(starts[range] + value) as usize] += 1;
                        }
                    }
                }
                counts
            })
            .reduce_with(|mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                a
            })
            .unwrap_or_else(|| vec![0; 1 << circuit.log_ranges()]);
        counts.into_par_iter().map(F::from_u32).collect()
    }

    /// Numerators and denominators of all leaves (section 4, step 3).
    fn leaves(&self, plan: &Plan, alpha: EF, beta: EF, multiplicities: &[F]) -> (Vec<F>, Vec<EF>) {
        let circuit = self.circuit;
        let total = 1usize << plan.log_leaves;
        let mut numerators = vec![F::ZERO; total];
        let mut denominators = vec![EF::ONE; total];
        let mut blocks = vec![];
        let (mut n, mut d) = (&mut numerators[..], &mut denominators[..]);
        for leaf in &plan.leaves {
            let (n0, n1) = n.split_at_mut(1 << leaf.log);
            let (d0, d1) = d.split_at_mut(1 << leaf.log);
            blocks.push((leaf, n0, d0));
            (n, d) = (n1, d1);
        }
        blocks.into_par_iter().for_each(|(leaf, n, d)| {
            if leaf.table == circuit.tables.len() {
                n.iter_mut().zip(multiplicities).for_each(|(n, m)| *n = -*m);
                let rows = circuit
                    .ranges
                    .iter()
                    .enumerate()
                    .flat_map(|(j, size)| (0..*size).map(move |v| (j, v)));
                d.fill(alpha);
                d.iter_mut()
                    .zip(rows)
                    .for_each(|(d, (j, v))| *d = alpha - beta * F::from_usize(j) - F::from_u64(v));
                return;
            }
            let lookup = &circuit.tables[leaf.table].lookups[leaf.lookup];
            match self.selector(leaf.table, &lookup.selector) {
                Some(selector) => n.copy_from_slice(&selector),
                None => n.fill(F::ONE),
            }
            let value = self.linear(leaf.table, &lookup.value);
            if lookup.range.terms.is_empty() {
                let base = alpha - beta * f(lookup.range.constant);
                d.iter_mut().zip(value).for_each(|(d, v)| *d = base - v);
            } else {
                let range = self.linear(leaf.table, &lookup.range);
                d.iter_mut()
                    .zip(value.into_iter().zip(range))
                    .for_each(|(d, (v, j))| *d = alpha - beta * j - v);
            }
        });
        (numerators, denominators)
    }

    fn main_table(&self, table: usize, combined: &Combined) -> MainTable {
        let log = self.circuit.tables[table].log;
        let rows = 1usize << log;
        let mut linear: Vec<EF>;
        let width = Packed::WIDTH;
        if rows >= width {
            let mut sum = vec![PackedEF::from(combined.constant); rows / width];
            let columns: Vec<_> = combined
                .linear
                .iter()
                .map(|(col, coef)| (self.column(table, *col), PackedEF::from(*coef)))
                .collect();
            sum.par_chunks_mut(256).enumerate().for_each(|(i, sum)| {
                for (column, coef) in &columns {
                    let part = &Packed::pack_slice(column)[i * 256..];
                    sum.iter_mut().zip(part).for_each(|(s, v)| *s += *coef * *v);
                }
            });
            linear = unpack(&sum);
        } else {
            linear = vec![combined.constant; rows];
            for (col, coef) in &combined.linear {
                linear
                    .iter_mut()
                    .zip(self.column(table, *col).iter())
                    .for_each(|(s, v)| *s += *coef * *v);
            }
        }
        let mut used: Vec<usize> = combined.monomials.iter().flat_map(|(_, cols)| cols.clone()).collect();
        used.sort_unstable();
        used.dedup();
        let at = |col: &usize| used.binary_search(col).unwrap();
        let monomials = combined
            .monomials
            .iter()
            .map(|(coef, cols)| Monomial {
                coef: *coef,
                cols: cols.iter().map(at).collect(),
            })
            .collect();
        MainTable::new(
            log,
            used.iter().map(|c| self.column(table, *c).into_owned()).collect(),
            linear,
            monomials,
        )
    }

    /// The terms of the second sumcheck. Terms that differ only in their first factor of slots are added up.
    fn second_terms(&self, r: &[EF], gamma: EF) -> Vec<SecondTerm> {
        /// Terms with the same factors but for the leading ones: coefficient, leading factor (none: 1) and sum of each.
        struct Merged<'a> {
            vars: usize,
            rest: Vec<&'a Factor>,
            sum: &'a Sum,
            leads: Vec<(EF, Option<&'a Factor>, &'a Sum)>,
        }
        let circuit = self.circuit;
        let time_r = eq_table(suffix(r, circuit.log_steps));
        let mut merged: Vec<Merged> = vec![];
        let mut index: HashMap<(usize, Vec<String>), usize> = HashMap::new();
        let mut power = EF::ONE;
        for sum in &circuit.sums {
            let log = circuit.tables[sum.table].log;
            // A bound coordinate counts from the end of the table's point, as tables of different size share the suffix.
            let from_end = |bind: &Bind| match *bind {
                Bind::Point(i) => Bind::Point(log - 1 - i),
                var => var,
            };
            let name = |factor: &&Factor| match factor {
                Factor::Kernel(kernel) => format!("{kernel:?}"),
                Factor::Slots {
                    constant,
                    parts,
                    shift,
                    binds,
                } => {
                    format!(
                        "{constant} {parts:?} {shift} {:?}",
                        binds.iter().map(from_end).collect::<Vec<_>>()
                    )
                }
            };
            for term in &sum.terms {
                let lead = term.factors.iter().position(|x| matches!(x, Factor::Slots { .. }));
                let mut rest: Vec<&Factor> = term.factors.iter().collect();
                let lead = lead.map(|i| rest.remove(i));
                let at = *index
                    .entry((term.vars, rest.iter().map(name).collect()))
                    .or_insert(merged.len());
                if at == merged.len() {
                    merged.push(Merged {
                        vars: term.vars,
                        rest,
                        sum,
                        leads: vec![],
                    });
                }
                merged[at].leads.push((power * f(term.coef), lead, sum));
            }
            power *= gamma;
        }
        merged
            .into_par_iter()
            .map(|Merged { vars, rest, sum, leads }| {
                let mut first = vec![EF::ZERO; 1 << vars];
                for (coef, lead, sum) in leads {
                    match lead {
                        Some(factor) => {
                            let values = self.factor(factor, vars, sum, r, &time_r);
                            first.iter_mut().zip(values).for_each(|(a, b)| *a += coef * b);
                        }
                        None => first.iter_mut().for_each(|a| *a += coef),
                    }
                }
                let mut factors = vec![first];
                factors.extend(rest.iter().map(|x| self.factor(x, vars, sum, r, &time_r)));
                SecondTerm::new(vars, factors)
            })
            .collect()
    }

    /// A factor over {0,1}^vars, the table's coordinates bound.
    fn factor(&self, factor: &Factor, vars: usize, sum: &Sum, r: &[EF], time_r: &[EF]) -> Vec<EF> {
        let (constant, parts, shift, binds) = match factor {
            Factor::Kernel(kernel) => return kernel_values(self.circuit, kernel, vars, time_r),
            Factor::Slots {
                constant,
                parts,
                shift,
                binds,
            } => (constant, parts, shift, binds),
        };
        let point = suffix(r, self.circuit.tables[sum.table].log);
        let scale = f(1 << shift).inverse();
        // Variables of the slots that stay free, and where they go in the term.
        let free: Vec<usize> = binds
            .iter()
            .filter_map(|b| if let Bind::Var(i) = b { Some(*i) } else { None })
            .collect();
        let mut out = vec![EF::from(f(*constant) * scale); 1 << free.len()];
        for (coef, slot) in parts {
            let coef = f(*coef) * scale;
            let values = partial(&self.values.slots[*slot], binds, point);
            out.iter_mut().zip(values).for_each(|(o, v)| *o += v * coef);
        }
        broadcast(&out, vars, &free)
    }
}

/// A polynomial with some variables bound to coordinates of a point; those left keep their order.
fn partial(values: &[F], binds: &[Bind], point: &[EF]) -> Vec<EF> {
    let k = binds.len();
    let bound: Vec<usize> = (0..k).filter(|i| matches!(binds[*i], Bind::Point(_))).collect();
    let free: Vec<usize> = (0..k).filter(|i| matches!(binds[*i], Bind::Var(_))).collect();
    if bound.is_empty() {
        return values.iter().map(|v| EF::from(*v)).collect();
    }
    let at: Vec<EF> = bound
        .iter()
        .map(|i| {
            if let Bind::Point(j) = binds[*i] {
                point[j]
            } else {
                unreachable!()
            }
        })
        .collect();
    let weights = eq_table(&at);
    let len = 1usize << free.len();
    let width = Packed::WIDTH;
    if bound.last() == Some(&(bound.len() - 1)) && len >= width {
        let mut out = vec![PackedEF::ZERO; len / width];
        for (row, w) in values.chunks_exact(len).zip(&weights) {
            let w = PackedEF::from(*w);
            out.iter_mut()
                .zip(Packed::pack_slice(row))
                .for_each(|(o, v)| *o += w * *v);
        }
        return unpack(&out);
    }
    let mut out = vec![EF::ZERO; len];
    let to_free = broadcast_index(k, &free);
    let to_bound = broadcast_index(k, &bound);
    for ((v, x), y) in values.iter().zip(to_free).zip(to_bound) {
        out[x as usize] += weights[y as usize] * *v;
    }
    out
}

// ---- verifier ----------------------------------------------------------------------------------------------------------------------------------

#[cfg(test)]
thread_local! {
    /// Tests take one check out of the verifier, by what it says.
    static WITHOUT: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// A check of the verifier has failed.
fn refuse(why: &str) -> Result<(), Error> {
    #[cfg(test)]
    if WITHOUT.get() == Some(why) {
        return Ok(());
    }
    Err(Error::Proof(why.into()))
}

/// Checks a segment but for the openings of the model and of the states, which it returns.
pub fn verify(circuit: &Circuit, proof: &SegmentProof, ch: &mut Challenger) -> Result<Reduced, Error> {
    let plan = Plan::new(circuit);
    if proof.first.len() != plan.first.len()
        || proof.sums.len() != plan.sum_columns.len()
        || proof.second.len() != plan.second.len()
    {
        refuse("the number of values does not fit the circuit")?;
    }
    let shape = trace_shape(circuit);
    pcs::observe_root(&proof.trace, &shape, ch);
    let (alpha, beta) = (sample(ch), sample(ch));
    let (rho, numerator, denominator) = logup::verify(plan.log_leaves, &proof.lookups, ch)?;
    let eta = sample(ch);
    let (combined, lookup_power) = combine(circuit, &plan, &rho, beta, eta);
    let (c_d, c_n, of_ranges) = lookup_claims(circuit, &plan, &rho, alpha, beta, numerator, denominator);

    let claim = lookup_power * (c_d + eta * c_n);
    if proof.main.claimed_sum != claim {
        refuse("main sumcheck: the claimed sum is not that of the lookups")?;
    }
    let (r, end) = proof
        .main
        .verify(ch, plan.main_vars, MAIN_DEGREE, 0)
        .map_err(|e| Error::Proof(format!("main sumcheck: {e}")))?;
    let r = r.as_slice().to_vec();
    observe(ch, &proof.first);
    observe(ch, &proof.sums);
    let publics = Publics::new(circuit, &r, &[]);
    let mut total = lookup_power * eta * of_ranges * proof.first[plan.first.len() - 1];
    for ((table, combined), columns) in circuit.tables.iter().zip(&combined).zip(&plan.columns) {
        let point = suffix(&r, table.log);
        let evals: Vec<EF> = table
            .columns
            .iter()
            .zip(columns)
            .map(|(column, value)| match (value, &column.source) {
                (Value::First(i), _) => proof.first[*i],
                (Value::Sum(i), _) => proof.sums[*i],
                (Value::Public, Source::Public(public)) => publics.column(public, point),
                (Value::Public, _) => EF::ZERO,
            })
            .collect();
        total += combined.constant;
        total += combined.linear.iter().map(|(c, coef)| *coef * evals[*c]).sum::<EF>();
        total += combined
            .monomials
            .iter()
            .map(|(coef, cols)| *coef * cols.iter().map(|c| evals[*c]).product::<EF>())
            .sum::<EF>();
    }
    if end != eq_eval(suffix(&rho, plan.main_vars), &r) * total {
        refuse("main sumcheck: the values at its point do not satisfy the circuit")?;
    }

    let gamma = sample(ch);
    if proof.second_sumcheck.claimed_sum != second_claim(circuit, &plan, &publics, gamma, &proof.first, &proof.sums) {
        refuse("second sumcheck: the claimed sum is not that of the sums")?;
    }
    let (q, end) = proof
        .second_sumcheck
        .verify(ch, plan.second_vars, SECOND_DEGREE, 0)
        .map_err(|e| Error::Proof(format!("second sumcheck: {e}")))?;
    let q = q.as_slice().to_vec();
    observe(ch, &proof.second);
    let mut publics = Publics::new(circuit, &r, &q);
    let half = F::TWO.inverse();
    let (mut total, mut power) = (EF::ZERO, EF::ONE);
    for (sum, parts) in circuit.sums.iter().zip(&plan.parts) {
        for (term, parts) in sum.terms.iter().zip(parts) {
            let x = suffix(&q, term.vars);
            let mut product = power * f(term.coef) * half.exp_u64((plan.second_vars - term.vars) as u64);
            for (factor, at) in term.factors.iter().zip(parts) {
                product *= match factor {
                    Factor::Kernel(kernel) => publics.kernel(kernel, x),
                    Factor::Slots {
                        constant, parts, shift, ..
                    } => {
                        let sum: EF = parts.iter().zip(at).map(|((c, _), i)| proof.second[*i] * f(*c)).sum();
                        (sum + f(*constant)) * f(1 << shift).inverse()
                    }
                };
            }
            total += product;
        }
        power *= gamma;
    }
    if end != total {
        refuse("second sumcheck: the values at its point do not give the sums")?;
    }
    let transcript_end = sample_seed(ch);

    let groups = plan.groups(Oracle::Trace);
    let opened = pcs::verify(
        &shape,
        &proof.trace,
        &batches(&groups, &r, &q),
        Regime::Johnson,
        &proof.opening,
        ch,
    )?;
    if opened != values(&groups, &proof.first, &proof.second)? {
        refuse("the trace's opening gives other values")?;
    }
    let of = |oracle| claims(&plan, oracle, &r, &q, &proof.first, &proof.second);
    Ok(Reduced {
        model: of(Oracle::Model)?,
        state_in: of(Oracle::StateIn)?,
        state_out: of(Oracle::StateOut)?,
        end: transcript_end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{ranges, Carry, Kernel, Linear, Public, Term, Tokens};
    use crate::pcs;

    /// A little of everything: y[c, t] = (Σ_d W[c, d] · x[d, t] + 4 · x_prev) rounded by 3 and saturated, with a carried state and a token's kernel.
    fn toy(has_in: bool) -> (Circuit, Values, Vec<Vec<F>>) {
        let mut c = Circuit {
            log_steps: 3,
            ranges: ranges()[..13].to_vec(),
            fed: vec![3, 1, 2, 0, 1, 1, 2, 3],
            chosen: vec![usize::MAX, 2, 1, 0, 3, 2, 1, 1],
            ..Default::default()
        };
        let w = c.slot(Oracle::Model, "w", 4, (-127, 127));
        let carried = has_in.then(|| c.slot(Oracle::StateIn, "x.before", 2, (0, 15)));
        let (d, t) = (4usize, 8usize);
        let weights: Vec<i64> = (0..16).map(|i| (i * 37 % 255) - 127).collect();
        let x: Vec<i64> = (0..32).map(|i| (i * i * 7 + 3) % 16).collect();
        let before: Vec<i64> = vec![7, 0, 15, 2];
        let input = c.table("input", 5);
        let (xc, xs) = c.commit(input, "x", (0, 15));
        c.in_range(input, xc, 0, 4);
        let table = c.table("layer", 5);
        let term = |factors| Term {
            coef: 1,
            vars: 5,
            factors,
        };
        let (acc, _) = c.sum(
            table,
            "acc",
            vec![term(vec![
                Factor::Kernel(Kernel::Lag(0)),
                Factor::Slots {
                    constant: 0,
                    parts: vec![(1, w)],
                    shift: 0,
                    binds: vec![Bind::Point(0), Bind::Point(1), Bind::Var(0), Bind::Var(1)],
                },
                Factor::Slots {
                    constant: 0,
                    parts: vec![(1, xs)],
                    shift: 0,
                    binds: (0..5).map(Bind::Var).collect(),
                },
            ])],
            vec![],
            (-127 * 15 * 4, 127 * 15 * 4),
        );
        let carries = carried
            .iter()
            .map(|s| Carry {
                coef: 1,
                at_step: Some(0),
                slot: *s,
                vars: vec![0, 1],
            })
            .collect();
        let (prev, _) = c.sum(
            table,
            "prev",
            vec![Term {
                coef: 1,
                vars: 3,
                factors: vec![
                    Factor::Kernel(Kernel::Lag(1)),
                    Factor::Slots {
                        constant: 0,
                        parts: vec![(1, xs)],
                        shift: 0,
                        binds: vec![Bind::Point(0), Bind::Point(1), Bind::Var(0), Bind::Var(1), Bind::Var(2)],
                    },
                ],
            }],
            carries,
            (0, 15),
        );
        let below = c.public(
            table,
            "below",
            Public::TokenBelow {
                which: Tokens::Chosen,
                base: 0,
            },
        );
        let scale = c.public(
            table,
            "scale",
            Public::Dense {
                vars: vec![0, 1],
                values: vec![1, 2, 3, 4],
            },
        );
        let (_, y) = c.round_saturate(
            table,
            "y",
            vec![(1, vec![acc]), (4, vec![prev, scale]), (1, vec![below]), (4, vec![])],
            3,
            127,
            2000,
        );
        let last = c.slot(Oracle::StateOut, "x.after", 2, (0, 15));
        c.link(
            input,
            "last",
            vec![Term {
                coef: 1,
                vars: 3,
                factors: vec![
                    Factor::Kernel(Kernel::Last { back: 0 }),
                    Factor::Slots {
                        constant: 0,
                        parts: vec![(1, xs)],
                        shift: 0,
                        binds: vec![Bind::Point(0), Bind::Point(1), Bind::Var(0), Bind::Var(1), Bind::Var(2)],
                    },
                ],
            }],
            vec![Carry {
                coef: -1,
                at_step: None,
                slot: last,
                vars: vec![0, 1],
            }],
        );
        c.lookup(table, "selected", Linear::of(0, &[(1, below)]), Linear::constant(1));
        c.check(&[]).unwrap();

        let mut slots: Vec<Vec<i64>> = vec![vec![]; c.slots.len()];
        slots[w] = weights.clone();
        slots[xs] = x.clone();
        slots[last] = (0..d).map(|i| x[i * t + t - 1]).collect();
        if let Some(s) = carried {
            slots[s] = before.clone();
        }
        let named = |name: &str| c.slots.iter().position(|s| s.name == name).unwrap();
        let (r, a) = (named("layer.y.r"), named("layer.y.a"));
        let (mut accs, mut prevs) = (vec![0i64; 32], vec![0i64; 32]);
        for row in 0..4 {
            for s in 0..t {
                let at = row * t + s;
                accs[at] = (0..d).map(|i| weights[row * d + i] * x[i * t + s]).sum();
                prevs[at] = if s > 0 {
                    x[row * t + s - 1]
                } else if has_in {
                    before[row]
                } else {
                    0
                };
                let less = i64::from(c.chosen[s] != usize::MAX && row < c.chosen[s]);
                let pre = accs[at] + 4 * prevs[at] * (row as i64 + 1) + less + 4;
                let full = pre >> 3;
                slots[r].push(pre & 7);
                slots[y].push(full.clamp(-127, 127));
                slots[a].push((full - full.clamp(-127, 127)).abs());
            }
        }
        let to_field = |v: &Vec<i64>| v.iter().map(|x| f(*x)).collect::<Vec<F>>();
        let mut sums = vec![vec![]; c.sums.len()];
        for (id, s) in c.sums.iter().enumerate() {
            match s.name.as_str() {
                "layer.acc" => sums[id] = to_field(&accs),
                "layer.prev" => sums[id] = to_field(&prevs),
                _ => {}
            }
        }
        let slots: Vec<Vec<F>> = slots.iter().map(to_field).collect();
        let of = |o: Oracle| {
            c.slots
                .iter()
                .zip(&slots)
                .filter(|(s, _)| s.oracle == o)
                .map(|(_, v)| v.clone())
                .collect::<Vec<_>>()
        };
        let others = [of(Oracle::Model), of(Oracle::StateIn), of(Oracle::StateOut)].concat();
        (c.clone(), Values { slots, sums }, others)
    }

    /// The claims on the other oracles hold for the polynomials themselves.
    fn claims_hold(claims: &Claims, slots: &[&Vec<F>]) -> bool {
        claims.batches.iter().zip(&claims.values).all(|(batch, values)| {
            batch
                .slots
                .iter()
                .zip(values)
                .all(|(s, v)| eval_multilinear_base(slots[*s], &batch.point) == *v)
        })
    }

    fn run(circuit: &Circuit, values: &Values) -> Result<bool, Error> {
        let seed = [F::from_u32(5); SEED];
        let (proof, _) = prove(circuit, values, &mut transcript(&seed, 0), &mut Times::default())?;
        let bytes = crate::container::encode(&proof);
        let proof: SegmentProof = crate::container::decode("segment", &bytes)?;
        let reduced = verify(circuit, &proof, &mut transcript(&seed, 0))?;
        let of = |o: Oracle| {
            circuit
                .slots
                .iter()
                .zip(&values.slots)
                .filter(|(s, _)| s.oracle == o)
                .map(|(_, v)| v)
                .collect::<Vec<_>>()
        };
        Ok(claims_hold(&reduced.model, &of(Oracle::Model))
            && claims_hold(&reduced.state_in, &of(Oracle::StateIn))
            && claims_hold(&reduced.state_out, &of(Oracle::StateOut)))
    }

    #[test]
    fn a_small_circuit_is_proven() {
        for has_in in [false, true] {
            let (circuit, values, _) = toy(has_in);
            assert!(run(&circuit, &values).unwrap());
        }
    }

    #[test]
    fn every_wrong_cell_is_refused() {
        let (circuit, values, _) = toy(true);
        for slot in 0..circuit.slots.len() {
            for row in [0, values.slots[slot].len() / 2, values.slots[slot].len() - 1] {
                for change in [F::ONE, -F::ONE, F::from_u32(1 << 20)] {
                    let mut wrong = Values {
                        slots: values.slots.clone(),
                        sums: values.sums.clone(),
                    };
                    wrong.slots[slot][row] += change;
                    assert!(
                        !matches!(run(&circuit, &wrong), Ok(true)),
                        "{} row {row}",
                        circuit.slots[slot].name
                    );
                }
            }
        }
        let _ = pcs::Shape { log_heights: vec![] };
    }

    /// Provers that only one check of the verifier stops: without it these lies would be accepted.
    #[test]
    fn every_check_stops_somebody() {
        let said = |circuit: &Circuit, values: &Values, trick: Option<Trick>| {
            TRICK.set(trick);
            let result = run(circuit, values);
            TRICK.set(None);
            match result {
                Ok(holds) => format!("accepted, {holds}"),
                Err(error) => error.to_string(),
            }
        };
        let refused = |circuit: &Circuit, values: &Values, trick: Option<Trick>, why: &'static str| {
            assert_eq!(said(circuit, values, trick), format!("proof: {why}"), "{trick:?}");
            WITHOUT.set(Some(why));
            assert_eq!(
                said(circuit, values, trick),
                "accepted, true",
                "{trick:?}, without this check"
            );
            WITHOUT.set(None);
        };
        let (circuit, honest, _) = toy(true);
        let copy = |values: &Values| Values {
            slots: values.slots.clone(),
            sums: values.sums.clone(),
        };
        let slot = |name: &str| circuit.slots.iter().position(|s| s.name == name).unwrap();
        assert_eq!(said(&circuit, &honest, None), "accepted, true");
        assert_eq!(said(&circuit, &honest, Some(Trick::OwnClaims)), "accepted, true");
        // A remainder that is another: a constraint does not hold.
        let (r, row) = (slot("layer.y.r"), 5);
        let mut wrong = copy(&honest);
        wrong.slots[r][row] = F::from_bool(wrong.slots[r][row] == F::ZERO);
        refused(
            &circuit,
            &wrong,
            None,
            "main sumcheck: the values at its point do not satisfy the circuit",
        );
        refused(
            &circuit,
            &wrong,
            Some(Trick::OwnClaims),
            "main sumcheck: the claimed sum is not that of the lookups",
        );
        // A sum that is another, with a remainder to match.
        let mut wrong = copy(&honest);
        let row = (0..32).find(|i| wrong.slots[r][*i] != F::from_u32(7)).unwrap();
        let acc = circuit.sums.iter().position(|s| s.name == "layer.acc").unwrap();
        wrong.slots[r][row] += F::ONE;
        wrong.sums[acc][row] += F::ONE;
        refused(
            &circuit,
            &wrong,
            None,
            "second sumcheck: the values at its point do not give the sums",
        );
        refused(
            &circuit,
            &wrong,
            Some(Trick::OwnClaims),
            "second sumcheck: the claimed sum is not that of the sums",
        );
        refused(
            &circuit,
            &honest,
            Some(Trick::OtherTrace),
            "the trace's opening gives other values",
        );
        for which in 0..3 {
            refused(
                &circuit,
                &honest,
                Some(Trick::More(which)),
                "the number of values does not fit the circuit",
            );
        }

        // A sum that is a slot itself: its value is sent twice, and each time it is another.
        let mut circuit = Circuit {
            log_steps: 3,
            ranges: ranges()[..13].to_vec(),
            fed: vec![0; 8],
            chosen: vec![usize::MAX; 8],
            ..Default::default()
        };
        let table = circuit.table("table", 4);
        let (x, slot) = circuit.commit(table, "x", (0, 15));
        circuit.in_range(table, x, 0, 4);
        let itself = Factor::Slots {
            constant: 0,
            parts: vec![(1, slot)],
            shift: 0,
            binds: (0..4).map(Bind::Point).collect(),
        };
        let term = Term {
            coef: 1,
            vars: 3,
            factors: vec![Factor::Kernel(Kernel::Lag(0)), itself],
        };
        circuit.sum(table, "y", vec![term], vec![], (0, 15));
        let x: Vec<F> = (0..16).map(|i| F::from_u32(i * 7 % 15)).collect();
        let mut values = Values {
            slots: vec![x.clone()],
            sums: vec![x],
        };
        assert_eq!(said(&circuit, &values, None), "accepted, true");
        values.sums[0][0] += F::ONE;
        refused(
            &circuit,
            &values,
            Some(Trick::OtherSlot(slot)),
            "one slot has two values at one point",
        );
    }
}
