#!/usr/bin/env python3
"""Makes the files in weights/ beside this script, as people have them, and weights/expected.json: what PyTorch reads of them
and of those in weights/reported/, which were not made here.

    pip install torch==2.6.0 numpy transformers==4.49.0 sentencepiece protobuf
    python3 tests/field/make_weights.py

Those that are kept were made with PyTorch 2.6.0, transformers 4.49.0 and sentencepiece 0.2.3.
"""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import json
import pathlib
import random
import re
import shutil
import sys
import tempfile
import types
import uuid
from collections import OrderedDict

import numpy
import torch

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "weights"
sys.path.insert(0, str(HERE.parent / "fixtures_made"))
from make import KINDS  # noqa: E402


class Color(enum.Enum):
    RED = 1


class Flag(enum.IntFlag):
    A = 1
    B = 2


Point = collections.namedtuple("Point", "x y")


class Settings:
    def __init__(self):
        self.lr = 1e-3
        self.inner = {"a": [1, 2, 3]}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2, bias=False)


def state(prefix: str = "") -> OrderedDict:
    return OrderedDict((prefix + name, value.detach().clone()) for name, value in Net().state_dict().items())


def signs() -> dict:
    # Of one storage only tensors of one kind can be saved.
    def c() -> torch.Tensor:
        return torch.randn(2, 3, dtype=torch.complex64)

    ints = torch.tensor([[0, 1, -2], [3, 127, -128]])
    return {
        "imag_of_conj": torch.conj(c()).imag,
        "imag_of_conj_turned": torch.conj(c()).imag.T,
        "real_of_conj": torch.conj(c()).real,
        "conj": torch.conj(c()),
        "conj_turned": torch.conj(c()).T,
        "neg_conj": torch._neg_view(torch.conj(c())),
        "neg_complex": torch._neg_view(c()),
        "twice": torch.conj(torch.conj(c())),
        "adjoint": c().mH,
        **{f"neg_{KINDS[kind]}": torch._neg_view(torch.randn(2, 3).to(kind)) for kind in
           (torch.float32, torch.float64, torch.float16, torch.bfloat16)},
        **{f"neg_{KINDS[kind]}": torch._neg_view(ints.to(kind)) for kind in
           (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)},
        "neg_odd": torch._neg_view(torch.tensor([0.0, -0.0, float("inf"), float("nan")])),
        "parameter": torch.nn.Parameter(torch._neg_view(torch.randn(3))),
    }


def objects() -> dict:
    """What is no tensor, beside tensors: each under its own name."""
    dd = collections.defaultdict(list)
    dd["tensor"] = torch.randn(2)
    return {
        "model": state(),
        "args": argparse.Namespace(lr=1e-3, path="x", inner=argparse.Namespace(tensor_like=[1, 2])),
        "numpy_scalar": numpy.float64(1.5),
        "numpy_int": numpy.int64(3),
        "numpy_array": numpy.arange(6.0).reshape(2, 3),
        "numpy_dtype": numpy.dtype("float32"),
        "slice": slice(1, 5, 2),
        "range": range(0, 3),
        "complex": complex(1, 2),
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"ab"),
        "set": {1, 2},
        "counter": collections.Counter("abca"),
        "default": dd,
        "deque": collections.deque([torch.randn(1), 2], maxlen=4),
        "chain": collections.ChainMap({"a": 1}),
        "path": pathlib.PurePosixPath("/a/b"),
        "datetime": datetime.datetime(2025, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
        "timedelta": datetime.timedelta(seconds=5),
        "enum": Color.RED,
        "flag": Flag.A | Flag.B,
        "enum_key": {Color.RED: torch.ones(1)},
        "point": Point(1, 2),
        "simple": types.SimpleNamespace(a=1),
        "settings": Settings(),
        "class": Settings,
        "function": torch.nn.functional.relu,
        "partial": functools.partial(int, base=2),
        "pattern": re.compile("a+"),
        "uuid": uuid.UUID(int=5),
        "decimal": decimal.Decimal("1.5"),
        "fraction": fractions.Fraction(1, 3),
        "random": random.Random(0).getrandbits(80),
        "size": torch.Size([2, 3]),
        "kind": torch.float16,
        "device": torch.device("cpu"),
        "layout": torch.strided,
        "generator": torch.Generator().get_state()[:16].clone(),
        "after": torch.arange(3),
    }


def unread() -> dict:
    """Tensors of forms that are not read, beside some that are."""
    return {
        "model": state(),
        "sparse": torch.eye(2).to_sparse(),
        "wide": torch.randn(2, dtype=torch.complex128),
        "quantized": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        "after": torch.arange(3),
    }


