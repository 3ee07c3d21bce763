//! Vocabularies of other makers: tokens numbered in any way, merges as ranks or as a list.
//!
//! Within the crate tokens are numbered by rank: the bytes come first, then what merges make, in the order in which they apply. A vocabulary that
//! numbers otherwise has a [`Numbering`].
//!
//! tiktoken merges any two neighbours that make up a token, the lowest rank first. It is enough to know one pair for each token: that which is left of
//! its bytes when all lower ranks have been merged. For where two neighbours make up a token, nothing has been merged across their outer ends, so what
//! happened between them is what happens to these bytes alone. A token of which more than two parts are left can only be made of tokens of higher ranks;
//! for such a token all pairs are taken.

use std::collections::HashMap;

use crate::quick::Quick;

use crate::bpe::{Merger, PairTable};
use crate::cache::{Pool, Words};
use crate::special::Specials;
use crate::{Error, Tokenizer, END_OF_TEXT, MAX_MERGES, MAX_TOKEN_BYTES};

/// How a vocabulary numbers its tokens.
#[derive(Clone)]
pub(crate) struct Numbering {
    /// Ids, by rank.
    pub(crate) ids: Vec<u32>,
    /// All ranks from here on are ids: in most vocabularies only bytes are numbered otherwise, and for these the processor need not wait for memory.
    plain: usize,
    /// Ranks by id; [`Numbering::NO_TOKEN`] where there is none.
    pub(crate) ranks: Vec<u32>,
    /// The merges: left, right and resulting id, in the order in which they apply.
    merges: Vec<[u32; 3]>,
}

impl Numbering {
    pub(crate) const NO_TOKEN: u32 = u32::MAX;

    /// The ids of those ranks that are not all ids themselves.
    pub(crate) fn other_ids(&self) -> &[u32] {
        &self.ids[..self.plain]
    }
}

/// The largest id of a vocabulary.
const MAX_ID: u32 = 1 << 24;

fn refuse<T>(cause: impl Into<String>) -> Result<T, Error> {
    Err(Error::Vocabulary(cause.into()))
}

/// Where tokens stand in a list: all different, bytes and ids.
struct Places<'a> {
    tokens: HashMap<&'a [u8], u32, Quick>,
    bytes: [u32; 256],
}

impl<'a> Places<'a> {
    fn new(tokens: &'a [(Vec<u8>, u32)], special: &[(String, u32)]) -> Result<Places<'a>, Error> {
        if tokens.len() > MAX_MERGES + 256 {
            return refuse(format!("more than {} tokens", MAX_MERGES + 256));
        }
        let mut places = HashMap::with_capacity_and_hasher(tokens.len(), Quick::new());
        let of_tokens = tokens.iter().map(|&(_, id)| id);
        let numbers = || of_tokens.clone().chain(special.iter().map(|&(_, id)| id));
        if let Some(id) = numbers().find(|&id| id > MAX_ID) {
            return refuse(format!("the id {id} is above {MAX_ID}"));
        }
        let mut taken = vec![false; numbers().max().map_or(0, |last| last as usize + 1)];
        for id in numbers() {
            if std::mem::replace(&mut taken[id as usize], true) {
                return refuse(format!("two tokens have the id {id}"));
            }
        }
        for (place, (token, id)) in (0..).zip(tokens) {
            if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
                return refuse(format!(
                    "token {id} has {} bytes, not 1 to {MAX_TOKEN_BYTES}",
                    token.len()
                ));
            }
            if let Some(other) = places.insert(token.as_slice(), place) {
                let other = tokens[other as usize].1;
                return refuse(format!("the tokens {other} and {id} have the same bytes"));
            }
        }
        let mut bytes = [0; 256];
        for (byte, place) in (0..=255u8).zip(&mut bytes) {
            match places.get([byte].as_slice()) {
                Some(&found) => *place = found,
                None => return refuse(format!("the byte {byte} is no token")),
            }
        }
        Ok(Places { tokens: places, bytes })
    }

    fn find(&self, token: &[u8]) -> Option<u32> {
        self.tokens.get(token).copied()
    }
}

