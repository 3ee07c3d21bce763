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

mod bpe;
mod decode;
mod error;
#[allow(unsafe_code)]
mod ffi;
mod format;
mod split;
mod train;
mod unicode;

use std::fmt;
use std::fs;
use std::path::Path;

use bpe::{Merger, Pair, PairTable};

pub use decode::DecodeStream;
pub use error::Error;
pub use format::Cause;
pub use split::{chunks, Chunks};
pub use train::{train, train_file, Trainer};
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
#[derive(Clone)]
pub struct Tokenizer {
    merges: Vec<Pair>,
    table: PairTable,
    /// The bytes of all tokens in the order of their ids, and where each token's begin. One more place follows: the end of the last.
    bytes: Vec<u8>,
    starts: Vec<usize>,
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
        Tokenizer::from_merges(format::read(file)?)
    }

    fn from_merges(merges: Vec<Pair>) -> Result<Tokenizer, Error> {
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
        bytes.extend_from_slice(END_OF_TEXT.as_bytes());
        starts.push(bytes.len());
        Ok(Tokenizer {
            merges,
            table,
            bytes,
            starts,
        })
    }

    /// Writes the tokenizer file. It appears complete or not at all, even if the machine fails.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        format::write_atomically(path.as_ref(), &self.to_bytes())
    }

    /// The contents of the tokenizer file. Equal tokenizers have equal files.
    pub fn to_bytes(&self) -> Vec<u8> {
        format::write(&self.merges)
    }

    /// The merges: pair i becomes token 256 + i.
    pub fn merges(&self) -> &[(u32, u32)] {
        &self.merges
    }

    /// Number of tokens: the bytes, the merges and the special token.
    pub fn vocab_size(&self) -> usize {
        MIN_VOCAB_SIZE + self.merges.len()
    }

    /// The id of [`END_OF_TEXT`], the last one.
    pub fn eot(&self) -> u32 {
        256 + self.merges.len() as u32
    }

    /// The tokens of a text.
    ///
    /// The one error is [`Error::Special`], which `special` can rule out.
    pub fn encode(&self, text: &str, special: AllowSpecial) -> Result<Vec<u32>, Error> {
        self.encode_bytes(text.as_bytes(), special)
    }

    /// The tokens of any bytes: those of [`encode`](Tokenizer::encode) if they are UTF-8. [`chunks`] says how others are split.
    pub fn encode_bytes(&self, text: &[u8], special: AllowSpecial) -> Result<Vec<u32>, Error> {
        let mut merger = Merger::new(&self.table);
        let mut tokens = Vec::with_capacity(text.len() / 3);
        let mut rest = text;
        if special != AllowSpecial::AsText {
            while let Some(at) = find_special(rest) {
                if special == AllowSpecial::Refuse {
                    return Err(Error::Special { offset: at });
                }
                encode_ordinary(&mut merger, &rest[..at], &mut tokens);
                tokens.push(self.eot());
                rest = &rest[at + END_OF_TEXT.len()..];
            }
        }
        encode_ordinary(&mut merger, rest, &mut tokens);
        Ok(tokens)
    }

    /// The bytes that the tokens stand for; of the special token, its text.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id)?);
        }
        Ok(bytes)
    }

    /// The bytes that one token stands for.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], Error> {
        match self.starts.get(id as usize..) {
            Some([start, end, ..]) => Ok(&self.bytes[*start..*end]),
            _ => Err(Error::UnknownToken {
                id,
                vocab_size: self.vocab_size(),
            }),
        }
    }
}

impl PartialEq for Tokenizer {
    fn eq(&self, other: &Tokenizer) -> bool {
        self.merges == other.merges
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

fn encode_ordinary(merger: &mut Merger<'_>, text: &[u8], tokens: &mut Vec<u32>) {
    for chunk in chunks(text) {
        merger.encode(chunk, tokens);
    }
}

/// Where the special token first stands in a text.
fn find_special(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|&byte| byte == END_OF_TEXT.as_bytes()[0]) {
        if text[from + at..].starts_with(END_OF_TEXT.as_bytes()) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}
