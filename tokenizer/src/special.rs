//! Special tokens in text.

use crate::{AllowSpecial, Error};

/// So many bytes are looked at together.
const PART: usize = 64;

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
        for begin in (0..text.len()).step_by(PART) {
            let found = match text[begin..].first_chunk() {
                Some(part) => self.begins_within(part),
                None => {
                    // The zeros after the end of the text can only have a name sought that is not there.
                    let (rest, mut part) = (&text[begin..], [0; PART + 1]);
                    part[..rest.len()].copy_from_slice(rest);
                    self.begins_within(&part)
                }
            };
            if !found {
                continue;
            }
            for at in begin..text.len().min(begin + PART) {
                if let Some((length, id)) = self.at(text, at, offset, policy)? {
                    return Ok(Some((at, length, id)));
                }
            }
        }
        Ok(None)
    }

    /// Whether a name may begin at any byte of a part but the last. All bytes are looked at, which vector instructions do at once.
    fn begins_within(&self, part: &[u8; PART + 1]) -> bool {
        let pairs = || part.iter().zip(&part[1..]);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Names at every place of texts of every length around those that are looked at together.
    #[test]
    fn a_name_is_found_wherever_it_is() {
        let names = [("<|a|>", 1), ("<|a|><|b|>", 2), ("\0", 3)];
        let specials = Specials::new(names.map(|(name, id)| (name.to_string(), id)).to_vec());
        let allowed = [AllowSpecial::All; 3];
        for length in 0..3 * PART + 3 {
            for at in 0..length {
                for (name, id) in names {
                    let mut text = vec![b'<'; length];
                    let Some(place) = text.get_mut(at..at + name.len()) else {
                        continue;
                    };
                    place.copy_from_slice(name.as_bytes());
                    let found = specials.find(&text, 0, &allowed).ok().flatten();
                    assert_eq!(found, Some((at, name.len(), id)), "{length} {at}");
                    let found = specials.find(&text[..at + name.len() - 1], 0, &allowed).ok().flatten();
                    let shorter = (id == 2).then_some((at, 5, 1));
                    assert_eq!(found, shorter, "{length} {at}");
                }
            }
        }
    }
}
