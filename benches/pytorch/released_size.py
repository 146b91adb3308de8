"""Pictures to ratings at the released size: the VQ-VAE (ch 160, 4096 codes of 32 channels, 256 pixels) and a rater of depth 8,
with random weights in the released layout; this project's `score` and PyTorch, one after the other.

    python benches/pytorch/released_size.py --corpus openclipart/corpus.csv --binary target/release/alchemist-engine

Weights, a table of the pictures and a configuration are written into --out. PyTorch's time is that of its work alone, weights
loaded and the library imported; this project's is that of the whole process, reading and writing included. Peak memory is
that of each whole process. Text states are hashed words here and random numbers there: their cost is next to nothing.

Needs torch, numpy and Pillow.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from model import FULL_PYRAMID, PyramidQuantizer, Rater, Sizes

SIDE, TEXT_TOKENS, TEXT_CHANNELS, BATCH = 256, 77, 1024, 8
SIZES = Sizes(FULL_PYRAMID, 4096, 32, 8, 8, TEXT_TOKENS, TEXT_CHANNELS, BATCH, BATCH)


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.qkv, self.proj_out = norm(channels), nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, 2)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Sampling(nn.Module):
    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0))


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Residual(channels, channels), Attention(channels), Residual(channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Half(nn.Module):
    """The encoder, or the decoder with `up`: the names of its parts are those of the released weights."""

    def __init__(self, ch, inputs, outputs, up, multipliers=(1, 1, 2, 2, 4)):
        super().__init__()
        levels, channels = nn.ModuleList(), ch * (multipliers[-1] if up else 1)
        self.conv_in = nn.Conv2d(inputs, channels, 3, padding=1)
        if up:
            self.mid = Middle(channels)
        lowest = len(multipliers) - 1
        for at in reversed(range(len(multipliers))) if up else range(len(multipliers)):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(3 if up else 2):
                level.block.append(Residual(channels, ch * multipliers[at]))
                channels = ch * multipliers[at]
                if at == lowest:
                    level.attn.append(Attention(channels))
            if up and at != 0:
                level.upsample = Sampling(channels, down=False)
            if not up and at != lowest:
                level.downsample = Sampling(channels, down=True)
            levels.append(level)
        if up:
            self.up = nn.ModuleList(reversed(levels))
        else:
            self.down, self.mid = levels, Middle(channels)
        self.norm_out, self.conv_out = norm(channels), nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        up = hasattr(self, "up")
        if up:
            x = self.mid(x)
        for level in reversed(self.up) if up else self.down:
            for at, block in enumerate(level.block):
                x = block(x)
                if len(level.attn):
                    x = level.attn[at](x)
            for name in ("upsample", "downsample"):
                if hasattr(level, name):
                    x = getattr(level, name)(x)
        return self.conv_out(F.silu(self.norm_out(x if up else self.mid(x))))


class VqVae(nn.Module):
    def __init__(self, ch=160, channels=SIZES.code_channels):
        super().__init__()
        self.encoder, self.decoder = Half(ch, 3, channels, up=False), Half(ch, channels, 3, up=True)
        self.quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images):
        return self.quant_conv(self.encoder(images))


def released_state(vqvae, quantizer):
    state = dict(vqvae.state_dict())
    state["quantize.embedding.weight"] = quantizer.codebook.weight.data
    for at, phi in enumerate(quantizer.phi):
        state[f"quantize.quant_resi.qresi_ls.{at}.weight"] = phi.weight.data
        state[f"quantize.quant_resi.qresi_ls.{at}.bias"] = phi.bias.data
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(len(SIZES.patch_nums), SIZES.vocabulary)
    return state


def released_rater(rater):
    """The rater's weights under their released names."""
    state = {"class_emb.weight": torch.zeros(1001, 64 * SIZES.rater_depth)}
    for name, value in rater.state_dict().items():
        name = name.removeprefix("backbone.").replace("scaled.scale_mul", "scale_mul_1H11")
        name = name.replace(".fc1.", ".ffn.fc1.").replace(".fc2.", ".ffn.fc2.").replace("head_batch.", "head_batch.fc.")
        state[name] = value.view(1, -1, 1, 1) if name.endswith("scale_mul_1H11") else value
    return state


