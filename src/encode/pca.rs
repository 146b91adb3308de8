//! The built-in image tokenizer: patches, their leading principal components, and a pyramid of codes.
//!
//! It is fitted to the training images in seconds, and can decode codes to images.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    encode::{
        ImageTokenizer, codebook, components,
        projection::Projection,
        saved::{self, IMAGE_TOKENIZER, damaged},
    },
    engine::{Purpose, Random, Tensor, cuda::Device, ops::pyramid::PyramidQuantizer},
    error::{Error, Result},
};

/// The `kind` in the saved JSON.
pub(super) const KIND: &str = "pca";

/// The weights file next to the JSON.
const WEIGHTS: &str = "image_tokenizer.safetensors";

const OP: &str = "PCA tokenizer";

/// Maximum number of images in memory during the fit, and maximum number of their values (256 MiB of f32).
const MAX_IMAGES: usize = 2048;
const MAX_IMAGE_VALUES: usize = 1 << 26;

/// Maximum number of patch values for the covariance. Regardless of it, there are several times as many patches as
/// values per patch, if the images have that many.
const MAX_PATCH_VALUES: usize = 1 << 23;
const PATCHES_A_DIMENSION: usize = 8;

/// One image in this many is held out to measure the reconstruction.
const HELD_OUT_SHARE: usize = 10;

/// Sizes of a PCA tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcaSettings {
    /// Side of the images in pixels, `R`.
    pub side: usize,
    /// Side of a patch in pixels, `p`; the feature map has the side `R/p`.
    pub patch: usize,
    /// Principal components per patch, `Cvae`.
    pub components: usize,
    /// Codes in the codebook, `V`.
    pub codes: usize,
    /// Side lengths of the token maps, coarsest first; the last is `R/p`.
    pub patch_nums: Vec<usize>,
    /// Seed of the fit's random samples.
    pub seed: u64,
}

impl PcaSettings {
    fn check(&self) -> Result<()> {
        let Self { side, patch, components, codes, patch_nums, .. } = self;
        let (side, patch, components, codes) = (*side, *patch, *components, *codes);
        if patch == 0 || side == 0 || side % patch != 0 {
            return Err(Error::argument(format!(
                "images of side {side} cannot be split into patches of side {patch}; choose a patch that divides the side"
            )));
        }
        if patch_nums.last() != Some(&(side / patch)) {
            return Err(Error::argument(format!(
                "patch_nums {patch_nums:?} must end with {}, because images of side {side} have that many patches of side {patch} per row",
                side / patch
            )));
        }
        if components == 0 || components > 3 * patch * patch {
            return Err(Error::argument(format!(
                "a patch of side {patch} allows 1 to {} components, not {components}",
                3 * patch * patch
            )));
        }
        if codes == 0 || u32::try_from(codes).is_err() {
            return Err(Error::argument(format!("a codebook needs at least 1 code, not {codes}")));
        }
        Ok(())
    }

    /// Values per patch, `3·p²`.
    fn patch_length(&self) -> usize {
        3 * self.patch * self.patch
    }

    /// Patches per row, `R/p`.
    fn grid(&self) -> usize {
        self.side / self.patch
    }

    fn image_length(&self) -> usize {
        3 * self.side * self.side
    }
}

/// Quality of a fit.
#[derive(Clone, Debug, PartialEq)]
pub struct FitReport {
    /// Peak signal-to-noise ratio of the reconstruction in dB, from the mean squared error over the held-out images
    /// (over all images, if there are too few to hold some out); 120 dB if the error is too small to measure.
    pub psnr_db: f64,
    /// Effective number of codes: the exponential of the entropy of the codes over all images of the fit.
    pub codes_used: f64,
    /// Share of the patches' variance that the components explain; 1 if there is no variance.
    pub explained_variance: f64,
    /// Images read, including those not sampled.
    pub images: usize,
    /// Images that the components and the codebook were fitted to.
    pub fitted: usize,
    /// Held-out images, on which the reconstruction was measured.
    pub held_out: usize,
}

