//! ARITHMETIC section 11: that the chosen tokens are those which the sampler chooses from the logits. PROTOCOL.md, "The choice of tokens", says why this proves it.

use crate::circuit::builder::{as_case, Builder, Run};
use crate::circuit::linear::product;
use crate::circuit::HeadInput;
use crate::ir::{bit_length, Bind, ColId, Factor, Factor64, Kernel, Linear, Public, SlotId, Term, Terms, Tokens};
use crate::sampler;
use crate::shape::ModelShape;

/// With a temperature: the weights of a step add up to at most 2^29.
pub const MAX_SAMPLED_VOCAB: usize = 1 << 13;
/// Weights are zero from this whole exponent on.
const FAR: i64 = 17;

/// What is public about the choices of a segment. `top_p` is not provable and has no place here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The token chosen after each step; `usize::MAX` where none is claimed.
    pub chosen: Vec<usize>,
    /// The sampler's step index at the first step of the segment; at least 0 where a token is claimed.
    pub first_index: i64,
    /// Q16; 0 is greedy.
    pub temperature: u32,
    /// 0 is off.
    pub top_k: u32,
    pub seed: u64,
}

/// A block of the vocabulary: a table with the variables (v, t).
struct Block {
    table: usize,
    base: usize,
    log: usize,
    logit: ColId,
    /// 1 for tokens of the vocabulary, 0 for padding.
    real: ColId,
    padded: bool,
    /// The token chosen.
    at: ColId,
}

/// What all parts of the head need.
struct Head {
    blocks: Vec<Block>,
    /// The table with a row per step.
    steps: usize,
    /// 1 where a token is claimed.
    claimed: Vec<i64>,
    vocab: usize,
    /// |logit| ≤ bound.
    bound: i64,
}

/// Adds the tables that prove the choices.
pub fn head(b: &mut Builder, shape: &ModelShape, input: &HeadInput, choice: &Choice) -> Result<(), String> {
    check(b, shape, choice)?;
    b.circuit.chosen = choice.chosen.clone();
    if choice.chosen.iter().all(|&c| c == usize::MAX) {
        return Ok(());
    }
    let (log, time) = (input.log_vocab, b.steps());
    // What the registration's ranges of the weights imply.
    let bound = 127 * 127 * shape.d_model as i64;
    let blocks = input.e.iter().enumerate().map(|(i, e)| {
        let (table, base) = (b.table(format!("head.{i}"), log + time), i << log);
        let (logit, _) = b.sum(table, "logit", product(e, log, &input.u, time), vec![], (-bound, bound));
        let real = (base..base + (1 << log))
            .map(|v| (v < shape.vocab_size).into())
            .collect();
        let real = b.public(
            table,
            "real",
            Public::Dense {
                vars: (0..log).collect(),
                values: real,
            },
        );
        let at = b.public(
            table,
            "chosen",
            Public::TokenAt {
                which: Tokens::Chosen,
                base,
            },
        );
        Block {
            table,
            base,
            log,
            logit,
            real,
            padded: base + (1 << log) > shape.vocab_size,
            at,
        }
    });
    let blocks: Vec<Block> = blocks.collect();
    let steps = b.table("head.steps", time);
    let claimed = choice.chosen.iter().map(|&c| (c != usize::MAX).into()).collect();
    let head = Head {
        blocks,
        steps,
        claimed,
        vocab: shape.vocab_size,
        bound,
    };
    if choice.temperature == 0 {
        head.greedy(b, &choice.chosen);
    } else {
        head.sampled(b, shape, choice);
    }
    Ok(())
}

fn check(b: &Builder, shape: &ModelShape, choice: &Choice) -> Result<(), String> {
    if choice.chosen.len() != 1 << b.steps() {
        return Err(format!("{} choices at 2^{} steps", choice.chosen.len(), b.steps()));
    }
    for (s, &token) in choice.chosen.iter().enumerate().filter(|(_, c)| **c != usize::MAX) {
        if token >= shape.vocab_size {
            return Err(format!(
                "token {token} is not in the vocabulary of {}",
                shape.vocab_size
            ));
        }
        if choice.first_index + (s as i64) < 0 {
            return Err(format!(
                "step {s} of the segment chooses before the sampler's first step"
            ));
        }
    }
    if choice.temperature > sampler::MAX_TEMPERATURE {
        return Err(format!("temperature {} is out of range", choice.temperature));
    }
    if choice.temperature > 0 && shape.vocab_size > MAX_SAMPLED_VOCAB {
        return Err(format!(
            "temperature: not provable with a vocabulary beyond {MAX_SAMPLED_VOCAB}"
        ));
    }
    Ok(())
}

/// Product of two polynomials.
fn times(a: &Terms, b: &Terms) -> Terms {
    a.iter()
        .flat_map(|(c, x)| b.iter().map(move |(d, y)| (c * d, [&x[..], &y[..]].concat())))
        .collect()
}

fn scaled(factor: i64, a: &Terms) -> Terms {
    a.iter().map(|(c, x)| (factor * c, x.clone())).collect()
}

fn col(c: ColId) -> Terms {
    vec![(1, vec![c])]
}

fn affine(constant: i64, terms: &[(i64, ColId)]) -> Terms {
    let mut out: Terms = terms.iter().map(|&(c, x)| (c, vec![x])).collect();
    out.push((constant, vec![]));
    out
}

impl Head {
    /// Values of a column of the blocks: [t][v] for the tokens of the vocabulary.
    fn by_step(&self, run: &Run, columns: &[ColId]) -> Vec<Vec<i32>> {
        let mut out = vec![Vec::with_capacity(self.vocab); self.claimed.len()];
        for (block, &column) in self.blocks.iter().zip(columns) {
            for row in run.columns[block.table][column]
                .chunks(out.len())
                .take(self.vocab.saturating_sub(block.base))
            {
                out.iter_mut().zip(row).for_each(|(values, v)| values.push(*v));
            }
        }
        out
    }

    fn logits(&self, run: &Run) -> Vec<Vec<i32>> {
        self.by_step(run, &self.blocks.iter().map(|block| block.logit).collect::<Vec<_>>())
    }

