#!/usr/bin/env bash
# All GPU checks and benchmarks, on a machine with a GPU but neither cargo nor a network.
#
#     bash scripts/gpu.sh pack                       # here: builds, strips, packs everything into target/gpu (below 64 MiB)
#     bash scripts/gpu.sh pack --whole               # includes the fixtures, so that target/gpu suffices there
#     bash scripts/gpu.sh run [PART...]              # there, in the repository, or in a whole target/gpu
#     bash scripts/gpu.sh run --device emulated      # a dry run without a GPU, with tiny sizes
#
# Parts, in default order: facts parity memcheck racecheck initcheck synccheck kernels bench step encode pytorch
# pytorch_step pytorch_meta_gradient table (`sanitizer`: the four checks). On a GPU, long commands of a part are stopped
# after 560 seconds per part (`--limit SECONDS`); parity limits each test instead (150 seconds), and a dry run each
# command. Results go to target/gpu/results (or `--out DIR`), so parts may be run in several calls, and `table`
# summarizes all results: a short table, and a block for benches/RESULTS.md.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -d "$here/bin" ]; then
    pack="$here"
else
    pack="$(dirname "$here")/target/gpu"
fi

fail() {
    echo "gpu.sh: $*" >&2
    exit 2
}

# Here -----------------------------------------------------------------------------------------------------------------

# The binary of each target, and the kernels' table, from cargo's messages.
built() {
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        kind = message["target"]["kind"][0]
        print(kind, message["target"]["name"], message["executable"])
    if message.get("reason") == "build-script-executed" and "alchemist-engine" in message["package_id"]:
        print("kernels", "table", message["out_dir"] + "/kernels/table.txt")'
}