def wrapped() -> dict:
    net = state()
    return {
        "plain": net,
        "compiled": OrderedDict(("_orig_mod." + name, value) for name, value in net.items()),
        "parallel_compiled": OrderedDict(("module._orig_mod." + name, value) for name, value in net.items()),
        "compiled_parallel": OrderedDict(("_orig_mod.module." + name, value) for name, value in net.items()),
        "compiled_part": OrderedDict((name.replace("a.", "a._orig_mod."), value) for name, value in net.items()),
        "sharded": OrderedDict(("_fsdp_wrapped_module." + name, value) for name, value in net.items()),
        "state_dict": {"state_dict": net, "epoch": 3, "optimizer_states": [{"x": torch.ones(1)}]},
        "model": {"model": net, "ema": state(), "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
        "module": {"module": OrderedDict(("module." + name, value) for name, value in net.items()), "iteration": 3},
        "ema": {"ema": net, "step": torch.tensor(3)},
        "nested": {"state_dict": {"model": OrderedDict(("_orig_mod." + name, value) for name, value in net.items())}},
        "lightning": {"state_dict": OrderedDict(("model." + name, value) for name, value in net.items()),
                      "pytorch-lightning_version": "2.0", "hyper_parameters": argparse.Namespace(lr=1)},
    }


def contents(tensor: torch.Tensor) -> dict:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().clone()
    held = plain.reshape(-1).view(torch.uint8) if plain.numel() else plain.new_zeros(0, dtype=torch.uint8)
    return {"shape": list(tensor.shape), "kind": KINDS[tensor.dtype], "bytes": bytes(held.tolist()).hex()}


def key_name(key, at: int) -> str:
    return f"<__main__.{type(key).__name__}>#{at}" if isinstance(key, enum.Enum) else str(key)


def flat(prefix: str, value, found: dict) -> None:
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided and value.dtype in KINDS and not value.is_quantized:
            found[prefix] = contents(value)
    elif isinstance(value, dict):
        for at, (key, item) in enumerate(value.items()):
            name = key_name(key, at)
            flat(f"{prefix}.{name}" if prefix else name, item, found)
    elif isinstance(value, (list, tuple, collections.deque)):
        for at, item in enumerate(value):
            flat(f"{prefix}.{at}", item, found)


def save(expected: dict, name: str, value, **options) -> None:
    torch.save(value, OUT / name, **options)
    found: dict = {}
    flat("", torch.load(OUT / name, weights_only=False), found)  # made the line above
    expected[name] = found


TEXTS = [
    "a photo of a dog on a sofa", "", " ", "  leading and trailing  ", "two  spaces   three", "tab\tand\nnewline",
    "A RED Car,parked!!", "café naïve résumé", "cafe\u0301", "™ ﬁ ﷺ", "ＡＢＣ fullwidth", "\u200bzero\u200bwidth",
    "\x01control at the beginning", "猫が寝ている", "größe über straße", "<extra_id_0> filled <extra_id_1>", "dog</s>cat",
    "<pad><unk>", "a<img>b [sep] c", "  <img>  ", "🐕 dog 🐕", "1234 56.78", "▁under▁score", "a" * 50, "the " * 40,
    "\u3000wide\u00a0spaces\u3000", "mixed 猫 and cat", "<extra_id_99><extra_id_100>", "\ufeffmark", "e\u0301\u0302",
]


def t5() -> None:
    import sentencepiece
    from transformers import T5TokenizerFast

    sentences = [
        "a photo of a dog on a sofa", "the lazy dog sleeps on the red sofa", "a cat and a dog in the garden",
        "two people walk along the beach at sunset", "cafe in Paris, naive resume", "größe über straße",
        "1234 numbers and 56.78 prices", "A red car parked!!", "an old lighthouse above the sea",
    ] * 20
    rules = ["E9\t65", "65 301\t65", "2122\t54 4D", "FB01\t66 69", "1\t", "200B\t", "9\t20", "A\t20", "A0\t20", "3000\t20",
             "FF21\t41", "FDFA\t635 644 649 20 627 644 644 647 20 639 644 64A 647 20 648 633 644 645"]
    folder = OUT / "t5"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as work:
        (pathlib.Path(work) / "text").write_text("\n".join(sentences))
        (pathlib.Path(work) / "rules.tsv").write_text("\n".join(rules) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            input=f"{work}/text", model_prefix=f"{work}/m", vocab_size=130, hard_vocab_limit=False, pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, normalization_rule_tsv=f"{work}/rules.tsv", user_defined_symbols=["<img>", "[sep]"],
            minloglevel=2, num_threads=1)
        shutil.copy(f"{work}/m.model", folder / "spiece.model")
    cases = {}
    for name, settings in {"default": {}, "twenty": {"extra_ids": 20}, "modern": {"legacy": False}}.items():
        with tempfile.TemporaryDirectory() as work:
            shutil.copy(folder / "spiece.model", work)
            (pathlib.Path(work) / "tokenizer_config.json").write_text(
                json.dumps({"tokenizer_class": "T5Tokenizer", **settings}))
            tokenizer = T5TokenizerFast.from_pretrained(work)
            cases[name] = {"settings": settings, "vocabulary": len(tokenizer), "ids": [tokenizer(text).input_ids for text in TEXTS]}
    (folder / "expected.json").write_text(json.dumps({"texts": TEXTS, "cases": cases}) + "\n")


def main() -> None:
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    expected: dict = {}
    save(expected, "signs.pth", signs())
    save(expected, "signs_legacy.pth", {"x": torch.conj(torch.randn(3, dtype=torch.complex64)).imag},
         _use_new_zipfile_serialization=False)
    save(expected, "objects.pth", objects())
    save(expected, "objects_legacy_4.pth", objects(), _use_new_zipfile_serialization=False, pickle_protocol=4)
    save(expected, "unread.pth", unread())
    save(expected, "unread_legacy.pth", unread(), _use_new_zipfile_serialization=False)
    for protocol in (1, 2, 3, 4, 5):
        save(expected, f"legacy_{protocol}.pth", state(), _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        if protocol in (1, 4):
            save(expected, f"zip_{protocol}.pth", state(), pickle_protocol=protocol)
    for name, value in wrapped().items():
        save(expected, f"wrapped_{name}.pth", value)
    torch.save(Net(), OUT / "whole_module.pth")
    # As they were reported; what is no tensor in them is harmless.
    for path in sorted((OUT / "reported").iterdir()):
        found: dict = {}
        flat("", torch.load(path, weights_only=False), found)
        expected[f"reported/{path.name}"] = found
    (OUT / "expected.json").write_text(json.dumps(expected) + "\n")
    t5()


if __name__ == "__main__":
    main()
