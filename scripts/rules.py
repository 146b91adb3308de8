#!/usr/bin/env python3
"""How well each rule finds the planted flaws of the built-in data set: runs `demo` for every rule and seed, and prints the
AUROC of each flaw, mean and 95% interval over the seeds.

    python3 scripts/rules.py [--out runs/rules] [--seeds 5] [--jobs 2] [--only NAME...]

One run takes minutes; what is there already is not run again, so that the table can be made in several calls. Beside the
ratings, controls come from the same runs, without any rater: the loss of each record averaged over the epochs, and the running
averages of the excess loss and of the inner product. `rules.csv` and `rules.md` in the folder hold the table.
"""

import argparse
import csv
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Name, and the keys that make it.
RULES = {
    "loss": ["rule=loss"],
    "excess": ["rule=excess", "rater_teaching=weights"],
    "excess, regression": ["rule=excess", "rater_teaching=regression"],
    "alignment, weights": [
        "rule=alignment", "rater_teaching=weights", "rule_geometry=sgd", "rule_scaling=standardise"],
    "alignment, regression": ["rule=alignment", "rule_geometry=sgd"],
    "alignment (AdamW), regression": ["rule=alignment", "rule_geometry=adamw"],
}
# What a batch's constants are scaled by: shown for the rules that teach by weights.
SCALINGS = {
    "loss, standardised": ["rule=loss", "rule_scaling=standardise"],
    "alignment, weights, not scaled": ["rule=alignment", "rater_teaching=weights", "rule_geometry=sgd"],
}
FLAWS = ["noise", "plain", "blur", "wrong_caption", "duplicate"]
# Two-sided 95% points of Student's t by degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / (name.replace(",", "").replace(" ", "-").replace("(", "").replace(")", "") + f"-{seed}")


def run(binary: str, out: Path, name: str, keys: list, seed: int, threads: int) -> None:
    folder = folder_of(out, name, seed)
    if (folder / "flaws.csv").exists():
        return
    command = [binary, "--threads", str(threads), "demo", "--out", str(folder), "--seed", str(seed), "--overwrite"]
    for key in keys:
        command += ["--set", key]
    log = out / (folder.name + ".log")
    with open(log, "w") as to:
        if subprocess.run(command, stdout=to, stderr=subprocess.STDOUT, check=False).returncode != 0:
            sys.exit(f"rules.py: {' '.join(command)} failed; see {log}")
    # Only the figures are kept: weights and pictures of some dozen runs are gigabytes.
    for part in ["data", "run/checkpoints"]:
        subprocess.run(["rm", "-rf", str(folder / part)], check=True)


def figures(out: Path, name: str, seed: int) -> dict:
    path = folder_of(out, name, seed) / "flaws.csv"
    if not path.exists():
        return {}
    with open(path) as lines:
        return {row["flaw"].replace(" ", "_"): row for row in csv.DictReader(lines)}


def interval(values: list) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = STUDENT[min(len(values), 10) - 2] * spread / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rules"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each on one thread")
    parser.add_argument("--only", nargs="*", help="names of rules; all unless given")
    parser.add_argument("--scalings", action="store_true", help="also the scalings of a batch's constants")
    parser.add_argument("--binary", default="target/release/alchemist-engine")
    arguments = parser.parse_args()
    rules = dict(RULES, **SCALINGS) if arguments.scalings else dict(RULES)
    chosen = {name: keys for name, keys in rules.items() if not arguments.only or name in arguments.only}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=arguments.jobs) as pool:
        jobs = [
            pool.submit(run, arguments.binary, arguments.out, name, keys, seed, 1)
            for seed in range(arguments.seeds) for name, keys in chosen.items()
        ]
        for job in jobs:
            job.result()
    rows = []
    controls = [
        ("loss, averaged, no rater", "alignment, regression", "auroc_of_loss"),
        ("excess loss, averaged, no rater", "excess", "auroc_of_average"),
        ("inner product, averaged, no rater", "alignment, regression", "auroc_of_average"),
        ("inner product (AdamW), averaged, no rater", "alignment (AdamW), regression", "auroc_of_average"),
    ]
    for label, name, column in [(name, name, "auroc") for name in chosen] + controls:
        found = [figures(arguments.out, name, seed) for seed in range(arguments.seeds)]
        found = [one for one in found if one]
        if not found:
            continue
        values = {
            flaw: [float(one[flaw][column]) for one in found if one.get(flaw, {}).get(column)] for flaw in FLAWS}
        cells = [interval(values[flaw]) if values[flaw] else "-" for flaw in FLAWS]
        rows.append([label, str(len(found))] + cells)
    header = ["rating", "seeds"] + [flaw.replace("_", " ") for flaw in FLAWS]
    with open(arguments.out / "rules.csv", "w", newline="") as to:
        csv.writer(to).writerows([header] + rows)
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header)] + rows]
    (arguments.out / "rules.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
