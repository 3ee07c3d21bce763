//! The prover's side of the two sumchecks of spec/PROTOCOL.md, section 4 (steps 5 and 7). The transcript and the verifier are Plonky3's
//! (`p3_sumcheck::generic_degree`); here is the arithmetic of the round polynomials.
//!
//! Values are kept in SIMD lanes while a half of a table fills them, then one by one.

use std::cell::RefCell;

use p3_field::{Algebra, Field, PackedFieldExtension, PackedValue, PrimeCharacteristicRing};
use p3_sumcheck::generic_degree::RoundProver;
use rayon::prelude::*;

use crate::field::{eq_table, unpack, Packed, PackedEF, EF, F};

const WIDTH: usize = <Packed as PackedValue>::WIDTH;
/// Rows (or groups of lanes) that one job of a round takes.
const CHUNK: usize = 1 << 11;

/// coefficient · product of one to three columns.
#[derive(Clone, Debug)]
pub struct Monomial {
    pub coef: EF,
    pub cols: Vec<usize>,
}

/// Values over the remaining variables.
enum Values {
    Base(Vec<F>),
    Packed(Vec<PackedEF>),
    Ext(Vec<EF>),
}

impl Values {
    fn from_ext(values: Vec<EF>) -> Values {
        if values.len() >= 2 * WIDTH {
            Values::Packed(values.chunks_exact(WIDTH).map(PackedEF::from_ext_slice).collect())
        } else {
            Values::Ext(values)
        }
    }

    fn fold(&mut self, r: EF) {
        *self = match self {
            Values::Base(v) => {
                let (low, high) = v.split_at(v.len() / 2);
                if low.len() >= 2 * WIDTH {
                    let r = PackedEF::from(r);
                    let pairs = Packed::pack_slice(low).iter().zip(Packed::pack_slice(high));
                    Values::Packed(pairs.map(|(l, h)| r * (*h - *l) + *l).collect())
                } else {
                    Values::Ext(low.iter().zip(high).map(|(l, h)| r * (*h - *l) + *l).collect())
                }
            }
            Values::Packed(v) => {
                let half = v.len() / 2;
                let packed = PackedEF::from(r);
                for i in 0..half {
                    let d = v[i + half] - v[i];
                    v[i] += packed * d;
                }
                v.truncate(half);
                if half >= 2 {
                    return;
                } else {
                    Values::Ext(unpack(v))
                }
            }
            Values::Ext(v) => {
                let half = v.len() / 2;
                for i in 0..half {
                    let d = v[i + half] - v[i];
                    v[i] += r * d;
                }
                return v.truncate(half);
            }
        };
    }
}

/// One table in the main sumcheck: Σ_x eq(τ, x) · (linear(x) + Σ monomials(x)).
pub struct MainTable {
    log: usize,
    cols: Vec<Values>,
    linear: Values,
    monomials: Vec<Monomial>,
    claim: EF,
}

impl MainTable {
    /// `cols`: the columns that the monomials name, over 2^log rows; `linear`: one element of EF a row.
    pub fn new(log: usize, cols: Vec<Vec<F>>, linear: Vec<EF>, monomials: Vec<Monomial>) -> Self {
        MainTable {
            log,
            cols: cols.into_iter().map(Values::Base).collect(),
            linear: Values::from_ext(linear),
            monomials,
            claim: EF::ZERO,
        }
    }
}

pub struct MainSumcheck {
    tables: Vec<MainTable>,
    tau: Vec<EF>,
    round: usize,
    /// Π eq(τ_i, r_i) so far.
    scale: EF,
    eqs: Vec<EqTable>,
    /// h(0) … h(3) of every table in the present round.
    present: RefCell<Vec<[EF; 4]>>,
}

struct EqTable {
    packed: Vec<PackedEF>,
    ext: Vec<EF>,
}

