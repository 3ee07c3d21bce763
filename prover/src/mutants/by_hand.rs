//! Lies made by hand, each for the one part that stops it, on inputs that are chosen for it and with what reads the result behind it.

use super::*;
use crate::circuit::activation::activation;
use crate::circuit::conv::conv;
use crate::circuit::linear::{linear, residual};
use crate::circuit::scan::{modulation, output, state, ScanAxes};
use crate::circuit::{slots, Ends, MAX_GATE};

/// The kind of the part that alone stops a lie, and the lie.
type ByHand = (&'static str, Vec<Lie>);

pub(super) fn scenes() -> Vec<(Scene, Vec<ByHand>)> {
    vec![
        projections(),
        saturation(),
        scan("scan, by value", [8, 8]),
        scan("scan, by change", [12, 12]),
        scan("scan, mixed", [8, 12]),
        wide_norm(),
        mantissa(),
        choice(),
        top_k(),
        below_zero(),
    ]
}

fn slot(scene: &Scene, name: &str) -> usize {
    let found = scene.circuit.slots.iter().position(|s| s.name == name);
    found.unwrap_or_else(|| panic!("{}: no slot {name}", scene.name))
}

fn get(scene: &Scene, name: &str, at: usize) -> i64 {
    scene.honest.slots[slot(scene, name)][at].into()
}

fn put(scene: &Scene, cells: &[(&str, usize, i64)]) -> Vec<Lie> {
    told(
        &cells
            .iter()
            .map(|&(name, at, v)| (slot(scene, name), at, v))
            .collect::<Vec<_>>(),
    )
}

fn one(slot: usize) -> Tensor {
    Tensor {
        slots: vec![slot],
        log: 0,
    }
}

fn alone_in_time<A>() -> Ends<A> {
    Ends {
        before: None,
        after: None,
    }
}

/// A product that overflows int16 by so little that what reads it could take it as it is.
fn projections() -> (Scene, Vec<ByHand>) {
    let inputs: Vec<Given> = vec![
        ("u", 3, (-127, 127), vec![127; 8]),
        ("W", 0, (-127, 127), vec![127]),
        ("mul", 0, (0, 255), vec![150]),
        ("r", 3, (-(1 << 17) + 1, (1 << 17) - 1), vec![1000; 8]),
        ("A", 0, (0, 1 << 19), vec![1024]),
        ("base", 0, (-32767, 32767), vec![0]),
    ];
    let scene = alone("projections", 3, inputs, |b, given| {
        let w = slots::Projection {
            weights: vec![vec![given[1]]],
            mul: vec![given[2]],
        };
        let mut project = |name: &str| linear(b, name, &w, 0, &one(given[0]), 6);
        let [z, dt, out] = ["blk.0.z", "blk.0.dt", "blk.0.out_proj"].map(&mut project);
        activation(b, "blk.0.gate", Activation::Silu, &z, 8, MAX_GATE);
        modulation(b, "blk.0.m", &dt, &given[4..5], &given[5..6]);
        residual(b, "blk.0.resid", &one(given[3]), &out);
    });
    let lie = |name: &str| {
        let (out, over) = (format!("blk.0.{name}.0.out"), format!("blk.0.{name}.0.out.a"));
        let whole = get(&scene, &out, 7) + get(&scene, &over, 7);
        assert!((32768..40_957).contains(&whole));
        put(&scene, &[(&out, 7, whole), (&over, 7, 0)])
    };
    let lies = vec![
        ("blk.#.z.#: lookup out", lie("z")),
        ("blk.#.dt.#: lookup out", lie("dt")),
        ("blk.#.out_proj.#: lookup out", lie("out_proj")),
    ];
    (scene, lies)
}

/// An overflow claimed where the value is not ±32767: one of 2^19 that satisfies the other constraint modulo p.
fn saturation() -> (Scene, Vec<ByHand>) {
    let weight = |name, v| -> Given { (name, 0, (-127, 127), vec![v]) };
    let inputs = vec![
        ("p", 3, (-32767, 32767), vec![100; 8]),
        weight("w0", 1),
        weight("w1", 2),
        weight("w2", 3),
        weight("w3", 4),
        ("bias", 0, (-32767, 32767), vec![5]),
    ];
    let scene = alone("convolution", 3, inputs, |b, given| {
        let w = slots::Conv {
            taps: [1, 2, 3, 4].map(|i| vec![given[i]]),
            bias: vec![given[5]],
        };
        let c = conv(b, "blk.0.conv.C", &one(given[0]), &w, &alone_in_time());
        activation(b, "blk.0.C", Activation::Silu, &c, 3, 31);
    });
    let (limit, pre) = (32767, 100 * (1 + 2 + 3 + 4) + 64 * 5 + 32);
    let over = |u: i64, r: i64| (limit * (pre - r - 64 * u) % P * inverse(64 * u)).rem_euclid(P);
    let values = (1..limit).flat_map(|u| (0..64).map(move |r| (u, r, over(u, r))));
    let (u, r, a) = values.into_iter().find(|(.., a)| (1..1 << 19).contains(a)).unwrap();
    let name = |part: &str| format!("blk.0.conv.C.0.c{part}");
    let lie = put(&scene, &[(&name(""), 7, u), (&name(".r"), 7, r), (&name(".a"), 7, a)]);
    (
        scene,
        vec![("blk.#.conv.C.#: constraint c is saturated where it overflows", lie)],
    )
}

/// Two heads in one block. What is clamped lies just beyond its ends; the last state is one modulo p only, of another remainder.
fn scan(name: &str, k: [u8; 2]) -> (Scene, Vec<ByHand>) {
    let dt = [-236, 774, 800, 0, 0, 0, 0, 0];
    let inputs: Vec<Given> = vec![
        ("dt", 4, (-32767, 32767), [dt, dt].concat()),
        ("A", 1, (0, 1 << 19), vec![1024; 2]),
        ("base", 1, (-32767, 32767), vec![0; 2]),
        ("x", 4, (-127, 127), vec![100; 16]),
        ("B", 4, (-31, 31), vec![20; 16]),
        ("C", 4, (-31, 31), vec![1; 16]),
        ("skip", 1, (-127, 127), vec![0; 2]),
    ];
    let axes = ScanAxes { head: 1, p: 0, n: 1 };
    let scene = alone(name, 3, inputs, move |b, given| {
        let tensor = |i: usize| Tensor {
            slots: vec![given[i]],
            log: 1,
        };
        let m = modulation(b, "blk.0.m", &tensor(0), &given[1..2], &given[2..3]);
        let h = state(b, "blk.0.state", axes, &k, &m, &tensor(3), &tensor(4), &alone_in_time());
        output(b, "blk.0.y", axes, &h, &tensor(5), &tensor(3), &given[6..7]);
    });
    let clamp = |cells: &[(&str, i64)], step: usize| {
        let names: Vec<String> = cells.iter().map(|(name, _)| format!("blk.0.m.0.{name}")).collect();
        let cells = names.iter().zip(cells).map(|(name, (_, v))| (&name[..], step, *v));
        put(&scene, &cells.collect::<Vec<_>>())
    };
    let mut lies = vec![
        (
            "blk.#.m.#: lookup mod 1",
            clamp(&[("mod", 256 - 236), ("mod.below", 0)], 0),
        ),
        (
            "blk.#.m.#: lookup mod 2",
            clamp(&[("mod", 256 + 774), ("mod.above", 0)], 1),
        ),
        ("blk.#.m.#: lookup m 2", clamp(&[("m", 256), ("m.above", 0)], 2)),
    ];
    let mixed = k[0] != k[1];
    for (head, kind) in [(0, "blk.#.state.#: lookup h 1"), (1, "blk.#.state.#: lookup h 2")] {
        let (row, k) = (16 * head + 7, k[head]);
        let [m, before] = [
            get(&scene, "blk.0.m.0.m", 8 * head + 7),
            get(&scene, "blk.0.state.0.h", row - 1),
        ];
        let known = m * (64 * 100 * 20 - before) + (1 << (k - 1));
        let state = |r: i64| small(before + (known - r) % P * inverse(1 << k));
        let states = (0..1 << k).map(|r| (r, state(r)));
        let (r, h) = states
            .into_iter()
            .find(|(_, h)| (1 << 19..1 << 23).contains(&h.abs()))
            .unwrap();
        let cells = [("blk.0.state.0.h", row, h), ("blk.0.state.0.r", row, r)];
        lies.push((
            if mixed { kind } else { "blk.#.state.#: lookup h" },
            put(&scene, &cells),
        ));
    }
    (scene, lies)
}

/// A norm of the most channels there are: at each step another e_j is not 0 or 1, with others that make up for it, and a sum of squares that this cuts.
fn wide_norm() -> (Scene, Vec<ByHand>) {
    const LOG: usize = 12;
    /// The kind, the e_j that are not 0, and the least value of a channel.
    type Step = (&'static str, Vec<(usize, i64)>, i64);
    let steps: [Step; 5] = [
        (
            "norm.scale: constraint e0 is 0 or 1",
            vec![(1, 1), (7, 1), (0, -1)],
            800,
        ),
        (
            "norm.scale: constraint e12 is 0 or 1",
            vec![(8, 1), (13, 1), (12, -1)],
            14_000,
        ),
        (
            "norm.scale: constraint e13 is 0 or 1",
            vec![(8, 1), (14, 1), (13, -1)],
            28_000,
        ),
        (
            "norm.scale: constraint e14 is 0 or 1",
            vec![(8, 1), (15, 1), (14, -1)],
            56_000,
        ),
        (
            // The last one: modulo p.
            "norm.scale: constraint e15 is 0 or 1",
            vec![(14, 1), (13, 1), (12, 1), (15, -2)],
            73_000,
        ),
    ];
    // Channels of which `more` are x + 1, the others x: they must leave the remainders that j bits hold.
    let channels = |e: &[(usize, i64)], from: i64| {
        let [pow, half, j] = [total(e, |j| 1 << j), total(e, |j| 1 << j >> 1), total(e, |j| j as i64)];
        let fits = |x: i64| (16 * x + half).rem_euclid(pow.abs()) < 1 << j;
        let sum = |x: i64, more: i64| (1 << 14) + ((1 << LOG) - more) * x * x + more * (x + 1) * (x + 1);
        let all = (from..1 << 17).filter(|x| fits(*x) && fits(x + 1));
        let all = all.flat_map(|x| (0..1 << LOG).map(move |more| (x, more)));
        let mut cut = all.filter(|&(x, more)| cut(sum(x, more) & 65535, sum(x, more) >> 16, e).is_some());
        cut.next().expect("a sum of squares that several e_j cut")
    };
    let found: Vec<(i64, i64)> = steps.iter().map(|(_, e, from)| channels(e, *from)).collect();
    let scene = norm_alone("norm, the most channels", LOG, 3, move |channel, step| {
        let (x, more) = found[step.min(found.len() - 1)];
        (x + i64::from((channel as i64) < more)) as i32
    });
    let lies = steps.iter().enumerate().map(|(step, (kind, e, _))| {
        let scale = Scale {
            scene: &scene,
            table: "norm_f.scale",
            step,
        };
        let [a0, b0, p2, b1] = ["a0", "b0", "P2", "b1"].map(|n| scale.get(n));
        (*kind, scale.cut(a0 + (b0 << 10), 4 * p2 + b1, e).unwrap())
    });
    let mut lies: Vec<ByHand> = lies.collect();
    // Only so many channels have a carry of two limbs.
    let carry = "norm_f.scale.a1.low";
    let low = put(&scene, &[(carry, 0, get(&scene, carry, 0) + 1024)]);
    lies.push(("norm.scale: lookup a1.low", low));
    (scene, lies)
}

/// Limbs of P0 of which the low one is too large, and a μ · S' whose high limb is no integer, with a μ for which all that follows fits.
fn mantissa() -> (Scene, Vec<ByHand>) {
    let scene = norm_of_few();
    let at = |step: usize| Scale {
        scene: &scene,
        table: "norm_f.scale",
        step,
    };
    let steps = 0..1 << scene.circuit.log_steps;
    let low = steps
        .clone()
        .map(at)
        .find(|s| s.get("a1") > 0 && s.get("b0") > 0)
        .unwrap();
    let [a0, a1, b0] = ["a0", "a1", "b0"].map(|n| low.get(n));
    let limbs = low.told(&[("a0", a0 + 1024), ("a1", a1 - 1), ("b0", b0 - 1)]);

    let part = inverse(4096);
    let other = |step: usize| {
        let s = at(step).get("S'");
        (1..512).find_map(|mu| {
            (0..4096).find_map(|w0| {
                let w1 = (mu * s - w0).rem_euclid(P) * part % P;
                let (c0, c1) = ((mu * w0) & 4095, (mu * w0) >> 12);
                let (r0, carry) = (-c0 & 4095, i64::from(c0 > 0));
                let r1 = ((1 << 18) - mu * w1 - c1 - carry).rem_euclid(P);
                let over = (2 * w0 + 8192 * w1 + s - r0 - 4096 * r1 - 1).rem_euclid(P);
                let lies = w1 >= 1 << 13 && r1 < 1 << 14 && over < 1 << 26;
                let [r0, r1, over] = [("R0", r0), ("R1", r1), ("over.low", over & 8191)];
                let all = [
                    ("mu", mu),
                    ("w0", w0),
                    ("w1", w1),
                    ("c0", c0),
                    ("c1", c1),
                    r0,
                    r1,
                    over,
                    ("carry", carry),
                ];
                lies.then(|| at(step).told(&all))
            })
        })
    };
    let quotient = steps.into_iter().find_map(other).unwrap();
    let lies = vec![("norm.scale: lookup a0", limbs), ("norm.scale: lookup w1", quotient)];
    (scene, lies)
}

/// 31 tokens in a block of 32 whose logits fall by 13,000 each, at every step alike.
fn falling(top: i32) -> Vec<Vec<i32>> {
    vec![(0..31).map(|v| top - 13_000 * v).collect(); 8]
}

const PADDING: usize = 31 * 8;

/// At step 0, for which no token is claimed, so that the weights may add up to anything.
fn choice() -> (Scene, Vec<ByHand>) {
    let scene = head_of("head, by hand", (1, 16), falling(400_000), 94548, 0, None);
    let far = put(&scene, &[("head.0.z", PADDING, 0), ("head.0.d", PADDING, 400_000)]);

    // The carry to J is one modulo p: other low bits.
    let row = 8;
    let [f, s1, u1, high, low] =
        ["f", "S1", "U1", "carry", "carry.rest"].map(|n| get(&scene, &format!("head.0.{n}"), row));
    let carries = (0..1 << 16).filter(|rest| *rest != low).map(|rest| {
        let carry = small(high + (low - rest) * inverse(1 << 16));
        let j = (-653 * f + (76802 << 14) - 11264 * s1 + 327 * u1 + carry).rem_euclid(P) >> 15;
        (carry, rest, j)
    });
    let (carry, rest, j) = carries
        .into_iter()
        .find(|(.., j)| (1 << 15..(1 << 15) + (1 << 13)).contains(j))
        .unwrap();
    let cells = [
        ("head.0.carry", row, carry),
        ("head.0.carry.rest", row, rest),
        ("head.0.J", row, j),
    ];
    let carry = put(&scene, &cells);

    // A weight that is one modulo p: another remainder.
    let row = 30 * 8;
    let [w, rest, int] = ["w", "w.rest", "I"].map(|n| get(&scene, &format!("head.0.{n}"), row));
    let total = scene
        .circuit
        .sums
        .iter()
        .position(|s| s.name == "head.steps.W")
        .unwrap();
    let total = i64::from(scene.honest.sums[total][0]);
    let weights = (0..2 << int).map(|r| (r, (w + (rest - r) * inverse(2 << int)).rem_euclid(P)));
    let (rest, w) = weights
        .into_iter()
        .find(|(_, v)| (1 << 17..(1 << 29) - total).contains(v))
        .unwrap();
    let weight = put(&scene, &[("head.0.w", row, w), ("head.0.w.rest", row, rest)]);

    // The same total in other limbs; a last limb of R · W, of which R is 0, that is −1 / 2^10.
    let [w0, w1, w2] = ["W0", "W1", "W2"].map(|n| get(&scene, &format!("head.steps.{n}"), 0));
    let limb0 = put(&scene, &[("head.steps.W0", 0, w0 + 1024), ("head.steps.W1", 0, w1 - 1)]);
    let limb1 = put(&scene, &[("head.steps.W1", 0, w1 - 1024), ("head.steps.W2", 0, w2 + 1)]);
    let third = put(&scene, &[("head.steps.t3", 0, -inverse(1024)), ("head.steps.s2", 0, 1)]);
    let lies = vec![
        ("head.#: constraint padding is far", far),
        ("head.#: lookup carry", carry),
        ("head.#: lookup w", weight),
        ("head.steps: lookup W0", limb0),
        ("head.steps: lookup W1", limb1),
        ("head.steps: lookup t3", third),
    ];
    (scene, lies)
}

/// The third candidate is left out: the second counts twice, or padding is one.
fn top_k() -> (Scene, Vec<ByHand>) {
    let scene = head_of("head, top-k by hand", (1, 16), falling(400_000), 94548, 3, None);
    let theta = ("head.steps.theta", 0, 400_000 - 2 * 13_000 + 1);
    let [j, f, int] = ["J", "f", "I"].map(|n| get(&scene, &format!("head.0.{n}"), 8));
    let n = 2 * ((1 << 17) + 1 - j - f);
    let weight = [
        ("head.0.w", 8, n >> (int + 1)),
        ("head.0.w.rest", 8, n & ((2 << int) - 1)),
    ];
    let twice = put(&scene, &[theta, ("head.0.c", 8, 2), weight[0], weight[1]]);
    let padding = put(&scene, &[theta, ("head.0.c", PADDING, 1)]);
    let lies = vec![
        ("head.#: constraint c is 0 or 1", twice),
        ("head.#: constraint c only in the vocabulary", padding),
    ];
    (scene, lies)
}

/// All logits are negative, and padding, whose logit is 0, is shown as the maximum.
fn below_zero() -> (Scene, Vec<ByHand>) {
    let scene = head_of("head, below zero", (1, 16), falling(-10), 94548, 0, None);
    let cells = [("head.steps.M", 0, 0), ("head.0.h", 0, 0), ("head.0.h", PADDING, 1)];
    let lie = put(&scene, &cells);
    (scene, vec![("head.#: constraint h only in the vocabulary", lie)])
}
