//! The low-bit model under TFHE: every cell is one programmable bootstrap of a small integer combination of earlier values.
//!
//! Parameters: tfhe-rs's set for 1 bit of message and 4 of carry, five bits with a sixth for padding, at 128-bit security. It promises that a bootstrap
//! fails with probability 2^−128 as long as its input is a combination, with weights of 2-norm at most 31, of results of other bootstraps. A circuit is
//! accepted only if the 1-norm of every cell's weights is at most 31 and no input can leave −16 … 15.
//!
//! Values are signed, v · 2^58 on the torus; a cell adds 16 to its input. Results that only logits read are v · 2^52, so that logits have twelve bits.
//! Logits are not bootstrapped: what is decrypted is a combination of weights of 2-norm at most [`MAX_LOGIT_NORM`] of bootstraps' results.

use std::sync::Arc;

use bincode::Options;
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tfhe::conformance::ParameterSetConformant;
use tfhe::core_crypto::commons::math::random::Seed;
use tfhe::core_crypto::prelude::*;
use tfhe::core_crypto::seeders::new_seeder;
use tfhe::shortint::atomic_pattern::AtomicPatternKind;
use tfhe::shortint::ciphertext::{Degree, MaxDegree, NoiseLevel};
use tfhe::shortint::parameters::v1_4::V1_4_PARAM_MESSAGE_1_CARRY_4_KS_PBS_GAUSSIAN_2M128 as PARAMETERS;
use tfhe::shortint::parameters::AtomicPatternParameters;
use tfhe::shortint::server_key::LookupTableOwned;
use tfhe::shortint::{Ciphertext, ClientKey, CompressedServerKey, ServerKey};

use crate::{fail, guarded, Error, Result};

const ENTRIES: usize = 32;
const VALUE_SHIFT: u32 = 58;
const LOGIT_SHIFT: u32 = 52;
/// Magnitudes of logits stay below this.
pub const LOGIT_LIMIT: i64 = 1 << (63 - LOGIT_SHIFT);
/// What the 2-norm of a logit's weights may be.
pub const MAX_LOGIT_NORM: f64 = 32.0;
const MAX_NORM: i64 = 31;
const MAX_KEY: u64 = 1 << 30;
const LIMIT: usize = 1 << 14;

type Lwe = LweCiphertextOwned<u64>;

fn lwe_size() -> LweSize {
    PARAMETERS
        .glwe_dimension
        .to_equivalent_lwe_dimension(PARAMETERS.polynomial_size)
        .to_lwe_size()
}

/// Bytes of an encrypted choice among `count`: a seed and one number each.
pub fn query_bytes(count: usize) -> usize {
    16 + 8 * count
}

/// Bytes of `count` encrypted logits: 32 bits of every number of a ciphertext.
pub fn answer_bytes(count: usize) -> usize {
    4 * lwe_size().0 * count
}

/// The secret key.
pub struct Client(ClientKey);

impl Client {
    /// A secret key, and the evaluation keys for the server.
    pub fn generate() -> Result<(Self, Vec<u8>)> {
        let client = Self(ClientKey::new(PARAMETERS));
        let server = CompressedServerKey::new(&client.0);
        Ok((client, encoded(&server)?))
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        encoded(&self.0)
    }

    pub fn from_bytes(data: &[u8]) -> Result<Self> {
        guarded("the secret key", || {
            let key: ClientKey = decoded("the secret key", data)?;
            if key.parameters() != PARAMETERS.into() || key.encryption_key().as_ref().len() + 1 != lwe_size().0 {
                return fail("the secret key has other parameters");
            }
            Ok(Self(key))
        })
    }

    /// `choice` among `count` as `count` ciphertexts, one of 1 and the others of 0, with one seed for all masks.
    pub fn encrypt(&self, choice: usize, count: usize) -> Result<Vec<u8>> {
        if choice >= count || count > LIMIT {
            return fail(format!("{choice} is not one of {count}"));
        }
        let mut seeder = new_seeder();
        let seed = seeder.seed();
        let plain: Vec<u64> = (0..count).map(|i| u64::from(i == choice) << VALUE_SHIFT).collect();
        let mut list = SeededLweCiphertextList::new(
            0,
            lwe_size(),
            LweCiphertextCount(count),
            seed.into(),
            CiphertextModulus::new_native(),
        );
        let mut noise = new_seeder();
        encrypt_seeded_lwe_ciphertext_list(
            &self.0.encryption_key(),
            &mut list,
            &PlaintextList::from_container(plain),
            PARAMETERS.glwe_noise_distribution,
            noise.as_mut(),
        );
        let mut out = list.compression_seed().seed.0.to_le_bytes().to_vec();
        out.extend(list.as_ref().iter().flat_map(|v| v.to_le_bytes()));
        Ok(out)
    }