impl Tokenizer {
    /// A tokenizer with tiktoken's meaning of ranks: of the pairs of neighbours that make up a token, the one with the lowest id is merged first.
    ///
    /// `tokens` are bytes and ids, among them all single bytes. `special` are the names and ids of special tokens. The split is this crate's.
    pub fn from_ranks(tokens: &[(Vec<u8>, u32)], special: &[(String, u32)]) -> Result<Tokenizer, Error> {
        let known = Places::new(tokens, special)?;
        let of = |place: u32| &tokens[place as usize];
        let mut longer: Vec<u32> = (0..tokens.len() as u32)
            .filter(|&place| of(place).0.len() > 1)
            .collect();
        longer.sort_unstable_by_key(|&place| of(place).1);
        let by_rank = || known.bytes.iter().chain(&longer).map(|&place| of(place));
        let mut ranks = vec![0; tokens.len()];
        for (rank, &place) in (0..).zip(known.bytes.iter().chain(&longer)) {
            ranks[place as usize] = rank;
        }

        let mut table = PairTable::with_capacity(longer.len());
        let (mut merger, mut parts) = (Merger::default(), Vec::new());
        let mut pairs = Vec::with_capacity(longer.len());
        let mut words = Words::default();
        for (rank, &place) in (256..).zip(&longer) {
            let token = &of(place).0;
            parts.clear();
            merger.encode(&table, token, &mut parts);
            if let [left, right] = parts[..] {
                table.insert((left, right), rank);
                pairs.push([left, right, rank]);
                words.add(rank, token, || true);
                continue;
            }
            for at in 1..token.len() {
                if let (Some(left), Some(right)) = (known.find(&token[..at]), known.find(&token[at..])) {
                    let (left, right) = (ranks[left as usize], ranks[right as usize]);
                    table.insert((left, right), rank);
                    pairs.push([left, right, rank]);
                }
            }
        }
        let ids = by_rank().map(|(_, id)| *id).collect();
        Tokenizer::assemble(table, words, by_rank().map(|(token, _)| token), ids, &pairs, special)
    }

    /// A tokenizer with an ordered list of merges, each of two tokens to the one whose bytes are theirs, as Hugging Face's files have.
    ///
    /// Several merges may make the same token, if they stand together; they are taken as one, of which the leftmost place comes first. Else as
    /// [`from_ranks`](Tokenizer::from_ranks).
    pub fn from_merges(
        tokens: &[(Vec<u8>, u32)],
        merges: &[(Vec<u8>, Vec<u8>)],
        special: &[(String, u32)],
    ) -> Result<Tokenizer, Error> {
        let known = Places::new(tokens, special)?;
        if merges.len() > 16 * MAX_MERGES {
            return refuse("too many merges");
        }
        // Ranks are given by the first merge to a token; after these come tokens that nothing makes.
        const NO_RANK: u32 = u32::MAX;
        let mut ranks = vec![NO_RANK; tokens.len()];
        let mut by_rank = known.bytes.to_vec();
        for (rank, &place) in (0..).zip(&by_rank) {
            ranks[place as usize] = rank;
        }
        let mut made = Vec::with_capacity(merges.len());
        let mut token = Vec::new();
        for (number, (left, right)) in merges.iter().enumerate() {
            token.clear();
            token.extend_from_slice(left);
            token.extend_from_slice(right);
            // Most files list tokens in the order of their merges.
            let likely = made.last().map_or(0, |&[.., last]: &[u32; 3]| last + 1);
            let found = match tokens.get(likely as usize) {
                Some((next, _)) if *next == token => Some(likely),
                _ => known.find(&token),
            };
            let (Some(left), Some(right), Some(place)) = (known.find(left), known.find(right), found) else {
                return refuse(format!("merge {number} is of or to what is no token"));
            };
            let next = by_rank.len() as u32;
            let rank = &mut ranks[place as usize];
            if *rank == NO_RANK {
                *rank = next;
                by_rank.push(place);
            } else if *rank + 1 != next || made.is_empty() {
                return refuse(format!(
                    "merge {number} makes a token that an earlier one makes already"
                ));
            }
            made.push([left, right, place]);
        }
        for (place, rank) in (0..).zip(&mut ranks) {
            if *rank == NO_RANK {
                *rank = by_rank.len() as u32;
                by_rank.push(place);
            }
        }
        let mut table = PairTable::with_capacity(made.len());
        let pairs: Vec<[u32; 3]> = made
            .iter()
            .map(|pair| pair.map(|place| ranks[place as usize]))
            .collect();
        for (number, &[left, right, rank]) in pairs.iter().enumerate() {
            if !table.insert((left, right), rank) {
                return refuse(format!("merge {number} is there already"));
            }
        }
        let by_rank = || by_rank.iter().map(|&place| &tokens[place as usize]);
        let words = Words::of(&table, by_rank().map(|(token, _)| token.as_slice()));
        let ids = by_rank().map(|(_, id)| *id).collect();
        Tokenizer::assemble(table, words, by_rank().map(|(token, _)| token), ids, &pairs, special)
    }

