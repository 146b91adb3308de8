#!/usr/bin/env python3
"""Creates a corpus of figures from the manuals of free software in Debian: photographs, screenshots, plots, diagrams.

    python3 scripts/corpora/figures.py --out figures

The images are the PNGs and JPEGs that the HTML pages of these packages show: GIMP (GFDL-1.2 or later), OpenCV
(Apache-2.0 and BSD-3-Clause), scikit-learn, scikit-image and SciPy (BSD-3-Clause), GRASS GIS (GPL-2 or later) and KiCad
(GPL-2 or later, or CC-BY-SA-3.0); single images may have terms of their own. Captions are what a page says of an image:
its title, and the figure's caption, alternative text or heading. The script fetches the packages with apt-get (nothing
is installed; 330 MB), unpacks them under OUT/packages, and writes OUT/corpus.csv and OUT/validation.csv. All figures of
a page are in the same table.

Needs Python 3.11 and, for fetching, a Debian or Ubuntu machine with apt-get and dpkg.
"""

import os
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import corpus

SMALLEST_SIDE = 64
LONGEST_SIDE = 4.0
IMAGES = (".png", ".jpg", ".jpeg")
MOST_WORDS = 40


@dataclass
class Manual:
    """A package, and what its pages are called."""

    package: str
    name: str
    # Of the titles of its pages, what is not about the page.
    boilerplate: str = r"(?!)"
    # The names of the pages that are read.
    pages: str = r""


MANUALS = (
    Manual("gimp-help-en", "gimp"),
    # Pages of classes show generated inheritance diagrams.
    Manual("opencv-doc", "opencv", r"^opencv: ", r"tutorial_|group__"),
    Manual("python-sklearn-doc", "scikit-learn", r" — scikit-learn .*$"),
    Manual("python-skimage-doc", "scikit-image", r" — skimage .*$"),
    Manual("python-scipy-doc", "scipy", r" — scipy .*$"),
    # The gallery shows the figures of all other pages without captions.
    Manual("grass-doc", "grass", r"(: .*)? - grass gis manual$", r"(?!manual_gallery)"),
    Manual("kicad-doc-en", "kicad"),
)

# Texts that say nothing of an image.
GENERIC = re.compile(
    r"|image|images|alternate text|figure|picture|screenshot|note|tip|warning|caution|important|overview|"
    r"introduction|options|results?|examples?|references|goals?|theory|code|explanation|explication|notes|"
    r"see also|description|usage|basics|summary|(re)?sources|additional resources|exercises|prerequisites|"
    r"next tutorial|activating the .*|.*\.(png|jpe?g|gif|svg)|plot( [\w.]+)*|\d+", re.IGNORECASE)
# The beginning of paragraphs that are buttons.
BUTTON = re.compile(r"click here|go to the end|prev tutorial|next tutorial|you can (also )?download|"
                    r"available at|in this (tutorial|chapter)|goal\b", re.IGNORECASE)
HEADINGS = {f"h{level}" for level in range(1, 7)}
# The tags whose text is read.
TEXTS = {*HEADINGS, "title", "p", "div", "figcaption"}


@dataclass
class Figure:
    """An image on a page."""

    source: str
    alternative: str
    heading: str
    caption: str = ""

    def said(self) -> list[str]:
        """What the page says of this very image."""
        return [text for text in (self.alternative, self.caption) if not GENERIC.fullmatch(text)]


@dataclass
class Page(HTMLParser):
    """Collects the title and the figures of a page."""

    title: str = ""
    # The first paragraph that says something.
    summary: str = ""
    figures: list[Figure] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.heading = ""
        # The tag whose text is being collected, and the text.
        self.inside = ""
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "img":
            alternative = values.get("alt") or values.get("title", "")
            self.figures.append(Figure(values.get("src", ""), plain(alternative), self.heading))
        elif tag == "div" and "caption" not in values.get("class", "").split():
            return
        elif tag == "p" and (self.summary or not self.heading or self.inside):
            return
        elif tag in TEXTS:
            self.inside, self.text = tag, ""

    def handle_endtag(self, tag: str) -> None:
        if tag != self.inside:
            return
        text = plain(self.text)
        if tag == "title":
            self.title = text
        elif tag in HEADINGS:
            self.heading = text
        elif tag == "p":
            self.summary = "" if BUTTON.match(text) or len(text.split()) < 3 else text.split(". ")[0]
        elif self.figures and not self.figures[-1].caption:
            self.figures[-1].caption = text
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.text += data


def plain(text: str) -> str:
    """Text without formulas, section numbers, link marks and quotation marks, on one line."""
    text = re.sub(r"\\f\$.*?\\f\$|\$[^$]*\$|</?\w+>|[¶“”\"]", "", text)
    text = re.sub(r"(,\s*)+(?=,|$)", "", text)
    return re.sub(r"^(chapter |figure )?\d+(\.\d+)*\.?\s+", "", " ".join(text.split()), flags=re.IGNORECASE)


def caption(title: str, summary: str, figure: Figure) -> str:
    """The caption of a figure: the page's title, then what else is said, most specific last. The page's summary is for
    figures of which nothing is said."""
    said = figure.said()
    if not said and not GENERIC.fullmatch(figure.heading):
        said = [figure.heading]
    if not said or said == [title]:
        said = [summary]
    parts: list[str] = []
    for text in [title, *said]:
        if text and not any(text.lower() in part.lower() for part in parts):
            parts = [part for part in parts if part.lower() not in text.lower()] + [text]
    words = ": ".join(part.rstrip(".: ") for part in parts).split()
    return " ".join(words[:MOST_WORDS])


def files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files below a folder whose names end so, in the order of their paths."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read(path: Path) -> Page:
    """The title and the figures of a page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8", errors="replace"))
    return page


def captioned(folder: Path, manual: Manual) -> list[corpus.Pair]:
    """The figures of a manual. An image that several pages show takes its caption from the first that says something of
    it."""
    pages = [path for path in files(folder, (".html",)) if re.match(manual.pages, path.name)]
    root = Path(os.path.commonpath([path.parent for path in pages])) if pages else folder
    # Sphinx shows each figure twice, once as a thumbnail.
    found: dict[Path, corpus.Pair | None] = {path: None for path in files(folder, IMAGES) if "thumb" not in path.stem}
    described: set[Path] = set()
    for page_path in pages:
        page = read(page_path)
        title = re.sub(manual.boilerplate, "", page.title, flags=re.IGNORECASE)
        for figure in page.figures:
            image = Path(os.path.normpath(page_path.parent / unquote(figure.source)))
            if image not in found or image in described or not image.is_relative_to(root):
                continue
            own = bool(figure.said())
            text = caption(title, page.summary, figure)
            if text and (own or found[image] is None):
                identifier = "-".join((manual.name, *image.relative_to(root).parts))
                group = f"{manual.name}/{page_path.relative_to(root).as_posix()}"
                found[image] = corpus.Pair(identifier, image, text, manual.name, group)
                if own:
                    described.add(image)
    return [pair for pair in found.values() if pair is not None]


def pairs(out: Path) -> list[corpus.Pair]:
    """Fetches the packages and captions the figures of each."""
    found = []
    for manual in MANUALS:
        folder = out / "packages" / manual.package
        corpus.fetch_debian(manual.package, folder)
        figures = captioned(folder, manual)
        if not figures:
            sys.exit(f"{folder} contains no figures; remove it and run this again")
        found.extend(figures)
    return found


if __name__ == "__main__":
    corpus.create(__doc__, pairs, SMALLEST_SIDE, LONGEST_SIDE)
