//! CLIP's text encoder, as in Stable Diffusion 1.5 (768 channels), 2.1 (1024) and XL (its first encoder); source:
//! `CLIPTextModel` of Hugging Face's transformers, which the upstream code calls.

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
            residual::add_in_place,
            softmax::Keys,
        },
    },
    error::{Error, Result},
    weights::Weights,
};

/// The id of the end-of-text token in configurations written before it was honored; see [`ClipText`].
const LEGACY_END: u32 = 2;

/// The fields of `config.json`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Settings {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f32,
    eos_token_id: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

/// A causal transformer over token ids. The pooled vector is the state at the end-of-text token, the first token with
/// the id in the configuration. If that id is 2, which is meaningless in every released vocabulary, it is the first
/// token with the largest id.
#[derive(Clone, Debug)]
pub struct ClipText {
    settings: Settings,
    activation: Activation,
    /// `[V, C]`.
    tokens: Tensor,
    /// `[T, C]`.
    positions: Tensor,
    blocks: Vec<Block>,
    last: Norm,
    digest: String,
    /// Device of the blocks and the final norm; the embedding tables stay on the host.
    device: Option<Device>,
}

/// One block of a CLIP transformer, for text or images.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    norm1: Norm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    out_proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl ClipText {
    /// Reads `config.json` and the weights in `folder`, names with or without the prefix `text_model.`.
    ///
    /// # Errors
    /// If a file is missing or damaged, tensors are missing or surplus, or the configuration is not CLIP's.
    pub fn open(folder: &Path) -> Result<Self> {
        let settings: Settings = read_settings(folder, &["clip_text_model", "clip"], "text_config")?;
        let refuse = |message| Err(Error::Checkpoint { path: folder.join("config.json"), message });
        let Some(activation) = activation_named(&settings.hidden_act) else {
            return refuse(format!(
                "hidden_act: \"{}\" is not supported; expected one of {ACTIVATION_NAMES}",
                settings.hidden_act
            ));
        };
        let heads = settings.num_attention_heads;
        if heads == 0 || settings.hidden_size == 0 || !settings.hidden_size.is_multiple_of(heads) {
            return refuse(format!("{} channels do not split into {heads} heads", settings.hidden_size));
        }
        if settings.intermediate_size == 0 {
            return refuse("intermediate_size must be 1 or more".to_owned());
        }
        expect_layers(folder, "num_hidden_layers", settings.num_hidden_layers)?;
        const PREFIX: &str = "text_model.";
        const MARK: &str = "embeddings.token_embedding.weight";
        let weights = Weights::open(folder)?.network(&[&format!("{PREFIX}{MARK}"), MARK]);
        let prefix = if weights.names().any(|name| name.starts_with(PREFIX)) { PREFIX } else { "" };
        // The other tensors of a complete CLIP model, and the buffer of positions in old files.
        let ignored = |name: &str| {
            name.ends_with("embeddings.position_ids")
                || name.starts_with("vision_model.")
                || ["text_projection.weight", "visual_projection.weight", "logit_scale"].contains(&name)
        };
        let (clip, digest) =
            assemble(&weights, prefix, ignored, |take| Self::assemble(settings.clone(), activation, take))?;
        Ok(Self { digest, ..clip })
    }

    fn assemble(settings: Settings, activation: Activation, take: &mut Take<'_>) -> Result<Self> {
        let (channels, wide) = (settings.hidden_size, settings.intermediate_size);
        let epsilon = settings.layer_norm_eps;
        let tokens = take("embeddings.token_embedding.weight", &[settings.vocab_size, channels])?;
        let positions =
            take("embeddings.position_embedding.weight", &[settings.max_position_embeddings, channels])?;
        let blocks = (0..settings.num_hidden_layers)
            .map(|at| Block::take(&format!("encoder.layers.{at}"), channels, wide, epsilon, take))
            .collect::<Result<_>>()?;
        let last = norm("final_layer_norm", channels, epsilon, take)?;
        Ok(Self {
            settings,
            activation,
            tokens,
            positions,
            blocks,
            last,
            digest: String::new(),
            device: None,
        })
    }

    /// Maximum tokens per caption.
    pub(crate) fn positions(&self) -> usize {
        self.settings.max_position_embeddings
    }

    /// The end-of-text id; `None`: the largest id of the caption.
    pub(crate) fn end(&self) -> Option<u32> {
        (self.settings.eos_token_id != LEGACY_END).then_some(self.settings.eos_token_id)
    }

    /// The position whose state represents the caption.
    fn end_of(&self, ids: &[u32]) -> usize {
        let marked = match self.end() {
            Some(end) => end,
            None => ids.iter().copied().max().unwrap_or(0),
        };
        // As in the source: a caption without end-of-text token uses position 0.
        ids.iter().position(|&id| id == marked).unwrap_or(0)
    }
}

