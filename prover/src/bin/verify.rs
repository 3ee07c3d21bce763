//! `mamba-integer-verify PROOF --model CARD|COMMITMENT [--registration FILE]`: checks a proof without weights and without Python.
//!
//! The card (or commitment) is the caller's choice of model and must come from someone the caller trusts; the card inside the proof is used only if it
//! hashes to that commitment. Exit status: 0 the proof holds; 1 it does not; 2 bad usage, or a file that is no proof.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use mamba_integer_prover::generation::{read, verify, Verified};
use mamba_integer_prover::registration;
use mamba_integer_prover::statement::{from_hex, hex, Card};
use serde_json::{json, Value};

const PROGRAM: &str = "mamba-integer-verify";
const USAGE: &str = "usage: mamba-integer-verify PROOF --model FILE.card|COMMITMENT [--registration FILE] [--json]

Checks that a registered Mamba-Integer model generated what a proof says. Needs no weights: only the model's card, or its commitment of 64
hexadecimal digits, which you must have from someone you trust.

options:
  --model FILE.card|COMMITMENT   the model that the proof must be about
  --registration FILE            the model's registration, checked too; by default NAME.registration beside NAME.card, if it is there
  --json                         print one JSON object
  --version                      print the version and exit
  -h, --help                     print this and exit

exit status: 0 the proof holds; 1 it does not; 2 bad usage, or a file that is no proof

example:
  mamba-integer-verify story.proof --model models/tinystories.card";
/// No proof or card is larger.
const MAX_BYTES: u64 = 1 << 26;

struct Arguments {
    proof: String,
    model: String,
    registration: Option<String>,
    json: bool,
}

enum Request {
    Check(Arguments),
    Print(String),
}

fn main() -> ExitCode {
    // Panics inside a check are caught and reported as the reason why a proof does not hold.
    std::panic::set_hook(Box::new(|_| {}));
    let done = std::panic::catch_unwind(|| arguments(std::env::args().skip(1)).and_then(run));
    let (status, out) = match done {
        Ok(Ok(done)) => done,
        Ok(Err(message)) => return complain(&message),
        Err(_) => return complain("internal error"),
    };
    match writeln!(std::io::stdout(), "{out}") {
        Ok(()) => ExitCode::from(status),
        Err(error) => complain(&format!("standard output: {error}")),
    }
}

