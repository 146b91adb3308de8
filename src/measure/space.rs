//! Feature spaces: a named network maps each image to a feature vector.

use rayon::prelude::*;

use super::{
    frechet::{Gaussian, Moments},
    images::MeasuredImage,
};
use crate::{
    data::{ImageRef, Preprocess, load_image},
    encode::ImageTokenizer,
    engine::Tensor,
    error::{Error, LeftOutRows, Reasons, Result},
    interrupt::Interrupt,
    jobs::progress::Progress,
    tokens::records::FailedRecord,
};

/// Images per forward pass.
const BATCH: usize = 32;

/// A space of image features.
pub trait FeatureSpace: Send + Sync {
    /// The exact name of the features.
    fn name(&self) -> String;

    /// The name of a Fréchet distance in this space.
    fn distance_name(&self) -> String {
        format!("Fréchet distance of {}", self.name())
    }

    /// Identifies everything that the features depend on, weights by SHA-256: equal identities mean equal features.
    fn identity(&self) -> String;

    /// Dimensions of a feature (`D`).
    fn dimensions(&self) -> usize;

    /// Decodes an image to the network's input, `[3, R, R]` f32.
    ///
    /// # Errors
    /// [`Error::Image`] if the file cannot be read or decoded.
    fn read(&self, image: &ImageRef) -> Result<Tensor>;

    /// Computes features `[B, D]` f32 of images `[B, 3, R, R]` from [`read`](Self::read). The features of an image do
    /// not depend on the others.
    ///
    /// # Errors
    /// If the shape does not match, or a value is not finite.
    fn features(&self, images: &Tensor) -> Result<Tensor>;
}

/// The unquantized features of an image tokenizer at full resolution: mean and standard deviation of each channel over
/// the grid.
pub struct TokenizerFeatures {
    tokenizer: Box<dyn ImageTokenizer>,
    preprocess: Preprocess,
}

impl TokenizerFeatures {
    /// The space of a tokenizer, with images decoded by `preprocess` and resized to the tokenizer's side.
    pub(crate) fn new(tokenizer: Box<dyn ImageTokenizer>, preprocess: Preprocess) -> Self {
        let preprocess = Preprocess { side: tokenizer.image_side(), ..preprocess };
        Self { tokenizer, preprocess }
    }
}

impl FeatureSpace for TokenizerFeatures {
    fn name(&self) -> String {
        "tokenizer features, mean and standard deviation over the grid".to_owned()
    }

    fn identity(&self) -> String {
        format!("{} {:?} {}", self.name(), self.preprocess, self.tokenizer.fingerprint())
    }

    fn dimensions(&self) -> usize {
        2 * self.tokenizer.quantizer().channels()
    }

    fn read(&self, image: &ImageRef) -> Result<Tensor> {
        load_image(image, &self.preprocess)?.to_tensor()
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "features are f32")]
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        let maps = self.tokenizer.features(images)?;
        let (batch, channels) = (maps.dim(0), maps.dim(1));
        let cells = maps.dim(2) * maps.dim(3);
        let mut features = Vec::with_capacity(batch * 2 * channels);
        for maps in maps.as_slice::<f32>()?.chunks_exact(channels * cells) {
            let moments: Vec<(f64, f64)> = maps
                .chunks_exact(cells)
                .map(|map| {
                    let mean = map.iter().map(|&value| f64::from(value)).sum::<f64>() / cells as f64;
                    let square = map.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
                    (mean, (square / cells as f64).sqrt())
                })
                .collect();
            features.extend(moments.iter().map(|(mean, _)| *mean as f32));
            features.extend(moments.iter().map(|(_, deviation)| *deviation as f32));
        }
        Tensor::new(&[batch, 2 * channels], features)
    }
}

/// Stacks images `[3, R, R]` to `[B, 3, R, R]`.
fn stacked(images: &[Tensor]) -> Result<Tensor> {
    let mut values = Vec::with_capacity(images.iter().map(Tensor::len).sum());
    for image in images {
        values.extend_from_slice(image.as_slice::<f32>()?);
    }
    let shape = images.first().map_or(vec![3, 0, 0], |image| image.shape().to_vec());
    Tensor::new(&[&[images.len()], &shape[..]].concat(), values)
}

/// The message of an interrupted measurement.
pub(crate) const NOT_MEASURED: &str = "nothing has been measured yet, so there was nothing to save";

/// Calls `with` for the features `[B, D]` of each batch and the indices of its images. Images that cannot be used are
/// skipped, logged, and returned.
///
/// # Errors
/// If the network refuses the images; [`Error::Interrupted`] if the user interrupts.
pub(super) fn each(
    space: &dyn FeatureSpace,
    images: &[MeasuredImage],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
    mut with: impl FnMut(&[&MeasuredImage], &Tensor) -> Result<()>,
) -> Result<Vec<FailedRecord>> {
    let (mut failed, mut left_out) = (Vec::new(), LeftOutRows::default());
    let total = images.len() as u64;
    for (turn, part) in images.chunks(BATCH).enumerate() {
        interrupt.check(NOT_MEASURED)?;
        let read = |image: &MeasuredImage| match &image.malformed {
            None => space.read(&image.image),
            Some(message) => Err(Error::invalid(format!("the row is malformed: {message}"))),
        };
        let read: Vec<Result<Tensor>> = part.par_iter().map(read).collect();
        let (mut kept, mut tensors) = (Vec::new(), Vec::new());
        for (image, read) in part.iter().zip(read) {
            match read {
                Ok(tensor) => {
                    kept.push(image);
                    tensors.push(tensor);
                }
                Err(error) if error.is_of_machine() => return Err(error),
                Err(error) => {
                    left_out.add(&image.id, &error);
                    let (id, origin) = (image.id.clone(), image.origin.clone());
                    failed.push(FailedRecord { id, origin, reason: error.to_string() });
                }
            }
        }
        if !kept.is_empty() {
            with(&kept, &space.features(&stacked(&tensors)?)?)?;
        }
        progress.counted("reading images", (turn * BATCH + part.len()) as u64, total);
    }
    Ok(failed)
}

/// The error if no image can be used: the reasons with their counts.
pub(super) fn none_usable(images: &[MeasuredImage], failed: &[FailedRecord]) -> Error {
    let reasons: Reasons = failed.iter().map(|record| record.reason.as_str()).collect();
    Error::not_enough_data(format!("none of {} images can be used: {reasons}", images.len()))
}

/// The Gaussian of the images' features, and the images that were skipped.
///
/// # Errors
/// If fewer than two images can be used, or the network refuses them; [`Error::Interrupted`] if the user interrupts.
pub fn gaussian(
    space: &dyn FeatureSpace,
    images: &[MeasuredImage],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<(Gaussian, Vec<FailedRecord>)> {
    let mut moments = Moments::new(space.dimensions());
    let failed = each(space, images, interrupt, progress, |_, features| moments.add(features))?;
    match moments.count() {
        0 if !images.is_empty() => Err(none_usable(images, &failed)),
        _ => Ok((moments.finish()?, failed)),
    }
}
