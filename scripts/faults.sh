#!/usr/bin/env bash
# Disturbs every command on purpose and looks at what comes of it: kills at counted system calls, once and twice, injected errors of
# the disk, full disks, signals, damaged files, two jobs with one output, and outputs that are the user's own files. After each, the
# user's files are as they were, files under their final names are whole, and the same command given again ends with the very bytes of
# an undisturbed run. At the end stands a table of tried / clean; the exit code is 1 if anything was not clean.
#
#     bash scripts/faults.sh                    # 100 trials of each command
#     bash scripts/faults.sh --short            # a few of each kind, as in .ci/run
#     bash scripts/faults.sh --command score --kind kill --seed 17     # one trial again, with what was run and said
#     ALCHEMIST_ENGINE=target/release/alchemist-engine bash scripts/faults.sh     # takes this program and builds none
#
# Linux on x86-64 or aarch64, Python 3.11 and a C compiler (`CC`, else cc). See scripts/faults/preload.c for how calls are counted.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "scripts/faults.sh needs Python 3.11 or newer; this is $(python3 --version)" >&2
    exit 1
fi
if [ "$(uname -s)" != Linux ] || ! command -v "${CC:-cc}" >/dev/null; then
    echo "scripts/faults.sh needs Linux and a C compiler (CC names one; else it is cc)" >&2
    exit 1
fi
if [ -z "${ALCHEMIST_ENGINE:-}" ]; then
    (cd "$here/.." && cargo build --release --locked)
    ALCHEMIST_ENGINE="${CARGO_TARGET_DIR:-$here/../target}/release/alchemist-engine"
fi
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/faults/main.py" --engine "$ALCHEMIST_ENGINE" "$@"