    /// A number that lies where logits lie, one for each step.
    fn level(&self, b: &mut Builder, name: &str, of: impl Fn(usize, &[i32]) -> i32) -> SlotId {
        let bits = bit_length(self.bound);
        let (level, slot) = b.commit_all(self.steps, name, (-1 << bits, (1 << bits) - 1), |run| {
            self.logits(run)
                .iter()
                .enumerate()
                .map(|(t, logits)| of(t, logits))
                .collect()
        });
        b.bits_of(self.steps, name, Linear::of(1 << bits, &[(1, level)]), bits + 1);
        slot
    }

    /// 0 ≤ value < 2^bits where the columns `selector` are 1.
    fn where_selected(b: &mut Builder, table: usize, name: &str, value: Linear, bits: usize, selector: Vec<ColId>) {
        b.bits_of(table, name, value, bits);
        b.circuit.tables[table].lookups.last_mut().expect("just added").selector = selector;
    }

    fn claimed(&self, b: &mut Builder, table: usize) -> ColId {
        let log = b.circuit.tables[table].log;
        let public = Public::Dense {
            vars: (log - b.steps()..log).collect(),
            values: self.claimed.clone(),
        };
        b.public(table, "claimed", public)
    }

    /// Selects the rows of the vocabulary.
    fn real(block: &Block) -> Vec<ColId> {
        if block.padded {
            vec![block.real]
        } else {
            vec![]
        }
    }

    /// No logit is larger than the chosen one, none before it as large.
    fn greedy(&self, b: &mut Builder, chosen: &[usize]) {
        let level = self.level(b, "L", |t, logits| match chosen[t] {
            usize::MAX => *logits.iter().max().expect("a vocabulary"),
            token => logits[token],
        });
        for block in &self.blocks {
            let table = block.table;
            let below = b.public(
                table,
                "below",
                Public::TokenBelow {
                    which: Tokens::Chosen,
                    base: block.base,
                },
            );
            let claimed = self.claimed(b, table);
            let l = b.over_time(table, level);
            // L is the logit of the chosen token.
            let tied = times(&col(block.at), &vec![(1, vec![l]), (-1, vec![block.logit])]);
            b.constrain(table, "L is the chosen token's logit", tied);
            // L − logit − [v < chosen] ≥ 0.
            let over = Linear::of(0, &[(1, l), (-1, block.logit), (-1, below)]);
            let selector = [Self::real(block), vec![claimed]].concat();
            Self::where_selected(b, table, "over", over, bit_length(2 * self.bound), selector);
        }
    }

    /// Σ_v of a slot of each block, at every step.
    fn total(&self, b: &mut Builder, name: &str, slots: &[SlotId], most: i64) -> ColId {
        let term = |(block, &slot): (&Block, &SlotId)| {
            let binds = (0..block.log)
                .map(Bind::Var)
                .chain((0..b.steps()).map(Bind::Point))
                .collect();
            let factors = vec![Factor::Slots {
                constant: 0,
                parts: vec![(1, slot)],
                shift: 0,
                binds,
            }];
            Term {
                coef: 1,
                vars: block.log,
                factors,
            }
        };
        let terms = self.blocks.iter().zip(slots).map(term).collect();
        b.sum(self.steps, name, terms, vec![], (0, most)).0
    }

    fn sampled(&self, b: &mut Builder, shape: &ModelShape, choice: &Choice) {
        let scale = Scale::new(
            sampler::inverse_temperature(choice.temperature, shape.embed_mul),
            shape.logit_shift,
            2 * self.bound,
        );
        let top = self.level(b, "M", |_, logits| *logits.iter().max().expect("a vocabulary"));
        let k = choice.top_k as usize;
        let threshold = (k > 0 && k < self.vocab).then(|| self.threshold(b, k));

        let (mut h, mut candidates, mut weights, mut weight_cols) = (vec![], vec![], vec![], vec![]);
        for block in &self.blocks {
            let m = b.over_time(block.table, top);
            h.push(self.maximum(b, block, m));
            let candidate = threshold.map(|t| {
                let (c, slot) = self.candidate(b, block, t);
                candidates.push(slot);
                c
            });
            let (w, slot) = self.weight(b, block, m, candidate, &scale);
            weights.push(slot);
            weight_cols.push(w);
        }
        // Some logit is M.
        let ones = self.total(b, "maxima", &h, self.vocab as i64);
        b.constrain(self.steps, "one maximum is shown", affine(-1, &[(1, ones)]));
        if threshold.is_some() {
            let count = self.total(b, "candidates", &candidates, self.vocab as i64);
            b.constrain(self.steps, "top_k candidates", affine(-(k as i64), &[(1, count)]));
        }
        self.choose(b, choice, &weights, &weight_cols);
    }

    /// h marks one token whose logit is M.
    fn maximum(&self, b: &mut Builder, block: &Block, m: ColId) -> SlotId {
        let table = block.table;
        let (h, slot) = b.commit_all(table, "h", (0, 1), |run| {
            let steps = self.claimed.len();
            let mut out = vec![0; run.columns[table][block.logit].len()];
            for (t, logits) in self.logits(run).iter().enumerate() {
                let largest = logits.iter().max();
                let first = logits.iter().position(|l| Some(l) == largest).expect("a vocabulary");
                if first >> block.log == block.base >> block.log {
                    out[(first - block.base) * steps + t] = 1;
                }
            }
            out
        });
        b.boolean(table, h);
        b.constrain(
            table,
            "h only where the logit is M",
            times(&col(h), &vec![(1, vec![m]), (-1, vec![block.logit])]),
        );
        if block.padded {
            b.constrain(
                table,
                "h only in the vocabulary",
                vec![(1, vec![h]), (-1, vec![h, block.real])],
            );
        }
        slot
    }

    /// The least candidate: its logit θ and its index β.
    fn threshold(&self, b: &mut Builder, k: usize) -> (SlotId, SlotId) {
        let least = move |logits: &[i32]| {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            let (_, v, _) = order.select_nth_unstable_by_key(k - 1, |&v| (std::cmp::Reverse(logits[v]), v));
            *v
        };
        let theta = self.level(b, "theta", |_, logits| logits[least(logits)]);
        let (beta, slot) = b.commit_all(self.steps, "beta", (0, (1 << 17) - 1), |run| {
            self.logits(run).iter().map(|logits| least(logits) as i32).collect()
        });
        b.bits_of(self.steps, "beta", Linear::col(beta), 17);
        (theta, slot)
    }

