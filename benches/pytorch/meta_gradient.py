"""Per-sample <g_i, V> and |g_i|^2 over all parameters of the proxy, by every method available in PyTorch.

    python benches/pytorch/meta_gradient.py --case tiny-demo            # CPU, 2 threads, f32
    python benches/pytorch/meta_gradient.py --case small
    python benches/pytorch/meta_gradient.py --device cuda --case large  # bf16
    python benches/pytorch/meta_gradient.py --case smallest             # a rehearsal

g_i is the gradient of one sample's loss, V that of a validation batch's mean loss. Every method also sums the g_i:

    plain_step               one forward and one backward pass: only the sum, the baseline of the others
    projected_hooks          the same pass with hooks; <g_i, V> of a weight by one more product, the input's with V
    projected_hooks_norms    and the norms, from a sample's Gram matrices or its gradient, whichever is cheaper
    materialized_hooks       per-sample gradients instead of autograd's weight gradients, layer by layer
    one_backward_per_sample  the naive method
    vmap_grad                torch.func: all per-sample gradients, then the reductions

Before a method is measured, it must agree in f32 with one backward pass per sample, parameter by parameter (`f32_error`,
the largest relative error, asserted at the end); `dot_error` and `norm_error` are the errors of all samples' measured
totals relative to f32. A method splits the batch if it needs too much memory: `piece` is the largest size that fits, found
by halving. Drop-path is off, so that samples are independent. Prints one line of JSON per measurement.
"""

import argparse
import contextlib
import ctypes
import json
import math
import statistics

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from measure import peak_bytes, report, seconds
from model import CASES, Packed, Proxy, PyramidQuantizer, Scaled
from step import Batch

# For each parameter's share: an omission or a miscount is far larger.
CHECKED_SAMPLES, TOLERANCE = 2, 1e-3


# Without materializing products where that is accurate: on a CPU the sum would be sequential and lose half the digits.


def inner(a, b):
    """Per-sample inner products in f32: a is [B, ...], b the same or shared by all samples."""
    a = a.flatten(1)
    b = b.reshape(-1, a.shape[1])
    if a.is_cuda and a.dtype == torch.float32 and b.shape[0] == 1:
        return a @ b[0]
    return (a * b).sum(1, dtype=torch.float32)


def square(a):
    """Per-sample squared norms in f32."""
    a = a.flatten(1)
    if a.is_cuda:
        return torch.linalg.vector_norm(a, dim=1, dtype=torch.float32).square()
    return a.square().sum(1, dtype=torch.float32)


class Work:
    """The proxy, a batch, V, and per-sample sums."""

    def __init__(self, proxy, batch, bf16):
        self.proxy, self.batch, self.bf16 = proxy, batch, bf16
        self.size, self.device = batch.codes.shape[0], batch.codes.device
        self.parameters = dict(proxy.named_parameters())
        self.direction = None
        # If a dictionary, also collects each parameter's share of the sums.
        self.shares = None

    def begin(self):
        self.proxy.zero_grad(set_to_none=True)
        self.dots, self.squares = (torch.zeros(self.size, device=self.device) for _ in range(2))
        if self.shares is not None:
            self.shares = {name: torch.zeros(2, self.size, device=self.device) for name in self.parameters}

    def pieces(self, most):
        return [slice(start, min(start + most, self.size)) for start in range(0, self.size, most)]

    def samples(self, piece):
        batch = self.batch
        return tuple(part[piece] for part in (batch.input, batch.text, batch.text_mask, batch.pooled, batch.codes))

    def cast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def losses(self, piece):
        with self.cast():
            return self.proxy(*self.samples(piece))

    def count(self, piece, name, dots, squares=None):
        for at, (total, own) in enumerate([(self.dots, dots), (self.squares, squares)]):
            if own is not None:
                total[piece] += own
                if self.shares is not None:
                    self.shares[name][at, piece] += own

    @torch.no_grad()
    def count_gradients(self, piece, name, gradients, norms=True):
        """Adds the per-sample gradients of a parameter, [B, ...], to the sums."""
        dots = inner(gradients, self.direction[name].to(gradients.dtype))
        self.count(piece, name, dots, square(gradients) if norms else None)

    @torch.no_grad()
    def add(self, name, gradient):
        parameter = self.parameters[name]
        if parameter.grad is None:
            parameter.grad = gradient.to(parameter.dtype, copy=True)
        else:
            parameter.grad += gradient


