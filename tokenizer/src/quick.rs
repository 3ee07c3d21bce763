//! A hash that is fast and, with a number drawn at random, not to be foreseen.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Makes hashers that all hash alike.
#[derive(Clone)]
pub(crate) struct Quick(u64);

impl Quick {
    pub(crate) fn new() -> Quick {
        Quick(RandomState::new().hash_one(0) | 1)
    }
}

impl Default for Quick {
    fn default() -> Quick {
        Quick::new()
    }
}

impl BuildHasher for Quick {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher {
            multiplier: self.0,
            hash: self.0,
        }
    }
}

pub(crate) struct QuickHasher {
    multiplier: u64,
    hash: u64,
}

impl Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.write_u64(u64::from_le_bytes(word.try_into().expect("eight bytes")));
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        self.write_u64(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.hash ^ value) * u128::from(self.multiplier);
        self.hash = product as u64 ^ (product >> 64) as u64 ^ self.hash.rotate_left(23);
    }
}
