#!/usr/bin/env python3
"""Makes tests/field/ratings/: small ratings tables as pandas and pyarrow write them, and in expected.json what these read from each.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install pandas==3.1.1 pyarrow==26.0.1
    /tmp/venv/bin/python tests/field/make_ratings.py
"""

import datetime
import decimal
import json
import shutil
import uuid
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent / "ratings"
ROWS = 12


def frame(first=0, count=ROWS):
    rows = range(first, first + count)
    ratings = [((row * 7) % 13) / 4 for row in rows]
    return pd.DataFrame({"id": [f"i{row:02}" for row in rows], "rating": ratings, "caption": [f"cap {row}" for row in rows]})


def read(name, **how):
    """Ids and ratings by pandas."""
    path = FOLDER / name
    table = pq.read_table(path).to_pandas() if how.pop("parquet", True) else pd.read_csv(path, **how)
    return [[str(row["id"]), float(row["rating"])] for _, row in table.iterrows()]


def write(name, table, **how):
    pq.write_table(table, FOLDER / name, **how)


def codecs():
    found = {}
    for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd"):
        name = f"codec_{codec}.parquet"
        write(name, pa.Table.from_pandas(frame(), preserve_index=False), compression=codec)
        found[name] = read(name)
    return found


# A further column of each kind and whether it can be carried as text.
def carried():
    moments = [datetime.datetime(2024, 2, 29, 12, 34, 56, 789_000), None, datetime.datetime(1969, 12, 31, 23, 59, 59)]
    numbers = [decimal.Decimal("1.50"), None, decimal.Decimal("-12.34")]
    columns = {
        "micros": pa.array(moments, pa.timestamp("us")),
        "nanos_utc": pa.array([1_709_210_096_789_012_345, None, -1], pa.timestamp("ns", tz="UTC")),
        "millis": pa.array(moments, pa.timestamp("ms")),
        "day": pa.array([datetime.date(2024, 2, 29), None, datetime.date(1900, 3, 1)], pa.date32()),
        "clock": pa.array([datetime.time(12, 34, 56, 1), None, datetime.time(0, 0)], pa.time64("us")),
        "price": pa.array(numbers, pa.decimal128(10, 2)),
        "small_price": pa.array(numbers, pa.decimal128(9, 2)),
        "nothing": pa.array([None, None, None], pa.null()),
        "flag": pa.array([True, None, False]),
        "count": pa.array([2**63, None, 0], pa.uint64()),
        "half": pa.array([0.5, None, -2.25], pa.float16()),
        "text_bytes": pa.array([b"plain", None, "größe".encode()], pa.binary()),
    }
    other = {
        "list": pa.array([[0.1, 0.2], None, []], pa.list_(pa.float64())),
        "image": pa.array([{"bytes": b"\x89PNG", "path": "a.png"}, None, {"bytes": b"", "path": ""}]),
        "bytes": pa.array([b"\x89PNG", None, b""], pa.binary()),
        "pairs": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    }
    start = {"id": pa.array(["i0", "i1", "i2"]), "rating": pa.array([2.0, 3.0, 1.0])}
    # The unreadable ones stand between the others.
    mixed = {}
    for (name, column), odd in zip(columns.items(), [*other.items()] + [None] * len(columns)):
        mixed[name] = column
        if odd:
            mixed[odd[0]] = odd[1]
    write("carried.parquet", pa.table({**start, **mixed}), use_deprecated_int96_timestamps=False)
    write("int96.parquet", pa.table({**start, "micros": columns["micros"]}), use_deprecated_int96_timestamps=True)

    def text(name, value):
        if value is None:
            return ""
        if name == "nanos_utc":
            return str(pd.Timestamp(value.value, unit="ns", tz="UTC"))
        if isinstance(value, datetime.datetime):
            return str(pd.Timestamp(value))
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, bytes):
            return value.decode()
        return str(value)

    rows = {name: [text(name, value.as_py()) for value in column] for name, column in columns.items()}
    return {"carried.parquet": rows, "int96.parquet": {"micros": rows["micros"]}}, sorted(other)


def parts():
    folder = FOLDER / "parts"
    folder.mkdir()
    for part in range(3):
        table = pa.Table.from_pandas(frame(part * 4, 4), preserve_index=False)
        pq.write_table(table, folder / f"part-{part:05}-{uuid.UUID(int=part)}.c000.snappy.parquet", row_group_size=3)
    # What Spark and others leave beside them.
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / "_metadata").write_bytes(b"PAR1")
    (folder / ".part-00000.crc").write_bytes(b"crc")
    found = {"parts": [[str(row["id"]), float(row["rating"])] for _, row in frame().iterrows()]}

    other = FOLDER / "other_columns"
    other.mkdir()
    write("other_columns/part-0.parquet", pa.Table.from_pandas(frame(0, 2), preserve_index=False))
    write("other_columns/part-1.parquet", pa.Table.from_pandas(frame(2, 2).drop(columns="caption"), preserve_index=False))
    other = FOLDER / "other_kinds"
    other.mkdir()
    write("other_kinds/a.parquet", pa.Table.from_pandas(frame(0, 2).assign(n=1), preserve_index=False))
    write("other_kinds/b.parquet", pa.Table.from_pandas(frame(2, 2).assign(n="one"), preserve_index=False))
    return found


def missing():
    """Tables with ratings that are missing: the rows that have one."""
    table = frame()
    table.loc[[1, 5, 11], "rating"] = float("nan")
    table.to_csv(FOLDER / "nan.csv", index=False)
    table.to_csv(FOLDER / "nan_words.csv", index=False, na_rep="NaN")
    write("null.parquet", pa.Table.from_pandas(table, preserve_index=False), row_group_size=5)
    numbers = pa.table({"id": table["id"], "rating": pa.array(list(table["rating"]), from_pandas=False)})
    write("nan.parquet", numbers)
    kept = table.dropna(subset=["rating"])
    rows = [[str(row["id"]), float(row["rating"])] for _, row in kept.iterrows()]
    return {name: rows for name in ("nan.csv", "nan_words.csv", "null.parquet", "nan.parquet")}


def text():
    found = {}
    frame().to_csv(FOLDER / "tab.tsv", index=False, sep="\t")
    found["tab.tsv"] = read("tab.tsv", parquet=False, sep="\t")
    frame().to_csv(FOLDER / "semicolon.csv", index=False, sep=";")
    found["semicolon.csv"] = read("semicolon.csv", parquet=False, sep=";")
    frame().rename(columns={"id": "key"}).to_csv(FOLDER / "key.csv")
    found["key.csv"] = [[row["id"], row["rating"]] for _, row in frame().iterrows()]
    # Rows that Python's csv module, in its strict mode, refuses.
    for name, line in [
        ("unclosed.csv", 'a,1,"unclosed\nb,2,"and here\nc,3,z\n'),
        ("stray.csv", 'a,1,"x "q" y"\nb,2,fine\nc,3,z\n'),
    ]:
        (FOLDER / name).write_text("id,rating,caption\n" + line)
    return found


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    kept, left_out = carried()
    expected = {
        "tables": {**codecs(), **parts(), **text()},
        "carried": kept,
        "left_out": left_out,
        "missing": missing(),
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


main()
