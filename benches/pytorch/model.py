"""The proxy, the rater and the pyramid quantizer in plain PyTorch, as a PyTorch user would write them today.

Written for comparison with this project's own step: the same layers, shapes and precision, with PyTorch's own fused
attention and optimizer. Letters: B batch, L tokens, C channels, H heads, D = 64 channels per head, T text tokens, V codes.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Sizes:
    """One case: the pyramid, the vocabulary and both networks' depths; width = 64 depth, heads = depth."""

    def __init__(self, patch_nums, vocabulary, code_channels, proxy_depth, rater_depth, text_tokens, text_channels,
                 batch, score_batch):
        self.patch_nums = patch_nums
        self.vocabulary = vocabulary
        self.code_channels = code_channels
        self.proxy_depth = proxy_depth
        self.rater_depth = rater_depth
        self.text_tokens = text_tokens
        self.text_channels = text_channels
        self.batch = batch
        self.score_batch = score_batch
        self.tokens = sum(side * side for side in patch_nums)


FULL_PYRAMID = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

CASES = {
    # Two for the CPU baseline, one for the GPU.
    "tiny-demo": Sizes((1, 2, 3, 4, 6, 8), 512, 16, 4, 2, 16, 64, 16, 16),
    "small": Sizes(FULL_PYRAMID, 4096, 32, 6, 4, 77, 256, 2, 4),
    "large": Sizes(FULL_PYRAMID, 4096, 32, 16, 8, 77, 1024, 64, 256),
    # For rehearsals.
    "smallest": Sizes((1, 2, 3), 32, 8, 2, 1, 5, 16, 2, 2),
}


class PyramidQuantizer(nn.Module):
    """Residual quantization over the scales: area down, nearest code, bicubic up, a 3x3 convolution half mixed in."""

    def __init__(self, sizes):
        super().__init__()
        self.patch_nums = sizes.patch_nums
        self.codebook = nn.Embedding(sizes.vocabulary, sizes.code_channels)
        self.phi = nn.ModuleList(
            nn.Conv2d(sizes.code_channels, sizes.code_channels, 3, padding=1) for _ in range(4))
        scales = len(sizes.patch_nums)
        ticks = torch.linspace(1 / 12, 11 / 12, 4, dtype=torch.float64)
        self.shared = [int((ticks - scale / max(scales - 1, 1)).abs().argmin()) for scale in range(scales)]

    def grow(self, scale, codes):
        """[B, pn pn] codes of a scale to its contribution to the features, [B, Cvae, S, S]."""
        side, full = self.patch_nums[scale], self.patch_nums[-1]
        h = self.codebook(codes).transpose(1, 2).reshape(codes.shape[0], -1, side, side)
        if side != full:
            h = F.interpolate(h, size=(full, full), mode="bicubic")
        return 0.5 * h + 0.5 * self.phi[self.shared[scale]](h)

    def next_input(self, scale, total):
        side = self.patch_nums[scale + 1]
        small = F.interpolate(total, size=(side, side), mode="area") if side != total.shape[-1] else total
        return small.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def quantize(self, features):
        """[B, Cvae, S, S] features to codes [B, L] and the networks' input [B, L - 1, Cvae]."""
        rest, total = features.clone(), torch.zeros_like(features)
        squares = self.codebook.weight.square().sum(1)
        codes, inputs, last = [], [], len(self.patch_nums) - 1
        for scale, side in enumerate(self.patch_nums):
            z = F.interpolate(rest, size=(side, side), mode="area") if scale != last else rest
            z = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            distance = z.square().sum(1, keepdim=True) + squares
            distance.addmm_(z, self.codebook.weight.t(), alpha=-2, beta=1)
            index = distance.argmin(1).view(features.shape[0], -1)
            h = self.grow(scale, index)
            total += h
            rest -= h
            codes.append(index)
            if scale != last:
                inputs.append(self.next_input(scale, total))
        return torch.cat(codes, 1), torch.cat(inputs, 1)

    @torch.no_grad()
    def input_of(self, codes):
        """Codes [B, L] to the networks' input [B, L - 1, Cvae]."""
        total, inputs, start = 0, [], 0
        for scale, side in enumerate(self.patch_nums[:-1]):
            total = total + self.grow(scale, codes[:, start:start + side * side])
            inputs.append(self.next_input(scale, total))
            start += side * side
        return torch.cat(inputs, 1)


