#!/usr/bin/env python3
"""Makes tests/field/tables/: small corpora as people have them, and in expected.json what Python's csv module reads from each.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install pandas==3.1.1 pyarrow==26.0.1 openpyxl==3.1.5
    /tmp/venv/bin/python tests/field/make_tables.py
"""

import bz2
import csv
import io
import json
import lzma
import shutil
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent / "tables"
CAPTIONS = ["a cat", 'a "black" dog, asleep', "two\nlines", "größe; tab\there", "", "комната", "5\" nail", " spaces "]
ROWS = [(f"i{row}", f"p{row}.png", caption) for row, caption in enumerate(CAPTIONS)]


def frame(names=("id", "image_save_path", "caption")):
    return pd.DataFrame(ROWS, columns=list(names))


def write(name, text, encoding="utf-8"):
    (FOLDER / name).write_bytes(text.encode(encoding))


def read(name, separator=",", skip_lines=0, columns=(0, 1, 2)):
    """The id, the image's path and the caption of each row, by the csv module; `columns` says where they stand."""
    text = (FOLDER / name).read_bytes().decode("utf-8-sig")
    for _ in range(skip_lines):
        text = text.split("\n", 1)[1]
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    return [[row[column] for column in columns] for row in rows[1:] if row]


def accepted():
    """Tables that are read, by name: the rows, and what is said of the columns."""
    found = {}

    def add(name, said=(), **how):
        found[name] = {"rows": read(name, **how), "said": list(said)}

    by_path = "is its id"
    frame().to_csv(FOLDER / "plain.csv", index=False)
    add("plain.csv")
    frame().drop(columns="id").to_csv(FOLDER / "no_id.csv", index=False)
    add("no_id.csv", [by_path], columns=(0, 0, 1))
    hugging_face = frame(("idx", "file_name", "text"))
    hugging_face.to_csv(FOLDER / "hf_names.csv", index=False)
    add("hf_names.csv", ["column `file_name`", "column `text`", by_path], columns=(1, 1, 2))
    laion = frame(("key", "image_path", "TEXT"))
    laion.insert(1, "url", "https://example.com/x.png")
    laion.to_csv(FOLDER / "laion_names.csv", index=False)
    add("laion_names.csv", ["column `key`", "column `image_path`", "column `TEXT`"], columns=(0, 2, 3))
    frame(("uid", "image", "prompt")).assign(ID2=1).to_csv(FOLDER / "uid_prompt.csv", index=False)
    add("uid_prompt.csv", ["column `uid`", "column `image`", "column `prompt`"])
    frame().rename(columns={"caption": "text"}).assign(prompt="other").to_csv(FOLDER / "two_captions.csv", index=False)
    add("two_captions.csv", ["`text` (not `prompt`)"])
    frame().to_csv(FOLDER / "pandas_index.csv")
    add("pandas_index.csv", columns=(1, 2, 3))
    # As pandas writes what it has read from the one above.
    pd.read_csv(FOLDER / "pandas_index.csv", keep_default_na=False).to_csv(FOLDER / "pandas_unnamed.csv", index=False)
    add("pandas_unnamed.csv", columns=(1, 2, 3))
    frame().to_csv(FOLDER / "semicolon.csv", index=False, sep=";")
    add("semicolon.csv", separator=";")
    frame().to_csv(FOLDER / "tab.tsv", index=False, sep="\t")
    add("tab.tsv", separator="\t")
    frame().to_csv(FOLDER / "tabs_named_csv.csv", index=False, sep="\t")
    add("tabs_named_csv.csv", separator="\t")
    frame().to_csv(FOLDER / "commas_named.tsv", index=False)
    add("commas_named.tsv")
    # Excel: a line that names the separator, a byte order mark, two-byte line breaks.
    text = frame().to_csv(index=False, sep=";", lineterminator="\r\n")
    write("excel_sep.csv", "\ufeffsep=;\r\n" + text)
    add("excel_sep.csv", separator=";", skip_lines=1)
    write("excel_sep_comma.csv", "sep=,\n" + frame().to_csv(index=False))
    add("excel_sep_comma.csv", skip_lines=1)
    # Excel: columns that were used once.
    for count in (1, 3):
        name = f"trailing_{count}.csv"
        wide = frame()
        for column in range(count):
            wide[f"unnamed{column}"] = ""
        header, rest = wide.to_csv(index=False).split("\n", 1)
        write(name, header.split(",unnamed", 1)[0] + "," * count + "\n" + rest)
        add(name)
    header, rest = wide.to_csv(index=False).split("\n", 1)
    write("trailing_rows.csv", "id,image_save_path,caption\n" + rest)
    add("trailing_rows.csv")
    header, rest = frame().to_csv(index=False).split("\n", 1)
    write("trailing_header.csv", header + ",,\n" + rest)
    add("trailing_header.csv")
    return found


def refused():
    """Files that are no tables, by name: the word that names each."""
    plain = (FOLDER / "plain.csv").read_bytes()
    kinds = {
        "table.csv.bz2": ("bzip2", bz2.compress(plain)),
        "table.csv.xz": ("xz", lzma.compress(plain)),
        "utf16.csv": ("UTF-16", plain.decode().encode("utf-16")),
        "utf16_no_mark.csv": ("UTF-16", plain.decode().encode("utf-16-le")),
        "array.json": ("JSON", b'[\n  {"id": "1"}\n]\n'),
        "page.csv": ("web page", b"<!DOCTYPE html>\n<html><body>404</body></html>\n"),
        "pointer.csv": ("Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        "pickle.csv": ("pickle", None),
        "sheet.xlsx": ("Excel", None),
        "table.arrow": ("Arrow", None),
    }
    for name, (_, content) in kinds.items():
        if content is not None:
            (FOLDER / name).write_bytes(content)
    frame().head(2).to_pickle(FOLDER / "pickle.csv")
    frame().head(2).to_excel(FOLDER / "sheet.xlsx", index=False)
    frame().head(2).to_feather(FOLDER / "table.arrow", compression="uncompressed")
    return {name: word for name, (word, _) in kinds.items()}


# Lines that no row can be, each with what is wrong; they are put between good ones.
BAD = [
    (b"bad0,x.png", "found 2"),
    (b"bad1,x.png,a,b", "found 4"),
    (b'bad2,x.png,"a"b', "unbalanced quotes"),
    (b'bad3,x.png,"never closed', "unbalanced quotes"),
    (b"bad4,x.png,caf\xe9", "not UTF-8"),
    (b",x.png,no id", "is empty"),
]


def bad_rows():
    """A table with a bad line before every good row; its good rows are those of the plain one."""
    good = [",".join(row).encode() for row in ROWS if row[2].isascii() and not set(row[2]) & set('",\n')]
    lines, bad = [b"id,image_save_path,caption"], []
    for number, (line, word) in enumerate(BAD):
        bad.append([len(lines) + 1, word])
        lines += [line, good[number % len(good)].replace(b"i", b"g%d-" % number, 1)]
    (FOLDER / "bad_rows.csv").write_bytes(b"\n".join(lines) + b"\n")
    rows = [line.decode().split(",") for line in lines[2::2]]
    return {"rows": rows, "bad": bad}


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    expected = {"accepted": accepted(), "refused": refused(), "bad_rows": bad_rows()}
    (FOLDER / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


main()
