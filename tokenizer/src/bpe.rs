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

/// Ids are below 2 to this.
pub(crate) const ID_BITS: u32 = 21;

/// Which token a pair becomes: a hash table with open addressing.
///
/// The multiplier of the hash is drawn at random, so that no file can be made for which look-ups are slow.
#[derive(Clone)]
pub(crate) struct PairTable {
    /// The ids of left, right and merged token in 63 bits.
    slots: Box<[u64]>,
    used: usize,
    multiplier: u64,
    shift: u32,
    /// What pairs of bytes become, which is asked for most: left byte first. [`NONE`] if they do not.
    bytes: Box<[u32]>,
}

impl PairTable {
    const EMPTY: u64 = u64::MAX;

    /// An empty table with room for `capacity` pairs before it has to grow.
    pub(crate) fn with_capacity(capacity: usize) -> PairTable {
        // At most half of the slots are taken.
        let bits = (2 * capacity).next_power_of_two().trailing_zeros().max(4);
        PairTable {
            slots: vec![Self::EMPTY; 1 << bits].into_boxed_slice(),
            used: 0,
            multiplier: RandomState::new().hash_one(bits) | 1,
            shift: u64::BITS - bits,
            bytes: vec![NONE; 1 << 16].into_boxed_slice(),
        }
    }

    /// Adds a pair. False if the pair is there already.
    pub(crate) fn insert(&mut self, (left, right): Pair, token: u32) -> bool {
        if 2 * self.used >= self.slots.len() {
            let full = std::mem::replace(self, PairTable::with_capacity(2 * self.used));
            for &slot in full.slots.iter().filter(|&&slot| slot != Self::EMPTY) {
                self.put(slot);
            }
            self.bytes = full.bytes;
        }
        let new = self.put(Self::key(left, right) << ID_BITS | u64::from(token));
        if let (true, Ok(left), Ok(right)) = (new, u8::try_from(left), u8::try_from(right)) {
            self.bytes[usize::from(left) << 8 | usize::from(right)] = token;
        }
        new
    }

    /// What two bytes become, or [`NONE`].
    #[inline]
    fn get_bytes(&self, left: u8, right: u8) -> u32 {
        self.bytes[usize::from(left) << 8 | usize::from(right)]
    }

    fn put(&mut self, entry: u64) -> bool {
        let slot = self.find(entry >> ID_BITS);
        let free = self.slots[slot] == Self::EMPTY;
        if free {
            self.slots[slot] = entry;
            self.used += 1;
        }
        free
    }

    /// The token that the pair becomes, or [`NONE`].
    #[inline]
    fn get(&self, left: u32, right: u32) -> u32 {
        match self.slots[self.find(Self::key(left, right))] {
            Self::EMPTY => NONE,
            found => found as u32 & ((1 << ID_BITS) - 1),
        }
    }

    #[inline]
    fn key(left: u32, right: u32) -> u64 {
        u64::from(left) << ID_BITS | u64::from(right)
    }

    /// The slot of a pair, or the free one where it would be.
    #[inline]
    fn find(&self, key: u64) -> usize {
        let mut slot = (key.wrapping_mul(self.multiplier) >> self.shift) as usize;
        loop {
            let found = self.slots[slot];
            if found >> ID_BITS == key || found == Self::EMPTY {
                return slot;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }
}

/// Encodes chunk after chunk. Its buffers are the only state, so it can be used for any number of them, with any table.
#[derive(Default)]
pub(crate) struct Merger {
    list: List,
}

impl Merger {
    /// Appends the tokens of `chunk` to `out`.
    pub(crate) fn encode(&mut self, table: &PairTable, chunk: &[u8], out: &mut Vec<u32>) {
        match chunk.len() {
            0..=1 => out.extend(chunk.iter().map(|&byte| u32::from(byte))),
            2..=16 => merge_short::<16>(table, chunk, out),
            17..=32 => merge_short::<32>(table, chunk, out),
            33..=64 => merge_short::<64>(table, chunk, out),
            _ => self.encode_long(table, chunk, out),
        }
    }

    /// A linked list of tokens and a heap of the merges that wait: n log n for any chunk of n bytes.
    fn encode_long(&mut self, table: &PairTable, chunk: &[u8], out: &mut Vec<u32>) {
        let list = &mut self.list;
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

/// Merges a chunk of at most N bytes, N being at most 64. A token lives at the position of its first byte.
///
/// All that waits is looked at before each merge: for so few a vector instruction or two.
fn merge_short<const N: usize>(table: &PairTable, chunk: &[u8], out: &mut Vec<u32>) {
    const AT: u32 = 6;
    let length = chunk.len();
    let mut tokens = [0; N];
    // What the token here and the next one become, and the position, so that the least is the lowest and of several the leftmost.
    let mut waiting = [NONE; N];
    let (mut before, mut after) = ([0u8; N], [0u8; N]);
    let waiting_for = |token: u32, at: usize| match token {
        NONE => NONE,
        token => token << AT | at as u32,
    };
    let offer = |left: u32, right: u32, at: usize| waiting_for(table.get(left, right), at);
    for (at, &byte) in chunk.iter().enumerate() {
        tokens[at] = u32::from(byte);
        before[at] = (at as u8).wrapping_sub(1);
        after[at] = at as u8 + 1;
    }
    for (at, pair) in chunk.windows(2).enumerate() {
        waiting[at] = waiting_for(table.get_bytes(pair[0], pair[1]), at);
    }
    loop {
        let least = waiting.iter().fold(NONE, |least, &other| least.min(other));
        if least == NONE {
            break;
        }
        let (at, token) = (least as usize % (1 << AT), least >> AT);
        let dead = after[at] as usize;
        let next = after[dead] as usize;
        tokens[at] = token;
        after[at] = next as u8;
        waiting[dead] = NONE;
        waiting[at] = NONE;
        if next < length {
            before[next] = at as u8;
            waiting[at] = offer(token, tokens[next], at);
        }
        if at > 0 {
            let previous = before[at] as usize;
            waiting[previous] = offer(tokens[previous], token, previous);
        }
    }
    let mut at = 0;
    while at < length {
        out.push(tokens[at]);
        at = after[at] as usize;
    }
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
