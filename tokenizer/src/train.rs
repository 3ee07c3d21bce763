//! Training: which merges a vocabulary has.
//!
//! Every document is split into chunks. Then, again and again, the most frequent pair of neighbouring tokens becomes a new token, everywhere, from
//! left to right:
//!
//! - a pair counts once for each place where it stands, overlapping or not (`aaa` has the pair `aa` twice);
//! - of several pairs with the highest count, the one with the smaller left id is taken, and of those the one with the smaller right id;
//! - a pair whose token would be longer than [`MAX_TOKEN_BYTES`] is not taken;
//! - training ends when the vocabulary is complete, or when no pair is left that stands in two places: the vocabulary is smaller then.
//!
//! The result depends on nothing but the documents and the size asked for, not even on the order of the documents.

use std::collections::{BinaryHeap, HashMap};
use std::path::Path;
use std::{cmp::Reverse, fs};

use crate::bpe::Pair;
use crate::split::chunks;
use crate::{documents, Error, Tokenizer, MAX_TOKEN_BYTES, MAX_VOCAB_SIZE, MIN_VOCAB_SIZE};

/// Learns a vocabulary of `vocab_size` tokens, the bytes and the special token included, from documents.
///
/// The vocabulary is smaller if the documents do not yield as many merges; see [`Tokenizer::vocab_size`].
pub fn train<D: AsRef<[u8]>>(documents: impl IntoIterator<Item = D>, vocab_size: usize) -> Result<Tokenizer, Error> {
    let mut trainer = Trainer::new();
    for document in documents {
        trainer.add(document.as_ref());
    }
    trainer.finish(vocab_size)
}

