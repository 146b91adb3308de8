#!/usr/bin/env python3
"""Creates a corpus of emoji from npm's packages `emoji-datasource-google` and `emoji-datasource-twitter`.

    python3 scripts/corpora/emoji.py --out emoji

Each emoji comes in two styles, Noto (Apache-2.0) and Twemoji (CC-BY-4.0), as PNGs of 64 x 64 pixels. Captions are its
Unicode name and keywords from npm's `emojilib` (MIT): "zebra: animal, nature, stripes, safari, face, stripe". Skin
tones are excluded: such images hardly differ. The script fetches the packages with npm (none of their code is run),
unpacks the images under OUT/packages, and writes OUT/corpus.csv and OUT/validation.csv. Both styles of an emoji are in
the same table.

Needs Python 3.11 and, for fetching, npm.
"""

import json
import re
import sys
from pathlib import Path

import corpus

# The folder of a package's images, and the first part of the ids.
STYLES = {"google": "noto", "twitter": "twemoji"}
IMAGES_VERSION = "16.0.0"
KEYWORDS_VERSION = "4.0.3"
KEYWORDS = "package/dist/emoji-en-US.json"
MOST_KEYWORDS = 8


def words(text: str) -> str:
    """A name or keyword as plain words: lower case, without underscores, or empty if it has no letters."""
    text = " ".join(re.sub(r"[_\-]+", " ", text).lower().split())
    return text if re.fullmatch(r"[^\W_][\w .&'’]*", text) and re.search(r"[^\W\d_]{2}", text) else ""


def character(code: str) -> str:
    """The emoji of a code such as `1F3C3-200D-2642-FE0F`."""
    return "".join(chr(int(part, 16)) for part in code.split("-"))


def caption(emoji: dict, keywords: dict[str, list[str]]) -> str:
    """The caption of an emoji: its name, then the keywords that say more."""
    listed = []
    for code in (emoji["unified"], emoji["non_qualified"]):
        if code and not listed:
            listed = [words(keyword) for keyword in keywords.get(character(code), [])]
    # The first keyword is the name in the Unicode Common Locale Data Repository.
    name, *rest = listed or [words(emoji["name"]) or words(emoji["short_name"])]
    name = name or words(emoji["name"]) or words(emoji["short_name"])
    said = set(name.split())
    kept = []
    for keyword in rest:
        if keyword and not set(keyword.split()) <= said and len(kept) < MOST_KEYWORDS:
            said.update(keyword.split())
            kept.append(keyword)
    return f"{name}: {', '.join(kept)}" if kept else name


def pairs(out: Path) -> list[corpus.Pair]:
    """Fetches the packages and captions each emoji in each style."""
    keywords_folder = out / "packages/emojilib"
    corpus.fetch_npm("emojilib", KEYWORDS_VERSION, keywords_folder, lambda name: name == KEYWORDS)
    keywords = json.loads((keywords_folder / KEYWORDS).read_text(encoding="utf-8"))
    found = []
    for vendor, style in STYLES.items():
        images = f"package/img/{vendor}/64"
        folder = out / f"packages/emoji-datasource-{vendor}"
        corpus.fetch_npm(f"emoji-datasource-{vendor}", IMAGES_VERSION, folder,
                         lambda name: name == "package/emoji.json" or name.startswith(f"{images}/"))
        table = json.loads((folder / "package/emoji.json").read_text(encoding="utf-8"))
        for emoji in sorted(table, key=lambda emoji: emoji["sort_order"]):
            image = folder / images / emoji["image"]
            if emoji["category"] == "Component" or not emoji[f"has_img_{vendor}"] or not image.is_file():
                continue
            found.append(corpus.Pair(
                id=f"{style}-{image.stem}",
                image=image,
                caption=caption(emoji, keywords),
                category=f"{emoji['category']}/{emoji['subcategory']}".lower(),
                group=image.stem,
            ))
    if not found:
        sys.exit(f"{out / 'packages'} contains no emoji; remove it and run this again")
    return found


if __name__ == "__main__":
    corpus.create(__doc__, pairs)
