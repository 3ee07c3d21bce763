//! Merging: from the bytes of a chunk to its tokens.
//!
//! Merges apply in the order of their ids, each from left to right: as long as two neighbours have a merge, those with the lowest merge, and of
//! several such the leftmost, become one. A merge can only make room for later ones, since its own token is part of no earlier merge.

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;

/// Two neighbouring tokens.
pub(crate) type Pair = (u32, u32);

/// Stands for "no token": no vocabulary is that large.
const NONE: u32 = u32::MAX;

/// Which token a pair becomes: a hash table with open addressing that never changes.
///
/// The multiplier of the hash is drawn at random, so that no file can be made for which look-ups are slow.
#[derive(Clone)]
pub(crate) struct PairTable {
    slots: Box<[(u64, u32)]>,
    multiplier: u64,
    shift: u32,
}

impl PairTable {
    const EMPTY: u64 = u64::MAX;

    /// An empty table with room for `capacity` pairs.
    pub(crate) fn with_capacity(capacity: usize) -> PairTable {
        // At most half of the slots are taken.
        let bits = (2 * capacity).next_power_of_two().trailing_zeros().max(4);
        PairTable {
            slots: vec![(Self::EMPTY, NONE); 1 << bits].into_boxed_slice(),
            multiplier: RandomState::new().hash_one(bits) | 1,
            shift: u64::BITS - bits,
        }
    }

    /// Adds a pair; within the capacity. False if the pair is there already.
    pub(crate) fn insert(&mut self, pair: Pair, token: u32) -> bool {
        let (found, slot) = self.find(pair);
        if !found {
            self.slots[slot] = (Self::key(pair), token);
        }
        !found
    }

    /// The token that the pair becomes, or [`NONE`].
    #[inline]
    fn get(&self, left: u32, right: u32) -> u32 {
        self.slots[self.find((left, right)).1].1
    }

    #[inline]
    fn key((left, right): Pair) -> u64 {
        u64::from(left) << 32 | u64::from(right)
    }

    /// The slot of a pair, or the free one where it would be.
    #[inline]
    fn find(&self, pair: Pair) -> (bool, usize) {
        let key = Self::key(pair);
        let mut slot = (key.wrapping_mul(self.multiplier) >> self.shift) as usize;
        loop {
            match self.slots[slot].0 {
                found if found == key => return (true, slot),
                Self::EMPTY => return (false, slot),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
    }
}

/// Encodes chunk after chunk. Its buffers are the only state, so it can be used for any number of them.
pub(crate) struct Merger<'a> {
    table: &'a PairTable,
    tokens: Vec<u32>,
    merged: Vec<u32>,
    list: List,
}

impl<'a> Merger<'a> {
    /// Up to this many bytes, looking at every pair before each merge is faster than a heap.
    const SHORT: usize = 96;

    pub(crate) fn new(table: &'a PairTable) -> Merger<'a> {
        Merger {
            table,
            tokens: Vec::new(),
            merged: Vec::new(),
            list: List::default(),
        }
    }

    /// Appends the tokens of `chunk` to `out`.
    #[inline]
    pub(crate) fn encode(&mut self, chunk: &[u8], out: &mut Vec<u32>) {
        match chunk {
            [byte] => out.push(u32::from(*byte)),
            _ if chunk.len() <= Self::SHORT => self.encode_short(chunk, out),
            _ => self.encode_long(chunk, out),
        }
    }

    /// Quadratic in the length of the chunk, with little to do for each step.
    fn encode_short(&mut self, chunk: &[u8], out: &mut Vec<u32>) {
        let Merger {
            table, tokens, merged, ..
        } = self;
        tokens.clear();
        tokens.extend(chunk.iter().map(|&byte| u32::from(byte)));
        // merged[i] is what tokens[i] and tokens[i + 1] become.
        merged.clear();
        merged.extend(tokens.windows(2).map(|pair| table.get(pair[0], pair[1])));
        while let Some((at, token)) = first_lowest(merged) {
            tokens[at] = token;
            tokens.remove(at + 1);
            merged.remove(at);
            if at > 0 {
                merged[at - 1] = table.get(tokens[at - 1], token);
            }
            if at < merged.len() {
                merged[at] = table.get(token, tokens[at + 1]);
            }
        }
        out.extend_from_slice(tokens);
    }

    /// A linked list of tokens and a heap of the merges that wait: n log n for any chunk of n bytes.
    fn encode_long(&mut self, chunk: &[u8], out: &mut Vec<u32>) {
        let Merger { table, list, .. } = self;
        list.fill(chunk);
        for at in 0..chunk.len() - 1 {
            list.offer(table, at);
        }
        while let Some(Reverse((token, at))) = list.waiting.pop() {
            if list.merged(table, at) == token {
                list.merge(at, token);
                if list.before[at] != List::END {
                    list.offer(table, list.before[at]);
                }
                list.offer(table, at);
            }
        }
        let mut at = 0;
        while at != List::END {
            out.push(list.tokens[at]);
            at = list.after[at];
        }
    }
}

/// Where the lowest token is, at the first place of several, and which; none if there is no token.
#[inline]
fn first_lowest(tokens: &[u32]) -> Option<(usize, u32)> {
    let (mut first, mut lowest) = (0, NONE);
    for (at, &token) in tokens.iter().enumerate() {
        if token < lowest {
            (first, lowest) = (at, token);
        }
    }
    (lowest != NONE).then_some((first, lowest))
}

/// The tokens of a long chunk. A token lives at the position of its first byte; the other positions are dead.
#[derive(Default)]
struct List {
    tokens: Vec<u32>,
    before: Vec<usize>,
    after: Vec<usize>,
    /// Merges that were possible when they were put here: the token and the position of the left one of the pair. The lowest token comes first,
    /// then the leftmost.
    waiting: BinaryHeap<Reverse<(u32, usize)>>,
}

impl List {
    const END: usize = usize::MAX;

    fn fill(&mut self, chunk: &[u8]) {
        let length = chunk.len();
        self.tokens.clear();
        self.tokens.extend(chunk.iter().map(|&byte| u32::from(byte)));
        self.before.clear();
        self.before.extend((0..length).map(|at| at.wrapping_sub(1)));
        self.after.clear();
        self.after.extend(1..length);
        self.after.push(Self::END);
        self.waiting.clear();
    }

    /// What the token at `at` and the next one become now, or [`NONE`].
    fn merged(&self, table: &PairTable, at: usize) -> u32 {
        match self.after[at] {
            Self::END => NONE,
            next => table.get(self.tokens[at], self.tokens[next]),
        }
    }

    /// Lets the token at `at` and the next one wait to be merged, if they can be.
    fn offer(&mut self, table: &PairTable, at: usize) {
        let token = self.merged(table, at);
        if token != NONE {
            self.waiting.push(Reverse((token, at)));
        }
    }

    /// Puts `token` in the place of the token at `at` and the next one.
    fn merge(&mut self, at: usize, token: u32) {
        let dead = self.after[at];
        let next = self.after[dead];
        self.tokens[at] = token;
        self.after[at] = next;
        // A dead position has nothing after it, so that nothing merges there any more.
        self.after[dead] = Self::END;
        if next != Self::END {
            self.before[next] = at;
        }
    }
}