make_pack() {
    cd "$(dirname "$here")"
    local benches="ops ceilings" name targets=()
    [ -f benches/device_step.rs ] && benches="$benches device_step"
    [ -f benches/device_encode.rs ] && benches="$benches device_encode"
    # The tests that use a device: directly, through tests/device, or by ALCHEMIST_DEVICE. Without the emulator's own
    # tests, which need line numbers that `strip` removes, and do not use a GPU.
    local uses='Device::(cuda|emulated)\(|^mod device;|parameters_near|ALCHEMIST_DEVICE'
    for name in kernels $(grep -lE "$uses" tests/*.rs | xargs -n 1 basename -s .rs); do
        [ "$name" = emulator ] || targets+=(--test "$name")
    done
    for name in $benches; do targets+=(--bench "$name"); done
    rm -rf target/gpu
    mkdir -p target/gpu/bin target/gpu/sanitizer
    NVCC="$(bash scripts/kernels.sh --nvcc)"
    export NVCC ALCHEMIST_CANARY=1
    # A separate target folder keeps the default build, without GPU kernels, unchanged.
    cargo build --release --target-dir target/cards --message-format=json --bin alchemist-engine "${targets[@]}" \
        > target/gpu/cargo.json
    built < target/gpu/cargo.json | sort -u > target/gpu/built.txt
    rm target/gpu/cargo.json
    while read -r kind name file; do
        if [ "$kind" = kernels ]; then
            cp "$file" target/gpu/kernels.txt
        else
            strip -o "target/gpu/bin/$kind-$name" "$file"
        fi
    done < target/gpu/built.txt
    rm target/gpu/built.txt
    ls target/gpu/bin/bin-alchemist-engine target/gpu/kernels.txt > /dev/null
    # The magic bytes of a fatbin.
    LC_ALL=C grep -aqP '\x50\xed\x55\xba' target/gpu/bin/bin-alchemist-engine || fail "it contains no GPU kernels"
    if [ "${1:-}" = --whole ]; then
        mkdir target/gpu/tests
        cp -r tests/fixtures target/gpu/tests/fixtures
    fi
    mkdir -p target/gpu/pytorch
    cp benches/pytorch/*.py target/gpu/pytorch/
    cp scripts/gpu.sh scripts/gpu_table.py target/gpu/
    git rev-parse --short=12 HEAD > target/gpu/commit
    git diff --quiet HEAD || echo "with changes" >> target/gpu/commit
    pack_sanitizer
    # The binaries share most of their content, above all the kernels; with a window larger than one of them they
    # compress to little more than the first.
    tar -C target/gpu -cf - bin | xz --lzma2=preset=2,dict=128MiB > target/gpu.tar.xz
    rm -r target/gpu/bin && mkdir target/gpu/bin
    mv target/gpu.tar.xz target/gpu/bin/all.tar.xz
    local mib=$(($(du -sk target/gpu | cut -f 1) / 1024))
    echo "target/gpu: $mib MiB, commit $(head -n 1 target/gpu/commit)"
    [ "$mib" -lt 64 ] || fail "the folder is larger than the 64 MiB that are carried"
}

# compute-sanitizer from pip, because that machine may not have it.
pack_sanitizer() {
    local environment=target/sanitizer found
    if [ ! -x "$environment/bin/python" ]; then
        python3 -m venv "$environment"
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "nvidia-cuda-sanitizer-api==13.0.*"
    found="$(find "$PWD/$environment" -path '*/bin/compute-sanitizer' | head -n 1)"
    [ -n "$found" ] || fail "the pip package contains no compute-sanitizer"
    local flat
    flat="$(mktemp -d)"
    cp "$(dirname "$(dirname "$found")")"/lib/* "$flat/"
    cp "$(dirname "$found")"/* "$flat/"
    chmod +x "$flat/compute-sanitizer"
    tar -C "$flat" -cJf target/gpu/sanitizer/all.tar.xz .
    rm -r "$flat"
}

# There ----------------------------------------------------------------------------------------------------------------

device=cuda
limit=560
part_started=0
results="$pack/results"

# One line of the summary: part, what, result, details.
note() {
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-}" >> "$results/notes.tsv"
    printf '%-10s %-34s %-14s %s\n' "$1" "$2" "$3" "${4:-}"
}

# Runs a command with a time limit and a log, and notes the result: `limited PART NAME SECONDS COMMAND...`
limited() {
    local part="$1" name="$2" most="$3" log started=$SECONDS code=0
    shift 3
    log="$results/$part-${name//[^A-Za-z0-9_.]/_}.log"
    # The part's remaining time, if that is less. On the emulator times are not meaningful.
    local left=$((limit - (SECONDS - part_started)))
    on_gpu || most=$((most * 4)) left=$most
    [ "$left" -gt "$most" ] || most=$left
    if [ "$most" -lt 1 ]; then
        note "$part" "$name" "NOT STARTED" "the part's $limit s were over"
        return 1
    fi
    timeout --kill-after=5 "$most" "$@" > "$log" 2>&1 || code=$?
    local took="$((SECONDS - started)) s"
    case $code in
        0) note "$part" "$name" ok "$took" ;;
        124 | 137) note "$part" "$name" "OUT OF TIME" "$took; $log" ;;
        *) note "$part" "$name" FAILED "exit code $code, $took; $log" ;;
    esac
    return $code
}

unpack() {
    local to="${TMPDIR:-/tmp}/alchemist-gpu-$(id -u)"
    # Remove earlier packs.
    rm -rf "$to"
    mkdir -p "$to/bin" "$to/sanitizer"
    tar -C "$to" -xJf "$pack/bin/all.tar.xz"
    tar -C "$to/sanitizer" -xJf "$pack/sanitizer/all.tar.xz"
    bin="$to/bin"
    sanitizers="$to/sanitizer"
}

# cuBLASLt comes with the CUDA toolkit or with PyTorch.
find_libraries() {
    local folders
    folders="$(python3 -c '
import glob, sys
print(":".join(f for p in sys.path for f in sorted(glob.glob(p + "/nvidia/*/lib"), reverse=True)))' 2> /dev/null || true)"
    export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64:$folders"
}

on_gpu() {
    [ "$device" != emulated ]
}

part_facts() {
    {
        date -u +"date %Y-%m-%d"
        echo "commit $(tr '\n' ' ' < "$pack/commit")"
        if on_gpu; then
            nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit \
                --format=csv,noheader || echo "nvidia-smi does not run"
        else
            echo "rehearsal on the emulator"
        fi
        "$bin/bin-alchemist-engine" devices || true
    } | tee "$results/facts.txt"
    if limited facts ceilings 180 "$bin/bench-ceilings"; then
        grep '^{' "$results/facts-ceilings.log" > "$results/ceilings.jsonl" || true
    fi
}

# Runs one test in its own process: binary, test, seconds. Prints a summary.
one_test() {
    local name="${1##*/test-}" code=0 started=$SECONDS
    # Some tests read tests/fixtures relative to the current folder.
    cd "$ALCHEMIST_FIXTURES/../.."
    timeout --kill-after=5 "$3" "$1" --exact "$2" --test-threads 1 \
        > "$results/parity-$name-${2//[^A-Za-z0-9_]/_}.log" 2>&1 || code=$?
    printf '%s\t%s\t%s\t%s\n' "$name" "$2" "$code" $((SECONDS - started))
}

# Each test in its own process, several in parallel: a broken GPU context fails one test only. Memory tests, which
# measure the GPU as a whole, run first and alone.
part_parity() {
    local test name jobs=6 most=150 list="$results/parity.list" sums="$results/parity.tsv" failed=0
    on_gpu && export ALCHEMIST_REQUIRE_GPU=1 || { jobs=2 && most=900; }
    export ALCHEMIST_FIXTURES="$fixtures" ALCHEMIST_DEVICE="$device" ALCHEMIST_PROGRAM="$bin/bin-alchemist-engine"
    export results
    export -f one_test
    for test in "$bin"/test-*; do
        [ "${test##*/}" != test-canary ] || continue
        "$test" --list --format terse | sed -n "s|^\(.*\): test\$|$test \1 $most|p"
    done > "$list"
    { grep '/test-device_memory ' "$list" | xargs -L 1 bash -c 'one_test "$@"' _
        grep -v '/test-device_memory ' "$list" | xargs -P "$jobs" -L 1 bash -c 'one_test "$@"' _; } > "$sums"
    for name in $(cut -f 1 "$sums" | sort -u); do
        local passed broken
        passed="$(awk -F '\t' -v name="$name" '$1 == name && $3 == 0' "$sums" | wc -l)"
        broken="$(awk -F '\t' -v name="$name" '$1 == name && $3 != 0 {print $2 ($3 == 124 || $3 == 137 ? " (out of time)" : "")}' "$sums")"
        if [ -z "$broken" ]; then
            note parity "$name" ok "$passed tests"
        else
            note parity "$name" FAILED "$passed tests passed; failed: $(tr '\n' ' ' <<< "$broken")"
            failed=1
        fi
    done
    [ "$(wc -l < "$sums")" = "$(wc -l < "$list")" ] || { note parity all FAILED "not every test was run" && failed=1; }
    return $failed
}

part_memcheck() { check memcheck card_out_of_bounds; }
part_racecheck() { check racecheck card_race; }
part_initcheck() { check initcheck card_unwritten; }
part_synccheck() { check synccheck card_divergent_barrier; }

# Each tool of compute-sanitizer must detect its canary, and nothing else in any kernel test; all run in parallel:
# `check TOOL CANARY`
check() {
    local tool="$1" canary="$2" failed=0 sanitizer code=0 log name
    if ! on_gpu; then
        note "$tool" "compute-sanitizer" "NOT CHECKED" "it needs a GPU; the emulator's own checks ran in the part parity"
        return 0
    fi
    sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null || true)"
    local options=(--error-exitcode 9 --print-limit 20)
    if [ -z "$sanitizer" ] && "$sanitizers/compute-sanitizer" --version > /dev/null 2>&1; then
        sanitizer="$sanitizers/compute-sanitizer"
        options+=(--injection-path "$sanitizers")
    fi
    if [ -z "$sanitizer" ]; then
        note "$tool" "compute-sanitizer" "NOT INSTALLED" "nothing was checked on the GPU"
        return 1
    fi
    local -x ALCHEMIST_PLAIN_ALLOCATIONS=1 ALCHEMIST_REQUIRE_GPU=1
    log="$results/$tool-canary.log"
    timeout 60 "$sanitizer" --tool "$tool" "${options[@]}" "$bin/test-canary" --ignored --exact "$canary" \
        --test-threads 1 > "$log" 2>&1 || code=$?
    # Requires the tool's own exit code and report: a tool that does not start must not pass.
    if [ $code = 9 ] && grep -Eq 'ERROR SUMMARY: [1-9]|[1-9][0-9]* hazards? displayed' "$log"; then
        note "$tool" canary found
    else
        note "$tool" canary "NOT FOUND" "exit code $code; $log"
        failed=1
    fi
    # One process per operation, twelve in parallel; the operations are the modules of the test.
    local names=() pids=() skipped other
    mapfile -t names < <("$bin/test-kernels" --list | sed -n 's/^\([a-z_]*\)::.*: test$/\1/p' | sort -u)
    if [ "${#names[@]}" -lt 20 ]; then
        note "$tool" kernels "NOT LISTED" "test-kernels lists ${#names[@]} operations"
        return 1
    fi
    for name in "${names[@]}"; do
        # A filter matches any part of a name.
        skipped=()
        for other in "${names[@]}"; do
            [ "$other" = "$name" ] || [[ "$other" != *"$name" ]] || skipped+=(--skip "$other::")
        done
        checked "$tool" "$name" "$sanitizer" --tool "$tool" "${options[@]}" \
            "$bin/test-kernels" --test-threads 1 "$name::" "${skipped[@]}" &
        pids+=($!)
        if [ "${#pids[@]}" = 12 ]; then
            for other in "${pids[@]}"; do
                wait "$other" || failed=1
            done
            pids=()
        fi
    done
    for other in "${pids[@]}"; do
        wait "$other" || failed=1
    done
    return $failed
}