def pictures(corpus, count):
    """The first `count` rows of a corpus whose pictures can be read, with absolute paths."""
    found = []
    with open(corpus, newline="") as lines:
        for row in csv.DictReader(lines):
            path = (Path(corpus).parent / row["image_save_path"]).resolve()
            if path.stat().st_size < 1 << 20:
                found.append({"id": row["id"], "image_save_path": str(path), "caption": row["caption"]})
            if len(found) == count:
                return found
    sys.exit(f"released_size.py: {corpus} has only {len(found)} pictures of less than a megabyte")


def load(path):
    image = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.LANCZOS)
    return torch.from_numpy(numpy.asarray(image).astype("float32") / 127.5 - 1).permute(2, 0, 1)


@torch.inference_mode()
def in_pytorch(out, threads):
    """The work in PyTorch: printed as one line of JSON."""
    torch.set_num_threads(threads)
    vqvae, quantizer, rater = VqVae().eval(), PyramidQuantizer(SIZES).eval(), Rater(SIZES).eval()
    vqvae.load_state_dict(torch.load(out / "vae.pth"), strict=False)
    with open(out / "corpus.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    text = torch.randn(BATCH, TEXT_TOKENS, TEXT_CHANNELS)
    mask, pooled = torch.ones(BATCH, TEXT_TOKENS, dtype=torch.long), torch.randn(BATCH, TEXT_CHANNELS)
    begun = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        images = torch.stack([load(row["image_save_path"]) for row in rows[start:start + BATCH]])
        _, inputs = quantizer.quantize(vqvae(images))
        size = len(images)
        rater(inputs, text[:size], mask[:size], pooled[:size])
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def prepare(out, corpus, count):
    torch.manual_seed(1)
    out.mkdir(parents=True, exist_ok=True)
    vqvae, quantizer, rater = VqVae(), PyramidQuantizer(SIZES), Rater(SIZES)
    torch.save(released_state(vqvae, quantizer), out / "vae.pth")
    torch.save({"epoch": 1, "iter": 0, "trainer": {"varRater_wo_ddp": released_rater(rater)}}, out / "ar-ckpt.pth")
    with open(out / "corpus.csv", "w", newline="") as to:
        writer = csv.DictWriter(to, ["id", "image_save_path", "caption"])
        writer.writeheader()
        writer.writerows(pictures(corpus, count))
    config = {"raterDepth": SIZES.rater_depth, "pn": "256", "ckpt_path": str((out / "vae.pth").resolve()),
              "text_encoder": {"tokens": TEXT_TOKENS, "channels": TEXT_CHANNELS}, "workers": 2}
    (out / "config.json").write_text(json.dumps(config, indent=4) + "\n")


def ours(out, binary, threads):
    for old in out.glob("ratings*"):
        old.unlink()
    command = [binary, "--threads", str(threads), "score", "--config", out / "config.json", "--checkpoint",
               out / "ar-ckpt.pth", "--data", out / "corpus.csv", "--out", out / "ratings.csv", "--batch", str(BATCH)]
    begun = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"released_size.py: {' '.join(map(str, command))} failed")
    return time.perf_counter() - begun, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("openclipart/corpus.csv"))
    parser.add_argument("--binary", default="target/release/alchemist-engine")
    parser.add_argument("--out", type=Path, default=Path("runs/released_size"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pytorch-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pytorch_only:
        return in_pytorch(arguments.out, arguments.threads)
    prepare(arguments.out, arguments.corpus, arguments.images)
    here = [sys.executable, __file__, "--pytorch-only", "--out", arguments.out, "--threads", str(arguments.threads)]
    theirs = json.loads(subprocess.run(here, check=True, capture_output=True, text=True).stdout)
    seconds, peak = ours(arguments.out, arguments.binary, arguments.threads)
    for name, took, memory in [("PyTorch", theirs["seconds"], theirs["peak"]), ("alchemist-engine", seconds, peak)]:
        print(json.dumps({"name": f"released_size/{name}", "images": arguments.images, "seconds": round(took, 2),
                          "images_per_s": round(arguments.images / took, 3), "peak_mib": round(memory / 2**20),
                          "threads": arguments.threads, "torch": torch.__version__}))
    print(json.dumps({"name": "released_size/ratio", "time": round(seconds / theirs["seconds"], 3),
                      "memory": round(peak / theirs["peak"], 3)}))


if __name__ == "__main__":
    main()
