//! Small random models for tests.

use std::collections::HashMap;

use crate::shape::{Activation, Model, ModelShape, ROW_BOUND};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn between(&mut self, lo: i64, hi: i64) -> i64 {
        lo + self.below((hi - lo + 1) as usize) as i64
    }
}

/// Any shape of a few channels. `hostile`: weights at the ends of their ranges, and outputs far beyond int16.
pub fn random_model(seed: u64, hostile: bool) -> Model {
    let r = &mut Random(seed);
    let form = |v: usize| [Activation::Silu, Activation::Squareplus][v];
    let n_layers = 1 + r.below(2);
    let n_heads = 1 + r.below(5);
    let mut shape = ModelShape {
        d_model: 1 + r.below(9),
        n_layers,
        n_heads,
        head_dim: 1 + r.below(5),
        d_state: 2 + 2 * r.below(4),
        vocab_size: 1 + r.below(20),
        activation: form(r.below(2)),
        gate: form(r.below(2)),
        norm_mantissa: [8, 0][r.below(3) / 2],
        embed_mul: if hostile { 1023 } else { r.between(1, 1023) },
        logit_shift: 10,
        in_proj_shift: vec![0; n_layers],
        out_proj_shift: vec![0; n_layers],
        k: (0..n_layers)
            .map(|_| (0..n_heads).map(|_| 8 + r.below(8) as u8).collect())
            .collect(),
    };
    let scalar = r.below(3) == 0;
    let mut tensors = HashMap::new();
    for (name, len, lo, hi) in shape.tensors() {
        let len = if scalar && name.ends_with(".scale") { 1 } else { len };
        let (lo, hi) = (i64::from(lo), i64::from(hi));
        let mut value = || match hostile {
            true => [lo, hi][r.below(2)],
            false if name.ends_with("scan.A") => 1 << r.between(0, 19),
            false if name.ends_with("scan.base") => r.between(-300, 800),
            false => r.between(lo, hi),
        };
        let values: Vec<i32> = (0..len).map(|_| value() as i32).collect();
        tensors.insert(name, values);
    }
    // Shifts so that the largest outputs have 13 to 17 bits; up to 29 in hostile models.
    for i in 0..n_layers {
        let mut shift = |width: usize| {
            let bound = (127 * 127 * 255 * width as i64).min(ROW_BOUND);
            let top = 64 - bound.leading_zeros();
            if hostile {
                r.below(4) as u32
            } else {
                top - r.between(13, 17) as u32
            }
        };
        shape.in_proj_shift[i] = shift(shape.d_model);
        shape.out_proj_shift[i] = shift(shape.d_inner());
    }
    Model::new(shape, tensors).unwrap()
}
