//! Chooses and computes metrics.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    clip_image::ClipImage,
    clip_score::{ProjectedClipText, clip_score, clip_score_name},
    frechet::{Gaussian, frechet_distance},
    images::MeasuredImage,
    inception::Inception,
    space::{FeatureSpace, NOT_MEASURED, TokenizerFeatures, gaussian},
};
use crate::{
    config::Config,
    data::{Origin, Preprocess},
    encode::{ImageTokenizer, load_image_tokenizer},
    error::{Error, Result},
    interrupt::Interrupt,
    jobs::progress::Progress,
    tokens::{IMAGE_TOKENIZER_FOLDER, cache::TokenCache, encoders, fitting, records::FailedRecord},
    training::trained::{Named, configuration},
};

/// Features of a Fréchet distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// The features of an image tokenizer.
    Tokenizer,
    /// CLIP's image embeddings.
    Clip,
    /// The output of Inception-v3's last pool.
    Inception,
}

impl FromStr for Features {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "tokenizer" => Ok(Self::Tokenizer),
            "clip" => Ok(Self::Clip),
            "inception" => Ok(Self::Inception),
            _ => Err(Error::argument(format!(
                "unknown features `{name}`; expected one of tokenizer, clip, inception"
            ))),
        }
    }
}

/// The metrics to compute, and the paths of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The features of Fréchet distances.
    pub features: Vec<Features>,
    /// CLIP: a folder or its weights; enables CLIP-Score.
    pub clip: Option<PathBuf>,
    /// Inception-v3's weights.
    pub inception: Option<PathBuf>,
    /// How images are decoded for CLIP and Inception; its side is ignored.
    pub decode: Preprocess,
}

/// A named value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The exact name of the metric.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Images that were measured, excluding those that could not be used.
    pub generated: u64,
    /// Reference images; `None` for CLIP-Score.
    pub reference: Option<u64>,
    /// Whether a side has too few images for its covariance to have full rank.
    pub singular_covariance: bool,
}

/// The opened networks of the metrics.
pub struct Measurer {
    spaces: Vec<Arc<dyn FeatureSpace>>,
    score: Option<(Arc<ClipImage>, ProjectedClipText)>,
}

/// The reference images: their Gaussian in each space.
pub struct References(Vec<Gaussian>);

impl Measurer {
    /// Opens the networks of a choice; `tokenizer` is called if the tokenizer's features are chosen.
    ///
    /// # Errors
    /// If weights are not given or cannot be used, or no metric is chosen.
    pub fn open(
        choice: &Choice,
        tokenizer: impl FnOnce() -> Result<(Box<dyn ImageTokenizer>, Preprocess)>,
    ) -> Result<Self> {
        let image = match &choice.clip {
            Some(path) => Some(Arc::new(ClipImage::open(path, choice.decode)?)),
            None => None,
        };
        let (mut tokenizer, mut spaces) = (Some(tokenizer), Vec::<Arc<dyn FeatureSpace>>::new());
        for (at, features) in choice.features.iter().enumerate() {
            if choice.features[..at].contains(features) {
                continue;
            }
            match features {
                Features::Tokenizer => {
                    if let Some(open) = tokenizer.take() {
                        let (tokenizer, preprocess) = open()?;
                        spaces.push(Arc::new(TokenizerFeatures::new(tokenizer, preprocess)));
                    }
                }
                Features::Clip => match &image {
                    Some(image) => spaces.push(Arc::clone(image) as Arc<dyn FeatureSpace>),
                    None => {
                        return Err(Error::argument("features of CLIP need its weights; pass --clip FOLDER"));
                    }
                },
                Features::Inception => match &choice.inception {
                    Some(path) => spaces.push(Arc::new(Inception::open(path, choice.decode)?)),
                    None => {
                        return Err(Error::argument(
                            "features of Inception-v3 need its weights; pass --inception FILE",
                        ));
                    }
                },
            }
        }
        let score = match (image, &choice.clip) {
            (Some(image), Some(path)) => Some((image, ProjectedClipText::open(path)?)),
            _ => None,
        };
        if spaces.is_empty() && score.is_none() {
            return Err(Error::argument(
                "nothing to measure; pass --reference for a Fréchet distance, or --clip FOLDER for CLIP-Score",
            ));
        }
        Ok(Self { spaces, score })
    }

    /// The largest number of dimensions of the distances' features. With no more images than that, a covariance is
    /// singular.
    pub(crate) fn dimensions(&self) -> usize {
        self.spaces.iter().map(|space| space.dimensions()).max().unwrap_or(0)
    }

