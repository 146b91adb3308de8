//! Pictures that the models of a comparison draw from held-out captions, and what is measured of them.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Teller,
    cells::{CellResult, path_key, with_keys},
    data::Data,
    markdown::with_interval,
    table::Line,
};
use crate::{
    config::Config,
    engine::{Purpose, Random},
    error::{Error, Result},
    files::{remove_folder, sha256},
    interrupt::Interrupt,
    measure::{
        job::{Choice, Measure, Measurer, References, tokenizer_of_config},
        pictures::Pictured,
    },
    report::statistics::mean_interval,
    train::{
        cache::TokenCache,
        corpus,
        sample::{Layout, SampleRequest, SampleSettings, sample},
    },
};

/// Pictures drawn at once.
const BATCH: usize = 16;

/// What is to be drawn and measured.
#[derive(Clone, Debug, PartialEq)]
pub struct PicturesRequest {
    /// Held-out captions that each model draws a picture of.
    pub count: usize,
    /// What is measured of them.
    pub choice: Choice,
}

/// The captions and the pictures they are compared with, the same for every model.
pub(super) struct Drawn {
    captions: Vec<String>,
    held_out: Vec<Pictured>,
    measurer: Measurer,
    /// Taken when the first model needs them.
    references: OnceCell<References>,
    folder: PathBuf,
}

impl Drawn {
    /// Opens the networks of the measures and chooses captions: the first ones of the held-out pairs in an order that the
    /// configuration's seed fixes.
    pub(super) fn open(
        request: &PicturesRequest,
        config: &Config,
        data: &Data,
        out: &Path,
        interrupt: &Interrupt,
        teller: &mut Teller<'_>,
    ) -> Result<Self> {
        let tokens = TokenCache::open(&data.cache)?;
        let mut records = corpus::open(config, &data.held_out)?.read_all()?;
        records.retain(|record| tokens.holds(&record.image));
        if request.count < 2 || request.count > records.len() {
            return Err(Error::invalid(format!(
                "{} pictures cannot be drawn of {} held-out captions; 2 at least, and one of each at most",
                request.count,
                records.len()
            )));
        }
        let config = with_keys(config, &[path_key("token_cache", &data.cache)?])?;
        let mut progress = |what: &str, done, total| (teller.progress)(what, done, total);
        let open =
            || Measurer::open(&request.choice, || tokenizer_of_config(&config, interrupt, &mut progress));
        let measurer =
            interrupt.while_reading("what is encoded is kept; give the same command again", open)?;
        let most = measurer.dimensions();
        if request.count.min(records.len()) <= most {
            tracing::warn!(
                "{} pictures are too few for features of {most} numbers: a covariance is singular, and the Fréchet distance can be \
                 compared only with ones of as many pictures",
                request.count
            );
        }
        let mut places: Vec<usize> = (0..records.len()).collect();
        Random::new(config.seed, Purpose::Shuffle, u64::MAX - 2).shuffle(&mut places);
        let captions = places[..request.count].iter().map(|&place| records[place].caption.clone()).collect();
        let pictured = records.into_iter().map(|record| Pictured {
            id: record.id,
            line: record.line,
            path: record.image,
            caption: Some(record.caption),
            malformed: record.malformed,
        });
        let held_out = pictured.collect();
        Ok(Self { captions, held_out, measurer, references: OnceCell::new(), folder: out.join("pictures") })
    }

    /// What the measures of a model depend on besides the model and the held-out table.
    pub(super) fn identity(&self) -> String {
        let settings = SampleSettings::default();
        sha256(format!("{:?} {settings:?} {}", self.captions, self.measurer.identity()).as_bytes())
    }

