//! CLIP's image tower: a vision transformer with the projection into the space shared with captions; source:
//! `CLIPVisionModelWithProjection` of Hugging Face's transformers.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::space::FeatureSpace;
use crate::{
    data::{
        ImageRef, Preprocess,
        image::{preprocess::DEFAULT_MAX_PIXELS, resample::Filter},
        load_full_image,
    },
    encode::{
        pretrained::{
            clip::{Block, norm},
            reading::{Take, assemble, expect_layers, read_settings},
        },
        transformer::{ACTIVATION_NAMES, Linear, Norm, activation_named},
    },
    engine::{
        Tensor,
        ops::{activation::Activation, softmax::Keys},
    },
    error::{Error, Result},
    files::mistaken::read_json,
    weights::Weights,
};

const OP: &str = "CLIP image embedding";

/// The projection's name, both in a full CLIP model and in an image tower on its own.
const PROJECTION: &str = "visual_projection.weight";

/// The maximum side of a network's input images: far larger than in any released network, and with its square within
/// the pixel limit of an image.
const LONGEST_SIDE: usize = 8_192;

/// The fields of `config.json`, with the defaults of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Settings {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

/// Image preprocessing from `preprocessor_config.json`, by default that of CLIP's training: the short side is resized
/// to [`side`](Self::side) with Pillow's bicubic filter, the center square is cropped, and each channel is normalized.
#[derive(Clone, Debug, PartialEq)]
struct Normalized {
    /// Pixels of the short side after resizing.
    resized: usize,
    /// Pixels of the side of the crop.
    side: usize,
    mean: [f32; 3],
    deviation: [f32; 3],
}

/// Encodes images to embeddings `[B, D]`.
#[derive(Clone, Debug)]
pub struct ClipImage {
    settings: Settings,
    prepare: Normalized,
    decode: Preprocess,
    activation: Activation,
    /// `[C]`.
    class: Tensor,
    /// `[C, 3·P²]`.
    patches: Linear,
    /// `[1 + N, C]`.
    positions: Tensor,
    first: Norm,
    blocks: Vec<Block>,
    last: Norm,
    /// `[D, C]`.
    projection: Linear,
    digest: String,
}

/// The folder of a path to a folder or to weights in it.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    if path.is_file() { path.parent().unwrap_or(Path::new(".")).to_path_buf() } else { path.to_path_buf() }
}

impl ClipImage {
    /// Opens a folder in Hugging Face's layout, or its weights file with `config.json` next to it: a full CLIP model or
    /// its image tower. `decode` configures transparency and EXIF data.
    ///
    /// # Errors
    /// If a file is missing or damaged, tensors are missing or unexpected, or the configuration is not a CLIP
    /// configuration.
    pub fn open(path: &Path, decode: Preprocess) -> Result<Self> {
        let folder = folder_of(path);
        let settings: Settings = read_settings(&folder, &["clip", "clip_vision_model"], "vision_config")?;
        let refuse = |message| Err(Error::Checkpoint { path: folder.join("config.json"), message });
        let Some(activation) = activation_named(&settings.hidden_act) else {
            return refuse(format!(
                "hidden_act: \"{}\" is not supported; expected one of {ACTIVATION_NAMES}",
                settings.hidden_act
            ));
        };
        let Settings { hidden_size, intermediate_size, num_attention_heads: heads, .. } = settings;
        let Settings { image_size, patch_size, num_hidden_layers, .. } = settings;
        if heads == 0 || hidden_size == 0 || !hidden_size.is_multiple_of(heads) {
            return refuse(format!("{hidden_size} channels do not split into {heads} heads"));
        }
        if patch_size == 0 || image_size < patch_size || settings.num_channels != 3 {
            return refuse(format!(
                "images of {} channels and side {image_size} cannot be cut into patches of side {patch_size}",
                settings.num_channels
            ));
        }
        if image_size > LONGEST_SIDE {
            return refuse(format!(
                "image_size is {image_size}, but must be at most {LONGEST_SIDE}; use the \
                 config.json that came with the weights"
            ));
        }
        if intermediate_size == 0 {
            return refuse("intermediate_size must be 1 or more".to_owned());
        }
        expect_layers(&folder, "num_hidden_layers", num_hidden_layers)?;
        let prepare = Normalized::read(&folder, image_size)?;
        let weights = Weights::open(path)?.network(&[PROJECTION]);
        // A tower without a projection has no embeddings to compare with captions; its hidden states are another space.
        let Some(&[dimensions, _]) = weights.entry(PROJECTION).map(|entry| &entry.shape[..]) else {
            return Err(Error::Checkpoint {
                path: path.to_path_buf(),
                message: format!(
                    "contains no matrix {PROJECTION}; use a CLIPModel or a CLIPVisionModelWithProjection"
                ),
            });
        };
        let ignored = |name: &str| {
            name.ends_with("embeddings.position_ids")
                || name.starts_with("text_model.")
                || ["text_projection.weight", "logit_scale"].contains(&name)
        };
        let (clip, digest) = assemble(&weights, "", ignored, |take| {
            Self::assemble(&settings, &prepare, decode, activation, dimensions, take)
        })?;
        Ok(Self { digest, ..clip })
    }

