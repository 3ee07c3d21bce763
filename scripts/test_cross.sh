#!/usr/bin/env bash
# The same bits everywhere: builds the engine's core for many processors and compilers, runs each (most under QEMU), and compares the digests of all logits
# and tokens with those of the build that this machine's own compiler makes: test_cross.sh [BUILD_FOLDER].
#
#   x86-64            g++ and clang, -O0 to -O3; scalar, AVX2 and AVX-512 as far as this processor has them
#   AArch64           NEON with and without dot products, and scalar
#   32-bit ARM        without floating-point unit; RISC-V 64; s390x, which is big-endian
#   Cortex-M3         bare: no operating system, no threads, no exceptions, no floating point
#   WebAssembly       in Node
#
# And a generation of the shipped model that x86-64 made is repeated by mamba_infer on the four that run Linux. A tool that is missing is an error: PACKAGES are Debian's names.
set -euo pipefail
cd "$(dirname "$0")/.."
PACKAGES="g++ clang lld binutils g++-aarch64-linux-gnu g++-arm-linux-gnueabi g++-riscv64-linux-gnu g++-s390x-linux-gnu gcc-arm-none-eabi
libnewlib-arm-none-eabi libstdc++-arm-none-eabi-newlib qemu-user qemu-system-arm wasi-libc libc++-14-dev-wasm32 libc++abi-14-dev-wasm32 libclang-rt-14-dev-wasm32
nodejs"
if [ "${1:-}" = --packages ]; then
    echo $PACKAGES
    exit
fi
folder=${1:-build/cross}
mkdir -p "$folder"

for tool in g++ clang++ aarch64-linux-gnu-g++ arm-linux-gnueabi-g++ riscv64-linux-gnu-g++ s390x-linux-gnu-g++ arm-none-eabi-g++ arm-none-eabi-nm qemu-aarch64 \
    qemu-arm qemu-riscv64 qemu-s390x qemu-system-arm wasm-ld node python3; do
    command -v "$tool" >/dev/null || {
        echo "error: $tool is missing; on Debian: apt-get install --no-install-recommends" $PACKAGES >&2
        exit 1
    }
done

warnings="-Wall -Wextra -Wconversion -Wshadow -Werror"
include="-std=c++20 -Iengine/include -Iengine/src"
# Most sources as one: a compiler that reads the standard headers once is done much sooner. Those of one instruction set each stay apart.
unity() { # FILE SOURCE…
    local file=$folder/$1
    shift
    printf '#include "%s"\n' "${@/#/$PWD/engine/}" >"$file"
}
core=$(printf 'src/%s.cpp ' bytes cpu model ops kernels pool sampler session sha256)
kernels=$(printf 'engine/src/ops_%s.cpp ' avx2 avx512 neon)
unity digest.cpp $core cross/digest.cpp
unity digest_m3.cpp $core cross/digest.cpp cross/cortex_m3.cpp
unity mamba_infer.cpp $core src/state.cpp src/file.cpp src/device.cpp src/capi.cpp tools/mamba_infer.cpp

failed=0
reference=
check() { # NAME COMMAND…: what the command prints must be what the first one printed
    local name=$1 got
    shift
    if ! got=$("$@" 2>&1); then
        printf '%-34s FAILED: %s\n' "$name" "$got"
        failed=1
        return
    fi
    reference=${reference:-$got}
    if [ "$got" = "$reference" ]; then
        printf '%-34s same\n' "$name"
    else
        printf '%-34s DIFFERENT\n%s\n' "$name" "$got"
        failed=1
    fi
}
build() { # OUTPUT SOURCE COMPILER FLAGS…: two compilers at a time
    local output=$folder/$1 source=$folder/$2
    shift 2
    rm -f "$output"
    while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n || true; done
    case $1 in clang++) ;; *) set -- "$@" -Wno-subobject-linkage ;; esac  # which is about sources that are included
    "$@" $include $warnings "$source" $kernels -o "$output" &
}
built() { # waits for all of them; one that failed has said why, and its program is not there
    wait
}

# ---- this machine, and those without an operating system ----------------------------------------------------------------------------------------------------------------------------------

