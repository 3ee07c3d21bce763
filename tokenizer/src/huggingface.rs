//! `tokenizer.json`, the file of the Python packages tokenizers and transformers: read without trust, and written.
//!
//! Source: the format of the package tokenizers, as its `Tokenizer.save` writes it.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::byte_level::{to_bytes, to_text};
use crate::json::{write_text, Cause, Reader, Value};
use crate::{Error, Tokenizer, MAX_MERGES};

/// The split of this crate, that of cl100k_base in today's tiktoken, in the regular expressions that the package tokenizers understands: it has no
/// possessive quantifiers, and its $ is the end of a line.
const PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s";
/// The older form, which many files have. It differs in one case: white space at the end of a text with a newline within it is two chunks by it, one
/// by ours.
const OLDER_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The bytes of two tokens.
type Merge = (Vec<u8>, Vec<u8>);

/// What a file says.
#[derive(Default)]
struct Found<'a> {
    model: Option<Model<'a>>,
    special: Option<Vec<(String, u32)>>,
    older_pattern: Option<bool>,
}

#[derive(Default)]
struct Model<'a> {
    vocabulary: Option<Vec<(Cow<'a, str>, u32)>>,
    merges: Option<Vec<Merge>>,
    ignore_merges: bool,
}

impl Tokenizer {
    /// From the contents of a `tokenizer.json` of a byte-level BPE that splits by the pattern of GPT-4, in its newer or older form. An error for any
    /// other, and for one that would encode in another way than this crate does.
    pub fn from_huggingface(file: &[u8]) -> Result<Tokenizer, Error> {
        let refuse = |cause| {
            Error::Vocabulary(format!(
                "this tokenizer.json is not one that this tokenizer can be: {cause}"
            ))
        };
        let found = read(file).map_err(refuse)?;
        let Model {
            vocabulary,
            merges,
            ignore_merges,
        } = found.model.ok_or_else(|| refuse("it has no model".into()))?;
        let vocabulary = vocabulary.ok_or_else(|| refuse("its model has no vocab".into()))?;
        let merges = merges.ok_or_else(|| refuse("its model has no merges".into()))?;
        let older_pattern = found.older_pattern.ok_or_else(|| refuse(NO_SPLIT.into()))?;
        let special = found.special.unwrap_or_default();
        // The special tokens may be among the tokens or not.
        let names: HashSet<(&str, u32)> = special.iter().map(|(name, id)| (name.as_str(), *id)).collect();
        let ordinary = vocabulary.iter().filter(|(name, id)| !names.contains(&(name, *id)));
        let tokens: Vec<(Vec<u8>, u32)> = ordinary
            .map(|(name, id)| match to_bytes(name) {
                Some(bytes) => Ok((bytes, *id)),
                None => Err(refuse(format!("{name:?} is no token whose characters stand for bytes"))),
            })
            .collect::<Result<_, _>>()?;
        if ignore_merges && tokens.len() > merges.len() + 256 {
            // With it, a chunk that is a token is this token even if no merge makes it.
            return Err(refuse(
                "its model has ignore_merges and tokens that no merge makes".into(),
            ));
        }
        let tokenizer = Tokenizer::from_merges(&tokens, &merges, &special)?;
        Ok(match older_pattern {
            true => tokenizer.with_older_pattern(),
            false => tokenizer,
        })
    }

