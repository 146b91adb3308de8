#!/usr/bin/env python3
"""Creates a corpus of real images from Debian's package `openclipart-png`.

    python3 scripts/openclipart.py --out openclipart

The package holds 8,121 images that their authors gave to the public domain. The script fetches it with apt-get
(nothing is installed), unpacks it under OUT/package, and writes two tables whose paths are relative to themselves:

    OUT/corpus.csv       id,image_save_path,caption,category     to be rated
    OUT/validation.csv   the same columns                        held out, chosen by a hash of the id

No caption comes with an image, so captions are made from the folder and the file name:
`animals/mammals/brown_bear_jane_doe_01.png` gives "animals, mammals: brown bear" where the author is known.

Needs Python 3.11 and, for fetching, a Debian or Ubuntu machine with apt-get and dpkg.
"""

import argparse
import csv
import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PACKAGE = "openclipart-png"
IMAGES = Path("usr/share/openclipart/png")
COLUMNS = ["id", "image_save_path", "caption", "category"]

# Larger images are excluded: readers refuse them (this is the limit at which Pillow warns).
LARGEST_PIXELS = 89_478_485

# File names end in the author's name and are truncated to about 25 characters. These are the authors of three or more
# images; the name, or what remains of it, is removed from the end of the title.
AUTHORS = (
    "aj ashton", "alejandro tejada", "andreas nilsson", "andy fitzsimon", "anthony liekens",
    "architetto francesco rollandini", "arjen meijer", "aubanel monnier", "benji park", "brice boyer",
    "cedric bosdonnat", "charles mccolm", "christian h", "christoph brill", "dan gerhards", "daniel steele",
    "dave pena", "davide pesenti", "dennis boyd", "dirk struve", "enrique meza c", "francesco rollandini",
    "frederic moser", "fudriot omic ch", "gabrielle nowicki", "ganson", "gerald g", "guillaume boitel",
    "jakob chaosinfarkt", "jarno vasamaa", "jasper van de gronde", "jean victor balin", "joel montes de oca",
    "jon phillips", "jonadab", "jonathan dietrich", "juliane krug", "k yager", "linda kim", "lumen design studio",
    "marcelo caiafa", "marcelo staudt", "mateya", "matt todd", "matthew gates", "mauro olivo", "michael breuer",
    "mo", "nathan eady", "nicolas clement", "nicu buculei", "patricia fidi", "peterm", "petri lummemaki",
    "richard torkar", "rollandin francesco", "roman bertle", "ruairi hann", "ruud steltenpool", "saurabh",
    "sergio luiz araujo", "shandy brown", "snuatautisticido", "stefan bazelkov", "stuart moore", "susan park",
    "tanguy jacq", "tess brady", "toh yen cheng", "utrescu", "wolfram esser", "yves guillou", "zazou",
)

SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
RANKS = {"1": "ace", "a": "ace", "j": "jack", "q": "queen", "k": "king"}
WORDS = {"bw": "black and white", "bwh": "black and white"}


