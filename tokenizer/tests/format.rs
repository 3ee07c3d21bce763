//! The file form: one for each tokenizer, and nothing else is taken for one.

mod common;

use common::Random;
use mamba_integer_tokenizer::{train, AllowSpecial, Cause, Error, Tokenizer, MAX_MERGES};

const HEAD: &str = "mamba-integer-bpe 1\npattern gpt4\n";
const TAIL: &str = "special 1\n<|endoftext|>\n";

fn file(merges: &str) -> String {
    format!("{HEAD}merges {}\n{merges}{TAIL}", merges.lines().count())
}

#[track_caller]
fn refused(file: impl AsRef<[u8]>, line: usize, cause: Cause) {
    match Tokenizer::from_bytes(file.as_ref()) {
        Err(Error::Format {
            line: found_line,
            cause: found,
        }) => assert_eq!((found_line, found), (line, cause)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_form_is_as_documented() {
    let expected = file("97 98\n256 99\n");
    let tokenizer = Tokenizer::from_bytes(expected.as_bytes()).unwrap();
    assert_eq!(tokenizer.merges(), [(97, 98), (256, 99)]);
    assert_eq!(tokenizer.to_bytes().unwrap(), expected.as_bytes());
    assert_eq!(tokenizer.encode("abcab", AllowSpecial::Refuse).unwrap(), [257, 256]);
    assert_eq!(Tokenizer::from_bytes(file("").as_bytes()).unwrap().vocab_size(), 257);
}

#[test]
fn a_saved_tokenizer_is_loaded_the_same() {
    let tokenizer = train([Random(20).text(2000)], 500).unwrap();
    let directory = std::env::temp_dir().join(format!("mamba-integer-tokenizer-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("a.bpe");
    for _ in 0..2 {
        tokenizer.save(&path).unwrap();
    }
    assert_eq!(Tokenizer::load(&path).unwrap(), tokenizer);
    assert_eq!(std::fs::read(&path).unwrap(), tokenizer.to_bytes().unwrap());
    // A failure leaves nothing behind.
    assert!(matches!(tokenizer.save(&directory), Err(Error::Io { .. })));
    assert!(matches!(
        tokenizer.save(directory.join("none").join("a.bpe")),
        Err(Error::Io { .. })
    ));
    let left: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["a.bpe"]);
    std::fs::remove_dir_all(&directory).unwrap();
    let error = Tokenizer::load(&path).unwrap_err();
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
}

#[test]
fn every_line_is_checked() {
    refused("", 1, Cause::Missing);
    refused("mamba-integer-bpe 1", 1, Cause::Missing);
    refused("mamba-integer-bpe 2\n", 1, Cause::Expected("mamba-integer-bpe 1"));
    refused(
        "\u{feff}mamba-integer-bpe 1\n",
        1,
        Cause::Expected("mamba-integer-bpe 1"),
    );
    refused(
        "mamba-integer-bpe 1\npattern gpt2\n",
        2,
        Cause::Expected("pattern gpt4"),
    );
    refused(
        file("").replace('\n', "\r\n"),
        1,
        Cause::Expected("mamba-integer-bpe 1"),
    );
    for count in [
        "",
        " ",
        "x",
        "+0",
        "-0",
        "00",
        "01",
        "0 ",
        "0x0",
        "4294967296",
        "99999999999999999999",
        "\u{661}",
    ] {
        refused(
            format!("{HEAD}merges {count}\n{TAIL}"),
            3,
            Cause::Expected("merges NUMBER"),
        );
    }
    refused(
        format!("{HEAD}merges {}\n{TAIL}", MAX_MERGES + 1),
        3,
        Cause::TooManyMerges,
    );
    refused(format!("{HEAD}merges 4294967295\n{TAIL}"), 3, Cause::TooManyMerges);
    refused(format!("{HEAD}merges {MAX_MERGES}\n{TAIL}"), 3, Cause::TooShort);
    for merge in [
        "", "97", "97 ", " 97", "97  98", "97 98 ", " 97 98", "97 98 99", "97\t98", "+97 98", "097 98", "97 -1",
        "97 x", "9.7 98",
    ] {
        refused(file(&format!("1 2\n{merge}\n")), 5, Cause::Expected("LEFT RIGHT"));
    }
    refused(file("97 4294967296\n"), 4, Cause::Expected("LEFT RIGHT"));
    refused(file("97 256\n"), 4, Cause::UnknownToken(256));
    refused(file("97 98\n257 97\n"), 5, Cause::UnknownToken(257));
    refused(file("97 4294967295\n"), 4, Cause::UnknownToken(u32::MAX));
    refused(file("97 98\n98 97\n97 98\n"), 6, Cause::Duplicate(97, 98));
    refused(
        format!("{HEAD}merges 1\n97 98\n98 97\n{TAIL}"),
        5,
        Cause::Expected("special 1"),
    );
    refused(
        format!("{HEAD}merges 0\nspecial 2\n<|endoftext|>\n"),
        4,
        Cause::Expected("special 1"),
    );
    refused(
        format!("{HEAD}merges 0\nspecial 1\n<|eot|>\n"),
        5,
        Cause::Expected("<|endoftext|>"),
    );
    refused(format!("{HEAD}merges 0\nspecial 1\n<|endoftext|>"), 5, Cause::Missing);
    refused(file("") + "\n", 6, Cause::Trailing);
    refused(file("") + "\0", 6, Cause::Trailing);
}

#[test]
fn tokens_have_a_largest_length() {
    // Each merge doubles: 2, 4, ... 256 bytes, and then too many.
    let doubling = |merges: u32| {
        let lines = (0..merges).map(|index| {
            if index == 0 {
                "97 97\n".into()
            } else {
                format!("{0} {0}\n", 255 + index)
            }
        });
        file(&lines.collect::<String>())
    };
    assert!(Tokenizer::from_bytes(doubling(8).as_bytes()).is_ok());
    refused(doubling(9), 12, Cause::TooLong);
    refused(doubling(100_000), 12, Cause::TooLong);
}

#[test]
fn no_other_bytes_are_the_same_tokenizer() {
    // Whatever single byte is changed, put in or left out: the file is refused, or it is the file of another tokenizer.
    let tokenizer = train(["low lower lowest slow slower"], 270).unwrap();
    let original = tokenizer.to_bytes().unwrap();
    let check = |changed: &[u8]| {
        if let Ok(other) = Tokenizer::from_bytes(changed) {
            assert!(
                other.to_bytes().unwrap() == changed,
                "{:?}",
                String::from_utf8_lossy(changed)
            );
        }
    };
    for at in 0..original.len() {
        check(&original[..at]);
        check(&[&original[..at], &original[at + 1..]].concat());
        for byte in 0..=255 {
            check(&[&original[..at], &[byte], &original[at + 1..]].concat());
            check(&[&original[..at], &[byte], &original[at..]].concat());
        }
    }
}

#[test]
fn errors_name_the_line_and_the_cause() {
    let error = Tokenizer::from_bytes(file("97 98\n97 98\n").as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a tokenizer file: line 5: the pair 97 98 is merged by an earlier line"
    );
}
