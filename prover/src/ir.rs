//! The circuit as data: what is committed, which relations hold between the committed values, and which plain ranges they lie in.
//!
//! Prover and verifier build the same `Circuit` from public facts alone (shape of the model, shifts, lengths, tokens), so nothing in a proof can change it.
//! `spec/PROTOCOL.md` says what each part means; the words here are the same.
//!
//! A polynomial of k variables is a vector of 2^k values; variable 0 is the most significant bit of the index. Every polynomial that depends on the position
//! in the segment has the position in its *last* `log_steps` variables.

use std::collections::HashMap;

/// KoalaBear's prime, 2^31 − 2^24 + 1.
pub const P: i64 = (1 << 31) - (1 << 24) + 1;
/// Highest degree of a constraint in the columns of its table.
pub const MAX_DEGREE: usize = 3;

pub type SlotId = usize;
pub type SumId = usize;
/// Index of a column in its table.
pub type ColId = usize;

/// Which commitment a slot lives in. The states are those at the two ends of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oracle {
    Model,
    StateIn,
    StateOut,
    Trace,
}

/// One committed polynomial.
#[derive(Clone, Debug)]
pub struct Slot {
    pub oracle: Oracle,
    pub name: String,
    /// Number of variables.
    pub log: usize,
    /// Every value, as an integer, lies in lo ..= hi: for the trace a consequence of the circuit, for the model of its registration.
    pub range: (i64, i64),
}

/// A polynomial that the verifier evaluates by itself.
#[derive(Clone, Debug)]
pub enum Public {
    /// `values` over the variables `vars` of the table (most significant first), constant in the others.
    Dense { vars: Vec<usize>, values: Vec<i64> },
    /// [base + v = token_t] over a table whose variables are v, then the time.
    TokenAt { which: Tokens, base: usize },
    /// [base + v < token_t].
    TokenBelow { which: Tokens, base: usize },
}

/// Token at each step: the one fed, or the one chosen after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    Fed,
    Chosen,
}

/// Where a column of a table comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A committed polynomial, variable i of which is the table's variable `vars[i]`; constant in the table's other variables.
    Slot {
        slot: SlotId,
        vars: Vec<usize>,
    },
    Public(Public),
    /// A sum over committed polynomials, evaluated at the table's point by the second sumcheck.
    Sum(SumId),
}

#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub source: Source,
    pub range: (i64, i64),
}

/// Σ coefficient · Π columns.
pub type Terms = Vec<(i64, Vec<ColId>)>;

/// A polynomial in the columns of a table that is zero in every row.
#[derive(Clone, Debug)]
pub struct Constraint {
    pub name: String,
    pub terms: Terms,
    /// Integer identities that the constraint stands for, by case; each must stay within (−p, p). Empty: `terms` itself is the identity.
    pub cases: Vec<Vec<(i64, Vec<Factor64>)>>,
}

/// A column or a constant in the cases of a constraint.
#[derive(Clone, Copy, Debug)]
pub enum Factor64 {
    Col(ColId),
    Const(i64),
}

/// constant + Σ coefficient · column, all divided (in the field) by 2^shift.
#[derive(Clone, Debug, Default)]
pub struct Linear {
    pub constant: i64,
    pub terms: Vec<(i64, ColId)>,
    pub shift: u32,
}

/// In every row where the product of the public columns `selector` is 1 (it is 0 or 1), `value` lies in the plain range with the index `range`.
#[derive(Clone, Debug)]
pub struct Lookup {
    pub name: String,
    pub value: Linear,
    /// An index into `Circuit::ranges`, perhaps depending on the row.
    pub range: Linear,
    /// Public columns on disjoint variables.
    pub selector: Vec<ColId>,
}

#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    /// Number of variables.
    pub log: usize,
    pub columns: Vec<Column>,
    pub constraints: Vec<Constraint>,
    pub lookups: Vec<Lookup>,
    /// (a, b, bound): |a · b| ≤ bound in every row, narrower than the two ranges say: the row bound of a registered matrix.
    pub products: Vec<(ColId, ColId, i64)>,
}

/// A function of the point of a table: Σ of terms, each a sum over a hypercube, and of slots evaluated at the point itself.
#[derive(Clone, Debug)]
pub struct Sum {
    pub name: String,
    pub table: usize,
    pub terms: Vec<Term>,
    pub carries: Vec<Carry>,
}

