//! Encoding and decoding, as a user sees them.

mod common;

use common::Random;
use mamba_integer_tokenizer::{
    documents, train, train_file, AllowSpecial, DecodeStream, Error, Tokenizer, Trainer, MAX_VOCAB_SIZE,
};

fn tokenizer() -> Tokenizer {
    train([Random(10).text(3000)], 600).unwrap()
}

#[test]
fn any_text_and_any_bytes_come_back() {
    let tokenizer = tokenizer();
    let mut random = Random(11);
    for size in 0..400 {
        let text = random.text(size);
        let tokens = tokenizer.encode(&text, AllowSpecial::AsText).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text.as_bytes());
        assert!(tokens.len() <= text.len());

        let bytes = random.bytes(size);
        let tokens = tokenizer.encode_bytes(&bytes, AllowSpecial::AsText).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), bytes);
    }
}

#[test]
fn every_character_comes_back() {
    let tokenizer = tokenizer();
    let every: String = (0..=0x10FFFF).filter_map(char::from_u32).collect();
    let tokens = tokenizer.encode(&every, AllowSpecial::Refuse).unwrap();
    assert!(tokenizer.decode(&tokens).unwrap() == every.as_bytes());
}

#[test]
fn a_megabyte_of_anything_is_no_trouble() {
    for unit in [
        "a",
        " ",
        "'",
        "\n",
        " \n",
        "!",
        "1",
        "ab",
        "é",
        "你",
        "\u{301}",
        "\u{3000}",
        "<",
        "<|endoftext|",
        "\"'",
        "a'",
    ] {
        let text = unit.repeat((1 << 20) / unit.len());
        // A tokenizer that has merges for it, and one that has none.
        for tokenizer in [train([&text], 300).unwrap(), train([""], 257).unwrap()] {
            let tokens = tokenizer.encode(&text, AllowSpecial::Refuse).unwrap();
            assert!(tokenizer.decode(&tokens).unwrap() == text.as_bytes(), "{unit:?}");
        }
    }
    let invalid = [0xE2, 0x82].repeat(1 << 19);
    let tokenizer = train([&invalid], 300).unwrap();
    let tokens = tokenizer.encode_bytes(&invalid, AllowSpecial::Refuse).unwrap();
    assert!(tokenizer.decode(&tokens).unwrap() == invalid);
}

#[test]
fn the_special_token_is_refused_made_or_text() {
    let tokenizer = tokenizer();
    let eot = tokenizer.eot();
    let ordinary = |text| tokenizer.encode(text, AllowSpecial::Refuse).unwrap();
    let text = "one<|endoftext|>two <|endoftext|>\n";
    match tokenizer.encode(text, AllowSpecial::default()) {
        Err(error @ Error::Special { offset: 3, .. }) => {
            assert_eq!(
                error.to_string(),
                "the text contains the special token <|endoftext|> at byte 3"
            );
        }
        other => panic!("{other:?}"),
    }
    let all = tokenizer.encode(text, AllowSpecial::All).unwrap();
    assert_eq!(
        all,
        [ordinary("one"), vec![eot], ordinary("two "), vec![eot], ordinary("\n")].concat()
    );
    let as_text = tokenizer.encode(text, AllowSpecial::AsText).unwrap();
    assert!(!as_text.contains(&eot));
    for tokens in [all, as_text] {
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text.as_bytes());
    }
    for almost in ["<|endoftext|", "<|endoftext| >", "<<|endoftext", "<|ENDOFTEXT|>"] {
        ordinary(almost);
    }
    let nested = tokenizer.encode("<|<|endoftext|>", AllowSpecial::All).unwrap();
    assert_eq!(nested, [ordinary("<|"), vec![eot]].concat());
}

#[test]
fn ids_are_bytes_merges_special() {
    let tokenizer = train(["abab"], 1000).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot()), (258, 257));
    for byte in 0..=255 {
        assert_eq!(tokenizer.token_bytes(u32::from(byte)).unwrap(), [byte]);
    }
    assert_eq!(tokenizer.token_bytes(256).unwrap(), b"ab");
    assert_eq!(tokenizer.token_bytes(257).unwrap(), b"<|endoftext|>");
    for id in [258, 259, u32::MAX] {
        let error = tokenizer.decode(&[97, id]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("token {id} is not in the vocabulary of 258 tokens")
        );
    }
}

