#!/usr/bin/env bash
# What takes longer than `.ci/run` may: 100 trials of every command under kills, errors and full disks, weights against PyTorch and
# files changed at random, and what `pack` writes against the readers of other trainers. All steps run, whatever the others come to;
# the exit code is 1 if one of them failed.
#
#     bash scripts/nightly.sh
#     FAULTS_TRIALS=20 FUZZ_SECONDS=60 bash scripts/nightly.sh      # shorter
#
# It needs what `.ci/run` needs, and pip's packages as scripts/weights.sh and scripts/formats.sh say. FAULTS_FIRST_SEED=N makes other
# trials than those of the seeds from 0 on.
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