/// coefficient · Σ over x in {0,1}^vars of Π factors(x).
#[derive(Clone, Debug)]
pub struct Term {
    pub coef: i64,
    pub vars: usize,
    pub factors: Vec<Factor>,
}

#[derive(Clone, Debug)]
pub enum Factor {
    /// constant + Σ coefficient · slot, divided by 2^shift; all slots have the same number of variables, bound as `binds` says.
    Slots {
        constant: i64,
        parts: Vec<(i64, SlotId)>,
        shift: u32,
        binds: Vec<Bind>,
    },
    Kernel(Kernel),
}

/// A variable of a slot is a coordinate of the table's point, or a variable of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    Point(usize),
    Var(usize),
}

/// Public functions of the variables x of a sum and of the time coordinates r of the table's point. T = 2^log_steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Σ_{t ≥ lag} eq(r, t) · eq(x_time, t − lag); lag 0 is eq(r, x_time). x_time: the last log_steps variables of x.
    Lag(usize),
    /// eq(x_time, T − 1 − back).
    Last { back: usize },
    /// Σ_t eq(r, t) · [x = token_t − base]: x are all variables of the sum; tokens outside the block of 2^vars count nothing.
    Fed { base: usize },
    /// Σ_t eq(x_time, t) · [x_v = token_t − base], x = (x_v, x_time).
    TokenAt { which: Tokens, base: usize },
    /// Σ_t eq(x_time, t) · [x_v < token_t − base], x = (x_v, x_time).
    TokenBelow { which: Tokens, base: usize },
}

/// coefficient · weight(r) · slot(point), weight = 1, or eq(r, t) for one step t (r: the time coordinates of the table's point).
#[derive(Clone, Debug)]
pub struct Carry {
    pub coef: i64,
    pub at_step: Option<usize>,
    pub slot: SlotId,
    /// Variable i of the slot is the table's variable `vars[i]`.
    pub vars: Vec<usize>,
}

/// The whole circuit of a segment (or of a registration, which has no time: log_steps = 0).
#[derive(Clone, Debug, Default)]
pub struct Circuit {
    pub log_steps: usize,
    pub slots: Vec<Slot>,
    pub tables: Vec<Table>,
    pub sums: Vec<Sum>,
    /// Sums that are zero at the point of their table.
    pub links: Vec<SumId>,
    /// Sizes: range i is the integers 0 .. size.
    pub ranges: Vec<u64>,
    /// One token a step, for `Tokens::Fed` and `Tokens::Chosen`; `usize::MAX` is no token.
    pub fed: Vec<usize>,
    pub chosen: Vec<usize>,
}

/// The ranges of every circuit. Index w ≤ 17: w bits. Then those with names.
pub const WIDEST_BITS: usize = 17;
pub const RANGE_19_BITS: usize = 18;
/// 2L + 1 values each, for the symmetric saturations sat6, sat8, sat15, sat16.
pub const RANGE_SAT6: usize = 19;
pub const RANGE_SAT8: usize = 20;
pub const RANGE_SAT15: usize = 21;
pub const RANGE_SAT16: usize = 22;
/// Square roots of ARITHMETIC section 2 with a remainder: 0 .. 2^15 + 2^13.
pub const RANGE_ROOT: usize = 23;

pub fn ranges() -> Vec<u64> {
    let mut sizes: Vec<u64> = (0..=WIDEST_BITS).map(|w| 1 << w).collect();
    sizes.extend([1 << 19, 63, 255, 32767, 65535, (1 << 15) + (1 << 13)]);
    sizes
}

impl Linear {
    pub fn constant(c: i64) -> Self {
        Linear {
            constant: c,
            ..Linear::default()
        }
    }
    pub fn col(c: ColId) -> Self {
        Linear {
            terms: vec![(1, c)],
            ..Linear::default()
        }
    }
    pub fn of(constant: i64, terms: &[(i64, ColId)]) -> Self {
        Linear {
            constant,
            terms: terms.to_vec(),
            shift: 0,
        }
    }
    #[must_use]
    pub fn over(mut self, shift: u32) -> Self {
        self.shift = shift;
        self
    }
}

impl Circuit {
    /// log2 of the number of rows of the table of ranges: the lookups' other side.
    pub fn log_ranges(&self) -> usize {
        let total: u64 = self.ranges.iter().sum();
        total.next_power_of_two().trailing_zeros() as usize
    }

