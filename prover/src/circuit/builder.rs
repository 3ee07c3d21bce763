//! A circuit in the making and, where there is a run to prove, its values: whatever adds a column says in the same call what the column holds. Most of it
//! follows from the circuit: views, sums, roundings, low limbs and derived columns are computed from their own definitions. So the two cannot get out of step.

use std::sync::Arc;

use super::values::{self, Values};
use crate::ir::{
    bit_length, Carry, Circuit, ColId, Constraint, Factor64, Linear, Oracle, Public, SlotId, Sum, SumId, Term, Terms, P,
};

#[derive(Default)]
pub struct Builder {
    pub circuit: Circuit,
    /// Slots whose range follows from a constraint that is linear in them, instead of from a lookup.
    pub derived: Vec<SlotId>,
    /// None: the circuit alone.
    pub run: Option<Run>,
}

/// The values so far: of every slot, of every column by table, of every sum (none for links).
#[derive(Default)]
pub struct Run {
    pub slots: Vec<Values>,
    pub columns: Vec<Vec<Values>>,
    pub sums: Vec<Values>,
    /// Tests lie in some cells, and go on honestly from there.
    #[cfg(test)]
    pub lies: Vec<Lie>,
}

/// What a lying prover of the tests puts into one cell of a slot, or of a sum that is a column.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lie {
    pub of: Cells,
    pub at: usize,
    /// Given what is honest there.
    pub value: Told,
}

#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cells {
    Slot(SlotId),
    Sum(SumId),
}

#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Plus(i32),
    Just(i32),
}

#[cfg(test)]
impl Lie {
    pub fn add(slot: SlotId, at: usize, add: i32) -> Lie {
        Lie {
            of: Cells::Slot(slot),
            at,
            value: Told::Plus(add),
        }
    }

    fn tell(lies: &[Lie], of: Cells, values: &mut [i32]) {
        for lie in lies.iter().filter(|lie| lie.of == of) {
            values[lie.at] = match lie.value {
                Told::Plus(add) => values[lie.at] + add,
                Told::Just(value) => value,
            };
        }
    }
}

impl Builder {
    pub fn steps(&self) -> usize {
        self.circuit.log_steps
    }

    pub fn table(&mut self, name: impl Into<String>, log: usize) -> usize {
        if let Some(run) = &mut self.run {
            run.columns.push(vec![]);
        }
        self.circuit.table(name, log)
    }

    /// A slot of the model or of a state: what comes from outside.
    pub fn slot(
        &mut self,
        oracle: Oracle,
        name: &str,
        log: usize,
        range: (i64, i64),
        values: Option<Values>,
    ) -> SlotId {
        if let Some(run) = &mut self.run {
            let values = values.expect("a run has all values");
            assert_eq!(values.len(), 1 << log, "{name}");
            run.slots.push(values);
        }
        self.circuit.slot(oracle, name, log, range)
    }

    fn rows(&self, table: usize) -> usize {
        1 << self.circuit.tables[table].log
    }

    /// An existing slot as a column: variable i of the slot is variable `vars[i]` of the table.
    pub fn view(&mut self, table: usize, slot: SlotId, vars: impl IntoIterator<Item = usize>) -> ColId {
        let vars: Vec<usize> = vars.into_iter().collect();
        let log = self.circuit.tables[table].log;
        let col = self.circuit.view(table, slot, &vars);
        if let Some(run) = &mut self.run {
            let whole = vars.iter().copied().eq(0..log);
            let own = &run.slots[slot];
            let values = if whole {
                own.clone()
            } else {
                Arc::new(values::broadcast(own, log, &vars))
            };
            run.columns[table].push(values);
        }
        col
    }

    /// A slot that has all the variables of the table.
    pub fn own(&mut self, table: usize, slot: SlotId) -> ColId {
        let log = self.circuit.tables[table].log;
        self.view(table, slot, 0..log)
    }

    /// A slot without time: its variables are the table's first.
    pub fn constant(&mut self, table: usize, slot: SlotId) -> ColId {
        let log = self.circuit.slots[slot].log;
        self.view(table, slot, 0..log)
    }