/// Tokenizes images by the principal components of their patches.
#[derive(Clone, Debug)]
pub struct PcaTokenizer {
    settings: PcaSettings,
    weights: Weights,
    quantizer: PyramidQuantizer,
    analyze: Projection,
    synthesize: Projection,
}

/// The fitted parameters, as saved.
#[derive(Clone, Debug)]
struct Weights {
    /// `[3p²]`, channel by channel, row by row.
    mean: Tensor,
    /// Orthonormal rows `[C, 3p²]`.
    components: Tensor,
    /// `[1]`: features are components multiplied by this, so that their mean square is 1.
    scale: Tensor,
    /// `[V, C]`.
    codebook: Tensor,
}

impl PcaTokenizer {
    /// Fits a tokenizer to images `[3, R, R]` in [-1, 1] (f32), read one by one. A seeded sample of at most 2048
    /// images (fewer if they are large) is kept in memory.
    ///
    /// Deterministic: the same images in the same order produce a bit-identical tokenizer, for any number of threads.
    ///
    /// # Errors
    /// If the settings are inconsistent, there is no image, or one has another shape or a value that is not
    /// finite; and the first error of `images`.
    pub fn fit(
        settings: PcaSettings,
        images: impl IntoIterator<Item = Result<Tensor>>,
    ) -> Result<(Self, FitReport)> {
        settings.check()?;
        let (mut held, count) = sample(&settings, images)?;
        Random::new(settings.seed, Purpose::Fit, 2).shuffle(&mut held);
        let held_out = held.len() / HELD_OUT_SHARE;
        let (test, train) = held.split_at(held_out);

        let patches = sample_patches(&settings, train);
        let length = settings.patch_length();
        let found = components::leading(&patches, length, settings.components, settings.seed);
        let kept: f64 = found.variances.iter().sum();
        let explained_variance = if found.total_variance > 0.0 { kept / found.total_variance } else { 1.0 };
        #[expect(clippy::cast_precision_loss, reason = "a few components")]
        let deviation = (kept / settings.components as f64).sqrt();
        // Below the rounding error there is nothing worth scaling up.
        let scale = if deviation > 1e-6 { 1.0 / deviation } else { 1.0 };

        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let to_f32 = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
        let weights = Weights {
            mean: Tensor::new(&[length], to_f32(&found.mean))?,
            components: Tensor::new(&[settings.components, length], to_f32(&found.vectors))?,
            scale: Tensor::new(&[1], to_f32(&[scale]))?,
            codebook: Tensor::new(&[1, settings.components], vec![0f32; settings.components])?,
        };
        let mut tokenizer = Self::assemble(settings, weights)?;
        let maps: Vec<f32> = tokenizer.maps(train).concat();
        let Self { settings, .. } = &tokenizer;
        tokenizer.weights.codebook =
            codebook::fit(&maps, &settings.patch_nums, settings.components, settings.codes, settings.seed)?;
        let tokenizer = Self::assemble(tokenizer.settings, tokenizer.weights)?;

        let codes_used = tokenizer.codes_used(&tokenizer.quantizer.encode_maps(&maps)?)?;
        let report = FitReport {
            psnr_db: tokenizer.psnr_db(if test.is_empty() { train } else { test })?,
            codes_used,
            explained_variance,
            images: count,
            fitted: train.len(),
            held_out,
        };
        Ok((tokenizer, report))
    }

