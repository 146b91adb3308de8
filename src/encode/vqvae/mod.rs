//! The upstream image tokenizer: a multi-scale VQ-VAE (`models/vqvae.py`, weights such as `vae_ch160v4096z32.pth`),
//! frozen.
//!
//! Every size comes from the weights, except the side lengths of the token maps, which the caller provides.

mod device;
mod group_norm;
mod network;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    encode::{
        ImageTokenizer,
        saved::{self, IMAGE_TOKENIZER, damaged},
    },
    engine::{DType, Tensor, cuda::Device, ops::pyramid::PyramidQuantizer},
    error::{Error, Result},
    weights::Weights,
};
use device::Placed;
use network::{Decoder, Encoder, Reader, Workspace};

/// The `kind` in the saved JSON.
pub(super) const KIND: &str = "vqvae";

const OP: &str = "VQ-VAE";

/// File name of the released weights.
const RELEASED_NAME: &str = "vae_ch160v4096z32.pth";

/// Share of the convolution in φ, as in the upstream code (`quant_resi`).
const QUANT_RESI: f32 = 0.5;

/// Maximum threads per image: the small maps do not have enough rows for more.
const THREADS_PER_IMAGE: usize = 8;

/// The saved settings of a VQ-VAE: the path of its weights, not the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqVaeSettings {
    /// The weights: a `.pth` or safetensors file, a folder of them, or the folder of `vae_ch160v4096z32.pth`.
    pub path: PathBuf,
    /// Side lengths of the token maps, coarsest first.
    pub patch_nums: Vec<usize>,
}

/// Tokenizes images with the VQ-VAE.
#[derive(Debug)]
pub struct VqVae {
    settings: VqVaeSettings,
    networks: Networks,
    /// Downsampling factor of the encoder.
    reduction: usize,
    quantizer: PyramidQuantizer,
    fingerprint: String,
}

/// The networks, on the CPU or a device.
#[derive(Debug)]
enum Networks {
    Host(Box<Hosted>),
    Device(Box<Placed>),
}

/// The networks on the CPU.
#[derive(Debug)]
struct Hosted {
    encoder: Encoder,
    decoder: Decoder,
    /// Idle workspaces.
    idle: Mutex<Vec<Workspace>>,
}

impl VqVae {
    /// Opens the weights: all are read once for the fingerprint, and filters again on first use.
    ///
    /// # Errors
    /// If they cannot be read, a tensor is missing, surplus or inconsistent, or the side lengths do not match.
    pub fn open(settings: VqVaeSettings) -> Result<Self> {
        let in_folder = settings.path.join(RELEASED_NAME);
        let path = if in_folder.is_file() { &in_folder } else { &settings.path };
        let weights = Weights::open(path)?.network(&["encoder.conv_in.weight"]);
        let mut reader = Reader::new(&weights, &format!("{KIND}{:?}", settings.patch_nums));
        let encoder = Encoder::read(&mut reader)?;
        let decoder = Decoder::read(&mut reader, encoder.channels())?;
        if encoder.reduction() != decoder.growth() {
            return Err(damaged(
                &settings.path,
                format!(
                    "the encoder reduces the side by {}, but the decoder enlarges it by {}",
                    encoder.reduction(),
                    decoder.growth()
                ),
            ));
        }
        let names: Vec<String> = weights
            .names()
            .filter(|name| {
                name.starts_with("quantize.embedding.") || name.starts_with("quantize.quant_resi.")
            })
            .map(str::to_owned)
            .collect();
        let tensors = names
            .into_iter()
            .map(|name| Ok((name.clone(), reader.tensor(name)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let quantizer =
            PyramidQuantizer::from_tensors(&settings.patch_nums, &tensors, "quantize.", QUANT_RESI)?;
        if quantizer.channels() != encoder.channels() {
            return Err(damaged(
                &settings.path,
                format!("codes have {} channels, but features {}", quantizer.channels(), encoder.channels()),
            ));
        }
        let (read, fingerprint) = reader.into_account();
        // Usage counts of the codes from training, which nothing reads.
        let surplus: Vec<&str> = weights
            .names()
            .filter(|name| !read.contains(*name) && *name != "quantize.ema_vocab_hit_SV")
            .collect();
        if !surplus.is_empty() {
            return Err(damaged(
                &settings.path,
                format!(
                    "{} tensors are not part of the VQ-VAE: {}{}",
                    surplus.len(),
                    surplus[..surplus.len().min(8)].join(", "),
                    if surplus.len() > 8 { ", …" } else { "" }
                ),
            ));
        }
        let reduction = encoder.reduction();
        let networks = Networks::Host(Box::new(Hosted { encoder, decoder, idle: Mutex::default() }));
        Ok(Self { settings, networks, reduction, quantizer, fingerprint })
    }

    /// Moves the networks and the quantizer to a device, each on first use. Codes equal those of the CPU, except where
    /// two codes are almost equally near.
    ///
    /// # Errors
    /// If it is on a device already.
    pub fn placed(self, device: &Device) -> Result<Self> {
        let Networks::Host(hosted) = self.networks else {
            return Err(Error::invalid("the VQ-VAE is already on a device; open one per device"));
        };
        Ok(Self { networks: Networks::Device(Box::new(Placed::new(hosted, device))), ..self })
    }

    /// Loads a tokenizer written by [`save`](ImageTokenizer::save), and its weights from the saved path or from
    /// `moved`.
    ///
    /// # Errors
    /// If the description is damaged, or the weights are missing or have changed.
    pub fn load(folder: &Path, moved: Option<&Path>) -> Result<Self> {
        let path = folder.join(IMAGE_TOKENIZER);
        let description = saved::read_description(&path)?;
        let mut settings: VqVaeSettings = description.settings(&path, KIND)?;
        if let Some(moved) = moved {
            settings.path = moved.to_path_buf();
        }
        let loaded = Self::open(settings)?;
        description.check_fingerprint(&path, &loaded.fingerprint)?;
        Ok(loaded)
    }

    /// Images `[B, 3, R, R]` in [-1, 1] to features before quantization, `[B, Cvae, R/16, R/16]`
    /// (upstream: `quant_conv(encoder(x))`, which it stores as a precomputed latent).
    ///
    /// # Errors
    /// If the shape does not match or a value is not finite.
    pub(crate) fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.quantizer.channels_first(images.dim(0), &self.maps(images)?)
    }

    /// Features `[B, Cvae, R/16, R/16]` to images `[B, 3, R, R]` that may exceed [-1, 1].
    ///
    /// # Errors
    /// If the shape does not match or a value is not finite.
    pub fn decode_features(&self, features: &Tensor) -> Result<Tensor> {
        self.images(&self.quantizer.channels_last(features)?)
    }

    /// Features `[B, H², Cvae]`, channels last, of checked images.
    fn maps(&self, images: &Tensor) -> Result<Vec<f32>> {
        let side = self.image_side();
        if images.dtype() != DType::F32
            || !matches!(*images.shape(), [_, 3, height, width] if (height, width) == (side, side))
        {
            return Err(Error::shape(
                OP,
                format!(
                    "expected images [B, 3, {side}, {side}] of f32, got {:?} of {:?}",
                    images.shape(),
                    images.dtype()
                ),
            ));
        }
        let (values, size) = (images.as_slice::<f32>()?, 3 * side * side);
        // No early exit from the inner loop, so that it vectorizes.
        let finite = |image: &[f32]| image.iter().fold(true, |all, value| all & value.is_finite());
        if let Some(at) = values.par_chunks(size).position_first(|image| !finite(image)) {
            return Err(Error::not_finite(format!("image {at} of the batch is not finite (NaN or Inf)")));
        }
        let length = self.quantizer.side().pow(2) * self.quantizer.channels();
        let maps = match &self.networks {
            Networks::Device(placed) => placed.features(values, side)?,
            Networks::Host(hosted) => {
                let mut maps = vec![0.0; images.dim(0) * length];
                hosted.each(values, size, &mut maps, length, |image, work, map| {
                    hosted.encoder.apply(image, side, work, map);
                });
                maps
            }
        };
        match maps.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Error::not_finite(format!(
                "the VQ-VAE overflows on image {} of the batch; its weights are not those of a trained one",
                at / length
            ))),
            None => Ok(maps),
        }
    }

