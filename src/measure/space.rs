//! Where images are compared: a network that turns each into a row of numbers, under a name that says which.

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

/// Images whose features are computed at once.
const BATCH: usize = 32;

/// A space of features of images.
pub trait FeatureSpace: Send + Sync {
    /// Says exactly what the features are.
    fn name(&self) -> String;

    /// What a Fréchet distance in this space is called.
    fn distance_name(&self) -> String {
        format!("Fréchet distance of {}", self.name())
    }

    /// All that the features depend on, the weights by their SHA-256: equal identities give equal features.
    fn identity(&self) -> String;

    /// Numbers of a feature (`D`).
    fn dimensions(&self) -> usize;

    /// An image from its file as the network takes it, `[3, R, R]` f32.
    ///
    /// # Errors
    /// [`Error::Image`] for whatever is wrong with the file.
    fn read(&self, image: &ImageRef) -> Result<Tensor>;

    /// Images `[B, 3, R, R]` as [`read`](Self::read) gives them to features `[B, D]` f32. The features of one do not depend on
    /// the others.
    ///
    /// # Errors
    /// If the shape does not fit, or a number is not finite.
    fn features(&self, images: &Tensor) -> Result<Tensor>;
}

/// The features of an image tokenizer at its full resolution, before they are quantized: of each channel the mean over the grid
/// and the standard deviation over the grid.
pub struct TokenizerFeatures {
    tokenizer: Box<dyn ImageTokenizer>,
    preprocess: Preprocess,
}

impl TokenizerFeatures {
    /// Of a tokenizer, images being decoded in this way and brought to its side.
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

/// Images `[3, R, R]` of one side as `[B, 3, R, R]`.
fn stacked(images: &[Tensor]) -> Result<Tensor> {
    let mut values = Vec::with_capacity(images.iter().map(Tensor::len).sum());
    for image in images {
        values.extend_from_slice(image.as_slice::<f32>()?);
    }
    let shape = images.first().map_or(vec![3, 0, 0], |image| image.shape().to_vec());
    Tensor::new(&[&[images.len()], &shape[..]].concat(), values)
}

/// What an interrupted measurement has kept.
pub(crate) const NOT_MEASURED: &str = "the measures had not been taken, so there was nothing to save";

/// Calls `with` for the features `[B, D]` of some images after the other, and of which they are. Images that cannot be used
/// are left out, logged, and given back.
///
/// # Errors
/// If the network refuses the images, or the user interrupts.
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
                Err(error @ Error::Memory { .. }) => return Err(error),
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
        progress.counted("looking at images", (turn * BATCH + part.len()) as u64, total);
    }
    Ok(failed)
}

/// Why nothing can be measured: the reasons with their counts.
pub(super) fn none_usable(images: &[MeasuredImage], failed: &[FailedRecord]) -> Error {
    let reasons: Reasons = failed.iter().map(|record| record.reason.as_str()).collect();
    Error::not_enough_data(format!("none of {} images can be used: {reasons}", images.len()))
}

/// The Gaussian of the images' features, and the images that were left out.
///
/// # Errors
/// If fewer than two images can be used, the network refuses them, or the user interrupts.
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