# `checked TOOL TEST COMMAND...`: the command must succeed under the tool, and the report must count no error.
checked() {
    local tool="$1" name="$2"
    shift 2
    limited "$tool" "$name" 400 "$@" || return 1
    if ! grep -Eq 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$results/$tool-$name.log"; then
        note "$tool" "$name" "NO REPORT" "$results/$tool-$name.log"
        return 1
    fi
}

part_kernels() {
    cat "$pack/kernels.txt"
    cp "$pack/kernels.txt" "$results/kernels.txt"
    note kernels table ok "$(wc -l < "$pack/kernels.txt") lines"
}

part_bench() {
    # CPU benches do not spend the GPU machine's time.
    local options=(--bench --noplot '^device/')
    if limited bench ops 400 "$bin/bench-ops" "${options[@]}"; then
        grep '^{' "$results/bench-ops.log" | tee "$results/ops.jsonl"
    else
        return 1
    fi
}

part_step() {
    if [ ! -x "$bin/bench-device_step" ]; then
        note step device_step "NOT THERE" "this pack has no bench of the step on a device"
        return 1
    fi
    limited step device_step 300 "$bin/bench-device_step" || return 1
    grep '^{' "$results/step-device_step.log" | tee "$results/step.jsonl"
    # The overhead of products and norms again, with the portable kernel.
    ALCHEMIST_STEP=meta_gradient ALCHEMIST_PORTABLE=1 limited step portable 120 "$bin/bench-device_step" || return 1
    grep '^{' "$results/step-portable.log" |
        sed -E 's#"(meta_gradient/everything|train_step_alignment)"#"\1_portable"#' | grep portable | tee -a "$results/step.jsonl"
}