def rotary_table(patch_nums, head_channels, theta=10000.0, norm=64.0):
    """Cosine and sine, each [L, D / 2]: the first half of the pairs rotates with the column, the second with the row."""
    quarter = head_channels // 4
    frequency = theta ** (-4.0 * torch.arange(quarter, dtype=torch.float32) / head_channels)
    angles = []
    for side in patch_nums:
        place = torch.arange(side * side)
        column, row = (place % side).float(), (place // side).float()
        stretch = norm / (side - 1) if side > 1 else 0.0
        angles.append(torch.cat([torch.outer(column * stretch, frequency), torch.outer(row * stretch, frequency)], 1))
    angle = torch.cat(angles)
    return angle.cos(), angle.sin()


def rotate(x, cosine, sine):
    """Rotates neighboring pairs of channels of x [B, H, L, D]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)


def level_of_tokens(patch_nums):
    return torch.repeat_interleave(torch.arange(len(patch_nums)), torch.tensor([s * s for s in patch_nums]))


def visible(patch_nums):
    """[L, L]: a token attends to its own and coarser scales."""
    level = level_of_tokens(patch_nums)
    return level[:, None] >= level[None, :]


class DropPath(nn.Module):
    """Drop-path: drops a sample's branch with this probability."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.empty(x.shape[0], 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


class Scaled(nn.Module):
    """Normalizes queries and keys, and multiplies queries by a learned scale per head, at most 100."""

    def __init__(self, heads):
        super().__init__()
        self.scale_mul = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))

    def forward(self, q, k):
        scale = self.scale_mul.clamp_max(math.log(100.0)).exp()
        return F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)


class Packed(nn.Linear):
    """Several layers' weights in one; biases are passed in, since some of them are not parameters."""

    def __init__(self, channels, outputs):
        super().__init__(channels, outputs, bias=False)

    def forward(self, x, bias):
        return F.linear(x, self.weight, bias)


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.mat_qkv = Packed(width, 3 * width)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scaled = Scaled(heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask, cosine, sine):
        batch, tokens, width = x.shape
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = self.mat_qkv(x, bias).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.scaled(rotate(q, cosine, sine), rotate(k, cosine, sine))
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, scale=1.0)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class CrossAttention(nn.Module):
    def __init__(self, width, heads, text_channels):
        super().__init__()
        self.heads = heads
        self.mat_q = Packed(width, width)
        self.mat_kv = Packed(text_channels, 2 * width)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scaled = Scaled(heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x, text, mask):
        batch, tokens, width = x.shape
        q = self.mat_q(x, self.q_bias).view(batch, tokens, self.heads, -1).transpose(1, 2)
        bias = torch.cat([self.zero_k_bias, self.v_bias])
        kv = self.mat_kv(text, bias).view(batch, text.shape[1], 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.scaled(q.float(), k.float())
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, scale=1.0)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width, heads, text_channels, drop_path):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(width, heads)
        self.cross_attn = CrossAttention(width, heads, text_channels)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x, text, mask, text_mask, cosine, sine):
        x = x + self.drop_path(self.attn(self.norm(x), mask, cosine, sine))
        x = x + self.cross_attn(self.norm(x), text, text_mask)
        hidden = F.gelu(self.fc1(self.norm(x)), approximate="tanh")
        return x + self.drop_path(self.fc2(hidden))


