//! Generates images for a list of prompts into a folder, with a table of the images and their prompts.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    SampleSettings, Sampler,
    layout::{ImageLayout, ImageWriter},
};
use crate::{
    config::Config,
    encode::{ImageTokenizer, TextEncoder},
    engine::Tensor,
    error::{Error, Result},
    files::{hexadecimal, remove_leftovers, write_atomic},
    generator::fit::{Model, load_model},
    interrupt::Interrupt,
    jobs::{Claim, folder::OutputFolder, progress::Progress},
    report::raster::Raster,
    tokens::encoders::Encoders,
    training::{
        released,
        run_directory::CHECKPOINTS,
        trained::{Named, configuration},
    },
};

/// A sampling job.
#[derive(Clone, Debug)]
pub struct SampleRequest {
    /// A run of `fit` or one checkpoint in it; or, with `weights`, a configuration file.
    pub model: PathBuf,
    /// Weights in the released layout, for a model that was not trained by this program.
    pub weights: Option<PathBuf>,
    /// `key=value` arguments that override the configuration.
    pub sets: Vec<String>,
    /// The captions.
    pub prompts: Vec<String>,
    /// Images per prompt.
    pub each: usize,
    /// The output folder.
    pub out: PathBuf,
    /// Replace the output of an earlier `sample`.
    pub overwrite: bool,
    /// The layout of the images.
    pub layout: ImageLayout,
    /// Images generated at once.
    pub batch: usize,
    /// How codes are sampled.
    pub settings: SampleSettings,
}

/// The summary of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSummary {
    /// Images written.
    pub images: usize,
    /// The grid of all images, if there is one.
    pub grid: Option<PathBuf>,
    /// The table of images: `file`, `prompt`, `number`.
    pub table: PathBuf,
}

impl fmt::Display for SampleSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} images\n{}", self.images, self.table.display())?;
        self.grid.as_ref().map_or(Ok(()), |grid| write!(formatter, "\n{}", grid.display()))
    }
}

/// A model with its encoders.
struct Loaded {
    model: Model,
    tokenizer: Box<dyn ImageTokenizer>,
    text: Box<dyn TextEncoder>,
}

impl Loaded {
    fn open(request: &SampleRequest, interrupt: &Interrupt) -> Result<Self> {
        let (device, config, mut loaded) = match &request.weights {
            Some(weights) => {
                let config = without_cache(Config::load(&request.model, &request.sets)?);
                let device = config.device.open()?;
                let Encoders { tokenizer, text, .. } =
                    Encoders::named(&config, interrupt)?.on(device.as_ref())?;
                let mut model = Model::uninitialized(&config, sizes(tokenizer.as_ref(), text.as_ref()))?;
                released::load(weights, released::PROXY, &mut model.parameters)?;
                (device, config, Self { model, tokenizer, text })
            }
            None => {
                let named = Named::new(&request.model)?;
                let config = without_cache(configuration(&named.run, &request.sets)?);
                let device = config.device.open()?;
                let Encoders { tokenizer, text, .. } =
                    Encoders::of(&named.run, &config)?.on(device.as_ref())?;
                let sizes = sizes(tokenizer.as_ref(), text.as_ref());
                let checkpoints = named.run.join(CHECKPOINTS);
                let (model, _) = load_model(&config, &checkpoints, named.checkpoint.as_deref(), sizes)?;
                (device, config, Self { model, tokenizer, text })
            }
        };
        if let Some(device) = device {
            loaded.model.parameters = loaded.model.parameters.to_device(&device, config.compute)?;
        }
        Ok(loaded)
    }
}

/// Prompts are not part of the encoded corpus, and the cache may be gone.
fn without_cache(mut config: Config) -> Config {
    config.data.token_cache = None;
    config
}

fn sizes(tokenizer: &dyn ImageTokenizer, text: &dyn TextEncoder) -> [usize; 3] {
    let quantizer = tokenizer.quantizer();
    [quantizer.vocabulary(), quantizer.channels(), text.channels()]
}