# The VQ-VAE in its released size, with random weights written by PyTorch, ours and then PyTorch's; in a dry run that of
# the fixture, ours only.
part_encode() {
    local weights="$results/vae.pth" failed=0
    if on_gpu; then
        compare encode encode 120 --weights "$weights" --write || return 1
        # A second run with the same name would replace the log.
        mv "$results/encode-encode.log" "$results/encode-weights.log"
    fi
    export ALCHEMIST_VQVAE="$weights"
    if ALCHEMIST_FIXTURES="$fixtures" limited encode device_encode 200 "$bin/bench-device_encode"; then
        grep '^{' "$results/encode-device_encode.log" | tee "$results/encode.jsonl"
    else
        failed=1
    fi
    if on_gpu; then
        compare encode encode 200 --weights "$weights" --device cuda || failed=1
        rm -f "$weights"
        # From image files to ratings, whole processes; requires Pillow, too.
        compare encode released_size 200 --device cuda --binary "$bin/bin-alchemist-engine" \
            --out "$results/released_size" || failed=1
        rm -rf "$results/released_size"
    fi
    return $failed
}

# Runs one of benches/pytorch. `compare PART SCRIPT SECONDS ARGUMENT...`
compare() {
    local part="$1" script="$2" most="$3" python="${PYTHON:-python3}"
    shift 3
    if ! "$python" -c 'import torch' > /dev/null 2>&1; then
        note "$part" "$script" "NO TORCH" "nothing to compare with (PYTHON=... names another Python)"
        return 1
    fi
    (cd "$pack/pytorch" && limited "$part" "$script" "$most" "$python" "$script.py" "$@")
}

