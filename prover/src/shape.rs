//! The public facts about a model, from which a verifier builds its circuit, and the model itself.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Channels that a norm can sum over, with padding: beyond, the sum of squares needs more limbs than the circuit has.
pub const MAX_NORM: usize = 4096;
/// A projection's row is provable if |m · acc| + 2^(s − 1) stays below 2^29.
pub const ROW_BOUND: i64 = 1 << 29;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    Silu,
    Squareplus,
}

/// What is public about a model: everything but its weights, and of those the shares k of the scan. FORMAT.md has the names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    pub d_model: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub head_dim: usize,
    pub d_state: usize,
    pub vocab_size: usize,
    pub activation: Activation,
    pub gate: Activation,
    pub norm_mantissa: u32,
    pub embed_mul: i64,
    pub logit_shift: u32,
    pub in_proj_shift: Vec<u32>,
    pub out_proj_shift: Vec<u32>,
    /// By layer and head.
    pub k: Vec<Vec<u8>>,
}

impl ModelShape {
    pub fn d_inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Rows of the input projection: z, x, B, C, dt.
    pub fn in_rows(&self) -> usize {
        2 * self.d_inner() + 2 * self.d_state + self.n_heads
    }

    /// Channels of the convolution: x, B, C.
    pub fn conv_rows(&self) -> usize {
        self.d_inner() + 2 * self.d_state
    }

    pub fn d_axis(&self) -> Axis {
        Axis::new(self.d_model)
    }

    pub fn heads_axis(&self) -> Axis {
        Axis::new(self.n_heads)
    }

    pub fn vocab_axis(&self) -> Axis {
        Axis::new(self.vocab_size)
    }

    /// One block: n is summed over.
    pub fn states_axis(&self) -> Axis {
        Axis {
            size: self.d_state,
            blocks: 1,
            log: log_ceil(self.d_state),
            group: 1,
            group_log: 0,
        }
    }

    /// The blocks of the heads; in each, the variables of the head, then those of its channel.
    pub fn inner_axis(&self) -> Axis {
        let (heads, p) = (self.heads_axis(), log_ceil(self.head_dim));
        Axis {
            size: self.d_inner(),
            blocks: heads.blocks,
            log: heads.log + p,
            group: self.head_dim,
            group_log: p,
        }
    }

    /// The limits of FORMAT.md and those of the circuit. The convex scan and no rotation are what every circuit has.
    pub fn validate(&self) -> Result<(), String> {
        let within = |name: &str, v: usize, lo: usize, hi: usize| match (lo..=hi).contains(&v) {
            true => Ok(()),
            false => Err(format!("{name} is {v}; it must be from {lo} to {hi}")),
        };
        within("d_model", self.d_model, 1, 4096)?;
        within("n_layers", self.n_layers, 1, 128)?;
        within("n_heads", self.n_heads, 1, 1024)?;
        within("head_dim", self.head_dim, 1, 256)?;
        within("d_inner", self.d_inner(), 1, 8192)?;
        within("d_state", self.d_state, 2, 64)?;
        within("vocab_size", self.vocab_size, 1, 1 << 17)?;
        within("embed_mul", self.embed_mul.try_into().unwrap_or(0), 1, 1023)?;
        within("logit_shift", self.logit_shift as usize, 0, 31)?;
        if self.d_state % 2 == 1 {
            return Err(format!("d_state is {}; it must be even", self.d_state));
        }
        if ![0, 8].contains(&self.norm_mantissa) {
            return Err(format!("norm_mantissa is {}; it must be 8 or 0", self.norm_mantissa));
        }
        for (name, axis) in [("d_model", self.d_axis()), ("d_inner", self.inner_axis())] {
            let padded = axis.padded();
            if padded > MAX_NORM {
                return Err(format!(
                    "{name} is {padded} with padding: not provable beyond {MAX_NORM}"
                ));
            }
        }
        let per_layer = |name: &str, len: usize| within(name, len, self.n_layers, self.n_layers);
        for (name, shifts) in [
            ("in_proj_shift", &self.in_proj_shift),
            ("out_proj_shift", &self.out_proj_shift),
        ] {
            per_layer(&format!("the number of {name}"), shifts.len())?;
            shifts.iter().try_for_each(|&s| within(name, s as usize, 0, 24))?;
        }
        per_layer("the number of layers with k", self.k.len())?;
        for k in &self.k {
            within("the number of k in a layer", k.len(), self.n_heads, self.n_heads)?;
            k.iter().try_for_each(|&k| within("scan.k", k.into(), 8, 15))?;
        }
        Ok(())
    }

