//! CLIP-Score: how well images match their captions (Hessel et al., arXiv 2104.08718, without its weight of 2.5 and in
//! percent, matching torchmetrics): the mean of `max(100 · cos(image, text), 0)` over the pairs.

use std::path::Path;

use super::{
    clip_image::{ClipImage, folder_of},
    images::MeasuredImage,
    space::{FeatureSpace, each, none_usable},
};
use crate::{
    encode::{
        TextEncoder,
        pretrained::{EncoderKind, Pretrained, PretrainedSettings},
        transformer::Linear,
    },
    engine::Tensor,
    error::{Error, Result},
    files::sha256,
    interrupt::Interrupt,
    jobs::progress::Progress,
    tokens::records::FailedRecord,
    weights::Weights,
};

/// The projection of captions in a full CLIP model.
const PROJECTION: &str = "text_projection.weight";

/// CLIP's text tower with its projection.
pub struct ProjectedClipText {
    encoder: Pretrained,
    /// `[D, C]`.
    projection: Linear,
    /// SHA-256 of the projection, which the encoder's fingerprint does not cover.
    digest: String,
}

impl ProjectedClipText {
    /// Opens the text tower of a full CLIP model, with the tokenizer in the same folder.
    ///
    /// # Errors
    /// If the tower, projection or tokenizer is missing, or a file is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = folder_of(path);
        let settings =
            PretrainedSettings { path: folder, tokens: None, channels: None, mean_over_padding: false };
        let encoder = Pretrained::open(EncoderKind::Clip, settings)?;
        let weight = Weights::open(path)?.network(&[PROJECTION]).read(PROJECTION)?;
        if !matches!(*weight.shape(), [_, channels] if channels == encoder.channels()) {
            return Err(Error::Checkpoint {
                path: path.to_path_buf(),
                message: format!(
                    "{PROJECTION} should be [D, {}], but is {:?}",
                    encoder.channels(),
                    weight.shape()
                ),
            });
        }
        let digest = sha256(bytemuck::cast_slice(weight.as_slice::<f32>()?));
        Ok(Self { encoder, projection: Linear { weight, bias: None }, digest })
    }

    /// Identifies everything that the embeddings depend on, weights by SHA-256.
    pub(crate) fn identity(&self) -> String {
        format!("{} {}", self.encoder.fingerprint(), self.digest)
    }

    /// Encodes captions to embeddings `[B, D]` f32: the projected states at the captions' end-of-text tokens.
    ///
    /// # Errors
    /// If the encoder refuses a caption.
    pub fn embeddings(&self, captions: &[&str]) -> Result<Tensor> {
        self.projection.apply(&self.encoder.encode(captions)?.pooled)
    }
}

/// A mean of scores.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipScore {
    /// Between 0 and 100.
    pub value: f64,
    /// Number of pairs.
    pub pairs: usize,
    /// Images that were skipped.
    pub failed: Vec<FailedRecord>,
}

/// The name of a CLIP-Score with this image tower.
pub(crate) fn clip_score_name(image: &ClipImage) -> String {
    format!("CLIP-Score, mean of max(100 · cos, 0), {}", image.name())
}

/// Computes the score of images that have captions.
///
/// # Errors
/// If there is no usable pair, the embeddings of the towers differ in size, or a tower refuses its input;
/// [`Error::Interrupted`] if the user interrupts.
pub fn clip_score(
    image: &ClipImage,
    text: &ProjectedClipText,
    images: &[MeasuredImage],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<ClipScore> {
    let captioned: Vec<MeasuredImage> =
        images.iter().filter(|image| image.caption.is_some()).cloned().collect();
    let (mut sum, mut pairs) = (0.0, 0usize);
    let failed = each(image, &captioned, interrupt, progress, |kept, features| {
        let captions: Vec<&str> = kept.iter().filter_map(|image| image.caption.as_deref()).collect();
        let embeddings = text.embeddings(&captions)?;
        if embeddings.shape() != features.shape() {
            return Err(Error::shape(
                "CLIP-Score",
                format!(
                    "embeddings {:?} of images do not match {:?} of captions",
                    features.shape(),
                    embeddings.shape()
                ),
            ));
        }
        let dimensions = features.dim(1);
        let rows = features.as_slice::<f32>()?.chunks_exact(dimensions);
        for (image, caption) in rows.zip(embeddings.as_slice::<f32>()?.chunks_exact(dimensions)) {
            sum += score(image, caption);
            pairs += 1;
        }
        Ok(())
    })?;
    if pairs == 0 && !failed.is_empty() {
        return Err(none_usable(&captioned, &failed));
    }
    if pairs == 0 {
        return Err(Error::not_enough_data("CLIP-Score needs images with captions, but none can be used"));
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of images")]
    let value = sum / pairs as f64;
    if !value.is_finite() {
        return Err(Error::not_finite("CLIP's embedding is zero or not finite; the weights are damaged"));
    }
    Ok(ClipScore { value, pairs, failed })
}

/// `max(100 · cos, 0)` of two embeddings; NaN if one has length 0.
fn score(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if cosine.is_nan() { cosine } else { (100.0 * cosine).max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_cosine_in_percent_and_never_negative() {
        assert_eq!(score(&[3.0, 0.0], &[5.0, 0.0]), 100.0);
        approx::assert_relative_eq!(
            score(&[1.0, 0.0], &[2.0, 2.0]),
            50.0 * f64::sqrt(2.0),
            max_relative = 1e-12
        );
        assert_eq!(score(&[1.0, 0.0], &[-1.0, 0.5]), 0.0);
        assert!(score(&[0.0, 0.0], &[1.0, 1.0]).is_nan());
    }
}
