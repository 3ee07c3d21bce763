#!/usr/bin/env bash
# Builds the CUDA libraries, no GPU needed: build_cuda.sh [FOLDER], by default build/cuda.
# build_cuda.sh --test FOLDER LIBMAMBA_INTEGER.A adds test_cuda, the kernels' test as a program for a GPU.
#
# libmamba_integer_cuda.so (what --device cuda loads) and, for other programs, libdyadic_mamba.so, libbitshift_norm.so, libsquareplus.so,
# libbitlinear.so and libconv1d_step.so with the launch_... functions of engine/cuda/mamba_integer_kernels.h. Machine code for sm_80, sm_89 and
# sm_90, and PTX for what comes after. nvcc is $NVCC, or that of $CUDA_HOME, of PATH, or of the packages of the extra "cuda" in .venv or python3.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=
if [ "${1:-}" = --test ]; then
    engine=$3
    shift
fi
out=${1:-build/cuda}

find_nvcc() {
    [ -z "${NVCC:-}" ] || { echo "$NVCC"; return; }
    [ -z "${CUDA_HOME:-}" ] || { echo "$CUDA_HOME/bin/nvcc"; return; }
    command -v nvcc && return
    for python in .venv/bin/python python3; do
        "$python" - 2>/dev/null <<'PYTHON' && return
import pathlib, sys
found = sorted(p for folder in sys.path for p in pathlib.Path(folder).glob("nvidia/cu*/bin/nvcc"))
print(found[-1]) if found else sys.exit(1)
PYTHON
    done
    echo "error: nvcc not found; install a CUDA toolkit (12 or newer), or: pip install 'mamba-integer[cuda]'" >&2
    return 1
}
nvcc=$(find_nvcc)
[ -x "$nvcc" ] || { echo "error: $nvcc cannot be run" >&2; exit 1; }
toolkit=$(cd "$(dirname "$nvcc")/.." && pwd)
libraries=$toolkit/lib
[ ! -d "$toolkit/lib64" ] || libraries=$toolkit/lib64

mkdir -p "$out"
flags=(-std=c++20 -O3 --threads 2 -Iengine/include -Iengine/src -Iengine/cuda -Xcompiler=-fPIC,-fvisibility=hidden,-Wall
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_89,code=sm_89 -gencode=arch=compute_90,code='[sm_90,compute_90]')
link=(-shared -cudart static -L"$libraries")
if [ -n "$engine" ]; then
    "$nvcc" "${flags[@]}" -Xcompiler=-fvisibility=default -x cu -c engine/tests/test_cuda.cpp -o "$out/test_cuda.o"
    "$nvcc" -cudart static -L"$libraries" "$out/test_cuda.o" "$out"/{bitlinear,bitshift_norm,conv1d_step,dyadic_mamba,squareplus,sampler}.o "$engine" \
        -ldl -lpthread -o "$out/test_cuda"
    exit
fi
names=(bitlinear bitshift_norm conv1d_step dyadic_mamba squareplus)
all=()
for name in "${names[@]}" sampler session; do
    "$nvcc" "${flags[@]}" -c "engine/cuda/$name.cu" -o "$out/$name.o"
    all+=("$out/$name.o")
done
for name in "${names[@]}"; do "$nvcc" "${link[@]}" "$out/$name.o" -o "$out/lib$name.so"; done
"$nvcc" "${link[@]}" "${all[@]}" -o "$out/libmamba_integer_cuda.so"
echo "$out/libmamba_integer_cuda.so"