    /// `count` logits, and how far from a whole number the worst of them was before rounding, 0 … 0.5.
    pub fn decrypt(&self, answer: &[u8], count: usize) -> Result<(Vec<i64>, f64)> {
        if answer.len() != answer_bytes(count) {
            return fail(format!(
                "the answer has {} bytes, not {}",
                answer.len(),
                answer_bytes(count)
            ));
        }
        let (key, size) = (self.0.encryption_key(), lwe_size().0);
        let mut worst = 0f64;
        let logits = answer
            .chunks(4 * size)
            .map(|data| {
                let ct = data
                    .chunks(4)
                    .map(|w| u64::from(u32::from_le_bytes(w.try_into().expect("four bytes"))) << 32)
                    .collect();
                let ct = Lwe::from_container(ct, CiphertextModulus::new_native());
                let phase = decrypt_lwe_ciphertext(&key, &ct).0;
                let rounded = phase.wrapping_add(1 << (LOGIT_SHIFT - 1)) as i64 >> LOGIT_SHIFT;
                let off = phase.wrapping_sub((rounded as u64) << LOGIT_SHIFT) as i64;
                worst = worst.max((off as f64 / (1u64 << LOGIT_SHIFT) as f64).abs());
                rounded
            })
            .collect();
        Ok((logits, worst))
    }
}

/// (value, weight) of a combination.
type Terms = Vec<(usize, i64)>;

/// One step of a model, as `Circuit` of `mamba_integer/encrypted/micro.py` describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Circuit {
    initial: Vec<i64>,
    forms: Vec<Vec<i64>>,
    cells: Vec<(Terms, Vec<i64>)>,
    fine: Vec<usize>,
    state: Vec<usize>,
    logits: Vec<(Terms, i64)>,
}

impl Circuit {
    /// The least and the greatest that each value may be; refuses whatever the parameters do not carry.
    fn check(&self) -> Result<()> {
        let first_cell = self.initial.len() + self.forms.len();
        let count = first_cell + self.cells.len();
        let sizes = [
            self.initial.len(),
            self.forms.len(),
            self.cells.len(),
            self.logits.len(),
        ];
        if sizes.iter().any(|n| *n > LIMIT) || self.logits.is_empty() {
            return fail("the circuit is too large or has no logits");
        }
        if self.state.len() != self.initial.len() || self.state.iter().any(|v| *v >= count) {
            return fail("the circuit's state is damaged");
        }
        let range = |values: &[i64]| {
            let (low, high) = (values.iter().min(), values.iter().max());
            (low.copied().unwrap_or(0), high.copied().unwrap_or(0))
        };
        let mut ranges: Vec<(i64, i64)> = self.initial.iter().map(|v| (*v, *v)).collect();
        ranges.extend(self.forms.iter().map(|f| range(f)));
        ranges.extend(self.cells.iter().map(|(_, table)| range(table)));
        if ranges.iter().any(|(low, high)| *low < -16 || *high > 15) {
            return fail("a value of the circuit is outside -16 … 15");
        }
        if self.forms.iter().any(|f| f.len() != self.logits.len())
            || self.cells.iter().any(|(_, table)| table.len() != ENTRIES)
        {
            return fail("a table of the circuit has the wrong length");
        }
        // A state may be another state of the step before: as often as it takes, but it ends, as ranges only grow and are bounded.
        loop {
            let before = ranges.clone();
            for (i, from) in self.state.iter().enumerate() {
                let (low, high) = ranges[*from];
                ranges[i] = (ranges[i].0.min(low), ranges[i].1.max(high));
            }
            if ranges == before {
                break;
            }
        }
        let fine = |value: usize| value >= first_cell && self.fine.contains(&(value - first_cell));
        for (i, (terms, _)) in self.cells.iter().enumerate() {
            let (mut low, mut high, mut norm) = (0, 0, 0i64);
            for &(value, weight) in terms {
                if value >= first_cell + i || fine(value) || weight.abs() > MAX_NORM {
                    return fail(format!("cell {i} reads what it cannot"));
                }
                let (a, b) = (weight * ranges[value].0, weight * ranges[value].1);
                (low, high, norm) = (low + a.min(b), high + a.max(b), norm + weight.abs());
            }
            if low < -16 || high > 15 || norm > MAX_NORM {
                return fail(format!(
                    "cell {i}: its input may be {low} … {high} with weights that sum to {norm}"
                ));
            }
        }
        if self.state.iter().any(|v| fine(*v)) {
            return fail("a state of the circuit is a logit's value");
        }
        for (i, (terms, bias)) in self.logits.iter().enumerate() {
            let (mut most, mut norm) = (bias.saturating_abs(), 0);
            for &(value, weight) in terms {
                if value >= count || !fine(value) || weight.abs() > 127 {
                    return fail(format!("logit {i} reads what it cannot"));
                }
                most = most.saturating_add(weight.abs() * ranges[value].0.abs().max(ranges[value].1.abs()));
                norm += weight * weight;
            }
            if most >= LOGIT_LIMIT || norm as f64 > MAX_LOGIT_NORM * MAX_LOGIT_NORM {
                return fail(format!("logit {i} is too large for the parameters"));
            }
        }
        Ok(())
    }
}

