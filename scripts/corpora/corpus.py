"""Shared by the scripts of this folder: fetching packages, reading image files, and writing the tables.

Each script writes two tables with the columns id,image_save_path,caption,category, whose paths are relative to them:

    OUT/corpus.csv       to be rated
    OUT/validation.csv   held out
"""

import argparse
import csv
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

COLUMNS = ["id", "image_save_path", "caption", "category"]

# Larger images are excluded: readers refuse them (this is the limit at which Pillow warns).
LARGEST_PIXELS = 89_478_485

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Pair:
    """An image with its caption. Pairs of one `group` are held out together or not at all."""

    id: str
    image: Path
    caption: str
    category: str
    group: str


def arguments(description: str) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser and the arguments that all scripts share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the images and the tables")
    parser.add_argument("--held-out", type=int, default=400, help="pairs for validation.csv (default: 400)")
    parser.add_argument("--pairs", type=int, help="pairs for corpus.csv, chosen by a hash of the id from the different "
                        "images that can be read; fewer are a subset of more, and validation.csv is the same for all "
                        "(default: all)")
    return parser, parser.parse_args()


def require(program: str, package: str, folder: Path) -> None:
    """Exits with a message if a program is missing."""
    if shutil.which(program) is None:
        sys.exit(f"{program} is not on this machine; unpack {package} into {folder} by other means")


def run(command: list[str], folder: str) -> None:
    """Runs a command in a folder; exits with what it printed if it fails."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"`{' '.join(command)}` failed: {(result.stderr or result.stdout).strip()}")


def download_debian(package: str, folder: str) -> Path:
    """Downloads a Debian package into a folder. Returns the archive."""
    command = ["apt-get", "download", package]
    if subprocess.run(command, cwd=folder, capture_output=True).returncode != 0:
        # Package lists may be missing or outdated, as on a fresh machine.
        run(["apt-get", "update"], folder)
        run(command, folder)
    archives = sorted(Path(folder).glob(f"{package}_*.deb"))
    if not archives:
        sys.exit(f"apt-get reported success but left no {package} archive; run `apt-get download {package}`")
    return archives[0]


def fetch_debian(package: str, folder: Path) -> None:
    """Downloads a Debian package and unpacks it into `folder`, atomically. Nothing is installed."""
    if folder.is_dir():
        return
    for program in ("apt-get", "dpkg-deb"):
        require(program, f"Debian's {package}", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpacking-") as temporary:
        archive = download_debian(package, temporary)
        run(["dpkg-deb", "--extract", archive.name, "package"], temporary)
        Path(temporary, "package").rename(folder)


def fetch_npm(package: str, version: str, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Downloads an npm package and unpacks the `wanted` files into `folder`, atomically. None of its code is run."""
    if folder.is_dir():
        return
    require("npm", f"npm's {package}@{version}", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpacking-") as temporary:
        run(["npm", "pack", "--silent", f"{package}@{version}"], temporary)
        archives = sorted(Path(temporary).glob("*.tgz"))
        if not archives:
            sys.exit(f"npm reported success but left no archive; run `npm pack {package}@{version}`")
        unpacked = Path(temporary, "unpacked")
        unpacked.mkdir()
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isreg() and not name.is_absolute() and ".." not in name.parts and wanted(member.name):
                    path = unpacked / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())
        unpacked.rename(folder)


