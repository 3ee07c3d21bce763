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

/// A library that cargo builds together with this test.
fn library(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} beside the test"))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Compiles a program with the static library. `compiler` is the name of a variable and what is taken if it is not set.
fn compile(compiler: (&str, &str), options: &[&str], source: &Path, program: &Path) {
    let archive = library("libmamba_integer_tokenizer.a");
    compile_with(compiler, options, source, program, &[archive.to_str().unwrap()]);
}

fn compile_with(compiler: (&str, &str), options: &[&str], source: &Path, program: &Path, libraries: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env::var_os(compiler.0).unwrap_or_else(|| OsString::from(compiler.1)));
    command
        .args(options)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(root.join("include"));
    command
        .arg(root.join(source))
        .args(["-x", "none"])
        .args(libraries)
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

#[test]
fn the_cxx_example_works() {
    let scratch = Scratch::new("cxx");
    train(["low lower lowest"], 260)
        .unwrap()
        .save(scratch.0.join("a.bpe"))
        .unwrap();
    let program = scratch.0.join("stream");
    compile(CXX, &["-std=c++11"], Path::new("examples/cpp/stream.cpp"), &program);
    let run_with = |texts: &[&str]| run(Command::new(&program).arg(scratch.0.join("a.bpe")).args(texts));
    let output = run_with(&["lower é", "", "low\u{1F600}"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = "6 tokens: [low][e][r][ ][][é]\n0 tokens: \n5 tokens: [low][][][][\u{1F600}]\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    let output = run_with(&["a", "b<|endoftext|>"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        output.stderr,
        b"error: the text contains the special token <|endoftext|> at byte 1\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn the_shared_library_works_by_its_other_name() {
    let scratch = Scratch::new("shared");
    train(["low lower lowest"], 260)
        .unwrap()
        .save(scratch.0.join("a.bpe"))
        .unwrap();
    fs::copy(
        library("libmamba_integer_tokenizer.so"),
        scratch.0.join("librustbpe.so"),
    )
    .unwrap();
    let folder = scratch.0.to_str().unwrap();
    let libraries = [&format!("-L{folder}"), "-lrustbpe", &format!("-Wl,-rpath,{folder}")];
    for (compiler, options, source) in [
        (C, &C_OPTIONS[..], "examples/c/encode.c"),
        (CXX, &["-std=c++11"][..], "examples/cpp/stream.cpp"),
    ] {
        let program = scratch.0.join(compiler.0);
        compile_with(compiler, options, Path::new(source), &program, &libraries);
        let output = run(Command::new(&program).arg(scratch.0.join("a.bpe")).arg("lower"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
