"""The inputs of all jobs, in one small folder: images, tables, runs, ratings and weights."""

import json
import random
import struct
import zlib
from pathlib import Path

SIDE = 24
WORDS = "red green blue white circle square stripe dot large small left right plain bright dark two three".split()


def png(pixels: bytes, side: int) -> bytes:
    """An RGB image as PNG."""
    rows = b"".join(b"\0" + pixels[3 * side * row:3 * side * (row + 1)] for row in range(side))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def synthetic_image(random_: random.Random) -> bytes:
    """A rectangle of one color on another, with some noise."""
    ground, patch = ([random_.randrange(256) for _ in range(3)] for _ in range(2))
    left, top, width = random_.randrange(16), random_.randrange(16), random_.randrange(4, 16)
    pixels = bytearray()
    for y in range(SIDE):
        for x in range(SIDE):
            color = patch if left <= x < left + width and top <= y < top + width else ground
            pixels += bytes(min(255, max(0, value + random_.randrange(-6, 7))) for value in color)
    return png(bytes(pixels), SIDE)


def tables(folder: Path):
    """Images and the tables that name them, the configuration, and synthetic weights instead of PyTorch's."""
    random_ = random.Random(19)
    data = folder / "data"
    (data / "images").mkdir(parents=True)

    def caption() -> str:
        return " ".join(random_.sample(WORDS, 4))

    def table(name: str, rows):
        lines = ["id,image_save_path,caption", *(",".join(row) for row in rows)]
        (data / name).write_text("\n".join(lines) + "\n")

    images = []
    for number in range(64):
        path = f"images/{number:03}.png"
        (data / path).write_bytes(synthetic_image(random_))
        images.append(path)
    (data / "images/broken.png").write_bytes(b"no image at all")
    rows = [(f"{number:032x}", path, caption()) for number, path in enumerate(images)]
    broken = ("f" * 32, "images/broken.png", "a file that is no image")
    train = [*rows[:24], broken, *rows[24:48]]
    table("train.csv", train)
    table("small.csv", rows[:32])
    table("validation.csv", rows[48:])
    # More rows than a part of `score` has.
    table("many.csv", [(f"row-{number:04}", images[number % 48], caption()) for number in range(700)] + [broken])
    (folder / "prompts.txt").write_text("".join(f"{caption()}\n" for _ in range(4)))
    (folder / "config.json").write_text(json.dumps({
        "data_args": {"train_csv_path": "data/train.csv", "val_csv_path": "data/validation.csv"},
        "depth": 1, "proxy_width": 64, "raterDepth": 1, "rater_width": 64,
        "pn": "1_2_3", "patch_size": 8,
        "image_tokenizer": {"components": 4, "codes": 16, "fit_images": 40},
        "text_encoder": {"tokens": 6, "channels": 8},
        "rule": "excess", "bs": 8, "ep": 2, "rater_only_epochs": 1, "checkpoint_every": 4, "tlr": 2e-3, "workers": 1,
    }, indent=1) + "\n")


# Inputs of the jobs that the program itself creates, in this order.
STEPS = (
    ("train", "--config", "config.json", "--out", "run"),
    ("fit", "--config", "config.json", "--data", "data/train.csv", "--validation", "data/validation.csv", "--out", "model"),
    ("score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "ratings.csv"),
    ("score", "--checkpoint", "run", "--data", "data/small.csv", "--out", "few.csv"),
    ("sample", "--checkpoint", "model", "--prompts", "prompts.txt", "--out", "sampled"),
    ("export", "--checkpoint", "run", "--out", "weights.pth"),
)
