#!/usr/bin/env bash
# Builds the standalone engine with its tests in a folder and runs them: test_engine.sh BUILD_FOLDER [cmake options]. Prints the log on failure.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift
mkdir -p "$folder"
log=$folder/test.log
if ! { cmake -S engine -B "$folder" "$@" && cmake --build "$folder"; } >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
# The limit is for tests that hang; the longest, under the thread sanitizer on a busy machine, takes some minutes.
ctest --test-dir "$folder" --output-on-failure --no-tests=error --timeout 600