    /// The contents of a `tokenizer.json`. An error if two tokens have the same name there: bytes, or a special token the name of another's bytes.
    pub fn to_huggingface(&self) -> Result<Vec<u8>, Error> {
        let mut tokens: Vec<(String, u32)> = self.ordinary().map(|(id, token)| (to_text(token), id)).collect();
        tokens.extend_from_slice(self.specials());
        tokens.sort_by_key(|&(_, id)| id);
        let mut names = HashSet::with_capacity(tokens.len());
        if let Some((name, _)) = tokens.iter().find(|(name, _)| !names.insert(name)) {
            return Err(Error::Vocabulary(format!(
                "two tokens would be named {name:?} in a tokenizer.json"
            )));
        }

        let mut file = String::from(r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":["#);
        separated(&mut file, self.specials(), |file, (name, id)| {
            file.push_str(&format!(r#"{{"id":{id},"content":"#));
            write_text(name, file);
            file.push_str(r#","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}"#);
        });
        file.push_str(r#"],"normalizer":null,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"#);
        write_text(
            if self.has_older_pattern() {
                OLDER_PATTERN
            } else {
                PATTERN
            },
            &mut file,
        );
        file.push_str(
            r#"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}]},"#,
        );
        file.push_str(r#""post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"#);
        file.push_str(r#""model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"#);
        file.push_str(r#""fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"#);
        separated(&mut file, &tokens, |file, (name, id)| {
            write_text(name, file);
            file.push_str(&format!(":{id}"));
        });
        file.push_str(r#"},"merges":["#);
        let token = |id| to_text(self.token_bytes(id).unwrap_or_default());
        separated(&mut file, self.rules(), |file, [left, right, _]| {
            file.push('[');
            write_text(&token(left), file);
            file.push(',');
            write_text(&token(right), file);
            file.push(']');
        });
        file.push_str("]}}");
        Ok(file.into_bytes())
    }
}

fn separated<T>(file: &mut String, values: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut String, T)) {
    for (at, value) in values.into_iter().enumerate() {
        if at > 0 {
            file.push(',');
        }
        write(file, value);
    }
}

/// Keeps what a key says; it says it once.
fn once<T>(kept: &mut Option<T>, key: &str, value: T) -> Result<(), Cause> {
    match kept.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("it has {key} twice")),
    }
}

fn read(file: &[u8]) -> Result<Found<'_>, Cause> {
    let mut reader = Reader::new(file)?;
    let mut found = Found::default();
    reader.object("the file", |reader, key| match &*key {
        "model" => once(&mut found.model, &key, read_model(reader)?),
        "added_tokens" => once(&mut found.special, &key, read_special(reader)?),
        "pre_tokenizer" => once(&mut found.older_pattern, &key, is_older(&reader.value()?)?),
        "normalizer" if reader.peek() != Some(b'n') => Err("it has a normalizer".into()),
        _ => reader.skip(),
    })?;
    reader.end()?;
    Ok(found)
}

fn read_model<'a>(reader: &mut Reader<'a>) -> Result<Model<'a>, Cause> {
    let mut model = Model::default();
    reader.object("model", |reader, key| {
        match &*key {
            "vocab" => {
                let mut vocabulary = Vec::new();
                reader.object("model.vocab", |reader, name| {
                    let id = match reader.peek() {
                        Some(b'"' | b'{' | b'[' | b'n' | b't' | b'f') => None,
                        _ => id_of(reader.number()?),
                    };
                    vocabulary.push((name, id.ok_or("an id in model.vocab is not a number below 2^32")?));
                    Ok(())
                })?;
                once(&mut model.vocabulary, &key, vocabulary)?;
            }
            "merges" => {
                let mut merges = Vec::new();
                reader.list("model.merges", |reader| {
                    let Some(merge) = read_merge(reader)? else {
                        let cause = "is not of two tokens whose characters stand for bytes";
                        return Err(format!("merge {} {cause}", merges.len()));
                    };
                    merges.push(merge);
                    match merges.len() > 16 * MAX_MERGES {
                        true => Err("it has too many merges".into()),
                        false => Ok(()),
                    }
                })?;
                once(&mut model.merges, &key, merges)?;
            }
            "ignore_merges" => model.ignore_merges = !reader.value()?.is_nothing(),
            "type" => {
                if reader.value()?.text() != Some("BPE") {
                    return Err("its model is not BPE".into());
                }
            }
            "dropout"
            | "unk_token"
            | "continuing_subword_prefix"
            | "end_of_word_suffix"
            | "fuse_unk"
            | "byte_fallback" => {
                if !reader.value()?.is_nothing() {
                    return Err(format!("its model has {key}"));
                }
            }
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    Ok(model)
}

/// A list of two tokens, or, in the older form, one text of both with a space between: no token has one, for it stands for no byte. None if it is not
/// that.
fn read_merge(reader: &mut Reader<'_>) -> Result<Option<Merge>, Cause> {
    if reader.peek() == Some(b'"') {
        let both = reader.text()?;
        let parts = both.split_once(' ');
        return Ok(parts.and_then(|(left, right)| Some((to_bytes(left)?, to_bytes(right)?))));
    }
    let (mut parts, mut count) = ([None, None], 0);
    reader.list("a merge", |reader| {
        let part = match reader.peek() {
            Some(b'"') => to_bytes(&reader.text()?),
            _ => reader.skip().map(|()| None)?,
        };
        if let Some(place) = parts.get_mut(count) {
            *place = part;
        }
        count += 1;
        Ok(())
    })?;
    Ok(match (parts, count) {
        ([Some(left), Some(right)], 2) => Some((left, right)),
        _ => None,
    })
}

fn id_of(number: &str) -> Option<u32> {
    // Neither sign nor fraction.
    number
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| number.parse().ok())?
}

fn read_special(reader: &mut Reader<'_>) -> Result<Vec<(String, u32)>, Cause> {
    let (mut special, mut names) = (Vec::new(), HashSet::new());
    reader.list("added_tokens", |reader| {
        let token = reader.value()?;
        let name = token
            .get("content")
            .and_then(Value::text)
            .filter(|name| !name.is_empty());
        let name = name.ok_or("an added token has no content")?;
        let id = match token.get("id") {
            Some(Value::Number(id)) => id_of(id),
            _ => None,
        };
        let id = id.ok_or_else(|| format!("the id of {name:?} is not a number below 2^32"))?;
        for key in ["single_word", "lstrip", "rstrip"] {
            if token.get(key).is_some_and(|value| !value.is_nothing()) {
                return Err(format!("the added token {name:?} has {key}"));
            }
        }
        if !names.insert(name.to_string()) {
            return Err(format!("the token {name:?} is added twice"));
        }
        special.push((name.to_string(), id));
        Ok(())
    })?;
    Ok(special)
}

const NO_SPLIT: &str = "its pre_tokenizer is not a split by GPT-4's pattern and ByteLevel without one";

/// Whether a pre_tokenizer splits by the older form of the pattern; an error if by neither.
fn is_older(value: &Value<'_>) -> Result<bool, Cause> {
    let is = |value: &Value<'_>, key: &str, text: &str| value.get(key).and_then(Value::text) == Some(text);
    let (true, Some(Value::List(parts))) = (is(value, "type", "Sequence"), value.get("pretokenizers")) else {
        return Err(NO_SPLIT.into());
    };
    let [split, level] = &parts[..] else {
        return Err(NO_SPLIT.into());
    };
    let pattern = split
        .get("pattern")
        .and_then(|pattern| pattern.get("Regex"))
        .and_then(Value::text);
    let (Some(pattern), true, true, true, Some(Value::Bool(false))) = (
        pattern,
        is(split, "type", "Split"),
        is(split, "behavior", "Isolated"),
        is(level, "type", "ByteLevel"),
        level.get("use_regex"),
    ) else {
        return Err(NO_SPLIT.into());
    };
    if pattern != PATTERN && pattern != OLDER_PATTERN {
        return Err("it splits by another pattern than that of GPT-4".into());
    }
    let plain = |value: Option<&Value<'_>>, otherwise| value.map_or(otherwise, Value::is_nothing);
    if !plain(split.get("invert"), true) || !plain(level.get("add_prefix_space"), false) {
        return Err("it inverts the split or adds a space".into());
    }
    Ok(pattern == OLDER_PATTERN)
}
