"""Checks the checker: a sound program must be found clean, and each planted mistake must be found."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from jobs import Job
from place import Place, die_with_parent
from trials import KINDS, Trial

# The mistake, the kind of trial that shows it, within how many trials it must, and the error where it is one of many.
MISTAKES = (
    ("not-atomic", "kill", 16, None),
    ("not-again", "kill", 12, None),
    ("leaves", "kill", 12, None),
    ("mixes", "kill", 24, None),
    ("swallows", "full", 12, None),
    ("once", "error", 12, ("write", "short", False)),
    ("panics", "error", 8, None),
    ("loses-input", "error", 12, None),
    ("hangs", "error", 4, ("read_bytes", "EIO", True)),
    ("stops-well", "signal", 40, None),
    ("trusts", "flip", 16, None),
    ("no-lock", "pair", 8, None),
    ("foreign", "foreign", 16, None),
)
# Trials of each kind of the sound program.
SOUND = 4


def place_for(mistake: str, number: int, root: Path, library: Path) -> tuple:
    os.environ["ALCHEMIST_PLANTED"] = mistake
    folder = root / f"planted-{number}-{mistake}"
    folder.mkdir()
    command = [os.path.realpath(sys.executable), "-I", "-S", "-B", str(Path(__file__).with_name("planted.py"))]
    place = Place(command, folder, library, False)
    (place.folder / "data/images").mkdir(parents=True)
    for name, word in (("in.txt", "row"), ("other.txt", "line")):
        (place.folder / "data" / name).write_text("".join(f"{word} {at}\n" for at in range(80)))
    place.seal()
    # The mistake of `hangs` is waited for.
    place.engine.timeout = 2.0
    job = Job("planted", ("copy", "--data", "data/in.txt", "--out", "OUT"), "out.txt", ("--data", "data/other.txt"),
              inputs=("data/in.txt",))
    return place, job


def found(task) -> tuple:
    """What was found of one mistake, or the first false alarm of the sound program."""
    mistake, kind, most, forced, number, root, library = task
    die_with_parent()
    place, job = place_for(mistake, number, root, library)
    if not mistake:
        place.engine.timeout = 20.0
    for seed in range(most):
        trial = Trial(place, job, kind, seed)
        trial.forced = forced
        why = trial.judge()
        if why:
            return mistake, kind, "\n".join([why, *trial.told]) if not mistake else why
    return mistake, kind, None


def check(root: Path, library: Path, jobs: int) -> bool:
    """Whether the checker failed; prints what it found."""
    tasks = [("", kind, SOUND, None, number, root, library) for number, kind in enumerate(KINDS) if kind != "input"]
    tasks += [(*planted, number, root, library) for number, planted in enumerate(MISTAKES, len(KINDS))]
    failed = False
    # A worker that inherits the handler of SIGTERM can miss the signal that ends it, and is then waited for without end.
    with multiprocessing.Pool(jobs, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
        for mistake, kind, why in pool.imap(found, tasks):
            if not mistake and why:
                print(f"the checker finds a fault of a sound program, {kind}: {why}", flush=True)
                failed = True
            elif mistake and why:
                print(f"planted {mistake}: found by {kind}: {why[:120]}", flush=True)
            elif mistake:
                print(f"planted {mistake}: NOT found by {kind}", flush=True)
                failed = True
        pool.close()
        pool.join()
    return failed