    fn assemble(
        settings: &Settings,
        prepare: &Normalized,
        decode: Preprocess,
        activation: Activation,
        dimensions: usize,
        take: &mut Take<'_>,
    ) -> Result<Self> {
        let Settings { hidden_size: channels, intermediate_size: wide, patch_size: patch, .. } = *settings;
        let (epsilon, cells) = (settings.layer_norm_eps, (settings.image_size / patch).pow(2));
        let class = take("vision_model.embeddings.class_embedding", &[channels])?;
        let filters = take("vision_model.embeddings.patch_embedding.weight", &[channels, 3, patch, patch])?;
        // A call that only collects the names gets empty tensors.
        let filters =
            if filters.is_empty() { filters } else { filters.reshape(&[channels, 3 * patch * patch])? };
        let positions = take("vision_model.embeddings.position_embedding.weight", &[1 + cells, channels])?;
        // The name is misspelled upstream, too.
        let first = norm("vision_model.pre_layrnorm", channels, epsilon, take)?;
        let blocks = (0..settings.num_hidden_layers)
            .map(|at| {
                Block::take(&format!("vision_model.encoder.layers.{at}"), channels, wide, epsilon, take)
            })
            .collect::<Result<_>>()?;
        let last = norm("vision_model.post_layernorm", channels, epsilon, take)?;
        let projection = Linear { weight: take(PROJECTION, &[dimensions, channels])?, bias: None };
        Ok(Self {
            settings: settings.clone(),
            prepare: prepare.clone(),
            decode,
            activation,
            class,
            patches: Linear { weight: filters, bias: None },
            positions,
            first,
            blocks,
            last,
            projection,
            digest: String::new(),
        })
    }

    /// The token embeddings before the blocks, after the first norm, `[B·(1 + N), C]`.
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        let Settings { image_size: side, patch_size: patch, hidden_size: channels, .. } = self.settings;
        let grid = side / patch;
        let mut cut = Vec::with_capacity(images.len());
        for image in images.as_slice::<f32>()?.chunks_exact(3 * side * side) {
            for cell in 0..grid * grid {
                let (top, left) = (cell / grid * patch, cell % grid * patch);
                for line in 0..3 * patch {
                    let (channel, row) = (line / patch, line % patch);
                    cut.extend_from_slice(&image[(channel * side + top + row) * side + left..][..patch]);
                }
            }
        }
        let cut = Tensor::new(&[cut.len() / (3 * patch * patch), 3 * patch * patch], cut)?;
        let embedded = self.patches.apply(&cut)?;
        let (class, positions) = (self.class.as_slice::<f32>()?, self.positions.as_slice::<f32>()?);
        let mut rows = Vec::with_capacity(images.dim(0) * positions.len());
        for cells in embedded.as_slice::<f32>()?.chunks_exact(grid * grid * channels) {
            let all = class.iter().chain(cells);
            rows.extend(all.zip(positions).map(|(value, position)| value + position));
        }
        Tensor::new(&[rows.len() / channels, channels], rows)
    }
}

impl FeatureSpace for ClipImage {
    fn name(&self) -> String {
        let Settings { image_size, patch_size, hidden_size, num_hidden_layers, .. } = self.settings;
        format!(
            "CLIP ViT image embedding, {} dimensions ({num_hidden_layers} layers of {hidden_size}, {image_size} pixels in patches \
             of {patch_size})",
            self.dimensions()
        )
    }

    fn identity(&self) -> String {
        format!("{} {:?} {}", self.name(), self.prepare, self.digest)
    }

    fn dimensions(&self) -> usize {
        self.projection.weight.dim(0)
    }

    fn read(&self, image: &ImageRef) -> Result<Tensor> {
        let full = load_full_image(image, &self.decode)?;
        let Normalized { resized, side, mean, deviation } = self.prepare;
        let [width, height] = size_after([full.width, full.height], resized, self.decode.max_pixels)
            .map_err(|message| image.refuse(message))?;
        let square = full.resized(width, height, Filter::Bicubic).middle(side, side);
        let values = (0..3).flat_map(|channel| {
            let levels = square.rgb.iter().skip(channel).step_by(3);
            levels.map(move |&level| (f32::from(level) / 255.0 - mean[channel]) / deviation[channel])
        });
        Tensor::new(&[3, side, side], values.collect::<Vec<f32>>())
    }

    fn features(&self, images: &Tensor) -> Result<Tensor> {
        let Settings { image_size: side, patch_size, hidden_size: channels, .. } = self.settings;
        if !matches!(*images.shape(), [_, 3, height, width] if (height, width) == (side, side)) {
            return Err(Error::shape(
                OP,
                format!("expected images [B, 3, {side}, {side}], got {:?}", images.shape()),
            ));
        }
        let (batch, tokens) = (images.dim(0), 1 + (side / patch_size).pow(2));
        let mut x = self.first.apply(&self.tokens(images)?)?;
        let heads = self.settings.num_attention_heads;
        #[expect(clippy::cast_precision_loss, reason = "a head has few channels")]
        let scale = 1.0 / f32::sqrt((channels / heads) as f32);
        let mask = Tensor::new(&[batch * tokens], vec![1u32; batch * tokens])?;
        let attention = Keys { tokens, heads, scale, causal: false, mask: &mask, bias: None };
        for block in &self.blocks {
            block.apply(&mut x, &attention, self.activation)?;
        }
        let rows = x.as_slice::<f32>()?;
        let class: Vec<f32> =
            rows.chunks_exact(tokens * channels).flat_map(|rows| &rows[..channels]).copied().collect();
        let class = self.last.apply(&Tensor::new(&[batch, channels], class)?)?;
        self.projection.apply(&class)
    }
}

