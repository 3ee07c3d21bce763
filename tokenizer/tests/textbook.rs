//! Training and encoding, against the textbook's: the same results by the plainest means.

mod common;

use std::cmp::Reverse;
use std::collections::HashMap;

use common::Random;
use mamba_integer_tokenizer::{chunks, train, AllowSpecial, Tokenizer, MAX_TOKEN_BYTES, MIN_VOCAB_SIZE};

type Pair = (u32, u32);

/// Replaces a pair by a token, from left to right.
fn merge(tokens: &[u32], pair: Pair, token: u32) -> Vec<u32> {
    let mut merged = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if at + 1 < tokens.len() && (tokens[at], tokens[at + 1]) == pair {
            merged.push(token);
            at += 2;
        } else {
            merged.push(tokens[at]);
            at += 1;
        }
    }
    merged
}

fn bytes_of(chunk: &[u8]) -> Vec<u32> {
    chunk.iter().map(|&byte| u32::from(byte)).collect()
}

fn textbook_train(documents: &[Vec<u8>], vocab_size: usize) -> Vec<Pair> {
    let mut texts: Vec<Vec<u32>> = documents
        .iter()
        .flat_map(|document| chunks(document))
        .map(bytes_of)
        .collect();
    let mut lengths = vec![1; 256];
    let mut merges = Vec::new();
    while merges.len() < vocab_size - MIN_VOCAB_SIZE {
        let mut counts: HashMap<Pair, usize> = HashMap::new();
        for tokens in &texts {
            for pair in tokens.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += 1;
            }
        }
        let length = |pair: Pair| lengths[pair.0 as usize] + lengths[pair.1 as usize];
        let best = counts
            .into_iter()
            .filter(|&(pair, count)| count >= 2 && length(pair) <= MAX_TOKEN_BYTES)
            .max_by_key(|&(pair, count)| (count, Reverse(pair)));
        let Some((pair, _)) = best else { break };
        for tokens in &mut texts {
            *tokens = merge(tokens, pair, lengths.len() as u32);
        }
        lengths.push(length(pair));
        merges.push(pair);
    }
    merges
}

fn textbook_encode(tokenizer: &Tokenizer, text: &[u8]) -> Vec<u32> {
    let encode = |chunk| {
        let numbered = (256..).zip(tokenizer.merges());
        numbered.fold(bytes_of(chunk), |tokens, (token, &pair)| merge(&tokens, pair, token))
    };
    chunks(text).flat_map(encode).collect()
}

#[test]
fn training_is_the_textbooks() {
    let mut random = Random(1);
    for round in 0..150 {
        let documents: Vec<Vec<u8>> = (0..1 + random.below(4))
            .map(|_| match round % 3 {
                0 => random.text(80).into_bytes(),
                1 => random.bytes(80),
                // Letters only: long chunks, in which pairs overlap and counts tie.
                _ => (0..200)
                    .map(|_| random.pick(&["a", "b", "c"]))
                    .collect::<String>()
                    .into_bytes(),
            })
            .collect();
        let vocab_size = MIN_VOCAB_SIZE + random.below(90);
        let found = train(&documents, vocab_size).unwrap();
        assert_eq!(found.merges(), textbook_train(&documents, vocab_size), "round {round}");
    }
}

#[test]
fn training_stops_at_the_longest_token() {
    for length in [MAX_TOKEN_BYTES - 1, MAX_TOKEN_BYTES, 5000] {
        let documents = [b"a".repeat(length), b"ba".repeat(300)];
        let found = train(&documents, 400).unwrap();
        assert_eq!(found.merges(), textbook_train(&documents, 400));
        assert!((0..found.eot()).all(|id| found.token_bytes(id).unwrap().len() <= MAX_TOKEN_BYTES));
    }
}

#[test]
fn training_depends_on_no_order() {
    let mut random = Random(2);
    let mut documents: Vec<String> = (0..50).map(|_| random.text(40)).collect();
    let forwards = train(&documents, 400).unwrap();
    documents.reverse();
    assert_eq!(
        forwards.to_bytes().unwrap(),
        train(&documents, 400).unwrap().to_bytes().unwrap()
    );
}

#[test]
fn training_ends_when_no_pair_stands_twice() {
    let tokenizer = train(["ab ab cd"], 1000).unwrap();
    assert_eq!(tokenizer.merges(), [(97, 98)]); // the first chunk is `ab`, the second ` ab`
    assert_eq!(train([""], 257).unwrap().merges(), []);
    assert_eq!(train(["aaaa"], 257 + 9).unwrap().merges(), [(97, 97)]);
}

#[test]
fn training_breaks_ties_by_the_smaller_pair() {
    // Four pairs stand twice each.
    assert_eq!(train(["zx1zx1cb1cb1bd1bd1bc1bc"], 258).unwrap().merges(), [(98, 99)]);
}

#[test]
fn encoding_is_the_textbooks() {
    let mut random = Random(3);
    for round in 0..60 {
        let corpus = random.text(400);
        let tokenizer = train([&corpus], MIN_VOCAB_SIZE + random.below(200)).unwrap();
        let letters: String = (0..600)
            .map(|_| random.pick(&["a", "b", "ab", "abc", "the", "é"]))
            .collect();
        for text in [
            random.text(200).into_bytes(),
            random.bytes(200),
            letters.as_bytes().to_vec(),
            letters.as_bytes()[..95].to_vec(),
        ] {
            let found = tokenizer.encode_bytes(&text, AllowSpecial::AsText).unwrap();
            assert_eq!(found, textbook_encode(&tokenizer, &text), "round {round}");
        }
    }
}

#[test]
fn encoding_is_the_textbooks_where_merges_are_not_trained() {
    // Merges in an order that no training gives: equal bytes by several ways, and parts that are of use only later.
    let mut random = Random(4);
    for round in 0..200 {
        let mut pairs: Vec<Pair> = Vec::new();
        while pairs.len() < 30 {
            let ids: Vec<u32> = [97, 98, 99]
                .into_iter()
                .chain((256..).take(pairs.len().min(12)))
                .collect();
            let pair = (ids[random.below(ids.len())], ids[random.below(ids.len())]);
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
        let listed: String = pairs.iter().map(|(left, right)| format!("{left} {right}\n")).collect();
        let file = format!("mamba-integer-bpe 1\npattern gpt4\nmerges 30\n{listed}special 1\n<|endoftext|>\n");
        // Some make a token that is too long.
        let Ok(tokenizer) = Tokenizer::from_bytes(file.as_bytes()) else {
            continue;
        };
        for length in [2, 7, 90, 96, 97, 300] {
            let text: String = (0..length).map(|_| random.pick(&["a", "b", "c"])).collect();
            let found = tokenizer.encode(&text, AllowSpecial::Refuse).unwrap();
            assert_eq!(found, textbook_encode(&tokenizer, text.as_bytes()), "round {round}");
        }
    }
}
