//! T5's encoder: flan-t5-xl, which the upstream code uses, and its variants; source: `T5EncoderModel` of Hugging Face's
//! transformers.

use std::path::Path;

use serde::Deserialize;

use crate::{
    encode::{
        TextStates,
        pretrained::{
            TextNetwork, embed, expect_finite, on,
            reading::{Take, assemble, expect_layers, read_settings},
        },
        tokenizers::TokenIds,
        transformer::{ACTIVATION_NAMES, Linear, Norm, activation_named},
    },
    engine::{
        Tensor,
        cuda::Device,
        ops::{
            activation::{Activation, activated},
            multiply::multiply,
            residual::add_in_place,
            softmax::Keys,
        },
    },
    error::{Error, Result},
    weights::Weights,
};

/// The fields of `config.json`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Settings {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f32,
    feed_forward_proj: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
        }
    }
}

/// How the states of a caption are pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over its tokens, including the end-of-sequence token.
    #[default]
    Tokens,
    /// The mean over all positions, including padding: upstream behavior (upstream.md, D8).
    Everything,
}

/// A bidirectional transformer with a learned relative position bias and unscaled attention
/// logits.
#[derive(Clone, Debug)]
pub struct T5Text {
    settings: Settings,
    activation: Activation,
    pooling: Pooling,
    /// `[V, C]`.
    tokens: Tensor,
    /// `[buckets, H]`, of the first block, shared by all.
    distances: Tensor,
    blocks: Vec<Block>,
    last: Norm,
    digest: String,
    /// Device of the blocks and the final norm; the embedding tables stay on the host.
    device: Option<Device>,
}

#[derive(Clone, Debug)]
struct Block {
    norm1: Norm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    out_proj: Linear,
    norm2: Norm,
    /// The input of the activation.
    fc1: Linear,
    /// The factor of the activation's output (v1.1).
    gate: Option<Linear>,
    fc2: Linear,
}

impl T5Text {
    /// Reads `config.json` and the weights in `folder`, ignoring those of a decoder.
    ///
    /// # Errors
    /// If a file is missing or damaged, tensors are missing or surplus, or the configuration is not T5's.
    pub fn open(folder: &Path, pooling: Pooling) -> Result<Self> {
        let settings: Settings = read_settings(folder, &["t5"], "")?;
        let refuse = |message| Err(Error::Checkpoint { path: folder.join("config.json"), message });
        // "gated-gelu" has meant the tanh approximation since the first models of that kind.
        let name = match settings.feed_forward_proj.as_str() {
            "gated-gelu" => "gelu_new",
            other => other.strip_prefix("gated-").unwrap_or(other),
        };
        let Some(activation) = activation_named(name) else {
            return refuse(format!(
                "feed_forward_proj: \"{name}\" is not supported; expected one of {ACTIVATION_NAMES}"
            ));
        };
        let Settings { d_model, d_kv, d_ff, num_layers, num_heads, .. } = settings;
        if [d_model, d_kv, d_ff, num_layers, num_heads].contains(&0) {
            return refuse("d_model, d_kv, d_ff, num_layers and num_heads must be 1 or more".to_owned());
        }
        expect_layers(folder, "num_layers", num_layers)?;
        if num_heads.checked_mul(d_kv).is_none() {
            return refuse(format!("{num_heads} heads (num_heads) of {d_kv} channels (d_kv) overflow"));
        }
        let buckets = settings.relative_attention_num_buckets;
        if buckets < 4 || settings.relative_attention_max_distance <= buckets / 4 {
            return refuse(format!(
                "{buckets} buckets for distances up to {} are invalid",
                settings.relative_attention_max_distance
            ));
        }
        const SHARED: &str = "shared.weight";
        const EMBEDDING: &str = "encoder.embed_tokens.weight";
        let weights = Weights::open(folder)?.network(&[SHARED, EMBEDDING]);
        let embedding = if weights.contains(SHARED) { SHARED } else { EMBEDDING };
        let ignored =
            |name: &str| name == EMBEDDING || name.starts_with("decoder.") || name.starts_with("lm_head.");
        let (t5, digest) = assemble(&weights, "", ignored, |take| {
            Self::assemble(settings.clone(), activation, embedding, take)
        })?;
        Ok(Self { digest, pooling, ..t5 })
    }

