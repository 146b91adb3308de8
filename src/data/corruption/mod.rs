//! Known flaws for any data set: which records are spoiled, and how.
//!
//! A rating can only be judged against a truth. Here a known share of the records of a data set is spoiled on
//! purpose, so that one can see which flaws a rating finds. Nothing but [`plant`] knows where the images come from.

pub mod plant;
mod spoil;

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use spoil::spoil;

use crate::{
    Error, Result,
    engine::{Purpose, Random},
};

/// Indices of streams under [`Purpose::Draw`] that belong to flaws; scenes use the small ones.
const PLAN: u64 = 1 << 48;
const SOURCES: u64 = 2 << 48;

/// What was done to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// Nothing.
    Clean,
    /// The image is one color; the caption is its own.
    Plain,
    /// The image is mostly noise; the caption is its own.
    Noise,
    /// The image is strongly blurred; the caption is its own.
    Blur,
    /// The image is its own; the caption is another record's.
    WrongCaption,
    /// Image and caption are those of another record.
    Duplicate,
    /// The image is ruined by coarse JPEG compression; the caption is its own.
    Jpeg,
    /// A pattern such as a watermark lies over the image; the caption is its own.
    Watermark,
}

impl Flaw {
    /// Every kind, the unspoiled one first.
    pub const ALL: [Self; 8] = [
        Self::Clean,
        Self::Plain,
        Self::Noise,
        Self::Blur,
        Self::WrongCaption,
        Self::Duplicate,
        Self::Jpeg,
        Self::Watermark,
    ];

    /// The name in tables and CSV files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Plain => "plain",
            Self::Noise => "noise",
            Self::Blur => "blur",
            Self::WrongCaption => "wrong_caption",
            Self::Duplicate => "duplicate",
            Self::Jpeg => "jpeg",
            Self::Watermark => "watermark",
        }
    }

    /// Whether the flaw needs another record to take a caption or an image from.
    pub fn needs_source(self) -> bool {
        matches!(self, Self::WrongCaption | Self::Duplicate)
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Flaw {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|flaw| flaw.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|flaw| flaw.name()).collect();
            Error::argument(format!("`{name}` is not a flaw; the flaws are {}", names.join(", ")))
        })
    }
}

/// The share of the records, from 0 to 1, that gets each flaw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlawShares {
    /// Share of [`Flaw::Plain`].
    pub plain: f64,
    /// Share of [`Flaw::Noise`].
    pub noise: f64,
    /// Share of [`Flaw::Blur`].
    pub blur: f64,
    /// Share of [`Flaw::WrongCaption`].
    pub wrong_caption: f64,
    /// Share of [`Flaw::Duplicate`].
    pub duplicate: f64,
    /// Share of [`Flaw::Jpeg`].
    pub jpeg: f64,
    /// Share of [`Flaw::Watermark`].
    pub watermark: f64,
}

impl FlawShares {
    /// No flaws at all.
    pub const NONE: Self = Self {
        plain: 0.0,
        noise: 0.0,
        blur: 0.0,
        wrong_caption: 0.0,
        duplicate: 0.0,
        jpeg: 0.0,
        watermark: 0.0,
    };

    /// 30% in all, every flaw among them: what `plant` does unless told otherwise.
    pub const PLANTED: Self = Self {
        plain: 0.04,
        noise: 0.05,
        blur: 0.05,
        wrong_caption: 0.06,
        duplicate: 0.04,
        jpeg: 0.03,
        watermark: 0.03,
    };

    /// The share of one flaw; what is left over for [`Flaw::Clean`].
    pub(crate) fn share(&self, flaw: Flaw) -> f64 {
        match flaw {
            Flaw::Clean => 1.0 - self.spoiled(),
            Flaw::Plain => self.plain,
            Flaw::Noise => self.noise,
            Flaw::Blur => self.blur,
            Flaw::WrongCaption => self.wrong_caption,
            Flaw::Duplicate => self.duplicate,
            Flaw::Jpeg => self.jpeg,
            Flaw::Watermark => self.watermark,
        }
    }

    /// Sets the share of one flaw; that of [`Flaw::Clean`] is what is left over, and cannot be set.
    ///
    /// # Errors
    /// If it is clean.
    pub(crate) fn set(&mut self, flaw: Flaw, share: f64) -> Result<()> {
        let held = match flaw {
            Flaw::Clean => {
                return Err(Error::argument("the share of `clean` is what the flaws leave over; set theirs"));
            }
            Flaw::Plain => &mut self.plain,
            Flaw::Noise => &mut self.noise,
            Flaw::Blur => &mut self.blur,
            Flaw::WrongCaption => &mut self.wrong_caption,
            Flaw::Duplicate => &mut self.duplicate,
            Flaw::Jpeg => &mut self.jpeg,
            Flaw::Watermark => &mut self.watermark,
        };
        *held = share;
        Ok(())
    }

