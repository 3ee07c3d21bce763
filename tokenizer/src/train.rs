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
//! The result depends on nothing but the documents and the size asked for, not even on the order of the documents or the number of threads.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::bpe::Pair;
use crate::count::Counter;
use crate::quick::Quick;
use crate::scan::{Scanner, MARGIN};
use crate::{Error, Tokenizer, END_OF_TEXT, MAX_TOKEN_BYTES, MAX_VOCAB_SIZE, MIN_VOCAB_SIZE};

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

/// [`train`] on the [`documents`](crate::documents) of a file, which must be UTF-8.
pub fn train_file(path: impl AsRef<Path>, vocab_size: usize) -> Result<Tokenizer, Error> {
    train_files(&[path], vocab_size, 1)
}

/// [`train`] on the [`documents`](crate::documents) of files, which must be UTF-8. They are read part by part, so they may be larger than memory;
/// `threads` share the work.
pub fn train_files<P: AsRef<Path>>(paths: &[P], vocab_size: usize, threads: usize) -> Result<Tokenizer, Error> {
    check_vocab_size(vocab_size)?;
    let mut trainer = Trainer::new();
    for path in paths {
        trainer.add_file(path, threads)?;
    }
    trainer.finish(vocab_size)
}

fn check_vocab_size(vocab_size: usize) -> Result<(), Error> {
    match vocab_size {
        MIN_VOCAB_SIZE..=MAX_VOCAB_SIZE => Ok(()),
        _ => Err(Error::VocabSize(vocab_size)),
    }
}

/// Training step by step, for texts that do not fit into memory: add documents, then [`finish`](Trainer::finish). What it keeps is each distinct chunk
/// and how often it occurs.
#[derive(Clone, Debug, Default)]
pub struct Trainer {
    counter: Counter,
}

impl Trainer {
    /// A trainer that has seen nothing.
    pub fn new() -> Trainer {
        Trainer::default()
    }

    /// Counts the chunks of one document. No token will reach across its ends.
    pub fn add(&mut self, document: &[u8]) {
        self.counter.add(document);
    }

    /// Counts the chunks of documents, in `threads` if that is worth it.
    pub fn add_all<D: AsRef<[u8]> + Sync>(&mut self, documents: &[D], threads: usize) {
        /// A thread does so many bytes at a time.
        const PART: usize = 1 << 20;
        let mut parts: Vec<&[u8]> = Vec::new();
        for document in documents {
            let mut rest = document.as_ref();
            while rest.len() > 2 * PART {
                let Some(at) = (PART..rest.len() - 1).find(|&at| begins_chunk(rest, at)) else {
                    break;
                };
                let part;
                (part, rest) = rest.split_at(at);
                parts.push(part);
            }
            parts.push(rest);
        }
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let threads = threads.min(size / PART);
        if threads < 2 {
            return parts.iter().for_each(|part| self.counter.add(part));
        }
        let next = AtomicUsize::new(0);
        let work = |mut counter: Counter| {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                counter.add(part);
            }
            counter
        };
        let own = std::mem::take(&mut self.counter);
        self.counter = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| work(Counter::default()))).collect();
            let mut all = work(own);
            for other in others {
                match other.join() {
                    Ok(other) => all.add_counts(&other),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        });
    }

    /// Counts the chunks of the [`documents`](crate::documents) of a file, which must be UTF-8. If that fails, some may have been counted.
    pub fn add_file(&mut self, path: impl AsRef<Path>, threads: usize) -> Result<(), Error> {
        self.add_file_by_parts(path.as_ref(), threads, 1 << 24)
    }

    /// Reads `size` bytes at a time.
    fn add_file_by_parts(&mut self, path: &Path, threads: usize, size: usize) -> Result<(), Error> {
        let failed = |source| Error::Io {
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let mut documents = Documents::default();
        let mut text = Vec::new();
        let mut offset = 0;
        loop {
            let had = text.len();
            let read = file.by_ref().take(size as u64).read_to_end(&mut text).map_err(failed)?;
            let last = read == 0;
            let valid = match std::str::from_utf8(&text) {
                Ok(_) => text.len(),
                // The end of a character is still to come.
                Err(error) if error.error_len().is_none() && !last => error.valid_up_to(),
                Err(error) => {
                    return Err(Error::NotUtf8 {
                        path: path.into(),
                        offset: offset + error.valid_up_to(),
                    })
                }
            };
            let (parts, done) = documents.take(&text[..valid], last);
            self.add_all(&parts, threads);
            offset += done;
            text.drain(..done);
            if last {
                return Ok(());
            }
            debug_assert!(read > 0 && text.len() <= had + read);
        }
    }

    /// Learns a vocabulary of `vocab_size` tokens, as [`train`] does.
    pub fn finish(self, vocab_size: usize) -> Result<Tokenizer, Error> {
        check_vocab_size(vocab_size)?;
        let mut state = State::new(&self.counter);
        let mut merges = Vec::new();
        while merges.len() < vocab_size - MIN_VOCAB_SIZE {
            let Some(pair) = state.best() else { break };
            state.merge(pair);
            merges.push(pair);
        }
        Ok(Tokenizer::from_pairs(merges).expect("training makes valid merges"))
    }
}