/// Reads a layer norm.
pub(crate) fn norm(name: &str, channels: usize, epsilon: f32, take: &mut Take<'_>) -> Result<Norm> {
    let weight = take(&format!("{name}.weight"), &[channels])?;
    Ok(Norm { weight, bias: Some(take(&format!("{name}.bias"), &[channels])?), epsilon })
}

fn linear(name: &str, outputs: usize, inputs: usize, take: &mut Take<'_>) -> Result<Linear> {
    let weight = take(&format!("{name}.weight"), &[outputs, inputs])?;
    Ok(Linear { weight, bias: Some(take(&format!("{name}.bias"), &[outputs])?) })
}

impl Block {
    /// Reads a block with this width and MLP width.
    pub(crate) fn take(
        name: &str,
        channels: usize,
        wide: usize,
        epsilon: f32,
        take: &mut Take<'_>,
    ) -> Result<Self> {
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm1: norm(&of("layer_norm1"), channels, epsilon, take)?,
            queries: linear(&of("self_attn.q_proj"), channels, channels, take)?,
            keys: linear(&of("self_attn.k_proj"), channels, channels, take)?,
            values: linear(&of("self_attn.v_proj"), channels, channels, take)?,
            out_proj: linear(&of("self_attn.out_proj"), channels, channels, take)?,
            norm2: norm(&of("layer_norm2"), channels, epsilon, take)?,
            fc1: linear(&of("mlp.fc1"), wide, channels, take)?,
            fc2: linear(&of("mlp.fc2"), channels, wide, take)?,
        })
    }

    /// Applies the block to rows `[B·T, C]`, in place.
    pub(crate) fn apply(&self, x: &mut Tensor, attention: &Keys<'_>, activation: Activation) -> Result<()> {
        let y = self.norm1.apply(x)?;
        let (queries, keys) = (self.queries.apply(&y)?, self.keys.apply(&y)?);
        let values = self.values.apply(&y)?;
        add_in_place(x, &self.out_proj.apply(&attention.attend(&queries, &keys, &values)?)?)?;
        let wide = activated(&self.fc1.apply(&self.norm2.apply(x)?)?, activation)?;
        add_in_place(x, &self.fc2.apply(&wide)?)
    }

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
            fc2: fc2?,
        })
    }
}

impl TextNetwork for ClipText {
    fn channels(&self) -> usize {
        self.settings.hidden_size
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
        const WHAT: &str = "the CLIP text encoder";
        let [batch, tokens] = [ids.dim(0), ids.dim(1)];
        if tokens > self.positions() {
            return Err(Error::shape(
                "clip",
                format!("{tokens} tokens per caption exceed the {} positions", self.positions()),
            ));
        }
        let TokenIds { ids, mask } = TokenIds::checked("clip", ids, mask)?;
        let channels = self.channels();
        let mut rows = embed(&self.tokens, &ids)?;
        let positions = &self.positions.as_slice::<f32>()?[..tokens * channels];
        for sample in rows.chunks_exact_mut(positions.len().max(1)) {
            sample.iter_mut().zip(positions).for_each(|(value, position)| *value += position);
        }
        let device = self.device.as_ref();
        let mut x = on(device, &Tensor::new(&[batch * tokens, channels], rows)?)?;
        let heads = self.settings.num_attention_heads;
        #[expect(clippy::cast_precision_loss, reason = "a head has few channels")]
        let scale = 1.0 / f32::sqrt((channels / heads) as f32);
        let mask_on = on(device, &mask)?;
        let attention = Keys { tokens, heads, scale, causal: true, mask: &mask_on, bias: None };
        for (at, block) in self.blocks.iter().enumerate() {
            block.apply(&mut x, &attention, self.activation)?;
            expect_finite(&x, tokens * channels, &format!("layer {at} of {WHAT}"), name)?;
        }
        let states = self.last.apply(&x)?.to_host()?;
        expect_finite(&states, tokens * channels, &format!("the last norm of {WHAT}"), name)?;
        let rows = states.as_slice::<f32>()?;
        let mut pooled = Vec::with_capacity(batch * channels);
        for (at, ids) in ids.as_slice::<u32>()?.chunks_exact(tokens).enumerate() {
            pooled.extend_from_slice(&rows[(at * tokens + self.end_of(ids)) * channels..][..channels]);
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
