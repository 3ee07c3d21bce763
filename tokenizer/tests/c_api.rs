//! The C interface: C and C++ programs that are compiled and linked with the static library.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mamba_integer_tokenizer::{train, AllowSpecial};

/// A directory for one test, removed with its contents at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = env::temp_dir().join(format!("mamba-integer-tokenizer-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// The static library, which cargo builds together with this test.
fn static_library() -> PathBuf {
    let test = env::current_exe().unwrap();
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("libmamba_integer_tokenizer.a"))
        .find(|path| path.exists());
    found.expect("libmamba_integer_tokenizer.a beside the test")
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Compiles a program. `compiler` is the name of a variable and what is taken if it is not set.
fn compile(compiler: (&str, &str), options: &[&str], source: &Path, program: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env::var_os(compiler.0).unwrap_or_else(|| OsString::from(compiler.1)));
    command
        .args(options)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(root.join("include"));
    command
        .arg(root.join(source))
        .args(["-x", "none"])
        .arg(static_library())
        .arg("-o")
        .arg(program);
    if cfg!(target_os = "linux") {
        command.args(["-lgcc_s", "-lpthread", "-ldl", "-lm"]);
    }
    let output = run(&mut command);
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

const C: (&str, &str) = ("CC", "cc");
const C_OPTIONS: [&str; 1] = ["-std=c99"];
const CXX: (&str, &str) = ("CXX", "c++");
const CXX_OPTIONS: [&str; 3] = ["-std=c++11", "-x", "c++"];

#[test]
fn the_example_works_in_c_and_in_cxx() {
    let scratch = Scratch::new("example");
    let tokenizer = train(["low lower lowest"], 260).unwrap();
    let file = scratch.0.join("a.bpe");
    tokenizer.save(&file).unwrap();
    for (compiler, options) in [(C, &C_OPTIONS[..]), (CXX, &CXX_OPTIONS[..])] {
        let program = scratch.0.join(compiler.0);
        compile(compiler, options, Path::new("examples/c/encode.c"), &program);

        let output = run(Command::new(&program).arg(&file).arg("lower é"));
        let mut expected = String::from("260 tokens, the last is 259\n").into_bytes();
        for id in tokenizer.encode("lower é", AllowSpecial::Refuse).unwrap() {
            expected.extend(format!("{id} `").bytes());
            expected.extend(tokenizer.token_bytes(id).unwrap());
            expected.extend(b"`\n");
        }
        expected.extend(b"decoded: the same text\n");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&expected)
        );
        assert!(output.status.success());

        let output = run(Command::new(&program).arg(&file).arg("a<|endoftext|>"));
        assert_eq!(output.status.code(), Some(4));
        assert_eq!(
            output.stderr,
            b"error: the text contains the special token <|endoftext|> at byte 1\n"
        );
        let output = run(Command::new(&program).arg(scratch.0.join("none")).arg("a"));
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn every_function_keeps_its_promises() {
    let scratch = Scratch::new("promises");
    for (compiler, options) in [(C, &C_OPTIONS[..]), (CXX, &CXX_OPTIONS[..])] {
        let program = scratch.0.join(compiler.0);
        compile(compiler, options, Path::new("tests/c_api.c"), &program);
        let output = run(Command::new(&program).current_dir(&scratch.0));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