/// Whether a chunk begins at a place, whatever stands around it: a space between letters. Where this does not tell, one may begin nevertheless.
fn begins_chunk(text: &[u8], at: usize) -> bool {
    matches!(text[at - 1..=at + 1], [before, b' ', after] if before.is_ascii_alphabetic() && after.is_ascii_alphabetic())
}

/// Whether the last character of a text is white space.
fn ends_in_space(text: &[u8]) -> bool {
    let last = text.len()
        - text
            .iter()
            .rev()
            .take_while(|&&byte| (0x80..0xC0).contains(&byte))
            .count();
    let last = std::str::from_utf8(&text[last.saturating_sub(1)..]);
    last.is_ok_and(|last| last.ends_with(char::is_whitespace))
}

/// Finds the [`documents`](crate::documents) of a text that comes in parts.
#[derive(Default)]
struct Documents {
    /// The document has begun: newlines are part of it.
    begun: bool,
    /// The next text begins within a line.
    within: bool,
}

impl Documents {
    /// Documents, and parts of documents that end where a chunk does; and how much of the text need not be shown again. The text goes on unless it is
    /// the `last` one.
    fn take<'a>(&mut self, text: &'a [u8], last: bool) -> (Vec<&'a [u8]>, usize) {
        let newline = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let mut parts = Vec::new();
        // Where the document goes on, and where the line begins.
        let (mut from, mut line) = (0, 0);
        loop {
            let end = text[line..].iter().position(|&byte| byte == b'\n').map(|at| line + at);
            if end.is_none() && !last {
                break;
            }
            let content = &text[line..end.unwrap_or(text.len())];
            let whole = line > 0 || !self.within;
            if whole && content.strip_suffix(b"\r").unwrap_or(content) == END_OF_TEXT.as_bytes() {
                self.end(&text[from..line], &mut parts);
                from = end.map_or(text.len(), |end| end + 1);
            }
            match end {
                Some(end) => line = end + 1,
                None => {
                    self.end(&text[from..], &mut parts);
                    return (parts, text.len());
                }
            }
        }
        // The document goes on, and so may its last chunk, and its last line may become one that ends it.
        let separator = format!("{END_OF_TEXT}\r");
        let sure = match separator.as_bytes().starts_with(&text[line..]) {
            true => line,
            false => text.len(),
        };
        if !self.begun {
            from += text[from..sure].iter().take_while(|&byte| newline(byte)).count();
        }
        let scanner = Scanner::new(&text[from..sure]);
        let mut starts = vec![0; 4 * MARGIN];
        let mut end = from;
        // The last chunk is found from its end: from a place where a chunk begins for sure.
        let near = (from + 1..sure.saturating_sub(1))
            .rev()
            .find(|&at| begins_chunk(text, at))
            .unwrap_or(from);
        let mut at = near - from;
        while from + at < sure {
            let (count, _) = scanner.fill(at, &mut starts);
            let [.., after] = starts[..count] else { break };
            // White space before it would be at the end of a text, which is another matter.
            let apart = starts[..count - 1].iter().map(|&start| from + at + start as usize);
            if let Some(start) = apart
                .rev()
                .find(|&start| start == from || !ends_in_space(&text[..start]))
            {
                end = start;
            }
            at += after as usize;
        }
        if end > from {
            self.begun = true;
            parts.push(&text[from..end]);
        }
        if let Some(before) = text[..end].last() {
            self.within = *before != b'\n';
        }
        (parts, end)
    }

    /// The end of a document.
    fn end<'a>(&mut self, text: &'a [u8], parts: &mut Vec<&'a [u8]>) {
        let newline = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let trailing = text.iter().rev().take_while(|&byte| newline(byte)).count();
        let text = &text[..text.len() - trailing];
        let leading = match self.begun {
            true => 0,
            false => text.iter().take_while(|&byte| newline(byte)).count(),
        };
        if leading < text.len() {
            parts.push(&text[leading..]);
        }
        self.begun = false;
    }
}

/// A distinct chunk: where its tokens are in [`State::tokens`], how many there are now, and how often it occurs.
struct Word {
    from: usize,
    length: u32,
    count: u64,
}

/// What is known of a pair.
#[derive(Default)]
struct Places {
    /// In how many places of the text it stands.
    count: u64,
    /// The words that have it, and perhaps some that had it.
    words: Vec<u32>,
}

type Pairs = HashMap<u64, Places, Quick>;

fn key((left, right): Pair) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

fn pair_of(key: u64) -> Pair {
    ((key >> 32) as u32, key as u32)
}

struct State {
    words: Vec<Word>,
    tokens: Vec<u32>,
    /// Length of each token in bytes.
    lengths: Vec<usize>,
    pairs: Pairs,
    /// Every pair that stands somewhere, with its count or one it had before, which can only be higher.
    queue: BinaryHeap<(u64, Reverse<u64>)>,
}

