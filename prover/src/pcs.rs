//! A commitment to many multilinear polynomials ("slots") of different heights, and openings of it: WHIR on all slots stacked.
//!
//! Slots of one height are the columns of one table; tables are stacked largest first. A slot of fewer than 2^5 values is followed by zeros up to 2^5, and is
//! opened with the additional leading coordinates 0. If all this has at most 2^5 cells, one slot of 2^5 zeros joins the last table, so that the stack has at
//! least 6 variables: with fewer, WHIR's last sumcheck would have no round.
//!
//! Every function that takes a `Challenger` and returns `Err` leaves it unusable.

use std::collections::BTreeMap;

use p3_challenger::FieldChallenger;
use p3_commit::MultilinearPcs;
use p3_field::PrimeCharacteristicRing;
use p3_matrix::dense::RowMajorMatrix;
use p3_multilinear_util::point::Point;
use p3_sumcheck::layout::{observe_commitment, Layout as _, PrefixProver, Table, TableShape};
use p3_sumcheck::{OpeningBatch, OpeningProtocol, PrescribedPointPcs, TableSpec};
use p3_symmetric::MerkleCap;
use p3_whir::parameters::{FoldingFactor, ProtocolParameters, SecurityAssumption, WhirConfig};
use p3_whir::pcs::prover::WhirProver;
use p3_whir::{PcsProof, VerifierError, WhirConfigError, WhirProverData};
use serde::{Deserialize, Serialize};

use crate::field::{challenger, guarded, mmcs, observe_bytes, Challenger, Dft, Mmcs, EF, F};

/// Variables folded in each round of WHIR. A slot has at least as many.
const FOLD: usize = 5;
/// Rate 2^−1.
const LOG_INV_RATE: usize = 1;
/// Bits of each error term (the composed figure is `security`'s).
const SECURITY_LEVEL: usize = 112;
/// Bits of grinding a round may use towards them.
const POW_BITS: usize = 16;
/// Least number of variables of a stack: FOLD, and one for the last sumcheck.
const MIN_VARIABLES: usize = FOLD + 1;
/// Largest slot and largest stack: 2^28 cells at rate 1/2, folded by 2^5, are KoalaBear's two-adicity 24.
const MAX_VARIABLES: usize = 28;

/// Within what distance of the code WHIR's analysis works. Neither uses a conjecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// The Johnson bound: half the proof. A commitment leaves a short list of candidates, one of which an opening fixes: for what is opened once.
    Johnson,
    /// Unique decoding: a commitment determines its slots whatever is opened later: for what is opened in many proofs.
    Unique,
}