/// [`train`] on the [`documents`] of a file, which must be UTF-8.
pub fn train_file(path: impl AsRef<Path>, vocab_size: usize) -> Result<Tokenizer, Error> {
    let path = path.as_ref();
    check_vocab_size(vocab_size)?;
    let bytes = fs::read(path).map_err(|source| Error::Io {
        path: path.into(),
        source,
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|error| Error::NotUtf8 {
        path: path.into(),
        offset: error.valid_up_to(),
    })?;
    train(documents(text), vocab_size)
}

fn check_vocab_size(vocab_size: usize) -> Result<(), Error> {
    match vocab_size {
        MIN_VOCAB_SIZE..=MAX_VOCAB_SIZE => Ok(()),
        _ => Err(Error::VocabSize(vocab_size)),
    }
}

/// Training step by step, for texts that do not fit into memory: [`add`](Trainer::add) documents, then [`finish`](Trainer::finish).
#[derive(Clone, Debug, Default)]
pub struct Trainer {
    /// How often each chunk of two or more bytes occurs.
    chunks: HashMap<Box<[u8]>, u64>,
}

impl Trainer {
    /// A trainer that has seen nothing.
    pub fn new() -> Trainer {
        Trainer::default()
    }

    /// Counts the chunks of one document. No token will reach across its ends.
    pub fn add(&mut self, document: &[u8]) {
        for chunk in chunks(document).filter(|chunk| chunk.len() > 1) {
            match self.chunks.get_mut(chunk) {
                Some(count) => *count += 1,
                None => _ = self.chunks.insert(chunk.into(), 1),
            }
        }
    }

    /// Learns a vocabulary of `vocab_size` tokens, as [`train`] does.
    pub fn finish(self, vocab_size: usize) -> Result<Tokenizer, Error> {
        check_vocab_size(vocab_size)?;
        let mut state = State::new(self.chunks);
        let mut merges = Vec::new();
        while merges.len() < vocab_size - MIN_VOCAB_SIZE {
            let Some(pair) = state.best() else { break };
            state.merge(pair);
            merges.push(pair);
        }
        Ok(Tokenizer::from_merges(merges).expect("training makes valid merges"))
    }
}

/// A distinct chunk: its tokens so far, and how often it occurs.
struct Word {
    tokens: Vec<u32>,
    count: u64,
}

/// What is known of a pair.
#[derive(Default)]
struct Places {
    /// In how many places of the text it stands.
    count: u64,
    /// The words that have it, and perhaps some that had it.
    words: Vec<usize>,
}

struct State {
    words: Vec<Word>,
    /// Length of each token in bytes.
    lengths: Vec<usize>,
    pairs: HashMap<Pair, Places>,
    /// Every pair that stands somewhere, with its count or one it had before, which can only be higher.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl State {
    fn new(chunks: HashMap<Box<[u8]>, u64>) -> State {
        let mut pairs: HashMap<Pair, Places> = HashMap::new();
        let mut words = Vec::with_capacity(chunks.len());
        for (chunk, count) in chunks {
            let tokens: Vec<u32> = chunk.iter().map(|&byte| u32::from(byte)).collect();
            for pair in tokens.windows(2) {
                stand(&mut pairs, (pair[0], pair[1]), count, words.len());
            }
            words.push(Word { tokens, count });
        }
        let queue = pairs
            .iter()
            .map(|(&pair, places)| (places.count, Reverse(pair)))
            .collect();
        State {
            words,
            lengths: vec![1; 256],
            pairs,
            queue,
        }
    }

    /// The pair to be merged next.
    fn best(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.pairs.get(&pair).map_or(0, |places| places.count);
            if now < 2 || self.length(pair) > MAX_TOKEN_BYTES {
                continue;
            }
            if now == count {
                return Some(pair);
            }
            self.queue.push((now, Reverse(pair)));
        }
        None
    }

    fn length(&self, (left, right): Pair) -> usize {
        self.lengths[left as usize] + self.lengths[right as usize]
    }

    /// Makes a pair a new token in every word.
    fn merge(&mut self, pair: Pair) {
        let token = self.lengths.len() as u32;
        self.lengths.push(self.length(pair));
        let mut new_pairs = Vec::new();
        // Without its entry the pair is no more counted, even where it is its own neighbour.
        let places = self.pairs.remove(&pair).unwrap_or_default();
        for index in places.words {
            let Word { tokens, count } = &mut self.words[index];
            // tokens[..written] is done, tokens[read..] still to be read; what lies between is of no use any more.
            let (mut written, mut read) = (0, 0);
            while read < tokens.len() {
                if read + 1 < tokens.len() && (tokens[read], tokens[read + 1]) == pair {
                    if written > 0 {
                        let left = tokens[written - 1];
                        fall(&mut self.pairs, (left, pair.0), *count);
                        stand(&mut self.pairs, (left, token), *count, index);
                        new_pairs.push((left, token));
                    }
                    if let Some(&right) = tokens.get(read + 2) {
                        fall(&mut self.pairs, (pair.1, right), *count);
                        stand(&mut self.pairs, (token, right), *count, index);
                        new_pairs.push((token, right));
                    }
                    tokens[written] = token;
                    read += 2;
                } else {
                    tokens[written] = tokens[read];
                    read += 1;
                }
                written += 1;
            }
            tokens.truncate(written);
        }
        new_pairs.sort_unstable();
        new_pairs.dedup();
        for pair in new_pairs {
            if let Some(places) = self.pairs.get(&pair) {
                self.queue.push((places.count, Reverse(pair)));
            }
        }
    }
}

/// Counts a pair in a word.
fn stand(pairs: &mut HashMap<Pair, Places>, pair: Pair, count: u64, word: usize) {
    let places = pairs.entry(pair).or_default();
    places.count += count;
    if places.words.last() != Some(&word) {
        places.words.push(word);
    }
}

/// Takes a pair that is no more back out of the counts.
fn fall(pairs: &mut HashMap<Pair, Places>, pair: Pair, count: u64) {
    if let Some(places) = pairs.get_mut(&pair) {
        places.count -= count;
        if places.count == 0 {
            pairs.remove(&pair);
        }
    }
}
