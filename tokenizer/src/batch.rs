//! Many texts by many threads, into one vector.

use std::collections::BTreeMap;
use std::mem::{take, MaybeUninit};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Error;

/// Bytes of text that a thread takes at a time: so few that their tokens are still in its cache when their place is known.
const PART: usize = 1 << 16;

/// The tokens of texts, one after the other, and how many there are up to the end of each.
#[derive(Default)]
pub(crate) struct Encoded {
    pub(crate) tokens: Vec<u32>,
    pub(crate) ends: Vec<usize>,
}

impl Encoded {
    /// For texts of so many bytes in all; it grows where they have more tokens than texts usually do.
    pub(crate) fn for_size(bytes: usize, texts: usize) -> Encoded {
        Encoded {
            tokens: Vec::with_capacity(bytes / 3 + 16),
            ends: Vec::with_capacity(texts),
        }
    }
}

/// What has been brought together, part by part in order.
struct Gathered<'a> {
    /// Parts that were done before an earlier one.
    early: BTreeMap<usize, Encoded>,
    /// The part that comes next.
    next: usize,
    /// Tokens of those before it.
    count: usize,
    ends: Vec<usize>,
    /// Where tokens have not yet found their place.
    room: &'a mut [MaybeUninit<u32>],
    /// The tokens for which there was no room.
    more: Vec<u32>,
    /// The part with the first error, so far.
    error: Option<(usize, Error)>,
}

impl<'a> Gathered<'a> {
    /// Adds part `at`. Gives the parts whose place is thereby known, with their places.
    fn add(&mut self, at: usize, part: Encoded) -> Vec<(&'a mut [MaybeUninit<u32>], Encoded)> {
        self.early.insert(at, part);
        let mut placed = Vec::new();
        while let Some(part) = self.early.remove(&self.next) {
            self.ends.extend(part.ends.iter().map(|end| self.count + end));
            self.count += part.tokens.len();
            self.next += 1;
            let room = take(&mut self.room);
            match room.split_at_mut_checked(part.tokens.len()) {
                Some((place, rest)) => {
                    self.room = rest;
                    placed.push((place, part));
                }
                // With no room left, all that follow come here too.
                None => self.more.extend_from_slice(&part.tokens),
            }
        }
        placed
    }
}

/// Calls `encode` for parts of `texts`, of `size` bytes in all, on `threads` threads. Each makes itself an encoder with `with` and uses it for all its parts.
///
/// The error is that of the first part that has one.
pub(crate) fn encode<T, E>(
    texts: &[T],
    size: usize,
    threads: usize,
    with: impl Fn(&mut dyn FnMut(&mut E)) + Sync,
    encode: impl Fn(&mut E, &[T], &mut Encoded) -> Result<(), Error> + Sync,
) -> Result<Encoded, Error>
where
    T: AsRef<[u8]> + Sync,
{
    let (mut parts, mut begin, mut length) = (Vec::new(), 0, 0);
    for (at, text) in texts.iter().enumerate() {
        length += text.as_ref().len();
        if length >= PART || at + 1 == texts.len() {
            parts.push(&texts[begin..=at]);
            (begin, length) = (at + 1, 0);
        }
    }
    let Encoded { mut tokens, ends } = Encoded::for_size(size, texts.len());
    let gathered = Mutex::new(Gathered {
        early: BTreeMap::new(),
        next: 0,
        count: 0,
        ends,
        room: tokens.spare_capacity_mut(),
        more: Vec::new(),
        error: None,
    });
    let claimed = AtomicUsize::new(0);
    let work = || {
        with(&mut |encoder| {
            let mut spare = Vec::new();
            loop {
                let at = claimed.fetch_add(1, Ordering::Relaxed);
                let Some(texts) = parts.get(at) else { return };
                let mut part: Encoded = spare.pop().unwrap_or_default();
                part.tokens.clear();
                part.ends.clear();
                let result = encode(encoder, texts, &mut part);
                let mut all = gathered.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = result {
                    if all.error.as_ref().is_none_or(|&(first, _)| at < first) {
                        all.error = Some((at, error));
                    }
                }
                let placed = all.add(at, part);
                drop(all);
                for (place, part) in placed {
                    for (to, &token) in place.iter_mut().zip(&part.tokens) {
                        to.write(token);
                    }
                    spare.push(part);
                }
            }
        });
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        work();
        for other in others {
            if let Err(panic) = other.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let Gathered {
        count,
        ends,
        more,
        error,
        ..
    } = gathered.into_inner().unwrap_or_else(PoisonError::into_inner);
    match error {
        Some((_, error)) => Err(error),
        None => {
            // SAFETY: the first `count - more.len()` elements are the places of parts, and a part is copied to its place before its thread ends.
            unsafe { tokens.set_len(count - more.len()) };
            tokens.extend(more);
            Ok(Encoded { tokens, ends })
        }
    }
}
