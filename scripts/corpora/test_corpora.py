"""Tests of the scripts of this folder, without a network:

    python3 -m unittest discover scripts/corpora
"""

import contextlib
import csv
import io
import struct
import tempfile
import unittest
import zlib
from pathlib import Path
from unittest import mock

import corpus
import emoji
import figures
import openclipart


def png(width: int, height: int, color: int, level: int = 9, text: bytes = b"") -> bytes:
    """A gray PNG of one color."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([color]) * width) * height
    comment = chunk(b"tEXt", b"Comment\0" + text) if text else b""
    pixels = chunk(b"IDAT", zlib.compress(rows, level))
    return corpus.PNG + chunk(b"IHDR", header) + comment + pixels + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """The beginning of a JPEG, with a comment before the frame header."""
    return (b"\xff\xd8\xff\xfe\x00\x06text\xff\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" * 12)


def pair(number: int, group: str | None = None) -> corpus.Pair:
    return corpus.Pair(str(number), Path("images", f"{number}.png"), f"caption {number}", "a", group or str(number))


class Images(unittest.TestCase):
    def test_sizes_are_read_from_headers(self) -> None:
        self.assertEqual(corpus.size(png(3, 5, 0)), (3, 5))
        self.assertEqual(corpus.size(jpeg(640, 480)), (640, 480))
        for damaged in (b"", b"GIF89a", corpus.PNG, png(3, 5, 0)[:20], jpeg(640, 480)[:12], b"\xff\xd8"):
            self.assertEqual(corpus.size(damaged), (0, 0))

    def test_equal_pixels_have_equal_fingerprints(self) -> None:
        first = corpus.fingerprint(png(8, 8, 1))
        self.assertEqual(first, corpus.fingerprint(png(8, 8, 1, level=0, text=b"other bytes")))
        self.assertNotEqual(first, corpus.fingerprint(png(8, 8, 2)))
        self.assertNotEqual(first, corpus.fingerprint(png(4, 16, 1)))
        self.assertNotEqual(corpus.fingerprint(jpeg(8, 8)), corpus.fingerprint(jpeg(8, 9)))

    def test_copies_damaged_small_and_narrow_images_are_excluded(self) -> None:
        files = [png(64, 64, 1), png(64, 64, 1, level=0), b"damaged", png(63, 64, 1), png(64, 257, 1), png(64, 256, 1)]
        with tempfile.TemporaryDirectory() as folder:
            pairs = []
            for number, data in enumerate(files):
                image = Path(folder, f"{number}.png")
                image.write_bytes(data)
                pairs.append(corpus.Pair(str(number), image, "", "", ""))
            kept = corpus.different(pairs, smallest=64, longest=4.0)
        self.assertEqual([pair.id for pair in kept], ["0", "5"])


class Tables(unittest.TestCase):
    def test_groups_are_held_out_whole(self) -> None:
        pairs = [pair(number, f"group {number // 3}") for number in range(90)]
        rated, held_out = corpus.hold_out(pairs, 20)
        self.assertEqual((len(rated), len(held_out)), (72, 18))
        self.assertFalse({pair.group for pair in rated} & {pair.group for pair in held_out})

    def test_the_held_out_do_not_depend_on_the_order(self) -> None:
        pairs = [pair(number) for number in range(50)]
        forward = {pair.id for pair in corpus.hold_out(pairs, 10)[1]}
        self.assertEqual(forward, {pair.id for pair in corpus.hold_out(pairs[::-1], 10)[1]})

    def test_smaller_subsets_are_in_larger_ones(self) -> None:
        parser = corpus.argparse.ArgumentParser()
        pairs = [pair(number) for number in range(100)]
        small, large = (corpus.subset(parser, pairs, number) for number in (10, 20))
        self.assertEqual((len(small), len(large)), (10, 20))
        self.assertTrue({pair.id for pair in small} < {pair.id for pair in large})
        self.assertEqual(large, sorted(large, key=lambda pair: int(pair.id)))

    def test_a_script_writes_both_tables(self) -> None:
        def fetch(out: Path) -> list[corpus.Pair]:
            (out / "images").mkdir(exist_ok=True)
            for number in range(30):
                (out / "images" / f"{number}.png").write_bytes(png(8, 8, number))
            return [corpus.Pair(str(n), out / "images" / f"{n}.png", f"{n}, \"a\"", "b", str(n)) for n in range(30)]

        def create(*more: str) -> tuple[list[dict[str, str]], bytes]:
            with (mock.patch("sys.argv", ["script", "--out", folder, "--held-out", "5", *more]),
                  contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())):
                corpus.create("", fetch)
            with Path(folder, "corpus.csv").open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file)), Path(folder, "validation.csv").read_bytes()

        with tempfile.TemporaryDirectory() as folder:
            rows, validation = create()
            self.assertEqual(len(rows), 25)
            self.assertEqual(list(rows[0]), corpus.COLUMNS)
            for row in rows:
                self.assertTrue(Path(folder, row["image_save_path"]).is_file())
                self.assertEqual(row["caption"], f"{row['id']}, \"a\"")
            fewer, same = create("--pairs", "10")
            self.assertEqual((len(fewer), same), (10, validation))
            self.assertFalse(list(Path(folder).glob("*.partial")))
            for wrong in (["--pairs", "26"], ["--pairs", "0"], ["--held-out", "15"]):
                with self.assertRaises(SystemExit):
                    create(*wrong)


class Captions(unittest.TestCase):
    def test_openclipart(self) -> None:
        caption = openclipart.caption(Path("animals/mammals/brown_bear_nicu_buculei_01.png"))
        self.assertEqual(caption, "animals, mammals: brown bear")
        self.assertEqual(openclipart.caption(Path("recreation/games/cards/white_h_q.png")),
                         "recreation, games, cards: white playing card queen of hearts")

    def test_emoji(self) -> None:
        apple = {"name": "RED APPLE", "short_name": "apple", "unified": "1F34E", "non_qualified": None}
        keywords = {"🍎": ["red_apple", "fruit", "apple", ":a)", "red", "mac"]}
        self.assertEqual(emoji.caption(apple, keywords), "red apple: fruit, mac")
        self.assertEqual(emoji.caption(apple, {}), "red apple")

    def test_figures(self) -> None:
        page = figures.Page()
        page.feed("""<title>13.2. “Cubism”</title><h1>13.2. Cubism</h1><p>Click here</p><p>It makes cubes. Often.</p>
            <img src="a.jpg" alt="Figure 17.3. Example for the “Cubism” filter"/>
            <div class="caption"><p>Applied</p></div>
            <h2>1.2. Options</h2><img src="b.png" alt="b.png"/><h2>Sizes</h2><img src="c.png"/>""")
        self.assertEqual(page.title, "Cubism")
        captions = [figures.caption(page.title, page.summary, figure) for figure in page.figures]
        self.assertEqual(captions, [
            "Example for the Cubism filter: Applied",
            "Cubism: It makes cubes",
            "Cubism: Sizes",
        ])

    def test_figures_of_a_manual(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "usr/share/doc/html")
            (root / "images").mkdir(parents=True)
            for name in ("a.png", "a_thumb.png", "unused.png"):
                (root / "images" / name).write_bytes(png(64, 64, 1))
            (root / "1.html").write_text('<title>One</title><h1>Top</h1><img src="images/a.png">', encoding="utf-8")
            (root / "2.html").write_text("""<title>Two</title><img src="./images/a.png" alt="A cat">
                <img src="images/none.png"><img src="images/a_thumb.png" alt="Thumb">""", encoding="utf-8")
            found = figures.captioned(Path(folder), figures.Manual("package", "manual"))
        self.assertEqual([(pair.id, pair.caption, pair.group) for pair in found],
                         [("manual-images-a.png", "Two: A cat", "manual/2.html")])


if __name__ == "__main__":
    unittest.main()
