#!/usr/bin/env bash
# Times the first steps of a new user, from a clone to a report on their own corpus: compiling, and the README's
# `train`, `score` and `report`.
#
#     bash scripts/new_user.sh corpus.csv           # columns id, image_save_path, caption
#     WORK=/some/folder bash scripts/new_user.sh corpus.csv      # keeps the clone and its outputs
#
# Crates in cargo's cache are not downloaded again; everything is compiled.
set -euo pipefail

[ $# -eq 1 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
corpus="$(realpath "$1")"
repository="$(cd "$(dirname "$0")/.." && pwd)"
if [ -z "${WORK:-}" ]; then
    WORK="$(mktemp -d)"
    trap 'rm -rf "$WORK"' EXIT
fi
mkdir -p "$WORK"
git clone --quiet "$repository" "$WORK/clone"
cd "$WORK/clone"

# Times a command and logs its output: `timed NAME COMMAND...`
timed() {
    local name="$1" begun="$EPOCHREALTIME"
    shift
    "$@" > "$WORK/$name.log" 2>&1 || { cat "$WORK/$name.log" >&2; echo "new_user.sh: $name failed" >&2; exit 1; }
    awk -v name="$name" -v from="$begun" -v to="$EPOCHREALTIME" 'BEGIN { printf "%-8s %7.1f s\n", name, to - from }'
}

echo "$(git rev-parse --short HEAD), $(nproc) cores, $(($(wc -l < "$corpus") - 1)) rows"
timed compile cargo build --release --locked
engine() { cargo run --quiet --release --locked -- "$@"; }
timed train engine train --config configs/demo.json --data "$corpus" --out runs/mine
timed score engine score --checkpoint runs/mine --data "$corpus" --out runs/mine/ratings.csv
timed report engine report --of runs/mine --ratings runs/mine/ratings.csv
ls -l runs/mine/report.html | awk '{ printf "report.html %.1f MB\n", $5 / 1e6 }'
