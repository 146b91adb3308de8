//! Loads the configured image tokenizer, or fits it to the records of a table.

use std::{collections::HashMap, io, path::Path};

use crate::{
    config::{Config, ImageTokenizerKind},
    data::{ImageRef, Loader, Preprocess, Record, SquareImage, is_of_name, load_image},
    encode::{
        ImageTokenizer,
        pca::{FitReport, PcaSettings, PcaTokenizer},
        vqvae::{VqVae, VqVaeSettings},
    },
    engine::{Purpose, Random},
    error::Result,
    interrupt::{Interrupt, NO_STEP},
    jobs::progress::Progress,
    tokens::{
        records::{FailedRecord, none_usable},
        tokenize::FitImages,
    },
};

/// Images decoded in advance.
const AHEAD: usize = 128;

/// Loads the configured image tokenizer, or fits it to a seeded sample of the records of `table`. Also returns the
/// decoded images, so that none is decoded twice.
///
/// An image that does not exist or cannot be decoded is excluded from the fit and returned as an error: it is skipped
/// and counted wherever the corpus is read. A file that the system fails to read is an error of the whole fit, because
/// the same command would fit another tokenizer once the file can be read again.
///
/// # Errors
/// If no image can be used (`failed_out`, if given, then lists the reasons), a file cannot be read, the sizes do not
/// match, or the user interrupts the job.
pub fn image_tokenizer(
    config: &Config,
    (table, records): (&Path, &[Record]),
    failed_out: Option<&Path>,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<(Box<dyn ImageTokenizer>, Option<FitReport>, FitImages)> {
    if let Some(path) = &config.image_tokenizer.path {
        let open = || -> Result<Box<dyn ImageTokenizer>> {
            match config.image_tokenizer.kind {
                ImageTokenizerKind::Pca => crate::encode::load_image_tokenizer(path),
                ImageTokenizerKind::VqVae => Ok(Box::new(VqVae::open(VqVaeSettings {
                    path: path.clone(),
                    patch_nums: config.networks.patch_nums.clone(),
                })?)),
            }
        };
        let tokenizer = interrupt.while_reading(NO_STEP, open)?;
        return Ok((tokenizer, None, FitImages::default()));
    }
    let settings = PcaSettings {
        side: config.networks.image_side(),
        patch: config.networks.patch_size,
        components: config.image_tokenizer.components,
        codes: config.image_tokenizer.codes,
        patch_nums: config.networks.patch_nums.clone(),
        seed: config.seed,
    };
    let mut indices: Vec<usize> = (0..records.len()).collect();
    Random::new(config.seed, Purpose::Fit, 0).shuffle(&mut indices);
    indices.truncate(config.image_tokenizer.fit_images);
    indices.sort_unstable();
    indices.retain(|&index| records[index].malformed.is_none());
    let total = indices.len() as u64;
    let requests = indices.into_iter().map(|index| (index, records[index].image.clone())).collect::<Vec<_>>();
    let preprocess = config.preprocess(settings.side);
    let loader = Loader::new(requests, preprocess, config.data.workers, AHEAD)?;
    let mut images = HashMap::new();
    let mut failed = Vec::new();
    for (done, (index, image)) in loader.enumerate() {
        interrupt.check(NO_STEP)?;
        progress.counted("decoding for the tokenizer", done as u64 + 1, total);
        let image = match image {
            Err(_) => look_again(&records[index].image, &preprocess)?,
            found => found,
        };
        if let Err(error) = &image {
            failed.push(FailedRecord::of(&records[index], error.to_string()));
        }
        images.insert(index, image);
    }
    let mut used: Vec<(usize, &SquareImage)> =
        images.iter().filter_map(|(index, image)| Some((*index, image.as_ref().ok()?))).collect();
    used.sort_unstable_by_key(|(index, _)| *index);
    if used.is_empty() {
        return Err(none_usable(table, &failed, failed_out)?);
    }
    if used.len() < images.len() {
        tracing::warn!(
            "{} of {total} images for fitting the tokenizer cannot be used and are skipped",
            images.len() - used.len()
        );
    }
    let (tokenizer, report) = interrupt.while_reading(NO_STEP, || {
        PcaTokenizer::fit(settings, used.iter().map(|(_, image)| image.to_tensor()))
    })?;
    Ok((Box::new(tokenizer), Some(report), FitImages(images)))
}

/// Reads an image a second time, so that a transient error does not change the tokenizer.
///
/// # Errors
/// If the file exists and the system fails to read it, which says nothing about the image itself.
fn look_again(image: &ImageRef, preprocess: &Preprocess) -> Result<Result<SquareImage>> {
    let found = load_image(image, preprocess);
    if let Err(error) = &found
        && error.is_of_machine()
    {
        return found.map(Ok);
    }
    if found.is_err()
        && let Err(error) = read_through(image)
    {
        return Err(image.refuse(format!(
            "cannot be read ({error}), and without it the tokenizer would be fitted differently; fix this, or remove \
             the row from the table"
        )));
    }
    Ok(found)
}

/// Reads a file to its end. A missing file, or something that is not a file, is not an error.
fn read_through(image: &ImageRef) -> io::Result<()> {
    // A named pipe is not opened, because that would block until there is a writer.
    let read = || match image.stamp() {
        Some(_) => io::copy(&mut image.open()?, &mut io::sink()).map(drop),
        None => image.look(),
    };
    match read() {
        Err(error) if !is_of_name(&error) => Err(error),
        _ => Ok(()),
    }
}