def plain_step(work, most):
    work.begin()
    for piece in work.pieces(most):
        work.losses(piece).sum().backward()


def one_backward_per_sample(work, _most=1):
    work.begin()
    total = {}
    for piece in work.pieces(1):
        work.proxy.zero_grad(set_to_none=True)
        work.losses(piece).sum().backward()
        for name, parameter in work.parameters.items():
            work.count_gradients(piece, name, parameter.grad[None])
            total[name] = total[name].add_(parameter.grad) if name in total else parameter.grad
    for name, parameter in work.parameters.items():
        parameter.grad = total[name]


def vmap_grad(work, most):
    work.begin()
    constants = {name: parameter.detach() for name, parameter in work.parameters.items()}

    def loss(parameters, *sample):
        with work.cast():
            return functional_call(work.proxy, parameters, tuple(part[None] for part in sample))[0]

    gradients_of = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0, 0))
    for piece in work.pieces(most):
        gradients = gradients_of(constants, *work.samples(piece))
        for name in work.parameters:
            own = gradients.pop(name)
            work.count_gradients(piece, name, own)
            work.add(name, own.sum(0))


@contextlib.contextmanager
def plain_attention():
    """Attention as products and a softmax: on a GPU vmap does not support PyTorch's own with a bf16 mask."""
    kept = F.scaled_dot_product_attention

    def attend(q, k, v, attn_mask, scale):
        logits = q @ k.transpose(-2, -1) * scale
        seen = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        return seen.float().softmax(-1).to(v.dtype) @ v

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kept