/// Evaluation keys and a model.
pub struct Server {
    key: ServerKey,
    circuit: Circuit,
    tables: Vec<LookupTableOwned>,
    /// Cells in groups that do not read one another.
    levels: Vec<Vec<usize>>,
}

/// The encrypted recurrent state of one sequence.
pub struct Session {
    server: Arc<Server>,
    state: Vec<Lwe>,
    last: Vec<Lwe>,
}

impl Server {
    /// From evaluation keys and a circuit in JSON.
    pub fn new(key: &[u8], circuit: &str) -> Result<Self> {
        let circuit: Circuit =
            serde_json::from_str(circuit).map_err(|e| Error(format!("the circuit is damaged: {e}")))?;
        circuit.check()?;
        let key = guarded("the evaluation key", || {
            let parameters = (
                AtomicPatternParameters::from(PARAMETERS),
                MaxDegree::new(ENTRIES as u64 - 1),
            );
            let key: CompressedServerKey = decoded("the evaluation key", key)?;
            if !key.is_conformant(&parameters) {
                return fail("the evaluation key has other parameters");
            }
            Ok(key.decompress())
        })?;
        let tables = circuit
            .cells
            .iter()
            .enumerate()
            .map(|(i, (_, table))| {
                lookup_table(
                    table,
                    if circuit.fine.contains(&i) {
                        LOGIT_SHIFT
                    } else {
                        VALUE_SHIFT
                    },
                )
            })
            .collect();
        let first = circuit.initial.len() + circuit.forms.len();
        let mut depth = vec![0usize; circuit.cells.len()];
        let mut levels: Vec<Vec<usize>> = Vec::new();
        for (i, (terms, _)) in circuit.cells.iter().enumerate() {
            depth[i] = terms
                .iter()
                .filter(|(v, _)| *v >= first)
                .map(|(v, _)| depth[*v - first] + 1)
                .max()
                .unwrap_or(0);
            if levels.len() <= depth[i] {
                levels.resize(depth[i] + 1, Vec::new());
            }
            levels[depth[i]].push(i);
        }
        Ok(Self {
            key,
            circuit,
            tables,
            levels,
        })
    }

    /// Bootstraps a character.
    pub fn cells(&self) -> usize {
        self.circuit.cells.len()
    }
}

impl Session {
    /// At the zero state, which is public.
    pub fn new(server: &Arc<Server>) -> Self {
        let state = server
            .circuit
            .initial
            .iter()
            .map(|v| combination(&[], &[], (*v as u64) << VALUE_SHIFT))
            .collect();
        Self {
            server: server.clone(),
            state,
            last: Vec::new(),
        }
    }

