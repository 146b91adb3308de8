"""Tests the checker: it must accept a correct program and detect each planted defect."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from jobs import Job
from sandbox import Sandbox, die_with_parent
from trials import KINDS, Trial

# The defect, the kind of trial that detects it, the maximum number of trials, and the error if a specific one is
# needed.
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
# Trials of each kind for the correct program.
SOUND = 4


def sandbox_for(mistake: str, number: int, root: Path, library: Path) -> tuple:
    os.environ["ALCHEMIST_PLANTED"] = mistake
    folder = root / f"planted-{number}-{mistake}"
    folder.mkdir()
    command = [os.path.realpath(sys.executable), "-I", "-S", "-B", str(Path(__file__).with_name("planted.py"))]
    sandbox = Sandbox(command, folder, library, False)
    (sandbox.folder / "data/images").mkdir(parents=True)
    for name, word in (("in.txt", "row"), ("other.txt", "line")):
        (sandbox.folder / "data" / name).write_text("".join(f"{word} {at}\n" for at in range(80)))
    sandbox.seal()
    # The defect `hangs` runs into this timeout.
    sandbox.engine.timeout = 2.0
    job = Job("planted", ("copy", "--data", "data/in.txt", "--out", "OUT"), "out.txt", ("--data", "data/other.txt"),
              inputs=("data/in.txt",))
    return sandbox, job


def found(task) -> tuple:
    """The failure found for one defect, or the first false alarm for the correct program."""
    mistake, kind, most, forced, number, root, library = task
    die_with_parent()
    sandbox, job = sandbox_for(mistake, number, root, library)
    if not mistake:
        sandbox.engine.timeout = 20.0
    for seed in range(most):
        trial = Trial(sandbox, job, kind, seed)
        trial.forced = forced
        why = trial.judge()
        if why:
            return mistake, kind, "\n".join([why, *trial.log]) if not mistake else why
    return mistake, kind, None


def check(root: Path, library: Path, jobs: int) -> bool:
    """Whether the checker failed; prints the results."""
    tasks = [("", kind, SOUND, None, number, root, library) for number, kind in enumerate(KINDS) if kind != "input"]
    tasks += [(*planted, number, root, library) for number, planted in enumerate(MISTAKES, len(KINDS))]
    failed = False
    # A worker that inherits the SIGTERM handler can miss the signal that ends it and would be waited for forever.
    with multiprocessing.Pool(jobs, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
        for mistake, kind, why in pool.imap(found, tasks):
            if not mistake and why:
                print(f"the checker finds a fault in a correct program, {kind}: {why}", flush=True)
                failed = True
            elif mistake and why:
                print(f"planted {mistake}: found by {kind}: {why[:120]}", flush=True)
            elif mistake:
                print(f"planted {mistake}: NOT found by {kind}", flush=True)
                failed = True
        pool.close()
        pool.join()
    return failed
