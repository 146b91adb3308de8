#!/usr/bin/env bash
# Checks that are too slow for `.ci/run`: 100 trials of every command under kills, errors and full disks, weights
# against PyTorch, fuzzing of readers, and the output of `pack` against the readers of other trainers. A failed step
# does not stop the others; the exit code is 1 if one failed.
#
#     bash scripts/nightly.sh
#     FAULTS_TRIALS=20 FUZZ_SECONDS=60 bash scripts/nightly.sh      # shorter
#
# Requires what `.ci/run` requires, and the pip packages of scripts/weights.sh and scripts/formats.sh.
# FAULTS_FIRST_SEED=N starts at another seed than 0.
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never

failed=()

step() {
    local name="$1" started=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
    printf '== %s: %d s\n' "$name" $((SECONDS - started))
}

step "faults" bash scripts/faults.sh --trials "${FAULTS_TRIALS:-100}" --first-seed "${FAULTS_FIRST_SEED:-0}"
step "weights" bash scripts/weights.sh
step "formats" bash scripts/formats.sh

printf '\n== done in %d s\n' "$SECONDS"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed: %s\n' "${failed[*]}"
    exit 1
fi
