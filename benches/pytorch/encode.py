"""Encodes images of 256 pixels with a VQ-VAE of the released size (ch 160) in PyTorch, from host to host: the counterpart
of `cargo bench --bench device_encode`.

    python encode.py --weights vae.pth --write          # writes random weights in the released layout, and does no more
    python encode.py --weights vae.pth --device cuda    # f32, f32 with TF32 (PyTorch's default for convolutions), bf16
    python encode.py --weights vae.pth --device cpu --images 4
"""

import argparse
from pathlib import Path

import torch

from measure import peak_bytes, report, seconds
from model import PyramidQuantizer
from vqvae import SIDE, SIZES, VqVae, released_state


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--at-once", type=int, nargs="+", default=[4, 64], help="images of one pass; all that are given are measured")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for one measurement")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(arguments.threads)
    vqvae, quantizer = VqVae().eval(), PyramidQuantizer(SIZES).eval()
    if arguments.write:
        torch.save(released_state(vqvae, quantizer), arguments.weights)
        return
    vqvae.load_state_dict(torch.load(arguments.weights), strict=False)
    device = torch.device(arguments.device)
    vqvae, quantizer = vqvae.to(device), quantizer.to(device)
    images = torch.rand(arguments.images, 3, SIDE, SIDE) * 2 - 1
    modes = ["f32", "tf32", "bf16"] if device.type == "cuda" else ["f32"]
    for mode in modes:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        for at_once in arguments.at_once:

            def work():
                for part in images.split(at_once):
                    with torch.autocast(device.type, torch.bfloat16, enabled=mode == "bf16"):
                        features = vqvae(part.to(device))
                    quantizer.quantize(features.float())[0].cpu()

            times = seconds(work, device, 2, arguments.repeats, arguments.budget)
            median = sorted(times)[len(times) // 2]
            report("encode", times, device, mode=mode, at_once=at_once, batch=arguments.images,
                   images_per_s=arguments.images / median, peak_bytes=peak_bytes(device))


if __name__ == "__main__":
    main()
