//! The tokenizer of Mamba-Integer: byte-level BPE with the GPT-4 split.
//!
//! - [`train`] learns a [`Tokenizer`] from documents, [`Tokenizer::load`] reads one from a file.
//! - [`Tokenizer::encode`] turns text into tokens and [`Tokenizer::decode`] tokens into bytes. Any text and any bytes come back as they were.
//! - [`DecodeStream`] decodes token by token without ever splitting a character.
//!
//! Ids: 0 to 255 are the bytes, 256 + i is merge i, and the special token [`END_OF_TEXT`] comes last. A vocabulary of n merges has n + 257 tokens.
//!
//! ```
//! use mamba_integer_tokenizer::{train, AllowSpecial};
//!
//! let tokenizer = train(["low lower lowest"], 260)?;
//! let tokens = tokenizer.encode("lower", AllowSpecial::Refuse)?;
//! assert_eq!(tokens, [257, 101, 114]); // low e r
//! assert_eq!(tokenizer.decode(&tokens)?, b"lower");
//! # Ok::<(), mamba_integer_tokenizer::Error>(())
//! ```
//!
//! A tokenizer does not change once it is made; threads may share it.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

#[allow(unsafe_code)]
mod batch;
mod bpe;
pub mod byte_level;
#[allow(unsafe_code)]
mod cache;
mod count;
mod decode;
mod error;
#[allow(unsafe_code)]
mod ffi;
mod foreign;
mod format;
mod huggingface;
mod json;
mod key;
mod quick;
#[allow(unsafe_code)]
mod scan;
mod special;
mod split;
mod train;
mod unicode;

use std::fmt;
use std::fs;
use std::path::Path;

use batch::Encoded;
use bpe::{Pair, PairTable};
use cache::{Encoder, Pool, Words};
use foreign::Numbering;
use special::Specials;

pub use decode::DecodeStream;
pub use error::Error;
pub use format::Cause;
pub use split::{chunks, Chunks};
pub use train::{train, train_file, train_files, Trainer};
pub use unicode::UNICODE_VERSION;

/// The text of the special token, which stands between documents.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// No tokenizer has more merges.
pub const MAX_MERGES: usize = 1 << 20;
/// No merge makes a token of more bytes.
pub const MAX_TOKEN_BYTES: usize = 256;
/// Size of the vocabulary without merges.
pub const MIN_VOCAB_SIZE: usize = 256 + 1;
/// Size of the largest vocabulary.
pub const MAX_VOCAB_SIZE: usize = MIN_VOCAB_SIZE + MAX_MERGES;

/// The documents of a training or evaluation text: what stands between lines `<|endoftext|>`, without the newlines around it.
///
/// Such a line may end in CRLF, and then carriage returns around a document are left out as newlines are. Empty documents are left out.
///
/// ```
/// # use mamba_integer_tokenizer::documents;
/// let text = "One.\nTwo.\n<|endoftext|>\n\nThree.\n<|endoftext|>\n";
/// assert_eq!(documents(text).collect::<Vec<_>>(), ["One.\nTwo.", "Three."]);
/// ```
pub fn documents(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut line_start = 0;
        for line in text.split_inclusive('\n') {
            let line_end = line_start + line.len();
            let line = line.strip_suffix('\n').unwrap_or(line);
            if line.strip_suffix('\r').unwrap_or(line) == END_OF_TEXT {
                rest = Some(&text[line_end..]);
                return Some(&text[..line_start]);
            }
            line_start = line_end;
        }
        rest = None;
        Some(text)
    })
    .map(|document| document.trim_matches(['\r', '\n']))
    .filter(|document| !document.is_empty())
}

/// What [`Tokenizer::encode`] does with [`END_OF_TEXT`] in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowSpecial {
    /// It is an error: text from outside must not end a document unnoticed.
    #[default]
    Refuse,
    /// It becomes the special token.
    All,
    /// It is text like any other.
    AsText,
}

/// A vocabulary: it encodes text as tokens and decodes tokens.
pub struct Tokenizer {
    /// Empty if there is a numbering.
    merges: Vec<Pair>,
    /// In ranks: numbers of tokens in the order in which merges make them.
    table: PairTable,
    words: Words,
    /// The bytes of all tokens but the special ones, by rank, and where each token's begin. One more place follows: the end of the last.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    special: Specials,
    /// None if ids are ranks.
    numbering: Option<Box<Numbering>>,
    older_pattern: bool,
    pool: Pool,
}

impl Tokenizer {
    /// Reads a tokenizer file.
    pub fn load(path: impl AsRef<Path>) -> Result<Tokenizer, Error> {
        let path = path.as_ref();
        let file = fs::read(path).map_err(|source| Error::Io {
            path: path.into(),
            source,
        })?;
        Tokenizer::from_bytes(&file)
    }

    /// From the contents of a tokenizer file. They may be of any origin: what is not a tokenizer file is an error.
    pub fn from_bytes(file: &[u8]) -> Result<Tokenizer, Error> {
        Tokenizer::from_pairs(format::read(file)?)
    }

