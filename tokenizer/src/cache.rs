//! Encoding with a memory: what a chunk became before, it becomes again.
//!
//! Text is made of few different words. A [`Encoder`] keeps the tokens of those that it has met, in tables that are bounded: the time and memory of a
//! text depend on its length alone, whatever it contains. It changes what encoding costs, never its result.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Mutex, PoisonError};

use crate::bpe::{Merger, PairTable};
use crate::key::{key_at, key_of, Key, NO_KEY, WORD};
use crate::quick::Quick;
use crate::scan::{Scanner, MARGIN};
use crate::split::first_chunk;

/// A chunk of at most this many bytes is remembered.
const LONGEST: usize = 128;

/// How tokens are kept in half a slot: few wide ones or more narrow ones.
trait Tokens: Copy + 'static {
    const FREE: Self;
    /// How many a slot has room for.
    const MOST: usize;
    /// How many values [`write`](Tokens::write) writes, whatever there is.
    const WRITTEN: usize;

    /// At most MOST tokens; none if they do not fit.
    fn pack(tokens: &[u32]) -> Option<Self>;
    /// How many there are; 0 if they are kept elsewhere.
    fn count(&self) -> usize;

    /// Puts the tokens at `to`, and anything after them.
    ///
    /// # Safety
    ///
    /// There is room for WRITTEN values.
    unsafe fn write(&self, to: *mut u32);

    /// Where tokens are kept that do not fit.
    fn elsewhere(from: usize, length: usize) -> Self;
    /// What `elsewhere` was told.
    fn place(&self) -> (usize, usize);
}

/// Any tokens; the last value is their number.
#[derive(Clone, Copy)]
struct Wide([u32; 4]);

impl Tokens for Wide {
    const FREE: Self = Wide([0; 4]);
    const MOST: usize = 3;
    const WRITTEN: usize = 4;

    fn pack(tokens: &[u32]) -> Option<Self> {
        let mut packed = [0; 4];
        packed[..Self::MOST].get_mut(..tokens.len())?.copy_from_slice(tokens);
        packed[Self::MOST] = tokens.len() as u32;
        Some(Wide(packed))
    }

    #[inline(always)]
    fn count(&self) -> usize {
        self.0[Self::MOST] as usize
    }

    #[inline(always)]
    unsafe fn write(&self, to: *mut u32) {
        // SAFETY: as promised by the caller.
        unsafe { to.cast::<[u32; 4]>().write_unaligned(self.0) }
    }

    fn elsewhere(from: usize, length: usize) -> Self {
        Wide([from as u32, length as u32, 0, 0])
    }

    fn place(&self) -> (usize, usize) {
        (self.0[0] as usize, self.0[1] as usize)
    }
}

/// Tokens below 2 to the 16; the last value is their number.
#[derive(Clone, Copy)]
struct Narrow([u16; 8]);

impl Tokens for Narrow {
    const FREE: Self = Narrow([0; 8]);
    const MOST: usize = 7;
    const WRITTEN: usize = 8;

    fn pack(tokens: &[u32]) -> Option<Self> {
        let mut packed = [0; 8];
        for (to, &token) in packed[..Self::MOST].get_mut(..tokens.len())?.iter_mut().zip(tokens) {
            *to = u16::try_from(token).ok()?;
        }
        packed[Self::MOST] = tokens.len() as u16;
        Some(Narrow(packed))
    }

    #[inline(always)]
    fn count(&self) -> usize {
        self.0[Self::MOST] as usize
    }

    #[inline(always)]
    unsafe fn write(&self, to: *mut u32) {
        // SAFETY: as promised by the caller.
        unsafe { to.cast::<[u32; 8]>().write_unaligned(self.0.map(u32::from)) }
    }

    fn elsewhere(from: usize, length: usize) -> Self {
        let (from, length) = (from as u32, length as u16);
        Narrow([from as u16, (from >> 16) as u16, length, 0, 0, 0, 0, 0])
    }