def png_chunks(data: bytes):
    """The chunks of a PNG: type and content. Ends at the first that is incomplete."""
    position = len(PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            return
        yield kind, data[position + 8 : position + 8 + length]
        position += 12 + length


def jpeg_size(data: bytes) -> tuple[int, int]:
    """The width and height in a JPEG's frame header; (0, 0) if there is none."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker == 0xFF:
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        else:
            position += 2 + length
    return 0, 0


def size(data: bytes) -> tuple[int, int]:
    """The width and height in the header of a PNG or JPEG; (0, 0) if it is neither."""
    if data.startswith(PNG) and len(data) >= 24:
        return struct.unpack_from(">II", data, 16)
    return jpeg_size(data) if data.startswith(b"\xff\xd8") else (0, 0)


def readable(data: bytes) -> bool:
    """Whether a file has the header of an image that is not too large."""
    width, height = size(data)
    return 0 < width * height <= LARGEST_PIXELS


def fingerprint(data: bytes) -> bytes:
    """A hash that equal images share: of a PNG the header, the palette and the inflated data, whatever its compression
    and its metadata; of other files all bytes."""
    if data.startswith(PNG):
        chunks = [chunk for chunk in png_chunks(data) if chunk[0] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT")]
        try:
            pixels = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
        except zlib.error:
            return hashlib.sha256(data).digest()
        rest = b"".join(kind + content for kind, content in chunks if kind != b"IDAT")
        return hashlib.sha256(rest + pixels).digest()
    return hashlib.sha256(data).digest()


def order(key: str) -> bytes:
    """What ids and groups are sorted by, so that a choice among them depends on no other."""
    return hashlib.sha256(key.encode()).digest()


def different(pairs: list[Pair], smallest: int = 1, longest: float = float("inf")) -> list[Pair]:
    """The pairs whose images can be read, differ from all before them, are at least `smallest` pixels high and wide,
    and at most `longest` times as long as short."""
    seen = set()
    kept = []
    for pair in pairs:
        data = pair.image.read_bytes()
        sides = sorted(size(data))
        if not readable(data) or sides[0] < smallest or sides[1] > longest * sides[0]:
            continue
        digest = fingerprint(data)
        if digest not in seen:
            seen.add(digest)
            kept.append(pair)
    return kept


def hold_out(pairs: list[Pair], number: int) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs into those to be rated and `number` held out: whole groups in the order of their hashes. A group
    that exceeds the number is skipped."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    held_out: set[str] = set()
    for group in sorted(groups, key=order):
        if len(held_out) + len(groups[group]) <= number:
            held_out.update(pair.id for pair in groups[group])
    return ([pair for pair in pairs if pair.id not in held_out], [pair for pair in pairs if pair.id in held_out])


def subset(parser: argparse.ArgumentParser, pairs: list[Pair], number: int) -> list[Pair]:
    """The `number` pairs whose ids have the smallest hashes, in their old order."""
    if not 0 < number <= len(pairs):
        parser.error(f"--pairs {number}: choose from 1 to {len(pairs)}")
    chosen = {pair.id for pair in sorted(pairs, key=lambda pair: order(pair.id))[:number]}
    return [pair for pair in pairs if pair.id in chosen]


def write_table(path: Path, pairs: list[Pair]) -> None:
    """Writes a CSV atomically: under another name first, then renamed."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pair in pairs:
        writer.writerow([pair.id, pair.image.relative_to(path.parent).as_posix(), pair.caption, pair.category])
    temporary = path.with_suffix(".partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write(out: Path, corpus: list[Pair], validation: list[Pair]) -> None:
    """Writes both tables and prints what is in them."""
    write_table(out / "validation.csv", validation)
    write_table(out / "corpus.csv", corpus)
    pairs = corpus + validation
    print(f"{len({pair.caption for pair in pairs})} different captions, "
          f"{len({pair.category for pair in pairs})} categories")
    print(f"{out / 'corpus.csv'}: {len(corpus)} rows; {out / 'validation.csv'}: {len(validation)} rows")


def create(description: str, fetch: Callable[[Path], list[Pair]], smallest: int = 1,
           longest: float = float("inf")) -> None:
    """A script from its arguments to its tables, for a corpus of different images. `fetch` makes the pairs."""
    parser, options = arguments(description)
    started = time.monotonic()
    found = fetch(options.out)
    pairs = different(found, smallest, longest)
    print(f"{len(found)} images, {len(pairs)} of them different and large enough")
    if not 0 < options.held_out < len(pairs) // 2:
        parser.error(f"--held-out {options.held_out}: choose from 1 to {len(pairs) // 2 - 1}")
    corpus, validation = hold_out(pairs, options.held_out)
    if options.pairs is not None:
        corpus = subset(parser, corpus, options.pairs)
    write(options.out, corpus, validation)
    print(f"done in {time.monotonic() - started:.1f} s")