    fn assemble(
        settings: Settings,
        activation: Activation,
        embedding: &str,
        take: &mut Take<'_>,
    ) -> Result<Self> {
        let (channels, wide, heads) = (settings.d_model, settings.d_ff, settings.num_heads);
        let inner = heads * settings.d_kv;
        let epsilon = settings.layer_norm_epsilon;
        let gated = settings.feed_forward_proj.starts_with("gated-");
        let tokens = take(embedding, &[settings.vocab_size, channels])?;
        let distances = take(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            &[settings.relative_attention_num_buckets, heads],
        )?;
        let norm = |name: &str, take: &mut Take<'_>| -> Result<Norm> {
            Ok(Norm { weight: take(&format!("{name}.weight"), &[channels])?, bias: None, epsilon })
        };
        let linear = |name: &str, outputs: usize, inputs: usize, take: &mut Take<'_>| -> Result<Linear> {
            Ok(Linear { weight: take(&format!("{name}.weight"), &[outputs, inputs])?, bias: None })
        };
        let mut blocks = Vec::with_capacity(settings.num_layers);
        for at in 0..settings.num_layers {
            let attention = |part: &str| format!("encoder.block.{at}.layer.0.SelfAttention.{part}");
            let feed = |part: &str| format!("encoder.block.{at}.layer.1.DenseReluDense.{part}");
            blocks.push(Block {
                norm1: norm(&format!("encoder.block.{at}.layer.0.layer_norm"), take)?,
                queries: linear(&attention("q"), inner, channels, take)?,
                keys: linear(&attention("k"), inner, channels, take)?,
                values: linear(&attention("v"), inner, channels, take)?,
                out_proj: linear(&attention("o"), channels, inner, take)?,
                norm2: norm(&format!("encoder.block.{at}.layer.1.layer_norm"), take)?,
                fc1: linear(&feed(if gated { "wi_0" } else { "wi" }), wide, channels, take)?,
                gate: gated.then(|| linear(&feed("wi_1"), wide, channels, take)).transpose()?,
                fc2: linear(&feed("wo"), channels, wide, take)?,
            });
        }
        let last = norm("encoder.final_layer_norm", take)?;
        let (pooling, digest) = (Pooling::default(), String::new());
        Ok(Self { settings, activation, pooling, tokens, distances, blocks, last, digest, device: None })
    }

    /// The relative position bias that is added to the attention logits, `[H, T, T]`.
    fn distance_bias(&self, tokens: usize) -> Result<Tensor> {
        let (heads, table) = (self.settings.num_heads, self.distances.as_slice::<f32>()?);
        let mut bias = vec![0.0; heads * tokens * tokens];
        for query in 0..tokens {
            for key in 0..tokens {
                let bucket = bucket(
                    query,
                    key,
                    self.settings.relative_attention_num_buckets,
                    self.settings.relative_attention_max_distance,
                );
                for head in 0..heads {
                    bias[(head * tokens + query) * tokens + key] = table[bucket * heads + head];
                }
            }
        }
        Tensor::new(&[heads, tokens, tokens], bias)
    }
}

/// The bucket of the relative position of a key to a query: half of the buckets are for later keys; in each half, the
/// first half has one bucket per distance, the rest grow logarithmically up to `most`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small integers; the rounding is the source's, in f32"
)]
fn bucket(query: usize, key: usize, buckets: usize, most: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let distance = key.abs_diff(query);
    let side = if key > query { half } else { 0 };
    if distance < exact {
        return side + distance;
    }
    let share = f32::ln(distance as f32 / exact as f32) / f64::ln(most as f64 / exact as f64) as f32;
    side + (exact + (share * (half - exact) as f32) as usize).min(half - 1)
}

