"""Images to ratings at the released size: the VQ-VAE (ch 160, 4096 codes of 32 channels, 256 pixels) and a rater of depth 8,
with random weights in the released layout; this project's `encode` and `score`, and PyTorch, one after the other.

    python benches/pytorch/released_size.py --corpus openclipart/corpus.csv --binary target/release/alchemist-engine
    python released_size.py --device cuda --binary alchemist-engine

Without a corpus, images of noise are generated. Weights, a table of the images and a configuration are written into --out.
Two times are printed for each: `process`, from starting the processes (this project has two) to their end, libraries,
weights and writing included; and `work`, from the first image to the last rating, with weights loaded, as each reports
itself. Both decode image files. On a GPU PyTorch runs with TF32, its default for convolutions, and without. Peak memory
is that of the largest process, on the host. Text states are hashed words here and random values there: their cost is
negligible.

Needs torch, numpy and Pillow.
"""

import argparse
import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy
import torch
from PIL import Image

from model import PyramidQuantizer, Rater
from vqvae import BATCH, SIDE, SIZES, TEXT_CHANNELS, TEXT_TOKENS, VqVae, released_state


def released_rater(rater):
    """The rater's weights under their upstream names."""
    state = {"class_emb.weight": torch.zeros(1001, 64 * SIZES.rater_depth)}
    for name, value in rater.state_dict().items():
        name = name.removeprefix("backbone.").replace("scaled.scale_mul", "scale_mul_1H11")
        name = name.replace(".fc1.", ".ffn.fc1.").replace(".fc2.", ".ffn.fc2.").replace("head_batch.", "head_batch.fc.")
        state[name] = value.view(1, -1, 1, 1) if name.endswith("scale_mul_1H11") else value
    return state


def images(out, corpus, count):
    """The first `count` rows of a corpus whose images can be read, with absolute paths."""
    if not corpus.exists():
        return generated(out, count)
    found = []
    with open(corpus, newline="") as lines:
        for row in csv.DictReader(lines):
            path = (Path(corpus).parent / row["image_save_path"]).resolve()
            if path.stat().st_size < 1 << 20:
                found.append({"id": row["id"], "image_save_path": str(path), "caption": row["caption"]})
            if len(found) == count:
                return found
    sys.exit(f"released_size.py: {corpus} has only {len(found)} images of less than a megabyte")


def generated(out, count):
    found, random = [], numpy.random.default_rng(1)
    for at in range(count):
        path = (out / f"{at}.png").resolve()
        noise = random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=numpy.uint8)
        Image.fromarray(noise).resize((SIDE, SIDE), Image.BICUBIC).save(path)
        found.append({"id": at, "image_save_path": str(path), "caption": f"noise number {at}"})
    return found


def load(path):
    image = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.LANCZOS)
    return torch.from_numpy(numpy.asarray(image).astype("float32") / 127.5 - 1).permute(2, 0, 1)