    fn from_pairs(merges: Vec<Pair>) -> Result<Tokenizer, Error> {
        let mut table = PairTable::with_capacity(merges.len());
        let mut bytes: Vec<u8> = (0..=255).collect();
        let mut starts: Vec<usize> = (0..=256).collect();
        for (index, &(left, right)) in merges.iter().enumerate() {
            let refuse = |cause| {
                Err(Error::Format {
                    line: format::line_of_merge(index),
                    cause,
                })
            };
            let id = 256 + index as u32;
            if let Some(unknown) = [left, right].into_iter().find(|&part| part >= id) {
                return refuse(Cause::UnknownToken(unknown));
            }
            if !table.insert((left, right), id) {
                return refuse(Cause::Duplicate(left, right));
            }
            for part in [left as usize, right as usize] {
                bytes.extend_from_within(starts[part]..starts[part + 1]);
            }
            if bytes.len() - starts[id as usize] > MAX_TOKEN_BYTES {
                return refuse(Cause::TooLong);
            }
            starts.push(bytes.len());
        }
        let special = Specials::new(vec![(END_OF_TEXT.into(), 256 + merges.len() as u32)]);
        let words = Words::of(&table, starts.windows(2).map(|bounds| &bytes[bounds[0]..bounds[1]]));
        let tokenizer = Tokenizer {
            merges,
            table,
            words,
            bytes,
            starts,
            special,
            numbering: None,
            older_pattern: false,
            pool: Pool::default(),
        };
        tokenizer.pool.add(tokenizer.encoder());
        Ok(tokenizer)
    }

    /// A new encoder.
    fn encoder(&self) -> Encoder {
        let ids = self.numbering.as_ref().map(|numbering| &numbering.ids[..]);
        let words = self.words.ranks().iter().map(|&rank| {
            let [start, end] = [0, 1].map(|next| self.starts[rank as usize + next]);
            (&self.bytes[start..end], ids.map_or(rank, |ids| ids[rank as usize]))
        });
        Encoder::new(self.vocab_size(), words)
    }