impl MainSumcheck {
    /// Σ_x eq(τ, x) · Σ_tables (…); its value is `claim()`.
    pub fn new(tau: &[EF], mut tables: Vec<MainTable>) -> Self {
        let eqs: Vec<EqTable> = (0..=tau.len())
            .map(|j| {
                let ext = eq_table(&tau[tau.len() - j..]);
                if ext.len() >= WIDTH {
                    EqTable {
                        packed: ext.chunks_exact(WIDTH).map(PackedEF::from_ext_slice).collect(),
                        ext: vec![],
                    }
                } else {
                    EqTable { packed: vec![], ext }
                }
            })
            .collect();
        for table in &mut tables {
            let eq = &eqs[table.log];
            let linear = match &table.linear {
                Values::Packed(u) => sum_lanes(
                    u.par_iter()
                        .zip(&eq.packed)
                        .map(|(u, e)| *u * *e)
                        .reduce(|| PackedEF::ZERO, |a, b| a + b),
                ),
                Values::Ext(u) => {
                    let weights = if eq.ext.is_empty() {
                        unpack(&eq.packed)
                    } else {
                        eq.ext.clone()
                    };
                    u.iter().zip(&weights).map(|(u, e)| *u * *e).sum()
                }
                Values::Base(_) => unreachable!("linear parts are in EF"),
            };
            table.claim = linear + monomials_sum(table, eq);
        }
        MainSumcheck {
            tables,
            tau: tau.to_vec(),
            round: 0,
            scale: EF::ONE,
            eqs,
            present: RefCell::new(vec![]),
        }
    }

    pub fn claim(&self) -> EF {
        self.tables.iter().map(|t| t.claim).sum()
    }
}

fn sum_lanes(x: PackedEF) -> EF {
    unpack(&[x]).into_iter().sum()
}

/// Σ_x eq(x) · Σ monomials(x) before any variable is bound.
fn monomials_sum(table: &MainTable, eq: &EqTable) -> EF {
    if table.monomials.is_empty() {
        return EF::ZERO;
    }
    let base = |c: &Values| match c {
        Values::Base(v) => v.clone(),
        _ => unreachable!("columns begin in F"),
    };
    let rows = 1usize << table.log;
    if rows >= WIDTH {
        let cols: Vec<Vec<F>> = table.cols.iter().map(base).collect();
        let cols: Vec<&[Packed]> = cols.iter().map(|c| Packed::pack_slice(c)).collect();
        let coefs: Vec<PackedEF> = table.monomials.iter().map(|m| PackedEF::from(m.coef)).collect();
        let sum = (0..rows / WIDTH)
            .into_par_iter()
            .with_min_len(CHUNK)
            .map(|i| {
                let mut g = PackedEF::ZERO;
                for (m, c) in table.monomials.iter().zip(&coefs) {
                    let product = m.cols[1..].iter().fold(cols[m.cols[0]][i], |p, c| p * cols[*c][i]);
                    g += *c * product;
                }
                g * eq.packed[i]
            })
            .reduce(|| PackedEF::ZERO, |a, b| a + b);
        return sum_lanes(sum);
    }
    let cols: Vec<Vec<F>> = table.cols.iter().map(base).collect();
    (0..rows)
        .map(|i| {
            let g: EF = table
                .monomials
                .iter()
                .map(|m| m.coef * m.cols.iter().map(|c| cols[*c][i]).product::<F>())
                .sum();
            g * eq.ext[i]
        })
        .sum()
}

