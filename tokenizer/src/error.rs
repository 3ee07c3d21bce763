//! What can go wrong.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::format::Cause;
use crate::{MAX_VOCAB_SIZE, MIN_VOCAB_SIZE};

/// Why a call failed. Nothing of a failed call takes effect.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Training was asked for a vocabulary outside [`MIN_VOCAB_SIZE`]`..=`[`MAX_VOCAB_SIZE`].
    VocabSize(usize),
    /// The text to be encoded contains a special token for which [`AllowSpecial::Refuse`](crate::AllowSpecial::Refuse) was in force.
    Special {
        /// The special token.
        name: String,
        /// Where in the text, in bytes.
        offset: usize,
    },
    /// A token to be decoded is not in the vocabulary.
    UnknownToken {
        /// The token.
        id: u32,
        /// Ids are below this.
        vocab_size: usize,
    },
    /// The bytes are not a tokenizer file.
    Format {
        /// The line at fault, the first being 1.
        line: usize,
        /// What is wrong with it.
        cause: Cause,
    },
    /// Another maker's vocabulary cannot be taken, or this one not be put into another's form.
    Vocabulary(String),
    /// A file to train on is not UTF-8.
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte at fault.
        offset: usize,
    },
    /// A file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::VocabSize(size) => {
                write!(
                    f,
                    "a vocabulary of {size} tokens cannot be had: it must be {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}"
                )
            }
            Error::Special { name, offset } => {
                write!(f, "the text contains the special token {name} at byte {offset}")
            }
            Error::UnknownToken { id, vocab_size } => {
                write!(f, "token {id} is not in the vocabulary of {vocab_size} tokens")
            }
            Error::Format { line, cause } => write!(f, "not a tokenizer file: line {line}: {cause}"),
            Error::Vocabulary(cause) => write!(f, "this vocabulary is not possible here: {cause}"),
            Error::NotUtf8 { path, offset } => write!(f, "{}: not UTF-8 text (byte {offset})", path.display()),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