    fn place(&self) -> (usize, usize) {
        (
            usize::from(self.0[0]) | usize::from(self.0[1]) << 16,
            usize::from(self.0[2]),
        )
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Slot<T> {
    key: Key,
    tokens: T,
}

/// The tokens of short chunks: a hash table with open addressing.
struct Short<T> {
    slots: Box<[Slot<T>]>,
    shift: u32,
    used: usize,
    /// Drawn at random, so that no text can be made whose chunks collide.
    multipliers: [u64; 2],
    /// What does not fit into slots.
    more: Vec<u32>,
}

impl<T: Tokens> Short<T> {
    const LEAST_BITS: u32 = 10;
    /// 16 MB.
    const MOST_BITS: u32 = 19;
    /// One slot of so many is used at most.
    const SPARE: usize = 3;
    /// How many slots are looked at for one key.
    const PROBES: usize = 8;
    const FREE: Slot<T> = Slot {
        key: NO_KEY,
        tokens: T::FREE,
    };

    /// With words that are tokens, and room for as many others.
    fn new<'a>(words: impl ExactSizeIterator<Item = (&'a [u8], u32)>) -> Self {
        let random = RandomState::new();
        let slots = (2 * Self::SPARE * words.len()).next_power_of_two();
        let bits = slots.trailing_zeros().clamp(Self::LEAST_BITS, Self::MOST_BITS);
        let mut short = Short {
            slots: vec![Self::FREE; 1 << bits].into_boxed_slice(),
            shift: u64::BITS - bits,
            used: 0,
            multipliers: [random.hash_one(0) | 1, random.hash_one(1) | 1],
            more: Vec::new(),
        };
        for (word, token) in words {
            short.insert(key_of(word, word.len()), &[token]);
        }
        short
    }

    /// The slot where a key should be.
    #[inline(always)]
    fn home(&self, key: Key) -> usize {
        let products = [
            key[0].wrapping_mul(self.multipliers[0]),
            key[1].wrapping_mul(self.multipliers[1]),
        ];
        (products[0].wrapping_add(products[1]) >> self.shift) as usize
    }

    /// The slot of a key, or else a free one, or else none.
    fn find(&self, key: Key) -> Option<usize> {
        let home = self.home(key);
        (home..home + Self::PROBES)
            .map(|slot| slot & (self.slots.len() - 1))
            .find(|&slot| self.slots[slot].key == key || self.slots[slot].key == NO_KEY)
    }

    /// The slot of a key, or none if it is not there. What is met is brought home: words that are met often get the best places.
    fn meet(&mut self, key: Key) -> Option<usize> {
        let at = self.find(key)?;
        if self.slots[at].key == NO_KEY {
            return None;
        }
        let home = self.home(key);
        let distance = |from: usize, to: usize| to.wrapping_sub(from) & (self.slots.len() - 1);
        if at != home && distance(self.home(self.slots[home].key), at) < Self::PROBES {
            self.slots.swap(at, home);
            return Some(home);
        }
        Some(at)
    }

    /// The tokens of a slot, of which `space` has room for some.
    fn tokens<'a>(&'a self, at: usize, space: &'a mut [u32; 8]) -> &'a [u32] {
        const { assert!(T::WRITTEN <= 8) };
        let tokens = &self.slots[at].tokens;
        match tokens.count() {
            0 => {
                let (from, length) = tokens.place();
                &self.more[from..from + length]
            }
            count => {
                // SAFETY: there is room.
                unsafe { tokens.write(space.as_mut_ptr()) };
                &space[..count]
            }
        }
    }

    /// Adds a key that is not there.
    fn insert(&mut self, key: Key, tokens: &[u32]) {
        if Self::SPARE * self.used >= self.slots.len() {
            self.grow();
        }
        let packed = T::pack(tokens).unwrap_or_else(|| {
            let from = self.more.len();
            self.more.extend_from_slice(tokens);
            T::elsewhere(from, tokens.len())
        });
        // Where too many collide the first has to go.
        let at = self.find(key).unwrap_or_else(|| self.home(key));
        self.used += usize::from(self.slots[at].key == NO_KEY);
        self.slots[at] = Slot { key, tokens: packed };
    }

    /// Makes the table four times as large, or empties it if it has its full size.
    #[cold]
    fn grow(&mut self) {
        let bits = u64::BITS - self.shift;
        self.used = 0;
        if bits >= Self::MOST_BITS {
            self.slots.fill(Self::FREE);
            self.more.clear();
            return;
        }
        let bits = (bits + 2).min(Self::MOST_BITS);
        self.shift = u64::BITS - bits;
        let old = std::mem::replace(&mut self.slots, vec![Self::FREE; 1 << bits].into_boxed_slice());
        for slot in old.iter().filter(|slot| slot.key != NO_KEY) {
            if let Some(at) = self.find(slot.key) {
                self.slots[at] = *slot;
                self.used += 1;
            }
        }
    }
}