    pub fn slot(&mut self, oracle: Oracle, name: impl Into<String>, log: usize, range: (i64, i64)) -> SlotId {
        self.slots.push(Slot {
            oracle,
            name: name.into(),
            log,
            range,
        });
        self.slots.len() - 1
    }

    pub fn table(&mut self, name: impl Into<String>, log: usize) -> usize {
        self.tables.push(Table {
            name: name.into(),
            log,
            columns: vec![],
            constraints: vec![],
            lookups: vec![],
            products: vec![],
        });
        self.tables.len() - 1
    }

    fn column(&mut self, table: usize, name: String, source: Source, range: (i64, i64)) -> ColId {
        let columns = &mut self.tables[table].columns;
        columns.push(Column { name, source, range });
        columns.len() - 1
    }

    /// A new slot of the trace that is a column of `table`.
    pub fn commit(&mut self, table: usize, name: &str, range: (i64, i64)) -> (ColId, SlotId) {
        let log = self.tables[table].log;
        let slot = self.slot(Oracle::Trace, format!("{}.{name}", self.tables[table].name), log, range);
        (self.view(table, slot, &(0..log).collect::<Vec<_>>()), slot)
    }

    /// An existing slot as a column: variable i of the slot is variable `vars[i]` of the table.
    pub fn view(&mut self, table: usize, slot: SlotId, vars: &[usize]) -> ColId {
        let (name, range) = (self.slots[slot].name.clone(), self.slots[slot].range);
        assert_eq!(vars.len(), self.slots[slot].log, "{name}: a view binds every variable");
        self.column(
            table,
            name,
            Source::Slot {
                slot,
                vars: vars.to_vec(),
            },
            range,
        )
    }

    pub fn public(&mut self, table: usize, name: &str, public: Public) -> ColId {
        let range = match &public {
            Public::Dense { values, .. } => (*values.iter().min().unwrap(), *values.iter().max().unwrap()),
            _ => (0, 1),
        };
        self.column(table, name.into(), Source::Public(public), range)
    }

    /// A sum as a column; its values lie in `range` whenever its slots lie in theirs (for matrix products: by the registered bounds of the rows).
    pub fn sum(
        &mut self,
        table: usize,
        name: &str,
        terms: Vec<Term>,
        carries: Vec<Carry>,
        range: (i64, i64),
    ) -> (ColId, SumId) {
        let id = self.sums.len();
        self.sums.push(Sum {
            name: format!("{}.{name}", self.tables[table].name),
            table,
            terms,
            carries,
        });
        (self.column(table, name.into(), Source::Sum(id), range), id)
    }

    /// A sum that is zero at the table's point.
    pub fn link(&mut self, table: usize, name: &str, terms: Vec<Term>, carries: Vec<Carry>) {
        self.sums.push(Sum {
            name: format!("{}.{name}", self.tables[table].name),
            table,
            terms,
            carries,
        });
        self.links.push(self.sums.len() - 1);
    }

    pub fn constrain(&mut self, table: usize, name: &str, terms: Terms) {
        self.tables[table].constraints.push(Constraint {
            name: name.into(),
            terms,
            cases: vec![],
        });
    }

    pub fn boolean(&mut self, table: usize, col: ColId) {
        let name = format!("{} is 0 or 1", self.tables[table].columns[col].name);
        self.constrain(table, &name, vec![(1, vec![col, col]), (-1, vec![col])]);
    }

    pub fn lookup(&mut self, table: usize, name: &str, value: Linear, range: Linear) {
        self.tables[table].lookups.push(Lookup {
            name: name.into(),
            value,
            range,
            selector: vec![],
        });
    }

    /// col + offset lies in the range with index `range`.
    pub fn in_range(&mut self, table: usize, col: ColId, offset: i64, range: usize) {
        let name = self.tables[table].columns[col].name.clone();
        self.lookup(
            table,
            &name,
            Linear::of(offset, &[(1, col)]),
            Linear::constant(range as i64),
        );
    }