/// Σ_i eq_i · (linear + Σ monomials) at X = 0, 2, 3 of the variable being bound, over the rows `from..to` of the lower half.
#[allow(clippy::too_many_arguments)]
fn round_sums<V, E>(
    monomials: &[Monomial],
    coefs: &[E],
    cols: &[&[V]],
    linear: &[E],
    eq: &[E],
    half: usize,
    from: usize,
    to: usize,
) -> [E; 3]
where
    V: PrimeCharacteristicRing + Copy,
    E: Algebra<V> + Copy,
{
    let mut at = vec![[V::ZERO; 3]; cols.len()];
    let mut sums = [E::ZERO; 3];
    for i in from..to {
        for (col, v) in cols.iter().zip(&mut at) {
            let (low, high) = (col[i], col[i + half]);
            let d = high - low;
            let two = high + d;
            *v = [low, two, two + d];
        }
        let (low, high) = (linear[i], linear[i + half]);
        let d = high - low;
        let two = high + d;
        let mut g = [low, two, two + d];
        for (m, c) in monomials.iter().zip(coefs) {
            for (x, g) in g.iter_mut().enumerate() {
                *g += match m.cols[..] {
                    [a] => *c * at[a][x],
                    [a, b] => *c * (at[a][x] * at[b][x]),
                    _ => *c * (at[m.cols[0]][x] * at[m.cols[1]][x] * at[m.cols[2]][x]),
                };
            }
        }
        for (sum, g) in sums.iter_mut().zip(g) {
            *sum += g * eq[i];
        }
    }
    sums
}

impl MainTable {
    fn jobs(&self) -> usize {
        let rows = (1usize << self.log) / 2;
        (rows / WIDTH.max(1)).div_ceil(CHUNK).max(1)
    }

    /// Part `job` of `jobs` of the sums of this round.
    fn part(&self, eq: &EqTable, job: usize, jobs: usize) -> [EF; 3] {
        let half = (1usize << self.log) / 2;
        let span = |n: usize| (n * job / jobs, n * (job + 1) / jobs);
        let packed_coefs = || {
            self.monomials
                .iter()
                .map(|m| PackedEF::from(m.coef))
                .collect::<Vec<_>>()
        };
        let ext_coefs = || self.monomials.iter().map(|m| m.coef).collect::<Vec<_>>();
        let first = self.cols.first();
        match (&self.linear, first) {
            (Values::Packed(u), Some(Values::Base(_))) => {
                let cols: Vec<&[Packed]> = self
                    .cols
                    .iter()
                    .map(|c| match c {
                        Values::Base(v) => Packed::pack_slice(v),
                        _ => unreachable!(),
                    })
                    .collect();
                let n = half / WIDTH;
                let (from, to) = span(n);
                round_sums(&self.monomials, &packed_coefs(), &cols, u, &eq.packed, n, from, to).map(sum_lanes)
            }
            (Values::Packed(u), _) => {
                let cols: Vec<&[PackedEF]> = self
                    .cols
                    .iter()
                    .map(|c| match c {
                        Values::Packed(v) => &v[..],
                        _ => unreachable!(),
                    })
                    .collect();
                let n = half / WIDTH;
                let (from, to) = span(n);
                round_sums(&self.monomials, &packed_coefs(), &cols, u, &eq.packed, n, from, to).map(sum_lanes)
            }
            (Values::Ext(u), Some(Values::Base(_))) => {
                let cols: Vec<&[F]> = self
                    .cols
                    .iter()
                    .map(|c| match c {
                        Values::Base(v) => &v[..],
                        _ => unreachable!(),
                    })
                    .collect();
                let (from, to) = span(half);
                round_sums(&self.monomials, &ext_coefs(), &cols, u, &eq.ext, half, from, to)
            }
            (Values::Ext(u), _) => {
                let cols: Vec<&[EF]> = self
                    .cols
                    .iter()
                    .map(|c| match c {
                        Values::Ext(v) => &v[..],
                        _ => unreachable!(),
                    })
                    .collect();
                let (from, to) = span(half);
                round_sums(&self.monomials, &ext_coefs(), &cols, u, &eq.ext, half, from, to)
            }
            (Values::Base(_), _) => unreachable!("linear parts are in EF"),
        }
    }
}