class Hooks:
    """Saves every layer's input and, from the gradient of its output, adds each sample's share."""

    def __init__(self, work, norms, materialize):
        self.work, self.norms, self.materialize = work, norms, materialize
        self.piece, self.inputs, self.handles, self.covered = None, {}, [], set()

    def __call__(self, work, most):
        self.work = work
        work.begin()
        for self.piece in work.pieces(most):
            self.inputs.clear()
            work.losses(self.piece).sum().backward()

    def __enter__(self):
        backbone, modules = self.work.proxy.backbone, dict(self.work.proxy.named_modules())
        # The first token is encoder_proj's output plus pos_start, and the only one of the first level.
        levels = F.one_hot(backbone.levels).float()
        assert levels[:, 0].sum() == 1
        extra = {
            "backbone.encoder_proj": [("backbone.pos_start", lambda d: d[:, :1]),
                                      ("backbone.lvl_embed.weight", lambda d: self.at_levels(levels[:1], d))],
            "backbone.word_embed": [("backbone.lvl_embed.weight", lambda d: self.at_levels(levels[1:], d))],
        }
        for name, module in modules.items():
            if isinstance(module, Scaled):
                self.hook(name, module, self.scale)
            elif isinstance(module, nn.Linear):
                biases = self.biases(name, module) + extra.get(name, [])
                self.hook(name, module, lambda name, x, d, biases=biases: self.linear(name, x, d, biases))
                self.covered |= {f"{name}.weight"} | {bias for bias, _ in biases}
        assert self.covered == set(self.work.parameters), self.covered ^ set(self.work.parameters)
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for parameter in self.work.parameters.values():
            parameter.requires_grad_(True)

    def biases(self, name, module):
        """The parameters added to a layer's output, and how their gradients are summed from that of the output."""
        if not isinstance(module, Packed):
            return [(f"{name}.bias", lambda d: d.sum(1, dtype=torch.float32))]
        parent, width = name.rsplit(".", 1)[0], self.work.proxy.head_logits.in_features
        q = (f"{parent}.q_bias", lambda d: d[..., :width].sum(1, dtype=torch.float32))
        v = (f"{parent}.v_bias", lambda d: d[..., -width:].sum(1, dtype=torch.float32))
        return {"mat_qkv": [q, v], "mat_q": [q], "mat_kv": [v]}[name.rsplit(".", 1)[1]]

    @staticmethod
    def at_levels(levels, d):
        """Sums [B, L, C] over the tokens of each level, [B, levels, C]."""
        return levels.t().to(d.dtype) @ d

    def hook(self, name, module, count):
        def before(_module, arguments):
            x, *rest = arguments
            if self.work.bf16 and isinstance(module, nn.Linear):
                # Autocast would cast inside, and two copies would be kept.
                x = x.to(torch.bfloat16)
            self.inputs[name] = x.detach()
            return (x, *rest)

        def after(_module, _arguments, output):
            output = output[0] if isinstance(output, tuple) else output
            output.register_hook(lambda d: count(name, self.inputs.pop(name), d))

        self.handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        if self.materialize and isinstance(module, nn.Linear):
            module.weight.requires_grad_(False)
        if isinstance(module, Scaled):
            self.covered.add(f"{name}.scale_mul")

    @torch.no_grad()
    def scale(self, name, q, d):
        """The gradient of the learned scale times q; zero above its bound."""
        name = f"{name}.scale_mul"
        logarithm = self.work.parameters[name]
        bound = math.log(100.0)
        factor = logarithm.clamp_max(bound).exp() * (logarithm <= bound)
        own = (d * F.normalize(q, dim=-1)).sum((2, 3), keepdim=True, dtype=torch.float32) * factor
        self.count(name, own)

    @torch.no_grad()
    def linear(self, name, x, d, biases):
        if x.ndim == 2:
            x, d = x[:, None], d[:, None]
        for bias, gradients in biases:
            self.count(bias, gradients(d))
        name = f"{name}.weight"
        (tokens, inputs), outputs = x.shape[1:], d.shape[2]
        if self.materialize or self.norms and inputs * outputs <= tokens * (inputs + outputs):
            own = d.mT @ x
            self.count(name, own)
            if self.materialize:
                self.work.add(name, own.sum(0, dtype=torch.float32))
            return
        # On the side that has fewer channels.
        direction = self.work.direction[name].to(d.dtype)
        dots = inner(d @ direction, x) if inputs < outputs else inner(x @ direction.t(), d)
        self.work.count(self.piece, name, dots, inner(x @ x.mT, d @ d.mT) if self.norms else None)

    def count(self, name, gradients):
        self.work.count_gradients(self.piece, name, gradients, self.norms)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def validation_gradient(proxy, batch):
    """V, always in f32."""
    work = Work(proxy, batch, bf16=False)
    work.begin()
    for piece in work.pieces(1):
        work.losses(piece).sum().backward()
    direction = {name: parameter.grad / work.size for name, parameter in work.parameters.items()}
    proxy.zero_grad(set_to_none=True)
    return direction