    /// c = 1: (logit, −v) ≥ (θ, −β) in the lexicographic order; c = 0: less.
    fn candidate(&self, b: &mut Builder, block: &Block, (theta, beta): (SlotId, SlotId)) -> (ColId, SlotId) {
        let table = block.table;
        let (theta, beta) = (b.over_time(table, theta), b.over_time(table, beta));
        let index = (block.base..block.base + (1 << block.log)).map(|v| v as i64).collect();
        let v = b.public(
            table,
            "v",
            Public::Dense {
                vars: (0..block.log).collect(),
                values: index,
            },
        );
        let from = [block.logit, theta, beta, v, block.real];
        let (c, slot) = b.commit(table, "c", (0, 1), from, |[l, theta, beta, v, real]| {
            (real == 1 && (l > theta || (l == theta && v <= beta))).into()
        });
        b.boolean(table, c);
        if block.padded {
            b.constrain(
                table,
                "c only in the vocabulary",
                vec![(1, vec![c]), (-1, vec![c, block.real])],
            );
        }
        let (tie, _) = b.commit(table, "tie", (0, 1), [block.logit, theta], |[l, theta]| {
            (l == theta).into()
        });
        b.boolean(table, tie);
        let x: Terms = vec![(1, vec![block.logit]), (-1, vec![theta])];
        b.constrain(table, "a tie is one", times(&col(tie), &x));
        // margin = (2c − 1) · (logit − θ) − 1 + tie · ((2c − 1) · (β − v) + c) ≥ 0.
        let sign = affine(-1, &[(2, c)]);
        let mut order = times(&sign, &vec![(1, vec![beta]), (-1, vec![v])]);
        order.push((1, vec![c]));
        let margin = [times(&sign, &x), vec![(-1, vec![])], times(&col(tie), &order)].concat();
        let reach = 4 * self.bound + (1 << 18);
        let (margin, _) = b.derive(table, "margin", (-reach, reach), margin);
        let bits = bit_length(2 * self.bound).max(17);
        Self::where_selected(b, table, "margin", Linear::col(margin), bits, Self::real(block));
        (c, slot)
    }

    /// w = pow2neg(F) >> I, or 0 where that is 0 by definition, where the token is no candidate, and in padding.
    fn weight(
        &self,
        b: &mut Builder,
        block: &Block,
        m: ColId,
        candidate: Option<ColId>,
        scale: &Scale,
    ) -> (ColId, SlotId) {
        let (table, logit, d_max) = (block.table, block.logit, scale.d_max);
        // δ = M − logit = d + z + a with a ≥ 0: d = δ where δ ≤ d_max (z = a = 0); otherwise d = d_max and z = 1. Padding counts as far.
        let nd = bit_length(d_max);
        let from = [m, logit, block.real];
        let (d, _) = b.commit(table, "d", (0, (1 << nd) - 1), from, |[m, l, real]| {
            if real == 1 {
                (m - l).min(d_max)
            } else {
                d_max
            }
        });
        b.bits_of(table, "d", Linear::col(d), nd);
        let (z, _) = b.commit(table, "z", (0, 1), from, |[m, l, real]| {
            (real == 0 || m - l > d_max).into()
        });
        b.boolean(table, z);
        let near = affine(1, &[(-1, z)]);
        b.constrain(
            table,
            "where near, d is the distance",
            times(&near, &vec![(1, vec![m]), (-1, vec![logit]), (-1, vec![d])]),
        );
        b.constrain(
            table,
            "where far, d is the largest",
            times(&col(z), &affine(-d_max, &[(1, d)])),
        );
        if block.padded {
            b.constrain(table, "padding is far", times(&affine(1, &[(-1, block.real)]), &near));
        }
        let beyond = Linear::of(0, &[(1, m), (-1, logit), (-1, d), (-1, z)]);
        Self::where_selected(b, table, "a", beyond, bit_length(2 * self.bound), Self::real(block));

        let (whole, f) = scale.exponent(b, table, d);
        let pow = power(b, table, &whole);
        let j = pow2neg(b, table, f);

        // pow2neg(F) = floor(n / 2) for n = 2^17 + 1 − J − f, so w = floor(n / 2^(I + 1)): kept · n = 2^(I + 1) · w + rest.
        let int = whole.value;
        let all = candidate.is_none();
        let cells = move |[j, f, int, z, c]: [i64; 5]| {
            let n = if z == 0 && (all || c == 1) {
                (1 << 17) + 1 - j - f
            } else {
                0
            };
            (n >> (int + 1), n & ((2 << int) - 1))
        };
        let from = [j, f, int, z, candidate.unwrap_or(z)];
        let (w, slot) = b.commit(table, "w", (0, (1 << 17) - 1), from, |v| cells(v).0);
        let (rest, _) = b.commit(table, "w.rest", (0, (1 << 17) - 1), from, |v| cells(v).1);
        // w < 2^(17 − I): more than that could only be if the product were beyond p.
        b.circuit
            .lookup(table, "w", Linear::col(w), Linear::of(FAR, &[(-1, int)]));
        b.circuit
            .lookup(table, "w.rest", Linear::col(rest), Linear::of(1, &[(1, int)]));
        let n = affine((1 << 17) + 1, &[(-1, j), (-1, f)]);
        let kept = match candidate {
            Some(c) => times(&col(c), &times(&near, &n)),
            None => times(&near, &n),
        };
        let terms = [vec![(2, vec![pow, w]), (1, vec![rest])], scaled(-1, &kept)].concat();
        // 2^(I + 1) · w < 2^18, whatever I is; n is from 0 to 2^17 + 2^15.
        let extreme = |product: i64, n: i64| {
            vec![
                (1, vec![Factor64::Const(product)]),
                (1, vec![Factor64::Col(rest)]),
                (-1, vec![Factor64::Const(n)]),
            ]
        };
        b.constrain_cases(
            table,
            "w is the shifted power, where kept",
            terms,
            vec![extreme(1 << 18, 0), extreme(0, 5 << 15)],
        );
        (w, slot)
    }

