#!/usr/bin/env bash
# Injects faults into every command and checks the results: kills at counted system calls, once and twice, I/O errors,
# full disks, signals, damaged files, concurrent jobs with one output, and outputs that are the user's own files. After
# each fault, the user's files must be unchanged, files under final names complete, and the repeated command must
# produce the bytes of an undisturbed run. Prints a table of tried / clean; the exit code is 1 if a trial failed.
#
#     bash scripts/faults.sh                    # 100 trials of each command
#     bash scripts/faults.sh --short            # a few of each kind, as in .ci/run
#     bash scripts/faults.sh --command score --kind kill --seed 17     # repeats one trial and prints its log
#     ALCHEMIST_ENGINE=target/release/alchemist-engine bash scripts/faults.sh    # uses this program
#
# Requires Linux on x86-64 or aarch64, Python 3.11 and a C compiler (`CC`, default cc). See also
# scripts/faults/preload.c.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "scripts/faults.sh needs Python 3.11 or newer; this is $(python3 --version)" >&2
    exit 1
fi
if [ "$(uname -s)" != Linux ] || ! command -v "${CC:-cc}" >/dev/null; then
    echo "scripts/faults.sh needs Linux and a C compiler (CC, default cc)" >&2
    exit 1
fi
if [ -z "${ALCHEMIST_ENGINE:-}" ]; then
    (cd "$here/.." && cargo build --release --locked)
    ALCHEMIST_ENGINE="${CARGO_TARGET_DIR:-$here/../target}/release/alchemist-engine"
fi
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/faults/main.py" --engine "$ALCHEMIST_ENGINE" "$@"
