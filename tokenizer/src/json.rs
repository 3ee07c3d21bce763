//! JSON, as far as the files of other makers need it. A reader takes value after value from a text, without trust in it; what is large is never held
//! as a tree.

use std::borrow::Cow;

/// Values within values are no deeper.
const DEPTH: u32 = 64;
/// No tree has more values.
const VALUES: u32 = 1 << 22;

/// A value as a tree.
#[derive(Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    /// As it is written.
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
    Object(Vec<(Cow<'a, str>, Value<'a>)>),
}

impl Value<'_> {
    /// The value of a key; none if it is not there, or this is no object.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Value::Object(members) => members.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it says no: null, false, zero, or something empty.
    pub(crate) fn is_nothing(&self) -> bool {
        match self {
            Value::Null | Value::Bool(false) => true,
            Value::Bool(true) => false,
            Value::Number(digits) => digits.parse() == Ok(0.0),
            Value::Text(text) => text.is_empty(),
            Value::List(values) => values.is_empty(),
            Value::Object(members) => members.is_empty(),
        }
    }
}

/// What is wrong with a file.
pub(crate) type Cause = String;

/// Where in a text the next value is.
pub(crate) struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    values: u32,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a [u8]) -> Result<Reader<'a>, Cause> {
        let text = std::str::from_utf8(file).map_err(|error| not_json(error.valid_up_to()))?;
        let mut reader = Reader {
            text,
            at: 0,
            depth: 0,
            values: 0,
        };
        reader.space();
        Ok(reader)
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Result<(), Cause> {
        match self.at == self.text.len() {
            true => Ok(()),
            false => self.fail(),
        }
    }

    fn fail<T>(&self) -> Result<T, Cause> {
        Err(not_json(self.at))
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// The first byte of what is next.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        let space = |byte: &&u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        self.at += self.bytes()[self.at..].iter().take_while(space).count();
    }

    /// Takes a byte, and white space after it, if it is next.
    fn takes(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        if next {
            self.at += 1;
            self.space();
        }
        next
    }

    fn expect(&mut self, byte: u8) -> Result<(), Cause> {
        match self.takes(byte) {
            true => Ok(()),
            false => self.fail(),
        }
    }

    /// What stands between brackets, separated by commas, each taken by `each`.
    fn members(
        &mut self,
        [open, close]: [u8; 2],
        mut each: impl FnMut(&mut Self) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        self.expect(open)?;
        if self.takes(close) {
            return Ok(());
        }
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("it is too deep".into());
        }
        loop {
            each(self)?;
            if self.takes(b',') {
                continue;
            }
            self.depth -= 1;
            return self.expect(close);
        }
    }

    /// A list; `each` takes a value.
    pub(crate) fn list(&mut self, name: &str, each: impl FnMut(&mut Self) -> Result<(), Cause>) -> Result<(), Cause> {
        match self.peek() {
            Some(b'[') => self.members(*b"[]", each),
            _ => Err(format!("{name} is not a list")),
        }
    }

    /// An object; `each` is given a key and takes its value.
    pub(crate) fn object(
        &mut self,
        name: &str,
        mut each: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let member = |reader: &mut Self| {
            let key = reader.text()?;
            reader.expect(b':')?;
            each(reader, key)
        };
        match self.peek() {
            Some(b'{') => self.members(*b"{}", member),
            _ => Err(format!("{name} is not an object")),
        }
    }

    /// A string.
    pub(crate) fn text(&mut self) -> Result<Cow<'a, str>, Cause> {
        if self.peek() != Some(b'"') {
            return self.fail();
        }
        self.at += 1;
        let mut unescaped = None;
        loop {
            let rest = &self.text[self.at..];
            let plain = rest
                .bytes()
                .take_while(|&byte| byte >= b' ' && byte != b'"' && byte != b'\\')
                .count();
            let (part, end) = (&rest[..plain], rest.as_bytes().get(plain));
            self.at += plain + 1;
            let text = match unescaped {
                None => Cow::Borrowed(part),
                Some(before) => Cow::Owned(before + part),
            };
            match end {
                Some(b'"') => {
                    self.space();
                    return Ok(text);
                }
                Some(b'\\') => {
                    let mut text = text.into_owned();
                    text.push(self.escaped()?);
                    unescaped = Some(text);
                }
                _ => {
                    self.at -= 1;
                    return self.fail();
                }
            }
        }
    }

    /// What follows a backslash.
    fn escaped(&mut self) -> Result<char, Cause> {
        let Some(letter) = self.peek() else { return self.fail() };
        self.at += 1;
        Ok(match letter {
            b'"' | b'\\' | b'/' => letter.into(),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut units = [self.unit()?, 0];
                let pair = matches!(units[0], 0xD800..0xDC00) && self.bytes()[self.at..].starts_with(b"\\u");
                if pair {
                    self.at += 2;
                    units[1] = self.unit()?;
                }
                // Half of a surrogate pair is no character.
                let mut characters = char::decode_utf16(units[..1 + usize::from(pair)].iter().copied());
                match (characters.next(), characters.next()) {
                    (Some(Ok(character)), None) => character,
                    _ => return self.fail(),
                }
            }
            _ => return self.fail(),
        })
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Result<u16, Cause> {
        let digits = self.bytes().get(self.at..self.at + 4);
        let unit = digits.and_then(|digits| {
            let digit = |&digit: &u8| char::from(digit).to_digit(16);
            digits
                .iter()
                .try_fold(0, |unit, next| Some(unit << 4 | digit(next)? as u16))
        });
        match unit {
            Some(unit) => {
                self.at += 4;
                Ok(unit)
            }
            None => self.fail(),
        }
    }

    /// A number, as it is written.
    pub(crate) fn number(&mut self) -> Result<&'a str, Cause> {
        let bytes = &self.bytes()[self.at..];
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut end = usize::from(bytes.first() == Some(&b'-'));
        let whole = digits(end);
        let mut good = whole == 1 || whole > 1 && bytes[end] != b'0';
        end += whole;
        if bytes.get(end) == Some(&b'.') {
            let fraction = digits(end + 1);
            good &= fraction > 0;
            end += 1 + fraction;
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            end += 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(end);
            good &= exponent > 0;
            end += exponent;
        }
        if !good {
            return self.fail();
        }
        let number = &self.text[self.at..self.at + end];
        self.at += end;
        self.space();
        Ok(number)
    }

    fn word(&mut self, word: &str) -> Result<(), Cause> {
        if !self.text[self.at..].starts_with(word) {
            return self.fail();
        }
        self.at += word.len();
        self.space();
        Ok(())
    }

    /// Any value, as a tree.
    pub(crate) fn value(&mut self) -> Result<Value<'a>, Cause> {
        self.values += 1;
        if self.values > VALUES {
            return Err("it is too large".into());
        }
        Ok(match self.peek() {
            Some(b'{') => {
                let mut members = Vec::new();
                self.object("", |reader, key| {
                    members.push((key, reader.value()?));
                    Ok(())
                })?;
                Value::Object(members)
            }
            Some(b'[') => {
                let mut values = Vec::new();
                self.list("", |reader| {
                    values.push(reader.value()?);
                    Ok(())
                })?;
                Value::List(values)
            }
            Some(b'"') => Value::Text(self.text()?),
            Some(b'n') => self.word("null").map(|()| Value::Null)?,
            Some(b't') => self.word("true").map(|()| Value::Bool(true))?,
            Some(b'f') => self.word("false").map(|()| Value::Bool(false))?,
            _ => Value::Number(self.number()?),
        })
    }

    /// Takes any value and forgets it.
    pub(crate) fn skip(&mut self) -> Result<(), Cause> {
        match self.peek() {
            Some(b'{') => self.object("", |reader, _| reader.skip()),
            Some(b'[') => self.list("", Self::skip),
            Some(b'"') => self.text().map(drop),
            Some(b'n') => self.word("null"),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            _ => self.number().map(drop),
        }
    }
}