    /// Σ of the weights before the chosen token ≤ target < that and the chosen token's weight.
    fn choose(&self, b: &mut Builder, choice: &Choice, weights: &[SlotId], columns: &[ColId]) {
        let (table, time) = (self.steps, b.steps());
        let most = (self.vocab as i64) << 16;
        // Every weight is at most 2^16: n ≤ 2^17 + 1.
        let total = self.total(b, "W", weights, most);
        let before = self.blocks.iter().zip(weights).map(|(block, &slot)| {
            let vars = block.log + time;
            let w = Factor::Slots {
                constant: 0,
                parts: vec![(1, slot)],
                shift: 0,
                binds: (0..vars).map(Bind::Var).collect(),
            };
            let below = Kernel::TokenBelow {
                which: Tokens::Chosen,
                base: block.base,
            };
            Term {
                coef: 1,
                vars,
                factors: vec![Factor::Kernel(Kernel::Lag(0)), Factor::Kernel(below), w],
            }
        });
        let (before, _) = b.sum(table, "before", before.collect(), vec![], (0, most));
        let (own, own_slot) = b.commit_all(table, "own", (0, (1 << 17) - 1), |run| {
            let weights = self.by_step(run, columns);
            weights
                .iter()
                .zip(&choice.chosen)
                .map(|(w, &token)| if token == usize::MAX { 0 } else { w[token] })
                .collect()
        });
        b.bits_of(table, "own", Linear::col(own), 17);
        for (block, &w) in self.blocks.iter().zip(columns) {
            let own = b.over_time(block.table, own_slot);
            let tied = times(&col(block.at), &vec![(1, vec![own]), (-1, vec![w])]);
            b.constrain(block.table, "the chosen token's weight", tied);
        }

        // target = (R · W) >> 30 with R = R0 + 2^10 · R1 + 2^20 · R2, W in the same limbs, carry by carry.
        let word = |s: usize| match self.claimed[s] {
            0 => 0,
            _ => i64::from(sampler::random_word(choice.seed, (choice.first_index + s as i64) as u64) >> 2),
        };
        let words: Vec<i64> = (0..1 << time).map(word).collect();
        let mut limb_of = |name: &str, shift: u32| {
            let values = words.iter().map(|r| (r >> shift) & 1023).collect();
            b.public(
                table,
                name,
                Public::Dense {
                    vars: (0..time).collect(),
                    values,
                },
            )
        };
        let r = [limb_of("R0", 0), limb_of("R1", 10), limb_of("R2", 20)];
        let part = |b: &mut Builder, name: &str, shift: u32| {
            let (w, _) = b.commit(table, name, (0, 1023), [total], |[w]| (w >> shift) & 1023);
            b.bits_of(table, name, Linear::col(w), 10);
            w
        };
        let (w0, w1) = (part(b, "W0", 0), part(b, "W1", 10));
        let (w2, _) = b.commit(table, "W2", (0, 512), [total], |[w]| w >> 20);
        b.between(table, "W2", w2, 0, 512);
        let limbs = vec![
            (1, vec![total]),
            (-1, vec![w0]),
            (-1 << 10, vec![w1]),
            (-1 << 20, vec![w2]),
        ];
        b.constrain(table, "W in limbs", limbs);
        let carry = |b: &mut Builder, i: usize, terms: Terms, bits: usize| {
            let value = |run: &Run, row: usize| -> i64 {
                terms
                    .iter()
                    .map(|(c, cols)| {
                        cols.iter()
                            .map(|&x| i64::from(run.columns[table][x][row]))
                            .product::<i64>()
                            * c
                    })
                    .sum()
            };
            let rows = 1 << time;
            let (high, _) = b.commit_all(table, &format!("t{}", i + 1), (0, (1 << bits) - 1), |run| {
                (0..rows).map(|row| (value(run, row) >> 10) as i32).collect()
            });
            b.bits_of(table, &format!("t{}", i + 1), Linear::col(high), bits);
            let (low, _) = b.commit_all(table, &format!("s{i}"), (0, 1023), |run| {
                (0..rows).map(|row| (value(run, row) & 1023) as i32).collect()
            });
            b.bits_of(table, &format!("s{i}"), Linear::col(low), 10);
            let identity = [terms, vec![(-1 << 10, vec![high]), (-1, vec![low])]].concat();
            b.constrain(table, &format!("carry {i}"), identity);
            high
        };
        let t1 = carry(b, 0, vec![(1, vec![r[0], w0])], 10);
        let t2 = carry(b, 1, vec![(1, vec![t1]), (1, vec![r[0], w1]), (1, vec![r[1], w0])], 11);
        let t3 = carry(
            b,
            2,
            vec![
                (1, vec![t2]),
                (1, vec![r[0], w2]),
                (1, vec![r[1], w1]),
                (1, vec![r[2], w0]),
            ],
            12,
        );
        let target = vec![
            (1, vec![t3]),
            (1, vec![r[1], w2]),
            (1, vec![r[2], w1]),
            (1 << 10, vec![r[2], w2]),
        ];
        let (target, _) = b.derive(table, "target", (0, (1 << 29) + (1 << 21)), target);

        let claimed = self.claimed(b, table);
        let bits = bit_length(most);
        let reached = Linear::of(0, &[(1, target), (-1, before)]);
        Self::where_selected(b, table, "the target is not before", reached, bits, vec![claimed]);
        let within = Linear::of(-1, &[(1, before), (1, own), (-1, target)]);
        Self::where_selected(b, table, "the target is not after", within, bits, vec![claimed]);
    }
}

/// e = floor(d · C / 2^shift) for 0 ≤ d ≤ d_max, where it is less than 17 · 2^16.
struct Scale {
    c: i64,
    shift: u32,
    d_max: i64,
}

/// I and its bits.
struct Whole {
    value: ColId,
    bits: [ColId; 4],
}

impl Scale {
    fn new(c: u64, shift: u32, most: i64) -> Self {
        // The largest distance whose weight may not be zero.
        let far = (i128::from(FAR) << (16 + shift)) - 1;
        let d_max = (far / i128::from(c)).min(most.into()) as i64;
        let (mut c, mut shift) = (if d_max == 0 { 0 } else { c as i64 }, shift);
        while shift > 0 && c % 2 == 0 {
            (c, shift) = (c / 2, shift - 1);
        }
        Scale { c, shift, d_max }
    }

