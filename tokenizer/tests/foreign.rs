//! Vocabularies of other makers, against the textbook's reading of them.

mod common;

use std::collections::HashMap;

use common::Random;
use mamba_integer_tokenizer::{chunks, train, AllowSpecial, Error, Tokenizer};

/// tiktoken's way: as long as two neighbours make up a token, those with the lowest rank, and of several the leftmost, become one.
fn by_ranks(ranks: &HashMap<Vec<u8>, u32>, chunk: &[u8]) -> Vec<u32> {
    let mut parts: Vec<Vec<u8>> = chunk.iter().map(|&byte| vec![byte]).collect();
    loop {
        let pairs = parts.windows(2).map(|pair| ranks.get(&pair.concat()));
        let Some((rank, at)) = pairs.enumerate().filter_map(|(at, rank)| Some((rank?, at))).min() else {
            return parts.iter().map(|part| ranks[part]).collect();
        };
        _ = rank;
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
}

fn special(id: u32) -> [(String, u32); 1] {
    [("<|end|>".into(), id)]
}

#[test]
fn ranks_are_read_as_tiktoken_does() {
    let mut random = Random(30);
    for round in 0..120 {
        // Trained tokens, or any at all, among them many that cannot be reached.
        let mut longer: Vec<Vec<u8>> = match round % 2 {
            0 => {
                let trained = train([random.text(500)], 400).unwrap();
                (256..trained.eot())
                    .map(|id| trained.token_bytes(id).unwrap().to_vec())
                    .collect()
            }
            _ => (0..60)
                .map(|_| (0..2 + random.below(4)).map(|_| b"abc"[random.below(3)]).collect())
                .collect(),
        };
        longer.sort_by_cached_key(|_| random.next());
        longer.dedup();
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        tokens.sort_by_cached_key(|_| random.next());
        for token in longer {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        // Ids with gaps.
        let tokens: Vec<(Vec<u8>, u32)> = tokens.into_iter().zip((0..).step_by(3)).collect();
        let ranks: HashMap<Vec<u8>, u32> = tokens.iter().cloned().collect();
        let tokenizer = Tokenizer::from_ranks(&tokens, &special(1)).unwrap();
        let letters: String = (0..200).map(|_| random.pick(&["a", "b", "c", "ab"])).collect();
        for text in [random.text(100).into_bytes(), random.bytes(100), letters.into_bytes()] {
            let expected: Vec<u32> = chunks(&text).flat_map(|chunk| by_ranks(&ranks, chunk)).collect();
            let found = tokenizer.encode_bytes(&text, AllowSpecial::AsText).unwrap();
            assert_eq!(found, expected, "round {round}");
            assert_eq!(tokenizer.decode(&found).unwrap(), text);
        }
        assert_eq!(tokenizer.encode("<|end|>", AllowSpecial::All).unwrap(), [1]);
        assert!(tokenizer.to_bytes().is_err());

        let json = tokenizer.to_huggingface().unwrap();
        assert_eq!(Tokenizer::from_huggingface(&json).unwrap(), tokenizer);

        let merges = as_merges(&tokenizer);
        let again = Tokenizer::from_merges(&tokens, &merges, &special(1)).unwrap();
        let text = random.text(200);
        let expected = tokenizer.encode(&text, AllowSpecial::AsText).unwrap();
        assert_eq!(again.encode(&text, AllowSpecial::AsText).unwrap(), expected);
    }
}

/// As long as two neighbours have a merge, the first of these, and of several the leftmost, applies; merges to one token are one.
fn by_merges(ids: &HashMap<Vec<u8>, u32>, merges: &[(Vec<u8>, Vec<u8>)], chunk: &[u8]) -> Vec<u32> {
    let number = |pair: &[Vec<u8>]| {
        let made = merges
            .iter()
            .find(|(left, right)| *left == pair[0] && *right == pair[1])?;
        let token = [&made.0[..], &made.1].concat();
        merges
            .iter()
            .position(|(left, right)| [&left[..], right].concat() == token)
    };
    let mut parts: Vec<Vec<u8>> = chunk.iter().map(|&byte| vec![byte]).collect();
    loop {
        let pairs = parts.windows(2).map(number);
        let Some((_, at)) = pairs.enumerate().filter_map(|(at, first)| Some((first?, at))).min() else {
            return parts.iter().map(|part| ids[part]).collect();
        };
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
}

#[test]
fn what_is_a_token_is_encoded_as_its_bytes_merge() {
    let mut whole = [0; 4];
    for round in 0..200 {
        let mut random = Random(4000 + round);
        let alphabet: &[u8] = if round % 2 == 0 { b"ab" } else { b"abc\xFF" };
        // Random tokens of up to 20 bytes, of two others each or of anything: many are not what their bytes become.
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut merges = Vec::new();
        for _ in 0..60 {
            let any = |random: &mut Random| match random.below(3) {
                0 => vec![alphabet[random.below(alphabet.len())]],
                _ if tokens.len() > 256 => tokens[256 + random.below(tokens.len() - 256)].clone(),
                _ => b"a".to_vec(),
            };
            let (left, right) = (any(&mut random), any(&mut random));
            let token = [&left[..], &right].concat();
            if token.len() <= 20 && !tokens.contains(&token) {
                tokens.push(token);
                merges.push((left, right));
            }
        }
        // In any order, so that parts may come after what is made of them, or not at all.
        for at in (1..merges.len()).rev() {
            let other = random.below(at + 1);
            if random.below(2) == 0 {
                merges.swap(at, other);
                tokens.swap(256 + at, 256 + other);
            }
        }
        // Another pair for some tokens, next to the first.
        let mut more = Vec::new();
        for (left, right) in merges {
            let token = [&left[..], &right].concat();
            let at = 1 + random.below(token.len() - 1);
            let other = (token[..at].to_vec(), token[at..].to_vec());
            let two = at != left.len() && tokens.contains(&other.0) && tokens.contains(&other.1);
            more.push((left, right));
            more.extend(two.then_some(other));
        }
        let ids: HashMap<Vec<u8>, u32> = tokens.iter().cloned().zip(0..).collect();
        let numbered: Vec<(Vec<u8>, u32)> = tokens.iter().cloned().zip(0..).collect();
        let ranked = Tokenizer::from_ranks(&numbered, &[]).unwrap();
        let merged = Tokenizer::from_merges(&numbered, &more, &[]).unwrap();
        let clone = merged.clone();
        for token in &tokens[256..] {
            let expected: Vec<u32> = chunks(token).flat_map(|chunk| by_ranks(&ids, chunk)).collect();
            let found = ranked.encode_bytes(token, AllowSpecial::AsText).unwrap();
            assert_eq!(found, expected, "round {round}, ranks, {token:?}");
            whole[usize::from(found.len() == 1)] += 1;
            let expected: Vec<u32> = chunks(token).flat_map(|chunk| by_merges(&ids, &more, chunk)).collect();
            for tokenizer in [&merged, &clone] {
                let found = tokenizer.encode_bytes(token, AllowSpecial::AsText).unwrap();
                assert_eq!(found, expected, "round {round}, merges, {token:?}");
            }
            whole[2 + usize::from(expected.len() == 1)] += 1;
        }
    }
    assert!(whole.iter().all(|&count| count > 500), "{whole:?}");
}

fn as_merges(tokenizer: &Tokenizer) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = |id| tokenizer.token_bytes(id).unwrap().to_vec();
    tokenizer
        .rules()
        .map(|[left, right, _]| (bytes(left), bytes(right)))
        .collect()
}

#[test]
fn a_tokenizer_comes_back_from_other_forms() {
    for round in 0..20 {
        let tokenizer = train([Random(31 + round).text(2000)], 600).unwrap();
        let special = tokenizer.specials();
        let file = tokenizer.to_tiktoken().unwrap();
        assert!(file.starts_with(b"AA== 0\nAQ== 1\n"));
        let again = Tokenizer::from_tiktoken(&file, special).unwrap();
        assert_eq!(again.to_bytes().unwrap(), tokenizer.to_bytes().unwrap());

        let json = tokenizer.to_huggingface().unwrap();
        let again = Tokenizer::from_huggingface(&json).unwrap();
        assert_eq!(again.to_bytes().unwrap(), tokenizer.to_bytes().unwrap());
        // Space, another order of the members, and merges in the older form.
        let json = String::from_utf8(json).unwrap();
        let (head, model) = json.split_once(r#""model":"#).unwrap();
        let (vocabulary, merges) = model.split_once(r#""merges":"#).unwrap();
        let older = merges.replace(r#"",""#, " ").replace(r#"["#, "").replace("]", "");
        let older = format!("[{}]", older.trim_end_matches('}'));
        let model = format!(
            "{},\"other\":[{{}}],\"merges\" : {older}\n}}",
            vocabulary.trim_end_matches(',')
        );
        let turned = format!("\n{{ \"model\":{model},{}}}", head.trim_matches(['{', ',']));
        let again = Tokenizer::from_huggingface(turned.as_bytes()).unwrap_or_else(|error| panic!("{error}: {turned}"));
        assert_eq!(again.to_bytes().unwrap(), tokenizer.to_bytes().unwrap());

        let tokens: Vec<(Vec<u8>, u32)> = tokenizer.ordinary().map(|(id, token)| (token.to_vec(), id)).collect();
        let again = Tokenizer::from_merges(&tokens, &as_merges(&tokenizer), special).unwrap();
        assert_eq!(again.to_bytes().unwrap(), tokenizer.to_bytes().unwrap());
    }
}

fn single() -> Vec<(Vec<u8>, u32)> {
    (0..=255).map(|byte| (vec![byte], u32::from(byte))).collect()
}

fn with(more: &[(&str, u32)]) -> Vec<(Vec<u8>, u32)> {
    single()
        .into_iter()
        .chain(more.iter().map(|(token, id)| (token.as_bytes().to_vec(), *id)))
        .collect()
}

#[track_caller]
fn refused_file(result: Result<Vec<u8>, Error>, cause: &str) {
    assert!(result.is_err_and(|error| error.to_string().ends_with(cause)));
}

#[track_caller]
fn refused(result: Result<Tokenizer, Error>, cause: &str) {
    match result {
        Err(error @ Error::Vocabulary(_)) => assert!(error.to_string().ends_with(cause), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_vocabulary_is_refused() {
    let none = &[];
    refused(Tokenizer::from_ranks(&single()[1..], none), "the byte 0 is no token");
    refused(
        Tokenizer::from_ranks(&with(&[("ab", 7)]), none),
        "two tokens have the id 7",
    );
    refused(
        Tokenizer::from_ranks(&with(&[("ab", 256), ("ab", 257)]), none),
        "the tokens 256 and 257 have the same bytes",
    );
    refused(
        Tokenizer::from_ranks(&with(&[("", 256)]), none),
        "token 256 has 0 bytes, not 1 to 256",
    );
    let long = "a".repeat(257);
    refused(
        Tokenizer::from_ranks(&with(&[(&long, 256)]), none),
        "token 256 has 257 bytes, not 1 to 256",
    );
    refused(
        Tokenizer::from_ranks(&with(&[("ab", u32::MAX)]), none),
        "the id 4294967295 is above 16777216",
    );
    refused(
        Tokenizer::from_ranks(&single(), &special(255)),
        "two tokens have the id 255",
    );
    refused(
        Tokenizer::from_ranks(&single(), &[(String::new(), 256)]),
        "the special token 256 has no name",
    );

    let merge = |left: &str, right: &str| (left.as_bytes().to_vec(), right.as_bytes().to_vec());
    let tokens = with(&[("ab", 256), ("abc", 257), ("bc", 258)]);
    let refuse = |merges: &[(Vec<u8>, Vec<u8>)], cause| refused(Tokenizer::from_merges(&tokens, merges, none), cause);
    refuse(&[merge("a", "z")], "merge 0 is of or to what is no token");
    refuse(&[merge("a", "b"), merge("a", "b")], "merge 1 is there already");
    let apart = [merge("a", "b"), merge("ab", "c"), merge("b", "c"), merge("a", "bc")];
    refuse(&apart, "merge 3 makes a token that an earlier one makes already");
    let together = [merge("a", "b"), merge("b", "c"), merge("ab", "c"), merge("a", "bc")];
    let tokenizer = Tokenizer::from_merges(&tokens, &together, none).unwrap();
    assert_eq!(tokenizer.encode("abc", AllowSpecial::Refuse).unwrap(), [257]);
    assert_eq!(tokenizer.eot(), u32::MAX);
}

#[test]
fn tokenizer_json_files_are_checked() {
    let good = String::from_utf8(train(["ab ab"], 258).unwrap().to_huggingface().unwrap()).unwrap();
    let read = |from: &str, to: &str| {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        Tokenizer::from_huggingface(good.replace(from, to).as_bytes())
    };
    assert!(read("\"ab\":256", "\"ab\":256 ").is_ok());
    refused(read("\"merges\":", "\"merges\":[],\"merges\":"), "it has merges twice");
    refused(read("\"normalizer\":null", "\"normalizer\":{}"), "it has a normalizer");
    refused(read("\"vocab\":", "\"vocab\":{},\"vocab\":"), "it has vocab twice");
    refused(read("\"BPE\"", "\"Unigram\""), "its model is not BPE");
    refused(
        read("[\"a\",\"b\"]", "[\"a\",\"b\",\"c\"]"),
        "merge 0 is not of two tokens whose characters stand for bytes",
    );
    refused(
        read("\"ab\":256", "\"ab\":-256"),
        "an id in model.vocab is not a number below 2^32",
    );
    refused(
        read("\"ab\":256", "\"a b\":256"),
        "\"a b\" is no token whose characters stand for bytes",
    );
    refused(read("\"ab\":256", "\"ab\":255"), "two tokens have the id 255");
    refused(
        read("]}}", "]}} x"),
        &format!("it is not JSON from byte {} on", good.len() + 1),
    );
    let named = Tokenizer::from_ranks(&with(&[("ab", 256)]), &[("ab".into(), 300)]).unwrap();
    refused_file(
        named.to_huggingface(),
        "two tokens would be named \"ab\" in a tokenizer.json",
    );
    // a bc and ab c are the same bytes.
    let twice = "mamba-integer-bpe 1\npattern gpt4\nmerges 4\n97 98\n98 99\n97 257\n256 99\nspecial 1\n<|endoftext|>\n";
    let twice = Tokenizer::from_bytes(twice.as_bytes()).unwrap();
    refused_file(
        twice.to_huggingface(),
        "two tokens would be named \"abc\" in a tokenizer.json",
    );
    refused_file(twice.to_tiktoken(), "the tokens 258 and 259 have the same bytes");
}

#[test]
fn tiktoken_files_are_checked() {
    let good = train(["low lower lowest slow slower"], 270).unwrap();
    let file = good.to_tiktoken().unwrap();
    let text = String::from_utf8(file.clone()).unwrap();
    let read = |text: &str| Tokenizer::from_tiktoken(text.as_bytes(), good.specials());
    assert_eq!(read(&text.replace('\n', "\r\n")).unwrap(), good);
    for line in [
        "A",
        "AA== ",
        "AA==  1",
        "AA== 1x",
        "AA== -1",
        "AA== 9999999999",
        "A=== 1",
        "AB== 1",
        "A?== 1",
        "AA 1",
        " 1",
        "AA==1",
    ] {
        let changed = text.replacen("AA== 0", line, 1);
        match read(&changed) {
            Err(Error::Vocabulary(_)) => {}
            other => panic!("{line:?}: {other:?}"),
        }
    }
    // Whatever byte is changed, it is an error or a vocabulary that encodes and decodes.
    for at in (0..file.len()).step_by(7) {
        for byte in [b'\n', b' ', b'0', b'A', b'=', 0xFF] {
            let mut changed = file.clone();
            changed[at] = byte;
            if let Ok(tokenizer) = Tokenizer::from_tiktoken(&changed, &[]) {
                let tokens = tokenizer.encode("slower", AllowSpecial::AsText).unwrap();
                assert_eq!(tokenizer.decode(&tokens).unwrap(), b"slower");
            }
        }
    }
}

#[test]
fn special_tokens_have_policies_each() {
    let special: Vec<(String, u32)> = [("<|a|>", 300), ("<|a|>b", 301), ("[x]", 302), ("!", 303)]
        .map(|(name, id)| (name.into(), id))
        .into();
    let tokenizer = Tokenizer::from_ranks(&single(), &special).unwrap();
    use AllowSpecial::{All, AsText, Refuse};
    let encode = |text: &str, policy: [AllowSpecial; 4]| tokenizer.encode_each(text.as_bytes(), &policy);
    assert_eq!(encode("<|a|>b<|a|>[x]!", [All; 4]).unwrap(), [301, 300, 302, 303]);
    assert_eq!(encode("<|a|>b", [All, AsText, All, All]).unwrap(), [300, 98]);
    assert_eq!(encode("[x]", [All, All, AsText, All]).unwrap(), [91, 120, 93]);
    // Anywhere in a text, also at the edges of what is looked at together.
    for at in 0..200 {
        let text = format!("{}[x]{}", "a".repeat(at), "[y".repeat(40));
        match encode(&text, [All, All, Refuse, AsText]) {
            Err(Error::Special { name, offset }) => assert_eq!((name.as_str(), offset), ("[x]", at)),
            other => panic!("{other:?}"),
        }
        let tokens = encode(&text, [All; 4]).unwrap();
        assert_eq!(tokens[at], 302);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text.as_bytes());
        let late = format!("<|a|>{text}");
        assert!(
            matches!(encode(&late, [All, All, Refuse, All]), Err(Error::Special { offset, .. }) if offset == at + 5)
        );
    }
    assert_eq!(tokenizer.vocab_size(), 304);
    assert!(tokenizer.decode(&[256]).is_err());
}

#[test]
fn a_batch_is_its_texts() {
    let mut random = Random(33);
    let tokenizer = train([random.text(3000)], 600).unwrap();
    let policy = [AllowSpecial::Refuse];
    for count in [0, 1, 2, 100, 3000] {
        let texts: Vec<String> = (0..count)
            .map(|at| random.text(if at % 50 == 0 { 3000 } else { 20 }))
            .collect();
        for threads in [0, 1, 2, 3, 8] {
            let (tokens, ends) = tokenizer.encode_batch(&texts, &policy, threads).unwrap();
            assert_eq!((ends.len(), ends.last().copied().unwrap_or(0)), (count, tokens.len()));
            let mut from = 0;
            for (text, &end) in texts.iter().zip(&ends) {
                assert_eq!(tokens[from..end], tokenizer.encode(text, AllowSpecial::Refuse).unwrap());
                from = end;
            }
        }
    }
    // Enough for several threads, with more tokens than room is made for at first, and texts of very different lengths.
    let mut texts = vec![Vec::new(); 7];
    for at in 0..120 {
        texts.push((0..random.below(60_000)).map(|_| random.below(256) as u8).collect());
        texts.push(b"a word, and another ".repeat(random.below(if at == 60 { 30_000 } else { 30 })));
    }
    let alone: Vec<_> = texts
        .iter()
        .map(|text| tokenizer.encode_bytes(text, AllowSpecial::Refuse).unwrap())
        .collect();
    for threads in [2, 3, 8] {
        let (tokens, ends) = tokenizer.encode_batch(&texts, &policy, threads).unwrap();
        assert!(tokens == alone.concat());
        let mut from = 0;
        for (tokens, &end) in alone.iter().zip(&ends) {
            assert_eq!(tokens.len(), end - from);
            from = end;
        }
    }
    let mut texts = vec!["word ".repeat(1000); 500];
    texts[300] += "<|endoftext|>";
    texts[100] += "y<|endoftext|>";
    for threads in [1, 4] {
        let failed = tokenizer.encode_batch(&texts, &policy, threads);
        assert!(matches!(failed, Err(Error::Special { offset: 5001, .. })), "{failed:?}");
    }
}

#[test]
fn the_older_pattern_splits_the_last_lines_of_space() {
    let tokens = with(&[
        ("  ", 256),
        (" \n", 257),
        ("  \n", 258),
        ("\n  ", 259),
        ("  \n  ", 260),
        ("\u{3000}", 261),
    ]);
    let special = &special(300);
    let newer = Tokenizer::from_ranks(&tokens, special).unwrap();
    let older = newer.clone().with_older_pattern();
    assert!(older.has_older_pattern() && older != newer);
    for (text, apart) in [
        ("", ""),
        ("a", ""),
        ("a  \n", ""),
        ("a  \n", "  "),
        ("  \n", "  "),
        ("a \n \n", "  "),
        ("a!\n", "  "),
        ("a\n\u{3000}\n", "\u{3000} "),
        ("a \u{3000} ", ""),
        ("a\n  b", ""),
    ] {
        let whole = format!("{text}{apart}");
        let encode = |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, AllowSpecial::All).unwrap();
        let expected = [encode(&newer, text), encode(&newer, apart)].concat();
        assert_eq!(encode(&older, &whole), expected, "{whole:?}");
        let expected = [encode(&older, &whole), vec![300], encode(&older, &whole)].concat();
        assert_eq!(encode(&older, &format!("{whole}<|end|>{whole}")), expected);
    }
    for text in [
        &b"\xff \n \x80"[..],
        b"\x80",
        b"\n \xe3\x80",
        b"\xe3\x80\x80\xe3\x80\x80 ",
    ] {
        let tokens = older.encode_bytes(text, AllowSpecial::All).unwrap();
        assert_eq!(older.decode(&tokens).unwrap(), text);
    }
}