    fn images(&self, maps: &[f32]) -> Result<Tensor> {
        let (side, grid) = (self.image_side(), self.quantizer.side());
        let (length, size) = (grid * grid * self.quantizer.channels(), 3 * side * side);
        let batch = maps.len() / length;
        let images = match &self.networks {
            Networks::Device(placed) => placed.images(maps, grid, size)?,
            Networks::Host(hosted) => {
                let mut images = vec![0.0; batch * size];
                hosted.each(maps, length, &mut images, size, |map, work, image| {
                    hosted.decoder.apply(map, grid, work, image);
                });
                images
            }
        };
        Tensor::new(&[batch, 3, side, side], images)
    }
}

impl Hosted {
    /// Runs `work` on every chunk of `from` and `to`, in parallel if there are enough threads. Chunks are computed
    /// independently.
    fn each(
        &self,
        from: &[f32],
        from_length: usize,
        to: &mut [f32],
        to_length: usize,
        work: impl Fn(&[f32], &mut Workspace, &mut [f32]) + Sync,
    ) {
        let lanes = rayon::current_num_threads().div_ceil(THREADS_PER_IMAGE);
        let pieces = (to.len() / to_length).div_ceil(lanes).max(1);
        to.par_chunks_mut(pieces * to_length).zip(from.par_chunks(pieces * from_length)).for_each(
            |(to, from)| {
                let idle = self.idle.lock().ok().and_then(|mut idle| idle.pop());
                let mut space = idle.unwrap_or_default();
                for (to, from) in to.chunks_exact_mut(to_length).zip(from.chunks_exact(from_length)) {
                    work(from, &mut space, to);
                }
                if let Ok(mut idle) = self.idle.lock() {
                    idle.push(space);
                }
            },
        );
    }
}

impl ImageTokenizer for VqVae {
    fn quantizer(&self) -> &PyramidQuantizer {
        &self.quantizer
    }

    fn image_side(&self) -> usize {
        self.reduction * self.quantizer.side()
    }

    fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let maps = self.maps(images)?;
        match &self.networks {
            Networks::Host(_) => self.quantizer.encode_maps(&maps),
            Networks::Device(placed) => {
                placed.codes(&self.quantizer, &self.quantizer.channels_first(images.dim(0), &maps)?)
            }
        }
    }

    fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let mut images = self.images(&self.quantizer.reconstruct_maps(codes)?)?;
        images.as_mut_slice::<f32>()?.iter_mut().for_each(|value| *value = value.clamp(-1.0, 1.0));
        Ok(images)
    }

    fn features(&self, images: &Tensor) -> Result<Tensor> {
        Self::features(self, images)
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn save(&self, folder: &Path) -> Result<()> {
        saved::write_description(&folder.join(IMAGE_TOKENIZER), KIND, &self.settings, &self.fingerprint)
    }

    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn ImageTokenizer>> {
        Ok(Box::new(self.placed(device)?))
    }
}
