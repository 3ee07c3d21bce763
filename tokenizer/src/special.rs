//! Special tokens in text.

use crate::{AllowSpecial, Error};

/// Special tokens, which stand for no text but their own name.
#[derive(Clone, Default)]
pub(crate) struct Specials {
    /// Names and ids.
    tokens: Vec<(String, u32)>,
    /// The first two bytes of the names, each once; the second is none where a name has but one.
    beginnings: Vec<(u8, Option<u8>)>,
}

impl Specials {
    /// Names are not empty.
    pub(crate) fn new(tokens: Vec<(String, u32)>) -> Specials {
        let mut beginnings: Vec<_> = tokens
            .iter()
            .map(|(name, _)| (name.as_bytes()[0], name.as_bytes().get(1).copied()))
            .collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        Specials { tokens, beginnings }
    }

    pub(crate) fn tokens(&self) -> &[(String, u32)] {
        &self.tokens
    }

    /// The first special token of `text` that is not taken as text: where it is, its length and its id. An error if it is refused, `offset` being
    /// where `text` is in the caller's. `policy` has a value for each token.
    pub(crate) fn find(
        &self,
        text: &[u8],
        offset: usize,
        policy: &[AllowSpecial],
    ) -> Result<Option<(usize, usize, u32)>, Error> {
        if policy.iter().all(|&policy| policy == AllowSpecial::AsText) {
            return Ok(None);
        }
        const PART: usize = 64;
        for begin in (0..text.len()).step_by(PART) {
            let end = text.len().min(begin + PART);
            if end - begin == PART && end < text.len() && !self.begins_within(&text[begin..=end]) {
                continue;
            }
            for at in begin..end {
                if let Some((length, id)) = self.at(text, at, offset, policy)? {
                    return Ok(Some((at, length, id)));
                }
            }
        }
        Ok(None)
    }

    /// Whether a name may begin at any byte of a text but the last. All bytes are looked at, which vector instructions do at once.
    fn begins_within(&self, text: &[u8]) -> bool {
        let pairs = || text.iter().zip(&text[1..]);
        self.beginnings.iter().any(|&(first, second)| match second {
            Some(second) => pairs().fold(false, |found, (&a, &b)| found | ((a == first) & (b == second))),
            None => pairs().fold(false, |found, (&a, _)| found | (a == first)),
        })
    }

    /// The longest special token at a place.
    fn at(
        &self,
        text: &[u8],
        at: usize,
        offset: usize,
        policy: &[AllowSpecial],
    ) -> Result<Option<(usize, u32)>, Error> {
        let mut longest = None;
        for ((name, id), &policy) in self.tokens.iter().zip(policy) {
            if policy == AllowSpecial::AsText || !text[at..].starts_with(name.as_bytes()) {
                continue;
            }
            if policy == AllowSpecial::Refuse {
                return Err(Error::Special {
                    name: name.clone(),
                    offset: offset + at,
                });
            }
            longest = longest.max(Some((name.len(), *id)));
        }
        Ok(longest)
    }
}
