#!/usr/bin/env bash
# What users of the library do: install.sh BUILD_FOLDER MODEL. Installs the build into a folder of its own, compiles the example there by pkg-config, with the
# shared and with the static library, and runs both and mamba_infer on a model.
set -euo pipefail
build=$1 model=$2
here=$(cd "$(dirname "$0")" && pwd)
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix" >/dev/null
libdir=$(dirname "$(find "$prefix" -name libmamba_integer.a)")
export PKG_CONFIG_PATH=$libdir/pkgconfig
cc=${CC:-cc}
# The package file names the prefix of configuration; pkg-config is told where it really is.
flags() { pkg-config --define-variable=prefix="$prefix" "$@" mamba_integer; }
"$cc" -Wall -Wextra -Werror "$here/../examples/generate.c" $(flags --cflags --libs) -o "$prefix/shared"
"$cc" -Wall -Wextra -Werror "$here/../examples/generate.c" $(flags --cflags) "$libdir/libmamba_integer.a" $(flags --static --libs-only-l | sed 's/-lmamba_integer//') -pthread \
    -o "$prefix/static"
first=$(LD_LIBRARY_PATH=$libdir "$prefix/shared" "$model" 30)
second=$("$prefix/static" "$model" 30)
echo "$first"
[ "$first" = "$second" ]
echo "$first" | grep -q '15 of 15 tokens again'
"$prefix/bin/mamba_infer" --model "$model" --tokens 1,2,3 --max-tokens 4
if nm -D --defined-only "$libdir/libmamba_integer.so" | awk '$2 == "T" {print $3}' | grep -v '^mi_'; then
    echo 'error: the shared library shows more than its interface' >&2
    exit 1
fi
