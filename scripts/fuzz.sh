#!/usr/bin/env bash
# Fuzzes what reads hostile files with libFuzzer: fuzz.sh TARGET SECONDS. Targets of the engine (clang, address and undefined-behaviour sanitizers):
# model, state; of the tokenizer (Rust, address sanitizer, checked arithmetic): tokenizer-file, tiktoken, tokenizer-json, c-api, the last being sequences
# of calls of the C interface. What is new is kept, as few files as do, in engine/fuzz/corpus and tokenizer/fuzz/corpus; the tests run those files again.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 seconds=$2
folder=build/fuzz
mkdir -p $folder/$target
case $target in
model | state)
    room=engine/fuzz
    sources=$(printf 'engine/src/%s.cpp ' bytes capi cpu device file kernels model ops ops_avx2 ops_avx512 ops_neon pool sampler session sha256 state)
    include="-std=c++20 -Iengine/include -Iengine/src"
    c++ $include -O1 engine/fuzz/seeds.cpp $sources -o $folder/seeds -pthread
    clang++ $include -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION \
        engine/fuzz/fuzz_$target.cpp $sources -o $folder/fuzz_$target -pthread
    $folder/seeds $folder/seed
    # A file of a few KB must not ask for more than some MB.
    limits="-max_len=6000 -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=64"
    ;;
tokenizer-file | tiktoken | tokenizer-json | c-api)
    room=tokenizer/fuzz
    # The marks of coverage and the sanitizer are not yet options of the stable compiler.
    export RUSTC_BOOTSTRAP=1 FUZZ_TARGET=$target
    marks=$(printf -- '-Cllvm-args=-sanitizer-coverage-%s ' level=4 inline-8bit-counters pc-table trace-compares)
    flags="--edition=2021 -Copt-level=2 -Ccodegen-units=1 -Cdebuginfo=1 -Cdebug-assertions -Coverflow-checks -Cpasses=sancov-module $marks -Zsanitizer=address"
    mkdir -p $folder/$target-built $folder/seed/$target
    library=$folder/$target-built/libmamba_integer_tokenizer.rlib
    rustc $flags --crate-type=rlib --crate-name=mamba_integer_tokenizer tokenizer/src/lib.rs -o $library
    rustc $flags --crate-type=staticlib --crate-name=fuzz --extern mamba_integer_tokenizer=$library $room/entry.rs -o $folder/$target-built/fuzz.a
    clang++ -fsanitize=fuzzer,address $folder/$target-built/fuzz.a -o $folder/fuzz_$target -pthread -ldl
    # A number of 24 bits in a short file makes a table of 64 MB.
    limits="-max_len=16000 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=128"
    ;;
*)
    echo "fuzz.sh: there is no target $target" >&2
    exit 2
    ;;
esac
mkdir -p $room/corpus/$target
words=$room/$target.dict
if [ -e $words ]; then limits="$limits -dict=$words"; fi
$folder/fuzz_$target $limits -artifact_prefix=$folder/ -max_total_time="$seconds" -print_final_stats=1 $folder/$target $room/corpus/$target $folder/seed/$target
rm -rf $folder/$target.merged
mkdir -p $folder/$target.merged
$folder/fuzz_$target -set_cover_merge=1 $limits $folder/$target.merged $room/corpus/$target $folder/seed/$target $folder/$target
rm -rf "$room/corpus/$target"
mv $folder/$target.merged "$room/corpus/$target"
ls "$room/corpus/$target" | wc -l