    /// From tokens by rank, and merges in ranks.
    fn assemble<'a>(
        table: PairTable,
        words: Words,
        tokens: impl IntoIterator<Item = &'a Vec<u8>>,
        ids: Vec<u32>,
        pairs: &[[u32; 3]],
        special: &[(String, u32)],
    ) -> Result<Tokenizer, Error> {
        if let Some((_, id)) = special.iter().find(|(name, _)| name.is_empty()) {
            return refuse(format!("the special token {id} has no name"));
        }
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for token in tokens {
            bytes.extend_from_slice(token);
            starts.push(bytes.len());
        }
        let mut tokenizer = Tokenizer {
            merges: Vec::new(),
            table,
            words,
            bytes,
            starts,
            special: Specials::new(special.to_vec()),
            numbering: None,
            older_pattern: false,
            pool: Pool::default(),
        };
        // Numbered as this crate does, it is a tokenizer like those that this crate trains.
        let end = (END_OF_TEXT.to_string(), ids.len() as u32);
        let own = (0..).zip(&ids).all(|(rank, &id)| rank == id)
            && pairs.len() + 256 == ids.len()
            && (256..).zip(pairs).all(|(id, &[.., made])| id == made)
            && *special == [end];
        if own {
            tokenizer.merges = pairs.iter().map(|&[left, right, _]| (left, right)).collect();
            tokenizer.pool.add(tokenizer.encoder());
            return Ok(tokenizer);
        }
        let mut ranks = vec![Numbering::NO_TOKEN; ids.iter().max().map_or(0, |&last| last as usize + 1)];
        for (rank, &id) in (0..).zip(&ids) {
            ranks[id as usize] = rank;
        }
        let merges = pairs.iter().map(|&pair| pair.map(|rank| ids[rank as usize])).collect();
        let plain = (0..).zip(&ids).fold(
            0,
            |plain, (rank, &id)| if rank == id { plain } else { rank as usize + 1 },
        );
        tokenizer.numbering = Some(Box::new(Numbering {
            ids,
            plain,
            ranks,
            merges,
        }));
        tokenizer.pool.add(tokenizer.encoder());
        Ok(tokenizer)
    }

    /// From the contents of a `.tiktoken` file: lines of a token in base 64 and its rank. It names no special tokens and no split.
    pub fn from_tiktoken(file: &[u8], special: &[(String, u32)]) -> Result<Tokenizer, Error> {
        let mut tokens = Vec::with_capacity(file.len() / 16);
        for (number, line) in (1..).zip(file.split(|&byte| byte == b'\n')) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            match rank_line(line) {
                Some(token) => tokens.push(token),
                None => return refuse(format!("line {number} is not a token in base 64 and its rank")),
            }
            if tokens.len() > MAX_MERGES + 256 {
                return refuse("too many lines");
            }
        }
        Tokenizer::from_ranks(&tokens, special)
    }

    /// The contents of the `.tiktoken` file: all tokens but the special ones. An error if two of them have the same bytes, or if tiktoken, which
    /// merges in the order of ids, would merge in another order.
    pub fn to_tiktoken(&self) -> Result<Vec<u8>, Error> {
        let tokens: Vec<(Vec<u8>, u32)> = self.ordinary().map(|(id, token)| (token.to_vec(), id)).collect();
        let special = self.special.tokens();
        let again = Tokenizer::from_ranks(&tokens, special)?;
        let made = |tokenizer: &Tokenizer| {
            let mut made: Vec<[u32; 3]> = tokenizer.rules().collect();
            made.sort_unstable();
            made
        };
        let rising = self.rules().map(|[.., id]| id).is_sorted();
        if !rising || made(&again) != made(self) {
            return refuse("its merges are not those that the order of its ids implies");
        }
        let mut tokens = tokens;
        tokens.sort_unstable_by_key(|&(_, id)| id);
        let mut file = Vec::new();
        for (token, id) in tokens {
            file.extend_from_slice(base64(&token).as_bytes());
            file.extend_from_slice(format!(" {id}\n").as_bytes());
        }
        Ok(file)
    }

    /// All tokens but the special ones, with their ids.
    pub fn ordinary(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.starts.windows(2).enumerate().map(|(rank, bounds)| {
            let id = self
                .numbering
                .as_ref()
                .map_or(rank as u32, |numbering| numbering.ids[rank]);
            (id, &self.bytes[bounds[0]..bounds[1]])
        })
    }

    /// The merges in the order in which they apply: the ids of left, right and result.
    pub fn rules(&self) -> impl Iterator<Item = [u32; 3]> + '_ {
        let own = (256..).zip(&self.merges).map(|(id, &(left, right))| [left, right, id]);
        own.chain(
            self.numbering
                .iter()
                .flat_map(|numbering| numbering.merges.iter().copied()),
        )
    }
}

fn rank_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let digits = &line[space + 1..];
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let rank = digits.iter().fold(0, |rank, digit| 10 * rank + u32::from(digit - b'0'));
    Some((unbase64(&line[..space])?, rank))
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0, |number, at| {
            number << 8 | u32::from(three.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            text.push(match at <= three.len() {
                true => DIGITS[(number >> (18 - 6 * at)) as usize & 63].into(),
                false => '=',
            });
        }
    }
    text
}

fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut number, mut bits) = (0u32, 0);
    for &digit in &text[..text.len() - padding] {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        number = (number << 6 | u32::from(value)) & 0xFFFF;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((number >> bits) as u8);
        }
    }
    // Bits that belong to no byte must be zero: a token has one form.
    (number & ((1 << bits) - 1) == 0).then_some(bytes)
}