    /// Identifies everything other than the images that the values depend on, weights by SHA-256.
    pub(crate) fn identity(&self) -> String {
        let spaces = self.spaces.iter().map(|space| space.identity());
        let score = self
            .score
            .iter()
            .map(|(image, text)| format!("CLIP-Score {} {}", image.identity(), text.identity()));
        spaces.chain(score).collect::<Vec<_>>().join("\n")
    }

    /// Computes the reference Gaussians; also returns the images that cannot be used. Reads no image if no distance is
    /// chosen.
    ///
    /// # Errors
    /// If fewer than two images can be used, or a network refuses them; [`Error::Interrupted`] if the user interrupts.
    pub fn references(
        &self,
        images: &[MeasuredImage],
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<(References, Vec<FailedRecord>)> {
        let (mut found, mut failed) = (Vec::new(), BTreeMap::new());
        for space in &self.spaces {
            let (gaussian, left_out) = gaussian(space.as_ref(), images, interrupt, progress)?;
            found.push(gaussian);
            note(&mut failed, left_out);
        }
        Ok((References(found), failed.into_values().collect()))
    }

    /// Measures images: the distance to the references in each space, if there are any, and CLIP-Score if its weights
    /// and captions are given. Also returns the images that cannot be used.
    ///
    /// # Errors
    /// See [`references`](Self::references).
    pub fn measure(
        &self,
        images: &[MeasuredImage],
        references: Option<&References>,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<(Vec<Measurement>, Vec<FailedRecord>)> {
        let (mut measures, mut failed) = (Vec::new(), BTreeMap::new());
        for (space, reference) in
            self.spaces.iter().zip(references.iter().flat_map(|references| &references.0))
        {
            let (generated, left_out) = gaussian(space.as_ref(), images, interrupt, progress)?;
            note(&mut failed, left_out);
            let distance =
                interrupt.while_reading(NOT_MEASURED, || frechet_distance(&generated, reference))?;
            measures.push(Measurement {
                name: space.distance_name(),
                value: distance.value,
                generated: distance.images[0] as u64,
                reference: Some(distance.images[1] as u64),
                singular_covariance: distance.rank_deficient,
            });
        }
        if let Some((image, text)) = &self.score {
            if images.iter().any(|image| image.caption.is_some()) {
                let score = clip_score(image, text, images, interrupt, progress)?;
                note(&mut failed, score.failed);
                measures.push(Measurement {
                    name: clip_score_name(image),
                    value: score.value,
                    generated: score.pairs as u64,
                    reference: None,
                    singular_covariance: false,
                });
            } else {
                tracing::warn!("CLIP-Score is not measured: the images have no captions");
            }
        }
        Ok((measures, failed.into_values().collect()))
    }
}

/// Records each failed image once, in row order.
fn note(failed: &mut BTreeMap<(Origin, String), FailedRecord>, left_out: Vec<FailedRecord>) {
    for record in left_out {
        failed.entry((record.origin.clone(), record.id.clone())).or_insert(record);
    }
}

/// The image tokenizer of a run, and the run's image preprocessing.
///
/// # Errors
/// If there is no run, or its tokenizer cannot be loaded.
pub fn tokenizer_of_run(run: &Path) -> Result<(Box<dyn ImageTokenizer>, Preprocess)> {
    let run = Named::new(run)?.run;
    let config = configuration(&run, &[])?;
    on_device(&config, encoders::saved_image_tokenizer(&config, &run.join(IMAGE_TOKENIZER_FOLDER))?)
}

/// A tokenizer on the configured device, and its image preprocessing.
fn on_device(
    config: &Config,
    tokenizer: Box<dyn ImageTokenizer>,
) -> Result<(Box<dyn ImageTokenizer>, Preprocess)> {
    let preprocess = config.preprocess(tokenizer.image_side());
    match config.device.open()? {
        Some(device) => Ok((tokenizer.to_device(&device)?, preprocess)),
        None => Ok((tokenizer, preprocess)),
    }
}

/// The image tokenizer of a configuration: from its weights, from its token cache, or fitted to its training set as in
/// training.
///
/// # Errors
/// If it cannot be loaded or fitted; [`Error::Interrupted`] if the user interrupts.
pub(crate) fn tokenizer_of_config(
    config: &Config,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<(Box<dyn ImageTokenizer>, Preprocess)> {
    let tokenizer = match TokenCache::configured(config)? {
        Some(cache) if config.image_tokenizer.path.is_none() => {
            load_image_tokenizer(&cache.image_tokenizer())?
        }
        _ => {
            let (table, records) = match &config.image_tokenizer.path {
                Some(_) => (Path::new(""), Vec::new()),
                None => {
                    let table = config.data.train_csv()?;
                    (table, config.open_corpus(table)?.read_all()?)
                }
            };
            fitting::image_tokenizer(config, (table, &records), None, interrupt, progress)?.0
        }
    };
    on_device(config, tokenizer)
}
