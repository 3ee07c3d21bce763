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
    /// What pairs of early tokens become, which is asked for most: left token first. [`NONE`] if they do not.
    early: Box<[u32]>,
    /// For each slot [`MARKS`](Self::MARKS) bits, by the bits of the hash below those that say the slot: whether there is such a pair. It answers most
    /// questions for pairs that there are not, and is small.
    marks: Box<[u64]>,
}

impl PairTable {
    const EMPTY: u64 = u64::MAX;
    /// Tokens below this, the bytes and the first merges, are early.
    const EARLY: u32 = 512;
    const MARKS: usize = 4;

    /// An empty table with room for `capacity` pairs before it has to grow.
    pub(crate) fn with_capacity(capacity: usize) -> PairTable {
        // At most half of the slots are taken.
        let bits = (2 * capacity).next_power_of_two().trailing_zeros().max(4);
        PairTable {
            slots: vec![Self::EMPTY; 1 << bits].into_boxed_slice(),
            used: 0,
            multiplier: RandomState::new().hash_one(bits) | 1,
            shift: u64::BITS - bits,
            early: vec![NONE; (Self::EARLY * Self::EARLY) as usize].into_boxed_slice(),
            marks: vec![0; (Self::MARKS << bits) / 64].into_boxed_slice(),
        }
    }

    /// Adds a pair. False if the pair is there already.
    pub(crate) fn insert(&mut self, (left, right): Pair, token: u32) -> bool {
        if 2 * self.used >= self.slots.len() {
            let full = std::mem::replace(self, PairTable::with_capacity(2 * self.used));
            for &slot in full.slots.iter().filter(|&&slot| slot != Self::EMPTY) {
                self.put(slot);
            }
            self.early = full.early;
        }
        let new = self.put(Self::key(left, right) << ID_BITS | u64::from(token));
        if new && (left | right) < Self::EARLY {
            self.early[(left * Self::EARLY + right) as usize] = token;
        }
        new
    }

    fn put(&mut self, entry: u64) -> bool {
        let key = entry >> ID_BITS;
        let slot = self.find(key);
        let (word, bit) = self.mark(key);
        self.marks[word] |= bit;
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
        if (left | right) < Self::EARLY {
            return self.early[(left * Self::EARLY + right) as usize];
        }
        let key = Self::key(left, right);
        let (word, bit) = self.mark(key);
        if self.marks[word] & bit == 0 {
            return NONE;
        }
        match self.slots[self.find(key)] {
            Self::EMPTY => NONE,
            found => found as u32 & ((1 << ID_BITS) - 1),
        }
    }

    #[inline]
    fn key(left: u32, right: u32) -> u64 {
        u64::from(left) << ID_BITS | u64::from(right)
    }

    #[inline]
    fn mark(&self, key: u64) -> (usize, u64) {
        let mark = key.wrapping_mul(self.multiplier) >> (self.shift - Self::MARKS.trailing_zeros());
        (mark as usize / 64, 1 << (mark % 64))
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
/// All that waits is looked at before each merge and written anew after it: for so few a vector instruction or two, which would have to wait for single
/// values written before them.
fn merge_short<const N: usize>(table: &PairTable, chunk: &[u8], out: &mut Vec<u32>) {
    const AT: u32 = 6;
    let mut tokens = [0; N];
    // What the token here and the next one become, and the position, so that the least is the lowest and of several the leftmost.
    let mut waiting = [NONE; N];
    let waiting_for = |token: u32, at: usize| match token {
        NONE => NONE,
        token => token << AT | at as u32,
    };
    let offer = |left: u32, right: u32, at: usize| waiting_for(table.get(left, right), at);
    for (token, &byte) in tokens.iter_mut().zip(chunk) {
        *token = u32::from(byte);
    }
    for (at, pair) in chunk.windows(2).enumerate() {
        waiting[at] = offer(u32::from(pair[0]), u32::from(pair[1]), at);
    }
    // Bit i: a token lives at i.
    let mut alive = u64::MAX >> (64 - chunk.len());
    loop {
        let least = waiting.iter().fold(NONE, |least, &other| least.min(other));
        if least == NONE {
            break;
        }
        let (at, token) = (least as usize % (1 << AT), least >> AT);
        let after = alive & (u64::MAX - 1) << at;
        let (dead, after) = (after.trailing_zeros() as usize, after & after.wrapping_sub(1));
        alive &= !(1 << dead);
        tokens[at % N] = token;
        let (mut here, mut before, mut previous) = (NONE, NONE, at);
        if after != 0 {
            let next = after.trailing_zeros() as usize;
            here = offer(token, tokens[next % N], at);
        }
        if at > 0 {
            previous = (alive & ((1 << at) - 1)).ilog2() as usize;
            before = offer(tokens[previous % N], token, previous);
        }
        let (at, dead, previous) = (at as u32, dead as u32, previous as u32);
        for place in 0..N as u32 {
            let waits = waiting[place as usize];
            let changed = if place == previous { before } else { waits };
            let changed = if place == dead { NONE } else { changed };
            waiting[place as usize] = if place == at { here } else { changed };
        }
    }
    while alive != 0 {
        out.push(tokens[alive.trailing_zeros() as usize % N]);
        alive &= alive - 1;
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
