#!/usr/bin/env python3
"""Makes the small checkpoints beside this file with PyTorch, and expected.json: what is in them, bit for bit.

    python3 tests/fixtures_made/make.py

Those that are kept were made with PyTorch 2.15.0.
"""

import json
from collections import Counter, OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
KINDS = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8_e4m3", torch.float8_e5m2: "f8_e5m2", torch.complex64: "complex64",
    torch.uint8: "u8", torch.int8: "i8", torch.uint16: "u16", torch.int16: "i16", torch.uint32: "u32",
    torch.int32: "i32", torch.uint64: "u64", torch.int64: "i64", torch.bool: "bool",
}


def numbers(kind: torch.dtype) -> torch.Tensor:
    if kind == torch.bool:
        return torch.tensor([[True, False, True], [False, False, True]])
    if kind.is_complex:
        return torch.randn(2, 3, dtype=kind)
    if kind.is_floating_point:
        return torch.randn(2, 3).to(kind)
    low = 0 if torch.iinfo(kind).min == 0 else -100
    return torch.randint(low, 100, (2, 3)).to(kind)


def every_kind() -> dict:
    return {name: numbers(kind) for kind, name in KINDS.items()}


def views() -> dict:
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return {
        "base": base,
        "part": base[1:, 1:3, ::2],
        "turned": base.permute(2, 0, 1),
        "column": base[:, 0, 0],
        "expanded": torch.tensor([1.5, 2.5]).reshape(2, 1).expand(2, 300),
        "one": base[2, 3, 4],
        "none": base[:0],
        "channels_last": torch.arange(48, dtype=torch.int64).reshape(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    }


def nested() -> dict:
    return {
        "epoch": 3,
        "iter": 0,
        "best": 12.25,
        "name": "größe",
        "done": False,
        "nothing": None,
        "huge": 1 << 70,
        "trainer": {
            "config": {"patch_nums": (1, 2, 3), "resos": [16, 32], "empty": {}, "shape": torch.Size([2, 3]), "kind": torch.float16},
            "varRater_wo_ddp": OrderedDict([("blocks.0.weight", torch.randn(2, 2)), ("blocks.0.bias", torch.zeros(2))]),
            "counts": Counter("abca"),
            "parts": [torch.ones(2), {"inner": torch.full((1,), 7, dtype=torch.int32)}, (torch.zeros(1), "text")],
        },
    }


def trained() -> dict:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    named = {"module." + name: value for name, value in network.state_dict().items()}
    extra = torch.nn.Parameter(torch.randn(2))
    extra.note = "kept as an attribute"
    return {"model": named, "optimizer": optimizer.state_dict(), "parameter": network[0].weight, "noted": extra}


def module() -> OrderedDict:
    network = torch.nn.Linear(2, 2)
    return OrderedDict(("module." + name, torch.nn.Parameter(value)) for name, value in network.state_dict().items())


def contents(tensor: torch.Tensor) -> dict:
    plain = tensor.detach().contiguous()
    held = plain.reshape(-1).view(torch.uint8) if plain.numel() else plain.new_zeros(0, dtype=torch.uint8)
    return {"shape": list(tensor.shape), "kind": KINDS[tensor.dtype], "bytes": bytes(held.tolist()).hex()}


def flat(prefix: str, value, found: dict) -> None:
    if isinstance(value, torch.Tensor):
        found[prefix] = contents(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            flat(f"{prefix}.{key}" if prefix else str(key), item, found)
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            flat(f"{prefix}.{at}", item, found)


def main() -> None:
    torch.manual_seed(0)
    expected = {}
    sets = {"kinds": every_kind(), "views": views(), "nested": nested(), "trained": trained(), "module": module()}
    for name, value in sets.items():
        found: dict = {}
        flat("", value, found)
        for form, options in {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}.items():
            file = f"{name}_{form}.pth"
            torch.save(value, FOLDER / file, **options)
            expected[file] = found
    torch.save(nested(), FOLDER / "protocol4_zip.pth", pickle_protocol=4)
    found = {}
    flat("", torch.load(FOLDER / "protocol4_zip.pth", weights_only=False), found)  # made the line above
    expected["protocol4_zip.pth"] = found
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
