#!/usr/bin/env bash
# Creates the pages of a tiny run and a tiny comparison, and checks both in a headless Chromium: light and dark, in a
# wide window, on a phone and in print. Then mutates the page in every way that the checks cover; each mutation must be
# detected. Screenshots and printed pages are in target/page.
#
#     bash scripts/page.sh              # CHROMIUM=/path/to/chromium selects a browser; installs Debian's if there is none
#     ALCHEMIST_ENGINE=target/release/alchemist-engine bash scripts/page.sh     # uses this program instead of building one
set -euo pipefail
cd "$(dirname "$0")/.."

# The newest tested version of playwright-core; a newer one may not support the browser's protocol.
version=1.60.0
folder="$PWD/target/page"
mkdir -p "$folder"

if ! command -v npm >/dev/null; then
    echo "scripts/page.sh needs Node 20.15 or newer with npm" >&2
    exit 1
fi
CHROMIUM="${CHROMIUM:-$(command -v chromium || true)}"
if [ -z "$CHROMIUM" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "chromium not found, and no apt-get to install it; set CHROMIUM=/path/to/chromium" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
    CHROMIUM="$(command -v chromium)"
fi
export CHROMIUM
if ! grep -qsF "\"version\": \"$version\"" "$folder/node_modules/playwright-core/package.json"; then
    PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm install --prefix "$folder" --no-audit --no-fund --silent --save-exact "playwright-core@$version"
fi

if [ -z "${ALCHEMIST_ENGINE:-}" ]; then
    cargo build --release --locked
    ALCHEMIST_ENGINE="${CARGO_TARGET_DIR:-target}/release/alchemist-engine"
fi
ALCHEMIST_ENGINE="$(realpath "$ALCHEMIST_ENGINE")"

# Prints the output of a command only if it fails.
quietly() {
    if ! "$@" >"$folder/printed" 2>&1; then
        cat "$folder/printed" >&2
        return 1
    fi
}

work="$folder/work"
rm -rf "$work" "$folder"/*.png "$folder"/*.pdf "$folder"/*.html
mkdir "$work"
node scripts/page_corpus.mjs "$work"
cat >"$work/config.json" <<'JSON'
{
    "data_args": {"train_csv_path": "train.csv", "val_csv_path": "validation.csv"},
    "exp_name": "page",
    "depth": 1, "proxy_width": 64, "raterDepth": 1, "rater_width": 64,
    "pn": "1_2_3", "patch_size": 8,
    "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 60},
    "text_encoder": {"tokens": 8, "channels": 16},
    "rule": "excess", "bs": 16, "ep": 2, "tlr": 2e-3, "workers": 1
}
JSON
(
    cd "$work"
    quietly "$ALCHEMIST_ENGINE" train --config config.json --out run
    quietly "$ALCHEMIST_ENGINE" score --checkpoint run --data train.csv --out ratings.csv
    quietly "$ALCHEMIST_ENGINE" compare --config config.json --out comparison --seeds 2 --keep 50% --ratings excess,clarity \
        --samplers top-k,shift-gsample
    quietly "$ALCHEMIST_ENGINE" report --of comparison --out "$folder/comparison.html"
    # Images that are damaged after they were rated must be marked. Several, because the sheet shows only some images.
    for row in {10..25}; do
        truncate -s 60 "train/00$row.png"
    done
    quietly "$ALCHEMIST_ENGINE" report --of run --ratings ratings.csv --out "$folder/run.html"
)
if ! grep -q 'class="missing"' "$folder/run.html"; then
    echo "the run's page shows no damaged image; damage more of them" >&2
    exit 1
fi

node scripts/page.mjs "$folder/run.html" "$folder/comparison.html"
node scripts/page.mjs --self-test "$folder/run.html"