part_pytorch() {
    local where=(--device cuda) failed=0 script
    on_gpu || where=(--device cpu --tiny)
    for script in attention patch_embed cross_entropy; do
        compare pytorch "$script" 180 "${where[@]}" || failed=1
    done
    return $failed
}

part_pytorch_step() {
    local case=(--device cuda --case large --given input)
    on_gpu || case=(--device cpu --case smallest --repeats 3 --given input)
    compare pytorch_step step 540 "${case[@]}"
}

part_pytorch_meta_gradient() {
    local case=(--device cuda --case large --repeats 6 --budget 12)
    on_gpu || case=(--device cpu --case smallest --repeats 3)
    compare pytorch_meta_gradient meta_gradient 540 "${case[@]}"
}

part_table() {
    cat "$results"/pytorch*.log "$results/encode-encode.log" 2> /dev/null | grep '^{' > "$results/pytorch.jsonl" || true
    grep -h '^{' "$results/encode-released_size.log" 2> /dev/null || true
    python3 "$here/gpu_table.py" "$results" | tee "$results/table.md"
}

run() {
    local parts=() failed=() part
    while [ $# -gt 0 ]; do
        case "$1" in
            --device) device="$2" && shift ;;
            --limit) limit="$2" && shift ;;
            --out) results="$2" && shift ;;
            facts | parity | memcheck | racecheck | initcheck | synccheck | kernels | bench | step | encode) parts+=("$1") ;;
            pytorch | pytorch_step | pytorch_meta_gradient | table) parts+=("$1") ;;
            sanitizer) parts+=(memcheck racecheck initcheck synccheck) ;;
            *) fail "unknown part or option: $1" ;;
        esac
        shift
    done
    [ ${#parts[@]} -gt 0 ] || parts=(
        facts parity memcheck racecheck initcheck synccheck kernels bench step encode pytorch pytorch_step
        pytorch_meta_gradient table
    )
    [ -f "$pack/bin/all.tar.xz" ] || fail "$pack is not packed: run scripts/gpu.sh pack first"
    fixtures="$pack/tests/fixtures"
    [ -d "$fixtures" ] || fixtures="$(dirname "$(dirname "$pack")")/tests/fixtures"
    [ -d "$fixtures" ] || fail "there are no fixtures: run this from the repository's folder, or pack with --whole"
    mkdir -p "$results"
    results="$(cd "$results" && pwd)"
    unpack
    find_libraries
    export ALCHEMIST_BENCH_DEVICE="$device" CRITERION_HOME="$results/criterion"
    for part in "${parts[@]}"; do
        printf '\n== %s\n' "$part"
        # Replaces earlier notes of the part.
        if [ -f "$results/notes.tsv" ]; then
            grep -v "^$part	" "$results/notes.tsv" > "$results/notes.new" || true
            mv "$results/notes.new" "$results/notes.tsv"
        fi
        part_started=$SECONDS
        "part_$part" || failed+=("$part")
    done
    if [ ${#failed[@]} -gt 0 ]; then
        printf '\ngpu.sh: failed: %s\n' "${failed[*]}"
        exit 1
    fi
}

case "${1:-}" in
    pack) make_pack "${2:-}" ;;
    run) shift && run "$@" ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
esac
