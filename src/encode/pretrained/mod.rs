//! Pretrained text encoders: a folder in Hugging Face's layout, with a tokenizer, a configuration and weights.
//!
//! Everything is computed in f32, whatever the dtype of the weights, so that nothing overflows that did not during
//! training. A run keeps no copy of the weights: it records their path and fingerprint; see [`Pretrained`].

pub mod clip;
mod folder;
pub(crate) mod reading;
pub mod t5;

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    encode::{
        TextEncoder, TextStates,
        saved::{self, EncoderDescription, TEXT_ENCODER},
        tokenizers::{TextTokenizer, TokenIds},
        transformer::first_not_finite,
    },
    engine::{Tensor, cuda::Device},
    error::{Error, Result},
    files::hexadecimal,
};
use clip::ClipText;
use folder::Folder;
use t5::{Pooling, T5Text};

/// Number of rows (tokens of all captions) computed at once: enough for efficient products, few enough for memory.
/// Batching does not change the states: a product with more than 256 output elements computes every row in the same
/// way.
const ROWS: usize = 640;

/// Tokens per caption in the upstream use of T5.
pub(crate) const T5_TOKENS: usize = 120;

/// The kind of a pretrained encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderKind {
    /// CLIP's text encoder.
    Clip,
    /// T5's encoder.
    T5,
}

impl EncoderKind {
    /// The name in configurations and descriptions.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::T5 => "t5",
        }
    }

    /// Looks up a kind by name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Clip, Self::T5].into_iter().find(|kind| kind.name() == name)
    }
}

/// Whether the text encoder described in `folder` is a pretrained one.
///
/// # Errors
/// If there is no description.
pub(crate) fn is_pretrained(folder: &Path) -> Result<bool> {
    Ok(EncoderKind::named(&saved::read_description(&folder.join(TEXT_ENCODER))?.kind).is_some())
}

/// A network that maps token ids to text states.
pub trait TextNetwork: Send + Sync {
    /// Channels per token.
    fn channels(&self) -> usize;

    /// Vocabulary size.
    fn vocabulary(&self) -> usize;

    /// SHA-256 over the weights in use.
    fn digest(&self) -> &str;

    /// Maps ids `[B, T]` and the attention mask `[B, T]` (`None`: all ones) to text states; `name` names a sample in
    /// messages.
    ///
    /// # Errors
    /// If the shapes do not match, an id is out of range, a sample has no token, or a state is not finite.
    fn states(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        name: &dyn Fn(usize) -> String,
    ) -> Result<TextStates>;

    /// Moves the network to a device. Ids and states stay on the host; non-finite values are only detected at the end,
    /// after all layers.
    ///
    /// # Errors
    /// If there is not enough memory, or the device fails.
    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn TextNetwork>>;
}

/// The path of an encoder and how it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainedSettings {
    /// The folder of the encoder, with the tokenizer inside or next to it, or of a pipeline.
    pub path: PathBuf,
    /// Tokens per caption. `None`: all of CLIP's positions, and 120 for T5.
    pub tokens: Option<usize>,
    /// Expected channels. `None`: those of the encoder.
    pub channels: Option<usize>,
    /// T5's pooled vector is the mean over padding, too: upstream behavior.
    pub mean_over_padding: bool,
}

/// A pretrained text encoder. [`save`](TextEncoder::save) writes a description with the path and the fingerprint, not
/// the gigabytes of weights; [`load`](Self::load) reads them from that path.
pub struct Pretrained {
    kind: EncoderKind,
    settings: PretrainedSettings,
    words: TextTokenizer,
    network: Box<dyn TextNetwork>,
    fingerprint: String,
    /// Whether the network is on a device.
    on_device: bool,
}