/// Width and height of an image whose short side is resized to `short` pixels, at most [`LONGEST_SIDE`], with its long
/// side rounded down. The image is resized before cropping, so one that would exceed the pixel limit is an error.
fn size_after([width, height]: [usize; 2], short: usize, max_pixels: u64) -> Result<[usize; 2], String> {
    let long = short * width.max(height) / width.min(height).max(1);
    let resized = if width <= height { [short, long] } else { [long, short] };
    // A lower limit for files must not refuse images that exceed it only because they are enlarged here.
    let most = max_pixels.max(DEFAULT_MAX_PIXELS);
    if (short as u64).saturating_mul(long as u64) <= most {
        return Ok(resized);
    }
    Err(format!(
        "the image is {width} x {height} pixels, too long and thin: with its short side resized to {short} it would \
         be {} x {}, more than the limit of {most} pixels; cut it",
        resized[0], resized[1]
    ))
}

impl Normalized {
    /// Reads the folder's `preprocessor_config.json`, for a network whose input images have this side.
    fn read(folder: &Path, side: usize) -> Result<Self> {
        let usual = Self {
            resized: side,
            side,
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            deviation: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        };
        let path = folder.join("preprocessor_config.json");
        if !path.exists() {
            return Ok(usual);
        }
        let damaged = |message: String| Error::Checkpoint { path: path.clone(), message };
        let value: Value = read_json(&path, "JSON")?;
        // An integer, or {"shortest_edge": 224}, or {"height": 224, "width": 224}.
        let pixels = |key: &str, or: usize| -> Result<usize> {
            let Some(found) = value.get(key).filter(|found| !found.is_null()) else { return Ok(or) };
            let of = |part: &str| found.get(part).and_then(Value::as_u64);
            let number = found
                .as_u64()
                .or_else(|| of("shortest_edge"))
                .or_else(|| of("height").filter(|height| Some(*height) == of("width")));
            let number = number.and_then(|number| usize::try_from(number).ok());
            number.filter(|number| (1..=LONGEST_SIDE).contains(number)).ok_or_else(|| {
                damaged(format!("{key}: {found} is not a number of pixels from 1 to {LONGEST_SIDE}"))
            })
        };
        let three = |key: &str, or: [f32; 3]| -> Result<[f32; 3]> {
            let Some(found) = value.get(key).filter(|found| !found.is_null()) else { return Ok(or) };
            serde_json::from_value(found.clone())
                .map_err(|_| damaged(format!("{key}: {found} is not an array of three numbers")))
        };
        let found = Self {
            resized: pixels("size", side)?,
            side: pixels("crop_size", side)?,
            mean: three("image_mean", usual.mean)?,
            deviation: three("image_std", usual.deviation)?,
        };
        if value.get("resample").and_then(Value::as_u64).is_some_and(|filter| filter != 3) {
            return Err(damaged("resample: only 3 (Pillow's bicubic filter) is supported".to_owned()));
        }
        if found.side != side || found.resized < side || found.deviation.iter().any(|value| *value <= 0.0) {
            return Err(damaged(format!(
                "images are resized to {} and cut to {}, but config.json says that the network takes {side}",
                found.resized, found.side
            )));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_and_thin_image_is_refused_before_it_is_resized() {
        assert_eq!(size_after([640, 480], 224, DEFAULT_MAX_PIXELS), Ok([298, 224]));
        assert_eq!(size_after([480, 640], 224, DEFAULT_MAX_PIXELS), Ok([224, 298]));
        assert_eq!(size_after([1, 1_000], 224, DEFAULT_MAX_PIXELS), Ok([224, 224_000]));
        let message = size_after([1, 20_000], 224, DEFAULT_MAX_PIXELS).unwrap_err();
        assert!(message.contains("is 1 x 20000") && message.contains("224 x 4480000"), "{message}");
        let message = size_after([20_000, 1], 224, DEFAULT_MAX_PIXELS).unwrap_err();
        assert!(message.contains("is 20000 x 1") && message.contains("4480000 x 224"), "{message}");
        // A higher limit for files applies here, too; a lower one refuses no ordinary image.
        assert_eq!(size_after([1, 20_000], 224, 1 << 40), Ok([224, 4_480_000]));
        assert_eq!(size_after([150, 100], 224, 20_000), Ok([336, 224]));
        assert!(size_after([LONGEST_SIDE, LONGEST_SIDE], LONGEST_SIDE, 1).is_ok());
    }
}
