//! Images that the models of a comparison generate from held-out captions, and their measures.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
};

use super::{
    data::Data,
    runs::{path_key, with_keys},
    task::Task,
};
use crate::{
    config::Config,
    engine::{Purpose, Random},
    error::{Error, Result},
    files::{remove_folder, sha256},
    generator::sample::{ImageLayout, SampleRequest, SampleSettings, sample},
    interrupt::Interrupt,
    measure::{
        images::MeasuredImage,
        job::{Choice, Measurement, Measurer, References, tokenizer_of_config},
    },
    tokens::cache::TokenCache,
};

/// Images generated per batch.
const BATCH: usize = 16;

/// What to generate and measure.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledImagesRequest {
    /// Number of held-out captions; each model generates one image per caption.
    pub count: usize,
    /// The measures to take.
    pub choice: Choice,
}

/// The captions and the reference images, the same for every model.
pub(super) struct SampledImages {
    captions: Vec<String>,
    held_out: Vec<MeasuredImage>,
    measurer: Measurer,
    /// Computed when the first model needs them.
    references: OnceCell<References>,
    folder: PathBuf,
}

impl SampledImages {
    /// Opens the networks of the measures and chooses captions: the first of the held-out pairs in an order that the
    /// configuration's seed determines.
    pub(super) fn open(
        request: &SampledImagesRequest,
        config: &Config,
        data: &Data,
        out: &Path,
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<Self> {
        let tokens = TokenCache::open(&data.cache)?;
        let mut records = config.open_corpus(&data.held_out)?.read_all()?;
        records.retain(|record| tokens.contains(&record.image));
        if request.count < 2 || request.count > records.len() {
            return Err(Error::not_enough_data(format!(
                "cannot generate {} images from {} held-out captions; pass 2 or more, at most one per caption",
                request.count,
                records.len()
            )));
        }
        let config = with_keys(config, &[path_key("token_cache", &data.cache)?])?;
        let open = || Measurer::open(&request.choice, || tokenizer_of_config(&config, interrupt, task));
        let measurer =
            interrupt.while_reading("encoded records are kept; run the same command again", open)?;
        let most = measurer.dimensions();
        if request.count.min(records.len()) <= most {
            tracing::warn!(
                "{} images are too few for a full-rank covariance of {most} dimensions; compare Fréchet distances only \
                 between sets of the same sizes",
                request.count
            );
        }
        let mut indices: Vec<usize> = (0..records.len()).collect();
        Random::new(config.seed, Purpose::Shuffle, u64::MAX - 2).shuffle(&mut indices);
        let captions = indices[..request.count].iter().map(|&index| records[index].caption.clone()).collect();
        let held_out = records.into_iter().map(MeasuredImage::from).collect();
        Ok(Self { captions, held_out, measurer, references: OnceCell::new(), folder: out.join("images") })
    }

    /// The inputs of a model's measures other than the model and the held-out table.
    pub(super) fn identity(&self) -> String {
        let settings = SampleSettings::default();
        sha256(format!("{:?} {settings:?} {}", self.captions, self.measurer.identity()).as_bytes())
    }

    /// Generates the images of a trained model into a folder of their own, which is kept, and measures them.
    pub(super) fn measure(
        &self,
        run: &Path,
        key: &str,
        seed: u64,
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<Vec<Measurement>> {
        let out = self.folder.join(key);
        if out.exists() {
            // Left by a start that was interrupted.
            remove_folder(&out)?;
        }
        let drawing = SampleRequest {
            model: run.to_path_buf(),
            weights: None,
            sets: Vec::new(),
            prompts: self.captions.clone(),
            each: 1,
            out: out.clone(),
            overwrite: false,
            layout: ImageLayout::Bare,
            batch: BATCH,
            // All models of a seed use the same noise, so that their differences are paired.
            settings: SampleSettings { seed, ..SampleSettings::default() },
        };
        let summary = sample(&drawing, interrupt, &mut task.renaming())?;
        let images =
            crate::measure::images::images(&summary.table, &crate::data::ColumnNames::default(), false)?;
        let references = match self.references.get() {
            Some(references) => references,
            None => {
                let (references, _) = self.measurer.references(&self.held_out, interrupt, task)?;
                self.references.get_or_init(|| references)
            }
        };
        Ok(self.measurer.measure(&images, Some(references), interrupt, task)?.0)
    }
}
