"""Makes images.tar.gz, images as people have them, and images.json: what Pillow 13.0.0 makes of each.

    pip install pillow==13.0.0 numpy && python tests/field/make_images.py

The value of a file is [width, height, CRC-32] of `ImageOps.exif_transpose(Image.open(file)).convert("RGB")`: `default` as Pillow
does it by default, `truncated` under LOAD_TRUNCATED_IMAGES; null: it is refused. `levels` are the levels themselves, where decoders
may differ by `within`. `refused` is the format that a refusal has to name. Where `default` is not Pillow's, the comment here says why.
"""

import base64
import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

FILES, EXPECTED = {}, {}
HERE = Path(__file__).parent


def scene(width=24, height=16):
    y, x = np.mgrid[0:height, 0:width]
    levels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 220 - (x + y) * 5], 2)
    levels[3:9, 8:14] = (240, 40, 5)
    return Image.fromarray(levels.astype(np.uint8))


def read(data, truncated):
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    try:
        image = Image.open(io.BytesIO(data))
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def value(image):
    return None if image is None else [*image.size, zlib.crc32(image.tobytes())]


def add(name, data, default="pillow", truncated="pillow", within=None):
    assert name not in FILES, name
    FILES[name] = data
    found = [read(data, mode) for mode in (False, True)]
    entry = EXPECTED[name] = {
        "default": value(found[0]) if default == "pillow" else default,
        "truncated": value(found[1]) if truncated == "pillow" else truncated,
    }
    if within is not None:
        entry["within"] = within
        entry["levels"] = base64.b64encode(found[0].tobytes()).decode()


def whole(name, data, **options):
    """A file that Pillow has to read, or this script is wrong."""
    add(name, data, **options)
    assert EXPECTED[name]["default"], name


def saved(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


# Orientation.

TYPES = {"byte": 1, "ascii": 2, "short": 3, "long": 4, "rational": 5, "sbyte": 6, "undefined": 7, "sshort": 8,
         "slong": 9, "srational": 10, "float": 11, "double": 12, "ifd": 13, "long8": 16}
CODES = {"byte": "B", "short": "H", "long": "L", "rational": "LL", "sbyte": "b", "undefined": "B", "sshort": "h",
         "slong": "l", "srational": "ll", "float": "f", "double": "d", "ifd": "L", "long8": "Q"}


def packed(order, kind, values):
    if kind == "ascii":
        return b"".join(b"%d" % v for v in values) + b"\0"
    if "rational" in kind:
        return b"".join(struct.pack(order + CODES[kind], v * 3, 3) for v in values)
    return struct.pack(order + CODES[kind] * len(values), *values)


def directory(order, entries, start, big=False):
    """A directory of a TIFF file at `start`; entries are tag, type and values or bytes."""
    inline, count, word = (8, "Q", "Q") if big else (4, "H", "L")
    size = struct.calcsize("=" + count) + len(entries) * (12 + 2 * (inline - 4)) + inline
    body, tail = struct.pack(order + count, len(entries)), b""
    for tag, kind, values in sorted(entries, key=lambda entry: entry[0]):
        data = values if isinstance(values, bytes) else packed(order, kind, values)
        number = len(data) if isinstance(values, bytes) or kind == "ascii" else len(values)
        body += struct.pack(order + "HH" + word, tag, TYPES[kind], number)
        if len(data) <= inline:
            body += data.ljust(inline, b"\0")
        else:
            body += struct.pack(order + word, start + size + len(tail))
            tail += data + b"\0" * (len(data) % 2)
    return body + struct.pack(order + word, 0) + tail


def exif(kind, values, order="<"):
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    return b"Exif\0\0" + head + directory(order, [(271, "ascii", b"Maker\0"), (274, kind, values)], 8)


def tiff(entries, strips, size, order="<", big=False, cut=None):
    """A TIFF of these strips (or tiles, if the entries say so), placed before the directory."""
    head = {("<", False): b"II*\0", (">", False): b"MM\0*", ("<", True): b"II+\0", (">", True): b"MM\0+"}[order, big]
    data, offsets = b"", []
    start = 16 if big else 8
    for strip in strips:
        offsets.append(start + len(data))
        data += strip + b"\0" * (len(strip) % 2)
    tags = {tag for tag, _, _ in entries}
    entries = list(entries)
    for tag, kind, values in [(256, "long", [size[0]]), (257, "long", [size[1]]), (259, "short", [1])]:
        if tag not in tags:
            entries.append((tag, kind, values))
    places, counts = (324, 325) if 322 in tags else (273, 279)
    entries += [(places, "long", offsets), (counts, "long", [len(strip) for strip in strips])]
    if 322 not in tags and 278 not in tags:
        entries.append((278, "long", [size[1]]))
    at = start + len(data)
    ifd = directory(order, entries, at, big)
    return head + (struct.pack(order + "HHQ", 8, 0, at) if big else struct.pack(order + "L", at)) + data + ifd


def tiff_first(entries, strip, size):
    """A TIFF whose one strip is last, so that it can be cut."""
    entries = [*entries, (256, "long", [size[0]]), (257, "long", [size[1]]), (259, "short", [1]), (278, "long", [size[1]])]
    blank = [*entries, (273, "long", [0]), (279, "long", [len(strip)])]
    offset = 8 + len(directory("<", blank, 8))
    return b"II*\0" + struct.pack("<L", 8) + directory("<", [*entries, (273, "long", [offset]), (279, "long", [len(strip)])], 8) + strip


RGB_TAGS = [(258, "short", [8, 8, 8]), (262, "short", [2]), (277, "short", [3])]


def png_chunk(kind, content, wrong=0):
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content) ^ wrong)


