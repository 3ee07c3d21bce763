//! What a proof claims, and of which model: section 6 of spec/PROTOCOL.md. Everything here is checked before any cryptography.

use mamba_integer_tokenizer::{AllowSpecial, Tokenizer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::shape::ModelShape;
use crate::Error;

pub const PROTOCOL: u32 = 1;
pub const SPEC: u32 = 1;
/// log2 of the steps of a segment.
pub const LOG_STEPS: std::ops::RangeInclusive<u8> = 3..=9;
/// What a verifier holds in memory at once grows with the segments.
const MAX_SEGMENTS: usize = 64;
const MAX_TOKENS: usize = MAX_SEGMENTS << 9;

/// The public facts about a registered model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub protocol: u32,
    pub spec: u32,
    pub name: String,
    pub model_digest: String,
    /// The tokenizer file, as in the model file.
    pub tokenizer: String,
    pub shape: ModelShape,
    /// Root of the Model oracle, 64 lowercase hexadecimal digits.
    pub root: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Q16; 0 is greedy.
    pub temperature: u32,
    /// 0 is off.
    pub top_k: u32,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// `<|endoftext|>` was chosen.
    End,
    /// The limit of tokens, or a stop string, was reached.
    Limit,
}

/// What a proof claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    pub protocol: u32,
    pub spec: u32,
    /// Of the model: `Card::commitment`.
    pub commitment: String,
    pub prompt: String,
    pub prompt_tokens: Vec<u32>,
    pub sampling: Sampling,
    pub tokens: Vec<u32>,
    pub text: String,
    pub finish: Finish,
    /// log2 of the steps of each segment.
    pub segments: Vec<u8>,
}

/// Sorted keys, no white space: the one form of a card or statement.
fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    // serde_json's objects are sorted maps.
    serde_json::to_vec(&serde_json::to_value(value).expect("plain data")).expect("plain data")
}

fn parse<T: for<'a> Deserialize<'a> + Serialize>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    let value: T = serde_json::from_slice(bytes).map_err(|e| Error::Malformed(format!("{what}: {e}")))?;
    if canonical(&value) != bytes {
        return Err(Error::Malformed(format!("{what}: not in canonical form")));
    }
    Ok(value)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (o, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *o = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

impl Card {
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical(self)
    }

    /// Reads a card and checks it; its shape is one that can be proven.
    pub fn parse(bytes: &[u8]) -> Result<Card, Error> {
        let card: Card = parse("card", bytes)?;
        if (card.protocol, card.spec) != (PROTOCOL, SPEC) {
            return Err(Error::Malformed(format!(
                "card: protocol {} and spec {}; this program knows {PROTOCOL} and {SPEC}",
                card.protocol, card.spec
            )));
        }
        card.shape
            .validate()
            .map_err(|e| Error::Malformed(format!("card: {e}")))?;
        card.root_bytes()?;
        if from_hex(&card.model_digest).is_none() {
            return Err(Error::Malformed(
                "card: model_digest is not 64 hexadecimal digits".into(),
            ));
        }
        Ok(card)
    }

    pub fn root_bytes(&self) -> Result<[u8; 32], Error> {
        from_hex(&self.root).ok_or_else(|| Error::Malformed("card: root is not 64 hexadecimal digits".into()))
    }

    pub fn commitment(&self) -> [u8; 32] {
        Card::commitment_of(&self.to_bytes())
    }

    /// The commitment of the card with these bytes.
    pub fn commitment_of(bytes: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"mamba-integer-commitment-1");
        hash.update(bytes);
        hash.finalize().into()
    }

    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let tokenizer = Tokenizer::from_bytes(self.tokenizer.as_bytes())
            .map_err(|e| Error::Malformed(format!("card: tokenizer: {e}")))?;
        if tokenizer.vocab_size() != self.shape.vocab_size {
            return Err(Error::Malformed(
                "card: the tokenizer's vocabulary is not the model's".into(),
            ));
        }
        Ok(tokenizer)
    }
}

