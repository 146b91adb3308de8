"""Codes of the pyramid to the networks' input sequence, in PyTorch, eager and compiled.

    python benches/pytorch/patch_embed.py --device cuda
    python benches/pytorch/patch_embed.py --device cpu --tiny

Codebook gather, bicubic up, convolution, sum, area down (no gradients); then the projection, positions and levels, forward
and backward. Prints one line of JSON per measurement.
"""

import argparse

import torch
from torch import nn

from measure import peak_bytes, report, seconds
from model import CASES, PyramidQuantizer, level_of_tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = CASES["smallest" if arguments.tiny else "large"]
    width, repeats = 64 * sizes.proxy_depth, 3 if arguments.tiny else arguments.repeats
    torch.manual_seed(1)
    quantizer = PyramidQuantizer(sizes).to(device)
    project, levels = nn.Linear(sizes.code_channels, width).to(device), nn.Embedding(10, width).to(device)
    level = level_of_tokens(sizes.patch_nums).to(device)
    codes = torch.randint(sizes.vocabulary, (sizes.batch, sizes.tokens), device=device)
    start = torch.randn(sizes.batch, 1, width, device=device, requires_grad=True)
    d_out = torch.randn(sizes.batch, sizes.tokens, width, device=device, dtype=torch.bfloat16)
    features = torch.randn(sizes.batch, sizes.code_channels, *[sizes.patch_nums[-1]] * 2, device=device)

    def embed(codes, start):
        with torch.autocast(device.type, torch.bfloat16):
            words = project(quantizer.input_of(codes))
            return (torch.cat([start, words], 1) + levels(level)).bfloat16()

    for mode in ["eager", "compiled"] if device.type == "cuda" else ["eager"]:
        run = torch.compile(embed) if mode == "compiled" else embed

        @torch.no_grad()
        def forward():
            run(codes, start)

        def both():
            run(codes, start).backward(d_out)

        shape = [sizes.batch, sizes.tokens, width]
        for name, work in [("patch_embed/forward", forward), ("patch_embed/forward_backward", both)]:
            times = seconds(work, device, 3, repeats, 20.0)
            report(name, times, device, mode=mode, sizes=shape, peak_bytes=peak_bytes(device))
    times = seconds(lambda: quantizer.quantize(features), device, 3, repeats, 20.0)
    report("pyramid_quantize", times, device, mode="eager", sizes=list(features.shape), peak_bytes=peak_bytes(device))


if __name__ == "__main__":
    main()
