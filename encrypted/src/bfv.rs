//! Matrix products under BFV: the client encrypts a vector x, the server multiplies by its int8 matrix, the client decrypts W·x exactly.
//!
//! A vector is the polynomial Σ x_k X^k. R = N / K rows of the matrix make one polynomial, row j as Σ w_jk X^(jK + K−1−k), so that the coefficient
//! jK + K−1 of the product is row j times x and nothing else falls there. No rotations and no evaluation keys; one multiplication for every R rows.
//! Of a product, switched to the first modulus, the server returns c1 and only those coefficients of c0 that hold results.
//!
//! N = 4096 and q of 72 bits: the security standard of homomorphicencryption.org allows 109 bits for 128-bit security. t = 2^24, so results must stay
//! within ±2^23. Noise: a fresh error of at most 20 a coefficient times a plaintext below 2^24 sums to less than 2^41, decryption allows 2^47. Switching
//! to q0 of 36 bits adds half of Σ|s_i| at worst, a standard deviation of 58 against the 2047 that q0 allows: Hoeffding's bound is below 2^−270.

use std::sync::{Arc, LazyLock};

use fhe::bfv::{BfvParameters, BfvParametersBuilder, Ciphertext, Encoding, Plaintext, SecretKey};
use fhe_math::rq::{traits::TryConvertFrom, Poly, Representation};
use fhe_traits::{DeserializeParametrized, FheDecoder, FheDecrypter, FheEncoder, FheEncrypter, Serialize};
use rayon::prelude::*;

use crate::{fail, guarded, Error, Result};

/// Coefficients of a polynomial; also the longest vector.
pub const DEGREE: usize = 4096;
/// Results r obey |r| < 2^23.
pub const RESULT_BITS: u32 = 24;
const MODULI: [u64; 2] = [0xffffee001, 0xffffc4001];
const COEFFICIENT_BITS: usize = 36;
const PACKED: usize = DEGREE * COEFFICIENT_BITS / 8;
/// An encrypted vector: a polynomial in two residues, a seed for the other, and what protobuf puts around them.
pub const MAX_QUERY: usize = 2 * PACKED + 256;
const MAX_SECRET: usize = 11 * DEGREE + 64;

static PARAMETERS: LazyLock<Arc<BfvParameters>> = LazyLock::new(|| {
    BfvParametersBuilder::new()
        .set_degree(DEGREE)
        .set_plaintext_modulus(1 << RESULT_BITS)
        .set_moduli(&MODULI)
        .build_arc()
        .expect("constant parameters")
});

fn library(error: impl std::fmt::Display) -> Error {
    Error(format!("BFV: {error}"))
}

/// Rows that share a polynomial, for a matrix of `columns` columns.
fn rows_per_block(columns: usize) -> usize {
    DEGREE / columns
}

/// Bytes of the answer of a matrix: for each block, c1 and one coefficient of c0 a row.
pub fn answer_bytes(rows: usize, columns: usize) -> usize {
    let per = rows_per_block(columns);
    let packed = |n: usize| (n * COEFFICIENT_BITS).div_ceil(8);
    rows.div_ceil(per) * PACKED + rows / per * packed(per) + packed(rows % per)
}

/// The secret key.
pub struct Client(SecretKey);

impl Client {
    pub fn generate() -> Self {
        Self(SecretKey::random(&PARAMETERS, &mut rand::rng()))
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    pub fn from_bytes(data: &[u8]) -> Result<Self> {
        if data.len() > MAX_SECRET {
            return fail("the secret key is damaged");
        }
        guarded("the secret key", || {
            SecretKey::from_bytes(data, &PARAMETERS).map(Self).map_err(library)
        })
    }

    /// A vector of at most [`DEGREE`] integers within ±2^23.
    pub fn encrypt(&self, x: &[i64]) -> Result<Vec<u8>> {
        if x.is_empty() || x.len() > DEGREE || x.iter().any(|v| v.unsigned_abs() >= 1 << 23) {
            return fail(format!("a vector must have 1 to {DEGREE} numbers within 2^23"));
        }
        let plain = Plaintext::try_encode(x, Encoding::poly(), &PARAMETERS).map_err(library)?;
        let ct: Ciphertext = self.0.try_encrypt(&plain, &mut rand::rng()).map_err(library)?;
        Ok(ct.to_bytes())
    }

    /// W·x from a server's answer for a matrix of this shape. Whatever the bytes are, the numbers are within ±2^23.
    pub fn decrypt(&self, answer: &[u8], rows: usize, columns: usize) -> Result<Vec<i64>> {
        check_shape(rows, columns)?;
        if answer.len() != answer_bytes(rows, columns) {
            return fail(format!(
                "the answer has {} bytes; a product of {rows} × {columns} has {}",
                answer.len(),
                answer_bytes(rows, columns)
            ));
        }
        let per = rows_per_block(columns);
        let full = PACKED + (per * COEFFICIENT_BITS).div_ceil(8);
        let blocks: Vec<Vec<i64>> = answer
            .par_chunks(full)
            .enumerate()
            .map(|(block, data)| {
                guarded("the answer", || {
                    self.decrypt_block(data, per.min(rows - block * per), columns)
                })
            })
            .collect::<Result<_>>()?;
        Ok(blocks.concat())
    }

    fn decrypt_block(&self, data: &[u8], rows: usize, columns: usize) -> Result<Vec<i64>> {
        let context = PARAMETERS.context_at_level(1).map_err(library)?;
        let c1 = unpack(&data[..PACKED], DEGREE)?;
        let mut c0 = vec![0; DEGREE];
        for (j, value) in unpack(&data[PACKED..], rows)?.into_iter().enumerate() {
            c0[j * columns + columns - 1] = value;
        }
        let parts = [c0, c1]
            .into_iter()
            .map(|part| {
                let mut p = Poly::try_convert_from(part, context, false, Representation::PowerBasis)?;
                p.change_representation(Representation::Ntt);
                Ok(p)
            })
            .collect::<std::result::Result<Vec<_>, fhe_math::Error>>()
            .map_err(library)?;
        let ct = Ciphertext::new(parts, &PARAMETERS).map_err(library)?;
        let plain = self.0.try_decrypt(&ct).map_err(library)?;
        let values = Vec::<i64>::try_decode(&plain, Encoding::poly_at_level(1)).map_err(library)?;
        Ok((0..rows).map(|j| values[j * columns + columns - 1]).collect())
    }
}

/// A matrix as the server keeps it.
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    blocks: Vec<Plaintext>,
}