    /// Writes the tokenizer file. It appears complete or not at all, even if the machine fails.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        format::write_atomically(path.as_ref(), &self.to_bytes()?)
    }

    /// The contents of the tokenizer file. Equal tokenizers have equal files. An error if the tokens are numbered in another way than this crate does,
    /// which only those of other makers can be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        match (&self.numbering, self.older_pattern) {
            (None, false) => Ok(format::write(&self.merges)),
            (None, true) => Err(Error::Vocabulary("it splits by the older form of the pattern".into())),
            (Some(_), _) => Err(Error::Vocabulary(
                "its tokens are not numbered as a tokenizer file has them: bytes, merges, <|endoftext|>".into(),
            )),
        }
    }

    /// The merges: pair i becomes token 256 + i. None if the tokens are numbered in another way; then there are still
    /// [`rules`](Tokenizer::rules).
    pub fn merges(&self) -> &[(u32, u32)] {
        &self.merges
    }

    /// Number of ids: one more than the largest, special tokens included.
    pub fn vocab_size(&self) -> usize {
        let ordinary = self
            .numbering
            .as_ref()
            .map_or(self.starts.len() - 1, |numbering| numbering.ranks.len());
        let special = self.special.tokens().iter().map(|&(_, id)| id as usize + 1).max();
        ordinary.max(special.unwrap_or(0))
    }

    /// The id of [`END_OF_TEXT`], the last one in a tokenizer of this crate. `u32::MAX` if another maker's tokenizer has no such token.
    pub fn eot(&self) -> u32 {
        self.special(END_OF_TEXT).unwrap_or(u32::MAX)
    }

    /// The id of a special token.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials()
            .iter()
            .find(|(other, _)| other == name)
            .map(|&(_, id)| id)
    }

    /// The special tokens: names and ids.
    pub fn specials(&self) -> &[(String, u32)] {
        self.special.tokens()
    }

    /// The tokens of a text.
    ///
    /// The one error is [`Error::Special`], which `special` can rule out.
    pub fn encode(&self, text: &str, special: AllowSpecial) -> Result<Vec<u32>, Error> {
        self.encode_bytes(text.as_bytes(), special)
    }

    /// The tokens of any bytes: those of [`encode`](Tokenizer::encode) if they are UTF-8. [`chunks`] says how others are split.
    pub fn encode_bytes(&self, text: &[u8], special: AllowSpecial) -> Result<Vec<u32>, Error> {
        self.encode_each(text, &vec![special; self.specials().len()])
    }

    /// As [`encode_bytes`](Tokenizer::encode_bytes), with a policy for each of the [`specials`](Tokenizer::specials).
    pub fn encode_each(&self, text: &[u8], policy: &[AllowSpecial]) -> Result<Vec<u32>, Error> {
        let mut tokens = Vec::with_capacity(text.len() / 3 + 16);
        self.pool.with(
            || self.encoder(),
            |encoder| self.encode_with(encoder, text, policy, &mut tokens),
        )?;
        Ok(tokens)
    }

    /// The tokens of many texts, one after the other, and how many there are up to the end of each. `threads` share the work, if it is worth it.
    ///
    /// An error is that of the first text that has one.
    pub fn encode_batch<T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        policy: &[AllowSpecial],
        threads: usize,
    ) -> Result<(Vec<u32>, Vec<usize>), Error> {
        /// Bytes below which a thread costs more than it saves.
        const WORTH: usize = 1 << 18;
        let size: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        let encode = |encoder: &mut Encoder, texts: &[T], to: &mut Encoded| {
            texts.iter().try_for_each(|text| {
                self.encode_with(encoder, text.as_ref(), policy, &mut to.tokens)?;
                to.ends.push(to.tokens.len());
                Ok(())
            })
        };
        let threads = threads.min(size / WORTH);
        let all = if threads < 2 {
            let mut all = Encoded::for_size(size, texts.len());
            self.pool
                .with(|| self.encoder(), |encoder| encode(encoder, texts, &mut all))?;
            all
        } else {
            let with = |work: &mut dyn FnMut(&mut Encoder)| self.pool.with(|| self.encoder(), work);
            batch::encode(texts, size, threads, with, encode)?
        };
        Ok((all.tokens, all.ends))
    }

    fn encode_with(
        &self,
        encoder: &mut Encoder,
        text: &[u8],
        policy: &[AllowSpecial],
        tokens: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let ids = self.numbering.as_ref().map(|numbering| numbering.other_ids());
        let mut from = 0;
        while let Some((at, length, id)) = self.special.find(&text[from..], from, policy)? {
            self.encode_ordinary(encoder, ids, &text[from..from + at], tokens);
            tokens.push(id);
            from += at + length;
        }
        self.encode_ordinary(encoder, ids, &text[from..], tokens);
        Ok(())
    }

    fn encode_ordinary(&self, encoder: &mut Encoder, ids: Option<&[u32]>, text: &[u8], tokens: &mut Vec<u32>) {
        let (text, end) = match self.older_pattern {
            true => text.split_at(split::last_line_of_space(text)),
            false => (text, &[][..]),
        };
        encoder.encode(&self.table, ids, text, tokens);
        encoder.encode(&self.table, ids, end, tokens);
    }

    /// The same tokenizer, with the split that many files of other makers name: the older form of the pattern, for which see [`chunks`].
    pub fn with_older_pattern(mut self) -> Tokenizer {
        self.older_pattern = true;
        self
    }

    /// Whether it splits by the older form of the pattern.
    pub fn has_older_pattern(&self) -> bool {
        self.older_pattern
    }

    /// The bytes that the tokens stand for; of the special token, its text.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id)?);
        }
        Ok(bytes)
    }

    /// Where in `text` the characters of each of its tokens begin and end, counted in characters. A token that has only some bytes of a character has
    /// all of it.
    ///
    /// An error if there is an unknown token among `tokens`; if they are not those of `text`, the result means nothing.
    pub fn offsets(&self, text: &[u8], tokens: &[u32]) -> Result<Vec<(usize, usize)>, Error> {
        let begins = |at: usize| text.get(at).is_some_and(|byte| !(0x80..0xC0).contains(byte));
        let (mut at, mut before) = (0, 0);
        tokens
            .iter()
            .map(|&token| {
                let length = self.token_bytes(token)?.len();
                let first = before - usize::from(!begins(at) && before > 0);
                before += (at..at + length).filter(|&at| begins(at)).count();
                at += length;
                Ok((first, before))
            })
            .collect()
    }

    /// The bytes that one token stands for.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], Error> {
        let rank = match &self.numbering {
            None => id,
            Some(numbering) => *numbering.ranks.get(id as usize).unwrap_or(&Numbering::NO_TOKEN),
        };
        if let Some([start, end, ..]) = self.starts.get(rank as usize..) {
            return Ok(&self.bytes[*start..*end]);
        }
        match self.specials().iter().find(|&&(_, special)| special == id) {
            Some((name, _)) => Ok(name.as_bytes()),
            None => Err(Error::UnknownToken {
                id,
                vocab_size: self.vocab_size(),
            }),
        }
    }
}

impl Clone for Tokenizer {
    fn clone(&self) -> Tokenizer {
        Tokenizer {
            merges: self.merges.clone(),
            table: self.table.clone(),
            words: self.words.clone(),
            bytes: self.bytes.clone(),
            starts: self.starts.clone(),
            special: self.special.clone(),
            numbering: self.numbering.clone(),
            older_pattern: self.older_pattern,
            pool: Pool::default(),
        }
    }
}

impl PartialEq for Tokenizer {
    fn eq(&self, other: &Tokenizer) -> bool {
        fn by_id(of: &Tokenizer) -> Vec<(u32, &[u8])> {
            let mut tokens: Vec<_> = of.ordinary().collect();
            tokens.sort_unstable();
            tokens
        }
        by_id(self) == by_id(other)
            && self.rules().eq(other.rules())
            && self.specials() == other.specials()
            && self.older_pattern == other.older_pattern
    }
}

impl Eq for Tokenizer {}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}