impl Pretrained {
    /// Opens the folder that the settings name.
    ///
    /// # Errors
    /// If it has no such encoder or no tokenizer, a file is damaged, tensors are missing or surplus, or the sizes do
    /// not match the settings.
    pub fn open(kind: EncoderKind, settings: PretrainedSettings) -> Result<Self> {
        let folder = Folder::find(&settings.path)?;
        let refuse = |message| Err(Error::Checkpoint { path: settings.path.clone(), message });
        let (words, network): (TextTokenizer, Box<dyn TextNetwork>) = match kind {
            EncoderKind::Clip => {
                let clip = ClipText::open(&folder.model)?;
                if let Some(tokens) = settings.tokens
                    && tokens > clip.positions()
                {
                    return refuse(format!(
                        "text_encoder.tokens is {tokens}, but this encoder has {} positions",
                        clip.positions()
                    ));
                }
                let words = TextTokenizer::clip(&folder.tokenizer, settings.tokens, clip.positions())?;
                expect_end(&words, clip.end(), &folder)?;
                (words, Box::new(clip))
            }
            EncoderKind::T5 => {
                let pooling = if settings.mean_over_padding { Pooling::Everything } else { Pooling::Tokens };
                let words = TextTokenizer::t5(&folder.tokenizer, settings.tokens.unwrap_or(T5_TOKENS))?;
                (words, Box::new(T5Text::open(&folder.model, pooling)?))
            }
        };
        if let Some(channels) = settings.channels
            && channels != network.channels()
        {
            return refuse(format!(
                "text_encoder.channels is {channels}, but this encoder has {} channels; leave the key out",
                network.channels()
            ));
        }
        if words.largest_id() as usize >= network.vocabulary() {
            return refuse(format!(
                "the tokenizer has ids up to {}, but the encoder has only {}; they belong to different models",
                words.largest_id(),
                network.vocabulary()
            ));
        }
        let settings = PretrainedSettings {
            path: std::path::absolute(&settings.path).map_err(Error::io("resolve", &settings.path))?,
            tokens: Some(words.length()),
            channels: Some(network.channels()),
            ..settings
        };
        let fingerprint = fingerprint(kind, &settings, &folder, &words, network.as_ref())?;
        Ok(Self { kind, settings, words, network, fingerprint, on_device: false })
    }

    /// Opens the encoder that the description in `folder` refers to; `moved` is its current path, if it was moved.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and if the encoder is not the one that was described.
    pub fn load(kind: EncoderKind, folder: &Path, moved: Option<&Path>) -> Result<Self> {
        let path = folder.join(TEXT_ENCODER);
        let description: EncoderDescription = saved::read_description(&path)?;
        let mut settings: PretrainedSettings = description.settings(&path, kind.name())?;
        if let Some(moved) = moved {
            moved.clone_into(&mut settings.path);
        }
        let at = settings.path.clone();
        if !at.is_dir() {
            return Err(Error::Checkpoint {
                path,
                message: format!(
                    "the text encoder was in {}, and there is no such folder any more; --set text_encoder.path=FOLDER says \
                     where it is now",
                    at.display()
                ),
            });
        }
        let loaded = Self::open(kind, settings)?;
        if loaded.fingerprint != description.fingerprint {
            return Err(Error::Checkpoint {
                path,
                message: format!(
                    "the text encoder in {} is another one than that which was used (fingerprint {}, not {}); --set \
                     text_encoder.path=FOLDER names the right one",
                    at.display(),
                    loaded.fingerprint,
                    description.fingerprint
                ),
            });
        }
        Ok(loaded)
    }

    /// The kind of the encoder.
    pub fn kind(&self) -> EncoderKind {
        self.kind
    }

    /// States of ids `[B, T]`; `name` names a caption in messages.
    fn states(&self, words: &TokenIds, name: &dyn Fn(usize) -> String) -> Result<TextStates> {
        let (tokens, channels) = (self.tokens(), self.channels());
        let batch = words.ids.shape().first().copied().unwrap_or(0);
        let words = TokenIds::checked("text encoder", &words.ids, Some(&words.mask))?;
        if words.ids.shape() != [batch, tokens] {
            return Err(Error::shape(
                "text encoder",
                format!("expected ids [B, {tokens}], got {:?}", words.ids.shape()),
            ));
        }
        let (ids, attended) = (words.ids.as_slice::<u32>()?, words.mask.as_slice::<u32>()?);
        let (mut states, mut mask, mut pooled) = (Vec::new(), Vec::new(), Vec::new());
        // A few captions at a time: the activations between layers are many times larger than the output.
        let most = (ROWS / tokens).max(1);
        for start in (0..batch).step_by(most) {
            let count = most.min(batch - start);
            // On a device every batch has the same size, so that all captions are computed in the same way.
            let filled = if self.on_device { most } else { count };
            let part = |values: &[u32]| {
                let mut part = values[start * tokens..(start + count) * tokens].to_vec();
                (count..filled).for_each(|_| part.extend_from_within(..tokens));
                Tensor::new(&[filled, tokens], part)
            };
            let name = |at: usize| name(start + if at < count { at } else { 0 });
            let found = self.network.states(&part(ids)?, Some(&part(attended)?), &name)?;
            let rows = count * tokens;
            states.extend_from_slice(&found.states.as_slice::<f32>()?[..rows * channels]);
            mask.extend_from_slice(&found.mask.as_slice::<u32>()?[..rows]);
            pooled.extend_from_slice(&found.pooled.as_slice::<f32>()?[..count * channels]);
        }
        Ok(TextStates {
            states: Tensor::new(&[batch, tokens, channels], states)?,
            mask: Tensor::new(&[batch, tokens], mask)?,
            pooled: Tensor::new(&[batch, channels], pooled)?,
        })
    }
}

impl TextEncoder for Pretrained {
    fn tokens(&self) -> usize {
        self.words.length()
    }

    fn channels(&self) -> usize {
        self.network.channels()
    }