fn not_json(at: usize) -> Cause {
    format!("it is not JSON from byte {at} on")
}

/// Appends a string.
pub(crate) fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..' ' => out.push_str(&format!("\\u{:04x}", character as u32)),
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value<'_>, Cause> {
        let mut reader = Reader::new(text.as_bytes())?;
        let value = reader.value()?;
        reader.end()?;
        let mut reader = Reader::new(text.as_bytes())?;
        assert!(reader.skip().and_then(|()| reader.end()).is_ok());
        Ok(value)
    }

    #[test]
    fn values_are_read() {
        let text = |text: &'static str| Value::Text(text.into());
        for (json, value) in [
            (" null ", Value::Null),
            ("true", Value::Bool(true)),
            ("-0.5e+3", Value::Number("-0.5e+3")),
            (
                r#""a\"\\\/\b\f\n\r\t\u0041é\ud83d\ude42""#,
                text("a\"\\/\u{8}\u{c}\n\r\tAé🙂"),
            ),
            ("[ ]", Value::List(vec![])),
            (
                "[1 , [2]]",
                Value::List(vec![Value::Number("1"), Value::List(vec![Value::Number("2")])]),
            ),
            (
                "{\"a\" : 0,\"\":{}}",
                Value::Object(vec![
                    ("a".into(), Value::Number("0")),
                    ("".into(), Value::Object(vec![])),
                ]),
            ),
        ] {
            assert_eq!(read(json), Ok(value));
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for json in [
            "",
            " ",
            "nul",
            "nullx",
            "truefalse",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "1 2",
            "[1",
            "[1,]",
            "[,1]",
            "[1 2]",
            "]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:1}",
            "\"",
            "\"\n\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\ud83d\"",
            "\"\\ude42\"",
            "\"\\ud83dx\"",
            "\"\\ud83d\\u0041\"",
            "NaN",
            "'a'",
            "\u{feff}1",
        ] {
            assert!(
                Reader::new(json.as_bytes())
                    .and_then(|mut reader| {
                        reader.value()?;
                        reader.end()
                    })
                    .is_err(),
                "{json}"
            );
        }
        assert!(Reader::new(b"\"\xff\"").is_err());
        let deep = |depth| "[".repeat(depth) + "1" + &"]".repeat(depth);
        assert!(read(&deep(64)).is_ok());
        assert_eq!(read(&deep(65)), Err("it is too deep".into()));
    }

    #[test]
    fn what_is_written_is_read() {
        let text: String = ('\0'..'\u{300}').chain(['\u{2028}', '🙂']).collect();
        let mut json = String::new();
        write_text(&text, &mut json);
        assert_eq!(read(&json), Ok(Value::Text(text.into())));
    }
}
