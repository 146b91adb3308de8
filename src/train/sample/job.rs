//! Pictures of a list of prompts in a folder, and a table that says which is which.

use std::{fmt, fs, path::PathBuf};

use super::{
    SampleSettings, Sampler,
    layout::{Layout, Placed},
};
use crate::{
    config::Config,
    encode::{ImageTokenizer, TextEncoder},
    engine::Tensor,
    error::{Error, Result},
    files::write_whole,
    interrupt::Interrupt,
    report::picture::Picture,
    train::{
        fit::{Model, load_model},
        released,
        trained::{Encoders, Named, configuration},
    },
};

/// What is to be drawn, from which model.
#[derive(Clone, Debug)]
pub struct SampleRequest {
    /// A run of `fit` or one checkpoint in it; or, with `weights`, a configuration file.
    pub model: PathBuf,
    /// Weights in the released layout, for a model that was not fitted here.
    pub weights: Option<PathBuf>,
    /// Keys set on top of the configuration.
    pub sets: Vec<String>,
    /// The captions.
    pub prompts: Vec<String>,
    /// Pictures of each.
    pub each: usize,
    /// The folder to write into; it must not hold anything yet.
    pub out: PathBuf,
    /// How the pictures are laid out in it.
    pub layout: Layout,
    /// Pictures drawn at once.
    pub batch: usize,
    /// How codes are drawn.
    pub settings: SampleSettings,
}

/// What was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSummary {
    /// Pictures written.
    pub pictures: usize,
    /// The picture of all, if there is one.
    pub grid: Option<PathBuf>,
    /// Which picture is of which prompt: `file`, `prompt`, `number`.
    pub table: PathBuf,
}

impl fmt::Display for SampleSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} pictures\n{}", self.pictures, self.table.display())?;
        self.grid.as_ref().map_or(Ok(()), |grid| write!(formatter, "\n{}", grid.display()))
    }
}

/// A model and the encoders it goes with.
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
                let mut model = Model::undrawn(&config, sizes(tokenizer.as_ref(), text.as_ref()))?;
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
                let checkpoints = named.run.join("checkpoints");
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

/// A prompt is no part of the corpus that was encoded, and the cache may be gone.
fn without_cache(mut config: Config) -> Config {
    config.data.token_cache = None;
    config
}

fn sizes(tokenizer: &dyn ImageTokenizer, text: &dyn TextEncoder) -> [usize; 3] {
    let quantizer = tokenizer.quantizer();
    [quantizer.vocabulary(), quantizer.channels(), text.channels()]
}

/// Draws the pictures. A picture depends on the model, its prompt's place in the list, its number and the seed alone.
///
/// # Errors
/// If the model cannot be read, there is no prompt, the folder holds something already or cannot be written, or the user
/// interrupts.
pub fn sample(
    request: &SampleRequest,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SampleSummary> {
    let SampleRequest { prompts, each, out, layout, batch, settings, .. } = request;
    if prompts.is_empty() || *each == 0 || *batch == 0 {
        return Err(Error::invalid(
            "there is nothing to draw: give at least one prompt, and one picture of it",
        ));
    }
    if let Layout::GenEval { metadata } = layout
        && metadata.len() != prompts.len()
    {
        return Err(Error::invalid("each prompt needs its line of GenEval's file"));
    }
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::invalid(format!("{} is not empty; give another folder", out.display())));
    }
    let Loaded { model, tokenizer, text } =
        interrupt.while_reading("nothing was written", || Loaded::open(request, interrupt))?;
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let sampler = Sampler {
        network: &model.network,
        parameters: &model.parameters,
        quantizer: tokenizer.quantizer(),
        settings: *settings,
    };
    let empty = text.encode(&[""])?;
    let wanted: Vec<(usize, usize)> =
        (0..prompts.len()).flat_map(|prompt| (0..*each).map(move |number| (prompt, number))).collect();
    let mut placed = Placed::new(layout, out, *each);
    let table = out.join("samples.csv");
    let refuse =
        |error: csv::Error| Error::Table { path: table.clone(), line: None, message: error.to_string() };
    let mut lines = csv::Writer::from_writer(Vec::new());
    lines.write_record(["file", "prompt", "number"]).map_err(refuse)?;
    let mut done = 0;
    for chunk in wanted.chunks(*batch) {
        interrupt.check(&format!("{done} pictures are in {}", out.display()))?;
        let captions: Vec<&str> = chunk.iter().map(|&(prompt, _)| prompts[prompt].as_str()).collect();
        let streams: Vec<u64> =
            chunk.iter().map(|&(prompt, number)| (prompt * each + number) as u64).collect();
        let codes = sampler.codes(&text.encode(&captions)?, &empty, &streams)?;
        let pictures = tokenizer.decode(&codes)?;
        for (&(prompt, number), picture) in chunk.iter().zip(pictures_of(&pictures)?) {
            let caption = &prompts[prompt];
            let name = placed.write(prompt, number, caption, picture)?;
            lines.write_record([name.as_str(), caption, &number.to_string()]).map_err(refuse)?;
            done += 1;
            progress(done, wanted.len() as u64);
        }
    }
    let bytes = lines.into_inner().map_err(|error| Error::invalid(error.to_string()))?;
    write_whole(&table, &bytes)?;
    let grid = placed.finish()?;
    Ok(SampleSummary { pictures: wanted.len(), grid, table })
}

/// Pictures `[B, 3, R, R]` in [-1, 1] as bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn pictures_of(pictures: &Tensor) -> Result<Vec<Picture>> {
    let side = pictures.dim(2);
    let plane = side * side;
    let width = u32::try_from(side).map_err(|_| Error::invalid("a picture is too wide for a PNG file"))?;
    let byte = |value: f32| ((value + 1.0) * 127.5).clamp(0.0, 255.0).round() as u8;
    pictures
        .as_slice::<f32>()?
        .chunks_exact(3 * plane)
        .map(|planes| {
            let rgb = (0..plane).flat_map(|pixel| (0..3).map(move |channel| channel * plane + pixel));
            Picture::from_rgb(width, width, rgb.map(|at| byte(planes[at])).collect())
        })
        .collect()
}
