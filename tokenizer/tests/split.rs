//! The split, against tiktoken's.

use std::fs;

use mamba_integer_tokenizer::chunks;

/// Checks a file of texts that tools/split_golden.py wrote, and says how many there were.
fn check(path: &str) -> usize {
    let golden = fs::read_to_string(path).unwrap();
    for (index, line) in golden.lines().enumerate() {
        let expected: Vec<Vec<u8>> = line.split(' ').map(unhex).collect();
        let text = expected.concat();
        let found: Vec<&[u8]> = chunks(&text).collect();
        assert_eq!(
            found,
            expected,
            "{path}:{}: {:?}",
            index + 1,
            String::from_utf8_lossy(&text)
        );
    }
    golden.lines().count()
}

fn unhex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

#[test]
fn splits_as_tiktoken_does() {
    assert!(check(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/split_golden.txt")) > 1000);
    if let Ok(path) = std::env::var("SPLIT_GOLDEN") {
        println!("{} more texts", check(&path));
    }
}

#[test]
fn splits_invalid_bytes_as_their_replacement() {
    let texts: [&[u8]; 10] = [
        b"\xff",
        b"a\xffb \xfe\xfe\n c",
        b"\xe2\x82abc",
        b" \xe2\x82 abc",
        b"\xf0\x9f\x98x\xf0\x9f\x98\x80x",
        b"\xc0\xafq",
        b"\xed\xa0\x80z",
        b"1\xf4\x90\x80\x802",
        b"'\xc5",
        b"  \x80  \xe2",
    ];
    for text in texts {
        let lossy = String::from_utf8_lossy(text);
        let expected: Vec<_> = chunks(lossy.as_bytes()).map(String::from_utf8_lossy).collect();
        let found: Vec<_> = chunks(text).map(String::from_utf8_lossy).collect();
        assert_eq!(found, expected, "{text:x?}");
        assert_eq!(chunks(text).collect::<Vec<_>>().concat(), text);
    }
}
