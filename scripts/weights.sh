#!/usr/bin/env bash
# The two tests of the readers and writers of weights and token caches that are too slow for every change: PyTorch loads the
# written files and finds the same values, and mutated files are read for ten minutes with every allocation tracked.
#
#     bash scripts/weights.sh              # PYTHON=/path/to/python has PyTorch; otherwise installs it from pip
#     FUZZ_SECONDS=60 bash scripts/weights.sh
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/python.sh pytorch torch numpy
export FUZZ_SECONDS="${FUZZ_SECONDS:-600}"
cargo test --release --locked --test weights -- --ignored
cargo test --release --locked --test weights_fuzz -- --ignored --nocapture