def png_chunks(data):
    at, found = 8, []
    while at < len(data):
        length = struct.unpack(">L", data[at:at + 4])[0]
        found.append((data[at + 4:at + 8], data[at + 8:at + 8 + length]))
        at += 12 + length
    return found


def png(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def jpeg_with(data, *segments):
    extra = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content for marker, content in segments)
    return data[:2] + extra + data[2:]


def webp_with(data, exif=None, xmp=None):
    image = Image.open(io.BytesIO(data))
    flags = (8 if exif else 0) | (4 if xmp else 0)
    head = b"VP8X" + struct.pack("<LL", 10, flags) + struct.pack("<L", image.width - 1)[:3] + struct.pack("<L", image.height - 1)[:3]
    body = b"WEBP" + head + data[12:]
    for kind, content in ((b"EXIF", exif), (b"XMP ", xmp)):
        if content:
            body += kind + struct.pack("<L", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<L", len(body)) + body


SMALL = scene(11, 6)
JPEG, PNG, WEBP = saved(SMALL, "JPEG", quality=90), saved(SMALL, "PNG"), saved(SMALL, "WEBP", lossless=True)


def orientations():
    for kind in TYPES:
        for turn in range(1, 9) if kind in ("short", "long") else (6, 7):
            order = "<" if turn % 2 else ">"
            data = exif(kind, [turn], order)
            name = f"exif_{kind}_{turn}"
            whole(f"{name}.jpg", jpeg_with(JPEG, (0xE1, data)))
            chunks = png_chunks(PNG)
            whole(f"{name}.png", png([chunks[0], (b"eXIf", data[6:]), *chunks[1:]]))
            whole(f"{name}.webp", webp_with(WEBP, exif=data[6:]))
            whole(f"{name}.tif", tiff([*RGB_TAGS, (274, kind, [turn])], [SMALL.tobytes()], SMALL.size, order))
    for name, data in {"0": exif("short", [0]), "9": exif("short", [9]), "two": exif("short", [6, 3]), "none": exif("short", []),
                       "twice": b"Exif\0\0" + exif("short", [8])}.items():
        whole(f"exif_short_{name}.webp", webp_with(WEBP, exif=data))
        whole(f"exif_short_{name}.jpg", jpeg_with(JPEG, (0xE1, data)))
    # Pillow reads the image, but its exif_transpose fails; here EXIF data that is none turns nothing.
    upright = value(read(WEBP, False))
    add("exif_junk.webp", webp_with(WEBP, exif=b"Exif\0\0junk"), default=upright, truncated=upright)
    long = exif("short", [6])
    whole("exif_in_two_segments.jpg", jpeg_with(JPEG, (0xE1, long[:30]), (0xE1, b"Exif\0\0" + long[30:])))
    attribute = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    element = b"<x:xmpmeta><tiff:Orientation>%d</tiff:Orientation></x:xmpmeta>"
    no_orientation = b"Exif\0\0II*\0\x08\0\0\0" + directory("<", [(271, "ascii", b"Maker\0")], 8)
    for form, text in (("attribute", attribute), ("element", element)):
        for turn in (0, 1, 5, 6, 8, 9):
            text_of = text % turn
            for also, data in (("", None), ("_exif_1", exif("short", [1])), ("_exif_3", exif("long", [3])), ("_exif_without", no_orientation)):
                if also and turn != 6:
                    continue
                name = f"xmp_{form}_{turn}{also}"
                segments = [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text_of)]
                whole(f"{name}.jpg", jpeg_with(JPEG, *segments, *([(0xE1, data)] if data else [])))
                chunks = png_chunks(PNG)
                itxt = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text_of)
                whole(f"{name}.png", png([chunks[0], itxt, *([(b"eXIf", data[6:])] if data else []), *chunks[1:]]))
                whole(f"{name}.webp", webp_with(WEBP, exif=data and data[6:], xmp=text_of))
                if not data:
                    whole(f"{name}.tif", tiff([*RGB_TAGS, (700, "byte", text_of)], [SMALL.tobytes()], SMALL.size))
    chunks = png_chunks(PNG)
    profile = lambda turn: b"\nexif\n%8d\n%s\n" % (len(exif("short", [turn])), exif("short", [turn]).hex().encode())
    key = b"Raw profile type exif\0"
    forms = {"text": (b"tEXt", key + profile(6)), "packed": (b"zTXt", key + b"\0" + zlib.compress(profile(8))),
             "international": (b"iTXt", key + b"\0\0\0\0" + profile(5)),
             "international_packed": (b"iTXt", key + b"\1\0\0\0" + zlib.compress(profile(3)))}
    for name, chunk in forms.items():
        whole(f"profile_{name}.png", png([chunks[0], chunk, *chunks[1:]]))
        whole(f"profile_{name}_last.png", png([*chunks[:-1], chunk, chunks[-1]]))
    last = (b"eXIf", exif("short", [6])[6:])
    whole("exif_last.png", png([*chunks[:-1], last, chunks[-1]]))
    whole("profile_and_exif.png", png([chunks[0], forms["text"], (b"eXIf", exif("short", [3])[6:]), *chunks[1:]]))
    whole("exif_text.png", png([chunks[0], (b"tEXt", b"exif\0" + exif("short", [6])), *chunks[1:]]))