for compiler in g++ clang++; do
    for level in 3 0 1 2; do build "x86-$compiler-O$level" digest.cpp $compiler -O$level -pthread; done
done
build cortex-m3 digest_m3.cpp arm-none-eabi-g++ -mcpu=cortex-m3 -mthumb -O2 -fno-exceptions -fno-rtti -DMI_THREADS=0 -Wno-psabi -ffunction-sections -fdata-sections \
    -Wl,--gc-sections --specs=rdimon.specs -T engine/cross/mps2_an385.ld
build digest.wasm digest.cpp clang++ --target=wasm32-wasi -O3 -msimd128 -fno-exceptions -DMI_THREADS=0
built
for compiler in g++ clang++; do
    for level in 3 0 1 2; do check "$compiler -O$level" "$folder/x86-$compiler-O$level"; done
done
echo "$reference"
case $reference in *ALLOCATED*) echo 'error: memory is allocated after loading' >&2 && failed=1 ;; esac
for isa in scalar avx2 avx512; do
    if MAMBA_INTEGER_ISA=$isa "$folder/x86-g++-O3" >/dev/null 2>&1; then
        check "$(uname -m) $isa" env MAMBA_INTEGER_ISA=$isa "$folder/x86-g++-O3"
    else
        printf '%-34s not on this processor\n' "$isa"
    fi
done

# ---- Linux on other processors, under QEMU ---------------------------------------------------------------------------------------------------------

# What a receipt states of a generation: x86-64 makes it, and the others must choose the same tokens from the same logits.
story=$folder/story.json
tell() { # COMMAND…: mamba_infer tells a story of the shipped model
    "$@" --model models/tinystories.gguf --tokens "$prompt" --max-tokens 60 --temperature 0.8 --top-k 40 --seed 7 --json
}
prompt=2047,418,430,258,395 # the start token, "Once upon a time"
replay() { # NAME COMMAND…
    local name=$1
    shift
    tell "$@" | python3 -c '
import json, sys
name, story, got = sys.argv[1], json.load(open(sys.argv[2])), json.loads(sys.stdin.read() or "{}")
same = all(got.get(key) == story[key] for key in ("tokens", "prompt_tokens", "model_digest", "logits_digest"))
print(name.ljust(34), "same" if same else "DIFFERENT")
sys.exit(not same)' "$name" "$story" || failed=1
}

targets=()
linux() { # ARCHITECTURE QEMU ROOT FLAGS…
    local arch=$1 qemu=$2 root=$3
    shift 3
    build "$arch-digest" digest.cpp "$root-g++" -O2 -pthread "$@"
    build "$arch-mamba_infer" mamba_infer.cpp "$root-g++" -O2 -pthread "$@"
    targets+=("$arch $qemu $root")
}
build x86-mamba_infer mamba_infer.cpp g++ -O2 -pthread
linux aarch64 qemu-aarch64 aarch64-linux-gnu
linux armv5-soft-float qemu-arm arm-linux-gnueabi -DMI_THREADS=0 -Wno-psabi
linux riscv64 qemu-riscv64 riscv64-linux-gnu
linux s390x qemu-s390x s390x-linux-gnu
built
tell "$folder/x86-mamba_infer" >"$story"
for target in "${targets[@]}"; do
    read -r arch qemu root <<<"$target"
    check "$arch" "$qemu" -L "/usr/$root" "$folder/$arch-digest"
    replay "$arch, receipt" "$qemu" -L "/usr/$root" "$folder/$arch-mamba_infer"
done
for isa in neon-dotprod neon scalar; do
    check "aarch64 $isa" qemu-aarch64 -L /usr/aarch64-linux-gnu -E MAMBA_INTEGER_ISA=$isa "$folder/aarch64-digest"
done

# ---- no operating system, and WebAssembly ----------------------------------------------------------------------------------------------------------

check 'cortex-m3, bare' timeout 120 qemu-system-arm -M mps2-an385 -nographic -semihosting-config enable=on,target=native -kernel "$folder/cortex-m3"
check 'wasm, node' node --no-warnings engine/cross/run.mjs "$folder/digest.wasm"

if [ $failed = 0 ]; then echo 'test_cross: all the same'; else
    echo 'test_cross: FAILED' >&2
    exit 1
fi
