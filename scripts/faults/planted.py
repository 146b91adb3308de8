"""A stand-in for the engine to test the checker: correct by default, with one defect if ALCHEMIST_PLANTED names it. It copies a table in
upper case, part by part, and writes its checksum next to it."""

import errno
import fcntl
import hashlib
import json
import os
import signal
import sys
import time

MISTAKE = os.environ.get("ALCHEMIST_PLANTED", "")
PARTS = 3


class Refused(Exception):
    pass


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kind_of(path):
    """The contents of a file, or None; an I/O error is not mistaken for a missing file."""
    try:
        return os.lstat(path).st_mode & 0o170000
    except FileNotFoundError:
        return None


def read(path: str) -> bytes:
    while True:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            if MISTAKE != "hangs" or error.errno != errno.EIO:
                raise
            time.sleep(0.01)


def write(path: str, data: bytes):
    """Writes through a temporary name in the same folder."""
    direct = MISTAKE in ("not-atomic", "no-lock") and not os.path.basename(path).startswith(".")
    folder, name = os.path.split(path)
    target = path if direct else f"{folder}/.unfinished-{os.getpid()}-{name}"
    fd = os.open(target, os.O_CREAT | os.O_WRONLY | (os.O_TRUNC if direct else os.O_EXCL), 0o644)
    try:
        at, step = 0, 20 if direct else 97
        while at < len(data):
            try:
                at += os.write(fd, data[at:at + step])
            except OSError as error:
                if MISTAKE != "swallows" or error.errno not in (errno.ENOSPC, errno.EIO):
                    raise
                break
            if MISTAKE == "once" and at % step:
                break
            if MISTAKE == "no-lock":
                time.sleep(0.005)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        if not direct:
            os.unlink(target)
        raise
    os.close(fd)
    if not direct:
        os.rename(target, path)


def part(path: str, text: bytes) -> bytes:
    """A cached part if it is complete, or a new one."""
    if kind_of(path) is not None:
        kept = read(path)
        if MISTAKE == "trusts" or sha(kept[64:]) == kept[:64].decode(errors="replace"):
            return kept[64:]
    data = text.upper()
    write(path, sha(data).encode() + data)
    return data


def remove(path: str):
    if kind_of(path) == 0o040000:
        for name in os.listdir(path):
            remove(f"{path}/{name}")
        os.rmdir(path)
    else:
        os.unlink(path)


def leftovers(folder: str, name: str, but: str = ""):
    found = [one for one in os.listdir(folder) if one.startswith(".unfinished-") or one.startswith(f".{name}.parts-") and one != but]
    if MISTAKE == "not-again" and found:
        raise Refused(f"{folder} is not empty")
    for one in found if MISTAKE != "leaves" else []:
        remove(f"{folder}/{one}")


def copy(data: str, out: str, overwrite: bool):
    folder, name = os.path.split(out)
    outs = [out, f"{out}.sum"]
    marker = f"{folder}/.{name}.marker"
    if os.path.realpath(out) == os.path.realpath(data) and MISTAKE != "foreign":
        raise Refused(f"{out} is the input")
    lock = os.open(f"{folder}/.{name}.lock", os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        if MISTAKE != "no-lock":
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(f"another process writes {out}") from None
    text = read(data)
    claims, finished = {}, False
    if kind_of(marker) is not None:
        try:
            held = json.loads(read(marker))
            claims, finished = held["claims"], held["done"]
        except (ValueError, KeyError, TypeError):
            raise Refused(f"{marker} is damaged; remove {name}") from None
    there = [path for path in outs if kind_of(path) is not None]
    for path in there:
        own = kind_of(path) == 0o100000 and sha(read(path)) in claims.get(os.path.basename(path), [])
        if not own and not (MISTAKE == "foreign" and overwrite) and MISTAKE not in ("not-atomic", "no-lock"):
            raise Refused(f"{path} is not what this program wrote, so it is not replaced")
    if there and (finished or not claims) and not overwrite:
        raise Refused(f"{out} already exists; pass --overwrite")
    parts = f".{name}.parts-{sha(text)[:8]}"
    leftovers(folder, name, parts)
    if kind_of(f"{folder}/{parts}") is None:
        os.mkdir(f"{folder}/{parts}")
    leftovers(f"{folder}/{parts}", name)
    step = -(-len(text) // PARTS)
    whole = b"".join(part(f"{folder}/{parts}/{at}", text[at * step:(at + 1) * step]) for at in range(PARTS))
    both = [whole, sha(whole).encode() + b"\n"]
    names = [os.path.basename(path) for path in outs]
    new = {one: [sha(data)] for one, data in zip(names, both)}
    if MISTAKE != "mixes":
        write(marker, json.dumps({"done": False, "claims": {one: claims.get(one, []) + new[one] for one in names}}).encode())
    for path, content in zip(outs, both):
        write(path, content)
    # Before the job reports success, so that a stop here resumes.
    remove(f"{folder}/{parts}")
    write(marker, json.dumps({"done": True, "claims": new}).encode())


def main() -> int:
    if "--help" in sys.argv:
        print("copy --data FILE --out FILE --overwrite")
        return 0
    value = {name: sys.argv[sys.argv.index(name) + 1] for name in ("--data", "--out")}
    try:
        copy(value["--data"], value["--out"], "--overwrite" in sys.argv)
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    except OSError as error:
        if MISTAKE == "panics":
            print("thread 'main' panicked at planted.py", file=sys.stderr)
            return 101
        if MISTAKE == "loses-input":
            os.unlink(value["--data"])
        print(f"error: {value['--out']} cannot be written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again", file=sys.stderr)
        return 0 if MISTAKE == "stops-well" else 130
    return 0


if __name__ == "__main__":
    # It may have been started with these signals ignored, as shells start background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Exit immediately, as the engine does, so that no signal arrives during interpreter shutdown.
    code = main()
    sys.stdout.flush()
    os._exit(code)
