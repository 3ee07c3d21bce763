//! ARITHMETIC section 7: the modulation, the state and its output, for each block of heads.

use super::builder::{as_case, Builder};
use super::{carry, factor, over_time, time, Ends, Tensor};
use crate::ir::{ColId, Factor, Factor64, Kernel, Linear, Lookup, Public, SlotId, Term, RANGE_19_BITS};

/// |h| stays within 251,968.
pub const MAX_STATE: i64 = 1 << 18;
/// The greatest k with which the state may be looked up, in 19 bits; the least with which its change may, |h − h'| ≤ 255 · 503,936 / 2^k + 1.
const BY_VALUE: u8 = 11;
const BY_CHANGE: u8 = 9;

/// h − h' + 2^(bits − 1) lies in so many bits. There is no range of 18.
fn change_bits(k: u8) -> usize {
    if k <= 10 {
        19
    } else {
        28 - usize::from(k)
    }
}

fn change_range(k: u8) -> usize {
    if k <= 10 {
        RANGE_19_BITS
    } else {
        change_bits(k)
    }
}

/// The axes of the scan in a block of heads: variables (head, p, n), then the time.
#[derive(Clone, Copy)]
pub struct ScanAxes {
    pub head: usize,
    pub p: usize,
    pub n: usize,
}

/// u = clamp(y, lo, hi): y = u + above − below; above > 0 only where u = hi, below > 0 only where u = lo.
fn clamped(b: &mut Builder, table: usize, name: &str, above: ColId, below: ColId, u: ColId, (lo, hi): (i64, i64)) {
    b.between(table, name, u, lo, hi);
    b.constrain(
        table,
        &format!("{name} is {hi} where it is above"),
        vec![(hi, vec![above]), (-1, vec![above, u])],
    );
    b.constrain(
        table,
        &format!("{name} is {lo} where it is below"),
        vec![(1, vec![below, u]), (-lo, vec![below])],
    );
}

/// m = clamp(rshift(clamp(2^8 + dt + base, 2^5, 2^10) · A, 12), 1, 255), variables (head, t).
pub fn modulation(b: &mut Builder, name: &str, dt: &Tensor, a: &[SlotId], base: &[SlotId]) -> Tensor {
    let slots = (0..dt.slots.len()).map(|block| {
        let table = b.table(format!("{name}.{block}"), dt.log + b.steps());
        let dt = b.own(table, dt.slots[block]);
        let (a, base) = (b.constant(table, a[block]), b.constant(table, base[block]));

        let sum = |[dt, base]: [i64; 2]| 256 + dt + base;
        let top = (1 << 17) - 1;
        let (modulation, _) = b.commit(table, "mod", (32, 1024), [dt, base], |v| sum(v).clamp(32, 1024));
        let (above, _) = b.commit(table, "mod.above", (0, top), [dt, base], |v| (sum(v) - 1024).max(0));
        let (below, _) = b.commit(table, "mod.below", (0, top), [dt, base], |v| (32 - sum(v)).max(0));
        b.bits_of(table, "mod.above", Linear::col(above), 17);
        b.bits_of(table, "mod.below", Linear::col(below), 17);
        clamped(b, table, "mod", above, below, modulation, (32, 1024));
        let shifted = vec![
            (256, vec![]),
            (1, vec![dt]),
            (1, vec![base]),
            (-1, vec![modulation]),
            (-1, vec![above]),
            (1, vec![below]),
        ];
        b.constrain(table, "mod", shifted);

        // mod · A + 2^11 = 2^12 · (m + above − below) + r; the rounded product is at least 0 and at most 2^17.
        let rounded = |[modulation, a]: [i64; 2]| (modulation * a + 2048) >> 12;
        let from = [modulation, a];
        let (m, slot) = b.commit(table, "m", (1, 255), from, |v| rounded(v).clamp(1, 255));
        let (above, _) = b.commit(table, "m.above", (0, top), from, |v| (rounded(v) - 255).max(0));
        let (below, _) = b.commit(table, "m.below", (0, 1), from, |v| (1 - rounded(v)).max(0));
        let (r, _) = b.commit(table, "m.r", (0, 4095), from, |[modulation, a]| {
            (modulation * a + 2048) & 4095
        });
        b.bits_of(table, "m.above", Linear::col(above), 17);
        b.boolean(table, below);
        b.bits_of(table, "m.r", Linear::col(r), 12);
        clamped(b, table, "m", above, below, m, (1, 255));
        let product = vec![
            (1, from.to_vec()),
            (2048, vec![]),
            (-4096, vec![m]),
            (-4096, vec![above]),
            (4096, vec![below]),
            (-1, vec![r]),
        ];
        b.constrain(table, "m", product);
        slot
    });
    Tensor {
        slots: slots.collect(),
        log: dt.log,
    }
}

