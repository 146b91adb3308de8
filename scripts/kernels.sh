#!/usr/bin/env bash
# Compiles all kernels with NVIDIA's compiler from pip, for sm_80, sm_90a and PTX, as build.rs does, and prints registers,
# shared memory, stack and spills of each. Fails if one does not compile, or spills without a reason in kernels/spills.txt.
#
# No GPU and no CUDA installation is needed. NVCC=/path/to/nvcc uses that one instead. Further arguments go to cargo.
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
        echo "the pip packages hold no nvcc" >&2
        exit 1
    fi
fi
export NVCC

# A folder of its own: the kernels' objects stay between runs, and the everyday build is not made again.
ALCHEMIST_KERNEL_TABLE=1 cargo check --release --lib --target-dir target/kernels "$@" 2>&1 |
    sed -u 's/^warning: alchemist-engine@[^:]*: //'