impl Block {
    fn to_device(&self, device: &Device) -> Result<Self> {
        let [queries, keys, values, out_proj, fc1, fc2] =
            [&self.queries, &self.keys, &self.values, &self.out_proj, &self.fc1, &self.fc2]
                .map(|linear| linear.to_device(device));
        Ok(Self {
            norm1: self.norm1.to_device(device)?,
            queries: queries?,
            keys: keys?,
            values: values?,
            out_proj: out_proj?,
            norm2: self.norm2.to_device(device)?,
            fc1: fc1?,
            gate: self.gate.as_ref().map(|gate| gate.to_device(device)).transpose()?,
            fc2: fc2?,
        })
    }
}

impl TextNetwork for T5Text {
    fn channels(&self) -> usize {
        self.settings.d_model
    }

    fn vocabulary(&self) -> usize {
        self.settings.vocab_size
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn states(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        name: &dyn Fn(usize) -> String,
    ) -> Result<TextStates> {
        const WHAT: &str = "the T5 text encoder";
        let [batch, tokens] = [ids.dim(0), ids.dim(1)];
        let TokenIds { ids, mask } = TokenIds::checked("t5", ids, mask)?;
        let channels = self.channels();
        let device = self.device.as_ref();
        let bias = on(device, &self.distance_bias(tokens)?)?;
        let mask_on = on(device, &mask)?;
        let attention = Keys {
            tokens,
            heads: self.settings.num_heads,
            scale: 1.0,
            causal: false,
            mask: &mask_on,
            bias: Some(&bias),
        };
        let rows = embed(&self.tokens, &ids)?;
        let mut x = on(device, &Tensor::new(&[batch * tokens, channels], rows)?)?;
        // Padding is computed as well: its states are part of the output, and under `Pooling::Everything` they count.
        for (at, block) in self.blocks.iter().enumerate() {
            let y = block.norm1.apply(&x)?;
            let (queries, keys) = (block.queries.apply(&y)?, block.keys.apply(&y)?);
            let values = block.values.apply(&y)?;
            add_in_place(&mut x, &block.out_proj.apply(&attention.attend(&queries, &keys, &values)?)?)?;
            let y = block.norm2.apply(&x)?;
            let mut wide = activated(&block.fc1.apply(&y)?, self.activation)?;
            if let Some(gate) = &block.gate {
                wide = multiply(&wide, &gate.apply(&y)?)?;
            }
            add_in_place(&mut x, &block.fc2.apply(&wide)?)?;
            expect_finite(&x, tokens * channels, &format!("layer {at} of {WHAT}"), name)?;
        }
        let states = self.last.apply(&x)?.to_host()?;
        expect_finite(&states, tokens * channels, &format!("the last norm of {WHAT}"), name)?;
        let (rows, mask_values) = (states.as_slice::<f32>()?, mask.as_slice::<u32>()?);
        let mut pooled = vec![0.0; batch * channels];
        for (at, pooled) in pooled.chunks_exact_mut(channels).enumerate() {
            let mut counted = 0.0f32;
            for token in at * tokens..(at + 1) * tokens {
                if self.pooling == Pooling::Everything || mask_values[token] == 1 {
                    counted += 1.0;
                    let state = &rows[token * channels..][..channels];
                    pooled.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
                }
            }
            pooled.iter_mut().for_each(|value| *value /= counted);
        }
        Ok(TextStates {
            states: states.reshape(&[batch, tokens, channels])?,
            mask,
            pooled: Tensor::new(&[batch, channels], pooled)?,
        })
    }

    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn TextNetwork>> {
        let blocks = self.blocks.iter().map(|block| block.to_device(device)).collect::<Result<_>>()?;
        let last = self.last.to_device(device)?;
        Ok(Box::new(Self { blocks, last, device: Some(device.clone()), ..*self }))
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn distances_fall_into_the_buckets_of_the_source() {
        // Values of the source for 32 buckets and 128 tokens.
        for (query, key, expected) in [
            (0, 0, 0),
            (7, 0, 7),
            (8, 0, 8),
            (11, 0, 8),
            (12, 0, 9),
            (16, 0, 10),
            (32, 0, 12),
            (64, 0, 14),
            (119, 0, 15),
            (500, 0, 15),
            (0, 1, 17),
            (0, 7, 23),
            (0, 8, 24),
            (0, 119, 31),
        ] {
            assert_eq!(bucket(query, key, 32, 128), expected, "{query} {key}");
        }
    }
}
