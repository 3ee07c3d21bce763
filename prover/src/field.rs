//! The fields, the transcript, and the commitment scheme's building blocks; small helpers on multilinear polynomials.
//!
//! Everywhere a polynomial of k variables is its 2^k values, variable 0 being the most significant bit of the index.

use p3_blake3::Blake3;
use p3_challenger::{ByteGrindingChallenger, CanObserve, CanSample, HashChallenger, SerializingChallenger32};
use p3_field::extension::QuinticTrinomialExtensionField;
use p3_field::integers::QuotientMap;
use p3_field::{ExtensionField, Field, PackedFieldExtension, PrimeCharacteristicRing};
use p3_koala_bear::KoalaBear;
use p3_multilinear_util::point::Point;
use p3_multilinear_util::poly::{Poly, PolyView};
use p3_symmetric::{CompressionFunctionFromHasher, Hash, SerializingHasher};

/// KoalaBear's prime, 2^31 − 2^24 + 1.
pub const P: u32 = (1 << 31) - (1 << 24) + 1;

pub type F = KoalaBear;
/// F\[X\] / (X^5 + X^2 − 1): about 2^154.95 elements.
pub type EF = QuinticTrinomialExtensionField<F>;
pub type Packed = <F as Field>::Packing;
pub type PackedEF = <EF as ExtensionField<F>>::ExtensionPacking;

pub type Challenger = SerializingChallenger32<F, Transcript>;
pub type LeafHash = SerializingHasher<Blake3>;
pub type Compress = CompressionFunctionFromHasher<Blake3, 2, 32>;
pub type Mmcs = p3_merkle_tree::MerkleTreeMmcs<F, u8, LeafHash, Compress, 2, 32>;
pub type Dft = p3_dft::Radix2DFTSmallBatch<F>;

/// Candidates of a proof of work that are tried together: many for the threads, few against the 2^16 that one takes.
const GRINDING_BLOCK: u64 = 1 << 12;

/// Plonky3's byte challenger, but for grinding: that takes *any* witness which a thread finds, this the least. So the same statement has the same proof
/// on every machine and with any number of threads.
#[derive(Clone, Debug)]
pub struct Transcript(HashChallenger<u8, Blake3, 32>);

impl CanObserve<u8> for Transcript {
    fn observe(&mut self, value: u8) {
        self.0.observe(value);
    }
    fn observe_slice(&mut self, values: &[u8]) {
        self.0.observe_slice(values);
    }
}

impl CanSample<u8> for Transcript {
    fn sample(&mut self) -> u8 {
        self.0.sample()
    }
    fn sample_into_slice(&mut self, values: &mut [u8]) {
        self.0.sample_into_slice(values);
    }
}

impl ByteGrindingChallenger for Transcript {
    fn find_witness<const W: usize, const S: usize>(
        &self,
        num_candidates: u64,
        encode: impl Fn(u64) -> [u8; W] + Sync,
        accepts: impl Fn([u8; S]) -> bool + Sync,
    ) -> Option<u64> {
        (0..num_candidates).step_by(GRINDING_BLOCK as usize).find_map(|from| {
            let any_of_first = |n: u64| self.0.find_witness(n, |i| encode(from + i), &accepts);
            let mut found = any_of_first(GRINDING_BLOCK.min(num_candidates - from))?;
            while let Some(less) = any_of_first(found) {
                found = less;
            }
            Some(from + found)
        })
    }
}

/// A transcript whose first absorbed bytes are `label`.
pub fn challenger(label: &[u8]) -> Challenger {
    Challenger::new(Transcript(HashChallenger::new(label.to_vec(), Blake3)))
}

/// Binary Merkle trees of one root.
pub fn mmcs() -> Mmcs {
    Mmcs::new(LeafHash::new(Blake3), Compress::new(Blake3), 0)
}

/// Absorbs the length (8 bytes, little endian), then the bytes.
pub fn observe_bytes(ch: &mut Challenger, bytes: &[u8]) {
    ch.observe(Hash::<F, u8, 8>::from((bytes.len() as u64).to_le_bytes()));
    for &byte in bytes {
        ch.observe(Hash::<F, u8, 1>::from([byte]));
    }
}

/// A signed integer, reduced modulo p.
pub fn f(value: i64) -> F {
    F::from_int(value)
}