# JPEG.

def without_cut_segment(data):
    """The file without a marker segment that it ends within."""
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF or data[at + 1] in (0, 1, *range(0xD0, 0xD9)):
            at += 1
        elif data[at + 1] == 0xFF:
            at += 1
        else:
            end = at + 2 + int.from_bytes(data[at + 2:at + 4], "big")
            if at + 4 > len(data) or end > len(data):
                return data[:at]
            at = end
    return data


def cuts(name, data, shares):
    for share in shares:
        cut = data[:int(len(data) * share)]
        # Pillow waits for the rest of a segment and gives a black image; here the scans before it are decoded.
        found = value(read(without_cut_segment(cut), True))
        add(f"{name}_cut_{int(share * 100)}.jpg", cut, default=None, truncated=found)


def bits_of(values):
    """A baseline JPEG's entropy-coded data, stuffed."""
    text = "".join(values)
    text += "1" * (-len(text) % 8)
    data = bytes(int(text[at:at + 8], 2) for at in range(0, len(text), 8))
    return data.replace(b"\xff", b"\xff\0")


def jpeg_of(planes, sampling, size, adobe=None):
    """A baseline JPEG whose blocks each have one level and a slope: `planes` are of each component's own size."""
    across, down = max(h for h, _ in sampling), max(v for _, v in sampling)
    codes = {length: format(length, "04b") for length in range(12)}
    def number(level):
        if level == 0:
            return 0, ""
        length = abs(level).bit_length()
        return length, format(level if level > 0 else level + (1 << length) - 1, f"0{length}b")
    out, before = [], [0] * len(planes)
    for my in range(-(-size[1] // (8 * down))):
        for mx in range(-(-size[0] // (8 * across))):
            for index, (plane, (h, v)) in enumerate(zip(planes, sampling)):
                for by in range(v):
                    for bx in range(h):
                        y, x = (my * v + by) * 8, (mx * h + bx) * 8
                        y, x = min(y, plane.shape[0] - 8), min(x, plane.shape[1] - 8)
                        block = plane[y:y + 8, x:x + 8].astype(float) - 128
                        dc = int(round(block.mean())) ; slope = int(round((block[:, 0].mean() - block[:, 7].mean()) * 0.55))
                        length, bits = number(dc - before[index])
                        before[index] = dc
                        out += [codes[length], bits]
                        length, bits = number(slope)
                        out += [codes[length], bits, codes[0] if length else ""]
    def segment(marker, content):
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content
    # A step of 8 is one level of a block's mean; codes of four bits, none of them all ones.
    table = bytes([0, 0, 0, 12]) + bytes(12)
    frame = struct.pack(">BHHB", 8, size[1], size[0], len(planes))
    scan = bytes([len(planes)])
    for index, (h, v) in enumerate(sampling):
        frame += bytes([index + 1, h << 4 | v, 0])
        scan += bytes([index + 1, 0])
    data = b"\xff\xd8"
    if adobe is not None:
        data += segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe))
    data += segment(0xDB, b"\0" + bytes([8]) * 64) + segment(0xC0, frame)
    data += segment(0xC4, bytes([0x00]) + table + bytes(range(12))) + segment(0xC4, bytes([0x10]) + table + bytes(range(12)))
    return data + segment(0xDA, scan + b"\0\x3f\0") + bits_of(out) + b"\xff\xd9"


def jpegs():
    image = scene(40, 24)
    ink = Image.merge("CMYK", [*(255 - np.asarray(image)).transpose(2, 0, 1).view(), ] and [Image.fromarray(255 - np.asarray(image)[..., c]) for c in range(3)] + [Image.linear_gradient("L").resize(image.size)])
    files = {"rgb": saved(image, "JPEG", quality=90), "rgb_444": saved(image, "JPEG", quality=80, subsampling=0),
             "gray": saved(image.convert("L"), "JPEG", quality=85), "progressive": saved(image, "JPEG", quality=90, progressive=True),
             "restarts": saved(image, "JPEG", quality=90, restart_marker_blocks=2), "cmyk": saved(ink, "JPEG", quality=90)}
    for name, data in files.items():
        whole(f"{name}.jpg", data)
        full = value(read(data, False))
        # Pillow reads files without an end marker or not, by chance: it depends on whether its decoder asks for more bits.
        add(f"{name}_without_end.jpg", data[:-2], default=full, truncated=full)
        add(f"{name}_half_end.jpg", data[:-1], default=full, truncated=full)
        # Where not even the tables are there, there is nothing to read.
        start = data.index(b"\xff\xda") / len(data)
        cuts(name, data, [start + (1 - start) * share for share in (0.1, 0.35, 0.5, 0.7, 0.9)])
    for subsampling in (1, 2):
        whole(f"cmyk_subsampled_{subsampling}.jpg", saved(ink, "JPEG", quality=90, subsampling=subsampling))
    data = saved(ink, "JPEG", quality=90, subsampling=2)
    at = data.index(b"Adobe") + 11
    whole("ycck_subsampled.jpg", data[:at] + b"\2" + data[at + 1:])
    rng = np.random.default_rng(1)
    for size in ((40, 24), (19, 13)):
        def plane(h, v, across, down):
            shape = (-(-size[1] * v // (8 * down)) * 8 + 8, -(-size[0] * h // (8 * across)) * 8 + 8)
            return np.kron(rng.integers(40, 215, (shape[0] // 8, shape[1] // 8)), np.ones((8, 8)))
        layouts = [[(1, 1), (2, 1), (2, 1)], [(1, 1), (2, 2), (2, 2)], [(1, 1), (1, 2), (1, 1)], [(2, 1), (1, 2), (1, 2)], [(1, 1), (1, 1), (2, 2)],
                   [(1, 1), (4, 1), (1, 1)], [(1, 2), (2, 1), (2, 1)], [(2, 2), (2, 1), (1, 2)], [(2, 1), (2, 1), (1, 1)]]
        for layout in layouts:
            for adobe in (None, 0):
                across, down = max(h for h, _ in layout), max(v for _, v in layout)
                planes = [plane(h, v, across, down) for h, v in layout]
                name = "".join(f"{h}{v}" for h, v in layout)
                whole(f"layout_{name}_{size[0]}{'' if adobe is None else '_rgb'}.jpg", jpeg_of(planes, layout, size, adobe))
        for layout in ([(2, 2), (1, 1), (1, 1), (1, 1)], [(2, 2), (1, 1), (1, 1), (2, 2)], [(1, 1), (1, 1), (1, 1), (2, 2)], [(1, 1), (2, 1), (1, 2), (1, 1)], [(2, 1), (1, 1), (1, 1), (1, 1)]):
            for adobe in (0, 2):
                across, down = max(h for h, _ in layout), max(v for _, v in layout)
                planes = [plane(h, v, across, down) for h, v in layout]
                name = "".join(f"{h}{v}" for h, v in layout)
                whole(f"layout_{name}_{size[0]}_{'cmyk' if adobe == 0 else 'ycck'}.jpg", jpeg_of(planes, layout, size, adobe))


# PNG.

def adam7(image):
    levels = np.asarray(image)
    raw = b""
    for left, across, top, down in ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)):
        part = levels[top::down, left::across]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    head = struct.pack(">LLBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    return png([(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])


def pngs():
    image = scene()
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    gray16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 3)
    files = {"rgb": saved(image, "PNG"), "gray": saved(image.convert("L"), "PNG"), "alpha": saved(alpha, "PNG"),
             "gray_alpha": saved(alpha.convert("LA"), "PNG"), "bilevel": saved(image.convert("1"), "PNG"),
             "palette": saved(image.quantize(16), "PNG"), "palette_transparent": saved(image.quantize(7), "PNG", transparency=2),
             "gray16": saved(gray16, "PNG"), "interlaced": adam7(image)}
    for name, data in files.items():
        whole(f"{name}.png", data)
        chunks = png_chunks(data)
        at = next(index for index, (kind, _) in enumerate(chunks) if kind == b"IDAT")
        for label, changed in {"without_end": data[:-12], "half_end": data[:-6], "end_damaged": data[:-1] + b"\0",
                               "rows_damaged": png([*chunks[:at], (b"IDAT", chunks[at][1], 1), *chunks[at + 1:]]),
                               "comment_damaged": png([*chunks[:-1], (b"tEXt", b"Comment\0text", 1), chunks[-1]]),
                               "trailing": data + b"garbage",
                               "split": png([*chunks[:at], (b"IDAT", chunks[at][1][:9]), (b"IDAT", b""), (b"IDAT", chunks[at][1][9:]), *chunks[at + 1:]])}.items():
            whole(f"{name}_{label}.png", changed)
        start = data.index(b"IDAT") + 4
        for share in (0.2, 0.5, 0.8):
            cut = data[:start + int(len(chunks[at][1]) * share)]
            add(f"{name}_cut_{int(share * 100)}.png", cut)
            assert EXPECTED[f"{name}_cut_{int(share * 100)}.png"]["default"] is None


# GIF.

def gif_screen(data, width, height):
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def gifs():
    image = scene().quantize(32)
    files = {"plain": saved(image, "GIF", interlace=0), "interlaced": saved(image, "GIF", interlace=1),
             "transparent": saved(image, "GIF", transparency=4, interlace=0), "gray": saved(scene().convert("L"), "GIF", interlace=0)}
    for name, data in files.items():
        whole(f"{name}.gif", data)
        whole(f"{name}_screen_0.gif", gif_screen(data, 0, 0))
        whole(f"{name}_screen_0_wide.gif", gif_screen(data, 0, 16))
        whole(f"{name}_screen_0_high.gif", gif_screen(data, 24, 0))
        whole(f"{name}_without_end.gif", data[:-1])
        whole(f"{name}_trailing.gif", data + b"garbage")
        at = data.index(b"\x2c\0\0\0\0")
        for share in (0.3, 0.6, 0.9):
            add(f"{name}_cut_{int(share * 100)}.gif", data[:at + 10 + int((len(data) - at - 10) * share)])
    frames = saved(image, "GIF", save_all=True, append_images=[scene().rotate(90).quantize(8)])
    whole("frames.gif", frames)
    whole("frames_screen_0.gif", gif_screen(frames, 0, 0))


# BMP.

def rows_of(levels, bits):
    """Rows of a bitmap from the bottom up, padded to four bytes."""
    rows = []
    for row in levels[::-1]:
        if bits < 8:
            text = "".join(format(int(level), f"0{bits}b") for level in row)
            text += "0" * (-len(text) % 8)
            data = bytes(int(text[at:at + 8], 2) for at in range(0, len(text), 8))
        else:
            data = b"".join(int(level).to_bytes(bits // 8, "little") for level in row)
        rows.append(data + b"\0" * (-len(data) % 4))
    return rows


def bmp(size, bits, rows, palette=b"", packing=0, masks=b"", header=40, top_down=False, offset=None, colors=0):
    if top_down:
        rows = rows[::-1]
    pixels = b"".join(rows)
    if header == 12:
        info = struct.pack("<LHHHH", 12, *size, 1, bits)
    else:
        height = -size[1] if top_down else size[1]
        info = struct.pack("<LlLHHLLLLLL", header, size[0], height & 0xFFFFFFFF, 1, bits, packing, len(pixels), 2835, 2835, colors, 0)
        if header > 40:
            info += masks.ljust(header - 40, b"\0")
            masks = b""
    start = 14 + len(info) + len(masks) + len(palette)
    return b"BM" + struct.pack("<LHHL", start + len(pixels), 0, 0, start if offset is None else offset) + info + masks + palette + pixels


def bmps():
    size = (21, 13)
    image = scene(*size)
    rgb = np.asarray(image).astype(int)
    color = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    def table(count, width=4):
        colors = [((i * 37) % 256, (i * 91) % 256, 255 - i * (255 // count)) for i in range(count)]
        return b"".join(bytes(c) + b"\0" * (width - 3) for c in colors)
    index = lambda count: (rgb.sum(2) * 7 // 5) % count
    files = {}
    for bits in (1, 4, 8):
        count = 1 << bits
        rows = rows_of(index(count), bits)
        files[f"palette_{bits}"] = bmp(size, bits, rows, table(count))
        files[f"palette_{bits}_top_down"] = bmp(size, bits, rows, table(count), top_down=True)
        files[f"palette_{bits}_core"] = bmp(size, bits, rows, table(count, 3), header=12)
        files[f"palette_{bits}_offset_0"] = bmp(size, bits, rows, table(count), offset=0)
        gray = [i * 255 // (count - 1) for i in range(count)]
        files[f"gray_{bits}"] = bmp(size, bits, rows, b"".join(bytes([g, g, g, 0]) for g in gray))
    few = rows_of(index(5), 8)
    files["palette_8_few"] = bmp(size, 8, few, table(5), colors=5)
    fifteen = (rgb[..., 0] >> 3) << 10 | (rgb[..., 1] >> 3) << 5 | rgb[..., 2] >> 3
    sixteen = (rgb[..., 0] >> 3) << 11 | (rgb[..., 1] >> 2) << 5 | rgb[..., 2] >> 3
    mask = lambda *masks: struct.pack(f"<{len(masks)}L", *masks)
    files["rgb_555"] = bmp(size, 16, rows_of(fifteen, 16))
    files["rgb_555_masks"] = bmp(size, 16, rows_of(fifteen, 16), packing=3, masks=mask(0x7C00, 0x3E0, 0x1F))
    files["rgb_565"] = bmp(size, 16, rows_of(sixteen, 16), packing=3, masks=mask(0xF800, 0x7E0, 0x1F))
    files["rgb_24"] = saved(image, "BMP")
    files["rgb_24_top_down"] = bmp(size, 24, rows_of(color, 24), top_down=True)
    files["rgb_24_core"] = bmp(size, 24, rows_of(color, 24), header=12)
    files["rgb_24_offset_0"] = bmp(size, 24, rows_of(color, 24), offset=0)
    files["rgb_24_v5"] = bmp(size, 24, rows_of(color, 24), header=124)
    alpha = np.arange(size[0] * size[1]).reshape(color.shape) % 256
    with_alpha = alpha << 24 | color
    files["rgb_32"] = bmp(size, 32, rows_of(with_alpha, 32))
    files["rgb_32_v4_no_masks"] = bmp(size, 32, rows_of(with_alpha, 32), header=108)
    files["rgb_32_masks"] = bmp(size, 32, rows_of(with_alpha, 32), packing=3, masks=mask(0xFF0000, 0xFF00, 0xFF))
    files["rgba_32_v4"] = bmp(size, 32, rows_of(with_alpha, 32), packing=3, header=108, masks=mask(0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    files["rgba_32_v3"] = bmp(size, 32, rows_of(with_alpha, 32), packing=3, header=56, masks=mask(0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    swapped = alpha << 24 | rgb[..., 2] << 16 | rgb[..., 1] << 8 | rgb[..., 0]
    files["rgba_32_swapped"] = bmp(size, 32, rows_of(swapped, 32), packing=3, header=124, masks=mask(0xFF, 0xFF00, 0xFF0000, 0xFF000000))
    files["rgb_32_high"] = bmp(size, 32, rows_of(color << 8 | alpha, 32), packing=3, masks=mask(0xFF000000, 0xFF0000, 0xFF00))
    runs = b"".join(b"\x08\x03\x05\x07" + bytes([0, 6, 1, 2, 3, 4, 5, 6]) + bytes([2, row]) + b"\0\0" for row in range(13))
    files["rle_8"] = bmp(size, 8, [runs + b"\0\1"], table(256), packing=1)
    files["rle_8_delta"] = bmp(size, 8, [b"\x15\x02" + b"\0\0" + b"\0\2\x04\x03" + b"\x05\x09\0\0" + b"\x15\x07\0\0" * 8 + b"\0\1"], table(256), packing=1)
    four = b"".join(b"\x09\x1e\x05\x72" + bytes([0, 6, 0x12, 0x34, 0x56, 0]) + b"\x01\x30" + b"\0\0" for row in range(13))
    files["rle_4"] = bmp(size, 4, [four + b"\0\1"], table(16), packing=2)
    for name, data in files.items():
        whole(f"{name}.bmp", data)
        if not name.startswith("rle") and "offset_0" not in name:
            start = struct.unpack("<L", data[10:14])[0]
            for share in (0.0, 0.4, 0.85):
                add(f"{name}_cut_{int(share * 100)}.bmp", data[:start + int((len(data) - start) * share)])
                assert EXPECTED[f"{name}_cut_{int(share * 100)}.bmp"]["default"] is None, name
    whole("last_padding_cut.bmp", bmp((21, 13), 24, rows_of(color, 24))[:-1])


# TIFF.

def tiffs():
    size = (21, 13)
    image = scene(*size)
    rgb = np.asarray(image)
    gray = np.asarray(image.convert("L"))
    def rows(levels, bits):
        return b"".join(row.rstrip(b"") for row in (bytes(int("".join(format(int(level), f"0{bits}b") for level in line).ljust(-(-len(line) * bits // 8) * 8, "0")[at:at + 8], 2) for at in range(0, -(-len(line) * bits // 8) * 8, 8)) for line in levels))
    def plain(name, tags, strips, **options):
        whole(f"{name}.tif", tiff(tags, strips, size, **options))
    for bits in (1, 2, 4, 8):
        levels = gray >> (8 - bits)
        for photometric in (0, 1):
            plain(f"gray_{bits}_{photometric}", [(258, "short", [bits]), (262, "short", [photometric])], [rows(levels, bits)])
        if bits > 1:
            table = [(i * 7919) % 65536 for i in range(3 << bits)]
            plain(f"palette_{bits}", [(258, "short", [bits]), (262, "short", [3]), (320, "short", table)], [rows(levels, bits)])
    plain("palette_8_big_endian", [(258, "short", [8]), (262, "short", [3]), (320, "short", [(i * 7919) % 65536 for i in range(768)])], [gray.tobytes()], order=">")
    for order in "<>":
        wide = (gray.astype(int) * 2).astype(order + "u2")
        plain(f"gray_16_{'II' if order == '<' else 'MM'}", [(258, "short", [16]), (262, "short", [1])], [wide.tobytes()], order=order)
        wide = (rgb.astype(int) * 257).astype(order + "u2")
        plain(f"rgb_16_{'II' if order == '<' else 'MM'}", [(258, "short", [16] * 3), (262, "short", [2]), (277, "short", [3])], [wide.tobytes()], order=order)
        plain(f"rgb_{'II' if order == '<' else 'MM'}", RGB_TAGS, [rgb.tobytes()], order=order)
        # Pillow takes a BigTIFF for one in little-endian order only.
        same = value(image)
        add(f"rgb_big_{'II' if order == '<' else 'MM'}.tif", tiff(RGB_TAGS, [rgb.tobytes()], size, order, True), default=same, truncated=same)
    alpha = (np.arange(gray.size).reshape(gray.shape) % 256).astype(np.uint8)
    four = np.dstack([rgb, alpha])
    for extra in ([0], [1], [2], None):
        tags = [(258, "short", [8] * 4), (262, "short", [2]), (277, "short", [4])] + ([(338, "short", extra)] if extra else [])
        levels = four if extra != [1] else np.dstack([rgb.astype(int) * alpha[..., None] // 255, alpha]).astype(np.uint8)
        plain(f"rgba_{extra[0] if extra else 'none'}", tags, [levels.tobytes()])
    two = np.dstack([gray, alpha])
    for extra in (0, 2):
        plain(f"gray_alpha_{extra}", [(258, "short", [8] * 2), (262, "short", [1]), (277, "short", [2]), (338, "short", [extra])], [two.tobytes()])
    ink = np.dstack([255 - rgb, alpha // 2])
    plain("cmyk", [(258, "short", [8] * 4), (262, "short", [5]), (277, "short", [4])], [ink.tobytes()])
    plain("cmyk_16", [(258, "short", [16] * 4), (262, "short", [5]), (277, "short", [4])], [(ink.astype(int) * 257).astype("<u2").tobytes()])
    plain("planar", [*RGB_TAGS, (284, "short", [2])], [rgb[..., c].tobytes() for c in range(3)])
    plain("strips", [*RGB_TAGS, (278, "short", [5])], [rgb[at:at + 5].tobytes() for at in range(0, 13, 5)])
    padded = np.zeros((16, 32, 3), np.uint8)
    padded[:13, :21] = rgb
    plain("tiles", [*RGB_TAGS, (322, "short", [16]), (323, "short", [16])], [padded[:, at:at + 16].tobytes() for at in (0, 16)])
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"):
        whole(f"{compression}.tif", saved(image, "TIFF", compression=compression))
        whole(f"{compression}_gray.tif", saved(image.convert("L"), "TIFF", compression=compression))
        whole(f"{compression}_palette.tif", saved(image.quantize(16), "TIFF", compression=compression))
        whole(f"{compression}_bilevel.tif", saved(image.convert("1"), "TIFF", compression=compression))
    whole("predictor.tif", saved(image, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}))
    whole("group4.tif", saved(image.convert("1"), "TIFF", compression="group4"))
    whole("pages.tif", saved(image, "TIFF", save_all=True, append_images=[image.rotate(180)]))
    # libtiff decodes with libjpeg, the crate with another decoder.
    large = scene(40, 24)
    whole("jpeg_gray.tif", saved(large.convert("L"), "TIFF", compression="jpeg"), within=4)
    whole("jpeg_rgb.tif", saved(large, "TIFF", compression="jpeg"), within=4)
    for name, tags, strip in (("rgb", RGB_TAGS, rgb.tobytes()), ("gray", [(258, "short", [8]), (262, "short", [1])], gray.tobytes())):
        data = tiff_first(tags, strip, size)
        whole(f"{name}_last.tif", data)
        for share in (0.1, 0.5, 0.9):
            add(f"{name}_last_cut_{int(share * 100)}.tif", data[:len(data) - len(strip) + int(len(strip) * share)])
            assert EXPECTED[f"{name}_last_cut_{int(share * 100)}.tif"]["default"] is None


# What is refused by name.

def refused():
    image = scene()
    box = lambda brand, *others: struct.pack(">L", 16 + 4 * len(others)) + b"ftyp" + brand + b"\0\0\0\0" + b"".join(others)
    files = {"JPEG 2000": [saved(image, "JPEG2000"), saved(image, "JPEG2000", no_jp2=True)],
             "JPEG XL": [b"\xff\x0a" + bytes(20), b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"jxl ")],
             "AVIF": [saved(image, "AVIF"), box(b"mif1", b"miaf", b"avif")], "HEIC": [box(b"heic", b"mif1"), box(b"mif1", b"heic")], "HEIF": [box(b"mif1", b"miaf")],
             "MP4": [box(b"isom", b"mp41")], "PSD": [b"8BPS\0\1" + bytes(40)], "SVG": [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<?xml version='1.0'?><!-- a --><svg/>"],
             "ICO": [saved(image, "ICO", sizes=[(16, 16)])], "PNM": [saved(image, "PPM")], "PDF": [b"%PDF-1.7\n"], "QOI": [b"qoif" + bytes(20)],
             "DDS": [b"DDS " + bytes(124)], "WebM": [b"\x1a\x45\xdf\xa3" + bytes(20)]}
    for name, contents in files.items():
        for index, data in enumerate(contents):
            # Every one is called .jpg: what counts is the content.
            file = f"refused_{name.replace(' ', '_')}_{index}.jpg"
            FILES[file], EXPECTED[file] = data[:400], {"refused": name}


for make in (orientations, jpegs, pngs, gifs, bmps, tiffs, refused):
    make()
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
    # By their endings, so that what is alike lies close together.
    for name in sorted(FILES, key=lambda name: (name.rsplit(".", 1)[1], name)):
        about = tarfile.TarInfo(name)
        about.size = len(FILES[name])
        tar.addfile(about, io.BytesIO(FILES[name]))
(HERE / "images.tar.gz").write_bytes(gzip.compress(archive.getvalue(), 9, mtime=0))
lines = [f"{json.dumps(name)}: {json.dumps(EXPECTED[name])}" for name in sorted(EXPECTED)]
(HERE / "images.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
print(len(FILES), "files")