    /// Names, numbers of values, least and greatest value of the tensors, without scan.k, in the order of FORMAT.md. Scales may also be one value.
    pub fn tensors(&self) -> Vec<(String, usize, i32, i32)> {
        let (d, e, rows, conv, h) = (
            self.d_model,
            self.d_inner(),
            self.in_rows(),
            self.conv_rows(),
            self.n_heads,
        );
        let i8s = |name: &str, len: usize| (name.to_string(), len, -127, 127);
        let mut all = vec![
            i8s("token_embd.weight", self.vocab_size * d),
            i8s("output_norm.scale", d),
        ];
        for i in 0..self.n_layers {
            let layer = [
                i8s("norm1.scale", d),
                i8s("in_proj.weight", rows * d),
                ("in_proj.mul".into(), rows, 1, 255),
                i8s("conv.weight", conv * 4),
                ("conv.bias".into(), conv, -32767, 32767),
                ("scan.A".into(), h, 1, 1 << 19),
                ("scan.base".into(), h, -32767, 32767),
                i8s("scan.skip", h),
                i8s("norm2.scale", e),
                i8s("out_proj.weight", d * e),
                ("out_proj.mul".into(), d, 1, 255),
            ];
            all.extend(layer.map(|(name, len, lo, hi)| (format!("blk.{i}.{name}"), len, lo, hi)));
        }
        all
    }
}

/// A dimension as `blocks` hypercubes of `log` variables. Every `group` indices in a row take 2^group_log places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    pub size: usize,
    pub blocks: usize,
    pub log: usize,
    pub group: usize,
    pub group_log: usize,
}

impl Axis {
    /// At most 8 blocks, such that least is padded; of those the fewest.
    pub fn new(size: usize) -> Self {
        let log = |blocks: usize| log_ceil(size.div_ceil(blocks));
        let blocks = (1..=8).min_by_key(|&b| (b << log(b), b)).unwrap();
        Axis {
            size,
            blocks,
            log: log(blocks),
            group: 1,
            group_log: 0,
        }
    }

    pub fn padded(&self) -> usize {
        self.blocks << self.log
    }

    /// Where index i lies in the blocks, one after the other.
    pub fn place(&self, i: usize) -> usize {
        (i / self.group) << self.group_log | (i % self.group)
    }

    /// (index, place in the block) of the indices that lie in a block.
    pub fn block(&self, block: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let places = (0..self.size).map(|i| (i, self.place(i)));
        places
            .filter(move |(_, at)| at >> self.log == block)
            .map(|(i, at)| (i, at & ((1 << self.log) - 1)))
    }
}

/// The least b with 2^b ≥ n.
pub fn log_ceil(n: usize) -> usize {
    n.next_power_of_two().trailing_zeros() as usize
}

/// A model with its weights, by the names of FORMAT.md, row-major; ternary weights unpacked.
#[derive(Clone, Debug)]
pub struct Model {
    pub shape: ModelShape,
    pub tensors: HashMap<String, Vec<i32>>,
}

impl Model {
    pub fn new(shape: ModelShape, tensors: HashMap<String, Vec<i32>>) -> Result<Self, String> {
        shape.validate()?;
        let model = Model { shape, tensors };
        model.validate()?;
        Ok(model)
    }

    pub fn tensor(&self, name: &str) -> &[i32] {
        &self.tensors[name]
    }

    fn validate(&self) -> Result<(), String> {
        for (name, len, lo, hi) in self.shape.tensors() {
            let values = self.tensors.get(&name).ok_or_else(|| format!("{name} is missing"))?;
            if values.len() != len && !(name.ends_with(".scale") && values.len() == 1) {
                return Err(format!("{name} has {} values, not {len}", values.len()));
            }
            if let Some(v) = values.iter().find(|v| !(lo..=hi).contains(*v)) {
                return Err(format!(
                    "{name} has the value {v}; its values must be from {lo} to {hi}"
                ));
            }
        }
        let s = &self.shape;
        for i in 0..s.n_layers {
            for (part, width, shift) in [
                ("in_proj", s.d_model, s.in_proj_shift[i]),
                ("out_proj", s.d_inner(), s.out_proj_shift[i]),
            ] {
                let name = format!("blk.{i}.{part}");
                let (weights, mul) = (
                    self.tensor(&format!("{name}.weight")),
                    self.tensor(&format!("{name}.mul")),
                );
                for (row, (w, &m)) in weights.chunks(width).zip(mul).enumerate() {
                    let bound = 127 * sum_abs(w) * i64::from(m) + (1 << shift >> 1);
                    if bound >= ROW_BOUND {
                        return Err(format!("{name}: row {row} may reach {bound}: not provable (2^29)"));
                    }
                }
            }
        }
        for (v, e) in self.tensor("token_embd.weight").chunks(s.d_model).enumerate() {
            if 127 * sum_abs(e) >= 1 << 30 {
                return Err(format!(
                    "token_embd.weight: the logit of token {v} may reach {}",
                    127 * sum_abs(e)
                ));
            }
        }
        Ok(())
    }
}

fn sum_abs(values: &[i32]) -> i64 {
    values.iter().map(|v| i64::from(v.abs())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes() {
        let of = |size| (Axis::new(size).blocks, Axis::new(size).log);
        assert_eq!(
            [of(192), of(12), of(2048), of(1), of(5), of(7), of(9)],
            [(3, 6), (3, 2), (1, 11), (1, 0), (5, 0), (7, 0), (5, 1)]
        );
    }
}
