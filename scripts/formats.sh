#!/usr/bin/env bash
# Reads what `pack` writes with the readers of the ecosystems that it is for: Hugging Face's datasets, webdataset, pyarrow, NumPy.
#
#     bash scripts/formats.sh              # PYTHON=/path/to/python names one that has them; else they are installed from pip
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    environment=target/formats
    if [ ! -x "$environment/bin/python" ]; then
        python3 -m venv "$environment"
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check datasets webdataset pyarrow numpy Pillow
    PYTHON="$PWD/$environment/bin/python"
fi
export PYTHON
cargo test --release --locked --test pack -- --ignored
