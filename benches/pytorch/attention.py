"""Self-attention over the pyramid, forward and backward, with l2-normalization of queries and keys and rotary embedding.

    python benches/pytorch/attention.py --device cuda          # B 64, H 16, D 64, L 680, bf16
    python benches/pytorch/attention.py --device cpu --tiny    # a rehearsal

Measures every implementation in PyTorch: scaled_dot_product_attention with the mask (boolean and additive), on every
backend that supports it; the dense backends without a mask, which compute something else and only bound the time; and
compiled FlexAttention with the block mask. All times include normalization and rotation, compiled on a GPU unless
`--prepare eager`; `prepare` is the time of those alone. Prints one line of JSON per measurement.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from measure import peak_bytes, report, seconds
from model import FULL_PYRAMID, level_of_tokens, rotary_table, rotate, visible


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--prepare", choices=["eager", "compiled"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--budget", type=float, default=20.0)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    patch_nums = (1, 2, 3, 5) if arguments.tiny else FULL_PYRAMID
    batch, heads, channels = (1, 2, 64) if arguments.tiny else (64, 16, 64)
    tokens = sum(side * side for side in patch_nums)
    repeats = 3 if arguments.tiny else arguments.repeats
    torch.manual_seed(1)
    qkv = torch.randn(3, batch, heads, tokens, channels, device=device, dtype=torch.bfloat16, requires_grad=True)
    d_out = torch.randn(batch, heads, tokens, channels, device=device, dtype=torch.bfloat16)
    scale = torch.full((1, heads, 1, 1), 4.0, device=device, requires_grad=True)
    cosine, sine = (table.to(device) for table in rotary_table(patch_nums, channels))
    sees = visible(patch_nums).to(device)
    additive = torch.zeros(sees.shape, device=device, dtype=torch.bfloat16).masked_fill_(~sees, -math.inf)

    def turn_and_normalize(qkv, scale):
        q, k, v = qkv.unbind(0)
        q = F.normalize(rotate(q, cosine, sine), dim=-1) * scale
        k = F.normalize(rotate(k, cosine, sine), dim=-1)
        return q.to(v.dtype), k.to(v.dtype), v

    compiled = (arguments.prepare or ("compiled" if device.type == "cuda" else "eager")) == "compiled"
    run = torch.compile(turn_and_normalize) if compiled else turn_and_normalize

    def prepare():
        return run(qkv, scale)

    def both(attend):
        def work():
            qkv.grad = scale.grad = None
            attend(*prepare()).backward(d_out)
        return work

    def prepare_both():
        qkv.grad = scale.grad = None
        torch.autograd.backward(prepare(), (d_out, d_out, d_out))

    def measure(name, work, **more):
        try:
            times = seconds(work, device, 5 if device.type == "cuda" else 1, repeats, arguments.budget)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            # Report backends that do not support this.
            more["refused"] = str(error).strip().splitlines()[-1][:200]
            print_refused(name, more)
            return
        report(name, times, device, peak_bytes=peak_bytes(device), sizes=[batch, heads, tokens, channels], **more)

    def sdpa(mask):
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)

    measure("attention/prepare", prepare_both)
    backends = {
        "math": SDPBackend.MATH,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    for masked, masks in [(True, {"boolean": sees, "additive": additive}), (False, {"none": None})]:
        for mask_name, mask in masks.items():
            for backend_name, backend in backends.items():
                with sdpa_kernel(backend):
                    measure(f"attention/sdpa_{mask_name}_{backend_name}", both(sdpa(mask)), masked=masked)
            measure(f"attention/sdpa_{mask_name}_default", both(sdpa(mask)), masked=masked)
    flex(measure, both, patch_nums, tokens, device)


def print_refused(name, more):
    import json

    print(json.dumps({"name": name, **more}), flush=True)


def flex(measure, both, patch_nums, tokens, device):
    """FlexAttention with the same mask as blocks."""
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        print_refused("attention/flex", {"refused": str(error)})
        return
    if device.type != "cuda":
        # It has no backward pass on a CPU.
        print_refused("attention/flex", {"refused": "measured on a GPU only"})
        return
    level = level_of_tokens(patch_nums).to(device)
    blocks = create_block_mask(lambda b, h, q, k: level[q] >= level[k], None, None, tokens, tokens, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    measure("attention/flex", both(lambda q, k, v: compiled(q, k, v, block_mask=blocks, scale=1.0)), masked=True)


if __name__ == "__main__":
    main()