    fn of(&self, d: i64) -> i64 {
        (d * self.c) >> self.shift
    }

    /// I = e >> 16 and f = (e mod 2^16) − 2^15 as columns.
    fn exponent(&self, b: &mut Builder, table: usize, d: ColId) -> (Whole, ColId) {
        let nd = bit_length(self.d_max);
        let d_top = (1i64 << nd) - 1;
        // From the low end of C: x ← floor((c · d + x) / 2^m) for its next m bits c.
        let (mut c, mut shift, mut done) = (self.c, self.shift as usize, 0);
        let mut x: Option<(ColId, i64)> = None;
        while shift > 8 || c << nd > 1 << 29 {
            let m = (29 - nd).min(17).min(shift);
            let (low, carried) = (c & ((1 << m) - 1), x.map_or(0, |(_, top)| top));
            let top = (low * d_top + carried) >> m;
            (c, shift, done) = (c >> m, shift - m, done + m);
            let (below, name) = (self.c & ((1 << done) - 1), format!("x{done}"));
            let bits = bit_length(top);
            let (next, _) = b.commit(table, &name, (0, (1 << bits) - 1), [d], |[d]| {
                ((i128::from(d) * i128::from(below)) >> done) as i64
            });
            b.bits_of(table, &name, Linear::col(next), bits);
            let mut rest = vec![(low, d), (-1 << m, next)];
            rest.extend(x.map(|(x, _)| (1, x)));
            b.bits_of(table, &format!("{name}.rest"), Linear::of(0, &rest), m);
            x = Some((next, (1 << bits) - 1));
        }
        let bits = [0, 1, 2, 3].map(|i| {
            let (bit, _) = b.commit(table, &format!("I{i}"), (0, 1), [d], |[d]| {
                let whole = self.of(d) >> 16;
                (whole >> i) & 1
            });
            b.boolean(table, bit);
            bit
        });
        // I is its four bits, or 16 where they are all 0.
        let (value, slot) = b.commit(table, "I", (0, FAR - 1), [d], |[d]| self.of(d) >> 16);
        b.derived.push(slot);
        let whole = Whole { value, bits };
        let (low, high) = (whole.low(), whole.high());
        b.constrain(
            table,
            "the top bit of I",
            [times(&high, &high), scaled(-16, &high)].concat(),
        );
        b.constrain(table, "I is at most 16", times(&high, &low));
        let (f, _) = b.commit(table, "f", (-1 << 15, (1 << 15) - 1), [d], |[d]| {
            (self.of(d) & 65535) - (1 << 15)
        });
        b.circuit.in_range(table, f, 1 << 15, 16);
        // c · d + x − 2^shift · e lies in 0 … 2^shift − 1.
        let mut rest = vec![(c, d), (-1 << (16 + shift), value), (-1 << shift, f)];
        rest.extend(x.map(|(x, _)| (1, x)));
        let constant = -1 << (15 + shift);
        if shift == 0 {
            b.constrain(table, "e", affine(constant, &rest));
        } else {
            b.bits_of(table, "e.rest", Linear::of(constant, &rest), shift);
        }
        (whole, f)
    }
}

impl Whole {
    fn low(&self) -> Terms {
        self.bits
            .iter()
            .enumerate()
            .map(|(i, &bit)| (1 << i, vec![bit]))
            .collect()
    }

    /// 16 times the fifth bit.
    fn high(&self) -> Terms {
        [col(self.value), scaled(-1, &self.low())].concat()
    }
}

/// 2^I as a column.
fn power(b: &mut Builder, table: usize, whole: &Whole) -> ColId {
    let [b0, b1, b2, b3] = whole.bits;
    // 2^(4 · b2 + 8 · b3), or 2^16: 16 · it = 16 · (1 + 15 · b2) · (1 + 255 · b3) + 65535 · (16 · the fifth bit).
    let (quad, slot) = b.commit(table, "2^(I - I mod 4)", (1, 1 << 16), [whole.value], |[i]| {
        1 << (i & 28)
    });
    b.derived.push(slot);
    let product = times(&affine(1, &[(15, b2)]), &affine(1, &[(255, b3)]));
    let terms = [
        scaled(16, &product),
        scaled(65535, &whole.high()),
        vec![(-16, vec![quad])],
    ]
    .concat();
    b.constrain(table, "power of the high bits", terms);
    let product = times(&affine(1, &[(1, b0)]), &affine(1, &[(3, b1)]));
    b.derive(table, "2^I", (1, 1 << 16), times(&product, &col(quad))).0
}

