"""Runs a job and judges how it ended and what it left; shared by all kinds of trials."""

import os
import random
import re
import signal

import trees
from engine import READING, Ended, Fault, signal_name
from jobs import Job
from sandbox import Faulty, Sandbox, Reference


class Judge:
    """Judges one trial; `log` records its steps, for reproducing it."""

    def __init__(self, sandbox: Sandbox, job: Job, kind: str, seed: int):
        self.sandbox, self.job, self.kind, self.seed = sandbox, job, kind, seed
        self.random = random.Random(f"{job.name} {kind} {seed}")
        self.log = []
        # A flaw of a message only; reported if nothing else is wrong.
        self.remark = None
        # Forces this group of calls, error and persistence.
        self.forced = None
        # Group and path of the call that an error was injected into.
        self.hit = None
        self.reference, self.other = sandbox.reference(job, stale=kind in ("input", "foreign"))
        self.old: Reference | None = None
        self.overwrite = False

    def begin(self, size: int | None = None, overwrite: float = 0.35):
        """Creates the folder of outputs, in some trials with an older output to replace."""
        if self.job.overwrites and self.other and self.random.random() < overwrite:
            self.old, self.overwrite = self.other, True
        self.sandbox.begin(size, self.old.tree if self.old else None)
        if self.old:
            self.log.append("an older output exists")

    def run(self, fault: Fault = Fault()) -> Ended:
        line = self.job.line(overwrite=self.overwrite)
        return self.launched(line, fault)

    def launched(self, line: list, fault: Fault = Fault()) -> Ended:
        ended = self.sandbox.engine.run(line, fault)
        self.tell(ended, fault)
        return ended

    def tell(self, ended: Ended, fault: Fault):
        what = fault.plan
        if fault.signals:
            what += " " + ", ".join(f"{signal.Signals(number).name} after {pause:.3f} s" for pause, number in fault.signals)
        if fault.file_size is not None:
            what += f" files of at most {fault.file_size} bytes"
        if fault.stdout:
            what += f" stdout is {fault.stdout}"
        meddled = f"; {ended.counters.injected_group} {ended.counters.path}" if ended.counters.injected else ""
        end = signal_name(ended.code) if ended.code < 0 else ended.code
        self.log.append(f"{' '.join(ended.arguments)}\n    [{what}{meddled}] ended with {end} after {ended.seconds:.2f} s: {ended.summary()}")

    def check(self, ended: Ended, deaths=(), interrupted: int = 0):
        """Checks how it ended. `interrupted` is the number of stop signals sent."""
        if ended.hung:
            raise Faulty(f"did not end within {self.sandbox.engine.timeout:.0f} s")
        if "panicked at" in ended.err or ended.code == 101:
            panic = next((line for line in ended.err.splitlines() if "panicked at" in line), "exit code 101")
            raise Faulty(f"panicked: {panic}")
        if ended.code < 0:
            if -ended.code not in deaths:
                raise Faulty(f"died of {signal_name(ended.code)}: {ended.summary()}")
        elif ended.code == 1:
            lines = ended.error_lines()
            if len(lines) != 1:
                raise Faulty(f"ended with 1 and {len(lines)} lines `error: …`: {ended.summary()}")
            if re.search(r"(\(os error \d+\)).*\1", lines[0]):
                self.remark = f"says its error twice: {lines[0][:200]}"
        elif ended.code == 130 and interrupted:
            # A second signal ends it at once.
            if not ended.err.strip() and interrupted == 1:
                raise Faulty("was interrupted and says nothing")
        elif ended.code != 0:
            raise Faulty(f"ended with {ended.code}: {ended.summary()}")

    def done(self, ended: Ended, tree: dict | None = None, before: str = ""):
        """After exit code 0: the output equals the undisturbed one, except for excused differences."""
        if not self.job.out:
            if ended.out != self.reference.out:
                raise Faulty(f"{before}exit code 0, and another output on stdout")
            return
        tree = self.sandbox.tree() if tree is None else tree
        difference = trees.difference(tree, self.reference.tree, self.reference.timed)
        if difference and not self.excused(ended, tree, difference, before):
            raise Faulty(f"{before}exit code 0, but {difference}")

    def excused(self, ended: Ended, tree: dict, difference: str, before: str) -> bool:
        """Exit code 0 with another output is accepted if an image could not be read and is reported as skipped, also when
        the command is repeated and resumes; after an error a file that could not be removed may stay if reported or hidden."""
        if not self.hit:
            return False
        name, path = self.hit
        if name in READING and path.endswith(".png"):
            said = ended.err + ended.out.decode(errors="replace")
            tables = b"".join(entry[1] for at, entry in tree.items() if entry[0] == "file" and at.endswith((".csv", ".json")))
            if "skipped" in said or any(one in said or one.encode() in tables for one in self.names_of(path)):
                return True
            raise Faulty(f"{before}{path} could not be read ({difference}), and nothing says so: exit code 0")
        if before or not difference.endswith(" was left"):
            return False
        left = difference.removesuffix(" was left")
        return trees.matches(left, (".*.lock",)) or name == "remove" and bool(trees.hidden(left) or ended.err.strip())

    def complete(self, tree: dict, reference: Reference) -> bool:
        return trees.difference(tree, reference.tree, reference.timed) is None

    def stopped(self, tree: dict):
        """After any stop: complete files under final names, and either the old output or the new one."""
        if not self.job.atomic:
            for path, entry in tree.items():
                skipped = trees.hidden(path) or trees.matches(path, (*trees.VOLATILE, "metrics.jsonl"))
                if entry[0] == "file" and not skipped and (why := trees.broken(path, entry[1])):
                    raise Faulty(f"{path} {why} after the stop")
            return
        new, old = self.reference.tree, self.old.tree if self.old else {}
        for path, entry in tree.items():
            if trees.hidden(path) or entry[0] == "folder" or trees.matches(path, (*trees.OPTIONAL, *self.job.transient)):
                continue
            if path not in new and path not in old:
                raise Faulty(f"{path}, which is no name of the output, was left by the stop")
            if entry not in (new.get(path), old.get(path)):
                raise Faulty(f"{path} is neither the old nor the new one after the stop")
        if not self.old:
            return

        def whole(wanted: dict) -> bool:
            return all(trees.hidden(path) or tree.get(path) == entry for path, entry in wanted.items())

        # An unfinished state is accepted if a hidden file next to it marks it.
        unfinished = any(trees.hidden(path) and entry not in (new.get(path), old.get(path)) for path, entry in tree.items())
        if not whole(new) and not whole(old) and not unfinished:
            some_new = any(tree.get(path) == entry != old.get(path) and entry[0] == "file" for path, entry in new.items())
            raise Faulty(
                "old and new files are mixed after the stop, and nothing says so" if some_new
                else "the old output is gone after the stop, and there is no new one"
            )

    def finish(self):
        """Repeats the command, undisturbed: it ends with the undisturbed output and leaves nothing else."""
        ended = self.run()
        self.check(ended)
        tree = self.sandbox.tree()
        if ended.code == 1:
            # A job that had finished before it was stopped may report that its output exists.
            difference = trees.difference(tree, self.reference.tree, self.reference.timed)
            if not self.job.out or difference or not refuses_existing(ended):
                raise Faulty(f"cannot be given again ({difference}): {ended.summary()}")
            if self.job.overwrites:
                self.overwrite = True
                ended = self.run()
                self.check(ended)
                if ended.code == 1:
                    raise Faulty(f"cannot be given again with --overwrite: {ended.summary()}")
                tree = self.sandbox.tree()
            else:
                return
        self.done(ended, tree, "given again: ")

    def after(self, ended: Ended, deaths=(), interrupted: int = 0):
        """Judges a disturbed run, and its repetition."""
        self.check(ended, deaths, interrupted)
        tree = self.sandbox.tree()
        if ended.code == 0:
            self.done(ended, tree)
            return
        self.stopped(tree)
        self.finish()

    def names_of(self, image: str) -> list:
        """The names of an image in messages: its file name, and the ids of its records."""
        name = os.path.basename(image)
        ids = []
        for table in ("many.csv", "train.csv", "validation.csv"):
            for line in (self.sandbox.folder / "data" / table).read_text().splitlines():
                if f"/{name}," in line:
                    ids.append(line.split(",")[0])
        return [name, *ids]


def refuses_existing(ended: Ended) -> bool:
    return re.search(r"already|exists|is there|not empty|--overwrite", ended.summary()) is not None
