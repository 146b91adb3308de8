"""The kinds of trials: each injects faults into a job, determined by its seed, and judges the result."""

import errno
import os
import re
import signal
import subprocess

import trees
from engine import Ended, Fault
from jobs import Job
from judging import Judge
from sandbox import Faulty

KINDS = ("kill", "twice", "error", "full", "signal", "flip", "pair", "input", "foreign")
# Percent of the trials.
SHARES = {"kill": 24, "twice": 10, "error": 24, "full": 12, "signal": 6, "flip": 8, "pair": 4, "input": 4, "foreign": 8}
WITHOUT_OUTPUT = ("kill", "error", "full", "signal")

ERRORS = {
    "open": ("EIO", "EACCES", "EMFILE", "EINTR"),
    "create": ("EIO", "EACCES", "EMFILE", "ENOSPC", "EROFS", "EINTR"),
    "write": ("EIO", "ENOSPC", "EDQUOT", "EINTR", "short"),
    "read_bytes": ("EIO", "EINTR", "short"),
    "sync": ("EIO", "ENOSPC", "EINTR"),
    "close": ("EIO", "EINTR"),
    "rename": ("EIO", "EACCES", "ENOSPC"),
    "remove": ("EIO", "EACCES", "EBUSY"),
    "mkdir": ("EIO", "EACCES", "ENOSPC"),
    "link": ("EIO", "EACCES", "ENOSPC", "EPERM"),
    "stat": ("EIO", "EACCES"),
    "list": ("EIO",),
    "lock": ("EIO", "ENOLCK"),
    "map": ("ENOMEM", "EACCES"),
    "attribute": ("EIO", "EPERM"),
}

# Messages of the loser of two concurrent jobs.
TAKEN = r"another|already|exists|is there|in use|\block|\bheld\b|\bcontains\b|not empty|\bprocess\b|\bpid\b"


def kinds_of(job: Job) -> tuple:
    if not job.out:
        return WITHOUT_OUTPUT
    return tuple(kind for kind in KINDS if kind != "input" or job.images)