    /// −limit ≤ col ≤ limit, for any limit < 2^18, by two lookups (one where a range of exactly that size exists).
    pub fn symmetric(&mut self, table: usize, col: ColId, limit: i64) {
        if let Some(range) = self.ranges.iter().position(|&size| size == 2 * limit as u64 + 1) {
            return self.in_range(table, col, limit, range);
        }
        let range = (0..=WIDEST_BITS).find(|&w| 1 << w > 2 * limit).unwrap_or(RANGE_19_BITS);
        assert!(self.ranges[range] as i64 > 2 * limit);
        let name = self.tables[table].columns[col].name.clone();
        self.lookup(
            table,
            &name,
            Linear::of(limit, &[(1, col)]),
            Linear::constant(range as i64),
        );
        self.lookup(
            table,
            &name,
            Linear::of(limit, &[(-1, col)]),
            Linear::constant(range as i64),
        );
    }

    /// pre = 2^shift · y' + r with 0 ≤ r < 2^shift and u = min(max(y', −limit), limit): the rounding shift and symmetric saturation of ARITHMETIC section 1.
    /// `pre` is what is shifted, with its 2^(shift − 1) already added; |y'| ≤ reach. Returns the column and slot of u. (PROTOCOL, "Saturation".)
    ///
    /// Committed: r (if shift > 0), u, and, if reach > limit, the overflow a = |y' − u|. Then limit·(pre − r − 2^s·u) = 2^s·a·u and a·(u² − limit²) = 0:
    /// where a ≠ 0, u is +limit or −limit and y' = u ± a lies beyond it on its own side; where a = 0, y' = u.
    pub fn round_saturate(
        &mut self,
        table: usize,
        name: &str,
        pre: Terms,
        shift: u32,
        limit: i64,
        reach: i64,
    ) -> (ColId, SlotId) {
        let limit_or_reach = limit.min(reach);
        let (u, slot) = self.commit(table, name, (-limit_or_reach, limit_or_reach));
        self.symmetric(table, u, limit_or_reach);
        let mut rest = pre;
        if shift > 0 {
            let (r, _) = self.commit(table, &format!("{name}.r"), (0, (1 << shift) - 1));
            self.bits(table, &format!("{name}.r"), r, shift as usize);
            rest.push((-1, vec![r]));
        }
        rest.push((-(1 << shift), vec![u]));
        if reach <= limit {
            self.constrain(table, &format!("{name} is the rounded value"), rest);
            return (u, slot);
        }
        let bits = bit_length(reach - limit);
        let (a, _) = self.commit(table, &format!("{name}.a"), (0, (1 << bits) - 1));
        self.bits(table, &format!("{name}.a"), a, bits);
        let case = |sign: i64| -> Vec<(i64, Vec<Factor64>)> {
            let mut terms: Vec<(i64, Vec<Factor64>)> = rest
                .iter()
                .map(|(c, cols)| (*c, cols.iter().map(|&x| Factor64::Col(x)).collect()))
                .collect();
            terms.push((-sign << shift, vec![Factor64::Col(a)]));
            terms
        };
        let cases = vec![case(1), case(-1)];
        let mut terms: Terms = rest.iter().map(|(c, cols)| (c * limit, cols.clone())).collect();
        terms.push((-(1 << shift), vec![a, u]));
        self.tables[table].constraints.push(Constraint {
            name: format!("{name} is the rounded value, saturated"),
            terms,
            cases,
        });
        let name = format!("{name} is saturated where it overflows");
        let terms = vec![(1, vec![a, u, u]), (-limit * limit, vec![a])];
        // A product in the field is zero only if a factor is: a = 0, u = limit or u = −limit.
        self.tables[table].constraints.push(Constraint {
            name,
            terms,
            cases: vec![vec![]],
        });
        (u, slot)
    }

    /// 0 ≤ col < 2^bits for bits up to 17 by one lookup, up to 34 by a committed low half and two.
    pub fn bits(&mut self, table: usize, name: &str, col: ColId, bits: usize) {
        self.bits_of(table, name, Linear::col(col), bits);
    }

    /// 0 ≤ value < 2^bits.
    pub fn bits_of(&mut self, table: usize, name: &str, value: Linear, bits: usize) {
        if bits <= WIDEST_BITS {
            return self.lookup(table, name, value, Linear::constant(bits as i64));
        }
        if bits == 19 {
            return self.lookup(table, name, value, Linear::constant(RANGE_19_BITS as i64));
        }
        assert!(bits <= 30 && value.shift == 0, "{name}: {bits} bits");
        let low = bits / 2;
        let (l, _) = self.commit(table, &format!("{name}.low"), (0, (1 << low) - 1));
        self.in_range(table, l, 0, low);
        let mut high = value;
        high.terms.push((-1, l));
        high.shift = low as u32;
        self.lookup(table, name, high, Linear::constant((bits - low) as i64));
    }