@torch.inference_mode()
def in_pytorch(out, threads, device, tf32):
    """The work in PyTorch: printed as one line of JSON."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    vqvae, quantizer, rater = (part.eval().to(device) for part in [VqVae(), PyramidQuantizer(SIZES), Rater(SIZES)])
    vqvae.load_state_dict(torch.load(out / "vae.pth"), strict=False)
    with open(out / "corpus.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    text = torch.randn(BATCH, TEXT_TOKENS, TEXT_CHANNELS, device=device)
    mask = torch.ones(BATCH, TEXT_TOKENS, dtype=torch.long, device=device)
    pooled = torch.randn(BATCH, TEXT_CHANNELS, device=device)
    begun = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        images = torch.stack([load(row["image_save_path"]) for row in rows[start:start + BATCH]])
        _, inputs = quantizer.quantize(vqvae(images.to(device)))
        size = len(images)
        rater(inputs, text[:size], mask[:size], pooled[:size])
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    print(json.dumps({"work": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def prepare(out, corpus, count):
    torch.manual_seed(1)
    out.mkdir(parents=True, exist_ok=True)
    vqvae, quantizer, rater = VqVae(), PyramidQuantizer(SIZES), Rater(SIZES)
    torch.save(released_state(vqvae, quantizer), out / "vae.pth")
    torch.save({"epoch": 1, "iter": 0, "trainer": {"varRater_wo_ddp": released_rater(rater)}}, out / "ar-ckpt.pth")
    with open(out / "corpus.csv", "w", newline="") as to:
        writer = csv.DictWriter(to, ["id", "image_save_path", "caption"])
        writer.writeheader()
        writer.writerows(images(out, corpus, count))
    # f32 on both sides.
    config = {"raterDepth": SIZES.rater_depth, "fp16": 0, "pn": "256", "ckpt_path": str((out / "vae.pth").resolve()),
              "text_encoder": {"tokens": TEXT_TOKENS, "channels": TEXT_CHANNELS}, "workers": 2}
    (out / "config.json").write_text(json.dumps(config, indent=4) + "\n")


def work_of(lines):
    """The seconds that `encode`, or `score -v`, says it worked, in a line `... in 1.23 s, ...`."""
    found = [re.search(r" in ([0-9.]+) s, ", line) for line in lines]
    return sum(float(one[1]) for one in found if one)


def ours(out, binary, threads, device):
    for old in out.glob("ratings*"):
        old.unlink()
    shutil.rmtree(out / "tokens", ignore_errors=True)
    program = [binary, "-v", "--threads", str(threads)]
    encode = program + ["encode", "--config", out / "config.json", "--data", out / "corpus.csv", "--out", out / "tokens",
                        "--device", device]
    score = program + ["score", "--config", out / "config.json", "--checkpoint", out / "ar-ckpt.pth", "--data",
                       out / "corpus.csv", "--out", out / "ratings.csv", "--batch", str(BATCH), "--device", device, "--set",
                       f"token_cache={out / 'tokens'}"]
    process, work, peaks = [], [], []
    for command in [encode, score]:
        begun = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = child.stdout.readlines()
        _, status, usage = os.wait4(child.pid, 0)
        if status != 0:
            sys.exit(f"released_size.py: {' '.join(map(str, command))} failed:\n{''.join(lines)}")
        process.append(time.perf_counter() - begun)
        work.append(work_of(lines))
        peaks.append(usage.ru_maxrss * 1024)
    for name, whole, part in zip(["encode", "score"], process, work):
        print(f"{name}: {whole:.2f} s, of which it worked {part:.2f} s")
    return {"work": sum(work), "process": sum(process), "peak": max(peaks)}


def theirs(arguments, mode):
    here = [sys.executable, __file__, "--pytorch-only", mode, "--out", arguments.out, "--threads", str(arguments.threads),
            "--device", arguments.device]
    begun = time.perf_counter()
    found = json.loads(subprocess.run(here, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {**found, "process": time.perf_counter() - begun}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("openclipart/corpus.csv"))
    parser.add_argument("--binary", default="target/release/alchemist-engine")
    parser.add_argument("--out", type=Path, default=Path("runs/released_size"))
    parser.add_argument("--images", type=int, help="32, or 1024 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for both")
    parser.add_argument("--pytorch-only", choices=["f32", "tf32"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pytorch_only:
        return in_pytorch(arguments.out, arguments.threads, arguments.device, arguments.pytorch_only == "tf32")
    on_card = arguments.device.startswith("cuda")
    images = arguments.images or (1024 if on_card else 32)
    prepare(arguments.out, arguments.corpus, images)
    runs = {f"PyTorch, {mode}": theirs(arguments, mode) for mode in (["f32", "tf32"] if on_card else ["f32"])}
    own = ours(arguments.out, arguments.binary, arguments.threads, arguments.device)
    for name, run in [*runs.items(), ("alchemist-engine", own)]:
        print(json.dumps({"name": f"released_size/{name}", "images": images, "work_s": round(run["work"], 2),
                          "process_s": round(run["process"], 2), "images_per_s": round(images / run["work"], 3),
                          "peak_mib": round(run["peak"] / 2**20), "threads": arguments.threads, "device": arguments.device,
                          "torch": torch.__version__}))
    for name, run in runs.items():
        print(json.dumps({"name": f"released_size/ratio to {name}", "work": round(own["work"] / run["work"], 3),
                          "process": round(own["process"] / run["process"], 3),
                          "memory": round(own["peak"] / run["peak"], 3)}))


if __name__ == "__main__":
    main()
