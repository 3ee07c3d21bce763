//! A whole generation: segments between a head and a tail (spec/PROTOCOL.md, sections 3 and 6). Files in, files out.

use std::path::Path;

use p3_challenger::CanObserve;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::circuit::slots::{model_slots, state_slots};
use crate::circuit::{build, head, Segment};
use crate::field::{challenger, f, guarded, observe_bytes, Challenger, EF, F};
use crate::ir::Circuit;
use crate::pcs::{self, Batch, Committed, OpeningProof, Regime, Root, Shape};
use crate::segment::{self, sample_seed, Claims, Reduced, SegmentProof, Times, Values, SEED};
use crate::shape::{Model, ModelShape};
use crate::soundness;
use crate::statement::{from_hex, hex, Card, Statement};
use crate::witness::{finish, Runner, State};
use crate::{container, Error};

const PROOF: &[u8; 8] = b"MI-PROOF";
const PART: &[u8; 8] = b"MI-PART1";
/// Bits of security that a proof must have to be believed.
pub const LEAST_BITS: f64 = 100.0;

#[derive(Serialize, Deserialize)]
struct Body {
    states: Option<Root>,
    segments: Vec<SegmentProof>,
    model: OpeningProof,
    states_opening: Option<OpeningProof>,
}

/// Shape of the Model oracle.
pub fn model_shape(shape: &ModelShape) -> Shape {
    Shape {
        log_heights: model_slots(shape).iter().map(|s| s.log as u8).collect(),
    }
}

/// Shape of the commitment to the states between `segments` segments.
fn states_shape(shape: &ModelShape, segments: usize) -> Shape {
    let one: Vec<u8> = state_slots(shape).iter().map(|s| s.log as u8).collect();
    Shape {
        log_heights: one.repeat(segments - 1),
    }
}

/// The statement's segments: of 2^longest steps, then what is left in at most two shorter ones.
pub fn plan_segments(steps: usize, longest: u8) -> Vec<u8> {
    let mut out = vec![longest; steps >> longest];
    let mut rest = steps & ((1 << longest) - 1);
    while rest > 0 {
        let up = rest.next_power_of_two().trailing_zeros().max(3) as u8;
        // A second segment is worth its fixed cost where padding would take up more than a quarter.
        let down = up - 1;
        if up > 4 && out.len() < (steps >> longest) + 1 && (1usize << up) - rest > 1 << (up - 2) {
            out.push(down);
            rest -= 1 << down;
        } else {
            out.push(up);
            rest = 0;
        }
    }
    out
}

/// The circuit of segment i, with its witness if there is a runner with the state before it.
fn circuit(
    statement: &Statement,
    card: &Card,
    i: usize,
    run: Option<(&Runner, Option<&State>)>,
) -> Result<crate::circuit::builder::Builder, Error> {
    let (fed, chosen) = statement.steps_of(i);
    let segment = Segment {
        log_steps: statement.segments[i].into(),
        fed,
        has_in: i > 0,
        has_out: i + 1 < statement.segments.len(),
    };
    let (mut b, input) = match run {
        Some((runner, state)) => runner.run(&segment, state),
        None => build(&card.shape, &segment, None),
    }
    .map_err(Error::Prover)?;
    let sampling = &statement.sampling;
    let choice = head::Choice {
        chosen,
        first_index: statement.first_choice(i),
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        seed: sampling.seed,
    };
    head::head(&mut b, &card.shape, &input, &choice).map_err(Error::Prover)?;
    // The shape is data: its shifts and sizes must keep every identity below the prime.
    b.circuit
        .check(&b.derived)
        .map_err(|e| Error::Prover(format!("this model's shape: {e}")))?;
    Ok(b)
}

/// The circuit of every segment, as the verifier builds it.
pub fn circuits(statement: &Statement, card: &Card) -> Result<Vec<Circuit>, Error> {
    (0..statement.segments.len())
        .into_par_iter()
        .map(|i| Ok(circuit(statement, card, i, None)?.circuit))
        .collect()
}

/// The transcript's head: the seed of the segments.
fn head_transcript(statement: &Statement, card: &Card, states: Option<&Root>) -> Result<[F; SEED], Error> {
    let mut ch = challenger(b"mamba-integer-proof-1");
    observe_bytes(&mut ch, &statement.digest());
    pcs::observe_root(&card.root_bytes()?, &model_shape(&card.shape), &mut ch);
    if let Some(root) = states {
        pcs::observe_root(root, &states_shape(&card.shape, statement.segments.len()), &mut ch);
    }
    Ok(sample_seed(&mut ch))
}

fn tail_transcript(seed: &[F; SEED], reduced: &[Reduced]) -> Challenger {
    let mut ch = challenger(b"mamba-integer-tail-1");
    for x in seed.iter().chain(reduced.iter().flat_map(|r| &r.end)) {
        ch.observe(*x);
    }
    ch
}