    /// Feeds an encrypted character. After a failure nothing has changed.
    pub fn feed(&mut self, query: &[u8]) -> Result<()> {
        let server = self.server.clone();
        let circuit = &server.circuit;
        let count = circuit.logits.len();
        if query.len() != query_bytes(count) {
            return fail(format!(
                "an encrypted character has {} bytes, not {}",
                query_bytes(count),
                query.len()
            ));
        }
        let (seed, body) = query.split_at(16);
        let body: Vec<u64> = body
            .chunks(8)
            .map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")))
            .collect();
        let choice = SeededLweCiphertextList::from_container(
            body,
            lwe_size(),
            Seed(u128::from_le_bytes(seed.try_into().expect("sixteen bytes"))).into(),
            CiphertextModulus::new_native(),
        )
        .decompress_into_lwe_ciphertext_list();
        let choice: Vec<Lwe> = choice
            .iter()
            .map(|ct| Lwe::from_container(ct.as_ref().to_vec(), CiphertextModulus::new_native()))
            .collect();
        let mut values = self.state.clone();
        values.extend(
            circuit
                .forms
                .par_iter()
                .map(|form| {
                    let terms: Terms = form.iter().copied().enumerate().collect();
                    combination(&terms, &choice, 0)
                })
                .collect::<Vec<_>>(),
        );
        let first = values.len();
        values.resize(
            first + circuit.cells.len(),
            Lwe::new(0, LweSize(1), CiphertextModulus::new_native()),
        );
        for level in &server.levels {
            let done: Vec<(usize, Lwe)> = level.par_iter().map(|&i| (i, server.cell(i, &values))).collect();
            for (i, ct) in done {
                values[first + i] = ct;
            }
        }
        self.last = circuit
            .logits
            .iter()
            .map(|(terms, bias)| combination(terms, &values, (*bias as u64) << LOGIT_SHIFT))
            .collect();
        self.state = circuit.state.iter().map(|v| values[*v].clone()).collect();
        Ok(())
    }

    /// The encrypted logits after the last character.
    pub fn logits(&self) -> Vec<u8> {
        self.last
            .iter()
            .flat_map(|ct| ct.as_ref().iter())
            .flat_map(|v| ((v.wrapping_add(1 << 31) >> 32) as u32).to_le_bytes())
            .collect()
    }
}

impl Server {
    fn cell(&self, i: usize, values: &[Lwe]) -> Lwe {
        let terms = &self.circuit.cells[i].0;
        let ct = combination(terms, values, 16 << VALUE_SHIFT);
        let trivial = ct.get_mask().as_ref().iter().all(|m| *m == 0);
        let norm = terms.iter().map(|(_, w)| w.unsigned_abs()).sum::<u64>();
        let level = if trivial {
            NoiseLevel::ZERO
        } else {
            NoiseLevel::NOMINAL * norm
        };
        let ct = Ciphertext::new(
            ct,
            Degree::new(ENTRIES as u64 - 1),
            level,
            PARAMETERS.message_modulus,
            PARAMETERS.carry_modulus,
            AtomicPatternKind::Standard(PARAMETERS.encryption_key_choice.into()),
        );
        self.key.apply_lookup_table(&ct, &self.tables[i]).ct
    }
}

fn encoding() -> impl Options {
    bincode::DefaultOptions::new().with_limit(MAX_KEY)
}

fn encoded(key: &impl Serialize) -> Result<Vec<u8>> {
    encoding().serialize(key).map_err(|e| Error(e.to_string()))
}

fn decoded<T: DeserializeOwned>(what: &str, data: &[u8]) -> Result<T> {
    encoding()
        .deserialize(data)
        .or_else(|_| fail(format!("{what} is damaged")))
}

/// Σ weight · value + constant.
fn combination(terms: &[(usize, i64)], values: &[Lwe], constant: u64) -> Lwe {
    let mut out = Lwe::new(0, lwe_size(), CiphertextModulus::new_native());
    let sum = out.as_mut();
    for &(value, weight) in terms {
        if weight != 0 {
            for (s, v) in sum.iter_mut().zip(values[value].as_ref()) {
                *s = s.wrapping_add(v.wrapping_mul(weight as u64));
            }
        }
    }
    *sum.last_mut().expect("a body") = sum[sum.len() - 1].wrapping_add(constant);
    out
}

/// Entry i for inputs of i · 2^58, each as wide as the noise may be on both sides; the ring turns the sign of what lies before the first.
fn lookup_table(table: &[i64], shift: u32) -> LookupTableOwned {
    let n = PARAMETERS.polynomial_size.0;
    let mut acc = GlweCiphertext::new(
        0,
        PARAMETERS.glwe_dimension.to_glwe_size(),
        PARAMETERS.polynomial_size,
        CiphertextModulus::new_native(),
    );
    let width = n / ENTRIES;
    for (j, out) in acc.get_mut_body().as_mut().iter_mut().enumerate() {
        let i = (j + width / 2) / width;
        let entry = if i == ENTRIES { -table[0] } else { table[i] };
        *out = (entry as u64) << shift;
    }
    LookupTableOwned {
        acc,
        degree: Degree::new(ENTRIES as u64 - 1),
    }
}