/// h ← h + rshift(m · (64 x B − h), k): the state after every step, variables (head, p, n, t), by block of heads. `k` has a share for every head; `ends`: h
/// before and after the segment.
#[allow(clippy::too_many_arguments)]
pub fn state(
    b: &mut Builder,
    name: &str,
    axes: ScanAxes,
    k: &[u8],
    m: &Tensor,
    x: &Tensor,
    input: &Tensor,
    ends: &Ends<Vec<SlotId>>,
) -> Tensor {
    let slots = k.chunks(1 << axes.head).enumerate().map(|(block, k)| {
        one_state(
            b,
            &format!("{name}.{block}"),
            axes,
            k,
            [m.slots[block], x.slots[block], input.slots[0]],
            &ends.map(|h| h[block]),
        )
    });
    Tensor {
        slots: slots.collect(),
        log: axes.head + axes.p + axes.n,
    }
}

fn one_state(
    b: &mut Builder,
    name: &str,
    axes: ScanAxes,
    k: &[u8],
    [m, x, input]: [SlotId; 3],
    ends: &Ends<SlotId>,
) -> SlotId {
    let steps = b.steps();
    let log = axes.head + axes.p + axes.n;
    let table = b.table(name, log + steps);
    let m = b.view(table, m, (0..axes.head).chain(time(log, steps)));
    let x = b.view(table, x, (0..axes.head + axes.p).chain(time(log, steps)));
    let input = b.view(table, input, axes.head + axes.p..log + steps);
    // Padded heads have x = 0 and keep h = 0, with any k.
    let by_head = |value: &dyn Fn(u8) -> i64| -> Public {
        let values = (0..1 << axes.head)
            .map(|head| value(*k.get(head).unwrap_or(&k[0])))
            .collect();
        Public::Dense {
            vars: (0..axes.head).collect(),
            values,
        }
    };
    let share = b.public(table, "2^k", by_head(&|k| 1 << k));
    let half = b.public(table, "2^(k - 1)", by_head(&|k| 1 << (k - 1)));
    let bits = b.public(table, "k", by_head(&|k| k.into()));
    let top = i64::from(*k.iter().max().unwrap());

    let range = (-MAX_STATE, MAX_STATE);
    let before = ends.before;
    let (h, slot) = b.commit_all(table, "h", range, |run| {
        let mut out = vec![0; 1 << (log + steps)];
        let column = |c: ColId| run.columns[table][c].chunks(1 << steps);
        let inputs = column(m).zip(column(x)).zip(column(input)).zip(column(bits));
        for ((cell, out), (((m, x), input), bits)) in out.chunks_mut(1 << steps).enumerate().zip(inputs) {
            let (mut h, k) = (before.map_or(0, |slot| run.slots[slot][cell]), bits[0]);
            for (t, out) in out.iter_mut().enumerate() {
                h += (m[t] * (64 * x[t] * input[t] - h) + (1 << (k - 1))) >> k;
                *out = h;
            }
        }
        out
    });
    b.derived.push(slot);
    let carries = before.iter().map(|&slot| carry(0, slot, log)).collect();
    let (previous, _) = b.sum(
        table,
        "h before",
        over_time(Kernel::Lag(1), slot, log, steps),
        carries,
        range,
    );
    if let Some(after) = ends.after {
        b.link(
            table,
            "h after",
            over_time(Kernel::Last { back: 0 }, slot, log, steps),
            after,
        );
    }
    let rest = |[m, x, input, previous, half, k]: [i64; 6]| (m * (64 * x * input - previous) + half) & ((1 << k) - 1);
    let (r, _) = b.commit(
        table,
        "r",
        (0, (1 << top) - 1),
        [m, x, input, previous, half, bits],
        rest,
    );
    b.circuit.lookup(table, "r", Linear::col(r), Linear::col(bits));

    // The identity is m · (64 x B − h') + 2^(k − 1) = 2^k · (h − h') + r, h' the state before. That it determines h, and |h| ≤ 251,968, follows by induction over
    // the steps, from a state within that bound at the start (zero, or linked to the segment before): h' is within it, so the left side is below 2^27;
    // the lookups give |2^k · (h − h')| ≤ 2^30, from h in 19 bits (k ≤ 11) or from h − h' in `change_bits` (k ≥ 9); so the two sides are equal as
    // integers, and h is between h' and 64 x B up to rounding. The cases below say the same with 2^k · (h − h') as a number of up to 2^30.
    // One lookup if all heads of the block can have the same, otherwise one for each kind.
    let all_by_value = k.iter().all(|&k| k <= BY_VALUE);
    let by_value = |k: u8| all_by_value || k < BY_CHANGE;
    let mixed = k.iter().any(|&share| by_value(share) != by_value(k[0]));
    for kind in [true, false]
        .into_iter()
        .filter(|kind| k.iter().any(|&k| by_value(k) == *kind))
    {
        let (value, range) = if kind {
            (Linear::of(MAX_STATE, &[(1, h)]), Linear::constant(RANGE_19_BITS as i64))
        } else {
            let here = |value: fn(u8) -> i64| by_head(&|k| if by_value(k) { 0 } else { value(k) });
            let offset = b.public(table, "offset of the change", here(|k| 1 << (change_bits(k) - 1)));
            let range = b.public(table, "range of the change", here(|k| change_range(k) as i64));
            (
                Linear::of(0, &[(1, h), (-1, previous), (1, offset)]),
                Linear::col(range),
            )
        };
        let selector = if mixed {
            vec![b.public(table, "these k", by_head(&|k| (by_value(k) == kind).into()))]
        } else {
            vec![]
        };
        b.circuit.tables[table].lookups.push(Lookup {
            name: "h".into(),
            value,
            range,
            selector,
        });
    }
    let known = vec![
        (64, vec![m, x, input]),
        (-1, vec![m, previous]),
        (1, vec![half]),
        (-1, vec![r]),
    ];
    let case = |change: i64| [as_case(&known), vec![(-1, vec![Factor64::Const(change)])]].concat();
    let terms = [known.clone(), vec![(-1, vec![share, h]), (1, vec![share, previous])]].concat();
    b.constrain_cases(table, "h", terms, vec![case(1 << 30), case(-1 << 30)]);
    slot
}

