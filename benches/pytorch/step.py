"""One rater training step and scoring, in PyTorch: the counterpart of `cargo bench --bench step` and `--bench device_step`.

    python benches/pytorch/step.py --case tiny-demo            # CPU, 2 threads, f32, eager: the CPU baseline
    python benches/pytorch/step.py --case small
    python benches/pytorch/step.py --device cuda --case large  # bf16, codes given: eager and torch.compile

The step: both batches' input (latents are quantized; or the input is computed from codes; or it is given), the proxy's
losses on both, the rater's weights without gradients, the proxy's backward pass, clip and AdamW, the rater again with
gradients, its backward pass, clip and AdamW. Drop-path is on. Two warm-up steps, then the median.
"""

import argparse

import torch

from measure import peak_bytes, report, seconds
from model import CASES, Proxy, PyramidQuantizer, Rater, parameter_groups

CLIP, RATE, DECAY, VALIDATION_SHARE = 2.0, 1e-4, 0.05, 0.9


class Batch:
    def __init__(self, sizes, batch, quantizer, given, device, generator):
        def normal(*shape):
            return torch.randn(*shape, generator=generator).to(device)

        side = sizes.patch_nums[-1]
        self.latents = normal(batch, sizes.code_channels, side, side)
        self.text = normal(batch, sizes.text_tokens, sizes.text_channels)
        self.text_mask = torch.ones(batch, sizes.text_tokens, dtype=torch.long, device=device)
        self.pooled = normal(batch, sizes.text_channels)
        self.given = given
        self.codes, self.input = quantizer.quantize(self.latents)

    def ready(self, quantizer):
        """Codes and input, computed unless given."""
        if self.given == "latents":
            return quantizer.quantize(self.latents)
        if self.given == "codes":
            return self.codes, quantizer.input_of(self.codes)
        return self.codes, self.input


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="tiny-demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["f32", "bf16"], help="f32 on a CPU, bf16 on a GPU unless given")
    parser.add_argument("--given", choices=["latents", "codes", "input"], help="what is there before the step")
    parser.add_argument("--mask", choices=["additive", "boolean"], default="additive")
    parser.add_argument("--compile", choices=["no", "yes", "both"], help="both on a GPU unless given")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for one measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    precision = arguments.precision or ("bf16" if on_gpu else "f32")
    given = arguments.given or ("codes" if on_gpu else "latents")
    compiled = arguments.compile or ("both" if on_gpu else "no")
    for mode in {"no": [False], "yes": [True], "both": [False, True]}[compiled]:
        measure(arguments, device, precision, given, mode)


def measure(arguments, device, precision, given, compiled):
    sizes = CASES[arguments.case]
    size = arguments.batch or sizes.batch
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    quantizer = PyramidQuantizer(sizes).to(device)
    boolean = arguments.mask == "boolean"
    proxy, rater = Proxy(sizes, boolean).to(device).train(), Rater(sizes, boolean).to(device).train()
    optimizers = [
        torch.optim.AdamW(parameter_groups(network, DECAY), lr=RATE, betas=(0.9, 0.95), fused=device.type == "cuda")
        for network in (proxy, rater)
    ]
    train, validation = (Batch(sizes, size, quantizer, given, device, generator) for _ in range(2))
    scored = Batch(sizes, sizes.score_batch, quantizer, "input", device, generator)
    run_proxy, run_rater = (torch.compile(network) if compiled else network for network in (proxy, rater))

    def cast():
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def update(network, optimizer, loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def step():
        train_codes, train_input = train.ready(quantizer)
        validation_codes, validation_input = validation.ready(quantizer)
        with cast():
            validation_loss = run_proxy(
                validation_input, validation.text, validation.text_mask, validation.pooled, validation_codes).mean()
            losses = run_proxy(train_input, train.text, train.text_mask, train.pooled, train_codes)
            with torch.no_grad():
                weights = run_rater(train_input, train.text, train.text_mask, train.pooled).float().softmax(0)[:, 0]
        weighted = (weights * losses).sum() / size
        update(proxy, optimizers[0], VALIDATION_SHARE * validation_loss + (1 - VALIDATION_SHARE) * weighted)
        with cast():
            weights = run_rater(train_input, train.text, train.text_mask, train.pooled).float().softmax(0)[:, 0]
        update(rater, optimizers[1], (losses.detach() * weights).sum() / size)

    @torch.no_grad()
    def score():
        with cast():
            return run_rater(scored.input, scored.text, scored.text_mask, scored.pooled)

    mode = "compiled" if compiled else "eager"
    more = {"case": arguments.case, "mode": mode, "precision": precision, "given": given, "mask": arguments.mask,
            "threads": torch.get_num_threads()}
    parameters = [sum(p.numel() for p in network.parameters()) for network in (proxy, rater)]
    times = seconds(step, device, 2, arguments.repeats, arguments.budget)
    median = sorted(times)[len(times) // 2]
    report("train_step", times, device, images_per_s=size / median, batch=size, peak_bytes=peak_bytes(device),
           parameters=parameters, **more)
    del train, validation
    rater.eval()
    times = seconds(score, device, 2, 20, arguments.budget)
    median = sorted(times)[len(times) // 2]
    report("score", times, device, images_per_s=sizes.score_batch / median, batch=sizes.score_batch,
           peak_bytes=peak_bytes(device), **more)


if __name__ == "__main__":
    main()
