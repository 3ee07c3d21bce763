//! Decoding token by token.

use crate::{Error, Tokenizer};

/// Turns tokens into text as they come, never splitting a character: the bytes of an unfinished one wait for the next token.
///
/// All that [`push`](DecodeStream::push) and [`finish`](DecodeStream::finish) return is together what [`String::from_utf8_lossy`] makes of the
/// decoded bytes.
///
/// ```
/// # use mamba_integer_tokenizer::{train, DecodeStream};
/// let tokenizer = train([""], 257)?;
/// let mut stream = DecodeStream::new(&tokenizer);
/// let parts: Vec<String> = "né".bytes().map(|byte| stream.push(byte.into())).collect::<Result<_, _>>()?;
/// assert_eq!(parts, ["n", "", "é"]);
/// assert_eq!(stream.finish(), "");
/// # Ok::<(), mamba_integer_tokenizer::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// What has come and not been returned: between calls, the beginning of a character.
    waiting: Vec<u8>,
}

impl<'a> DecodeStream<'a> {
    /// A stream at its beginning.
    pub fn new(tokenizer: &'a Tokenizer) -> DecodeStream<'a> {
        DecodeStream {
            tokenizer,
            waiting: Vec::new(),
        }
    }

    /// The text that the token completes. Invalid UTF-8 becomes U+FFFD. An unknown token is an error and changes nothing.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.waiting.extend_from_slice(self.tokenizer.token_bytes(id)?);
        let complete = self.waiting.len() - unfinished(&self.waiting);
        let text = String::from_utf8_lossy(&self.waiting[..complete]).into_owned();
        self.waiting.drain(..complete);
        Ok(text)
    }

    /// Ends the text: U+FFFD if it ended within a character. The stream is at its beginning again.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.waiting).into_owned();
        self.waiting.clear();
        text
    }
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    // It has three bytes at most, and only its first is no continuation byte.
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    match tail.iter().rposition(|byte| !(0x80..0xC0).contains(byte)) {
        Some(lead) => match std::str::from_utf8(&tail[lead..]) {
            Err(error) if error.error_len().is_none() => tail.len() - lead,
            _ => 0,
        },
        None => 0,
    }
}