    /// A slot of time alone.
    pub fn over_time(&mut self, table: usize, slot: SlotId) -> ColId {
        let log = self.circuit.tables[table].log;
        self.view(table, slot, log - self.steps()..log)
    }

    pub fn public(&mut self, table: usize, name: &str, public: Public) -> ColId {
        if let Some(run) = &mut self.run {
            let log = self.circuit.tables[table].log;
            run.columns[table].push(Arc::new(values::public(&self.circuit, &public, log)));
        }
        self.circuit.public(table, name, public)
    }

    pub fn sum(
        &mut self,
        table: usize,
        name: &str,
        terms: Vec<Term>,
        carries: Vec<Carry>,
        range: (i64, i64),
    ) -> (ColId, SumId) {
        let (col, id) = self.circuit.sum(table, name, terms, carries, range);
        if let Some(run) = &mut self.run {
            #[cfg_attr(not(test), allow(unused_mut))]
            let mut values = values::sum(&self.circuit, &run.slots, &self.circuit.sums[id]);
            #[cfg(test)]
            Lie::tell(&run.lies, Cells::Sum(id), &mut values);
            let values = Arc::new(values);
            run.columns[table].push(values.clone());
            run.sums.push(values);
        }
        (col, id)
    }

    /// `terms`, sums of the kernel `Last`, are what passes to the segment after: the slot `out`, whose variables are the table's first.
    pub fn link(&mut self, table: usize, name: &str, terms: Vec<Term>, out: SlotId) {
        let vars = (0..self.circuit.slots[out].log).collect();
        if let Some(run) = &mut self.run {
            let sum = Sum {
                name: name.into(),
                table,
                terms: terms.clone(),
                carries: vec![],
            };
            let values = values::sum(&self.circuit, &run.slots, &sum);
            run.slots[out] = Arc::new(values.into_iter().step_by(1 << self.circuit.log_steps).collect());
            run.sums.push(Values::default());
        }
        self.circuit.link(
            table,
            name,
            terms,
            vec![Carry {
                coef: -1,
                at_step: None,
                slot: out,
                vars,
            }],
        );
    }

    /// A new slot of the trace as a column, given the values of all rows.
    pub fn commit_all(
        &mut self,
        table: usize,
        name: &str,
        range: (i64, i64),
        values: impl FnOnce(&Run) -> Vec<i32>,
    ) -> (ColId, SlotId) {
        let (col, slot) = self.circuit.commit(table, name, range);
        if let Some(run) = &mut self.run {
            let values = values(run);
            run.push(table, slot, values);
        }
        (col, slot)
    }

    /// A new slot of the trace as a column, each cell a function of other cells of its row.
    pub fn commit<const N: usize>(
        &mut self,
        table: usize,
        name: &str,
        range: (i64, i64),
        from: [ColId; N],
        cell: impl Fn([i64; N]) -> i64,
    ) -> (ColId, SlotId) {
        let rows = self.rows(table);
        self.commit_all(table, name, range, |run| {
            let columns = from.map(|c| &run.columns[table][c][..rows]);
            (0..rows)
                .map(|row| values::residue(cell(columns.map(|c| c[row].into()))))
                .collect()
        })
    }

    /// A new slot that is a linear combination of columns: no lookup is needed for its range.
    pub fn derive(&mut self, table: usize, name: &str, range: (i64, i64), mut terms: Terms) -> (ColId, SlotId) {
        let rows = self.rows(table);
        let (col, slot) = self.commit_all(table, name, range, |run| {
            values::terms(&run.columns[table], &terms, rows)
                .iter()
                .map(|&v| values::residue(v))
                .collect()
        });
        terms.push((-1, vec![col]));
        self.circuit
            .constrain(table, &format!("{name} is what it is derived from"), terms);
        self.derived.push(slot);
        (col, slot)
    }

