#!/usr/bin/env python3
"""Makes what tests/measures.rs compares with: the folder clip_image_tiny (a tiny CLIP as Hugging Face's libraries write it, two
pictures, and expected.json with their embeddings, those of captions, and CLIP-Scores), and inception.json, a few of the features
that pytorch-fid's Inception-v3 gives with weights from the formula of `number`, which the test repeats.

    python3 tests/fixtures_made/make_measures.py

Those that are kept were made with PyTorch 2.15.0, torchvision 0.29.2, transformers 5.24.0, pytorch-fid 0.3.0, NumPy 2.4.6 and
Pillow 13.0.0.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL
import pytorch_fid.inception as fid
import torch
import torchvision
import transformers
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).resolve().parent
CLIP = HERE / "clip_image_tiny"
TOKENIZER = HERE.parent / "fixtures" / "clip_tokenizer_tiny"
CAPTIONS = ["a photo of a dog", "the lazy dog on a sofa"]
VERSIONS = {
    "python": sys.version.split()[0], "torch": torch.__version__, "torchvision": torchvision.__version__,
    "transformers": transformers.__version__, "pytorch_fid": "0.3.0", "numpy": np.__version__, "pillow": PIL.__version__,
}


def picture(width: int, height: int, turn: int) -> Image.Image:
    """Slopes, edges and a little of everything, by whole numbers only."""
    y, x = np.mgrid[0:height, 0:width]
    red = (x * 7 + y * 3 + turn * 31) % 256
    green = np.where((x // 5 + y // 4) % 2 == 0, 40 + 60 * turn, 220)
    blue = (x * x + 2 * y * y + x * y * turn) % 256
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def clip() -> None:
    shutil.rmtree(CLIP, ignore_errors=True)
    CLIP.mkdir()
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text())
    end = vocabulary["<|endoftext|>"]
    config = CLIPConfig(
        text_config={
            "vocab_size": max(vocabulary.values()) + 1, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 3, "max_position_embeddings": 16, "eos_token_id": end,
            "bos_token_id": vocabulary["<|startoftext|>"], "pad_token_id": end,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30,
            "patch_size": 8,
        },
        projection_dim=20,
    )
    torch.manual_seed(5)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The initial weights are so small that no layer would matter.
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
            else:
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
    model.save_pretrained(CLIP)
    for name in ["vocab.json", "merges.txt"]:
        shutil.copy(TOKENIZER / name, CLIP / name)
    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    (CLIP / "preprocessor_config.json").write_text(json.dumps({
        "size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}, "resample": 3,
        "image_mean": processor.image_mean, "image_std": processor.image_std,
    }, indent=1) + "\n")
    pictures = [picture(83, 51, 0), picture(24, 37, 1)]
    for number, one in enumerate(pictures):
        one.save(CLIP / f"{number}.png")
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], pixel_values=pixels)
        images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        texts = model.text_projection(model.text_model(**ids).pooler_output)
    cosines = torch.cosine_similarity(images, texts)
    # `out` holds the embeddings at length 1.
    assert torch.allclose(out.image_embeds, images / images.norm(dim=-1, keepdim=True), atol=1e-6)
    assert torch.allclose(out.text_embeds, texts / texts.norm(dim=-1, keepdim=True), atol=1e-6)
    assert (cosines > 0).any() and (cosines < 0).any(), "both sides of the clamp"
    expected = {
        "versions": VERSIONS, "captions": CAPTIONS, "ids": ids["input_ids"].tolist(),
        "pixels_at_0_0": pixels[:, :, 0, 0].tolist(), "images": images.tolist(), "texts": texts.tolist(),
        "scores": (100 * cosines).clamp(min=0).tolist(),
    }
    (CLIP / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def number(name: str, shape: list[int]) -> torch.Tensor:
    """Uniform numbers in [-1, 1) with 16 bits each, by a hash of the name and of the place."""
    salt = 2166136261
    for byte in name.encode():
        salt = (salt ^ byte) * 16777619 % 2**32
    place = np.arange(math.prod(shape), dtype=np.uint64)
    mixed = (place + salt) * 0x9E3779B97F4A7C15
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    bits = (mixed >> np.uint64(48)).astype(np.float64)
    return torch.tensor(bits / 32768 - 1).reshape(shape)


def made(state: dict) -> dict:
    """Weights that keep the maps at a size of about 1 through all layers, as f32."""
    weights = {}
    for name, old in state.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = old
            continue
        noise = number(name, list(old.shape))
        if name.endswith("conv.weight"):
            noise = noise * math.sqrt(6 / math.prod(old.shape[1:]))
        elif name.endswith("bn.weight") or name.endswith("running_var"):
            noise = 1 + 0.25 * noise
        else:
            noise = 0.25 * noise
        weights[name] = noise.to(torch.float32)
    return weights


def inception() -> None:
    torch.manual_seed(0)
    built = {}

    def load(*_args, **_keys):
        return built

    original = torch.nn.Module.load_state_dict

    def made_weights(module, _state):
        built.update(made(module.state_dict()))
        return original(module, built)

    fid.load_state_dict_from_url = load
    torch.nn.Module.load_state_dict = made_weights
    network = fid.InceptionV3([fid.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    torch.nn.Module.load_state_dict = original
    features = []
    for one in [picture(64, 64, 0), picture(330, 330, 1)]:
        pixels = torch.from_numpy(np.array(one)).permute(2, 0, 1).to(torch.float32)[None] / 255
        with torch.no_grad():
            features.append(network(pixels)[0].flatten().double())
    kept = list(range(0, 2048, 64)) + [2047]
    expected = {
        "versions": VERSIONS,
        "images": [[64, 0], [330, 1]],
        "places": kept,
        "features": [[feature[place].item() for place in kept] for feature in features],
        "shapes": {
            name: list(tensor.shape) for name, tensor in built.items()
            if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
        },
        "norms": [feature.norm().item() for feature in features],
    }
    (HERE / "inception.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    clip()
    inception()