    /// [`fit`](Self::fit) on images `[N, 3, R, R]` in memory.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_batch(settings: PcaSettings, images: &Tensor) -> Result<(Self, FitReport)> {
        settings.check()?;
        let (shape, length) = ([3, settings.side, settings.side], settings.image_length());
        check_images(&settings, images)?;
        let images = images.as_slice::<f32>()?.chunks_exact(length);
        Self::fit(settings, images.map(|image| Tensor::new(&shape, image.to_vec())))
    }

    /// Loads a tokenizer written by [`save`](ImageTokenizer::save).
    ///
    /// # Errors
    /// If a file cannot be read or is damaged.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(IMAGE_TOKENIZER);
        let description = saved::read_description(&path)?;
        let settings: PcaSettings = description.settings(&path, KIND)?;
        settings.check().map_err(|error| damaged(&path, error.to_string()))?;
        let weights_path = folder.join(WEIGHTS);
        let mut tensors = saved::read_tensors(&weights_path)?;
        let mut take = |name: &str, shape: &[usize]| match tensors.remove(name) {
            Some(tensor) if tensor.shape() == shape && tensor.as_slice::<f32>().is_ok() => Ok(tensor),
            Some(tensor) => Err(damaged(
                &weights_path,
                format!("{name} should be f32 {shape:?}, but is {:?} {:?}", tensor.dtype(), tensor.shape()),
            )),
            None => Err(damaged(&weights_path, format!("the tensor {name} is missing"))),
        };
        let (length, components) = (settings.patch_length(), settings.components);
        let weights = Weights {
            mean: take("mean", &[length])?,
            components: take("components", &[components, length])?,
            scale: take("scale", &[1])?,
            codebook: take("codebook", &[settings.codes, components])?,
        };
        let loaded =
            Self::assemble(settings, weights).map_err(|error| damaged(&weights_path, error.to_string()))?;
        description.check_fingerprint(&path, &loaded.fingerprint())?;
        Ok(loaded)
    }

    /// The settings of the fit.
    pub fn settings(&self) -> &PcaSettings {
        &self.settings
    }

    /// Images `[B, 3, R, R]` to their features before quantization, `[B, Cvae, R/p, R/p]`.
    ///
    /// # Errors
    /// If the shape does not match or a value is not finite.
    pub(crate) fn features(&self, images: &Tensor) -> Result<Tensor> {
        let maps = self.features_channels_last(images)?;
        let (channels, grid) = (self.settings.components, self.settings.grid());
        let mut features = vec![0f32; maps.len()];
        for (map, features) in
            maps.chunks_exact(grid * grid * channels).zip(features.chunks_exact_mut(grid * grid * channels))
        {
            for (cell, row) in map.chunks_exact(channels).enumerate() {
                for (channel, &value) in row.iter().enumerate() {
                    features[channel * grid * grid + cell] = value;
                }
            }
        }
        Tensor::new(&[images.dim(0), channels, grid, grid], features)
    }

    fn assemble(settings: PcaSettings, weights: Weights) -> Result<Self> {
        let quantizer = PyramidQuantizer::new(&settings.patch_nums, &weights.codebook, Vec::new())?;
        let (length, count) = (settings.patch_length(), settings.components);
        let (mean, components) = (weights.mean.as_slice::<f32>()?, weights.components.as_slice::<f32>()?);
        let scale = weights.scale.as_slice::<f32>()?[0];
        #[expect(clippy::cast_possible_truncation, reason = "features are f32")]
        let offset: Vec<f32> = components
            .chunks_exact(length)
            .map(|component| {
                let along: f64 = component.iter().zip(mean).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (-along * f64::from(scale)) as f32
            })
            .collect();
        let analyze =
            Projection::new(length, &offset, |input, output| components[output * length + input] * scale);
        let synthesize =
            Projection::new(count, mean, |input, output| components[input * length + output] / scale);
        Ok(Self { settings, weights, quantizer, analyze, synthesize })
    }

    /// Channels-last features of images, each `[(R/p)², C]`.
    fn maps<P: AsRef<[f32]> + Sync>(&self, images: &[P]) -> Vec<Vec<f32>> {
        let (grid, channels) = (self.settings.grid(), self.settings.components);
        images
            .par_iter()
            .map_init(Vec::new, |patches, image| {
                cut(&self.settings, image.as_ref(), patches);
                let mut map = vec![0f32; grid * grid * channels];
                self.analyze.apply(patches, &mut map);
                map
            })
            .collect()
    }

    fn features_channels_last(&self, images: &Tensor) -> Result<Vec<f32>> {
        check_images(&self.settings, images)?;
        let images: Vec<&[f32]> =
            images.as_slice::<f32>()?.chunks_exact(self.settings.image_length()).collect();
        if let Some(at) = images.iter().position(|image| image.iter().any(|value| !value.is_finite())) {
            return Err(Error::not_finite(format!("image {at} of the batch is not finite (NaN or Inf)")));
        }
        Ok(self.maps(&images).concat())
    }

    fn psnr_db(&self, images: &[Vec<f32>]) -> Result<f64> {
        let maps = self.maps(images);
        let errors = images
            .par_iter()
            .zip(&maps)
            .map(|(image, map)| {
                let decoded = self.decode(&self.quantizer.encode_maps(map)?)?;
                let decoded = decoded.as_slice::<f32>()?;
                Ok(image.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>())
            })
            .collect::<Result<Vec<f64>>>()?;
        #[expect(clippy::cast_precision_loss, reason = "a count of values")]
        let mean = errors.iter().sum::<f64>() / (images.len() * self.settings.image_length()) as f64;
        Ok(10.0 * (4.0 / mean.max(4e-12)).log10())
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
    fn codes_used(&self, codes: &Tensor) -> Result<f64> {
        let mut counts = vec![0u64; self.settings.codes];
        for &code in codes.as_slice::<u32>()? {
            counts[code as usize] += 1;
        }
        let total = codes.len() as f64;
        let shares = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total);
        Ok((-shares.map(|share| share * share.ln()).sum::<f64>()).exp())
    }
}

