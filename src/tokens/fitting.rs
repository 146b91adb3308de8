//! The image tokenizer that a configuration names, or fitted to the records of a table.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    path::Path,
};

use crate::{
    config::{Config, ImageTokenizerKind},
    data::{ImageRef, Loader, Preprocess, Record, SquareImage, load_image},
    encode::{
        ImageTokenizer,
        pca::{FitReport, PcaSettings, PcaTokenizer},
        vqvae::{VqVae, VqVaeSettings},
    },
    engine::{Purpose, Random},
    error::{Error, Result},
    interrupt::{Interrupt, NO_STEP},
    jobs::progress::Progress,
    tokens::{
        records::{FailedRecord, none_usable},
        tokenize::FitImages,
    },
};

/// Images decoded ahead of their use.
const AHEAD: usize = 128;

/// Fits the configured image tokenizer to a seeded sample of the records of `table`, or loads the one that is named. The
/// decoded images are given back, so that none is decoded twice.
///
/// An image that is not there or cannot be decoded is no part of the fit, and given back as such: it is left out and counted
/// wherever the corpus is read. A file that the system fails to read ends the fit, as the same command would give another
/// tokenizer when it can be read again.
///
/// # Errors
/// If no image can be used (which `failed_out` then lists, if it is given), a file cannot be read, the sizes do not fit, or the
/// run is interrupted.
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
    let mut places: Vec<usize> = (0..records.len()).collect();
    Random::new(config.seed, Purpose::Fit, 0).shuffle(&mut places);
    places.truncate(config.image_tokenizer.fit_images);
    places.sort_unstable();
    places.retain(|&place| records[place].malformed.is_none());
    let total = places.len() as u64;
    let requests = places.into_iter().map(|place| (place, records[place].image.clone())).collect::<Vec<_>>();
    let preprocess = config.preprocess(settings.side);
    let loader = Loader::new(requests, preprocess, config.data.workers, AHEAD)?;
    let mut images = HashMap::new();
    let mut failed = Vec::new();
    for (done, (place, image)) in loader.enumerate() {
        interrupt.check(NO_STEP)?;
        progress.counted("decoding for the tokenizer", done as u64 + 1, total);
        let image = match image {
            Err(_) => look_again(&records[place].image, &preprocess)?,
            found => found,
        };
        if let Err(error) = &image {
            failed.push(FailedRecord::of(&records[place], error.to_string()));
        }
        images.insert(place, image);
    }
    let mut used: Vec<(usize, &SquareImage)> =
        images.iter().filter_map(|(place, image)| Some((*place, image.as_ref().ok()?))).collect();
    used.sort_unstable_by_key(|(place, _)| *place);
    if used.is_empty() {
        return Err(none_usable(table, &failed, failed_out)?);
    }
    if used.len() < images.len() {
        tracing::warn!(
            "{} of {total} images that the tokenizer is fitted to cannot be used and are left out",
            images.len() - used.len()
        );
    }
    let (tokenizer, report) = interrupt.while_reading(NO_STEP, || {
        PcaTokenizer::fit(settings, used.iter().map(|(_, image)| image.to_tensor()))
    })?;
    Ok((Box::new(tokenizer), Some(report), FitImages(images)))
}

/// An image that could not be read, once more: what was wrong for a moment is not to change the tokenizer.
///
/// # Errors
/// If the file is there and the system fails to read it, which is no property of the image.
fn look_again(image: &ImageRef, preprocess: &Preprocess) -> Result<Result<SquareImage>> {
    let found = load_image(image, preprocess);
    if let Err(error @ Error::Memory { .. }) = found {
        return Err(error);
    }
    if found.is_err()
        && let Err(error) = read_through(image)
    {
        return Err(image.refuse(format!(
            "cannot be read ({error}), and the image tokenizer would be another one without it; mend that, or remove the row \
             from the table"
        )));
    }
    Ok(found)
}

/// Reads a file to its end. That there is none, or something else than a file, is no failure.
fn read_through(image: &ImageRef) -> io::Result<()> {
    let of_the_name = |error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::InvalidInput
                | ErrorKind::InvalidFilename
                | ErrorKind::Unsupported
        )
    };
    // A named pipe is not opened, as that would wait for a writer.
    let read = || match image.stamp() {
        Some(_) => io::copy(&mut image.open()?, &mut io::sink()).map(drop),
        None => image.look(),
    };
    match read() {
        Err(error) if !of_the_name(&error) => Err(error),
        _ => Ok(()),
    }
}