/// The tokens of longer chunks.
struct Long {
    slots: Box<[LongSlot]>,
    used: usize,
    quick: Quick,
    bytes: Vec<u8>,
    tokens: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct LongSlot {
    hash: u64,
    bytes: u32,
    tokens: u32,
    /// 0 in a free slot.
    length: u32,
    count: u32,
}

impl Long {
    const BITS: u32 = 15;
    const PROBES: usize = 8;

    fn new() -> Long {
        Long {
            slots: Box::default(),
            used: 0,
            quick: Quick::new(),
            bytes: Vec::new(),
            tokens: Vec::new(),
        }
    }

    fn hash(&self, chunk: &[u8]) -> u64 {
        let mut hasher = self.quick.build_hasher();
        hasher.write(chunk);
        hasher.finish()
    }

    fn find(&self, hash: u64, chunk: &[u8]) -> Option<usize> {
        let home = (hash >> (u64::BITS - Self::BITS)) as usize;
        (home..home + Self::PROBES)
            .map(|slot| slot & (self.slots.len() - 1))
            .find(|&at| {
                let slot = &self.slots[at];
                slot.length == 0
                    || slot.hash == hash && self.bytes[slot.bytes as usize..][..slot.length as usize] == *chunk
            })
    }

    fn get(&self, hash: u64, chunk: &[u8]) -> Option<&[u32]> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = self.slots[self.find(hash, chunk)?];
        (slot.length > 0).then(|| &self.tokens[slot.tokens as usize..][..slot.count as usize])
    }

    fn insert(&mut self, hash: u64, chunk: &[u8], tokens: &[u32]) {
        if self.slots.is_empty() || 2 * self.used >= self.slots.len() {
            self.slots = vec![LongSlot::default(); 1 << Self::BITS].into_boxed_slice();
            self.used = 0;
            self.bytes.clear();
            self.tokens.clear();
        }
        let Some(at) = self.find(hash, chunk) else { return };
        self.slots[at] = LongSlot {
            hash,
            bytes: self.bytes.len() as u32,
            tokens: self.tokens.len() as u32,
            length: chunk.len() as u32,
            count: tokens.len() as u32,
        };
        self.used += 1;
        self.bytes.extend_from_slice(chunk);
        self.tokens.extend_from_slice(tokens);
    }
}

/// What makes tokens of chunks: the merges, and the ids of what they make, where these are not its numbers.
#[derive(Clone, Copy)]
struct Merges<'a> {
    table: &'a PairTable,
    ids: Option<&'a [u32]>,
}

/// Tokens that their own bytes become, by rank. With many tokens a third of the different words of a book are such, so that an encoder begins with them.
///
/// Not all tokens are: other merges can take a token's bytes first.
#[derive(Clone, Default)]
pub(crate) struct Words(Vec<u32>);

impl Words {
    /// They fill a sixth of 8 MB.
    const MOST: usize = (1 << 18) / 6;

    /// Of all tokens, by rank, those that `table` makes of their bytes.
    pub(crate) fn of<'a>(table: &PairTable, tokens: impl IntoIterator<Item = &'a [u8]>) -> Words {
        let mut words = Words::default();
        let (mut merger, mut made) = (Merger::default(), Vec::new());
        for (rank, token) in (0..).zip(tokens) {
            words.add(rank, token, || {
                made.clear();
                merger.encode(table, token, &mut made);
                made == [rank]
            });
        }
        words
    }

    /// Adds the next token, if it is one that its bytes become, there is room, and it has a key that no other chunk has.
    pub(crate) fn add(&mut self, rank: u32, token: &[u8], whole: impl FnOnce() -> bool) {
        let sole = (2..=WORD).contains(&token.len()) && token.last() != Some(&0xFF);
        if self.0.len() < Self::MOST && sole && whole() {
            self.0.push(rank);
        }
    }

    /// The ranks.
    pub(crate) fn ranks(&self) -> &[u32] {
        &self.0
    }
}

/// Encodes text after text, always with the same merges.
pub(crate) struct Encoder {
    short: Kind,
    rest: Rest,
    starts: Box<[u32]>,
    /// Where texts are put that are short, so that the keys of their last chunks can be read as all others are.
    short_text: Box<[u8; SHORT_TEXT + WORD]>,
}

/// A text of at most this many bytes is copied.
const SHORT_TEXT: usize = 1 << 10;

enum Kind {
    Narrow(Short<Narrow>),
    Wide(Short<Wide>),
}

/// What is seldom needed.
struct Rest {
    long: Long,
    merger: Merger,
    merged: Vec<u32>,
    space: [u32; 8],
}

