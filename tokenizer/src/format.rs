//! The file form of a tokenizer.
//!
//! ```text
//! mamba-integer-bpe 1
//! pattern gpt4
//! merges 3
//! 104 101
//! 108 108
//! 256 257
//! special 1
//! <|endoftext|>
//! ```
//!
//! Line by line: the form and its version; the split; the number of merges; for each merge the ids of the pair, whose token has the id 256 + the
//! merge's place in the list; the number of special tokens and their texts, in the order of their ids. Numbers are decimal, between single spaces;
//! every line, the last too, ends in one newline.
//!
//! Equal tokenizers have equal files: whatever could be written in another way (`+1`, `01`, CRLF, a missing last newline) is refused.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bpe::Pair;
use crate::{Error, END_OF_TEXT, MAX_MERGES, MAX_TOKEN_BYTES};

const FORM: &str = "mamba-integer-bpe 1";
const PATTERN: &str = "pattern gpt4";
const SPECIAL: &str = "special 1";

/// What is wrong with a line of a tokenizer file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The file ends before this line, or within it.
    Missing,
    /// This should stand there, and something else does.
    Expected(&'static str),
    /// The number of merges is above [`MAX_MERGES`].
    TooManyMerges,
    /// The file is too short for its number of merges.
    TooShort,
    /// A merge of a token that is not made by an earlier line.
    UnknownToken(u32),
    /// A pair that an earlier line merges already.
    Duplicate(u32, u32),
    /// The merge makes a token longer than [`MAX_TOKEN_BYTES`].
    TooLong,
    /// Something follows the last line.
    Trailing,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Missing => write!(f, "the file ends here"),
            Cause::Expected(what) => write!(f, "`{what}` expected"),
            Cause::TooManyMerges => write!(f, "more than {MAX_MERGES} merges"),
            Cause::TooShort => write!(f, "the file is too short for that many merges"),
            Cause::UnknownToken(id) => write!(f, "token {id} is not made by an earlier line"),
            Cause::Duplicate(left, right) => write!(f, "the pair {left} {right} is merged by an earlier line"),
            Cause::TooLong => write!(f, "the token is longer than {MAX_TOKEN_BYTES} bytes"),
            Cause::Trailing => write!(f, "something follows the last line"),
        }
    }
}

/// The file of the tokenizer with these merges.
pub(crate) fn write(merges: &[Pair]) -> Vec<u8> {
    let mut text = format!("{FORM}\n{PATTERN}\nmerges {}\n", merges.len());
    for (left, right) in merges {
        text += &format!("{left} {right}\n");
    }
    text += &format!("{SPECIAL}\n{END_OF_TEXT}\n");
    text.into_bytes()
}

/// The merges of a file as far as its form goes; whether they make sense together is for [`Tokenizer::from_pairs`](crate::Tokenizer) to say.
pub(crate) fn read(file: &[u8]) -> Result<Vec<Pair>, Error> {
    let mut lines = Lines { rest: file, line: 0 };
    lines.expect(FORM)?;
    lines.expect(PATTERN)?;
    let count = lines
        .next()?
        .strip_prefix(b"merges ")
        .and_then(number)
        .ok_or_else(|| lines.error(Cause::Expected("merges NUMBER")))? as usize;
    if count > MAX_MERGES {
        return Err(lines.error(Cause::TooManyMerges));
    }
    // A merge takes four bytes or more. Memory is only taken for what can be there.
    if count > lines.rest.len() / 4 {
        return Err(lines.error(Cause::TooShort));
    }
    let mut merges = Vec::with_capacity(count);
    for _ in 0..count {
        merges.push(pair(lines.next()?).ok_or_else(|| lines.error(Cause::Expected("LEFT RIGHT")))?);
    }
    lines.expect(SPECIAL)?;
    lines.expect(END_OF_TEXT)?;
    if !lines.rest.is_empty() {
        lines.line += 1;
        return Err(lines.error(Cause::Trailing));
    }
    Ok(merges)
}

/// The line of merge number `index`.
pub(crate) fn line_of_merge(index: usize) -> usize {
    index + 4
}

/// The lines of a file, one after the other.
struct Lines<'a> {
    rest: &'a [u8],
    /// The line read last.
    line: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a [u8], Error> {
        self.line += 1;
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or_else(|| self.error(Cause::Missing))?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(line)
    }

    fn expect(&mut self, text: &'static str) -> Result<(), Error> {
        match self.next()? == text.as_bytes() {
            true => Ok(()),
            false => Err(self.error(Cause::Expected(text))),
        }
    }

    fn error(&self, cause: Cause) -> Error {
        Error::Format { line: self.line, cause }
    }
}

fn pair(line: &[u8]) -> Option<Pair> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    Some((number(&line[..space])?, number(&line[space + 1..])?))
}

/// A decimal number in its one form: digits, and no zero before others.
fn number(digits: &[u8]) -> Option<u32> {
    match digits {
        [] | [b'0', _, ..] => None,
        _ => digits.iter().try_fold(0u32, |number, &byte| match byte {
            b'0'..=b'9' => number.checked_mul(10)?.checked_add(u32::from(byte - b'0')),
            _ => None,
        }),
    }
}

/// Puts a file in its place at once: whoever opens the path, even after a crash, finds the old contents or the new ones.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Io {
        path: path.into(),
        source,
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    // The number tells threads apart, the process id processes, and `create_new` whatever else might be there.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(
        ".{}.{}.tmp",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    ));
    let temporary = path.with_file_name(temporary_name);

    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .map_err(failed)?;
    let written = file
        .write_all(contents)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        _ = fs::remove_file(&temporary);
        return Err(failed(error));
    }
    sync_directory(path).map_err(failed)
}

/// Makes the new name durable.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