/// The cubic through h(0) … h(3) at x.
fn cubic(h: &[EF; 4], x: EF) -> EF {
    let [x0, x1, x2, x3] = [x, x - EF::ONE, x - EF::TWO, x - EF::from_u8(3)];
    let half = F::TWO.inverse();
    let sixth = F::from_u8(6).inverse();
    h[1] * (x0 * x2 * x3) * half - h[0] * (x1 * x2 * x3) * sixth - h[2] * (x0 * x1 * x3) * half
        + h[3] * (x0 * x1 * x2) * sixth
}

impl RoundProver<EF> for MainSumcheck {
    fn round_poly(&self) -> Vec<EF> {
        let rest = self.tau.len() - self.round;
        let tau = self.tau[self.round];
        // A zero coordinate has probability 2^-155; the round polynomial then comes out wrong and the verifier refuses the proof.
        let inverse = tau.try_inverse().unwrap_or(EF::ZERO);
        let jobs: Vec<(usize, usize, usize)> = self
            .tables
            .iter()
            .enumerate()
            .filter(|(_, t)| t.log == rest)
            .flat_map(|(i, t)| {
                let jobs = t.jobs();
                (0..jobs).map(move |job| (i, job, jobs))
            })
            .collect();
        let (tables, eq) = (&self.tables, &self.eqs[rest - 1]);
        let parts: Vec<(usize, [EF; 3])> = jobs
            .par_iter()
            .map(|&(i, job, jobs)| (i, tables[i].part(eq, job, jobs)))
            .collect();
        let mut sums = vec![[EF::ZERO; 3]; self.tables.len()];
        for (i, part) in parts {
            for (sum, p) in sums[i].iter_mut().zip(part) {
                *sum += p;
            }
        }
        let h: Vec<[EF; 4]> = self
            .tables
            .iter()
            .zip(sums)
            .map(|(t, [h0, h2, h3])| {
                if t.log == rest {
                    [h0, (t.claim - (EF::ONE - tau) * h0) * inverse, h2, h3]
                } else {
                    [t.claim; 4]
                }
            })
            .collect();
        let total = |x: usize| h.iter().map(|h| h[x]).sum::<EF>();
        let (h0, h1, h2, h3) = (total(0), total(1), total(2), total(3));
        let h4 = (h1 + h3 - h2) * F::from_u8(4) - h2 * F::TWO - h0;
        let eq = |x: u8| tau * F::from_u8(x) + (EF::ONE - tau) * (F::ONE - F::from_u8(x));
        *self.present.borrow_mut() = h;
        [(0, h0), (2, h2), (3, h3), (4, h4)]
            .map(|(x, h)| self.scale * eq(x) * h)
            .to_vec()
    }

    fn fold(&mut self, r: EF) {
        let rest = self.tau.len() - self.round;
        let tau = self.tau[self.round];
        let present = self.present.take();
        self.tables
            .par_iter_mut()
            .zip(present)
            .filter(|(t, _)| t.log == rest)
            .for_each(|(t, h)| {
                t.claim = cubic(&h, r);
                t.linear.fold(r);
                t.cols.par_iter_mut().for_each(|c| c.fold(r));
                t.log -= 1;
            });
        self.scale *= tau * r + (EF::ONE - tau) * (EF::ONE - r);
        self.round += 1;
    }
}

/// One term of the second sumcheck: Σ_x Π factors(x), each factor over 2^log values.
pub struct SecondTerm {
    log: usize,
    factors: Vec<Values>,
}

impl SecondTerm {
    pub fn new(log: usize, factors: Vec<Vec<EF>>) -> Self {
        assert!((1..=3).contains(&factors.len()));
        SecondTerm {
            log,
            factors: factors.into_iter().map(Values::from_ext).collect(),
        }
    }