impl State {
    fn new(counter: &Counter) -> State {
        let mut pairs = Pairs::with_hasher(Quick::new());
        let (mut words, mut tokens) = (Vec::new(), Vec::new());
        counter.for_each(|chunk, count| {
            let number = words.len() as u32;
            words.push(Word {
                from: tokens.len(),
                length: chunk.len() as u32,
                count,
            });
            tokens.extend(chunk.iter().map(|&byte| u32::from(byte)));
            for pair in chunk.windows(2) {
                stand(&mut pairs, (pair[0].into(), pair[1].into()), count, number);
            }
        });
        let queue = pairs
            .iter()
            .map(|(&pair, places)| (places.count, Reverse(pair)))
            .collect();
        State {
            words,
            tokens,
            lengths: vec![1; 256],
            pairs,
            queue,
        }
    }

    /// The pair to be merged next.
    fn best(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.pairs.get(&pair).map_or(0, |places| places.count);
            if now < 2 || self.length(pair_of(pair)) > MAX_TOKEN_BYTES {
                continue;
            }
            if now == count {
                return Some(pair_of(pair));
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
        let places = self.pairs.remove(&key(pair)).unwrap_or_default();
        for number in places.words {
            let Word { from, length, count } = &mut self.words[number as usize];
            let tokens = &mut self.tokens[*from..*from + *length as usize];
            // tokens[..written] is done, tokens[read..] still to be read; what lies between is of no use any more.
            let (mut written, mut read) = (0, 0);
            while read < tokens.len() {
                if read + 1 < tokens.len() && (tokens[read], tokens[read + 1]) == pair {
                    if written > 0 {
                        let left = tokens[written - 1];
                        fall(&mut self.pairs, (left, pair.0), *count);
                        stand(&mut self.pairs, (left, token), *count, number);
                        new_pairs.push(key((left, token)));
                    }
                    if let Some(&right) = tokens.get(read + 2) {
                        fall(&mut self.pairs, (pair.1, right), *count);
                        stand(&mut self.pairs, (token, right), *count, number);
                        new_pairs.push(key((token, right)));
                    }
                    tokens[written] = token;
                    read += 2;
                } else {
                    tokens[written] = tokens[read];
                    read += 1;
                }
                written += 1;
            }
            *length = written as u32;
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
fn stand(pairs: &mut Pairs, pair: Pair, count: u64, word: u32) {
    let places = pairs.entry(key(pair)).or_default();
    places.count += count;
    if places.words.last() != Some(&word) {
        places.words.push(word);
    }
}

/// Takes a pair that is no more back out of the counts.
fn fall(pairs: &mut Pairs, pair: Pair, count: u64) {
    if let Some(places) = pairs.get_mut(&key(pair)) {
        places.count -= count;
        if places.count == 0 {
            pairs.remove(&key(pair));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents;

    #[test]
    fn parts_of_a_file_are_the_file() {
        let text = "\r\n\nOne's  text.\n\n  It goes on\t\t\nand on 12345, don't\u{3000}\u{3000}\u{a0}\n \nword… \u{1F600}!!\n\n\
            <|endoftext|>\n<|endoftext|>\r\n\n \nTwo <|endoftext|>\n<|endoftext|> no\n<|endoftext|>\r\r\nstill\n<|endoftext|>\nthree  \n\n<|endoftex";
        let path = std::env::temp_dir().join(format!("mamba-integer-tokenizer-parts-{}", std::process::id()));
        for end in [
            text.len(),
            text.len() - 8,
            text.len() - 9,
            text.len() - 11,
            text.len() - 40,
            60,
            3,
            0,
        ] {
            let text = &text[..text.floor_char_boundary(end)];
            for tail in ["", "<|endoftext|>", "\n<|endoftext|>\r", "  \n"] {
                let text = format!("{text}{tail}");
                std::fs::write(&path, &text).unwrap();
                let mut whole = Trainer::new();
                for document in documents(&text) {
                    whole.add(document.as_bytes());
                }
                let counts = |trainer: &Trainer| {
                    let mut counts = Vec::new();
                    trainer
                        .counter
                        .for_each(|chunk, count| counts.push((chunk.to_vec(), count)));
                    counts.sort();
                    counts
                };
                for size in (1..40).chain([64, 100, 1 << 20]) {
                    let mut parts = Trainer::new();
                    parts.add_file_by_parts(&path, 2, size).unwrap();
                    assert_eq!(counts(&parts), counts(&whole), "{size} bytes at a time: {text:?}");
                }
            }
        }
        std::fs::write(&path, b"abc\ndef \xff").unwrap();
        for size in [1, 2, 5, 100] {
            match Trainer::new().add_file_by_parts(&path, 1, size) {
                Err(Error::NotUtf8 { offset: 8, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        std::fs::write(&path, "abc\ndef é".as_bytes().strip_suffix(b"\xa9").unwrap()).unwrap();
        assert!(matches!(
            Trainer::new().add_file_by_parts(&path, 1, 3),
            Err(Error::NotUtf8 { offset: 8, .. })
        ));
        std::fs::remove_file(&path).unwrap();
    }
}