#[test]
fn a_stream_never_splits_a_character() {
    let tokenizer = tokenizer();
    let mut random = Random(12);
    for round in 0..500 {
        let ids: Vec<u32> = match round % 3 {
            0 => random.text(60).bytes().map(u32::from).collect(),
            1 => random.bytes(60).iter().map(|&byte| byte.into()).collect(),
            _ => (0..60).map(|_| random.below(tokenizer.vocab_size()) as u32).collect(),
        };
        let bytes = tokenizer.decode(&ids).unwrap();
        let mut stream = DecodeStream::new(&tokenizer);
        let mut text = String::new();
        for (at, &id) in ids.iter().enumerate() {
            text += &stream.push(id).unwrap();
            // At most the beginning of one character waits.
            let so_far = tokenizer.decode(&ids[..=at]).unwrap();
            let complete = (0..4).rev().find_map(|waiting| {
                let lossy = String::from_utf8_lossy(so_far.get(..so_far.len().checked_sub(waiting)?)?).into_owned();
                (lossy == text).then_some(())
            });
            assert!(complete.is_some(), "round {round}");
        }
        if round % 3 == 0 {
            assert!(!text.contains('\u{fffd}'));
            assert_eq!(stream.clone().finish(), "");
        }
        text += &stream.finish();
        assert_eq!(text, String::from_utf8_lossy(&bytes), "round {round}");
        assert!(stream.push(u32::MAX).is_err());
        assert_eq!(stream.push(97).unwrap(), "a");
    }
}

#[test]
fn documents_stand_between_separator_lines() {
    let cases: [(&str, &[&str]); 10] = [
        ("", &[]),
        ("\n\n", &[]),
        ("one", &["one"]),
        ("<|endoftext|>", &[]),
        ("\none\ntwo\n\n<|endoftext|>\nthree", &["one\ntwo", "three"]),
        (
            "<|endoftext|>\n<|endoftext|>\n\n<|endoftext|>\none\n<|endoftext|>",
            &["one"],
        ),
        (" one \n<|endoftext|>\n\ttwo\n", &[" one ", "\ttwo"]),
        (
            "one <|endoftext|>\n<|endoftext|> two\n<|endoftext|>x",
            &["one <|endoftext|>\n<|endoftext|> two\n<|endoftext|>x"],
        ),
        ("one\r\n<|endoftext|>\r\n\r\ntwo\r\n", &["one", "two"]),
        ("one\n<|endoftext|>\r\r\ntwo", &["one\n<|endoftext|>\r\r\ntwo"]),
    ];
    for (text, expected) in cases {
        assert_eq!(documents(text).collect::<Vec<_>>(), expected, "{text:?}");
    }
}

#[test]
fn a_training_file_is_its_documents() {
    let path = std::env::temp_dir().join(format!("mamba-integer-tokenizer-{}.txt", std::process::id()));
    std::fs::write(&path, "low lower\n<|endoftext|>\nlowest slow\n<|endoftext|>\n").unwrap();
    let from_file = train_file(&path, 280).unwrap();
    std::fs::write(&path, b"low\xff").unwrap();
    let not_utf8 = train_file(&path, 280).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(from_file, train(["low lower", "lowest slow"], 280).unwrap());
    assert!((256..from_file.eot()).all(|id| !from_file.token_bytes(id).unwrap().contains(&b'<')));
    assert_eq!(
        not_utf8.to_string(),
        format!("{}: not UTF-8 text (byte 3)", path.display())
    );
    assert!(matches!(train_file(&path, 280), Err(Error::Io { .. })));
}

#[test]
fn a_vocabulary_has_a_least_and_a_largest_size() {
    for size in [0, 256, MAX_VOCAB_SIZE + 1, usize::MAX] {
        assert!(matches!(Trainer::new().finish(size), Err(Error::VocabSize(refused)) if refused == size));
    }
    assert_eq!(Trainer::new().finish(MAX_VOCAB_SIZE).unwrap().vocab_size(), 257);
}

#[test]
fn threads_share_a_tokenizer() {
    let tokenizer = tokenizer();
    let text = Random(13).text(2000);
    let expected = tokenizer.encode(&text, AllowSpecial::Refuse).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(tokenizer.encode(&text, AllowSpecial::Refuse).unwrap(), expected));
        }
    });
}