impl ImageTokenizer for PcaTokenizer {
    fn quantizer(&self) -> &PyramidQuantizer {
        &self.quantizer
    }

    fn image_side(&self) -> usize {
        self.settings.side
    }

    fn encode(&self, images: &Tensor) -> Result<Tensor> {
        self.quantizer.encode_maps(&self.features_channels_last(images)?)
    }

    fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let maps = self.quantizer.reconstruct_maps(codes)?;
        let PcaSettings { side, patch, components, .. } = self.settings;
        let (grid, batch) = (self.settings.grid(), codes.dim(0));
        let mut images = vec![0f32; batch * self.settings.image_length()];
        images
            .par_chunks_exact_mut(self.settings.image_length())
            .zip(maps.par_chunks_exact(grid * grid * components))
            .for_each_init(Vec::new, |patches, (image, map)| {
                patches.resize(grid * grid * self.settings.patch_length(), 0f32);
                self.synthesize.apply(map, patches);
                for (at, run) in patches.chunks_exact(patch).enumerate() {
                    let target = &mut image[run_start(&self.settings, at)..][..patch];
                    for (pixel, value) in target.iter_mut().zip(run) {
                        *pixel = value.clamp(-1.0, 1.0);
                    }
                }
            });
        Tensor::new(&[batch, 3, side, side], images)
    }

    fn features(&self, images: &Tensor) -> Result<Tensor> {
        Self::features(self, images)
    }

    fn fingerprint(&self) -> String {
        let PcaSettings { side, patch, components, codes, patch_nums, seed } = &self.settings;
        let mut hash = Sha256::new();
        hash.update(format!(
            "{KIND}/1 side {side} patch {patch} components {components} codes {codes} patch_nums {patch_nums:?} seed {seed}"
        ));
        let Weights { mean, components, scale, codebook } = &self.weights;
        for tensor in [mean, components, scale, codebook] {
            for value in tensor.as_slice::<f32>().unwrap_or_default() {
                hash.update(value.to_le_bytes());
            }
        }
        saved::hexadecimal(&hash.finalize())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let Weights { mean, components, scale, codebook } = &self.weights;
        let tensors = [("mean", mean), ("components", components), ("scale", scale), ("codebook", codebook)];
        saved::write_tensors(&folder.join(WEIGHTS), &tensors)?;
        // The description is written last: a folder that contains it is complete.
        saved::write_description(&folder.join(IMAGE_TOKENIZER), KIND, &self.settings, &self.fingerprint())
    }

    /// Does nothing: a few products per image do not justify the transfer.
    fn to_device(self: Box<Self>, _: &Device) -> Result<Box<dyn ImageTokenizer>> {
        Ok(self)
    }
}