impl Rest {
    /// Puts the tokens of a chunk into `merged`.
    fn merge(&mut self, merges: Merges<'_>, chunk: &[u8]) {
        self.merged.clear();
        self.merger.encode(merges.table, chunk, &mut self.merged);
        if let Some(ids) = merges.ids {
            for token in &mut self.merged {
                *token = *ids.get(*token as usize).unwrap_or(token);
            }
        }
    }
}

impl Encoder {
    /// Of tokens below `limit`, with what these words become: as many as [`Words`] gives.
    pub(crate) fn new<'a>(limit: usize, words: impl ExactSizeIterator<Item = (&'a [u8], u32)>) -> Encoder {
        Encoder {
            short: match limit <= 1 << 16 {
                true => Kind::Narrow(Short::new(words)),
                false => Kind::Wide(Short::new(words)),
            },
            rest: Rest {
                long: Long::new(),
                merger: Merger::default(),
                merged: Vec::new(),
                space: [0; 8],
            },
            starts: vec![0; 2048 + MARGIN].into_boxed_slice(),
            short_text: Box::new([0; SHORT_TEXT + WORD]),
        }
    }

    /// Appends the tokens of a text without special tokens.
    pub(crate) fn encode(&mut self, table: &PairTable, ids: Option<&[u32]>, text: &[u8], out: &mut Vec<u32>) {
        let merges = Merges { table, ids };
        let readable = match self.short_text.get_mut(..text.len() + WORD) {
            Some(copy) => {
                copy[..text.len()].copy_from_slice(text);
                &*copy
            }
            None => text,
        };
        let scanner = Scanner::new(text);
        let mut from = 0;
        while from < text.len() {
            let (count, plain) = scanner.fill(from, &mut self.starts);
            if count < 2 {
                let chunk = &text[from..][..first_chunk(&text[from..])];
                self.rest.merge(merges, chunk);
                out.extend_from_slice(&self.rest.merged);
                from += chunk.len();
                continue;
            }
            let starts = &self.starts[..count];
            match &mut self.short {
                Kind::Narrow(short) => chunks(short, &mut self.rest, merges, &readable[from..], starts, plain, out),
                Kind::Wide(short) => chunks(short, &mut self.rest, merges, &readable[from..], starts, plain, out),
            }
            from += starts[count - 1] as usize;
        }
    }
}

/// How many chunks are looked for at the same time, so that the processor can wait for memory once for all of them.
const AHEAD: usize = 32;

/// Appends the tokens of the chunks between `starts`. If `plain`, a chunk may end in a byte 0xFF. Bytes after the last chunk, whatever they are, help.
fn chunks<T: Tokens>(
    short: &mut Short<T>,
    rest: &mut Rest,
    merges: Merges<'_>,
    text: &[u8],
    starts: &[u32],
    plain: bool,
    out: &mut Vec<u32>,
) {
    let [first, .., last] = *starts else { return };
    assert!(first <= last && last as usize <= text.len());
    // There are no more tokens than bytes. A slot is copied whole.
    out.reserve((last - first) as usize + T::WRITTEN);
    // SAFETY: room for all tokens, and for a slot after the last, is there.
    let mut to = unsafe { out.as_mut_ptr().add(out.len()) };
    // Of chunks that begin before this, all bytes of a key can be read.
    let whole = match plain && text[..last as usize].contains(&0xFF) {
        true => 0,
        false => (text.len() + 1).saturating_sub(WORD),
    };
    let unreadable = starts[..starts.len() - 1]
        .iter()
        .rev()
        .take_while(|&&start| start as usize >= whole)
        .count();
    let readable = starts.len() - 1 - unreadable;
    let mut homes = [0u32; AHEAD];
    let mut done = 0;
    while done < readable {
        let part = &starts[done..=readable.min(done + AHEAD)];
        for (home, bounds) in homes.iter_mut().zip(part.windows(2)) {
            let length = (bounds[1].wrapping_sub(bounds[0]) as usize).min(WORD);
            // SAFETY: the chunk is readable.
            let key = unsafe { key_within(text, bounds[0] as usize, length) };
            *home = short.home(key) as u32;
            fetch(&short.slots, *home as usize);
        }
        for (&home, bounds) in homes.iter().zip(part.windows(2)) {
            let (start, end) = (bounds[0] as usize, bounds[1] as usize);
            let length = end.wrapping_sub(start);
            if length <= WORD {
                // SAFETY: the chunk is readable.
                let key = unsafe { key_within(text, start, length) };
                let slot = &short.slots[home as usize & (short.slots.len() - 1)];
                if (slot.key[0] ^ key[0]) | (slot.key[1] ^ key[1]) == 0 && slot.tokens.count() != 0 {
                    // SAFETY: there is room for as many tokens as the chunk has bytes, and a slot.
                    unsafe {
                        slot.tokens.write(to);
                        to = to.add(slot.tokens.count());
                    }
                } else {
                    to = missed(short, rest, merges, key, &text[start..end], to);
                }
            } else {
                to = other(short, rest, merges, &text[start..end], to);
            }
        }
        done += part.len() - 1;
    }
    for bounds in starts[readable..].windows(2) {
        to = other(short, rest, merges, &text[bounds[0] as usize..bounds[1] as usize], to);
    }
    // SAFETY: so many have been written.
    unsafe { out.set_len(to.offset_from(out.as_ptr()) as usize) };
}

