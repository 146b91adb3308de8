#!/usr/bin/env python3
"""Measures what a user gets who trains, scores and selects with no option but the configuration.

    python3 scripts/user_path.py --out runs/path                                                          # the built-in data
    python3 scripts/user_path.py --out runs/path --corpus openclipart/corpus.csv --clean openclipart/validation.csv

For each seed, flaws are planted in `--pairs` pairs of the corpus. `train`, `score` and `select --keep` follow, without any
other option. Then the same model is trained with `fit` on the selected part, on a random one and on one of clean pairs
alone, all of the same size and for the same number of steps, and its loss is measured on clean pairs that nothing else has
seen. Printed are the share of the gap between random and clean that the selection closes, the flaws that it kept, and what
`train` said of the captions. OUT/user_path.csv holds the same. What is finished in OUT is not computed again.

Needs Python 3.11 and the program, from PATH, $ALCHEMIST_ENGINE or target/release.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

from caption_gain import ROOT, planted, program, run

PARTS = ["selected", "random", "clean"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def once(engine: str, arguments: list[str], out: Path, log: Path) -> None:
    """Runs a command, unless it has finished before."""
    done = out.with_name(f"{out.name}.done")
    if not done.exists():
        run(engine, arguments, log)
        done.write_text("")


def loss(folder: Path) -> float:
    """The validation loss after the last epoch of a fit."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line["validation_loss"] for line in reversed(lines) if "validation_loss" in line)


def one(engine: str, arguments: argparse.Namespace, seed: int) -> dict[str, object]:
    """The losses, the flaws that were kept and what `train` printed, for a seed."""
    folder = arguments.out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    table = planted(engine, arguments, seed, folder)
    clean = folder / "demo/data/validation.csv"
    if arguments.corpus is not None:
        once(engine, ["plant", "--data", str(arguments.clean), "--out", str(folder / "unseen"), "--flaws", "noise=0",
                      "--side", str(arguments.side)], folder / "unseen", log)
        clean = folder / "unseen/corpus.csv"
    # Further tables lie next to the first one, so that relative paths lead to the images.
    pairs = table.with_name("pairs.csv")
    if not pairs.exists():
        rows = read(table)
        random.Random(seed).shuffle(rows)
        write(pairs, rows[: arguments.pairs])
    config = ["--config", str(arguments.config), *(word for key in arguments.set for word in ("--set", key))]
    seeded = ["--set", f"seed={seed}"]
    trained = folder / "train.txt"
    if not trained.exists():
        resume = ["--resume"] if (folder / "run").exists() else []
        with log.open("a") as errors:
            said = subprocess.run(
                [engine, "train", *config, *seeded, "--data", str(pairs), "--out", str(folder / "run"), *resume],
                stdout=subprocess.PIPE, stderr=errors, text=True)
        if said.returncode != 0:
            sys.exit(f"alchemist-engine train ended with {said.returncode}; see {log}")
        trained.write_text(said.stdout)
    ratings = table.with_name("ratings.csv")
    once(engine, ["score", "--checkpoint", str(folder / "run"), "--data", str(pairs), "--out", str(ratings)], ratings, log)
    rows = read(pairs)
    write(table.with_name("only_clean.csv"), [row | {"rating": "0"} for row in rows if row["flaw"] == "clean"])
    kept = round(len(rows) * arguments.keep)
    found: dict[str, object] = {"seed": seed, "pairs": len(rows)}
    selections = {"selected": [str(ratings)], "random": [str(ratings), "--strategy", "random"],
                  "clean": [str(table.with_name("only_clean.csv")), "--strategy", "random"]}
    for part, selection in selections.items():
        subset = table.with_name(f"part_{part}.csv")
        once(engine, ["select", "--ratings", *selection, "--keep", str(kept), "--seed", str(seed), "--out", str(subset)],
             subset, log)
        epochs = max(1, round(arguments.steps * 32 / kept))
        fit = folder / f"fit-{part}"
        once(engine, ["fit", *config, *seeded, "--set", f"ep={epochs}", "--data", str(subset), "--validation", str(clean),
                      "--out", str(fit), *(["--resume"] if fit.exists() else [])], fit, log)
        found[part] = loss(fit)
    found["closed"] = (found["random"] - found["selected"]) / (found["random"] - found["clean"])
    total = Counter(row["flaw"] for row in rows)
    chosen = Counter(row["flaw"] for row in read(table.with_name("part_selected.csv")))
    found["kept"] = " ".join(f"{flaw} {chosen[flaw]}/{count}" for flaw, count in sorted(total.items()))
    found["captions"] = next((line for line in trained.read_text().splitlines() if line.startswith("caption gain")), "")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is computed")
    parser.add_argument("--corpus", type=Path, help="CSV to plant flaws in [default: the built-in data]")
    parser.add_argument("--clean", type=Path, help="CSV of clean pairs to measure on, required with --corpus")
    parser.add_argument("--flaws", default="", help="flaws and their shares, in place of --mixture")
    parser.add_argument("--mixture", default="both", help="a mixture of `plant` or `demo` [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of the corpus [default: %(default)s]")
    parser.add_argument("--keep", type=float, default=0.5, help="share to keep [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=310, help="steps of each fit, about [default: %(default)s]")
    parser.add_argument("--side", type=int, default=48, help="side of the planted images [default: %(default)s]")
    parser.add_argument("--seeds", type=int, default=3, help="planting seeds, from 0 [default: %(default)s]")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/compare.json")
    parser.add_argument("--set", action="append", default=[], help="key=value on top of the configuration")
    arguments = parser.parse_args()
    if arguments.corpus is not None and arguments.clean is None:
        sys.exit("--corpus needs --clean, a CSV of clean pairs to measure on")
    if arguments.flaws:
        arguments.mixture = None
    engine = program()
    arguments.out.mkdir(parents=True, exist_ok=True)
    described = {key: str(value) for key, value in vars(arguments).items() if key not in ("out", "seeds")}
    known = arguments.out / "arguments.json"
    if known.exists() and json.loads(known.read_text()) != described:
        sys.exit(f"{arguments.out} contains results of other arguments ({known}); choose another --out")
    known.write_text(json.dumps(described, indent=2) + "\n")
    rows = [one(engine, arguments, seed) for seed in range(arguments.seeds)]
    write(arguments.out / "user_path.csv", rows)
    print("| seed | pairs |", " | ".join(PARTS), "| gap closed |")
    print("| --- " * 6 + "|")
    for row in rows:
        losses = " | ".join(f"{row[part]:.4f}" for part in PARTS)
        print(f"| {row['seed']} | {row['pairs']} | {losses} | {100 * row['closed']:.0f}% |")
    means = {part: statistics.mean(row[part] for row in rows) for part in PARTS}
    closed = (means["random"] - means["selected"]) / (means["random"] - means["clean"])
    losses = " | ".join(f"{means[part]:.4f}" for part in PARTS)
    print(f"| mean | | {losses} | {100 * closed:.0f}% |\n")
    for row in rows:
        print(f"seed {row['seed']}: {row['captions']}\n  kept: {row['kept']}")


if __name__ == "__main__":
    main()