/// All claims on the Model, and on the states: boundary b lies between segments b and b + 1.
fn all_claims(reduced: &[Reduced], slots_per_state: usize) -> (Claims, Claims) {
    let (mut model, mut states) = (Claims::default(), Claims::default());
    let add = |into: &mut Claims, from: &Claims, offset: usize| {
        into.batches.extend(from.batches.iter().map(|b| Batch {
            slots: b.slots.iter().map(|s| s + offset).collect(),
            point: b.point.clone(),
        }));
        into.values.extend(from.values.iter().cloned());
    };
    for (i, r) in reduced.iter().enumerate() {
        add(&mut model, &r.model, 0);
        if i > 0 {
            add(&mut states, &r.state_in, (i - 1) * slots_per_state);
        }
        if i + 1 < reduced.len() {
            add(&mut states, &r.state_out, i * slots_per_state);
        }
    }
    (model, states)
}

/// A model with its commitment.
pub struct Registered {
    pub card: Card,
    pub runner: Runner,
    pub(crate) committed: Committed,
}

impl Registered {
    /// Commits to the weights. `model_digest` and `tokenizer` are those of the model file.
    pub fn new(model: &Model, name: &str, model_digest: &str, tokenizer: &str) -> Result<Self, Error> {
        let shape = model_shape(&model.shape);
        let runner = Runner::new(model);
        let slots = runner.slots().iter().map(|v| to_field(v)).collect();
        let (root, committed) = pcs::commit(&shape, slots)?;
        let card = Card {
            protocol: crate::statement::PROTOCOL,
            spec: crate::statement::SPEC,
            name: name.into(),
            model_digest: model_digest.into(),
            tokenizer: tokenizer.into(),
            shape: model.shape.clone(),
            root: hex(&root),
        };
        Card::parse(&card.to_bytes())?;
        Ok(Registered {
            card,
            runner,
            committed,
        })
    }
}

fn to_field(values: &[i32]) -> Vec<F> {
    values.iter().map(|v| f(i64::from(*v))).collect()
}

/// What the prover reports while it works.
#[derive(Clone, Debug, Serialize)]
pub struct Progress {
    pub segment: usize,
    pub segments: usize,
    /// Not set for a segment that was taken from an earlier, interrupted run.
    pub times: Option<Times>,
}

