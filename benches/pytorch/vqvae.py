"""The VQ-VAE of the released size, reimplemented in PyTorch for the benches here, with the module names of the released
weights."""

import torch
import torch.nn.functional as F
from torch import nn

from model import FULL_PYRAMID, Sizes

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
    """The encoder, or the decoder with `up`, with the module names of the released weights."""

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
