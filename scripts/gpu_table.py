"""Summarizes the results of scripts/gpu.sh: a short table, and a block of Markdown for benches/RESULTS.md.

    python3 scripts/gpu_table.py target/gpu/results
"""

import json
import pathlib
import sys


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def objects(path):
    return [json.loads(line) for line in lines(path) if line.startswith("{")]


def time(seconds):
    for factor, unit in [(1, "s"), (1e3, "ms"), (1e6, "us")]:
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"


def comparisons(ours, theirs):
    """Speed ratios: name, baseline, ratio (above 1: ours is faster), and the required minimum."""

    def own(name):
        return next((line["median_s"] for line in ours if line["name"] == name and "median_s" in line), None)

    def best(matches):
        times = [line["median_s"] for line in theirs if "median_s" in line and matches(line)]
        return min(times) if times else None

    def is_named(name, **more):
        return lambda line: line["name"] == name and all(line.get(key) == value for key, value in more.items())

    def attention(masked):
        return lambda line: line["name"].startswith("attention/sdpa") and line.get("masked") is masked

    attended = own("self_attention_forward_backward")
    step, scored = own("train_step"), own("score")
    plain, everything = own("meta_gradient/plain_step"), own("meta_gradient/everything")
    portable = own("meta_gradient/everything_portable")
    aligned, aligned_portable = own("train_step_alignment"), own("train_step_alignment_portable")
    in_tile, alone = own("meta_gradient_in_tile"), own("meta_gradient_weight_gradient")
    return [
        ("attention, forward and backward", "SDPA with the mask", attended, best(attention(True)), 2.5),
        ("attention, forward and backward", "best dense backend without a mask", attended, best(attention(False)), 1.0),
        ("attention, forward and backward", "FlexAttention, block mask", attended, best(is_named("attention/flex")), 1.5),
        ("training step", "eager", step, best(is_named("train_step", mode="eager")), 1.5),
        ("training step", "torch.compile", step, best(is_named("train_step", mode="compiled")), 1.07),
        ("training step with products and norms", "our own step by the loss", aligned, step, 0.95),
        ("the same by the portable kernel", "our own step by the loss", aligned_portable, step, 0.83),
        ("the proxy's pass with products and norms", "our own plain pass", everything, plain, 0.95),
        ("the same by the portable kernel", "our own plain pass", portable, plain, 0.83),
        ("the same in the kernel", "cuBLASLt's weight gradient", in_tile, alone, 0.85),
        ("products and norms", "vmap(grad)", everything, best(is_named("meta_gradient/vmap_grad")), 10),
        ("products and norms", "hooks, projected", everything, best(is_named("meta_gradient/projected_hooks_norms")), 1.25),
        ("images to codes, f32", "PyTorch, f32", own("encode/f32"), best(is_named("encode", mode="f32")), 1.5),
        ("images to codes, f32", "PyTorch, TF32", own("encode/f32"), best(is_named("encode", mode="tf32")), None),
        ("images to codes, f32", "PyTorch, bf16", own("encode/f32"), best(is_named("encode", mode="bf16")), None),
        ("scoring", "torch.compile", scored, best(is_named("score", mode="compiled")), None),
    ]


def main():
    folder = pathlib.Path(sys.argv[1])
    facts = lines(folder / "facts.txt")
    ceilings = objects(folder / "ceilings.jsonl")
    ops, theirs = objects(folder / "ops.jsonl"), objects(folder / "pytorch.jsonl")
    steps = objects(folder / "step.jsonl") + objects(folder / "encode.jsonl")
    notes = [line.split("\t") for line in lines(folder / "notes.tsv")]

    print("## " + (", ".join(facts[:3]) or "no facts: run part `facts`"))
    print()
    print("| part | what | result | |")
    print("| --- | --- | --- | --- |")
    for part, what, how, more in notes:
        print(f"| {part} | {what} | {how} | {pathlib.Path(more).name if more.startswith('/') else more.split('; ')[0]} |")
    for line in ceilings:
        if line["name"] == "ceiling/copy":
            print(f"| ceiling | copies | {line['bytes_per_s'] / 1e12:.3f} TB/s | |")
        elif line["name"] == "ceiling/product_bf16":
            sizes = " x ".join(map(str, line["mnk"]))
            print(f"| ceiling | bf16 product {sizes} | {line['flop_per_s'] / 1e12:.1f} TFLOP/s | |")
    if ops:
        print()
        print("| kernel | median | GB/s | TFLOP/s | time over the floor |")
        print("| --- | --- | --- | --- | --- |")
        for line in ops:
            print(
                f"| {line['name']} | {time(line['median_s'])} | {line['bytes_per_s'] / 1e9:.0f} "
                f"| {line['flop_per_s'] / 1e12:.1f} | {line['time_over_floor']:.2f} |")
    rows = [(f"this project, {line['name']}", line) for line in steps]
    rows += [(f"PyTorch {line.get('torch', '')}, {line['name']} {line.get('mode', '')}", line) for line in theirs]
    if rows:
        print()
        print("| what | median | images/s | peak memory | |")
        print("| --- | --- | --- | --- | --- |")
        for name, line in rows:
            if "median_s" not in line:
                print(f"| {name} | | | | refused: {line.get('refused', '')[:80]} |")
                continue
            images = f"{line['images_per_s']:.1f}" if "images_per_s" in line else ""
            peak = f"{line['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in line else ""
            more = f"products {line['product_share']:.0%}" if "product_share" in line else ""
            if "over_plain" in line:
                more = f"{line['over_plain']:.2f} times the plain step, {line['peak_over_plain']:.2f} times its memory"
                more += f", {line['piece']} of {line['batch']} at a time" if line["piece"] < line["batch"] else ""
            print(f"| {name} | {time(line['median_s'])} | {images} | {peak} | {more} |")
    print()
    print("| ours | compared with | times faster | promised |")
    print("| --- | --- | --- | --- |")
    for what, compared, ours, other, promised in comparisons(ops + steps, theirs):
        ratio = f"{other / ours:.2f}" if ours and other else "not yet run"
        print(f"| {what} | {compared} | {ratio} | {'' if promised is None else f'>= {promised}'} |")


if __name__ == "__main__":
    main()
