"""Disturbs every command in every way and prints a table of tried / clean. See scripts/faults.sh."""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import engine
import jobs
import planted_trials
from place import TIMEOUT, Faulty, Place, can_mount, die_with_parent
from trials import KINDS, SHARES, Trial, kinds_of

# Of the short form, for each command; the slowest ones have one of each.
SHORT = {"kill": 2, "twice": 1, "error": 2, "full": 1, "signal": 1, "flip": 1, "pair": 1, "input": 1, "foreign": 1}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/faults.sh", description=__doc__)
    parser.add_argument("--trials", type=int, default=100, metavar="N", help="trials of each command (100)")
    parser.add_argument("--short", action="store_true", help="every kind a few times, without what is slow: for .ci/run")
    parser.add_argument("--command", action="append", metavar="NAME", help="only this command, or this line of the table")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind")
    parser.add_argument("--seed", type=int, metavar="N", help="only the trial of this seed; what was run and said is printed")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="where the seeds of each kind begin (0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trials at once (2)")
    parser.add_argument("--no-check", action="store_true", help="leave out the check of the checker on planted mistakes")
    parser.add_argument("--keep", action="store_true", help="keep the folder that trials ran in")
    parser.add_argument("--engine", required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def counts(options, job) -> dict:
    """How many trials of each kind a job has."""
    kinds = [kind for kind in kinds_of(job) if not options.kind or kind in options.kind]
    if options.seed is not None:
        return dict.fromkeys(kinds, 1)
    if options.short:
        return {kind: 1 if job.name == "compare" else SHORT[kind] for kind in kinds}
    every = sum(SHARES[kind] for kind in kinds_of(job))
    return {kind: max(1, -(-options.trials * SHARES[kind] // every)) for kind in kinds}


def worker(number, options, root, library, mounts, tasks, results):
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = None
    try:
        for name in iter(tasks.get, None):
            if place is None:
                place = Place([options.engine], root / f"worker{number}", library, mounts, jobs.JOBS)
                place.prepare()
            job = next(job for job in jobs.JOBS if job.name == name)
            one_job(place, job, options, results)
    except (Exception, KeyboardInterrupt):
        results.put(("broken", number, traceback.format_exc()))
    finally:
        if place:
            place.end()
        results.put(("end", number, None))


def one_job(place, job, options, results):
    begun = time.monotonic()
    place.engine.timeout = TIMEOUT
    try:
        reference, _ = place.reference(job)
    except (Faulty, RuntimeError) as fault:
        # The others go on.
        results.put(("trial", (job.name, "kill", -1), str(fault)))
        return
    place.engine.timeout = max(TIMEOUT, 20 * reference.seconds)
    for kind, count in counts(options, job).items():
        first = options.first_seed if options.seed is None else options.seed
        for seed in range(first, first + count):
            trial = Trial(place, job, kind, seed)
            why = trial.judge()
            results.put(("trial", (job.name, kind, seed), why))
            if options.seed is not None:
                results.put(("told", None, "\n".join([f"{job.name}, {kind}, seed {seed}:", *trial.told, why or "clean"])))
    results.put(("job", job.name, time.monotonic() - begun))


def table(tried: dict, kinds) -> str:
    names = list(dict.fromkeys(name for name, _ in tried))
    lines = [["command", *kinds, "all"]]
    for name in [*names, "all"]:
        cells, every = [], [0, 0]
        for kind in kinds:
            pairs = [both for (job, of), both in tried.items() if of == kind and name in (job, "all")]
            total = [sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)]
            every = [every[0] + total[0], every[1] + total[1]]
            cells.append(f"{total[0]} / {total[1]}" if total[0] else "–")
        lines.append([name, *cells, f"{every[0]} / {every[1]}"])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths)))
        for line in lines
    )


def chosen(options) -> list:
    wanted = [
        job for job in jobs.JOBS
        if not options.command or job.name in options.command or job.command in options.command
    ]
    if not wanted:
        names = ", ".join(job.name for job in jobs.JOBS)
        sys.exit(f"there is no command {' or '.join(options.command)}; there are {names}")
    if options.short and not options.command:
        wanted = [job for job in wanted if not job.slow]
    return wanted


def sweep(options, root: Path, library: Path) -> list:
    """All trials; gives the faulty ones and prints the table."""
    mounts = can_mount(root)
    if not mounts:
        print("no file system can be mounted here: full disks are injected", flush=True)
    wanted = chosen(options)
    workers = max(1, min(options.jobs, len(wanted)))
    # Without threads of their own: a worker forks.
    tasks, results = multiprocessing.SimpleQueue(), multiprocessing.SimpleQueue()
    for job in wanted:
        tasks.put(job.name)
    processes = []
    for number in range(workers):
        tasks.put(None)
        (root / f"worker{number}").mkdir()
        process = multiprocessing.Process(target=worker, args=(number, options, root, library, mounts, tasks, results))
        process.start()
        processes.append(process)
    tried, faulty, broken, running = {}, [], False, workers
    while running:
        while results.empty():
            if not any(process.is_alive() for process in processes) and results.empty():
                sys.exit("a worker was ended from outside")
            time.sleep(0.02)
        what, about, told = results.get()
        if what == "trial":
            name, kind, seed = about
            both = tried.setdefault((name, kind), [0, 0])
            both[0] += 1
            both[1] += told is None
            if told is not None:
                faulty.append((name, kind, seed, told))
                print(f"FAULT {name}, {kind}, seed {seed}: {told}", flush=True)
        elif what == "job":
            print(f"{about}: {told:.1f} s", flush=True)
        elif what == "told":
            print(told, flush=True)
        elif what == "broken":
            print(told, file=sys.stderr, flush=True)
            broken = True
        else:
            running -= 1
    for process in processes:
        process.join()
    order = {job.name: at for at, job in enumerate(jobs.JOBS)}
    tried = dict(sorted(tried.items(), key=lambda item: order[item[0][0]]))
    print("\ntried / clean\n" + table(tried, [kind for kind in KINDS if any(of == kind for _, of in tried)]))
    if broken:
        sys.exit("the trials could not be made; see above")
    return faulty


def main():
    options = arguments()
    # So that the folder is removed and nothing stays mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.engine = os.path.realpath(options.engine)
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="faults-")))
    begun = time.monotonic()
    failed = False
    try:
        library = engine.build(root)
        if not options.no_check and options.seed is None and not options.command:
            failed |= planted_trials.check(root, library, options.jobs)
        faulty = sweep(options, root, library)
        failed |= bool(faulty)
        if faulty:
            print(f"\n{len(faulty)} faults:")
            for name, kind, seed, why in sorted(faulty):
                print(f"  {name}, {kind}, seed {seed}: {why}\n    scripts/faults.sh --command '{name}' --kind {kind} --seed {seed}")
        print(f"\n{len(faulty)} faults in {time.monotonic() - begun:.0f} s")
    finally:
        if options.keep:
            print(f"the folder of the trials: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
