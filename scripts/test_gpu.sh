#!/usr/bin/env bash
# On a machine with a GPU: builds the CUDA libraries and the engine, reads the machine code, holds every kernel and whole sequences to the CPU's
# bits, tells a story on both devices, checks the operators of training, and times decode and prefill: test_gpu.sh [FOLDER], by default build/gpu.
# Needs nvcc (see build_cuda.sh), cmake, a C++ compiler, and the package's environment (.venv, or PYTHON) for the operators and the timing. Exit
# status 3 where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/gpu}
model=models/tinystories.gguf
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
say() { printf '==> %s\n' "$*"; }

say 'building for the GPU'
scripts/build_cuda.sh "$folder/cuda"
say 'machine code: integers only, no spills'
"$python" scripts/check_cuda.py "$folder/cuda/libmamba_integer_cuda.so"
say 'building the engine and its test for the GPU'
mkdir -p "$folder"
{ cmake -S engine -B "$folder/engine" -DCMAKE_BUILD_TYPE=Release -DMI_TOKENIZER=OFF -DMI_TESTS=OFF &&
    cmake --build "$folder/engine" --target mamba_infer; } >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
scripts/build_cuda.sh --test "$folder/cuda" "$folder/engine/libmamba_integer.a"

if ! gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || [ -z "$gpu" ]; then
    echo 'no GPU: everything was built and the machine code was read; nothing was run' >&2
    exit 3
fi
say "kernels and sequences on $gpu"
library=$PWD/$folder/cuda/libmamba_integer_cuda.so
"$folder/cuda/test_cuda" spec/vectors "$library"
say 'a story on both devices'
tell() {
    MAMBA_INTEGER_CUDA=$library "$folder/engine/mamba_infer" --model "$model" --tokens 5,6,7 --max-tokens 500 --json --device "$1" |
        sed 's/, "tokens_per_second.*//'
}
here=$(tell cpu) there=$(tell cuda)
[ "$here" = "$there" ] || { printf 'DIFFERENT\ncpu  %s\ncuda %s\n' "$here" "$there" >&2; exit 1; }
printf 'the same tokens and logits: %s\n' "$(grep -o '"logits_digest": "[0-9a-f]*"' <<<"$there")"
say 'the operators of training'
MAMBA_INTEGER_CUDA=$library "$python" - <<'PYTHON'
try:
    import torch
    found = torch.cuda.is_available()
except ImportError:
    found = False
if found:
    from mamba_integer.nn import cuda
    cuda.check(torch.device("cuda", 0))
    print("scan and BitLinear under PyTorch: the reference's integers")
else:
    print("left out: there is no PyTorch that finds the GPU")
PYTHON
say 'speed'
MAMBA_INTEGER_CUDA=$library "$python" -m bench.cuda --model "$model"