class Trial(Judge):
    """One trial with a kind and a seed."""

    def judge(self) -> str | None:
        """The failure, or None."""
        self.log.clear()
        try:
            getattr(self, f"{self.kind}_")()
        except Faulty as fault:
            return str(fault)
        finally:
            self.sandbox.end()
        return self.remark

    def stop(self, scale: float = 1.0) -> Fault:
        """A kill at a random point."""
        counters, dice = self.reference.counters, self.random.random()
        # Replacing takes more calls than creating.
        more = 1.4 if self.old else 1.0
        if dice < 0.65 and counters.change:
            at = self.random.randint(1, max(1, int(counters.change * scale * more)))
            return Fault(f"signal:change:{at}:9:{self.random.randrange(2)}")
        if dice < 0.8 and counters.read:
            return Fault(f"signal:read:{self.random.randint(1, max(1, int(counters.read * scale * more)))}:9:0")
        return Fault(signals=((self.random.uniform(0, 1.1 * scale * self.reference.seconds), signal.SIGKILL),))

    def kill_(self):
        self.begin()
        self.after(self.run(self.stop()), deaths=(9,))

    def twice_(self):
        self.begin()
        for _ in range(2):
            ended = self.run(self.stop(0.8))
            self.check(ended, deaths=(9,))
            tree = self.sandbox.tree()
            if ended.code == 0:
                self.done(ended, tree)
                return
            if ended.code == 1:
                break
            self.stopped(tree)
        self.finish()

    def error_(self):
        # In some trials the output exists and must not be replaced.
        refuse = self.job.overwrites and self.other and self.random.random() < 0.15
        if refuse:
            self.old = self.other
            self.sandbox.begin(old=self.other.tree)
            self.log.append("an older output exists, which must not be replaced")
        else:
            self.begin()
        fault, name = self.error()
        ended = self.run(fault)
        if ended.counters.injected:
            self.hit = name, os.path.relpath(ended.counters.path or "/", self.sandbox.folder)
        self.check(ended)
        tree = self.sandbox.tree()
        if refuse:
            if ended.code == 0 and tree != self.old.tree:
                raise Faulty("replaced an output without --overwrite")
            difference = trees.difference(tree, self.old.tree, self.old.timed)
            if ended.code == 1 and difference and not self.excused(ended, tree, difference, ""):
                raise Faulty(f"damaged an output that it refused to replace: {difference}")
            return
        if ended.code == 0:
            self.done(ended, tree)
            return
        self.stopped(tree)
        self.finish()

    def error(self) -> tuple:
        """A random error at one of the program's calls."""
        groups = [name for name in ERRORS if self.reference.counters.of_class(name)]
        if not groups:
            return Fault("error:open:1:5:0"), "open"
        name = self.random.choice(groups)
        what = self.random.choice(ERRORS[name])
        # A call that always fails with EINTR is retried forever.
        persistent = what != "EINTR" and self.random.random() < 0.25
        if self.forced:
            name, what, persistent = self.forced
        at = self.random.randint(1, self.reference.counters.of_class(name))
        if what == "short":
            return Fault(f"short:{name}:{at}"), name
        return Fault(f"error:{name}:{at}:{getattr(errno, what)}:{int(persistent)}"), name

    def full_(self):
        dice = self.random.random()
        written = max(1, self.reference.counters.written)
        if not self.job.out or dice < 0.1:
            self.begin()
            ended = self.run(Fault(stdout="/dev/full"))
            self.check(ended)
            if ended.code == 0 and not self.job.out and self.reference.out:
                raise Faulty("exit code 0, but stdout was full")
            if self.job.out:
                tree = self.sandbox.tree()
                self.stopped(tree)
                if ended.code == 0:
                    self.done(ended, tree)
                else:
                    self.finish()
            return
        if dice < 0.4 and self.sandbox.mounts:
            self.begin(size=4096 * self.random.randint(0, written // 4096 + 2))
            ended = self.run()
            self.check(ended)
            tree = self.sandbox.tree()
            self.sandbox.resize(1 << 28)
            if ended.code == 0:
                self.done(ended, tree)
            else:
                self.stopped(tree)
                self.finish()
            return
        self.begin()
        if dice < 0.6:
            largest = max((len(entry[1]) for entry in self.reference.tree.values() if entry[0] == "file"), default=1)
            self.after(self.run(Fault(file_size=self.random.randint(0, largest))))
        else:
            self.after(self.run(Fault(f"budget:{self.random.randint(0, written)}")))

    def signal_(self):
        self.begin()
        first, second = (self.random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) for _ in range(2))
        signals, plan = [], "count"
        if self.random.random() < 0.5 and self.reference.counters.change:
            plan = f"signal:change:{self.random.randint(1, self.reference.counters.change)}:{int(first)}:0"
        else:
            signals.append((self.random.uniform(0, self.reference.seconds), first))
        if self.random.random() < 0.3:
            signals.append((self.random.uniform(0, 0.5 * self.reference.seconds), second))
        ended = self.run(Fault(plan, tuple(signals)))
        self.after(ended, deaths=(first, second), interrupted=len(signals) + (plan != "count"))

    def flip_(self):
        changed = None
        for _ in range(4):
            self.sandbox.begin()
            ended = self.run(self.stop())
            self.check(ended, deaths=(9,))
            tree = self.sandbox.tree()
            files = [path for path in sorted(tree) if tree[path][0] == "file" and not trees.matches(path, trees.VOLATILE)]
            if files:
                changed = self.random.choice(files)
                break
        if changed is None:
            self.finish()
            return
        complete = self.complete(tree, self.reference)
        self.damage(changed, tree[changed][1])
        ended = self.run()
        self.check(ended)
        after = self.sandbox.tree()
        if ended.code == 1:
            self.named(ended, changed)
            if not self.job.overwrites:
                return
            # The changed file is no longer the program's own; the job may refuse it again by name.
            self.overwrite = True
            ended = self.run()
            self.check(ended)
            after = self.sandbox.tree()
            if ended.code == 1:
                self.named(ended, changed)
                return
        difference = trees.difference(after, self.reference.tree, self.reference.timed)
        if difference and not self.unread(changed, tree, difference):
            when = "after it had ended, " if complete else ""
            raise Faulty(f"{when}{changed} was damaged, and given again: exit code 0, but {difference}")

    def unread(self, changed: str, tree: dict, difference: str) -> bool:
        """Whether the damaged file is an older checkpoint, kept but never read because of a newer one."""
        found = re.match(r"(.*/checkpoints/)(step-\d+)/", changed)
        if not found or not difference.startswith(f"{changed} "):
            return False
        return any(path.startswith(found[1]) and path[len(found[1]):].split("/")[0] > found[2] for path in tree)

    def named(self, ended: Ended, path: str):
        """Checks that a refusal names the file."""
        said = ended.summary()
        names = [part for part in path.split("/")] + [self.job.out]
        if not any(name in said for name in names):
            raise Faulty(f"{path} was damaged, and the refusal does not name it: {said}")

    def damage(self, path: str, data: bytes):
        target = self.sandbox.output / path
        how = self.random.choice(("bit", "bit", "bit", "cut", "empty", "gone"))
        if how == "gone":
            target.unlink()
        elif how == "empty" or not data:
            target.write_bytes(b"")
        elif how == "cut":
            target.write_bytes(data[:self.random.randrange(len(data))])
        else:
            at, bit = self.random.randrange(len(data)), self.random.randrange(8)
            target.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:])
            how = f"bit {bit} of byte {at} flipped"
        self.log.append(f"{path}: {how}")

    def input_(self):
        """An image is replaced or removed before the command is repeated: the job must refuse, or give the result
        of a run with that image from the start."""
        sandbox, job = self.sandbox, self.job
        sandbox.begin()
        ended = self.run(self.stop())
        self.check(ended, deaths=(9,))
        self.stopped(sandbox.tree())
        if ended.code == 0:
            return
        path, other = self.random.sample([sandbox.folder / "data/images" / f"{number:03}.png" for number in job.images], 2)
        try:
            if self.random.random() < 0.3:
                path.unlink()
                self.log.append(f"{path.name} is removed")
            else:
                path.write_bytes(other.read_bytes())
                self.log.append(f"{path.name} is now {other.name}")
            ended = self.run()
            self.check(ended)
            if ended.code == 1:
                return
            found = trees.read(sandbox.output)
            sandbox.begin()
            self.check(self.run())
            difference = trees.difference(found, trees.read(sandbox.output), self.reference.timed)
            if difference:
                raise Faulty(f"{path.name} was replaced or removed, and given again: exit code 0, but {difference}")
        finally:
            sandbox.restore()

    def pair_(self):
        self.sandbox.begin()
        job, folder = self.job, self.sandbox.folder.parent
        overwrite = self.random.random() < 0.6
        rivals = self.sandbox.rivals(job)
        if rivals and self.random.random() < 0.35:
            # Another command with the same output.
            rival = self.random.choice(rivals)
            rival_reference = self.sandbox.rival_reference(rival, job.out)
            lines = [job.line(), rival.line(out=f"t/{job.out}", overwrite=rival.overwrites and overwrite)]
            references = [self.reference, rival_reference]
            self.sandbox.begin()
        else:
            another = bool(job.other) and self.random.random() < 0.6
            lines = [job.line(), job.line(other=another, overwrite=job.overwrites and overwrite)]
            references = [self.reference, self.other if another else self.reference]
        engine, none = self.sandbox.engine, Fault()
        first = engine.start(lines[0], none, folder / "counters")
        try:
            first[0].wait(timeout=self.random.uniform(0, 0.8 * self.reference.seconds))
        except subprocess.TimeoutExpired:
            pass
        second = engine.start(lines[1], none, folder / "counters.second")
        both = [
            engine.finish(first, lines[0], none, folder / "counters"),
            engine.finish(second, lines[1], none, folder / "counters.second"),
        ]
        for ended in both:
            self.tell(ended, none)
        for ended in both:
            self.check(ended)
            if ended.code == 1 and not re.search(TAKEN, ended.summary()):
                raise Faulty(f"two jobs at once, and the loser does not say so: {ended.summary()}")
        tree = self.sandbox.tree()
        ended_well = [reference for ended, reference in zip(both, references) if ended.code == 0]
        if not ended_well:
            raise Faulty(f"two jobs, and neither ended well: {both[0].summary()} | {both[1].summary()}")
        differences = [trees.difference(tree, reference.tree, reference.timed) for reference in ended_well]
        if all(differences):
            raise Faulty(f"two jobs at once, {len(ended_well)} with exit code 0, but {differences[-1]}")

    def foreign_(self):
        """The output belongs to the user."""
        job, sandbox = self.job, self.sandbox
        sandbox.begin()
        choices = ["file", "folder", "link to a file", "link to a folder"]
        choices += ["input"] * 2 if job.inputs else []
        choices += ["link to an input"] if job.inputs else []
        companions = sorted({path.split("/")[0] for path in self.reference.tree if not trees.hidden(path)} - {job.out})
        companions += job.transient
        choices += ["companion"] * 2 if companions else []
        scenario = self.random.choice(choices)
        overwrite = job.overwrites and self.random.random() < 0.6
        ending = os.path.splitext(job.out)[1]
        out, theirs = f"t/{job.out}", sandbox.output / job.out
        mine = ("file", b"the user's own\n")
        if scenario == "companion":
            theirs = sandbox.output / self.random.choice(companions)
        if scenario == "file" or scenario == "companion" and "." in theirs.name and theirs.name not in job.transient:
            theirs.write_bytes(mine[1])
        elif scenario in ("folder", "companion"):
            self.user_folder(theirs)
        elif scenario == "link to a file":
            (sandbox.output / f"elsewhere{ending}").write_bytes(mine[1])
            theirs.symlink_to(f"elsewhere{ending}")
        elif scenario == "link to a folder":
            self.user_folder(sandbox.output / "elsewhere")
            theirs.symlink_to("elsewhere")
        else:
            target = self.random.choice(job.inputs)
            if scenario == "input":
                out = target
            else:
                theirs.symlink_to(sandbox.folder / target)
        self.log.append(f"{scenario}: {out}")
        # A refusal may name the target of a link.
        named = {theirs.name, *(os.path.basename(path) for path in (out, os.path.realpath(sandbox.folder / out)))}
        before = trees.read(sandbox.output)
        ended = self.launched(job.line(out=out, overwrite=overwrite))
        self.check(ended)
        after, stamps = trees.read(sandbox.output), trees.stamps(sandbox.folder, "t")
        with_ = " with --overwrite" if overwrite else ""
        lost = [path for path, entry in before.items() if after.get(path) != entry]
        # Another file with the same bytes counts as replaced.
        lost_inputs = sorted(path for path, stamp in sandbox.stamps.items() if stamps.get(path) != stamp)
        new = sorted(stamps.keys() - sandbox.stamps.keys())
        if lost_inputs or new:
            sandbox.restore()
        if lost:
            raise Faulty(f"{scenario} as the output{with_}: the user's {lost[0]} was changed or removed")
        if lost_inputs:
            raise Faulty(f"{scenario} as the output{with_}: the input {lost_inputs[0]} was changed or removed")
        if ended.code == 1 and new:
            raise Faulty(f"{scenario} as the output{with_}: refused, but {new[0]} was left")
        if ended.code == 1 and not any(name in ended.summary() for name in named):
            raise Faulty(f"{scenario} as the output{with_}: the refusal does not name it: {ended.summary()}")

    def user_folder(self, folder):
        """A folder of the user's with file names that this program might use."""
        folder.mkdir()
        names = ["notes.txt", "mine.tar", "corpus.csv", "metadata.jsonl", "images/0000000.png", "config.json"]
        for name in self.random.sample(names, 3):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"the user's own\n")