    /// The share of all flaws together.
    pub(crate) fn spoiled(&self) -> f64 {
        Flaw::ALL[1..].iter().map(|&flaw| self.share(flaw)).sum()
    }
}

impl Default for FlawShares {
    /// What the built-in data set has, 32% in all: 6% plain, 8% noise, 6% blurred, 7% with a wrong caption, 5% duplicates.
    fn default() -> Self {
        Self { plain: 0.06, noise: 0.08, blur: 0.06, wrong_caption: 0.07, duplicate: 0.05, ..Self::NONE }
    }
}

/// Says for each of `records` records what is done to it: each flaw `round(share · records)` times, in an order
/// drawn from the seed.
///
/// # Errors
/// If a share is not between 0 and 1, or the shares together leave no record clean.
pub fn plan(records: usize, shares: &FlawShares, seed: u64) -> Result<Vec<Flaw>> {
    let mut flaws = Vec::with_capacity(records);
    for flaw in &Flaw::ALL[1..] {
        let share = shares.share(*flaw);
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::argument(format!(
                "the share of `{flaw}` is {share}; give a number from 0 to 1"
            )));
        }
        let count = (share * records as f64).round() as usize;
        flaws.resize(flaws.len() + count, *flaw);
    }
    if flaws.len() > records || (flaws.len() == records && records > 0) {
        return Err(Error::argument(format!(
            "the flaws' shares leave none of {records} records clean; lower them, they are {} in all",
            shares.spoiled()
        )));
    }
    flaws.resize(records, Flaw::Clean);
    Random::new(seed, Purpose::Draw, PLAN).shuffle(&mut flaws);
    Ok(flaws)
}

/// Says for each record with a wrong caption or a duplicate's flaw which record it takes that from; `None` for the
/// others. `captions` are the true ones, one a record.
///
/// A duplicate copies a clean record. A wrong caption comes from a record whose true caption differs, in most of its
/// words where one of 64 drawn records offers that, and otherwise in some.
///
/// # Errors
/// If the lengths differ, no record is clean although there are duplicates, or every caption says the same.
pub fn sources<S: AsRef<str>>(flaws: &[Flaw], captions: &[S], seed: u64) -> Result<Vec<Option<usize>>> {
    if flaws.len() != captions.len() {
        return Err(Error::argument(format!(
            "there are {} flaws for {} captions; give one of each for every record",
            flaws.len(),
            captions.len()
        )));
    }
    let clean: Vec<usize> = (0..flaws.len()).filter(|&record| flaws[record] == Flaw::Clean).collect();
    let take = |record: usize, flaw: Flaw| -> Result<Option<usize>> {
        let mut random = Random::new(seed, Purpose::Draw, SOURCES + record as u64);
        match flaw {
            Flaw::Duplicate if clean.is_empty() => Err(Error::not_enough_data(
                "a duplicate needs a clean record to copy, and there is none; lower the shares",
            )),
            Flaw::Duplicate => Ok(Some(clean[random.below(clean.len() as u64) as usize])),
            Flaw::WrongCaption => other_caption(record, captions, &mut random).map(Some),
            _ => Ok(None),
        }
    };
    flaws.iter().enumerate().map(|(record, &flaw)| take(record, flaw)).collect()
}

/// A record whose caption is not true of `record`.
fn other_caption<S: AsRef<str>>(record: usize, captions: &[S], random: &mut Random) -> Result<usize> {
    let own = words(captions[record].as_ref());
    let mut fallback = None;
    for _ in 0..64 {
        let candidate = random.below(captions.len() as u64) as usize;
        let other = words(captions[candidate].as_ref());
        if other == own {
            continue;
        }
        let shared = own.intersection(&other).count();
        // Half of the words that either has: a Jaccard index of 1/2.
        if 2 * shared <= own.union(&other).count() {
            return Ok(candidate);
        }
        fallback = fallback.or(Some(candidate));
    }
    let start = random.below(captions.len() as u64) as usize;
    let around = (0..captions.len()).map(|step| (start + step) % captions.len());
    fallback.or_else(|| around.into_iter().find(|&other| words(captions[other].as_ref()) != own)).ok_or_else(
        || {
            Error::not_enough_data(
                "every caption says the same, so none can be wrong; set the share of `wrong_caption` to 0",
            )
        },
    )
}

/// The words of a caption without regard to case, order or punctuation.
fn words(caption: &str) -> BTreeSet<String> {
    caption
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}