    /// Draws the pictures of a fitted model, into a folder of its own that is kept, and measures them.
    pub(super) fn measure(
        &self,
        run: &Path,
        key: &str,
        seed: u64,
        interrupt: &Interrupt,
        teller: &mut Teller<'_>,
    ) -> Result<Vec<Measure>> {
        let out = self.folder.join(key);
        if out.exists() {
            // Of a start that was stopped in the middle of it.
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
            layout: Layout::Bare,
            batch: BATCH,
            // The same draws for all models of a seed, so that their differences are paired.
            settings: SampleSettings { seed, ..SampleSettings::default() },
        };
        let summary = sample(&drawing, interrupt, &mut |done, total| teller.tell(done, total))?;
        let pictures =
            crate::measure::pictures::pictures(&summary.table, &crate::data::ColumnNames::default(), false)?;
        let mut progress = |what: &str, done, total| (teller.progress)(what, done, total);
        let references = match self.references.get() {
            Some(references) => references,
            None => {
                let (references, _) = self.measurer.references(&self.held_out, interrupt, &mut progress)?;
                self.references.get_or_init(|| references)
            }
        };
        Ok(self.measurer.measure(&pictures, Some(references), interrupt, &mut progress)?.0)
    }
}

/// A measure of one line of the summary.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureLine {
    /// What exactly was measured.
    pub name: String,
    /// Its mean over the seeds, and half the 95% interval where there are two.
    pub value: Option<(f64, Option<f64>)>,
    /// The difference to random's, paired by seed.
    pub difference: Option<(f64, Option<f64>)>,
}

/// Seeds and what their models came to.
type Seeds<'a> = [(u64, &'a CellResult)];

/// The measures of an arm's models, beside those of random parts of the same size where it is none itself.
pub(super) fn picture_lines(results: &Seeds<'_>, random: Option<&Seeds<'_>>) -> Vec<PictureLine> {
    let of = |results: &Seeds<'_>, name: &str| -> BTreeMap<u64, f64> {
        let value = |result: &CellResult| Some(result.pictures.iter().find(|one| one.name == name)?.value);
        results.iter().filter_map(|(seed, result)| Some((*seed, value(result)?))).collect()
    };
    let mut names: Vec<&str> = Vec::new();
    for measure in results.iter().flat_map(|(_, result)| &result.pictures) {
        if !names.contains(&measure.name.as_str()) {
            names.push(&measure.name);
        }
    }
    let line = |name: &str| {
        let own = of(results, name);
        let random = random.map(|random| of(random, name)).unwrap_or_default();
        let paired: Vec<f64> =
            own.iter().filter_map(|(seed, value)| Some(value - random.get(seed)?)).collect();
        PictureLine {
            name: name.to_owned(),
            value: mean_interval(&own.into_values().collect::<Vec<_>>()),
            difference: mean_interval(&paired),
        }
    };
    names.into_iter().map(line).collect()
}

/// The names of all measures, in the order in which they first come.
pub(super) fn measure_names<'a>(named: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names = Vec::new();
    for name in named {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The measures as people read them; nothing where no pictures were drawn.
pub(super) fn markdown(lines: &[Line], results: &[&CellResult]) -> String {
    let mut text = String::new();
    let all = || results.iter().flat_map(|result| &result.pictures);
    for name in measure_names(lines.iter().flat_map(|line| &line.pictures).map(|line| line.name.as_str())) {
        let Some(first) = all().find(|measure| measure.name == name) else { continue };
        let reference =
            first.reference.map_or(String::new(), |count| format!(", compared with {count} held-out ones"));
        text.push_str(&format!(
            "\n{name}: of {} pictures that each model draws of held-out captions{reference}; mean ± half the 95% interval over seeds, \
             and the difference to a random part, paired by seed.\n\n\
             | keep | equal | rating | sampler | value | difference to random |\n| --- | --- | --- | --- | --- | --- |\n",
            first.generated
        ));
        for line in lines {
            let found = line.pictures.iter().find(|picture| picture.name == name);
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                line.keep,
                line.convention,
                line.rating,
                line.sampler,
                with_interval(found.and_then(|found| found.value), 4),
                with_interval(found.and_then(|found| found.difference), 4),
            ));
        }
    }
    text
}
