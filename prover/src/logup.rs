//! A sum of 2^n fractions is zero: Plonky3's GKR reduction to one value of the numerators and one of the denominators.
//!
//! Whoever calls these functions draws the challenges in the denominators after committing to everything in the fractions, absorbs n, and ties the two
//! returned values to what was committed. `Err` leaves the `Challenger` unusable.

use p3_field::PackedValue;
use p3_multi_stark::fractional_gkr::{
    prove_fractional_gkr, verify_fractional_gkr, Fraction, FractionGkrError, FractionGkrProof, LeafNumerator,
};
use p3_multilinear_util::point::Point;
use p3_multilinear_util::poly::{Poly, PolyMaybePacked};
use serde::{Deserialize, Serialize};

use crate::field::{guarded, Challenger, Packed, PackedEF, EF, F};

/// log2 of the most fractions.
pub const MAX_VARIABLES: usize = 30;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{numerators} numerators and {denominators} denominators; both must be 2^n, 1 ≤ n ≤ {MAX_VARIABLES}")]
    Length { numerators: usize, denominators: usize },
    #[error("2^{0} fractions; n must be from 1 to {MAX_VARIABLES}")]
    Variables(usize),
    #[error("not proven: {0}")]
    NotProven(String),
    #[error("rejected: {0}")]
    Rejected(#[from] FractionGkrError),
    #[error("panic while verifying: {0}")]
    Panic(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogupProof(FractionGkrProof<EF>);

/// Proves Σ numerator / denominator = 0: the proof, the point, and the values there of the numerators and of the denominators.
/// `Err(NotProven)` if the sum is not zero, or if a denominator is.
pub fn prove(
    numerators: Vec<F>,
    denominators: Vec<EF>,
    ch: &mut Challenger,
) -> Result<(LogupProof, Vec<EF>, EF, EF), Error> {
    check_lengths(numerators.len(), denominators.len())?;
    let denominators = Poly::new(denominators);
    let denominators = if denominators.num_evals() < Packed::WIDTH {
        PolyMaybePacked::Scalar(denominators)
    } else {
        PolyMaybePacked::Packed(denominators.pack::<F, EF>())
    };
    run(numerators, &denominators, ch)
}

/// As `prove`, the same proof; each element holds the next `Packed::WIDTH` denominators. Saves a copy.
pub fn prove_packed(
    numerators: Vec<F>,
    denominators: Vec<PackedEF>,
    ch: &mut Challenger,
) -> Result<(LogupProof, Vec<EF>, EF, EF), Error> {
    check_lengths(numerators.len(), denominators.len() * Packed::WIDTH)?;
    run(numerators, &PolyMaybePacked::Packed(Poly::new(denominators)), ch)
}

fn check_lengths(numerators: usize, denominators: usize) -> Result<(), Error> {
    let n = numerators.trailing_zeros() as usize;
    if numerators != denominators || !numerators.is_power_of_two() || !(1..=MAX_VARIABLES).contains(&n) {
        return Err(Error::Length {
            numerators,
            denominators,
        });
    }
    Ok(())
}

fn run(
    numerators: Vec<F>,
    denominators: &PolyMaybePacked<F, EF>,
    ch: &mut Challenger,
) -> Result<(LogupProof, Vec<EF>, EF, EF), Error> {
    let numerators = Poly::new(numerators);
    let fraction = Fraction {
        n: LeafNumerator::Base(&numerators),
        d: denominators,
    };
    let (proof, output) =
        guarded(|| prove_fractional_gkr::<F, EF, Challenger>(fraction, ch)).map_err(Error::NotProven)?;
    Ok((
        LogupProof(proof),
        coordinates(output.point),
        output.numerator,
        output.denominator,
    ))
}

fn coordinates(point: Point<EF>) -> Vec<EF> {
    point.into_iter().collect()
}

/// If Ok: the sum of the 2^n fractions is zero and no denominator is, provided that the two values
/// returned are those of the caller's numerators and denominators at the point returned.
pub fn verify(n: usize, proof: &LogupProof, ch: &mut Challenger) -> Result<(Vec<EF>, EF, EF), Error> {
    if !(1..=MAX_VARIABLES).contains(&n) {
        return Err(Error::Variables(n));
    }
    let output = guarded(|| verify_fractional_gkr::<F, EF, Challenger>(&proof.0, n, ch)).map_err(Error::Panic)??;
    Ok((coordinates(output.point), output.numerator, output.denominator))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use p3_challenger::FieldChallenger;
    use p3_field::{BasedVectorSpace, PackedFieldExtension, PrimeCharacteristicRing};

    use super::*;
    use crate::field::{challenger, eval_multilinear_base, eval_multilinear_ext, f};

    /// 2^(n−1) lookups of values below 2^(n−1), and the table with its multiplicities.
    fn lookups(n: usize) -> (Vec<F>, Vec<EF>) {
        let alpha: EF = challenger(b"alpha").sample_algebra_element();
        let half = 1usize << (n - 1);
        let values = (0..half as u64).map(|i| (i * i * 0x9E37_79B9 + 5 * i) as usize % half);
        let mut multiplicities = vec![0i64; half];
        let mut denominators: Vec<EF> = vec![];
        for value in values {
            multiplicities[value] += 1;
            denominators.push(alpha - EF::from_usize(value));
        }
        denominators.extend((0..half).map(|value| alpha - EF::from_usize(value)));
        let numerators = std::iter::repeat_n(F::ONE, half).chain(multiplicities.iter().map(|&m| f(-m)));
        (numerators.collect(), denominators)
    }

    fn replay(n: usize, proof: &LogupProof) -> Result<(Vec<EF>, EF, EF), Error> {
        verify(n, proof, &mut challenger(b"logup"))
    }

    #[test]
    fn balanced_lookups_are_accepted() {
        for n in 1..=13 {
            let (numerators, denominators) = lookups(n);
            let mut ch = challenger(b"logup");
            let (proof, point, numerator, denominator) =
                prove(numerators.clone(), denominators.clone(), &mut ch).unwrap();
            assert_eq!(eval_multilinear_base(&numerators, &point), numerator);
            assert_eq!(eval_multilinear_ext(&denominators, &point), denominator);
            let mut verifier = challenger(b"logup");
            assert_eq!(
                verify(n, &proof, &mut verifier).unwrap(),
                (point.clone(), numerator, denominator)
            );
            assert_eq!(verifier.sample_algebra_element::<EF>(), ch.sample_algebra_element());
            if 1 << n >= Packed::WIDTH {
                let packed = denominators
                    .chunks(Packed::WIDTH)
                    .map(PackedEF::from_ext_slice)
                    .collect();
                let again = prove_packed(numerators, packed, &mut challenger(b"logup")).unwrap();
                assert_eq!(again, (proof, point, numerator, denominator));
            }
        }
    }

    #[test]
    fn unbalanced_lookups_and_zero_denominators_are_not() {
        for n in [1, 2, 6, 10] {
            let (mut numerators, mut denominators) = lookups(n);
            let prove = |n: &[F], d: &[EF]| prove(n.to_vec(), d.to_vec(), &mut challenger(b"logup"));
            numerators[0] += F::ONE;
            assert!(matches!(prove(&numerators, &denominators), Err(Error::NotProven(_))));
            numerators[0] = F::ZERO;
            denominators[0] = EF::ZERO;
            assert!(matches!(prove(&numerators, &denominators), Err(Error::NotProven(_))));
            assert!(matches!(
                prove(&numerators[1..], &denominators),
                Err(Error::Length { .. })
            ));
            assert!(matches!(
                prove(&numerators[1..], &denominators[1..]),
                Err(Error::Length { .. })
            ));
        }
        assert!(matches!(
            prove(vec![], vec![], &mut challenger(b"")),
            Err(Error::Length { .. })
        ));
        assert!(prove(vec![F::ZERO], vec![EF::ONE], &mut challenger(b"")).is_err());
    }

    #[test]
    fn changed_proofs_are_rejected_or_claim_other_values() {
        let n = 7;
        let (numerators, denominators) = lookups(n);
        let (proof, ..) = prove(numerators.clone(), denominators.clone(), &mut challenger(b"logup")).unwrap();
        // The caller's comparison belongs to the verdict.
        let accepted = |n: usize, proof: &LogupProof| {
            replay(n, proof).is_ok_and(|(point, numerator, denominator)| {
                numerator == eval_multilinear_base(&numerators, &point)
                    && denominator == eval_multilinear_ext(&denominators, &point)
            })
        };
        let bytes = postcard::to_allocvec(&proof).unwrap();
        let decode = |bytes: &[u8]| {
            postcard::take_from_bytes::<LogupProof>(bytes)
                .ok()
                .filter(|(_, rest)| rest.is_empty())
                .map(|(proof, _)| proof)
        };
        assert!(accepted(n, &decode(&bytes).unwrap()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(!decode(&changed).is_some_and(|proof| accepted(n, &proof)), "byte {at}");
        }
        for length in 0..bytes.len() {
            assert!(!decode(&bytes[..length]).is_some_and(|proof| accepted(n, &proof)));
        }
        for n in [0, 1, n - 1, n + 1, 31, 64, usize::MAX] {
            assert!(replay(n, &proof).is_err());
        }
        let mut zero = proof.clone();
        zero.0.root_denominator = EF::ZERO;
        assert!(matches!(
            replay(n, &zero),
            Err(Error::Rejected(FractionGkrError::ZeroRootDenominator))
        ));
        for (layer, message, coefficient) in [(3, 1, 0), (6, 5, 2), (1, 0, 1)] {
            let mut changed = proof.clone();
            changed.0.layers[layer].round_polys[message][coefficient] += EF::from_basis_coefficients_fn(F::from_usize);
            assert!(matches!(
                replay(n, &changed),
                Err(Error::Rejected(FractionGkrError::LayerConsistency { .. }))
            ));
        }
    }

    /// `cargo test --release -p mamba-integer-prover -- --ignored --nocapture logup::tests::speed`; RAYON_NUM_THREADS applies.
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        for n in [20, 22] {
            let (numerators, denominators) = lookups(n);
            for packed in [false, true] {
                for _ in 0..3 {
                    let numerators = numerators.clone();
                    let mut ch = challenger(b"logup");
                    let (now, result) = if packed {
                        let denominators = denominators
                            .chunks(Packed::WIDTH)
                            .map(PackedEF::from_ext_slice)
                            .collect();
                        (Instant::now(), prove_packed(numerators, denominators, &mut ch))
                    } else {
                        let denominators = denominators.clone();
                        (Instant::now(), prove(numerators, denominators, &mut ch))
                    };
                    let each = now.elapsed().as_nanos() >> n;
                    let proof = result.unwrap().0;
                    let bytes = postcard::to_allocvec(&proof).unwrap().len();
                    let now = Instant::now();
                    let _ = replay(n, &proof).unwrap();
                    println!(
                        "2^{n} fractions, packed {packed}: {each} ns each; verify {:?}, {bytes} bytes",
                        now.elapsed()
                    );
                }
            }
        }
    }
}
