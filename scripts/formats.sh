#!/usr/bin/env bash
# Reads the output of `pack` with the readers that it targets: Hugging Face's datasets, webdataset, pyarrow, NumPy.
#
#     bash scripts/formats.sh              # PYTHON=/path/to/python has them; otherwise installs them from pip
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/python.sh formats datasets webdataset pyarrow numpy Pillow
cargo test --release --locked --test pack -- --ignored