/// J with 2 · pow2neg(F) ≤ 2^17 + 1 − J − f ≤ 2 · pow2neg(F) + 1, for F = f + 2^15. All floors of section 11 are exact (PROTOCOL).
fn pow2neg(b: &mut Builder, table: usize, f: ColId) -> ColId {
    let limb = |b: &mut Builder, name: &str, lo: i64, bits: usize, from: [ColId; 1], cell: &dyn Fn(i64) -> i64| {
        let (col, _) = b.commit(table, name, (lo, lo + (1 << bits) - 1), from, |[v]| cell(v));
        b.circuit.in_range(table, col, -lo, bits);
        col
    };
    // f · (f + 1) = 2^16 · S1 + S0 < 2^30.
    let square = |f: i64| f * (f + 1);
    let s1 = limb(b, "S1", 0, 14, [f], &|f| square(f) >> 16);
    let s0 = limb(b, "S0", 0, 16, [f], &|f| square(f) & 65535);
    let parts: Terms = vec![(-1 << 16, vec![s1]), (-1, vec![s0])];
    let with = |extremes: &[i64], parts: &Terms| -> Vec<_> {
        extremes
            .iter()
            .map(|&v| [as_case(parts), vec![(1, vec![Factor64::Const(v)])]].concat())
            .collect()
    };
    let cases = with(&[0, (1 << 30) - (1 << 15)], &parts);
    b.constrain_cases(
        table,
        "f^2 + f in limbs",
        [vec![(1, vec![f, f]), (1, vec![f])], parts].concat(),
        cases,
    );
    // ceil(327 · f² / 2^13) = 2616 · S1 + k, so k = ceil(327 · (S0 − f) / 2^13).
    let ceil = |f: i64| -((-327 * ((square(f) & 65535) - f)) >> 13);
    let k = limb(b, "k", -2048, 13, [f], &ceil);
    b.bits_of(
        table,
        "k.rest",
        Linear::of(0, &[(1 << 13, k), (-327, s0), (327, f)]),
        13,
    );
    // f · S1 = 2^13 · U1 + U0.
    let u = |f: i64| f * (square(f) >> 16);
    let u1 = limb(b, "U1", -1 << 16, 17, [f], &|f| u(f) >> 13);
    let u0 = limb(b, "U0", 0, 13, [f], &|f| u(f) & 8191);
    b.constrain(
        table,
        "f S1 in limbs",
        vec![(1, vec![f, s1]), (-1 << 13, vec![u1]), (-1, vec![u0])],
    );
    // F · Y = 2^16 · (32115 f + 76802 · 2^14 − 11264 S1 + 327 U1) + inner; inner = 2^16 · c + c.rest.
    let inner = move |f: i64| 2616 * (u(f) & 8191) + (f + (1 << 15)) * ceil(f) - 12572 * ((square(f) & 65535) - f);
    let c = limb(b, "carry", -20480, 15, [f], &|f| inner(f) >> 16);
    let rest = limb(b, "carry.rest", 0, 16, [f], &|f| inner(f) & 65535);
    let terms = vec![
        (2616, vec![u0]),
        (1, vec![f, k]),
        (1 << 15, vec![k]),
        (-12572, vec![s0]),
        (12572, vec![f]),
    ];
    let parts: Terms = vec![(-1 << 16, vec![c]), (-1, vec![rest])];
    // −1.24 · 10^9 < inner < 0.44 · 10^9, as F · k lies between 0 and 2616 · (S0 − f) + 2^16 or so.
    let cases = with(&[-1_240_000_000, 440_000_000], &parts);
    b.constrain_cases(table, "the carry", [terms, parts].concat(), cases);
    // J = floor(F · Y / 2^31) − f.
    let high =
        move |f: i64| -653 * f + (76802 << 14) - 11264 * (square(f) >> 16) + 327 * (u(f) >> 13) + (inner(f) >> 16);
    let j = limb(b, "J", 1 << 15, 13, [f], &|f| high(f) >> 15);
    let value = Linear::of(
        76802 << 14,
        &[(-653, f), (-11264, s1), (327, u1), (1, c), (-1 << 15, j)],
    );
    b.bits_of(table, "J.rest", value, 15);
    j
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::circuit::values::{self, Values};
    use crate::circuit::Tensor;
    use crate::ir::{self, Circuit, Oracle, Source};
    use crate::sampler::{sample, Sampling, TOP_P_OFF};
    use crate::satisfy::satisfied;
    use crate::shape::Activation;
    use crate::witness::{finish, Witness};

    const LOG_STEPS: usize = 3;
    const STEPS: usize = 1 << LOG_STEPS;

    /// Numbers for tests.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 += 1;
            let [a, b, _, _] = sampler::philox4x32([self.0 as u32, 0, 0, 0], [5, 6]);
            (u64::from(a) << 32 | u64::from(b)) % n
        }

        fn within(&mut self, reach: i64) -> i64 {
            self.below(2 * reach as u64 + 1) as i64 - reach
        }
    }

    fn shape(vocab_size: usize, embed_mul: i64, logit_shift: u32) -> ModelShape {
        ModelShape {
            d_model: 4096,
            n_layers: 1,
            n_heads: 1,
            head_dim: 1,
            d_state: 2,
            vocab_size,
            activation: Activation::Silu,
            gate: Activation::Silu,
            norm_mantissa: 8,
            embed_mul,
            logit_shift,
            in_proj_shift: vec![],
            out_proj_shift: vec![],
            k: vec![],
        }
    }

    /// A head alone: u[d, t] = [d = t] and e[v, d] = logit v after step d.
    fn builder(shape: &ModelShape, logits: Option<&[Vec<i32>]>) -> (Builder, HeadInput) {
        let mut b = Builder {
            run: logits.map(|_| Run::default()),
            ..Builder::default()
        };
        b.circuit = Circuit {
            log_steps: LOG_STEPS,
            ranges: ir::ranges(),
            fed: vec![0; STEPS],
            ..Circuit::default()
        };
        let (axis, reach) = (shape.vocab_axis(), 127 * 127 * 4096);
        let e = (0..axis.blocks).map(|block| {
            let values = logits.map(|logits| {
                let mut values = vec![0; STEPS << axis.log];
                axis.block(block)
                    .for_each(|(v, at)| (0..STEPS).for_each(|t| values[at * STEPS + t] = logits[t][v]));
                Arc::new(values)
            });
            vec![b.slot(Oracle::Model, "e", axis.log + LOG_STEPS, (-reach, reach), values)]
        });
        let e: Vec<_> = e.collect();
        let identity = logits.map(|_| {
            Arc::new(
                (0..STEPS * STEPS)
                    .map(|i| (i / STEPS == i % STEPS).into())
                    .collect::<Vec<i32>>(),
            )
        });
        let u = b.slot(Oracle::Model, "u", 2 * LOG_STEPS, (0, 1), identity);
        (
            b,
            HeadInput {
                u: Tensor {
                    slots: vec![u],
                    log: LOG_STEPS,
                },
                e,
                log_vocab: axis.log,
            },
        )
    }

    fn build(shape: &ModelShape, logits: &[Vec<i32>], choice: &Choice) -> (Circuit, Witness) {
        let (mut b, input) = builder(shape, Some(logits));
        head(&mut b, shape, &input, choice).unwrap();
        b.circuit.check(&b.derived).unwrap();
        // The verifier's circuit is the same.
        let (mut alone, input) = builder(shape, None);
        head(&mut alone, shape, &input, choice).unwrap();
        assert_eq!(format!("{:?}", alone.circuit), format!("{:?}", b.circuit));
        let (circuit, witness, _) = finish(b);
        (circuit, witness)
    }

    fn choose(shape: &ModelShape, logits: &[Vec<i32>], choice: &mut Choice) {
        let sampling = Sampling {
            temperature: choice.temperature,
            top_k: choice.top_k,
            top_p: TOP_P_OFF,
            seed: choice.seed,
        };
        let index = |t: usize| (choice.first_index + t as i64) as u64;
        choice.chosen = (0..STEPS)
            .map(|t| sample(&logits[t], shape.embed_mul, shape.logit_shift, &sampling, index(t)))
            .collect();
    }

    /// What the sampler chooses satisfies the head; other tokens do not.
    fn holds(
        shape: &ModelShape,
        logits: &[Vec<i32>],
        temperature: u32,
        top_k: u32,
        seed: u64,
        first_index: i64,
    ) -> Choice {
        let mut choice = Choice {
            chosen: vec![],
            first_index,
            temperature,
            top_k,
            seed,
        };
        choose(shape, logits, &mut choice);
        let (circuit, witness) = build(shape, logits, &choice);
        satisfied(&circuit, &witness).unwrap_or_else(|e| panic!("{e}: {choice:?}"));
        let mut random = Random(seed ^ u64::from(top_k));
        for wrong in [0, shape.vocab_size - 1, random.below(shape.vocab_size as u64) as usize] {
            let step = random.below(STEPS as u64) as usize;
            if choice.chosen[step] != wrong {
                let mut other = choice.clone();
                other.chosen[step] = wrong;
                let (circuit, witness) = build(shape, logits, &other);
                assert!(
                    satisfied(&circuit, &witness).is_err(),
                    "{wrong} at step {step} of {choice:?}"
                );
                // Nothing is claimed there: nothing is wrong.
                other.chosen[step] = usize::MAX;
                let (circuit, witness) = build(shape, logits, &other);
                satisfied(&circuit, &witness).unwrap();
            }
        }
        choice
    }

    fn random_logits(random: &mut Random, vocab: usize, reach: i64) -> Vec<Vec<i32>> {
        (0..STEPS)
            .map(|_| (0..vocab).map(|_| random.within(reach) as i32).collect())
            .collect()
    }

    #[test]
    fn vectors() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/vectors/sampler.json");
        let all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut exact = 0;
        for case in all["sample"].as_array().unwrap() {
            let int = |v: &serde_json::Value| v.as_i64().unwrap();
            let long = |name: &str| int(&case[name][0]) as u64 | (int(&case[name][1]) as u64) << 32;
            let mut logits: Vec<i32> = case["logits"]
                .as_array()
                .unwrap()
                .iter()
                .map(|l| int(l) as i32)
                .collect();
            // Beyond what 4096 channels of int8 can give.
            let beyond = logits.iter().any(|l| i64::from(l.abs()) > 127 * 127 * 4096);
            if beyond {
                logits.iter_mut().for_each(|l| *l >>= 5);
            }
            let shape = shape(logits.len(), int(&case["embed_mul"]), int(&case["logit_shift"]) as u32);
            let index = (long("step") & (u64::MAX >> 1)) as i64 & !7;
            let (temperature, top_k) = (int(&case["temperature"]) as u32, int(&case["top_k"]) as u32);
            let index = if long("step") >> 62 == 0 {
                long("step") as i64
            } else {
                index
            };
            let choice = holds(&shape, &vec![logits; STEPS], temperature, top_k, long("seed"), index);
            if !beyond
                && (temperature == 0 || int(&case["top_p"]) == i64::from(TOP_P_OFF))
                && index as u64 == long("step")
            {
                assert_eq!(choice.chosen[0] as i64, int(&case["token"]));
                exact += 1;
            }
        }
        assert!(exact >= 10, "{exact}");
    }

    #[test]
    fn ties_and_extremes() {
        let mut random = Random(1);
        let far = 127 * 127 * 4096;
        for vocab in [1, 2, 5, 9, 37] {
            let equal = vec![vec![-7; vocab]; STEPS];
            let few = random_logits(&mut random, vocab, 1);
            let some = random_logits(&mut random, vocab, 4000);
            let extreme: Vec<Vec<i32>> = (0..STEPS)
                .map(|_| (0..vocab).map(|_| [far, -far, 0][random.below(3) as usize]).collect())
                .collect();
            let shape = shape(vocab, 19, 17);
            for logits in [equal, few, some, extreme] {
                holds(&shape, &logits, 0, 3, 1, 0);
                for (temperature, top_k) in [
                    (1, 0),
                    (65536, 0),
                    (45875, 1),
                    (65536, 2),
                    (1 << 22, vocab as u32 - 1),
                    (200_000, vocab as u32),
                ] {
                    holds(&shape, &logits, temperature, top_k, random.below(1 << 62), 3);
                }
            }
        }
    }

    /// Every temperature and shift has its own decomposition.
    #[test]
    fn scales() {
        let mut random = Random(2);
        let mut worst = (0, 0);
        for i in 0..150u32 {
            let temperature = if i % 3 == 0 {
                65536
            } else {
                1 + random.below(1 << (i % 22)) as u32
            };
            let shape = shape(3 + i as usize % 4, 1 + random.below(1023) as i64, i % 32);
            let near =
                (17 << 16 << shape.logit_shift) / sampler::inverse_temperature(temperature, shape.embed_mul) as i64;
            let reach = (near + 1).min(127 * 127 * 4096);
            let mut logits = random_logits(&mut random, shape.vocab_size, reach / 2 + 1);
            // The edge of where weights are not zero.
            let edge = near.min(reach);
            logits[0][..3].copy_from_slice(&[0, -edge as i32, 1 - edge as i32]);
            logits[1][..2].copy_from_slice(&[(-edge - 1).max(-reach) as i32, 0]);
            let choice = holds(&shape, &logits, temperature, i % 3, u64::from(i), 0);
            let (circuit, _) = build(&shape, &logits, &choice);
            let table = &circuit.tables[0];
            let cells = table
                .columns
                .iter()
                .filter(|c| matches!(&c.source, Source::Slot { vars, .. } if vars.len() == table.log))
                .count();
            worst = (worst.0.max(cells), worst.1.max(table.lookups.len()));
        }
        println!("at most {} cells and {} lookups a row", worst.0, worst.1);
    }

    /// The weights of every F, against the sampler's.
    #[test]
    fn powers() {
        // With T = 94548 and a shift of 16, e = δ.
        let shape = shape(1 << 13, 1, 16);
        assert_eq!(sampler::inverse_temperature(94548, 1), 1 << 16);
        let below = |t: i32| (0..1 << 13).map(move |v| if v == 0 { 0 } else { -(v + (t << 13)) });
        let logits: Vec<Vec<i32>> = (0..STEPS as i32).map(|t| below(t).collect()).collect();
        let mut choice = Choice {
            chosen: vec![],
            first_index: 0,
            temperature: 94548,
            top_k: 0,
            seed: 9,
        };
        choose(&shape, &logits, &mut choice);
        let (circuit, witness) = build(&shape, &logits, &choice);
        let slot = circuit.slots.iter().position(|s| s.name == "head.0.w").unwrap();
        for (row, w) in witness.slots[slot].iter().enumerate() {
            let (v, t) = (row / STEPS, row % STEPS);
            assert_eq!(*w as u64, sampler::weight(-logits[t][v] as u64, 1 << 16, 16));
        }
    }

    #[test]
    fn counts() {
        let shape = ModelShape {
            d_model: 192,
            ..shape(2048, 19, 17)
        };
        for (temperature, top_k) in [(0, 0), (65536, 0), (65536, 40), (45875, 40)] {
            let (mut b, input) = builder(&shape, None);
            let choice = Choice {
                chosen: vec![0; STEPS],
                first_index: 0,
                temperature,
                top_k,
                seed: 0,
            };
            head(&mut b, &shape, &input, &choice).unwrap();
            b.circuit.check(&b.derived).unwrap();
            for table in &b.circuit.tables {
                let own = |c: &&ir::Column| matches!(&c.source, Source::Slot { vars, .. } if vars.len() == table.log);
                println!(
                    "T {temperature} k {top_k} {}: {} cells, {} lookups, {} constraints",
                    table.name,
                    table.columns.iter().filter(own).count(),
                    table.lookups.len(),
                    table.constraints.len()
                );
            }
        }
    }

    /// The sums that follow from changed slots.
    fn with_sums(circuit: &Circuit, slots: Vec<Values>) -> Witness {
        let columns = |id: &usize| !circuit.links.contains(id);
        let sums = (0..circuit.sums.len()).map(|id| {
            if columns(&id) {
                Arc::new(values::sum(circuit, &slots, &circuit.sums[id]))
            } else {
                Values::default()
            }
        });
        Witness {
            sums: sums.collect(),
            slots,
        }
    }

    #[test]
    fn mutations() {
        let (mut random, mut accepted, mut tried) = (Random(4), 0, 0);
        for (temperature, top_k) in [(0, 0), (65536, 0), (65536, 4)] {
            for (vocab, reach) in [(8, 3), (11, 40000)] {
                let shape = shape(vocab, 19, 17);
                let logits = random_logits(&mut random, vocab, reach);
                let choice = holds(&shape, &logits, temperature, top_k, 7, 0);
                let (circuit, witness) = build(&shape, &logits, &choice);
                assert!(satisfied(&circuit, &with_sums(&circuit, witness.slots.clone())).is_ok());
                for (id, slot) in circuit
                    .slots
                    .iter()
                    .enumerate()
                    .filter(|(_, s)| s.oracle == Oracle::Trace)
                {
                    for _ in 0..12 {
                        tried += 1;
                        let mut slots = witness.slots.clone();
                        let mut changed = slots[id].to_vec();
                        let cell = random.below(changed.len() as u64) as usize;
                        changed[cell] = match random.below(4) {
                            0 => changed[cell] + 1,
                            1 => changed[cell] - 1,
                            2 => changed[cell] ^ 1 << random.below(16),
                            _ => random.below(1 << 20) as i32 + 1 + changed[cell],
                        };
                        let value = changed[cell];
                        slots[id] = Arc::new(changed);
                        if satisfied(&circuit, &with_sums(&circuit, slots)).is_ok() {
                            // Any bound that parts candidates from the others will do; in padding nobody looks at the low limb of a disabled lookup.
                            let bound = slot.name.ends_with(".theta") || slot.name.ends_with(".beta");
                            let block = slot
                                .name
                                .strip_prefix("head.")
                                .and_then(|n| n.split('.').next())
                                .and_then(|n| n.parse::<usize>().ok());
                            let padding = block.is_some_and(|i| (i << shape.vocab_axis().log) + cell / STEPS >= vocab);
                            assert!(
                                bound || padding && slot.name.ends_with(".low"),
                                "{}: cell {cell} may be {value}",
                                slot.name
                            );
                            accepted += 1;
                        }
                    }
                }
            }
        }
        assert!(tried > 1000 && accepted < tried / 20, "{accepted} of {tried}");
    }

    #[test]
    fn refusals() {
        let shape = shape(9, 19, 17);
        let good = Choice {
            chosen: vec![0; STEPS],
            first_index: 0,
            temperature: 65536,
            top_k: 0,
            seed: 0,
        };
        let refused = |shape: &ModelShape, change: &dyn Fn(&mut Choice), word: &str| {
            let (mut choice, (mut b, input)) = (good.clone(), builder(shape, None));
            change(&mut choice);
            let error = head(&mut b, shape, &input, &choice).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        refused(&shape, &|c| c.chosen[1] = 9, "vocabulary");
        refused(&shape, &|c| c.first_index = -1, "first step");
        refused(&shape, &|c| c.temperature = (1 << 22) + 1, "temperature");
        refused(&shape, &|c| c.chosen.truncate(4), "choices");
        refused(
            &ModelShape {
                vocab_size: MAX_SAMPLED_VOCAB + 1,
                ..shape.clone()
            },
            &|_| (),
            "not provable",
        );
        // A prompt alone needs no head.
        let (mut b, input) = builder(&shape, None);
        head(
            &mut b,
            &shape,
            &input,
            &Choice {
                chosen: vec![usize::MAX; STEPS],
                first_index: -20,
                ..good
            },
        )
        .unwrap();
        assert!(b.circuit.tables.is_empty());
    }
}