impl Matrix {
    /// From int8 weights [rows, columns], row by row, for vectors of |x| ≤ `most`, at most 127. Refused if a result could leave ±2^23.
    pub fn new(weights: &[i8], rows: usize, columns: usize, most: u8) -> Result<Self> {
        check_shape(rows, columns)?;
        if weights.len() != rows * columns {
            return fail("the matrix has not the size of its shape");
        }
        let sum = |row: &[i8]| row.iter().map(|w| u64::from(w.unsigned_abs())).sum::<u64>();
        if let Some(at) = weights
            .chunks(columns)
            .position(|row| u64::from(most) * sum(row) >= 1 << 23)
        {
            return fail(format!(
                "row {at} of a matrix may give results beyond 2^23: too large for the encryption's parameters"
            ));
        }
        let per = rows_per_block(columns);
        let blocks = weights
            .chunks(per * columns)
            .map(|block| {
                let mut p = vec![0i64; block.len()];
                for (j, row) in block.chunks(columns).enumerate() {
                    for (k, w) in row.iter().enumerate() {
                        p[j * columns + columns - 1 - k] = i64::from(*w);
                    }
                }
                Plaintext::try_encode(&p, Encoding::poly(), &PARAMETERS).map_err(library)
            })
            .collect::<Result<_>>()?;
        Ok(Self { rows, columns, blocks })
    }

    /// The answer to an encrypted vector. The vector's length is the client's affair: what lies beyond `columns` spoils its own results.
    pub fn apply(&self, query: &[u8]) -> Result<Vec<u8>> {
        if query.len() > MAX_QUERY {
            return fail("the encrypted vector is too long");
        }
        let ct = guarded("the encrypted vector", || {
            let ct = Ciphertext::from_bytes(query, &PARAMETERS).map_err(library)?;
            let whole = PARAMETERS.context_at_level(0).map_err(library)?;
            if ct.len() != 2
                || ct
                    .iter()
                    .any(|c| c.ctx() != whole || c.representation() != &Representation::Ntt)
            {
                return fail("the encrypted vector is not a fresh ciphertext");
            }
            Ok(ct)
        })?;
        let per = rows_per_block(self.columns);
        let answers: Vec<Vec<u8>> = self
            .blocks
            .par_iter()
            .enumerate()
            .map(|(block, plain)| {
                guarded("the encrypted vector", || {
                    let mut product = &ct * plain;
                    product.switch_to_level(1).map_err(library)?;
                    let [c0, c1] = [0, 1].map(|i| {
                        let mut c = product[i].clone();
                        c.change_representation(Representation::PowerBasis);
                        c.coefficients().row(0).to_vec()
                    });
                    let rows = per.min(self.rows - block * per);
                    let mut answer = pack(&c1);
                    answer.extend(pack(
                        &(0..rows)
                            .map(|j| c0[j * self.columns + self.columns - 1])
                            .collect::<Vec<_>>(),
                    ));
                    Ok(answer)
                })
            })
            .collect::<Result<_>>()?;
        Ok(answers.concat())
    }
}

fn check_shape(rows: usize, columns: usize) -> Result<()> {
    if rows == 0 || columns == 0 || columns > DEGREE || rows > 1 << 17 {
        return fail(format!(
            "a matrix of {rows} × {columns} does not fit the encryption's {DEGREE} coefficients"
        ));
    }
    Ok(())
}

/// Residues of 36 bits, little-endian.
fn pack(values: &[u64]) -> Vec<u8> {
    let mut out = Vec::with_capacity((values.len() * COEFFICIENT_BITS).div_ceil(8));
    for pair in values.chunks(2) {
        let two = u128::from(pair[0]) | u128::from(*pair.get(1).unwrap_or(&0)) << COEFFICIENT_BITS;
        out.extend(&two.to_le_bytes()[..(pair.len() * COEFFICIENT_BITS).div_ceil(8)]);
    }
    out
}

fn unpack(data: &[u8], count: usize) -> Result<Vec<u64>> {
    if data.len() != (count * COEFFICIENT_BITS).div_ceil(8) {
        return fail("the answer is damaged: wrong length");
    }
    let mut out = Vec::with_capacity(count + 1);
    for nine in data.chunks(9) {
        let mut bytes = [0; 16];
        bytes[..nine.len()].copy_from_slice(nine);
        let two = u128::from_le_bytes(bytes);
        let mask = (1 << COEFFICIENT_BITS) - 1;
        out.extend([(two & mask) as u64, (two >> COEFFICIENT_BITS) as u64]);
    }
    if out[count..].iter().any(|v| *v != 0) || out.iter().any(|v| *v >= MODULI[0]) {
        return fail("the answer is damaged: not residues of the modulus");
    }
    out.truncate(count);
    Ok(out)
}
