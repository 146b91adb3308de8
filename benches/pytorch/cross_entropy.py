"""The cross-entropy of every token and the gradient of its logits, in PyTorch, eager and compiled.

    python benches/pytorch/cross_entropy.py --device cuda
    python benches/pytorch/cross_entropy.py --device cpu --tiny

`over_floor` is the time relative to reading the logits and writing their gradient once, at the bandwidth of a copy.
Prints one line of JSON per measurement.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F

from measure import peak_bytes, report, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rows, codes = (10, 100) if arguments.tiny else (64 * 680, 4096)
    repeats = 3 if arguments.tiny else arguments.repeats
    torch.manual_seed(1)
    logits = torch.randn(rows, codes, device=device, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(codes, (rows,), device=device)
    d_losses = torch.full((rows,), 1.0 / rows, device=device)
    copy = torch.empty_like(logits)
    floor = statistics.median(seconds(lambda: copy.copy_(logits.detach()), device, 3, repeats, 20.0))

    def losses(logits):
        return F.cross_entropy(logits.float(), targets, reduction="none")

    for mode in ["eager", "compiled"] if device.type == "cuda" else ["eager"]:
        run = torch.compile(losses) if mode == "compiled" else losses

        def both():
            logits.grad = None
            run(logits).backward(d_losses)

        times = seconds(both, device, 3, repeats, 20.0)
        report("cross_entropy", times, device, mode=mode, sizes=[rows, codes], peak_bytes=peak_bytes(device),
               over_floor=statistics.median(times) / floor)


if __name__ == "__main__":
    main()
