#!/usr/bin/env bash
# Compiles all kernels with NVIDIA's compiler from pip, for sm_80, sm_90a and PTX, as build.rs does, and prints registers,
# shared memory, stack and spills of each. Fails if one does not compile, or spills without a reason in kernels/spills.txt.
#
# Requires neither a GPU nor a CUDA installation. NVCC=/path/to/nvcc uses that compiler instead. `--write` also writes the
# table to benches/kernels.txt; `--nvcc` only prints the path of the compiler. Further arguments go to cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.0
if [ -z "${NVCC:-}" ]; then
    environment=target/nvcc
    if [ ! -x "$environment/bin/python" ]; then
        python3 -m venv "$environment"
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
        "nvidia-cuda-nvcc==$version.*" "nvidia-cuda-crt==$version.*" "nvidia-nvvm==$version.*" \
        "nvidia-cuda-runtime==$version.*" "nvidia-cuda-cccl==$version.*"
    NVCC=$(find "$PWD/$environment" -path '*/bin/nvcc' | head -n 1)
    if [ -z "$NVCC" ]; then
        echo "the pip packages contain no nvcc" >&2
        exit 1
    fi
fi
export NVCC
if [ "${1:-}" = --nvcc ]; then
    echo "$NVCC"
    exit
fi

write=
if [ "${1:-}" = --write ]; then
    write=yes
    shift
fi
printed="$(mktemp)"
trap 'rm -f "$printed"' EXIT

# A separate target folder keeps the kernels' objects between runs, and does not invalidate the default build;
# CARGO_TARGET_DIR overrides it.
ALCHEMIST_KERNEL_TABLE=1 cargo check --release --lib --target-dir "${CARGO_TARGET_DIR:-target/kernels}" "$@" 2>&1 |
    sed -u 's/^warning: alchemist-engine@[^:]*: //' | tee "$printed"

if [ -n "$write" ]; then
    {
        echo "# bash scripts/kernels.sh --write, $("$NVCC" --version | grep -o 'release [0-9.]*, V[0-9.]*')"
        echo "# Registers of a thread; static shared memory, stack frame and spills in bytes. PTX has no figures before a card's"
        echo "# driver compiles it."
        grep -E '^(kernel +target|[a-z0-9_]+ +sm_[0-9a-z]+ +[0-9]+)' "$printed"
    } > benches/kernels.txt
fi