fn check_images(settings: &PcaSettings, images: &Tensor) -> Result<()> {
    let batch = images.shape().first().copied().unwrap_or(0);
    if images.shape() == [batch, 3, settings.side, settings.side] {
        return Ok(());
    }
    Err(Error::shape(
        OP,
        format!("expected images [B, 3, {0}, {0}], got {1:?}", settings.side, images.shape()),
    ))
}

/// A seeded sample of bounded size, every image equally likely (algorithm R of Vitter, 1985); and the number of images
/// read.
fn sample(
    settings: &PcaSettings,
    images: impl IntoIterator<Item = Result<Tensor>>,
) -> Result<(Vec<Vec<f32>>, usize)> {
    let shape = [3, settings.side, settings.side];
    let bound = (MAX_IMAGE_VALUES / settings.image_length()).clamp(1, MAX_IMAGES);
    let mut random = Random::new(settings.seed, Purpose::Fit, 0);
    let (mut held, mut count) = (Vec::new(), 0usize);
    for image in images {
        let image = image?;
        if image.shape() != shape {
            return Err(Error::shape(
                OP,
                format!("image {count} of the fit should be {shape:?}, but is {:?}", image.shape()),
            ));
        }
        let values = image.as_slice::<f32>()?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::not_finite(format!("image {count} of the fit is not finite (NaN or Inf)")));
        }
        count += 1;
        if held.len() < bound {
            held.push(values.to_vec());
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "an index fits usize")]
            let at = random.below(count as u64) as usize;
            if at < bound {
                held[at] = values.to_vec();
            }
        }
    }
    if held.is_empty() {
        return Err(Error::not_enough_data("no images to fit the image tokenizer"));
    }
    Ok((held, count))
}

/// Patches for the covariance, `[M, 3p²]`: all of them, or as many from each image as the bound allows.
fn sample_patches(settings: &PcaSettings, images: &[Vec<f32>]) -> Vec<f32> {
    let length = settings.patch_length();
    let all = settings.grid() * settings.grid();
    let bound = (MAX_PATCH_VALUES / length).max(PATCHES_A_DIMENSION * length);
    let each = (bound / images.len()).clamp(1, all);
    let mut random = Random::new(settings.seed, Purpose::Fit, 3);
    let mut order: Vec<usize> = (0..all).collect();
    let (mut patches, mut sampled) = (Vec::new(), Vec::with_capacity(images.len() * each * length));
    for image in images {
        cut(settings, image, &mut patches);
        if each < all {
            random.shuffle(&mut order);
        }
        for &at in &order[..each] {
            sampled.extend_from_slice(&patches[at * length..][..length]);
        }
    }
    sampled
}

/// Splits an image `[3, R, R]` into patches `[(R/p)², 3p²]`, row by row.
fn cut(settings: &PcaSettings, image: &[f32], patches: &mut Vec<f32>) {
    patches.clear();
    for at in 0..settings.image_length() / settings.patch {
        patches.extend_from_slice(&image[run_start(settings, at)..][..settings.patch]);
    }
}

/// Offset in an image of the `at`-th run of `p` pixels of its patches.
fn run_start(settings: &PcaSettings, at: usize) -> usize {
    let PcaSettings { side, patch, .. } = *settings;
    let (cell, run) = (at / (3 * patch), at % (3 * patch));
    let (channel, line) = (run / patch, run % patch);
    let (row, column) = (cell / settings.grid(), cell % settings.grid());
    (channel * side + row * patch + line) * side + column * patch
}