    fn encode(&self, captions: &[&str]) -> Result<TextStates> {
        self.states(&self.words.encode(captions)?, &|at| format!("the caption {:?}", captions[at]))
    }

    fn ids(&self, captions: &[&str]) -> Result<TokenIds> {
        self.words.encode(captions)
    }

    fn encode_ids(&self, ids: &TokenIds) -> Result<TextStates> {
        self.states(ids, &|at| format!("caption {at} of the batch"))
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(TEXT_ENCODER);
        saved::write_description(&path, self.kind.name(), &self.settings, &self.fingerprint)
    }

    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn TextEncoder>> {
        let network = self.network.to_device(device)?;
        Ok(Box::new(Self { network, on_device: true, ..*self }))
    }
}

/// SHA-256 over everything that the states depend on. Weights are hashed by value, so that the fingerprint does not
/// depend on the file format or on shards.
fn fingerprint(
    kind: EncoderKind,
    settings: &PretrainedSettings,
    folder: &Folder,
    words: &TextTokenizer,
    network: &dyn TextNetwork,
) -> Result<String> {
    let mut hash = Sha256::new();
    let mean = kind == EncoderKind::T5 && settings.mean_over_padding;
    hash.update(format!("{}/1 tokens {} mean over padding {mean}\n", kind.name(), words.length()));
    let config = folder.model.join("config.json");
    for path in std::iter::once(&config).chain(words.files()) {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hash.update(format!("{name} {}\n", bytes.len()));
        hash.update(&bytes);
    }
    hash.update(network.digest());
    Ok(hexadecimal(&hash.finalize()))
}

/// Rejects a tokenizer that never produces the end-of-text token whose state represents the caption.
fn expect_end(words: &TextTokenizer, end: Option<u32>, folder: &Folder) -> Result<()> {
    let Some(end) = end else { return Ok(()) };
    if words.encode(&[""])?.ids.as_slice::<u32>()?.contains(&end) {
        return Ok(());
    }
    Err(Error::Checkpoint {
        path: folder.model.join("config.json"),
        message: format!(
            "eos_token_id is {end}, but the tokenizer in {} never produces that id; they belong to different models",
            folder.tokenizer.display()
        ),
    })
}

impl TokenIds {
    /// Checks that ids and mask (`None`: all ones) have the same shape, and that every sample has a token.
    pub(super) fn checked(op: &'static str, ids: &Tensor, mask: Option<&Tensor>) -> Result<Self> {
        let values = ids.as_slice::<u32>()?;
        let mask = match mask {
            Some(mask) => mask.clone(),
            None => Tensor::new(ids.shape(), vec![1u32; values.len()])?,
        };
        if ids.shape().len() != 2 || mask.shape() != ids.shape() {
            return Err(Error::shape(
                op,
                format!("ids {:?} and mask {:?} are not both [B, T]", ids.shape(), mask.shape()),
            ));
        }
        let tokens = ids.dim(1).max(1);
        if let Some(at) = mask.as_slice::<u32>()?.chunks(tokens).position(|mask| !mask.contains(&1)) {
            return Err(Error::shape(op, format!("the mask of sample {at} has no tokens")));
        }
        Ok(Self { ids: ids.clone(), mask })
    }
}

/// Looks up embeddings, rows `[B·T, C]`.
pub(super) fn embed(table: &Tensor, ids: &Tensor) -> Result<Vec<f32>> {
    let (count, channels) = (table.dim(0), table.dim(1));
    let (table, ids) = (table.as_slice::<f32>()?, ids.as_slice::<u32>()?);
    if let Some(id) = ids.iter().find(|&&id| id as usize >= count) {
        return Err(Error::shape("embed", format!("id {id} is not below {count}")));
    }
    let mut rows = vec![0.0; ids.len() * channels];
    rows.par_chunks_exact_mut(channels)
        .zip(ids)
        .for_each(|(row, &id)| row.copy_from_slice(&table[id as usize * channels..][..channels]));
    Ok(rows)
}

/// Moves a tensor to the device, if there is one.
pub(super) fn on(device: Option<&Device>, tensor: &Tensor) -> Result<Tensor> {
    device.map_or_else(|| Ok(tensor.clone()), |device| tensor.to_device(device))
}

/// Rejects states that are not finite; the message names the layer and the sample (each has `sample` values). Tensors
/// on a device are not checked.
pub(super) fn expect_finite(
    x: &Tensor,
    sample: usize,
    part: &str,
    name: &dyn Fn(usize) -> String,
) -> Result<()> {
    if x.device().is_some() {
        return Ok(());
    }
    match first_not_finite(x.as_slice()?, sample) {
        None => Ok(()),
        Some(at) => Err(Error::not_finite(format!(
            "{part} outputs values that are not finite for {}; its weights are damaged or belong to another model",
            name(at)
        ))),
    }
}
