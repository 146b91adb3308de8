"""Runs the program once, with or without an injected fault, and records how it ended."""

import fcntl
import os
import resource
import signal
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

# Must match preload.c.
GROUPS = (
    "open", "create", "write", "read_bytes", "sync", "close", "rename", "remove", "mkdir", "link", "stat", "list", "lock", "map",
    "attribute",
)
READING = ("open", "read_bytes", "stat", "list", "map")
COUNTERS = 4096


def build(folder: Path) -> Path:
    """Compiles the preload library."""
    library = folder / "preload.so"
    source = Path(__file__).with_name("preload.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-Wall", "-fPIC", "-shared", "-o", library, source], check=True)
    return library


@dataclass
class Counters:
    """What the preload library counted."""

    started: bool = False
    injected: int = 0
    injected_group: str = ""
    written: int = 0
    change: int = 0
    read: int = 0
    group: dict = field(default_factory=dict)
    path: str = ""

    @classmethod
    def of(cls, file: Path):
        data = file.read_bytes()
        numbers = struct.unpack_from(f"<{6 + len(GROUPS)}Q", data)
        started, injected, group, written, change, read = numbers[:6]
        path = data[8 * (6 + len(GROUPS)):].split(b"\0")[0].decode(errors="replace")
        by_group = dict(zip(GROUPS, numbers[6:]))
        return cls(bool(started), injected, GROUPS[group] if injected else "", written, change, read, by_group, path)

    def of_class(self, name: str) -> int:
        return {"change": self.change, "read": self.read}.get(name, self.group.get(name, 0))


@dataclass
class Ended:
    """How a run ended."""

    arguments: list
    code: int
    out: bytes
    err: str
    seconds: float
    hung: bool
    counters: Counters

    def error_lines(self) -> list:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def summary(self) -> str:
        """Its error or last line."""
        lines = self.error_lines() or self.err.strip().splitlines()[-1:] or ["nothing"]
        return lines[0][:220]


@dataclass
class Fault:
    """The fault of one run; at most one of the fields is set."""

    plan: str = "count"
    # Signals to send, each with the seconds to wait before it.
    signals: tuple = ()
    file_size: int | None = None
    stdout: str | None = None


class Said:
    """Captures an output: in a file, so that the run never blocks; or, if file sizes are limited, in a large pipe."""

    ROOM = 1 << 20

    def __init__(self, folder: Path, fault: Fault):
        self.file = self.reader = None
        if fault.file_size is None:
            self.file = tempfile.TemporaryFile(dir=folder)
        else:
            self.reader, writer = os.pipe()
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, self.ROOM)
            self.file = os.fdopen(writer, "wb")

    def fileno(self) -> int:
        return self.file.fileno()

    def all(self) -> bytes:
        if self.reader is None:
            self.file.seek(0)
            said = self.file.read()
            self.file.close()
            return said
        self.file.close()
        with os.fdopen(self.reader, "rb") as reader:
            return reader.read()

    def close(self):
        self.file.close()


class Engine:
    """The program, its working folder (outputs go into `t` below it), and the preload library."""

    def __init__(self, command: list, folder: Path, library: Path, timeout: float):
        self.command = command
        self.folder = folder
        self.output = folder / "t"
        self.preload = library
        self.timeout = timeout

    def start(self, arguments: list, fault: Fault, counters: Path):
        counters.write_bytes(bytes(COUNTERS))
        environment = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("ALCHEMIST_", "FAULTS_", "RUST_", "LD_"))
        }
        environment |= {
            "LD_PRELOAD": str(self.preload),
            "FAULTS_ROOT": str(self.folder),
            "FAULTS_OUTPUT": str(self.output),
            "FAULTS_COUNTERS": str(counters),
            "FAULTS_PLAN": fault.plan,
        }
        environment |= {name: value for name, value in os.environ.items() if name == "ALCHEMIST_PLANTED"}

        def limit():
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if fault.file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, fault.file_size))

        out = open(fault.stdout, "wb") if fault.stdout else Said(counters.parent, fault)
        err = Said(counters.parent, fault)
        process = subprocess.Popen(
            [*self.command, *arguments], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            preexec_fn=limit,
        )
        return process, out, err, time.monotonic()

    def finish(self, started, arguments: list, fault: Fault, counters: Path) -> Ended:
        process, out, err, begun = started
        hung = False
        for pause, number in fault.signals:
            try:
                process.wait(timeout=pause)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        try:
            process.wait(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            hung = True
            process.kill()
            process.wait()
        said = b"" if fault.stdout else out.all()
        errors = err.all().decode(errors="replace")
        out.close()
        ended = Ended(
            arguments, process.returncode, said, errors, time.monotonic() - begun, hung, Counters.of(counters),
        )
        if ended.code == 125 or not (ended.counters.started or fault.signals):
            raise RuntimeError(f"the preload library did not start: {errors.strip() or ended.code}")
        return ended

    def run(self, arguments: list, fault: Fault = Fault(), name: str = "counters") -> Ended:
        counters = self.folder.parent / name
        return self.finish(self.start(arguments, fault, counters), arguments, fault, counters)


def signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