impl Statement {
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical(self)
    }

    pub fn parse(bytes: &[u8]) -> Result<Statement, Error> {
        let statement: Statement = parse("statement", bytes)?;
        if (statement.protocol, statement.spec) != (PROTOCOL, SPEC) {
            return Err(Error::Malformed(format!(
                "statement: protocol {} and spec {}; this program knows {PROTOCOL} and {SPEC}",
                statement.protocol, statement.spec
            )));
        }
        Ok(statement)
    }

    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    /// Number of steps: tokens fed.
    pub fn steps(&self) -> usize {
        self.prompt_tokens.len() + self.tokens.len() - 1
    }

    /// Tokens fed and chosen at the steps of segment i; `usize::MAX` where there is none.
    pub fn steps_of(&self, i: usize) -> (Vec<usize>, Vec<usize>) {
        let from: usize = self.segments[..i].iter().map(|s| 1usize << s).sum();
        let all = |s: usize| {
            let prompt = self.prompt_tokens.len();
            if s < prompt {
                self.prompt_tokens[s] as usize
            } else {
                self.tokens[s - prompt] as usize
            }
        };
        let steps = self.steps();
        let here = from..from + (1usize << self.segments[i]);
        let fed = here
            .clone()
            .map(|s| if s < steps { all(s) } else { usize::MAX })
            .collect();
        let chosen = here
            .map(|s| {
                if s < steps && s + 1 >= self.prompt_tokens.len() {
                    all(s + 1)
                } else {
                    usize::MAX
                }
            })
            .collect();
        (fed, chosen)
    }

    /// Sampler's step index of the first step of segment i that chooses: i's first step minus (prompt tokens − 1), which may be negative.
    pub fn first_choice(&self, i: usize) -> i64 {
        let from: i64 = self.segments[..i].iter().map(|s| 1i64 << s).sum();
        from - (self.prompt_tokens.len() as i64 - 1)
    }

    /// All that section 6 asks of a statement about the model of `card`.
    pub fn check(&self, card: &Card) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Statement(what));
        if from_hex(&self.commitment) != Some(card.commitment()) {
            return wrong("its commitment is not that of its card".into());
        }
        if self.prompt_tokens.is_empty() || self.tokens.is_empty() {
            return wrong("no prompt token, or no chosen token".into());
        }
        if self.prompt_tokens.len() + self.tokens.len() > MAX_TOKENS {
            return wrong(format!("more than {MAX_TOKENS} tokens"));
        }
        if self.segments.len() > MAX_SEGMENTS {
            return wrong(format!("more than {MAX_SEGMENTS} segments"));
        }
        let vocab = card.shape.vocab_size;
        if let Some(token) = self
            .prompt_tokens
            .iter()
            .chain(&self.tokens)
            .find(|t| **t as usize >= vocab)
        {
            return wrong(format!("token {token} is outside the vocabulary of {vocab}"));
        }
        if self.sampling.temperature > 1 << 22 || self.sampling.top_k as usize > 1 << 17 {
            return wrong("sampling parameters out of range".into());
        }
        let end = vocab as u32 - 1;
        let ends = self.tokens.iter().position(|t| *t == end);
        match (self.finish, ends) {
            (Finish::End, Some(at)) if at + 1 == self.tokens.len() => {}
            (Finish::Limit, None) => {}
            _ => return wrong("finish does not agree with where <|endoftext|> was chosen".into()),
        }
        let steps = self.steps();
        let mut covered = 0usize;
        for log in &self.segments {
            if !LOG_STEPS.contains(log) {
                return wrong(format!("a segment of 2^{log} steps"));
            }
            if covered >= steps {
                return wrong("more segments than steps".into());
            }
            covered += 1 << log;
        }
        if covered < steps {
            return wrong("the segments do not cover all steps".into());
        }
        let tokenizer = card.tokenizer()?;
        // Lengths first: a long text is not tokenised only to find that its tokens are others.
        let length = |tokens: &[u32]| {
            let each = tokens.iter().map(|t| tokenizer.token_bytes(*t).map(<[u8]>::len));
            each.sum::<Result<usize, _>>().ok()
        };
        if length(&self.prompt_tokens[1..]) != Some(self.prompt.len()) {
            return wrong("the prompt's text does not give its tokens".into());
        }
        let encoded = tokenizer
            .encode(&self.prompt, AllowSpecial::Refuse)
            .map_err(|e| Error::Statement(format!("prompt: {e}")))?;
        if self.prompt_tokens[0] != end || self.prompt_tokens[1..] != encoded {
            return wrong("the prompt's text does not give its tokens".into());
        }
        let shown = if self.finish == Finish::End {
            &self.tokens[..self.tokens.len() - 1]
        } else {
            &self.tokens[..]
        };
        match tokenizer.decode(shown) {
            Ok(bytes) if String::from_utf8_lossy(&bytes) == self.text => Ok(()),
            _ => wrong("the tokens do not decode to the text".into()),
        }
    }
}
