//! Tiny made-up folders of encoders, as Hugging Face's libraries write them: random weights, a real tokenizer's form.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::common::normal;
use alchemist_engine::engine::DType;

/// Weights by name: shape and numbers.
pub(crate) type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Wide enough that no product is small: those that give 256 numbers or fewer are summed in another order.
pub(crate) const CHANNELS: usize = 64;
pub(crate) const WIDE: usize = 80;
pub(crate) const POSITIONS: usize = 14;
/// Of `clip_tokenizer_tiny`.
pub(crate) const CLIP_VOCABULARY: usize = 654;

fn random(shapes: Vec<(String, Vec<usize>)>) -> Weights {
    let one = |(at, (name, shape)): (usize, (String, Vec<usize>))| {
        let values = normal(&shape, at as u64, DType::F32).as_slice::<f32>().unwrap().to_vec();
        let values = values.iter().map(|value| 0.3 * value).collect();
        (name, (shape, values))
    };
    shapes.into_iter().enumerate().map(one).collect()
}

pub(crate) fn clip_config() -> Value {
    json!({
        "model_type": "clip_text_model", "vocab_size": CLIP_VOCABULARY, "hidden_size": CHANNELS,
        "intermediate_size": WIDE, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 653,
    })
}

pub(crate) fn clip_weights() -> Weights {
    let c = CHANNELS;
    let mut shapes = vec![
        ("text_model.embeddings.token_embedding.weight".to_owned(), vec![CLIP_VOCABULARY, c]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), vec![POSITIONS, c]),
    ];
    let both = |name: String, outputs: usize, inputs: Option<usize>| {
        let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
        [(format!("{name}.weight"), weight), (format!("{name}.bias"), vec![outputs])]
    };
    for layer in 0..2 {
        let of = |part: &str| format!("text_model.encoder.layers.{layer}.{part}");
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            shapes.extend(both(of(&format!("self_attn.{part}")), c, Some(c)));
        }
        shapes.extend(both(of("layer_norm1"), c, None));
        shapes.extend(both(of("layer_norm2"), c, None));
        shapes.extend(both(of("mlp.fc1"), WIDE, Some(c)));
        shapes.extend(both(of("mlp.fc2"), c, Some(WIDE)));
    }
    shapes.extend(both("text_model.final_layer_norm".to_owned(), c, None));
    random(shapes)
}

pub(crate) fn write_weights(path: &Path, weights: &Weights) {
    let bytes: Vec<(&String, &Vec<usize>, &[u8])> =
        weights.iter().map(|(name, (shape, values))| (name, shape, bytemuck::cast_slice(values))).collect();
    let views = bytes
        .into_iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The same in two shards with an index.
pub(crate) fn write_shards(folder: &Path, weights: &Weights) {
    let mut map = BTreeMap::new();
    for shard in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let part: Weights = weights
            .iter()
            .enumerate()
            .filter(|(at, _)| at % 2 == shard)
            .map(|(_, (name, tensor))| (name.clone(), tensor.clone()))
            .collect();
        map.extend(part.keys().map(|name| (name.clone(), file.clone())));
        write_weights(&folder.join(&file), &part);
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

pub(crate) fn copy_clip_tokenizer(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(Path::new("tests/fixtures/clip_tokenizer_tiny").join(file), to.join(file)).unwrap();
    }
}

/// A pipeline's root with `text_encoder/` and `tokenizer/`.
pub(crate) fn clip_pipeline(root: &Path, weights: &Weights) -> PathBuf {
    let model = root.join("text_encoder");
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("config.json"), clip_config().to_string()).unwrap();
    write_weights(&model.join("model.safetensors"), weights);
    copy_clip_tokenizer(&root.join("tokenizer"));
    root.to_path_buf()
}

/// The fast form of `clip_tokenizer_tiny`.
pub(crate) fn clip_tokenizer_json() -> Value {
    let fixture = Path::new("tests/fixtures/clip_tokenizer_tiny");
    let vocabulary: Value = serde_json::from_slice(&fs::read(fixture.join("vocab.json")).unwrap()).unwrap();
    let merges = fs::read_to_string(fixture.join("merges.txt")).unwrap();
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let special = |content: &str| {
        json!({
            "id": vocabulary[content], "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special("<|startoftext|>"), special("<|endoftext|>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"},
                "behavior": "Removed", "invert": true,
            },
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": ["<|endoftext|>", vocabulary["<|endoftext|>"]],
            "cls": ["<|startoftext|>", vocabulary["<|startoftext|>"]], "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": vocabulary, "merges": merges,
        },
    })
}

/// Pieces of a T5 tokenizer: every letter, and two words.
pub(crate) fn t5_tokenizer_json() -> Value {
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    let mut pieces =
        vec![json!(["<pad>", 0.0]), json!(["</s>", 0.0]), json!(["<unk>", 0.0]), json!(["▁", -2.0])];
    pieces.extend(('a'..='z').map(|letter| json!([letter.to_string(), -6.0])));
    pieces.extend([json!(["▁cat", -3.0]), json!(["▁dog", -3.0])]);
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false},
    })
}

/// The folder of a T5 encoder, its tokenizer inside; `gated`: v1.1, otherwise v1.0.
pub(crate) fn t5_folder(root: &Path, gated: bool) -> Weights {
    fs::create_dir_all(root).unwrap();
    let c = CHANNELS;
    let projection = if gated { "gated-gelu" } else { "relu" };
    let config = json!({
        "model_type": "t5", "vocab_size": 40, "d_model": c, "d_kv": 20, "d_ff": WIDE, "num_layers": 2, "num_heads": 3,
        "feed_forward_proj": projection,
    });
    fs::write(root.join("config.json"), config.to_string()).unwrap();
    fs::write(root.join("tokenizer.json"), t5_tokenizer_json().to_string()).unwrap();
    let weights = t5_weights(gated);
    write_weights(&root.join("model.safetensors"), &weights);
    weights
}

pub(crate) fn t5_weights(gated: bool) -> Weights {
    let c = CHANNELS;
    let mut shapes = vec![
        ("shared.weight".to_owned(), vec![40, c]),
        ("encoder.final_layer_norm.weight".to_owned(), vec![c]),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".to_owned(), vec![32, 3]),
    ];
    for block in 0..2 {
        let of = |part: &str| format!("encoder.block.{block}.layer.{part}.weight");
        for part in ["q", "k", "v"] {
            shapes.push((of(&format!("0.SelfAttention.{part}")), vec![60, c]));
        }
        shapes.push((of("0.SelfAttention.o"), vec![c, 60]));
        shapes.push((of("0.layer_norm"), vec![c]));
        shapes.push((of("1.layer_norm"), vec![c]));
        for part in if gated { &["wi_0", "wi_1"][..] } else { &["wi"][..] } {
            shapes.push((of(&format!("1.DenseReluDense.{part}")), vec![WIDE, c]));
        }
        shapes.push((of("1.DenseReluDense.wo"), vec![c, WIDE]));
    }
    random(shapes)
}