/// Proves a statement. `parts`: a directory where finished segments are kept, and looked for.
pub fn prove(
    registered: &Registered,
    statement: &Statement,
    parts: Option<&Path>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Vec<u8>, Error> {
    let Registered {
        card,
        runner,
        committed,
    } = registered;
    statement.check(card)?;
    let bits = soundness::bits(&circuits(statement, card)?, card)?;
    if bits < LEAST_BITS {
        return Err(Error::Prover(format!(
            "only {bits:.1} bits of security: use fewer segments"
        )));
    }
    let n = statement.segments.len();
    // First run: the states between the segments, which every segment's transcript depends on.
    let mut states: Vec<State> = vec![];
    for i in 0..n - 1 {
        let (_, _, after) = finish(circuit(statement, card, i, Some((runner, states.last())))?);
        states.push(after);
    }
    let committed_states = if n > 1 {
        let slots = states.iter().flat_map(|s| s.0.iter().map(|v| to_field(v))).collect();
        Some(pcs::commit(&states_shape(&card.shape, n), slots)?)
    } else {
        None
    };
    let states_root = committed_states.as_ref().map(|(root, _)| *root);
    let seed = head_transcript(statement, card, states_root.as_ref())?;

    let (mut segments, mut reduced) = (vec![], vec![]);
    for i in 0..n {
        let part = parts.map(|dir| dir.join(format!("segment-{i}.part")));
        let mut times = None;
        let (proof, left) = match part.as_deref().and_then(|path| resume(path, statement, card, i, &seed)) {
            Some(found) => found,
            None => {
                let started = std::time::Instant::now();
                let (circuit, witness, _) = finish(circuit(
                    statement,
                    card,
                    i,
                    Some((runner, i.checked_sub(1).map(|b| &states[b]))),
                )?);
                let values = Values {
                    slots: witness.slots.iter().map(|v| to_field(v)).collect(),
                    sums: witness.sums.iter().map(|v| to_field(v)).collect(),
                };
                drop(witness);
                let mut spent = Times {
                    witness: started.elapsed().as_secs_f64(),
                    ..Times::default()
                };
                let made = segment::prove(&circuit, &values, &mut segment::transcript(&seed, i), &mut spent)?;
                if let Some(path) = &part {
                    let body = container::encode(&made.0);
                    let write = std::fs::write(
                        path.with_extension("tmp"),
                        container::write(PART, &[&seed_bytes(&seed), &body]),
                    )
                    .and_then(|()| std::fs::rename(path.with_extension("tmp"), path));
                    write.map_err(|e| Error::Prover(format!("{}: {e}", path.display())))?;
                }
                times = Some(spent);
                made
            }
        };
        segments.push(proof);
        reduced.push(left);
        progress(&Progress {
            segment: i,
            segments: n,
            times,
        });
    }
    let (model, state_claims) = all_claims(&reduced, state_slots(&card.shape).len());
    let mut ch = tail_transcript(&seed, &reduced);
    let (_, model) = pcs::open(committed.clone(), &model.batches, Regime::Unique, &mut ch)?;
    let states_opening = match committed_states {
        Some((_, committed)) => Some(pcs::open(committed, &state_claims.batches, Regime::Johnson, &mut ch)?.1),
        None => None,
    };
    let body = Body {
        states: states_root,
        segments,
        model,
        states_opening,
    };
    Ok(container::write(
        PROOF,
        &[&statement.to_bytes(), &card.to_bytes(), &container::encode(&body)],
    ))
}

fn seed_bytes(seed: &[F; SEED]) -> Vec<u8> {
    container::encode(seed)
}

/// A segment proven by an earlier run of the same statement and model, if it verifies.
fn resume(
    path: &Path,
    statement: &Statement,
    card: &Card,
    i: usize,
    seed: &[F; SEED],
) -> Option<(SegmentProof, Reduced)> {
    let bytes = std::fs::read(path).ok()?;
    let [of, body] = container::read(PART, "part", &bytes).ok()?;
    if of != seed_bytes(seed) {
        return None;
    }
    let proof: SegmentProof = container::decode("part", body).ok()?;
    let circuit = circuit(statement, card, i, None).ok()?.circuit;
    let reduced = segment::verify(&circuit, &proof, &mut segment::transcript(seed, i)).ok()?;
    Some((proof, reduced))
}

/// A proof file's readable part, unverified.
pub struct Claimed {
    pub statement: Statement,
    pub card: Card,
}

pub fn read(bytes: &[u8]) -> Result<Claimed, Error> {
    let [statement, card, _] = container::read(PROOF, "proof", bytes)?;
    Ok(Claimed {
        statement: Statement::parse(statement)?,
        card: Card::parse(card)?,
    })
}

/// What a verified proof shows.
#[derive(Debug)]
pub struct Verified {
    pub statement: Statement,
    pub name: String,
    pub bits: f64,
}

/// Checks a proof file against the commitment of the model that the user names.
pub fn verify(bytes: &[u8], commitment: &[u8; 32]) -> Result<Verified, Error> {
    let [_, card, body] = container::read(PROOF, "proof", bytes)?;
    // A card has one form, so its bytes decide whose it is before anything in it is believed.
    let other = Card::commitment_of(card) != *commitment;
    let Claimed { statement, card } = read(bytes)?;
    if other || from_hex(&statement.commitment) != Some(*commitment) {
        return Err(Error::Statement(format!(
            "it is a proof about the model {:?} with the commitment {}, not about the model with the commitment {}",
            card.name,
            hex(&card.commitment()),
            hex(commitment)
        )));
    }
    statement.check(&card)?;
    // Plonky3's verifiers may panic on malformed proofs.
    let bits = guarded(|| verify_body(&statement, &card, body)).map_err(Error::Proof)??;
    Ok(Verified {
        statement,
        name: card.name,
        bits,
    })
}

fn verify_body(statement: &Statement, card: &Card, body: &[u8]) -> Result<f64, Error> {
    let body: Body = container::decode("proof", body)?;
    let n = statement.segments.len();
    if body.segments.len() != n || body.states.is_some() != (n > 1) || body.states_opening.is_some() != (n > 1) {
        return Err(Error::Proof("its parts are not those of its statement".into()));
    }
    let circuits = circuits(statement, card)?;
    let seed = head_transcript(statement, card, body.states.as_ref())?;
    let check = |(i, (circuit, proof))| {
        let left = segment::verify(circuit, proof, &mut segment::transcript(&seed, i));
        left.map_err(|e| Error::Proof(format!("segment {i}: {e}")))
    };
    let (bits, reduced) = rayon::join(
        || soundness::bits(&circuits, card),
        || {
            circuits
                .par_iter()
                .zip(&body.segments)
                .enumerate()
                .map(check)
                .collect::<Result<Vec<Reduced>, Error>>()
        },
    );
    let (bits, reduced) = (bits?, reduced?);
    if bits < LEAST_BITS {
        return Err(Error::Proof(format!("only {bits:.1} bits of security")));
    }
    let (model, states) = all_claims(&reduced, state_slots(&card.shape).len());
    let mut ch = tail_transcript(&seed, &reduced);
    let equal = |opened: Vec<Vec<EF>>, claims: &Claims, what: &str| match opened == claims.values {
        true => Ok(()),
        false => Err(Error::Proof(format!("the opening of {what} gives other values"))),
    };
    let opened = pcs::verify(
        &model_shape(&card.shape),
        &card.root_bytes()?,
        &model.batches,
        Regime::Unique,
        &body.model,
        &mut ch,
    )?;
    equal(opened, &model, "the model")?;
    if let (Some(root), Some(opening)) = (&body.states, &body.states_opening) {
        let opened = pcs::verify(
            &states_shape(&card.shape, n),
            root,
            &states.batches,
            Regime::Johnson,
            opening,
            &mut ch,
        )?;
        equal(opened, &states, "the states")?;
    }
    Ok(bits)
}