    /// Why the circuit is not well formed, if it is not: a degree, an arity, an identity that could hold modulo p without holding over the integers, or a
    /// slot of the trace whose range no lookup or boolean constraint establishes (except those listed in `derived`: linear in others by a constraint).
    pub fn check(&self, derived: &[SlotId]) -> Result<(), String> {
        self.check_for(Oracle::Trace, derived)
    }

    /// As `check`, for the slots of `oracle`: a registration establishes the ranges of the model's.
    pub fn check_for(&self, oracle: Oracle, derived: &[SlotId]) -> Result<(), String> {
        for table in &self.tables {
            let range = |c: ColId| table.columns[c].range;
            for constraint in &table.constraints {
                for (_, cols) in &constraint.terms {
                    if cols.len() > MAX_DEGREE {
                        return Err(format!("{}: {}: degree {}", table.name, constraint.name, cols.len()));
                    }
                }
                let own: Vec<Vec<(i64, Vec<Factor64>)>>;
                let cases = if constraint.cases.is_empty() {
                    own = vec![constraint
                        .terms
                        .iter()
                        .map(|(c, cols)| (*c, cols.iter().map(|&x| Factor64::Col(x)).collect()))
                        .collect()];
                    &own
                } else {
                    &constraint.cases
                };
                for case in cases {
                    let (mut lo, mut hi) = (0i128, 0i128);
                    for (c, factors) in case {
                        let bound = table.products.iter().find(|(a, b, _)| matches!(factors[..], [Factor64::Col(x), Factor64::Col(y)] if (x, y) == (*a, *b)));
                        if let Some((_, _, bound)) = bound {
                            let reach = i128::from(c.abs()) * i128::from(*bound);
                            (lo, hi) = (lo - reach, hi + reach);
                            continue;
                        }
                        let value = |f: Factor64| match f {
                            Factor64::Col(x) => range(x),
                            Factor64::Const(v) => (v, v),
                        };
                        let start = (i128::from(*c), i128::from(*c));
                        let (l, h) = match factors[..] {
                            // A square is not negative.
                            [Factor64::Col(x), Factor64::Col(y)] if x == y => {
                                let (l, h) = times(times((1, 1), range(x)), range(x));
                                times(start, (l.max(0) as i64, h as i64))
                            }
                            _ => factors.iter().fold(start, |acc, f| times(acc, value(*f))),
                        };
                        lo += l;
                        hi += h;
                    }
                    if lo <= -i128::from(P) || hi >= i128::from(P) {
                        return Err(format!(
                            "{}: {}: from {lo} to {hi}, beyond ±p",
                            table.name, constraint.name
                        ));
                    }
                }
            }
        }
        self.check_ranges(oracle, derived)
    }

