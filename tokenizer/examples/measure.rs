//! Trains a tokenizer on a file, or loads one (also a .tiktoken file or a tokenizer.json), and measures it on another file:
//!
//! ```text
//! cargo run --release --example measure -- train TEXT VOCAB_SIZE TOKENIZER
//! cargo run --release --example measure -- encode TOKENIZER TEXT
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use mamba_integer_tokenizer::{documents, train_file, AllowSpecial, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let begin = Instant::now();
    match arguments[..] {
        ["train", text, vocab_size, out] => {
            let tokenizer = train_file(text, vocab_size.parse()?)?;
            tokenizer.save(out)?;
            println!(
                "{} tokens learned in {:.2} s",
                tokenizer.vocab_size(),
                begin.elapsed().as_secs_f64()
            );
        }
        ["encode", tokenizer, text] => {
            let tokenizer = match Path::new(tokenizer).extension().and_then(|end| end.to_str()) {
                Some("tiktoken") => Tokenizer::from_tiktoken(&std::fs::read(tokenizer)?, &[])?,
                Some("json") => Tokenizer::from_huggingface(&std::fs::read(tokenizer)?)?,
                _ => Tokenizer::load(tokenizer)?,
            };
            println!("loaded in {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
            let text = std::fs::read_to_string(text)?;
            let (mut bytes, mut count) = (0, 0);
            let begin = Instant::now();
            for document in documents(&text) {
                let tokens = tokenizer.encode(document, AllowSpecial::Refuse)?;
                bytes += document.len();
                count += tokens.len();
            }
            let seconds = begin.elapsed().as_secs_f64();
            for document in documents(&text) {
                let tokens = tokenizer.encode(document, AllowSpecial::Refuse)?;
                assert_eq!(
                    tokenizer.decode(&tokens)?,
                    document.as_bytes(),
                    "a document does not come back"
                );
            }
            println!("{count} tokens, {:.4} bytes per token", bytes as f64 / count as f64);
            println!("{:.1} MB/s; every document comes back", bytes as f64 / 1e6 / seconds);
        }
        _ => return Err("train TEXT VOCAB_SIZE TOKENIZER, or encode TOKENIZER TEXT".into()),
    }
    Ok(())
}