    /// See `Circuit::round_saturate`.
    pub fn round_saturate(
        &mut self,
        table: usize,
        name: &str,
        pre: Terms,
        shift: u32,
        limit: i64,
        reach: i64,
    ) -> (ColId, SlotId) {
        // An overflow of 18 bits takes two limbs, one of 19 a single lookup.
        let reach = if bit_length(reach - limit) == 18 {
            limit + (1 << 18)
        } else {
            reach
        };
        let (rows, first) = (self.rows(table), self.circuit.slots.len());
        let before = self
            .run
            .as_ref()
            .map(|run| values::terms(&run.columns[table], &pre, rows));
        // No honest value reaches p.
        let before = before.map(|mut values| {
            values
                .iter_mut()
                .filter(|v| v.abs() >= P)
                .for_each(|v| *v = values::least(*v));
            values
        });
        let result = self.circuit.round_saturate(table, name, pre, shift, limit, reach);
        if let (Some(run), Some(before)) = (&mut self.run, before) {
            let prefix = format!("{}.{name}", self.circuit.tables[table].name).len();
            for slot in first..self.circuit.slots.len() {
                let part = &self.circuit.slots[slot].name[prefix..];
                let saturated = |v: i64| (v >> shift).clamp(-limit, limit);
                let cells = |cell: &dyn Fn(i64) -> i64| before.iter().map(|&v| cell(v) as i32).collect();
                let values: Vec<i32> = match part {
                    "" => cells(&saturated),
                    ".r" => cells(&|v| v & ((1 << shift) - 1)),
                    ".a" => cells(&|v| ((v >> shift) - saturated(v)).abs()),
                    _ => low_limb(&run.slots[slot - 1], self.circuit.slots[slot].range),
                };
                run.push(table, slot, values);
            }
        }
        result
    }

    /// 0 ≤ value < 2^bits. See `Circuit::bits_of`.
    pub fn bits_of(&mut self, table: usize, name: &str, value: Linear, bits: usize) {
        let (rows, slot) = (self.rows(table), self.circuit.slots.len());
        self.circuit.bits_of(table, name, value.clone(), bits);
        if let (Some(run), true) = (&mut self.run, self.circuit.slots.len() > slot) {
            let values: Vec<i32> = values::linear(&run.columns[table], &value, rows)
                .iter()
                .map(|&v| v as i32)
                .collect();
            let low = low_limb(&values, self.circuit.slots[slot].range);
            run.push(table, slot, low);
        }
    }

    pub fn constrain(&mut self, table: usize, name: &str, terms: Terms) {
        self.circuit.constrain(table, name, terms);
    }

    /// A constraint and the integer identities that it stands for.
    pub fn constrain_cases(&mut self, table: usize, name: &str, terms: Terms, cases: Vec<Vec<(i64, Vec<Factor64>)>>) {
        self.circuit.tables[table].constraints.push(Constraint {
            name: name.into(),
            terms,
            cases,
        });
    }

    pub fn boolean(&mut self, table: usize, col: ColId) {
        self.circuit.boolean(table, col);
    }

    /// lo ≤ col ≤ hi by two lookups.
    pub fn between(&mut self, table: usize, name: &str, col: ColId, lo: i64, hi: i64) {
        let bits = bit_length(hi - lo);
        self.bits_of(table, name, Linear::of(-lo, &[(1, col)]), bits);
        self.bits_of(table, name, Linear::of(hi, &[(-1, col)]), bits);
    }

    /// The columns of tables that are done: nothing reads their broadcast values again.
    pub fn forget_columns(&mut self) {
        if let Some(run) = &mut self.run {
            run.columns.iter_mut().for_each(|columns| *columns = vec![]);
        }
    }
}

impl Run {
    fn push(&mut self, table: usize, slot: SlotId, #[allow(unused_mut)] mut values: Vec<i32>) {
        assert_eq!(
            slot,
            self.slots.len(),
            "every slot has its values before the next comes"
        );
        #[cfg(test)]
        Lie::tell(&self.lies, Cells::Slot(slot), &mut values);
        let values = Arc::new(values);
        self.slots.push(values.clone());
        self.columns[table].push(values);
    }
}

fn low_limb(values: &[i32], (_, mask): (i64, i64)) -> Vec<i32> {
    values.iter().map(|v| v & mask as i32).collect()
}

/// The columns of terms, as they stand in `Constraint::cases`.
pub fn as_case(terms: &Terms) -> Vec<(i64, Vec<Factor64>)> {
    terms
        .iter()
        .map(|(c, cols)| (*c, cols.iter().map(|&x| Factor64::Col(x)).collect()))
        .collect()
}
