"""The folder of one worker: the workspace, the undisturbed outputs, and files that must never be touched."""

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import trees
import workspace
from engine import Counters, Engine, Fault
from jobs import Job

# The user's files next to every output.
SENTINELS = {
    "keep.txt": ("file", b"the user's own\n"),
    ".keep": ("file", b"hidden, and the user's own\n"),
    "keep": ("folder",),
    "keep/numbers.csv": ("file", b"id,number\na,1\n"),
}
TIMEOUT = 60.0


class Faulty(Exception):
    """A failure of the program, described."""


@dataclass
class Reference:
    """The results of an undisturbed run."""

    tree: dict
    out: bytes
    seconds: float
    counters: Counters
    # Files with timings, which differ between undisturbed runs.
    timed: tuple = ()


class Sandbox:
    """`ROOT/w` is the workspace and the current folder of every run; `ROOT/w/t` holds outputs, emptied for each trial."""

    def __init__(self, command: list, root: Path, library: Path, mounts: bool, jobs=()):
        self.jobs = jobs
        self.folder = root / "w"
        self.output = self.folder / "t"
        self.pristine = root / "pristine"
        self.mounts = mounts
        self.mounted = False
        self.engine = Engine(command, self.folder, library, TIMEOUT)
        self.references = {}
        # References from before an input was restored, whose times some outputs contain.
        self.stale = {}
        self.output.mkdir(parents=True)

    def prepare(self):
        """Creates the inputs of all jobs."""
        workspace.tables(self.folder)
        for step in workspace.STEPS:
            ended = self.engine.run(list(step))
            if ended.code != 0:
                raise RuntimeError(f"{' '.join(step)} ended with {ended.code}: {ended.summary()}")
        self.seal()

    def seal(self):
        """Records the inputs; from here on none may change."""
        shutil.copytree(self.folder, self.pristine, symlinks=True, ignore=lambda folder, _: ["t"] if folder == str(self.folder) else [])
        self.stamps = trees.stamps(self.folder, "t")

    def restore(self):
        """Restores the inputs."""
        for entry in os.scandir(self.folder):
            if entry.name == "t":
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        shutil.copytree(self.pristine, self.folder, symlinks=True, dirs_exist_ok=True)
        self.stale |= self.references
        self.references.clear()
        self.stamps = trees.stamps(self.folder, "t")

    def begin(self, size: int | None = None, old: dict | None = None):
        """Creates an empty folder of outputs with the user's own files, and optionally an older output. With a size it is
        a file system with that many bytes free."""
        self.end()
        trees.empty(self.output)
        if size is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", self.output], check=True)
            self.mounted = True
        trees.write(SENTINELS, self.output)
        if old is not None:
            trees.write(old, self.output)
        if size is not None:
            about = os.statvfs(self.output)
            used = (about.f_blocks - about.f_bfree) * about.f_frsize
            self.resize(used + size)

    def resize(self, size: int):
        subprocess.run(["mount", "-o", f"remount,size={size}", self.output], check=True)

    def end(self):
        if self.mounted:
            subprocess.run(["umount", "-l", self.output], check=True)
            self.mounted = False

    def tree(self) -> dict:
        """The outputs, after checking that nothing else was touched."""
        tree = trees.read(self.output)
        for path, entry in SENTINELS.items():
            if tree.pop(path, None) != entry:
                raise Faulty(f"the user's {path} next to the output was changed or removed")
        self.untouched()
        return tree

    def untouched(self):
        """Checks that no input has changed."""
        now = trees.stamps(self.folder, "t")
        if now == self.stamps:
            return
        gone = sorted(self.stamps.keys() - now.keys())
        new = sorted(now.keys() - self.stamps.keys())
        other = sorted(path for path in now.keys() & self.stamps.keys() if now[path] != self.stamps[path])
        self.restore()
        if gone:
            raise Faulty(f"the input {gone[0]} was removed")
        if other:
            raise Faulty(f"the input {other[0]} was written to")
        raise Faulty(f"{new[0]} was left among the inputs")

    def reference(self, job: Job, stale: bool = False) -> tuple:
        """The undisturbed outputs of a job and of the other job with the same output; with `stale`, those from before
        inputs were restored."""
        if stale and job.name in self.stale:
            return self.stale[job.name]
        if job.name not in self.references:
            self.begin()
            help_ = self.engine.run([job.command, "--help"])
            job.overwrites = bool(job.out) and "--overwrite" in help_.out.decode()
            first = self.undisturbed(job, job.line())
            if not job.atomic:
                self.begin()
                second = self.undisturbed(job, job.line())
                # Only files with timings may differ.
                changed = trees.differing(first.tree, second.tree, job.timed)
                if changed:
                    raise Faulty(f"two undisturbed runs differ in {sorted(changed)[0]}")
            other = None
            if job.other:
                self.begin()
                other = self.undisturbed(job, job.line(other=True))
            self.references[job.name] = (first, other)
            self.begin()
        return self.references[job.name]

    def rivals(self, job: Job) -> list:
        """Other commands that can write the same output."""
        ending = Path(job.out).suffix
        return [
            other for other in self.jobs
            if other.command != job.command and other.out and other.folder == job.folder and Path(other.out).suffix == ending
            and not other.slow and other.name != "compare"
        ]

    def rival_reference(self, job: Job, out: str) -> Reference:
        """The undisturbed output of a job under another name."""
        if (job.name, out) not in self.references:
            self.reference(job)
            self.begin()
            self.references[job.name, out] = self.undisturbed(job, job.line(out=f"t/{out}"))
        return self.references[job.name, out]

    def undisturbed(self, job: Job, line: list) -> Reference:
        ended = self.engine.run(line, Fault())
        if ended.code != 0:
            raise RuntimeError(f"{' '.join(line)} ended with {ended.code} undisturbed: {ended.summary()}")
        tree = self.tree()
        if job.out and not tree:
            raise RuntimeError(f"{' '.join(line)} wrote nothing")
        return Reference(tree, ended.out, ended.seconds, ended.counters, job.timed)


def can_mount(folder: Path) -> bool:
    """Whether a file system can be mounted here."""
    probe = folder / "mount"
    probe.mkdir()
    mounted = shutil.which("mount") is not None and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", probe], capture_output=True
    ).returncode == 0
    if mounted:
        subprocess.run(["umount", probe], check=True)
    probe.rmdir()
    return mounted


def die_with_parent():
    """Ends a worker when the script is killed."""
    try:
        ctypes.CDLL(None).prctl(1, 15)
    except (OSError, AttributeError):
        pass