    fn product_at<E: PrimeCharacteristicRing + Copy>(factors: &[&[E]]) -> [E; 3] {
        let half = factors[0].len() / 2;
        let mut sums = [E::ZERO; 3];
        for i in 0..half {
            let mut product = [E::ONE; 3];
            for (j, f) in factors.iter().enumerate() {
                let (low, high) = (f[i], f[i + half]);
                let d = high - low;
                let two = high + d;
                for (p, v) in product.iter_mut().zip([low, two, two + d]) {
                    *p = if j == 0 { v } else { *p * v };
                }
            }
            for (s, p) in sums.iter_mut().zip(product) {
                *s += p;
            }
        }
        sums
    }

    fn at_points(&self) -> [EF; 3] {
        match &self.factors[0] {
            Values::Packed(_) => {
                let f: Vec<&[PackedEF]> = self
                    .factors
                    .iter()
                    .map(|f| {
                        if let Values::Packed(v) = f {
                            &v[..]
                        } else {
                            unreachable!()
                        }
                    })
                    .collect();
                Self::product_at(&f).map(sum_lanes)
            }
            _ => Self::product_at(&self.ext()),
        }
    }

    fn ext(&self) -> Vec<&[EF]> {
        self.factors
            .iter()
            .map(|f| if let Values::Ext(v) = f { &v[..] } else { unreachable!() })
            .collect()
    }

    fn total(&self) -> EF {
        match &self.factors[0] {
            Values::Packed(first) => {
                let f: Vec<&[PackedEF]> = self
                    .factors
                    .iter()
                    .map(|f| {
                        if let Values::Packed(v) = f {
                            &v[..]
                        } else {
                            unreachable!()
                        }
                    })
                    .collect();
                sum_lanes(
                    (0..first.len())
                        .map(|i| f[1..].iter().fold(f[0][i], |p, f| p * f[i]))
                        .sum(),
                )
            }
            _ => {
                let f = self.ext();
                (0..f[0].len()).map(|i| f.iter().map(|f| f[i]).product::<EF>()).sum()
            }
        }
    }
}

pub struct SecondSumcheck {
    /// Each with its sum over the cube while it waits for its first variable.
    terms: Vec<(SecondTerm, EF)>,
    rest: usize,
}

impl SecondSumcheck {
    pub fn new(vars: usize, mut terms: Vec<SecondTerm>) -> Self {
        let half = F::TWO.inverse();
        terms.par_iter_mut().for_each(|t| {
            let scale = half.exp_u64((vars - t.log) as u64);
            match &mut t.factors[0] {
                Values::Packed(v) => v.iter_mut().for_each(|x| *x *= Packed::from(scale)),
                Values::Ext(v) => v.iter_mut().for_each(|x| *x *= scale),
                Values::Base(_) => unreachable!(),
            }
        });
        let terms = terms
            .into_par_iter()
            .map(|t| {
                let sum = t.total();
                (t, sum)
            })
            .collect();
        SecondSumcheck { terms, rest: vars }
    }

    pub fn claim(&self) -> EF {
        self.terms
            .iter()
            .map(|(t, sum)| *sum * F::TWO.exp_u64((self.rest - t.log) as u64))
            .sum()
    }
}

impl RoundProver<EF> for SecondSumcheck {
    fn round_poly(&self) -> Vec<EF> {
        let sums = self
            .terms
            .par_iter()
            .map(|(t, sum)| {
                if t.log == self.rest {
                    t.at_points()
                } else {
                    [*sum * F::TWO.exp_u64((self.rest - t.log - 1) as u64); 3]
                }
            })
            .reduce(|| [EF::ZERO; 3], |a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]]);
        sums.to_vec()
    }

    fn fold(&mut self, r: EF) {
        let rest = self.rest;
        self.terms
            .par_iter_mut()
            .filter(|(t, _)| t.log == rest)
            .for_each(|(t, _)| {
                t.factors.iter_mut().for_each(|f| f.fold(r));
                t.log -= 1;
            });
        self.rest -= 1;
    }
}