/// eq(point, x) for every x of the cube.
pub fn eq_table(point: &[EF]) -> Vec<EF> {
    Poly::new_from_point(point, EF::ONE).into_evals()
}

/// Π (1 − a_i − b_i + 2 a_i b_i). Panics unless the lengths agree.
pub fn eq_eval(a: &[EF], b: &[EF]) -> EF {
    assert_eq!(a.len(), b.len());
    Point::eval_eq(a, b)
}

/// The multilinear extension of `values` at `point`. Panics unless there are 2^(number of coordinates) values.
pub fn eval_multilinear_base(values: &[F], point: &[EF]) -> EF {
    assert_eq!(values.len(), 1 << point.len());
    if point.is_empty() {
        return values[0].into();
    }
    PolyView::new(values).eval_base(&Point::new(point.to_vec()))
}

/// As `eval_multilinear_base`, for values in the extension.
pub fn eval_multilinear_ext(values: &[EF], point: &[EF]) -> EF {
    assert_eq!(values.len(), 1 << point.len());
    if point.is_empty() {
        return values[0];
    }
    PolyView::new(values).eval_ext::<F>(&Point::new(point.to_vec()))
}

/// The lanes of packed values, in order.
pub fn unpack(values: &[PackedEF]) -> Vec<EF> {
    <PackedEF as PackedFieldExtension<F, EF>>::to_ext_iter(values.iter().copied()).collect()
}

/// What `action` returns, or the message of its panic. The panic is still reported on standard error.
pub(crate) fn guarded<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use p3_challenger::{FieldChallenger, GrindingChallenger};

    use super::*;

    fn points(label: &[u8], n: usize) -> Vec<EF> {
        let mut ch = challenger(label);
        (0..n).map(|_| ch.sample_algebra_element()).collect()
    }

    #[test]
    fn integers_and_prime() {
        use p3_field::PrimeField32;
        assert_eq!(P, F::ORDER_U32);
        for v in [0, 1, -1, i64::from(P), -i64::from(P) - 3, i64::MAX, i64::MIN] {
            assert_eq!(i64::from(f(v).as_canonical_u32()), v.rem_euclid(i64::from(P)));
        }
    }

    #[test]
    fn evaluations_are_sums_with_eq_most_significant_first() {
        for n in 0..14 {
            let point = points(b"eq", n);
            let table = eq_table(&point);
            for x in [0, 1, (1 << n) - 1, (1 << n) / 3] {
                let x = x % (1 << n);
                let bits: Vec<EF> = (0..n).map(|i| EF::from_usize(x >> (n - 1 - i) & 1)).collect();
                assert_eq!(table[x], eq_eval(&point, &bits));
            }
            let base: Vec<F> = (0..1i64 << n).map(|i| f(i * i * 31 - 7 * i - 5)).collect();
            let expected: EF = base.iter().zip(&table).map(|(&v, &e)| e * v).sum();
            assert_eq!(eval_multilinear_base(&base, &point), expected);
            let ext: Vec<EF> = base
                .iter()
                .map(|&v| point.first().copied().unwrap_or(EF::TWO) * v + EF::ONE)
                .collect();
            let expected: EF = ext.iter().zip(&table).map(|(&v, &e)| v * e).sum();
            assert_eq!(eval_multilinear_ext(&ext, &point), expected);
        }
    }

    #[test]
    fn grinding_finds_the_least_witness() {
        for (label, bits) in [(&b"a"[..], 1), (b"b", 5), (b"c", 11), (b"d", 13), (b"e", 14)] {
            let start = challenger(label);
            let least = (0..).map(F::from_u32).find(|w| start.clone().check_witness(bits, *w));
            for threads in 1..=3 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(|| start.clone().grind(bits)), least.unwrap());
            }
        }
    }

    #[test]
    fn bytes_are_length_prefixed() {
        let draw = |parts: &[&[u8]]| -> EF {
            let mut ch = challenger(b"x");
            parts.iter().for_each(|part| observe_bytes(&mut ch, part));
            ch.sample_algebra_element()
        };
        assert_ne!(draw(&[b"ab", b"c"]), draw(&[b"a", b"bc"]));
        assert_ne!(draw(&[b"abc"]), draw(&[b"abc", b""]));
        assert_eq!(draw(&[b"ab", b"c"]), draw(&[b"ab", b"c"]));
    }
}
