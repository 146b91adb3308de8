#!/usr/bin/env python3
"""Measures how well the caption gain (`train --set rule=gain`) finds planted flaws.

    python3 scripts/caption_gain.py --out runs/gain                              # the built-in data
    python3 scripts/caption_gain.py --out runs/gain --corpus openclipart/corpus.csv

For each seed, flaws are planted, proxies are cross-fitted, and the AUROC of each flaw against the clean pairs is
printed: in each fold, by the mean of both gains; pooled over the folds, by the rating, which is its percentile in the
fold; and pooled by either gain alone. 1 means that every flawed pair is rated
below every clean one, 0.5 that the rating does not see the flaw. OUT/caption_gain.csv holds the same numbers. What is
finished in OUT is not computed again.

Needs Python 3.11 and the program, from PATH, $ALCHEMIST_ENGINE or target/release.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The share of wrong captions in docs/comparison.md's second corpus, and a few flaws that pixels show.
FLAWS = "wrong_caption=12%,noise=4%,plain=4%,blur=4%,duplicate=4%"


def program() -> str:
    named = os.environ.get("ALCHEMIST_ENGINE")
    built = ROOT / "target/release/alchemist-engine"
    found = named or shutil.which("alchemist-engine") or (str(built) if built.exists() else None)
    if found is None:
        sys.exit("alchemist-engine is neither in PATH nor in target/release; build it, or set ALCHEMIST_ENGINE")
    return found


def run(engine: str, arguments: list[str], log: Path) -> float:
    """Runs a command, and returns its seconds."""
    started = time.monotonic()
    with log.open("a") as output:
        print("$ alchemist-engine", *arguments, file=output, flush=True)
        code = subprocess.run([engine, *arguments], stdout=output, stderr=output).returncode
    if code != 0:
        sys.exit(f"alchemist-engine {arguments[0]} ended with {code}; see {log}")
    return time.monotonic() - started


def auroc(flawed: list[float], clean: list[float]) -> float:
    """The probability that a flawed pair is rated below a clean one; ties count half."""
    values = sorted([(value, True) for value in flawed] + [(value, False) for value in clean])
    ranks, start = 0.0, 0
    while start < len(values):
        end = start
        while end < len(values) and values[end][0] == values[start][0]:
            end += 1
        # Ranks count from 1; equal values share the mean of theirs.
        ranks += (start + end + 1) / 2 * sum(is_flawed for _, is_flawed in values[start:end])
        start = end
    pairs = len(flawed) * len(clean)
    return 1 - (ranks - len(flawed) * (len(flawed) + 1) / 2) / pairs


def planted(engine: str, arguments: argparse.Namespace, seed: int, folder: Path) -> Path:
    """The table of a corpus with flaws."""
    log = folder / "log"
    flaws = ["--mixture", arguments.mixture] if arguments.mixture else ["--flaws", arguments.flaws]
    if arguments.corpus is None:
        data = folder / "demo"
        if not (data / "flaws.csv").exists():
            # Only its data set is used, so its networks are as small as they can be.
            small = ["ep=1", "depth=1", "raterDepth=1", "proxy_width=64", "pn=1_2_3_4_6_8", "rule=excess", "rater_only_epochs=0"]
            sets = [word for key in small for word in ("--set", key)]
            run(engine, ["demo", "--seed", str(seed), "--out", str(data), "--overwrite", *flaws, *sets], log)
        return data / "data/train.csv"
    data = folder / "corpus"
    if not (data / "corpus.csv").exists():
        plant = ["plant", "--data", str(arguments.corpus), "--out", str(data), *flaws]
        run(engine, [*plant, "--side", str(arguments.side), "--seed", str(seed)], log)
    return data / "corpus.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is computed")
    parser.add_argument("--corpus", type=Path, help="CSV to plant flaws in [default: the built-in data]")
    parser.add_argument("--flaws", default=FLAWS, help="flaws and their shares [default: %(default)s]")
    parser.add_argument("--mixture", help="a mixture of `plant` or `demo`, in place of --flaws")
    parser.add_argument("--side", type=int, default=48, help="side of the planted images [default: %(default)s]")
    parser.add_argument("--seeds", type=int, default=5, help="planting seeds, from 0 [default: %(default)s]")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/compare.json")
    parser.add_argument("--set", action="append", default=[], help="key=value on top of the configuration")
    arguments = parser.parse_args()
    engine = program()
    arguments.out.mkdir(parents=True, exist_ok=True)
    described = {key: str(value) for key, value in vars(arguments).items() if key not in ("out", "seeds")}
    kept = arguments.out / "arguments.json"
    if kept.exists() and json.loads(kept.read_text()) != described:
        sys.exit(f"{arguments.out} contains results of other arguments ({kept}); pass another --out")
    kept.write_text(json.dumps(described, indent=2) + "\n")
    sets = [word for key in ["rule=gain", *arguments.set] for word in ("--set", key)]
    rows, seconds = [], []
    for seed in range(arguments.seeds):
        folder = arguments.out / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        table = planted(engine, arguments, seed, folder)
        train = ["train", "--config", str(arguments.config), "--data", str(table), "--out", str(folder / "run")]
        seconds.append(run(engine, [*train, "--resume", "--set", f"seed={seed}", *sets], folder / "log"))
        with table.open(newline="") as lines:
            flaws = {row["id"]: row["flaw"] for row in csv.DictReader(lines)}
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        with (folder / "run/gains.csv").open(newline="") as lines:
            for row in csv.DictReader(lines):
                flaw = flaws[row["id"]]
                signal = float(row["gain"]) + float(row["gain_empty"])
                values[f"fold {row['fold']}"][flaw].append(signal)
                values["pooled"][flaw].append(float(row["rating"]))
                values["pooled, other captions"][flaw].append(float(row["gain"]))
                values["pooled, empty caption"][flaw].append(float(row["gain_empty"]))
        for scope, by_flaw in sorted(values.items()):
            for flaw, found in sorted(list(by_flaw.items())):
                if flaw != "clean" and by_flaw["clean"]:
                    rows.append((seed, scope, flaw, len(found), auroc(found, by_flaw["clean"])))
    with (arguments.out / "caption_gain.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["seed", "scope", "flaw", "pairs", "auroc"])
        writer.writerows(rows)
    flaws = sorted({flaw for _, _, flaw, _, _ in rows})
    print("| seed | scope |", " | ".join(flaws), "|")
    print("| --- " * (len(flaws) + 2) + "|")
    scopes = sorted({scope for _, scope, _, _, _ in rows})
    for seed in [*range(arguments.seeds), "mean"]:
        for scope in scopes:
            cells = []
            for flaw in flaws:
                found = [value for at, where, what, _, value in rows if (where, what) == (scope, flaw) and seed in (at, "mean")]
                cells.append(f"{statistics.mean(found):.3f}" if found else "")
            print(f"| {seed} | {scope} |", " | ".join(cells), "|")
    print(f"seconds of train: {', '.join(f'{one:.0f}' for one in seconds)} (less for what was finished before)")


if __name__ == "__main__":
    main()