    fn check_ranges(&self, oracle: Oracle, derived: &[SlotId]) -> Result<(), String> {
        let mut proven: HashMap<SlotId, (i64, i64)> = HashMap::new();
        for table in &self.tables {
            // The slot that is this column, if it is one of the oracles in question and has all the table's variables.
            let own = |c: ColId| match &table.columns[c].source {
                Source::Slot { slot, vars }
                    if [oracle, Oracle::Trace].contains(&self.slots[*slot].oracle) && vars.len() == table.log =>
                {
                    Some(*slot)
                }
                _ => None,
            };
            let interval = |linear: &Linear| {
                linear.terms.iter().fold(
                    (i128::from(linear.constant), i128::from(linear.constant)),
                    |(lo, hi), (c, col)| {
                        let (l, h) = times((i128::from(*c), i128::from(*c)), table.columns[*col].range);
                        (lo + l, hi + h)
                    },
                )
            };
            for constraint in &table.constraints {
                if let [(1, square), (-1, single)] = &constraint.terms[..] {
                    if square.len() == 2 && single.len() == 1 && square.iter().all(|c| *c == single[0]) {
                        if let Some(slot) = own(single[0]) {
                            proven.insert(slot, (0, 1));
                        }
                    }
                }
            }
            for lookup in &table.lookups {
                let (_, top) = interval(&lookup.range);
                let (least, _) = interval(&lookup.range);
                // The sizes of the ranges grow up to that of 19 bits.
                if least < 0 || top >= self.ranges.len() as i128 || (least != top && top > RANGE_19_BITS as i128) {
                    return Err(format!("{}: {}: range {least} to {top}", table.name, lookup.name));
                }
                let size = self.ranges[top as usize] as i64;
                // ± a slot, and what the verifier knows.
                let is_public = |c: ColId| matches!(table.columns[c].source, Source::Public(_));
                let (public, rest): (Vec<_>, Vec<_>) = lookup.value.terms.iter().partition(|(_, c)| is_public(*c));
                if let ([(c @ (1 | -1), col)], 0, true) = (&rest[..], lookup.value.shift, lookup.selector.is_empty()) {
                    if let Some(slot) = own(*col) {
                        let (least, most) = interval(&Linear::of(lookup.value.constant, &public));
                        let (least, most) = (least as i64, most as i64);
                        let (lo, hi) = if *c == 1 {
                            (-most, size - 1 - least)
                        } else {
                            (least - size + 1, most)
                        };
                        let known = proven.entry(slot).or_insert((lo, hi));
                        if i128::from(hi.max(known.1)) - i128::from(lo.min(known.0)) >= i128::from(P) {
                            return Err(format!(
                                "{}: {}: two ranges that may meet modulo p",
                                table.name, lookup.name
                            ));
                        }
                        *known = (known.0.max(lo), known.1.min(hi));
                        continue;
                    }
                }
                // (constant ± column − low) / 2^shift with 0 ≤ low < 2^shift: the two lookups together bound the column, whatever it was.
                if let ([(c @ (1 | -1), col), (-1, low)], true) = (&lookup.value.terms[..], lookup.selector.is_empty())
                {
                    if let (Some(slot), Some(l)) = (own(*col), own(*low)) {
                        let full = size << lookup.value.shift;
                        if proven.get(&l) == Some(&(0, (1 << lookup.value.shift) - 1)) && full < P {
                            let k = lookup.value.constant;
                            let (lo, hi) = if *c == 1 { (-k, full - 1 - k) } else { (k - full + 1, k) };
                            proven.entry(slot).or_insert((lo, hi));
                        }
                    }
                }
                let (lo, hi) = interval(&lookup.value);
                let reach = i128::from(size) << lookup.value.shift;
                if hi.max(reach) - lo.min(0) >= i128::from(P) {
                    return Err(format!(
                        "{}: {}: value from {lo} to {hi} may meet the range modulo p",
                        table.name, lookup.name
                    ));
                }
            }
        }
        // a² = w², so w is a or −a.
        for table in &self.tables {
            for constraint in &table.constraints {
                let [(1, a), (-1, w)] = &constraint.terms[..] else {
                    continue;
                };
                let (&[a, a2], &[w, w2]) = (&a[..], &w[..]) else {
                    continue;
                };
                let slot = |c: ColId| match &table.columns[c].source {
                    Source::Slot { slot, vars } if vars.len() == table.log => Some(*slot),
                    _ => None,
                };
                if let (true, Some(a), Some(w)) = ((a, w) == (a2, w2), slot(a), slot(w)) {
                    if let Some(&(0, hi)) = proven.get(&a) {
                        proven.entry(w).or_insert((-hi, hi));
                    }
                }
            }
        }
        for (id, slot) in self.slots.iter().enumerate() {
            if ![oracle, Oracle::Trace].contains(&slot.oracle) || derived.contains(&id) {
                continue;
            }
            match proven.get(&id) {
                Some((lo, hi)) if *lo >= slot.range.0 && *hi <= slot.range.1 => {}
                Some((lo, hi)) => return Err(format!("{}: proven {lo} to {hi}, declared {:?}", slot.name, slot.range)),
                None => return Err(format!("{}: no lookup gives its range", slot.name)),
            }
        }
        Ok(())
    }
}

fn times((lo, hi): (i128, i128), (a, b): (i64, i64)) -> (i128, i128) {
    let all = [
        lo * i128::from(a),
        lo * i128::from(b),
        hi * i128::from(a),
        hi * i128::from(b),
    ];
    (*all.iter().min().unwrap(), *all.iter().max().unwrap())
}

/// The least b with v < 2^b.
pub fn bit_length(v: i64) -> usize {
    (64 - v.max(0).leading_zeros()) as usize
}
