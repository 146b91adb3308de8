#!/usr/bin/env python3
"""Creates a corpus of real images from Debian's package `openclipart-png`.

    python3 scripts/corpora/openclipart.py --out openclipart

The package holds 8,121 images that their authors gave to the public domain. The script fetches it with apt-get (nothing
is installed), unpacks it under OUT/package, and writes OUT/corpus.csv, to be rated, and OUT/validation.csv, held out
and chosen by a hash of the id. A fifth of the images are copies of others; with --pairs there are none.

No caption comes with an image, so captions are made from the folder and the file name:
`animals/mammals/brown_bear_jane_doe_01.png` gives "animals, mammals: brown bear" where the author is known.

Needs Python 3.11 and, for fetching, a Debian or Ubuntu machine with apt-get and dpkg.
"""

import hashlib
import re
import sys
import time
from collections import Counter
from pathlib import Path

import corpus

PACKAGE = "openclipart-png"
IMAGES = Path("usr/share/openclipart/png")
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


def pairs(out: Path) -> list[corpus.Pair]:
    """Fetches the package and captions each image."""
    package = out / "package"
    corpus.fetch_debian(PACKAGE, package)
    root = package / IMAGES
    images = sorted(root.rglob("*.png"), key=lambda path: path.relative_to(root).as_posix())
    if not images:
        sys.exit(f"{root} contains no PNG files; remove {package} and run this again")
    found = []
    for number, image in enumerate(images):
        inside = image.relative_to(root)
        found.append(corpus.Pair(str(number), image, caption(inside), inside.parent.as_posix(), group=str(number)))
    return found


def main() -> None:
    parser, options = corpus.arguments(__doc__)
    started = time.monotonic()
    found = pairs(options.out)
    fetched = time.monotonic()
    if not 0 < options.held_out < len(found) // 2:
        parser.error(f"--held-out {options.held_out}: choose from 1 to {len(found) // 2 - 1}")

    digests = {}
    pixels = {}
    for pair in found:
        data = pair.image.read_bytes()
        digests[pair.id] = hashlib.sha256(data).digest()
        width, height = corpus.size(data)
        pixels[pair.id] = width * height
    copies = Counter(digests.values())
    # Duplicates of corpus images must not be held out.
    candidates = [pair for pair in found
                  if copies[digests[pair.id]] == 1 and 0 < pixels[pair.id] <= corpus.LARGEST_PIXELS]
    _, validation = corpus.hold_out(candidates, options.held_out)
    held_out = {pair.id for pair in validation}
    rated = [pair for pair in found if pair.id not in held_out]
    if options.pairs is not None:
        rated = corpus.subset(parser, corpus.different(rated), options.pairs)

    large = sum(number > corpus.LARGEST_PIXELS for number in pixels.values())
    print(f"{len(found)} images, {len(copies)} of them different, "
          f"{large} of more than {corpus.LARGEST_PIXELS:,} pixels "
          f"(the largest has {max(pixels.values()):,})")
    corpus.write(options.out, rated, validation)
    print(f"fetched and unpacked in {fetched - started:.1f} s, tables in {time.monotonic() - fetched:.1f} s")


if __name__ == "__main__":
    main()
