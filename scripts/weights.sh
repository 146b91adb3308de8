#!/usr/bin/env bash
# The two tests of the readers and writers of weights and token caches that are too long or too heavy for every change: PyTorch
# opens what is written here and finds the same numbers, and files changed at random are read for ten minutes, every allocation
# watched.
#
#     bash scripts/weights.sh              # PYTHON=/path/to/python names one that has PyTorch; else it is installed from pip
#     FUZZ_SECONDS=60 bash scripts/weights.sh
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/python.sh pytorch torch numpy
export FUZZ_SECONDS="${FUZZ_SECONDS:-600}"
cargo test --release --locked --test weights -- --ignored
cargo test --release --locked --test weights_fuzz -- --ignored --nocapture