type Layout = PrefixProver<F, EF>;
type Pcs = WhirProver<EF, F, Dft, Mmcs, Challenger, Layout>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a commitment needs at least one slot")]
    NoSlots,
    #[error("an opening needs at least one batch")]
    NoBatches,
    #[error("more than 2^{MAX_VARIABLES} cells")]
    TooLarge,
    #[error("{given} slots for a shape of {expected}")]
    SlotCount { expected: usize, given: usize },
    #[error("slot {slot} has {given} values instead of 2^{log_height}")]
    SlotLength { slot: usize, log_height: u8, given: usize },
    #[error("batch {batch}: {reason}")]
    Batch { batch: usize, reason: &'static str },
    #[error("parameters: {0}")]
    Parameters(#[from] WhirConfigError),
    #[error("the schedule has no final sumcheck, or its security is unknown")]
    Schedule,
    #[error("malformed opening: {0}")]
    Malformed(&'static str),
    #[error("opening rejected: {0}")]
    Rejected(#[from] VerifierError),
    #[error("panic in the commitment scheme: {0}")]
    Panic(String),
}

/// Public shape of one commitment: log2 of the number of values of every slot, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub log_heights: Vec<u8>,
}

/// Slots of one height opened at one point (coordinate 0: most significant index bit). No slot occurs twice in a batch.
#[derive(Clone, Debug)]
pub struct Batch {
    pub slots: Vec<usize>,
    pub point: Vec<EF>,
}

/// Root of the Merkle tree over the codeword of the stack.
pub type Root = [u8; 32];

/// What the prover keeps of a commitment: the slots (see `slot`), the stack, the codeword and its tree; 16 bytes a cell and more.
#[derive(Clone)]
pub struct Committed {
    shape: Shape,
    plan: Plan,
    root: Root,
    data: WhirProverData<F, EF, Mmcs, Layout>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct OpeningProof(PcsProof<F, EF, Mmcs>);

impl Committed {
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The values of a slot as they were committed. Panics if there is no such slot.
    pub fn slot(&self, slot: usize) -> &[F] {
        let (table, column) = self.plan.places[slot];
        &self.data.table(table).poly(column).into_slice()[..1 << self.shape.log_heights[slot]]
    }
}

/// Where the slots of a shape lie.
#[derive(Clone)]
struct Plan {
    /// log2 of the rows of each table, decreasing, and its columns, padding included.
    tables: Vec<(usize, usize)>,
    /// Table and column of each slot.
    places: Vec<(usize, usize)>,
    /// Variables of the stack.
    variables: usize,
}

impl Plan {
    fn new(shape: &Shape) -> Result<Plan, Error> {
        if shape.log_heights.is_empty() {
            return Err(Error::NoSlots);
        }
        let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
        let mut cells = 0u64;
        let mut columns = Vec::with_capacity(shape.log_heights.len());
        for &log_height in &shape.log_heights {
            let height = usize::from(log_height).max(FOLD);
            if height > MAX_VARIABLES {
                return Err(Error::TooLarge);
            }
            cells += 1 << height;
            if cells > 1 << MAX_VARIABLES {
                return Err(Error::TooLarge);
            }
            let width = widths.entry(height).or_default();
            columns.push((height, *width));
            *width += 1;
        }
        if cells <= 1 << (MIN_VARIABLES - 1) {
            *widths.entry(MIN_VARIABLES - 1).or_default() += 1;
            cells += 1 << (MIN_VARIABLES - 1);
        }
        let tables: Vec<(usize, usize)> = widths.into_iter().rev().collect();
        let table_of = |height: usize| {
            tables
                .iter()
                .position(|table| table.0 == height)
                .expect("every height has its table")
        };
        let places = columns
            .into_iter()
            .map(|(height, column)| (table_of(height), column))
            .collect();
        let variables = cells.next_power_of_two().trailing_zeros() as usize;
        Ok(Plan {
            tables,
            places,
            variables,
        })
    }

    /// The batches in Plonky3's terms: table by table, columns ascending.
    fn protocol(&self, shape: &Shape, batches: &[Batch]) -> Result<Protocol, Error> {
        if batches.is_empty() {
            return Err(Error::NoBatches);
        }
        let mut schedules: Vec<Vec<_>> = vec![vec![]; self.tables.len()];
        for (index, batch) in batches.iter().enumerate() {
            let fail = |reason| Err(Error::Batch { batch: index, reason });
            let mut slots = batch.slots.clone();
            slots.sort_unstable();
            let Some(&last) = slots.last() else {
                return fail("no slot");
            };
            if last >= self.places.len() {
                return fail("no such slot");
            }
            let log_height = shape.log_heights[last];
            if slots.iter().any(|&slot| shape.log_heights[slot] != log_height) {
                return fail("slots of different heights");
            }
            if slots.windows(2).any(|pair| pair[0] == pair[1]) {
                return fail("a slot occurs twice");
            }
            if batch.point.len() != usize::from(log_height) {
                return fail("the point has not as many coordinates as the slots have variables");
            }
            let (table, _) = self.places[last];
            schedules[table].push((index, slots));
        }
        let mut specs = vec![];
        let (mut order, mut points) = (vec![], vec![]);
        for (&(height, width), schedule) in self.tables.iter().zip(schedules) {
            let mut requests = vec![];
            for (index, slots) in schedule {
                requests.push(OpeningBatch::new(
                    slots.iter().map(|&slot| self.places[slot].1).collect(),
                    vec![],
                ));
                let point = &batches[index].point;
                let zeros = std::iter::repeat_n(EF::ZERO, height - point.len());
                points.push(Point::new(zeros.chain(point.iter().copied()).collect()));
                // Position in the answer of each of the caller's slots.
                let positions = batches[index]
                    .slots
                    .iter()
                    .map(|slot| slots.binary_search(slot).expect("the same slots"))
                    .collect();
                order.push((index, positions));
            }
            specs.push(TableSpec::new(TableShape::new(height, width), requests));
        }
        Ok(Protocol {
            protocol: OpeningProtocol::new(specs),
            points,
            order,
        })
    }
}

struct Protocol {
    protocol: OpeningProtocol,
    points: Vec<Point<EF>>,
    /// By opening: the caller's batch, and where the value of each of its slots is.
    order: Vec<(usize, Vec<usize>)>,
}

impl Protocol {
    /// The values in the caller's order.
    fn answers(&self, evals: &[OpeningBatch<EF>]) -> Vec<Vec<EF>> {
        let mut answers = vec![vec![]; self.order.len()];
        for ((index, positions), values) in self.order.iter().zip(evals) {
            answers[*index] = positions.iter().map(|&at| values.current()[at]).collect();
        }
        answers
    }
}

fn scheme(variables: usize, regime: Regime, proving: bool) -> Result<Pcs, Error> {
    let parameters = ProtocolParameters {
        starting_log_inv_rate: LOG_INV_RATE,
        round_log_inv_rates: vec![],
        folding_factor: FoldingFactor::Constant(FOLD),
        soundness_type: match regime {
            Regime::Johnson => SecurityAssumption::JohnsonBound,
            Regime::Unique => SecurityAssumption::UniqueDecoding,
        },
        security_level: SECURITY_LEVEL,
        pow_bits: POW_BITS,
    };
    let config = WhirConfig::<EF, F, Challenger>::new(variables, parameters)?;
    // Plonky3 0.8.0 would ignore a superfluous last sumcheck in a proof.
    if config.final_sumcheck_rounds() == 0 {
        return Err(Error::Schedule);
    }
    let dft = if proving {
        Dft::new(1 << config.max_fft_size())
    } else {
        Dft::default()
    };
    Ok(Pcs::new(config, dft, mmcs()))
}

fn cap(root: &Root) -> MerkleCap<F, Root> {
    MerkleCap::new(vec![*root])
}

/// Commits to the slots. Absorbs nothing: both sides call `observe_root` before they draw the first challenge that depends on the slots.
pub fn commit(shape: &Shape, mut slots: Vec<Vec<F>>) -> Result<(Root, Committed), Error> {
    let plan = Plan::new(shape)?;
    if slots.len() != shape.log_heights.len() {
        return Err(Error::SlotCount {
            expected: shape.log_heights.len(),
            given: slots.len(),
        });
    }
    for (slot, (values, &log_height)) in slots.iter().zip(&shape.log_heights).enumerate() {
        if values.len() != 1 << log_height {
            return Err(Error::SlotLength {
                slot,
                log_height,
                given: values.len(),
            });
        }
    }
    guarded(move || {
        let mut columns: Vec<Vec<F>> = vec![vec![]; plan.tables.len()];
        for (values, &(table, column)) in slots.iter_mut().zip(&plan.places) {
            let (height, width) = plan.tables[table];
            let (all, values) = (&mut columns[table], std::mem::take(values));
            if column == 0 {
                *all = values;
                all.reserve_exact((width << height) - all.len());
            } else {
                all.extend_from_slice(&values);
            }
            all.resize((column + 1) << height, F::ZERO);
        }
        let tables = columns
            .into_iter()
            .zip(&plan.tables)
            .map(|(mut values, &(height, width))| {
                values.resize(width << height, F::ZERO);
                Table::new(RowMajorMatrix::new(values, 1 << height))
            });
        let witness = Layout::new_witness(tables.collect(), FOLD);
        let pcs = scheme(plan.variables, Regime::Johnson, true)?; // the codeword is the same in both regimes
        let mut unused = challenger(b"");
        let (cap, data) = <Pcs as MultilinearPcs<EF, Challenger>>::commit(&pcs, witness, &mut unused)?;
        let &[root] = cap.roots() else {
            return Err(Error::Schedule);
        };
        Ok((
            root,
            Committed {
                shape: shape.clone(),
                plan,
                root,
                data,
            },
        ))
    })
    .map_err(Error::Panic)?
}

/// Absorbs shape and root. Prover and verifier call it once for every commitment, before any challenge that depends on it.
pub fn observe_root(root: &Root, shape: &Shape, ch: &mut Challenger) {
    observe_bytes(ch, b"mamba-integer commitment");
    observe_bytes(ch, &shape.log_heights);
    observe_commitment::<F, _, _>(ch, cap(root));
}

/// Absorbs which commitment is opened where: root, number of batches, and of each its slots and its point.
fn observe_batches(root: &Root, batches: &[Batch], ch: &mut Challenger) {
    let mut bytes = b"mamba-integer opening".to_vec();
    bytes.extend(root);
    bytes.extend((batches.len() as u64).to_le_bytes());
    for batch in batches {
        bytes.extend((batch.slots.len() as u64).to_le_bytes());
        bytes.extend(batch.slots.iter().flat_map(|&slot| (slot as u64).to_le_bytes()));
        bytes.extend((batch.point.len() as u64).to_le_bytes());
    }
    observe_bytes(ch, &bytes);
    for batch in batches {
        ch.observe_algebra_slice(&batch.point);
    }
}

/// Values of the batches' slots (in the order of each batch) and their proof. The root is already absorbed, and so is everything that the points depend on.
/// Clone the commitment to open it again.
pub fn open(
    committed: Committed,
    batches: &[Batch],
    regime: Regime,
    ch: &mut Challenger,
) -> Result<(Vec<Vec<EF>>, OpeningProof), Error> {
    let Committed {
        shape,
        plan,
        root,
        data,
    } = committed;
    let protocol = plan.protocol(&shape, batches)?;
    guarded(|| {
        let pcs = scheme(plan.variables, regime, true)?;
        observe_batches(&root, batches, ch);
        let proof = pcs.open_at(data, &protocol.protocol, &protocol.points, ch)?;
        Ok((protocol.answers(&proof.evals), OpeningProof(proof)))
    })
    .map_err(Error::Panic)?
}

/// The values that `open` returned, bound to the commitment; they are the caller's to compare with what they should be.
pub fn verify(
    shape: &Shape,
    root: &Root,
    batches: &[Batch],
    regime: Regime,
    proof: &OpeningProof,
    ch: &mut Challenger,
) -> Result<Vec<Vec<EF>>, Error> {
    let plan = Plan::new(shape)?;
    let protocol = plan.protocol(shape, batches)?;
    // Plonky3 0.8.0 would ignore further roots of a round.
    if proof
        .0
        .whir
        .rounds
        .iter()
        .any(|round| round.commitment.as_ref().is_some_and(|cap| cap.num_roots() != 1))
    {
        return Err(Error::Malformed("a round has more than one root"));
    }
    guarded(|| {
        let pcs = scheme(plan.variables, regime, false)?;
        observe_batches(root, batches, ch);
        let evals = pcs.verify_at(&cap(root), &proof.0, &protocol.protocol, &protocol.points, ch)?;
        Ok(protocol.answers(&evals))
    })
    .map_err(Error::Panic)?
}

/// Bits of soundness of the whole opening (all error terms added up, hash functions aside), and log2 of the number of candidates among which a prover may
/// still choose while the caller draws its own challenges: each of the caller's error terms is to be multiplied by it.
pub fn security(shape: &Shape, batches: &[Batch], regime: Regime) -> Result<(f64, f64), Error> {
    let plan = Plan::new(shape)?;
    let protocol = plan.protocol(shape, batches)?;
    guarded(|| {
        let evidence = scheme(plan.variables, regime, false)?
            .prescribed_security(&protocol.protocol)
            .ok_or(Error::Schedule)?;
        Ok((evidence.error().bits(), evidence.log2_max_candidates))
    })
    .map_err(Error::Panic)?
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::field::{eval_multilinear_base, f};

    fn values(seed: usize, log: u8) -> Vec<F> {
        (0..1u64 << log)
            .map(|i| f(((i + 1) * (seed as u64 + 3) * 0x9E37_79B9 % 0x7F00_0001) as i64))
            .collect()
    }

    fn slots(shape: &Shape) -> Vec<Vec<F>> {
        shape
            .log_heights
            .iter()
            .enumerate()
            .map(|(i, &log)| values(i, log))
            .collect()
    }

    fn shape(log_heights: &[u8]) -> Shape {
        Shape {
            log_heights: log_heights.to_vec(),
        }
    }

    fn start(shape: &Shape, root: &Root) -> Challenger {
        let mut ch = challenger(b"test");
        observe_root(root, shape, &mut ch);
        ch
    }

    /// Batches as given by slots; points from the transcript.
    fn batches(shape: &Shape, slots: &[&[usize]], ch: &mut Challenger) -> Vec<Batch> {
        let point = |first: usize, ch: &mut Challenger| {
            (0..shape.log_heights[first])
                .map(|_| ch.sample_algebra_element())
                .collect()
        };
        slots
            .iter()
            .map(|slots| Batch {
                slots: slots.to_vec(),
                point: point(slots[0], ch),
            })
            .collect()
    }

    struct Case {
        shape: Shape,
        root: Root,
        batches: Vec<Batch>,
        proof: OpeningProof,
    }

    impl Case {
        fn new(log_heights: &[u8], opened: &[&[usize]]) -> Case {
            let shape = shape(log_heights);
            let (root, committed) = commit(&shape, slots(&shape)).unwrap();
            let mut ch = start(&shape, &root);
            let batches = batches(&shape, opened, &mut ch);
            for (i, values) in slots(&shape).iter().enumerate() {
                assert_eq!(committed.slot(i), values);
            }
            let (evals, proof) = open(committed, &batches, Regime::Johnson, &mut ch).unwrap();
            for (batch, evals) in batches.iter().zip(&evals) {
                let expected = batch
                    .slots
                    .iter()
                    .map(|&s| eval_multilinear_base(&values(s, shape.log_heights[s]), &batch.point));
                assert_eq!(evals, &expected.collect::<Vec<_>>());
            }
            let case = Case {
                shape,
                root,
                batches,
                proof,
            };
            assert_eq!(case.verify(&case.proof).unwrap(), evals);
            case
        }

        fn verify(&self, proof: &OpeningProof) -> Result<Vec<Vec<EF>>, Error> {
            self.verify_as(&self.shape, &self.root, &self.batches, proof)
        }

        fn verify_as(
            &self,
            shape: &Shape,
            root: &Root,
            batches: &[Batch],
            proof: &OpeningProof,
        ) -> Result<Vec<Vec<EF>>, Error> {
            let mut ch = start(shape, root);
            // The points are the transcript's where nothing was changed.
            for _ in self.batches.iter().flat_map(|batch| &batch.point) {
                let _: EF = ch.sample_algebra_element();
            }
            verify(shape, root, batches, Regime::Johnson, proof, &mut ch)
        }
    }

    #[test]
    fn values_at_several_points() {
        Case::new(
            &[0, 3, 12, 7, 5, 3, 12, 0, 8, 1, 2, 4, 6, 7, 9, 10, 11],
            &[
                &[3],
                &[6, 2],
                &[1],
                &[0, 7],
                &[5, 1],
                &[2],
                &[13, 3],
                &[4],
                &[8],
                &[9],
                &[10],
                &[11],
                &[12],
                &[14],
                &[15],
                &[16],
                &[6, 2],
            ],
        );
    }

    #[test]
    fn every_small_size() {
        for log in 0..=13 {
            Case::new(&[log], &[&[0], &[0]]);
        }
        Case::new(&[0; 3], &[&[2, 0]]);
        Case::new(&[5, 0], &[&[1]]);
    }

    #[test]
    fn opened_twice_from_a_clone() {
        let shape = shape(&[9, 4]);
        let (root, committed) = commit(&shape, slots(&shape)).unwrap();
        for label in [&b"one"[..], b"two"] {
            let mut ch = challenger(label);
            observe_root(&root, &shape, &mut ch);
            let batches = batches(&shape, &[&[1], &[0]], &mut ch);
            let (evals, proof) = open(committed.clone(), &batches, Regime::Johnson, &mut ch).unwrap();
            let next: EF = ch.sample_algebra_element();
            let mut ch = challenger(label);
            observe_root(&root, &shape, &mut ch);
            for _ in 0..13 {
                let _: EF = ch.sample_algebra_element();
            }
            assert_eq!(
                verify(&shape, &root, &batches, Regime::Johnson, &proof, &mut ch).unwrap(),
                evals
            );
            assert_eq!(ch.sample_algebra_element::<EF>(), next);
        }
    }

    #[test]
    fn another_statement_is_rejected() {
        let case = Case::new(&[10, 3, 10, 6], &[&[0, 2], &[1], &[3], &[2]]);
        let mut root = case.root;
        root[7] ^= 1;
        assert!(case.verify_as(&case.shape, &root, &case.batches, &case.proof).is_err());
        for batch in 0..4 {
            let mut batches = case.batches.clone();
            batches[batch].point[1] += EF::ONE;
            assert!(case.verify_as(&case.shape, &case.root, &batches, &case.proof).is_err());
        }
        for other in [
            &[10, 10, 3, 6][..],
            &[10, 3, 10, 7],
            &[10, 3, 10],
            &[10, 3, 10, 6, 0],
            &[10, 4, 10, 6],
            &[200; 4],
            &[],
        ] {
            assert!(
                case.verify_as(&shape(other), &case.root, &case.batches, &case.proof)
                    .is_err(),
                "{other:?}"
            );
        }
        let changes: [fn(&mut Vec<Batch>); 10] = [
            |b| b.clear(),
            |b| b.truncate(3),
            |b| b.swap(0, 3),
            |b| b[0].slots.reverse(),
            |b| b[0].slots[1] = 0,
            |b| b[0].slots.clear(),
            |b| b[0].slots[1] = 4,
            |b| b[0].slots[1] = 3,
            |b| b[2].point.truncate(5),
            |b| b.push(b[1].clone()),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut batches = case.batches.clone();
            change(&mut batches);
            assert!(
                case.verify_as(&case.shape, &case.root, &batches, &case.proof).is_err(),
                "change {i}"
            );
        }
    }

    #[test]
    fn the_prover_refuses_malformed_requests() {
        assert!(matches!(commit(&shape(&[]), vec![]), Err(Error::NoSlots)));
        assert!(matches!(
            commit(&shape(&[3]), vec![]),
            Err(Error::SlotCount { expected: 1, given: 0 })
        ));
        assert!(matches!(
            commit(&shape(&[3]), vec![values(0, 4)]),
            Err(Error::SlotLength { .. })
        ));
        assert!(matches!(
            commit(&shape(&[29]), vec![values(0, 4)]),
            Err(Error::TooLarge)
        ));
        assert!(matches!(commit(&shape(&[28, 0]), vec![]), Err(Error::TooLarge)));
        let shape = shape(&[3, 4]);
        let (_, committed) = commit(&shape, slots(&shape)).unwrap();
        let point = |n| vec![EF::TWO; n];
        for wrong in [
            vec![],
            vec![Batch {
                slots: vec![],
                point: point(3),
            }],
            vec![Batch {
                slots: vec![2],
                point: point(3),
            }],
            vec![Batch {
                slots: vec![0],
                point: point(4),
            }],
            vec![Batch {
                slots: vec![0, 1],
                point: point(3),
            }],
            vec![Batch {
                slots: vec![0, 0],
                point: point(3),
            }],
        ] {
            assert!(open(committed.clone(), &wrong, Regime::Johnson, &mut challenger(b"")).is_err());
        }
    }

    #[test]
    fn tampered_bytes_are_rejected() {
        let case = Case::new(&[11, 3, 10], &[&[0], &[1], &[2]]);
        let bytes = postcard::to_allocvec(&case.proof).unwrap();
        let accepted = |bytes: &[u8]| {
            postcard::take_from_bytes(bytes).is_ok_and(|(proof, rest)| rest.is_empty() && case.verify(&proof).is_ok())
        };
        assert!(accepted(&bytes));
        let step = (bytes.len() / 400).max(1);
        let places = (0..200)
            .chain((200..bytes.len()).step_by(step))
            .chain(bytes.len() - 200..bytes.len());
        for (i, at) in places.enumerate() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (i % 8);
            assert!(!accepted(&changed), "byte {at}");
        }
        for length in (0..bytes.len()).step_by(bytes.len() / 50) {
            assert!(!accepted(&bytes[..length]));
        }
        for (name, extra) in [("final sumcheck", 0), ("rounds", 1), ("evals", 2), ("openings", 3)] {
            let mut proof = case.proof.clone();
            let inner = &mut proof.0;
            match extra {
                0 => inner.whir.final_sumcheck = None,
                1 => inner.whir.rounds.clear(),
                2 => inner.evals.truncate(2),
                _ => inner.whir.final_poly = None,
            }
            assert!(case.verify(&proof).is_err(), "{name}");
        }
    }

    #[test]
    fn a_second_root_in_a_round_is_rejected() {
        let mut case = Case::new(&[13], &[&[0]]);
        let round = case.proof.0.whir.rounds.first_mut().expect("13 variables need a round");
        let root = round.commitment.as_ref().unwrap().roots()[0];
        round.commitment = Some(MerkleCap::new(vec![root, root]));
        assert!(matches!(case.verify(&case.proof), Err(Error::Malformed(_))));
    }

    #[test]
    fn every_size_has_parameters() {
        for variables in MIN_VARIABLES..=26 {
            let log = variables as u8;
            let shape = shape(&[log - 1, log - 1]);
            let point = vec![EF::ZERO; variables - 1];
            let batches = vec![
                Batch {
                    slots: vec![0, 1],
                    point
                };
                3
            ];
            match (security(&shape, &batches, Regime::Johnson), variables) {
                (Ok((bits, log_candidates)), _) => {
                    println!("2^{variables}: {bits:.2} bits, 2^{log_candidates:.2} candidates");
                    assert!(
                        bits > 101.0 && log_candidates < 5.0,
                        "2^{variables}: {bits} bits, 2^{log_candidates} candidates"
                    );
                }
                (Err(error), 25..) => println!("2^{variables}: {error}"),
                (Err(error), _) => panic!("2^{variables}: {error}"),
            }
        }
    }

    /// `cargo test --release -p mamba-integer-prover -- --ignored --nocapture pcs::tests::speed`; LOG_CELLS is 20 unless set.
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let log: u8 = std::env::var("LOG_CELLS").map_or(20, |v| v.parse().unwrap());
        let shape = shape(&[log - 4; 16]);
        let slots = slots(&shape);
        for _ in 0..3 {
            let (slots, now) = (slots.clone(), Instant::now());
            let (root, committed) = commit(&shape, slots).unwrap();
            let committing = now.elapsed();
            let mut ch = start(&shape, &root);
            let all: Vec<usize> = (0..16).collect();
            let batches = batches(&shape, &[&all, &all, &all], &mut ch.clone());
            let mut verifier = ch.clone();
            let now = Instant::now();
            let (_, proof) = open(committed, &batches, Regime::Johnson, &mut ch).unwrap();
            let opening = now.elapsed();
            let now = Instant::now();
            verify(&shape, &root, &batches, Regime::Johnson, &proof, &mut verifier).unwrap();
            let bytes = postcard::to_allocvec(&proof).unwrap().len();
            println!(
                "2^{log} cells, 3 points: commit {committing:?}, open {opening:?}, verify {:?}, {bytes} bytes",
                now.elapsed()
            );
        }
    }
}