/// Generates the images. An image depends only on the model, its prompt's index, its number and the seed.
///
/// # Errors
/// If the model cannot be read, there is no prompt, the folder is not empty or cannot be written, or the user
/// interrupts.
pub fn sample(
    request: &SampleRequest,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<SampleSummary> {
    let SampleRequest { prompts, each, out, layout, batch, .. } = request;
    if prompts.is_empty() || *each == 0 || *batch == 0 {
        return Err(Error::argument(
            "no captions; pass --prompt TEXT or --prompts FILE, and 1 or more images per caption",
        ));
    }
    if let ImageLayout::GenEval { metadata } = layout
        && metadata.len() != prompts.len()
    {
        return Err(Error::argument("each prompt needs a line of GenEval's prompt file"));
    }
    let inputs: Vec<PathBuf> =
        [Some(&request.model), request.weights.as_ref()].into_iter().flatten().cloned().collect();
    let claim = Claim { command: "sample", inputs: &inputs, overwrite: request.overwrite };
    let folder = OutputFolder::claim(&claim, out, &[])?;
    folder.refuse_present(request.overwrite)?;
    let loaded = interrupt.while_reading("nothing was written", || Loaded::open(request, interrupt))?;
    let staging = folder.begin_sibling(true)?;
    let identity = identity(request, &loaded)?;
    let kept = staging.join(JOB);
    if fs::read(&kept).ok().as_deref() != Some(identity.as_bytes()) {
        // The existing images were generated by another model or from other prompts.
        folder.begin_sibling(false)?;
        write_atomic(&kept, identity.as_bytes())?;
    }
    remove_leftovers(&staging)?;
    let summary = write(request, &loaded, &staging, interrupt, progress)?;
    fs::remove_file(&kept).map_err(Error::io("remove", &kept))?;
    folder.publish()?;
    Ok(SampleSummary {
        grid: summary.grid.map(|grid| out.join(grid.file_name().unwrap_or_default())),
        table: out.join(TABLE),
        ..summary
    })
}

/// The file that records the inputs of the images.
const JOB: &str = "job";
/// The table of images.
const TABLE: &str = "samples.csv";

/// A digest of everything that the images depend on.
fn identity(request: &SampleRequest, loaded: &Loaded) -> Result<String> {
    let SampleRequest { prompts, each, layout, batch, settings, sets, .. } = request;
    let mut hash = Sha256::new();
    // On a device the last digits depend on the batch, so a batch is always generated as a whole, and its size is
    // part of the digest.
    hash.update(format!("{prompts:?} {each} {layout:?} {batch} {settings:?} {sets:?}"));
    hash.update(loaded.tokenizer.fingerprint());
    hash.update(loaded.text.fingerprint());
    for (_, name, value) in loaded.model.parameters.iter() {
        hash.update(format!("{name:?}"));
        let values = value.to_host()?.to_f64_vec()?;
        hash.update(bytemuck::cast_slice::<f64, u8>(&values));
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// Writes the images and the table into a folder, which is renamed later. Existing images are kept.
fn write(
    request: &SampleRequest,
    loaded: &Loaded,
    out: &Path,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<SampleSummary> {
    let SampleRequest { prompts, each, layout, batch, settings, .. } = request;
    let Loaded { model, tokenizer, text } = loaded;
    let sampler = Sampler {
        network: &model.network,
        parameters: &model.parameters,
        quantizer: tokenizer.quantizer(),
        settings: *settings,
    };
    let empty = text.encode(&[""])?;
    let pairs: Vec<(usize, usize)> =
        (0..prompts.len()).flat_map(|prompt| (0..*each).map(move |number| (prompt, number))).collect();
    let mut writer = ImageWriter::new(layout, out, *each);
    let table = out.join(TABLE);
    let refuse =
        |error: csv::Error| Error::Table { path: table.clone(), line: None, message: error.to_string() };
    let mut lines = csv::Writer::from_writer(Vec::new());
    lines.write_record(["file", "prompt", "number"]).map_err(refuse)?;
    let mut done = 0;
    for chunk in pairs.chunks(*batch) {
        interrupt.check(&format!("{done} images are kept; run the same command again to continue"))?;
        let captions: Vec<&str> = chunk.iter().map(|&(prompt, _)| prompts[prompt].as_str()).collect();
        let streams: Vec<u64> =
            chunk.iter().map(|&(prompt, number)| (prompt * each + number) as u64).collect();
        let kept: Option<Vec<Raster>> =
            chunk.iter().map(|&(prompt, number)| writer.kept(prompt, number)).collect();
        let images = match kept {
            Some(kept) => kept,
            None => {
                let codes = sampler.codes(&text.encode(&captions)?, &empty, &streams)?;
                images_of(&tokenizer.decode(&codes)?)?
            }
        };
        for (&(prompt, number), image) in chunk.iter().zip(images) {
            let caption = &prompts[prompt];
            let name = writer.write(prompt, number, caption, image)?;
            lines.write_record([name.as_str(), caption, &number.to_string()]).map_err(refuse)?;
            done += 1;
            progress.counted("sampling", done, pairs.len() as u64);
        }
    }
    let bytes = lines.into_inner().map_err(|error| Error::invalid(error.to_string()))?;
    write_atomic(&table, &bytes)?;
    let grid = writer.finish()?;
    Ok(SampleSummary { images: pairs.len(), grid, table })
}

/// Images `[B, 3, R, R]` in [-1, 1] as bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn images_of(images: &Tensor) -> Result<Vec<Raster>> {
    let side = images.dim(2);
    let plane = side * side;
    let width = u32::try_from(side).map_err(|_| Error::argument("the image is too wide for a PNG file"))?;
    let byte = |value: f32| ((value + 1.0) * 127.5).clamp(0.0, 255.0).round() as u8;
    images
        .as_slice::<f32>()?
        .chunks_exact(3 * plane)
        .map(|planes| {
            let rgb = (0..plane).flat_map(|pixel| (0..3).map(move |channel| channel * plane + pixel));
            Raster::from_rgb(width, width, rgb.map(|at| byte(planes[at])).collect())
        })
        .collect()
}