class Backbone(nn.Module):
    def __init__(self, sizes, depth, boolean_mask):
        super().__init__()
        width = 64 * depth
        self.encoder_proj = nn.Linear(sizes.text_channels, width)
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.word_embed = nn.Linear(sizes.code_channels, width)
        self.lvl_embed = nn.Embedding(len(sizes.patch_nums), width)
        largest = 0.1 * depth / 24
        rates = torch.linspace(0, largest, depth).tolist()
        self.blocks = nn.ModuleList(Block(width, depth, sizes.text_channels, rate) for rate in rates)
        sees = visible(sizes.patch_nums)
        mask = sees if boolean_mask else torch.zeros(sees.shape).masked_fill_(~sees, -math.inf)
        cosine, sine = rotary_table(sizes.patch_nums, 64)
        for name, value in [("mask", mask), ("cosine", cosine), ("sine", sine),
                            ("levels", level_of_tokens(sizes.patch_nums))]:
            self.register_buffer(name, value, persistent=False)

    def forward(self, input, text, text_mask, pooled):
        start = self.encoder_proj(pooled)[:, None] + self.pos_start
        x = torch.cat([start, self.word_embed(input)], 1) + self.lvl_embed(self.levels)
        if torch.is_autocast_enabled(x.device.type):
            # The stream itself is 16-bit, as in the upstream code.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        mask = self.mask if self.mask.dtype == torch.bool else self.mask.to(x.dtype)
        seen = text_mask[:, None, None, :] == 1
        if self.mask.dtype != torch.bool:
            seen = torch.zeros(seen.shape, device=x.device, dtype=x.dtype).masked_fill(~seen, -math.inf)
        for block in self.blocks:
            x = block(x, text, mask, seen, self.cosine, self.sine)
        return x


class Proxy(nn.Module):
    def __init__(self, sizes, boolean_mask=False):
        super().__init__()
        width = 64 * sizes.proxy_depth
        self.backbone = Backbone(sizes, sizes.proxy_depth, boolean_mask)
        self.logit_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.head_logits = nn.Linear(width, sizes.vocabulary)
        initialize(self, width, sizes.proxy_depth)
        self.head_logits.weight.data *= 0.02

    def forward(self, input, text, text_mask, pooled, codes):
        """Mean loss per sample, [B]."""
        logits = self.head_logits(self.logit_norm(self.backbone(input, text, text_mask, pooled))).float()
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape).mean(1)


class Rater(nn.Module):
    def __init__(self, sizes, boolean_mask=False):
        super().__init__()
        width = 64 * sizes.rater_depth
        self.backbone = Backbone(sizes, sizes.rater_depth, boolean_mask)
        self.head_instance = nn.Sequential(nn.Linear(width, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 1))
        self.head_batch = nn.Sequential(nn.Linear(2 * width, 64), nn.GELU(), nn.Linear(64, 1))
        initialize(self, width, sizes.rater_depth)

    def forward(self, input, text, text_mask, pooled):
        """Score per sample, [B, 1]."""
        pooled = self.backbone(input, text, text_mask, pooled).mean(1)
        instance = torch.sigmoid(self.head_instance(pooled)).softmax(0)
        statistics = torch.cat([pooled.mean(0), pooled.var(0, unbiased=False)])[None]
        return instance * torch.sigmoid(self.head_batch(statistics))


def initialize(network, width, depth):
    deviation = math.sqrt(1 / (3 * width))
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif not name.endswith("scale_mul"):
            nn.init.normal_(parameter, std=deviation)
    for block in network.backbone.blocks:
        block.attn.proj.weight.data /= math.sqrt(2 * depth)
        block.fc2.weight.data /= math.sqrt(2 * depth)


def parameter_groups(network, weight_decay):
    """Weight decay for matrices; none for vectors, scales, positions and levels."""
    exempt = ("bias", "pos_start", "lvl_embed", "scale_mul")
    groups = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in network.named_parameters():
        free = parameter.ndim == 1 or name.endswith("bias") or any(word in name for word in exempt)
        groups[free]["params"].append(parameter)
    return groups