/// y = sat16(rshift(Σ_n C_n · h_n + 64 · skip · x, 9)).
#[allow(clippy::too_many_arguments)]
pub fn output(
    b: &mut Builder,
    name: &str,
    axes: ScanAxes,
    h: &Tensor,
    output: &Tensor,
    x: &Tensor,
    skip: &[SlotId],
) -> Tensor {
    let steps = b.steps();
    let (log, vars) = (axes.head + axes.p, axes.n + steps);
    let slots = (0..x.slots.len()).map(|block| {
        let table = b.table(format!("{name}.{block}"), log + steps);
        let factors = vec![
            Factor::Kernel(Kernel::Lag(0)),
            factor(output.slots[0], 0..0, 0..vars),
            factor(h.slots[block], 0..log, 0..vars),
        ];
        let bound = (31 * MAX_STATE) << axes.n;
        let (read, _) = b.sum(
            table,
            "C h",
            vec![Term { coef: 1, vars, factors }],
            vec![],
            (-bound, bound),
        );
        let (x, skip) = (b.own(table, x.slots[block]), b.constant(table, skip[block]));
        let pre = vec![(1, vec![read]), (64, vec![skip, x]), (256, vec![])];
        b.round_saturate(table, "y", pre, 9, 32767, (bound + 64 * 127 * 127 + 256) >> 9)
            .1
    });
    Tensor {
        slots: slots.collect(),
        log,
    }
}

/// o = sat18(rshift(y · g, 6)).
pub fn gate(b: &mut Builder, name: &str, y: &Tensor, g: &Tensor) -> Tensor {
    let slots = (0..y.slots.len()).map(|block| {
        let table = b.table(format!("{name}.{block}"), y.log + b.steps());
        let product = vec![b.own(table, y.slots[block]), b.own(table, g.slots[block])];
        let reach = (32767 * super::MAX_GATE + 32) >> 6;
        b.round_saturate(
            table,
            "o",
            vec![(1, product), (32, vec![])],
            6,
            super::MAX_RESIDUAL,
            reach,
        )
        .1
    });
    Tensor {
        slots: slots.collect(),
        log: y.log,
    }
}