def forget_peak(device):
    """Resets the peak memory: `seconds` does it for a GPU, this function for a process, on Linux."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def largest_piece(run, size, device):
    """The largest piece of the batch that fits, by halving."""
    while True:
        try:
            run(size)
            return size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size = (size + 1) // 2
        if device.type == "cuda":
            torch.cuda.empty_cache()


class Measured:
    """Runs all measurements, one method after another, and records the error of each."""

    def __init__(self, arguments, device, bf16):
        sizes = CASES[arguments.case]
        size = arguments.batch or sizes.batch
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        quantizer = PyramidQuantizer(sizes).to(device)
        proxy = Proxy(sizes).to(device).eval()
        train, validation = (Batch(sizes, size, quantizer, "input", device, generator) for _ in range(2))
        self.arguments, self.device = arguments, device
        self.proxy, self.validation = proxy, validation
        self.work = Work(proxy, train, bf16)
        # The same in f32: a few samples to check a method, and all of them to measure the cost of the precision.
        self.checked = Work(proxy, train, bf16=False)
        self.checked.size, self.checked.shares = min(CHECKED_SAMPLES, size), {}
        exact = Work(proxy, train, bf16=False)
        exact.direction = validation_gradient(proxy, validation)
        one_backward_per_sample(exact)
        self.exact = exact.dots, exact.squares
        self.more = {"case": arguments.case, "mode": "eager", "precision": "bf16" if bf16 else "f32", "batch": size,
                     "threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in proxy.parameters())}
        self.plain, self.wrong = None, []
        proxy.zero_grad(set_to_none=True)

    def f32_error(self, way, context, norms):
        """The largest relative error of any parameter's share in a few samples' sums and of its summed gradient."""
        checked = self.checked
        checked.direction = self.work.direction
        one_backward_per_sample(checked)
        shares = checked.shares
        wanted = {name: parameter.grad for name, parameter in checked.parameters.items()}
        with context:
            way(checked, checked.size)
        errors = [0.0]
        for name, (dots, squares) in shares.items():
            found = checked.shares[name]
            # Relative to the product of the norms, since an inner product may be zero.
            errors.append(float((found[0] - dots).norm() / squares.sum().sqrt() / checked.direction[name].norm()))
            errors.append(relative(found[1], squares) if norms else 0.0)
            errors.append(relative(checked.parameters[name].grad, wanted[name]))
        checked.begin()
        return max(errors)

    def measure(self, name, way, dots=True, norms=True, piece=None, **more):
        """False if PyTorch does not support it."""
        work, arguments, device = self.work, self.arguments, self.device
        if name != "plain_step" and arguments.ways and name not in arguments.ways.split(","):
            return True
        name = f"meta_gradient/{name}"
        context = way if isinstance(way, Hooks) else contextlib.nullcontext()
        try:
            if dots:
                more["f32_error"] = self.f32_error(way, context, norms)
            with context:
                forget_peak(device)
                piece = piece or largest_piece(lambda piece: way(work, piece), arguments.piece or work.size, device)
                times = seconds(lambda: way(work, piece), device, 2 if device.type == "cuda" else 1,
                                arguments.repeats, arguments.budget)
                peak = peak_bytes(device)
        except (RuntimeError, NotImplementedError) as error:
            refused = str(error).strip().splitlines()[0][:200]
            print(json.dumps({"name": name, **self.more, **more, "refused": refused}), flush=True)
            return False
        median = statistics.median(times)
        if self.plain is None:
            self.plain = median, peak
        if dots:
            more["dot_error"] = relative(work.dots, self.exact[0])
        if norms:
            more["norm_error"] = relative(work.squares, self.exact[1])
        work.begin()
        report(name, times, device, images_per_s=work.size / median, piece=piece, peak_bytes=peak,
               over_plain=median / self.plain[0], peak_over_plain=peak / self.plain[1], **self.more, **more)
        if dots and not more["f32_error"] <= TOLERANCE:
            self.wrong.append((name, more["f32_error"]))
        return True

    def all(self):
        if not self.measure("plain_step", plain_step, dots=False, norms=False):
            raise SystemExit("without a plain step there is nothing to measure by")
        # Not before: a plain step does not need it.
        self.work.direction = validation_gradient(self.proxy, self.validation)
        for name, norms, materialize in [("projected_hooks", False, False), ("projected_hooks_norms", True, False),
                                         ("materialized_hooks", True, True)]:
            self.measure(name, Hooks(self.work, norms, materialize), norms=norms)
        self.measure("one_backward_per_sample", one_backward_per_sample, piece=1)
        # Last, because its imports add to the process's memory.
        for attention, context in [("fastest", contextlib.nullcontext()), ("math", sdpa_kernel(SDPBackend.MATH)),
                                   ("plain", plain_attention())]:
            with context:
                if self.measure("vmap_grad", vmap_grad, attention=attention):
                    break
        assert not self.wrong, f"further than {TOLERANCE} from one backward pass per sample in f32: {self.wrong}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="tiny-demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["f32", "bf16"], help="f32 on a CPU, bf16 on a GPU unless given")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--piece", type=int, help="the most samples at a time; the whole batch unless given")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--ways", help="which to measure, with commas between, after plain_step")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for one measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    precision = arguments.precision or ("bf16" if device.type == "cuda" else "f32")
    Measured(arguments, device, precision == "bf16").all()


if __name__ == "__main__":
    main()
