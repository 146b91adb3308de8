//! Planted flaws: which records of a data set are corrupted, and how.
//!
//! Ratings can only be evaluated against ground truth. This module corrupts a known share of a data set, to measure
//! which flaws a rating detects. Only [`plant`] depends on the source of the images.

mod corrupt;
pub mod plant;

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use corrupt::corrupt;

use crate::{
    Error, Result,
    engine::{Purpose, Random},
};

/// First stream index under [`Purpose::Draw`] for planning flaws; synthetic scenes use low indices.
const PLAN: u64 = 1 << 48;
const SOURCES: u64 = 2 << 48;

/// The flaw of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// None.
    Clean,
    /// The image is a single color; the caption is unchanged.
    Plain,
    /// The image is mostly noise; the caption is unchanged.
    Noise,
    /// The image is strongly blurred; the caption is unchanged.
    Blur,
    /// The caption is another record's; the image is unchanged.
    WrongCaption,
    /// Image and caption are another record's.
    Duplicate,
    /// The image has strong JPEG artifacts; the caption is unchanged.
    Jpeg,
    /// The image has a watermark; the caption is unchanged.
    Watermark,
}

impl Flaw {
    /// Every variant, [`Flaw::Clean`] first.
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

    /// Whether the flaw takes a caption or an image from another record.
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
            let flaws = Self::ALL.iter().filter(|&&flaw| flaw != Self::Clean);
            let names: Vec<_> = flaws.map(|flaw| flaw.name()).collect();
            Error::argument(format!("`{name}` is not a flaw; the flaws are {}", names.join(", ")))
        })
    }
}

/// The share of records with each flaw, from 0 to 1.
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
    /// No flaws.
    pub const NONE: Self = Self {
        plain: 0.0,
        noise: 0.0,
        blur: 0.0,
        wrong_caption: 0.0,
        duplicate: 0.0,
        jpeg: 0.0,
        watermark: 0.0,
    };

    /// All flaws, 30% in total: the default of `plant`.
    pub const PLANTED: Self = Self {
        plain: 0.04,
        noise: 0.05,
        blur: 0.05,
        wrong_caption: 0.06,
        duplicate: 0.04,
        jpeg: 0.03,
        watermark: 0.03,
    };

    /// The share of one flaw; the remainder for [`Flaw::Clean`].
    pub(crate) fn share(&self, flaw: Flaw) -> f64 {
        match flaw {
            Flaw::Clean => 1.0 - self.corrupted(),
            Flaw::Plain => self.plain,
            Flaw::Noise => self.noise,
            Flaw::Blur => self.blur,
            Flaw::WrongCaption => self.wrong_caption,
            Flaw::Duplicate => self.duplicate,
            Flaw::Jpeg => self.jpeg,
            Flaw::Watermark => self.watermark,
        }
    }

    /// Sets the share of one flaw. The share of [`Flaw::Clean`] is the remainder and cannot be set.
    ///
    /// # Errors
    /// If `flaw` is [`Flaw::Clean`].
    pub(crate) fn set(&mut self, flaw: Flaw, share: f64) -> Result<()> {
        let field = match flaw {
            Flaw::Clean => {
                return Err(Error::argument(
                    "the share of `clean` is the remainder; set the shares of the flaws",
                ));
            }
            Flaw::Plain => &mut self.plain,
            Flaw::Noise => &mut self.noise,
            Flaw::Blur => &mut self.blur,
            Flaw::WrongCaption => &mut self.wrong_caption,
            Flaw::Duplicate => &mut self.duplicate,
            Flaw::Jpeg => &mut self.jpeg,
            Flaw::Watermark => &mut self.watermark,
        };
        *field = share;
        Ok(())
    }

    /// The total share of corrupted records.
    pub(crate) fn corrupted(&self) -> f64 {
        Flaw::ALL[1..].iter().map(|&flaw| self.share(flaw)).sum()
    }
}

impl Default for FlawShares {
    /// The shares of the synthetic data set, 32% in total: 6% plain, 8% noise, 6% blur, 7% wrong caption, 5%
    /// duplicates.
    fn default() -> Self {
        Self { plain: 0.06, noise: 0.08, blur: 0.06, wrong_caption: 0.07, duplicate: 0.05, ..Self::NONE }
    }
}

/// Assigns a flaw to each of `records` records: each flaw to `round(share · records)` of them, in a random order that
/// depends on the seed.
///
/// # Errors
/// If a share is not between 0 and 1, or the shares leave no record clean.
pub fn plan(records: usize, shares: &FlawShares, seed: u64) -> Result<Vec<Flaw>> {
    let mut flaws = Vec::with_capacity(records);
    for flaw in &Flaw::ALL[1..] {
        let share = shares.share(*flaw);
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::argument(format!(
                "the share of `{flaw}` is {share}, but it must be between 0 and 1"
            )));
        }
        let count = (share * records as f64).round() as usize;
        flaws.resize(flaws.len() + count, *flaw);
    }
    if flaws.len() > records || (flaws.len() == records && records > 0) {
        return Err(Error::argument(format!(
            "the flaws' shares are {} in total and leave none of {records} records clean; lower them",
            shares.corrupted()
        )));
    }
    flaws.resize(records, Flaw::Clean);
    Random::new(seed, Purpose::Draw, PLAN).shuffle(&mut flaws);
    Ok(flaws)
}

/// For each record with [`Flaw::WrongCaption`] or [`Flaw::Duplicate`], the index of the record to take the caption or
/// the image from; `None` for the others. `captions` are the original ones, one per record.
///
/// A duplicate copies a clean record. A wrong caption comes from a record with a different caption: one that differs
/// in most words if 64 random candidates include one, else one that differs at all.
///
/// # Errors
/// If the lengths differ, there are duplicates but no clean record, or all captions are the same.
pub fn sources<S: AsRef<str>>(flaws: &[Flaw], captions: &[S], seed: u64) -> Result<Vec<Option<usize>>> {
    if flaws.len() != captions.len() {
        return Err(Error::argument(format!(
            "there are {} flaws for {} captions; pass one of each per record",
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

/// A record whose caption differs from that of `record`.
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
        // At most half of the words in common: a Jaccard index of at most 1/2.
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

/// The set of words of a caption, ignoring case, order and punctuation.
fn words(caption: &str) -> BTreeSet<String> {
    caption
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}
