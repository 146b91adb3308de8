#!/usr/bin/env bash
# Reads what `pack` writes with the readers of the ecosystems that it is for: Hugging Face's datasets, webdataset, pyarrow, NumPy.
#
#     bash scripts/formats.sh              # PYTHON=/path/to/python names one that has them; else they are installed from pip
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/python.sh formats datasets webdataset pyarrow numpy Pillow
cargo test --release --locked --test pack -- --ignored
