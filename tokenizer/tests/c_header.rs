//! The C header against the Rust functions: the same names, and for each the same types.

use std::collections::BTreeMap;

const HEADER: &str = include_str!("../include/mamba_integer_tokenizer.h");
const RUST: &str = include_str!("../src/ffi.rs");

/// A type that both sides can be turned into.
fn plain(type_name: &str) -> String {
    let words: Vec<&str> = type_name.split_whitespace().collect();
    words.join(" ")
}

/// What Rust writes for a C type.
fn of_c(c: &str) -> String {
    let c = plain(&c.replace('*', " * "));
    if let Some(target) = c.strip_suffix(" *") {
        return format!("*mut {}", of_c(target)).replace("*mut const ", "*const ");
    }
    // `T *const`: the pointer itself is constant.
    if let Some(target) = c.strip_suffix(" * const") {
        return format!("const {}", of_c(&format!("{target} *")));
    }
    if let Some(target) = c.strip_prefix("const ") {
        return format!("const {}", of_c(target));
    }
    let rust = match c.as_str() {
        "void" => "c_void",
        "char" => "c_char",
        "size_t" => "usize",
        "uint8_t" => "u8",
        "uint32_t" => "u32",
        "mi_tokenizer" => "Tokenizer",
        "mi_tokenizer_stream" => "Stream",
        "mi_tokenizer_status" => "Status",
        // An enumeration as an argument: any int may come.
        "mi_tokenizer_special" => "c_int",
        other => panic!("a C type that this test does not know: {other}"),
    };
    rust.into()
}

type Signature = (Vec<String>, String);

fn header() -> BTreeMap<String, Signature> {
    let mut code = String::new();
    let mut rest = HEADER;
    while let Some((before, comment)) = rest.split_once("/*") {
        code += before;
        rest = comment.split_once("*/").expect("the end of a comment").1;
    }
    code += rest;
    let mut found = BTreeMap::new();
    for statement in code.split(';') {
        let statement = statement
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join(" ");
        let Some((head, arguments)) = statement.split_once('(') else {
            continue;
        };
        let (arguments, _) = arguments.rsplit_once(')').expect("a closing parenthesis");
        let at = head.rfind("mi_tokenizer_").expect("a name");
        let (result, name) = head.split_at(at);
        let result = result.replace("extern \"C\" {", "");
        let types = arguments
            .split(',')
            .map(str::trim)
            .filter(|argument| *argument != "void")
            .map(|argument| {
                let end = argument
                    .rfind(|character: char| !character.is_alphanumeric() && character != '_')
                    .unwrap();
                of_c(&argument[..=end])
            });
        let result = match plain(&result).as_str() {
            "void" => String::new(),
            result => of_c(result),
        };
        found.insert(name.trim().into(), (types.collect(), result));
    }
    found
}

fn rust() -> BTreeMap<String, Signature> {
    let mut found = BTreeMap::new();
    for function in RUST.split("#[no_mangle]").skip(1) {
        let (_, function) = function.split_once("extern \"C\" fn ").expect("a C function");
        let (name, function) = function.split_once('(').unwrap();
        let (arguments, function) = function.split_once(')').unwrap();
        let (result, _) = function.split_once('{').unwrap();
        let types = arguments
            .split(',')
            .filter_map(|argument| Some(plain(argument.split_once(':')?.1)));
        let result = plain(result.trim().trim_start_matches("->"));
        found.insert(name.into(), (types.collect(), result));
    }
    found
}

#[test]
fn the_header_declares_what_the_library_has() {
    let (header, rust) = (header(), rust());
    assert!(header.len() >= 18);
    assert_eq!(header, rust);
}

#[test]
fn the_header_numbers_as_the_library_does() {
    let value = |name: &str| {
        let (_, rest) = HEADER
            .split_once(&format!("{name} = "))
            .unwrap_or_else(|| panic!("{name}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap()
    };
    let (_, rest) = RUST.split_once("pub enum Status {").unwrap();
    let (body, _) = rest.split_once('}').unwrap();
    let mut count = 0;
    for line in body.lines().filter(|line| line.contains('=')) {
        let (name, number) = line.trim().trim_end_matches(',').split_once(" = ").unwrap();
        let name = match name {
            "Ok" => "MI_TOKENIZER_OK".into(),
            name => format!("MI_TOKENIZER_ERR_{}", name.to_uppercase()),
        };
        assert_eq!(value(&name), number.parse().unwrap(), "{name}");
        count += 1;
    }
    assert_eq!(count, HEADER.matches("    MI_TOKENIZER_ERR_").count() + 1);
    for (name, number) in [("REFUSE", 0), ("ALL", 1), ("AS_TEXT", 2)] {
        assert_eq!(value(&format!("MI_TOKENIZER_SPECIAL_{name}")), number);
    }
}
