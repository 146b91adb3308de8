"""File trees: reading, comparing, and checking for complete files."""

import fnmatch
import json
import os
import shutil
from pathlib import Path

# Names that may differ between two undisturbed runs, because they contain times and process ids.
VOLATILE = ("provenance.json", "lock", "*.lock", "*.seconds", "events.out.tfevents.*")
# Optional names.
OPTIONAL = ("events.out.tfevents.*",)


def matches(path: str, patterns) -> bool:
    return any(fnmatch.fnmatch(part, pattern) for part in path.split("/") for pattern in patterns)


def hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def read(folder: Path) -> dict:
    """Maps paths below the folder to ("file", bytes), ("link", target) or ("folder",)."""
    found = {}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = f"{below}{entry.name}"
                if entry.is_symlink():
                    found[path] = ("link", os.readlink(entry.path))
                elif entry.is_dir():
                    found[path] = ("folder",)
                    pending.append(path + "/")
                else:
                    with open(entry.path, "rb") as file:
                        found[path] = ("file", file.read())
    return found


def stamps(folder: Path, but: str) -> dict:
    """Maps paths to what changes when they are written to, except below one folder."""
    found = {}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = f"{below}{entry.name}"
                if path == but:
                    continue
                about = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    found[path] = ("folder",)
                    pending.append(path + "/")
                else:
                    found[path] = (about.st_ino, about.st_size, about.st_mtime_ns, about.st_mode)
    return found


def difference(found: dict, expected: dict, timed=()) -> str | None:
    """The first relevant difference, described."""
    for path in sorted(expected.keys() - found.keys()):
        if not matches(path, OPTIONAL):
            return f"{path} is missing"
    for path in sorted(found.keys() - expected.keys()):
        if not matches(path, OPTIONAL):
            return f"{path} was left"
    for path in sorted(expected.keys() & found.keys()):
        if found[path] == expected[path]:
            continue
        if matches(path, VOLATILE) or has_times(path, timed) or hidden(path):
            if found[path][0] == expected[path][0]:
                continue
        return f"{path} has other bytes"
    return None


def has_times(path: str, timed) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in timed)


def differing(one: dict, other: dict, timed=()) -> set:
    """Paths whose bytes differ, except those that may."""
    return {
        path for path in one.keys() & other.keys()
        if one[path] != other[path] and not matches(path, VOLATILE) and not hidden(path) and not has_times(path, timed)
    }


def write(tree: dict, folder: Path):
    """Writes a tree into a folder."""
    for path in sorted(tree):
        kind, *rest = tree[path]
        target = folder / path
        if kind == "folder":
            target.mkdir(exist_ok=True)
        elif kind == "link":
            target.symlink_to(rest[0])
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(rest[0])


def empty(folder: Path):
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def broken(path: str, data: bytes) -> str | None:
    """Why a file under its final name is incomplete, by the rules of its format; None if it is complete."""
    ending = path.rsplit(".", 1)[-1]
    if ending == "json":
        try:
            json.loads(data)
        except ValueError:
            return "is no whole JSON"
    elif ending == "safetensors":
        if len(data) < 8:
            return "has no header"
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8:8 + length])
        except ValueError:
            return "has a damaged header"
        end = max((about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"), default=0)
        if len(data) != 8 + length + end:
            return "is cut short"
    elif ending == "png":
        if not data.endswith(b"IEND\xaeB`\x82"):
            return "is a PNG cut short"
    elif ending == "parquet":
        if not data.endswith(b"PAR1"):
            return "is a Parquet table cut short"
    elif ending == "tar":
        if len(data) < 1024 or data[-1024:].strip(b"\0"):
            return "is a tar cut short"
    elif ending == "csv":
        if not data.endswith(b"\n"):
            return "is a table cut short"
    elif ending == "html":
        if not data.rstrip().endswith(b"</html>"):
            return "is a page cut short"
    return None
