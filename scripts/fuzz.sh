#!/usr/bin/env bash
# Fuzzes the readers of hostile files (models, saved states) with clang's libFuzzer under the address and undefined-behaviour sanitizers:
# fuzz.sh model|state SECONDS. What is new is kept, as few files as do, in engine/fuzz/corpus; ctest runs those files again with every build.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 seconds=$2
folder=build/fuzz
mkdir -p $folder/$target engine/fuzz/corpus/$target
sources=$(printf 'engine/src/%s.cpp ' bytes capi cpu device file kernels model ops ops_avx2 ops_avx512 ops_neon pool sampler session sha256 state)
include="-std=c++20 -Iengine/include -Iengine/src"
c++ $include -O1 engine/fuzz/seeds.cpp $sources -o $folder/seeds -pthread
clang++ $include -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION \
    engine/fuzz/fuzz_$target.cpp $sources -o $folder/fuzz_$target -pthread
$folder/seeds $folder/seed
# A file of a few KB must not ask for more than some MB.
limits="-max_len=6000 -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=64"
$folder/fuzz_$target $limits -max_total_time="$seconds" -print_final_stats=1 $folder/$target engine/fuzz/corpus/$target $folder/seed/$target
rm -rf $folder/$target.merged
mkdir -p $folder/$target.merged
$folder/fuzz_$target -merge=1 $limits $folder/$target.merged engine/fuzz/corpus/$target $folder/seed/$target $folder/$target
rm -rf "engine/fuzz/corpus/$target"
mv $folder/$target.merged "engine/fuzz/corpus/$target"
ls "engine/fuzz/corpus/$target" | wc -l
