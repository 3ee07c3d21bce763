//! Counting the chunks of texts.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;

use crate::key::{key_of, Key, NO_KEY, WORD};
use crate::scan::{Scanner, MARGIN};
use crate::split::first_chunk;

/// How often each chunk of two or more bytes occurs.
#[derive(Clone)]
pub(crate) struct Counter {
    /// Short chunks by key: open addressing, a third of the slots free at least.
    slots: Vec<(Key, u64)>,
    used: usize,
    multipliers: [u64; 2],
    /// Long chunks, and those that have no key of their own.
    others: HashMap<Box<[u8]>, u64>,
}

impl Default for Counter {
    fn default() -> Counter {
        let random = RandomState::new();
        Counter {
            slots: vec![(NO_KEY, 0); 1 << 10],
            used: 0,
            multipliers: [random.hash_one(0) | 1, random.hash_one(1) | 1],
            others: HashMap::new(),
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter")
            .field("chunks", &(self.used + self.others.len()))
            .finish_non_exhaustive()
    }
}

impl Counter {
    /// Counts the chunks of a text.
    pub(crate) fn add(&mut self, text: &[u8]) {
        let scanner = Scanner::new(text);
        let mut starts = vec![0; 2048 + MARGIN];
        let mut from = 0;
        while from < text.len() {
            let (count, _) = scanner.fill(from, &mut starts);
            if count < 2 {
                let end = from + first_chunk(&text[from..]);
                self.count(&text[from..], end - from, 1);
                from = end;
                continue;
            }
            for bounds in starts[..count].windows(2) {
                let (start, end) = (bounds[0] as usize, bounds[1] as usize);
                self.count(&text[from + start..], end - start, 1);
            }
            from += starts[count - 1] as usize;
        }
    }

    /// Adds what another has counted.
    pub(crate) fn add_counts(&mut self, other: &Counter) {
        other.for_each(|chunk, times| self.count(chunk, chunk.len(), times));
    }

    /// The chunks and how often they occur, in no order.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8], u64)) {
        for (key, times) in self.slots.iter().filter(|(key, _)| *key != NO_KEY) {
            let bytes: [u8; WORD] = [key[0].to_ne_bytes(), key[1].to_ne_bytes()]
                .concat()
                .try_into()
                .expect("a key");
            let length = WORD - bytes.iter().rev().take_while(|&&byte| byte == 0xFF).count();
            each(&bytes[..length], *times);
        }
        for (chunk, times) in &self.others {
            each(chunk, *times);
        }
    }

    /// Counts the chunk of `length` bytes that a text begins with.
    #[inline]
    fn count(&mut self, text: &[u8], length: usize, times: u64) {
        if length < 2 {
            return;
        }
        if length > WORD || text[length - 1] == 0xFF {
            return match self.others.get_mut(&text[..length]) {
                Some(count) => *count += times,
                None => _ = self.others.insert(text[..length].into(), times),
            };
        }
        let key = key_of(text, length);
        let slot = self.find(key);
        self.slots[slot].1 += times;
        if self.slots[slot].0 == NO_KEY {
            self.slots[slot].0 = key;
            self.used += 1;
            if 3 * self.used > self.slots.len() {
                self.grow();
            }
        }
    }

    #[inline]
    fn find(&self, key: Key) -> usize {
        let products = [
            key[0].wrapping_mul(self.multipliers[0]),
            key[1].wrapping_mul(self.multipliers[1]),
        ];
        let hash = products[0].wrapping_add(products[1]);
        let mut slot = (hash >> 32) as usize & (self.slots.len() - 1);
        while self.slots[slot].0 != key && self.slots[slot].0 != NO_KEY {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        slot
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![(NO_KEY, 0); 4 * self.slots.len()];
        for (key, times) in std::mem::replace(&mut self.slots, larger) {
            if key != NO_KEY {
                let slot = self.find(key);
                self.slots[slot] = (key, times);
            }
        }
    }
}
