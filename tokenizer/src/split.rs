//! The GPT-4 split: how text falls into chunks, which no token crosses.
//!
//! The chunks are those of tiktoken's `cl100k_base`, whose pattern is
//!
//! ```text
//! '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s
//! ```
//!
//! with the first alternative that matches taken at each position. In words, a chunk is the first of these that applies:
//!
//! 1. an English contraction, `'s 'd 'm 't 'll 've 're` in any case (U+017F, the long s, folds to s and counts);
//! 2. letters, with at most one character before them that is no letter, number, carriage return or newline;
//! 3. one to three numbers;
//! 4. characters that are no letters, numbers or white space, with at most one space before and all carriage returns and newlines after them;
//! 5. white space: all of it at the end of the text; else up to its last newline or carriage return; else all but its last character, which
//!    goes with what follows; else that one character.
//!
//! Rule 5 is tiktoken's of today. The older form of the pattern, `…|\s*[\r\n]+|\s+(?!\S)|\s+`, differs from it in one case: white space at the end
//! of the text that has a newline within it but does not end in one is two chunks there and one here.
//!
//! The split works on bytes. What is not valid UTF-8 is split as if each maximal invalid sequence were the one character U+FFFD that
//! [`String::from_utf8_lossy`] puts in its place, which is neither letter nor number nor white space.

use crate::unicode::Class;

/// The chunks of `text`, in order; together they are `text`.
pub fn chunks(text: &[u8]) -> Chunks<'_> {
    Chunks { rest: text }
}

/// Iterator over the chunks of a text, made by [`chunks`].
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Chunks<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let (chunk, rest) = self.rest.split_at(first_chunk(self.rest));
        self.rest = rest;
        Some(chunk)
    }
}

impl std::iter::FusedIterator for Chunks<'_> {}

/// Length of the chunk that `text`, which is not empty, begins with.
pub(crate) fn first_chunk(text: &[u8]) -> usize {
    let first = text[0];
    if first == b'\'' {
        if let Some(length) = contraction(text) {
            return length;
        }
    }
    let (class, length) = character(text);
    match class {
        Class::Letter => return end_of_run(text, length, Class::Letter),
        Class::Number => return numbers(text, length),
        Class::Other | Class::Space => {}
    }
    if is_newline(first) {
        return white_space(text);
    }
    match class_at(text, length) {
        Some(Class::Letter) => end_of_run(text, length, Class::Letter),
        _ if class == Class::Other => punctuation(text, length),
        Some(Class::Other) if first == b' ' => punctuation(text, length),
        _ => white_space(text),
    }
}

/// Where the last line of the white space at the end of a text begins, if there is a newline in it; else the end of the text. The older form of the
/// pattern splits there.
pub(crate) fn last_line_of_space(text: &[u8]) -> usize {
    let mut at = text.len();
    while at > 0 {
        let following = text[..at]
            .iter()
            .rev()
            .take(3)
            .take_while(|byte| (0x80..0xC0).contains(*byte))
            .count();
        let first = at.saturating_sub(following + 1);
        match character(&text[first..]) {
            (Class::Space, length) if first + length == at => {}
            _ => break,
        }
        if is_newline(text[first]) {
            return at;
        }
        at = first;
    }
    text.len()
}

/// Length of the contraction that `text`, which begins with an apostrophe, begins with.
pub(crate) fn contraction(text: &[u8]) -> Option<usize> {
    let second = text.get(1)?.to_ascii_lowercase();
    let third = text.get(2).map(u8::to_ascii_lowercase);
    match (second, third) {
        (b's' | b'd' | b'm' | b't', _) => Some(2),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) => Some(3),
        _ if text[1..].starts_with("\u{17f}".as_bytes()) => Some(3),
        _ => None,
    }
}

/// End of the numbers, three at most, of which the first ends at `at`.
fn numbers(text: &[u8], mut at: usize) -> usize {
    for _ in 0..2 {
        match character_at(text, at) {
            Some((Class::Number, length)) => at += length,
            _ => break,
        }
    }
    at
}

/// End of the punctuation that goes on at `at`, and of the newlines after it.
fn punctuation(text: &[u8], at: usize) -> usize {
    let end = end_of_run(text, at, Class::Other);
    end + text[end..].iter().take_while(|&&byte| is_newline(byte)).count()
}

/// Length of the chunk of white space that `text` begins with.
fn white_space(text: &[u8]) -> usize {
    let (mut end, mut last, mut after_newline) = (0, 0, 0);
    while let Some((Class::Space, length)) = character_at(text, end) {
        last = end;
        end += length;
        if is_newline(text[last]) {
            after_newline = end;
        }
    }
    if end == text.len() {
        end
    } else if after_newline > 0 {
        after_newline
    } else if last > 0 {
        last
    } else {
        end
    }
}

/// End of the characters of one class that begin at `at`.
#[inline]
fn end_of_run(text: &[u8], mut at: usize, class: Class) -> usize {
    while let Some((next, length)) = character_at(text, at) {
        if next != class {
            break;
        }
        at += length;
    }
    at
}

#[inline]
fn is_newline(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

#[inline]
fn class_at(text: &[u8], at: usize) -> Option<Class> {
    character_at(text, at).map(|(class, _)| class)
}

#[inline]
fn character_at(text: &[u8], at: usize) -> Option<(Class, usize)> {
    match text.get(at..) {
        Some(rest) if !rest.is_empty() => Some(character(rest)),
        _ => None,
    }
}

/// Class and length of the character that `text`, which is not empty, begins with.
#[inline]
fn character(text: &[u8]) -> (Class, usize) {
    if text[0] < 0x80 {
        return (Class::of(u32::from(text[0])), 1);
    }
    match decode(text) {
        (Some(code_point), length) => (Class::of(code_point), length),
        (None, length) => (Class::Other, length),
    }
}

/// The character beyond ASCII that `text` begins with and its length; or none and the length of the maximal invalid sequence, which is the longest
/// that begins a valid one, or one byte.
pub(crate) fn decode(text: &[u8]) -> (Option<u32>, usize) {
    let lead = text[0];
    // How many bytes follow the lead, and what the first of them may be; any further one is a plain continuation byte.
    let (following, mut allowed) = match lead {
        0xC2..=0xDF => (1, 0x80..=0xBF),
        0xE0 => (2, 0xA0..=0xBF),
        0xED => (2, 0x80..=0x9F),
        0xE1..=0xEF => (2, 0x80..=0xBF),
        0xF0 => (3, 0x90..=0xBF),
        0xF1..=0xF3 => (3, 0x80..=0xBF),
        0xF4 => (3, 0x80..=0x8F),
        _ => return (None, 1),
    };
    let mut code_point = u32::from(lead) & (0x3F >> following);
    for at in 1..=following {
        match text.get(at) {
            Some(byte) if allowed.contains(byte) => code_point = code_point << 6 | u32::from(byte & 0x3F),
            _ => return (None, at),
        }
        allowed = 0x80..=0xBF;
    }
    (Some(code_point), following + 1)
}
