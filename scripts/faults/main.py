"""Injects faults into every command and prints a table of tried / clean. See scripts/faults.sh."""

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
from sandbox import TIMEOUT, Faulty, Sandbox, can_mount, die_with_parent
from trials import KINDS, SHARES, Trial, kinds_of

# Trials per command in the short form; slow commands run one of each kind.
SHORT = {"kill": 2, "twice": 1, "error": 2, "full": 1, "signal": 1, "flip": 1, "pair": 1, "input": 1, "foreign": 1}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/faults.sh", description=__doc__)
    parser.add_argument("--trials", type=int, default=100, metavar="N", help="trials of each command (100)")
    parser.add_argument("--short", action="store_true", help="a few trials of each kind, without slow commands: for .ci/run")
    parser.add_argument("--command", action="append", metavar="NAME", help="only this command, or this line of the table")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind")
    parser.add_argument("--seed", type=int, metavar="N", help="only the trial of this seed; prints its log")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="first seed of each kind (0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="parallel trials (2)")
    parser.add_argument("--no-check", action="store_true", help="skip the test of the checker on planted defects")
    parser.add_argument("--keep", action="store_true", help="keep the folder that trials ran in")
    parser.add_argument("--engine", required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def counts(options, job) -> dict:
    """The number of trials of each kind for a job."""
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
    sandbox = None
    try:
        for name in iter(tasks.get, None):
            if sandbox is None:
                sandbox = Sandbox([options.engine], root / f"worker{number}", library, mounts, jobs.JOBS)
                sandbox.prepare()
            job = next(job for job in jobs.JOBS if job.name == name)
            one_job(sandbox, job, options, results)
    except (Exception, KeyboardInterrupt):
        results.put(("broken", number, traceback.format_exc()))
    finally:
        if sandbox:
            sandbox.end()
        results.put(("end", number, None))


def one_job(sandbox, job, options, results):
    begun = time.monotonic()
    sandbox.engine.timeout = TIMEOUT
    try:
        reference, _ = sandbox.reference(job)
    except (Faulty, RuntimeError) as fault:
        # The other jobs continue.
        results.put(("trial", (job.name, "kill", -1), str(fault)))
        return
    sandbox.engine.timeout = max(TIMEOUT, 20 * reference.seconds)
    for kind, count in counts(options, job).items():
        first = options.first_seed if options.seed is None else options.seed
        for seed in range(first, first + count):
            trial = Trial(sandbox, job, kind, seed)
            why = trial.judge()
            results.put(("trial", (job.name, kind, seed), why))
            if options.seed is not None:
                results.put(("log", None, "\n".join([f"{job.name}, {kind}, seed {seed}:", *trial.log, why or "clean"])))
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
        sys.exit(f"no command {' or '.join(options.command)}; the commands are {names}")
    if options.short and not options.command:
        wanted = [job for job in wanted if not job.slow]
    return wanted


def sweep(options, root: Path, library: Path) -> list:
    """Runs all trials; returns the failures and prints the table."""
    mounts = can_mount(root)
    if not mounts:
        print("cannot mount a file system; injecting full disks instead", flush=True)
    wanted = chosen(options)
    workers = max(1, min(options.jobs, len(wanted)))
    # SimpleQueue has no threads, which would not survive the workers' fork.
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
                sys.exit("a worker was killed")
            time.sleep(0.02)
        what, about, result = results.get()
        if what == "trial":
            name, kind, seed = about
            both = tried.setdefault((name, kind), [0, 0])
            both[0] += 1
            both[1] += result is None
            if result is not None:
                faulty.append((name, kind, seed, result))
                print(f"FAULT {name}, {kind}, seed {seed}: {result}", flush=True)
        elif what == "job":
            print(f"{about}: {result:.1f} s", flush=True)
        elif what == "log":
            print(result, flush=True)
        elif what == "broken":
            print(result, file=sys.stderr, flush=True)
            broken = True
        else:
            running -= 1
    for process in processes:
        process.join()
    order = {job.name: at for at, job in enumerate(jobs.JOBS)}
    tried = dict(sorted(tried.items(), key=lambda item: order[item[0][0]]))
    print("\ntried / clean\n" + table(tried, [kind for kind in KINDS if any(of == kind for _, of in tried)]))
    if broken:
        sys.exit("the trials did not run; see above")
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
            print(f"folder of the trials: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