def fetch(folder: Path) -> None:
    """Downloads the package with apt-get and unpacks it into `folder`, atomically."""
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not on this machine; unpack Debian's {PACKAGE} into {folder} by other means")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpacking-") as temporary:
        command = ["apt-get", "download", PACKAGE]
        if subprocess.run(command, cwd=temporary, capture_output=True).returncode != 0:
            # Package lists may be missing or outdated, as on a fresh machine.
            subprocess.run(["apt-get", "update"], check=True, stdout=subprocess.DEVNULL)
            subprocess.run(command, cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        archives = sorted(Path(temporary).glob(f"{PACKAGE}_*.deb"))
        if not archives:
            sys.exit(f"apt-get reported success but left no {PACKAGE} archive; run `apt-get download {PACKAGE}`")
        unpacked = Path(temporary, "package")
        subprocess.run(["dpkg", "-x", archives[0], unpacked], check=True)
        unpacked.rename(folder)


def without_author(words: list[str]) -> list[str]:
    """Removes an author's name, or the beginning of one, from the end of a title's words."""
    for start in range(1, len(words)):
        tail = " ".join(words[start:])
        for author in AUTHORS:
            if tail == author or (len(tail) >= 4 and author.startswith(tail)):
                return words[:start]
    return words


def title(stem: str, folders: list[str]) -> str:
    """The title of an image, from its file name."""
    if "cards" in folders:
        card = re.fullmatch(r"(\w+)_([cdhs])_(\w+)", stem)
        if card:
            style, suit, rank = card.groups()
            return f"{style} playing card {RANKS.get(rank, rank)} of {SUITS[suit]}"
    star = re.fullmatch(r"star_(\d+)pt(\d+)step", stem)
    if star:
        return f"star with {int(star[1])} points, step {int(star[2])}"
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", stem)
    words = re.sub(r"[^\w]|_", " ", words).lower().split()
    # Trailing numbers count copies; `r` marks a removed revision.
    while len(words) > 1 and re.fullmatch(r"\d+r?|r", words[-1]):
        words.pop()
    words = without_author(words)
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", word) for word in words]
    words = [WORDS.get(word, word) for word in words if not re.fullmatch(r"\d+|\d+\w*\d+|0x\w+", word)]
    return " ".join(words)


def caption(path: Path) -> str:
    """The caption of an image, from its path below the images' folder."""
    folders = [re.sub(r"[_-]", " ", folder).lower() for folder in path.parent.parts]
    words = title(path.stem, path.parent.parts)
    prefix = ", ".join(folder for folder in folders if folder not in ("unsorted", "duplicates"))
    return ": ".join(part for part in (prefix, words) if part) or "image"


def pixels(image: Path) -> int:
    """The number of pixels in a PNG's header; 0 if there is no such header."""
    with image.open("rb") as file:
        header = file.read(24)
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n":
        return 0
    width, height = struct.unpack(">II", header[16:24])
    return width * height


def write_table(path: Path, rows: list[list[str]]) -> None:
    """Writes a CSV atomically: under another name first, then renamed."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    temporary = path.with_suffix(".partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the images and the tables")
    parser.add_argument("--held-out", type=int, default=400, help="images for validation.csv (default: 400)")
    arguments = parser.parse_args()
    started = time.monotonic()

    package = arguments.out / "package"
    if not package.is_dir():
        fetch(package)
    fetched = time.monotonic()
    root = package / IMAGES
    images = sorted(root.rglob("*.png"), key=lambda path: path.relative_to(root).as_posix())
    if not images:
        sys.exit(f"{root} holds no PNG files; remove {package} and run this again")
    if not 0 < arguments.held_out < len(images) // 2:
        parser.error(f"--held-out {arguments.held_out}: choose from 1 to {len(images) // 2 - 1}")

    digests = [hashlib.sha256(image.read_bytes()).digest() for image in images]
    copies = Counter(digests)
    sizes = [pixels(image) for image in images]
    rows = []
    for number, image in enumerate(images):
        inside = image.relative_to(root)
        rows.append([
            str(number),
            image.relative_to(arguments.out).as_posix(),
            caption(inside),
            inside.parent.as_posix(),
        ])
    # Duplicates of corpus images must not be held out.
    candidates = [n for n in range(len(rows)) if copies[digests[n]] == 1 and 0 < sizes[n] <= LARGEST_PIXELS]
    candidates.sort(key=lambda number: hashlib.sha256(str(number).encode()).digest())
    held_out = set(candidates[: arguments.held_out])
    corpus = [row for number, row in enumerate(rows) if number not in held_out]
    validation = [row for number, row in enumerate(rows) if number in held_out]
    write_table(arguments.out / "validation.csv", validation)
    write_table(arguments.out / "corpus.csv", corpus)

    print(f"{len(images)} images, {len(copies)} of them different, "
          f"{sum(size > LARGEST_PIXELS for size in sizes)} of more than {LARGEST_PIXELS:,} pixels "
          f"(the largest has {max(sizes):,})")
    print(f"{len({row[2] for row in rows})} different captions, {len({row[3] for row in rows})} categories")
    print(f"{arguments.out / 'corpus.csv'}: {len(corpus)} rows; "
          f"{arguments.out / 'validation.csv'}: {len(validation)} rows")
    print(f"fetched and unpacked in {fetched - started:.1f} s, tables in {time.monotonic() - fetched:.1f} s")


if __name__ == "__main__":
    main()
