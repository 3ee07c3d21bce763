//! The sampler of ARITHMETIC section 11 in integers: what the circuit of the head proves, and, with top_p, what it does not.

pub const MAX_TEMPERATURE: u32 = 1 << 22;
pub const TOP_P_OFF: u32 = 1 << 16;
/// round(2^16 · log2 e).
const LOG2_E: u64 = 94548;

/// The sampling integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Q16; 0 is greedy.
    pub temperature: u32,
    /// 0 is off.
    pub top_k: u32,
    /// Q16; 2^16 is off. Not provable unless it is.
    pub top_p: u32,
    pub seed: u64,
}

/// Philox4x32-10 (Salmon et al. 2011).
pub fn philox4x32(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (0xd251_1f53 * u64::from(c[0]), 0xcd9e_8d57 * u64::from(c[2]));
        c = [
            (b >> 32) as u32 ^ c[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ c[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

/// R of step index i.
pub fn random_word(seed: u64, index: u64) -> u32 {
    philox4x32(
        [index as u32, (index >> 32) as u32, 0, 0],
        [seed as u32, (seed >> 32) as u32],
    )[0]
}

/// C: the largest integer ≤ 2^32 − 1 with C · T ≤ m_e · 94548 · 2^16, for 1 ≤ T.
pub fn inverse_temperature(temperature: u32, embed_mul: i64) -> u64 {
    let limit = (embed_mul as u64 * LOG2_E) << 16;
    (0..32).rev().fold(0, |c, bit| {
        if (c + (1 << bit)) * u64::from(temperature) <= limit {
            c + (1 << bit)
        } else {
            c
        }
    })
}

/// ≈ 2^16 · 2^(−F/2^16) for 0 ≤ F < 2^16.
pub fn pow2neg(f: u64) -> u64 {
    (1 << 16) - ((f * ((45341 << 16) - ((f * ((15188 << 16) - 2616 * f)) >> 16))) >> 32)
}

/// w of a candidate that lies δ below the largest logit.
pub fn weight(delta: u64, c: u64, logit_shift: u32) -> u64 {
    let e = (delta * c) >> logit_shift;
    if e >> 16 > 16 {
        0
    } else {
        pow2neg(e & 0xffff) >> (e >> 16)
    }
}

/// floor((R >> 2) · W / 2^30).
pub fn target(word: u32, total: u64) -> u64 {
    (u64::from(word >> 2) * total) >> 30
}

/// The token that section 11 chooses from logits, |logit| < 2^30, at step index `index`.
pub fn sample(logits: &[i32], embed_mul: i64, logit_shift: u32, sampling: &Sampling, index: u64) -> usize {
    let largest = *logits.iter().max().expect("logits");
    if sampling.temperature == 0 {
        return logits.iter().position(|&l| l == largest).expect("one is the largest");
    }
    let mut kept: Vec<usize> = (0..logits.len()).collect();
    if sampling.top_k > 0 {
        kept.sort_by_key(|&v| (std::cmp::Reverse(logits[v]), v));
        kept.truncate(sampling.top_k as usize);
    }
    let c = inverse_temperature(sampling.temperature, embed_mul);
    let w = |v: usize| weight((i64::from(largest) - i64::from(logits[v])) as u64, c, logit_shift);
    if sampling.top_p < TOP_P_OFF {
        kept.sort_by_key(|&v| (std::cmp::Reverse(w(v)), v));
        let wanted = u64::from(sampling.top_p) * kept.iter().map(|&v| w(v)).sum::<u64>();
        let (mut prefix, mut running) = (0, 0);
        while running << 16 < wanted {
            running += w(kept[prefix]);
            prefix += 1;
        }
        kept.truncate(prefix);
    }
    kept.sort_unstable();
    let target = target(random_word(sampling.seed, index), kept.iter().map(|&v| w(v)).sum());
    let mut running = 0;
    let chosen = kept.into_iter().find(|&v| {
        running += w(v);
        running > target
    });
    chosen.expect("the target is less than the sum")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    fn list(v: &Value) -> Vec<i64> {
        v.as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect()
    }

    fn words<const N: usize>(v: &Value) -> [u32; N] {
        list(v)
            .iter()
            .map(|&x| x as u32)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap()
    }

    fn vectors() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/vectors/sampler.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn functions() {
        let all = vectors();
        for case in all["philox"].as_array().unwrap() {
            assert_eq!(
                philox4x32(words(&case["counter"]), words(&case["key"])),
                words::<4>(&case["out"])
            );
        }
        let c = &all["inverse_temperature"];
        for ((t, m), c) in list(&c["temperature"])
            .iter()
            .zip(list(&c["embed_mul"]))
            .zip(list(&c["C"]))
        {
            assert_eq!(inverse_temperature(*t as u32, m), c as u64);
        }
        let p = &all["pow2neg"];
        for (f, out) in list(&p["F"]).iter().zip(list(&p["out"])) {
            assert_eq!(pow2neg(*f as u64), out as u64);
        }
        let digest = |width: usize| -> String {
            let mut hash = Sha256::new();
            (0..1 << 16).for_each(|f| hash.update(&pow2neg(f).to_le_bytes()[..width]));
            hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
        };
        let wanted = all["pow2neg_all"]["sha256"].as_str().unwrap();
        assert!([4, 8].iter().any(|&width| digest(width) == wanted));
    }

    #[test]
    fn samples() {
        let all = vectors();
        let cases = all["sample"].as_array().unwrap();
        for case in cases {
            let logits: Vec<i32> = list(&case["logits"]).iter().map(|&l| l as i32).collect();
            let int = |name: &str| case[name].as_i64().unwrap();
            let long = |name: &str| {
                let [low, high] = words(&case[name]);
                u64::from(low) | u64::from(high) << 32
            };
            let sampling = Sampling {
                temperature: int("temperature") as u32,
                top_k: int("top_k") as u32,
                top_p: int("top_p") as u32,
                seed: long("seed"),
            };
            let token = sample(
                &logits,
                int("embed_mul"),
                int("logit_shift") as u32,
                &sampling,
                long("step"),
            );
            assert_eq!(token as i64, int("token"), "{case}");
        }
        assert!(cases.len() >= 60);
    }
}