/// The key of the chunk of `length` bytes at `start`.
///
/// # Safety
///
/// The text has [`WORD`] bytes from there on, and `length` is at most as many.
#[inline(always)]
unsafe fn key_within(text: &[u8], start: usize, length: usize) -> Key {
    // SAFETY: as promised by the caller.
    unsafe {
        std::hint::assert_unchecked(length <= WORD);
        key_at(&*text.as_ptr().add(start).cast(), length)
    }
}

/// Tells the processor that a slot will be needed.
#[inline(always)]
fn fetch<T>(slots: &[Slot<T>], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: this has no effect that could be seen, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(slots.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slots, at);
}

/// A chunk that is not in its first slot.
#[cold]
#[inline(never)]
fn missed<T: Tokens>(
    short: &mut Short<T>,
    rest: &mut Rest,
    merges: Merges<'_>,
    key: Key,
    chunk: &[u8],
    to: *mut u32,
) -> *mut u32 {
    // A key is another chunk's as well if bytes like those that fill it up are at the end of the chunk.
    let sole = chunk.last() != Some(&0xFF);
    if let Some(at) = sole.then(|| short.meet(key)).flatten() {
        // SAFETY: there is room for as many tokens as the chunk has bytes.
        return unsafe { put(to, short.tokens(at, &mut rest.space), chunk.len()) };
    }
    rest.merge(merges, chunk);
    if sole {
        short.insert(key, &rest.merged);
    }
    // SAFETY: as before.
    unsafe { put(to, &rest.merged, chunk.len()) }
}

/// A chunk that is long, or near the end of the text.
#[cold]
#[inline(never)]
fn other<T: Tokens>(short: &mut Short<T>, rest: &mut Rest, merges: Merges<'_>, chunk: &[u8], to: *mut u32) -> *mut u32 {
    if chunk.len() <= WORD {
        return missed(short, rest, merges, key_of(chunk, chunk.len()), chunk, to);
    }
    let remembered = chunk.len() <= LONGEST;
    let hash = rest.long.hash(&chunk[..chunk.len().min(LONGEST)]);
    if remembered {
        if let Some(tokens) = rest.long.get(hash, chunk) {
            // SAFETY: there is room for as many tokens as the chunk has bytes.
            return unsafe { put(to, tokens, chunk.len()) };
        }
    }
    rest.merge(merges, chunk);
    if remembered {
        rest.long.insert(hash, chunk, &rest.merged);
    }
    // SAFETY: as before.
    unsafe { put(to, &rest.merged, chunk.len()) }
}

/// Puts tokens at `to` and says where the next are to be put.
///
/// # Safety
///
/// There is room for `most` tokens.
#[inline]
unsafe fn put(to: *mut u32, tokens: &[u32], most: usize) -> *mut u32 {
    assert!(tokens.len() <= most);
    // SAFETY: as promised by the caller.
    unsafe {
        std::ptr::copy_nonoverlapping(tokens.as_ptr(), to, tokens.len());
        to.add(tokens.len())
    }
}

/// The encoders of a tokenizer that nobody uses at the moment: as many as there ever were calls at the same time.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Encoder>>);

impl Pool {
    /// Lends an encoder.
    pub(crate) fn with<T>(&self, new: impl FnOnce() -> Encoder, work: impl FnOnce(&mut Encoder) -> T) -> T {
        // An encoder whose work panics is not given back, so none is ever found half-changed.
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut encoder = lent.unwrap_or_else(new);
        let done = work(&mut encoder);
        self.add(encoder);
        done
    }

    /// Adds an encoder.
    pub(crate) fn add(&self, encoder: Encoder) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
    }
}