fn complain(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{PROGRAM}: error: {}", visible(message));
    ExitCode::from(2)
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Request, String> {
    let (mut proof, mut model, mut registration, mut json) = (None, None, None, false);
    let usage = |what: String| format!("{what} (see {PROGRAM} --help)");
    while let Some(argument) = given.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (&argument[..], None),
        };
        match name {
            "-h" | "--help" => return Ok(Request::Print(USAGE.into())),
            "--version" => return Ok(Request::Print(format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")))),
            "--json" if value.is_none() => json = true,
            "--model" | "--registration" => {
                let value = value.or_else(|| given.next());
                let value = value.ok_or_else(|| usage(format!("{name}: a file is needed")))?;
                *(if name == "--model" {
                    &mut model
                } else {
                    &mut registration
                }) = Some(value);
            }
            _ if argument.starts_with('-') && argument != "-" => {
                return Err(usage(format!("unknown option {argument}")))
            }
            _ if proof.is_some() => return Err(usage(format!("one proof, not also {argument}"))),
            _ => proof = Some(argument),
        }
    }
    let proof = proof.ok_or_else(|| usage("a proof is needed".into()))?;
    let model = model.ok_or_else(|| usage("--model is needed".into()))?;
    Ok(Request::Check(Arguments {
        proof,
        model,
        registration,
        json,
    }))
}

/// Exit status and what to print.
fn run(request: Request) -> Result<(u8, String), String> {
    let Arguments {
        proof,
        model,
        mut registration,
        json,
    } = match request {
        Request::Check(arguments) => arguments,
        Request::Print(text) => return Ok((0, text)),
    };
    let commitment = match from_hex(&model.to_ascii_lowercase()) {
        Some(commitment) => commitment,
        None => {
            let card = Card::parse(&contents(&model)?).map_err(|e| format!("{model}: {e}"))?;
            let beside = Path::new(&model).with_extension("registration");
            registration = registration.or_else(|| beside.is_file().then(|| beside.to_string_lossy().into_owned()));
            card.commitment()
        }
    };
    let bytes = contents(&proof)?;
    let registration = match registration {
        Some(path) => Some((contents(&path)?, path)),
        None => None,
    };
    let began = Instant::now();
    read(&bytes).map_err(|e| format!("{proof}: {e}"))?;
    let registered = match &registration {
        Some((bytes, path)) => registration::verify(bytes, &commitment)
            .map(drop)
            .map_err(|e| format!("registration {path}: {e}")),
        None => Ok(()),
    };
    let checked = registration.is_some() && registered.is_ok();
    let verified = registered.and_then(|()| verify(&bytes, &commitment).map_err(|e| e.to_string()));
    let seconds = began.elapsed().as_secs_f64();
    let status = u8::from(verified.is_err());
    let commitment = hex(&commitment);
    let out = match (json, verified) {
        (true, verified) => as_json(verified, &commitment, checked, seconds).to_string(),
        (false, Ok(verified)) => as_text(&verified, &commitment, checked, seconds),
        (false, Err(reason)) => format!("NOT VALID: {}", visible(&reason)),
    };
    Ok((status, out))
}

fn contents(path: &str) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("{path}: {e}");
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() || about.len() > MAX_BYTES {
        return Err(format!("{path}: not a regular file of at most 2^30 bytes"));
    }
    std::fs::read(Path::new(path)).map_err(failed)
}

/// The keys of `mamba-integer verify --json`.
fn as_json(verified: Result<Verified, String>, commitment: &str, checked: bool, seconds: f64) -> Value {
    let registration = ["not checked", "checked"][usize::from(checked)];
    let seconds = (seconds * 1e6).round() / 1e6;
    match verified {
        Ok(Verified { statement, name, bits }) => json!({
            "valid": true, "reason": "", "commitment": commitment, "model": name, "text": statement.text, "tokens": statement.tokens,
            "prompt": statement.prompt, "security_bits": (bits * 100.0).floor() / 100.0,
            "registration": registration, "seconds": seconds,
        }),
        Err(reason) => json!({
            "valid": false, "reason": reason, "commitment": commitment, "model": null, "text": null, "tokens": null,
            "prompt": null, "security_bits": null, "registration": registration, "seconds": seconds,
        }),
    }
}

fn as_text(verified: &Verified, commitment: &str, checked: bool, seconds: f64) -> String {
    let Verified { statement, name, bits } = verified;
    let sampling = &statement.sampling;
    let choice = match sampling.temperature {
        0 => "greedy".into(),
        t => format!(
            "temperature {t}/65536, top-k {}, seed {}",
            sampling.top_k, sampling.seed
        ),
    };
    let rows = [
        ("model", visible(name)),
        ("commitment", commitment.into()),
        ("prompt", visible(&statement.prompt)),
        ("text", visible(&statement.text)),
        ("sampling", choice),
        ("security", format!("{bits:.1} bits")),
        (
            "registered",
            match checked {
                true => "checked".into(),
                false => "not checked: nothing shows that the weights are within bounds".into(),
            },
        ),
        ("seconds", format!("{seconds:.3}")),
    ];
    let mut out = format!("valid: the model chose these {} tokens", statement.tokens.len());
    for (name, value) in rows {
        out += &format!("\n{name:<10}  {value}");
    }
    out
}

/// Text that somebody else wrote, on one line and without control characters.
fn visible(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| {
            if hidden(c) {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}
