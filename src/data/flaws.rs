//! Known flaws for any data set: which records are spoiled, and how.
//!
//! A rating can only be judged against a truth. Here a known share of the records of a data set is spoiled on
//! purpose, so that one can see which flaws a rating finds. Nothing in here knows where the pictures come from.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    engine::{Purpose, Random},
};

/// Indices of streams under [`Purpose::Draw`] that belong to flaws; scenes use the small ones.
const PLAN: u64 = 1 << 48;
const SOURCES: u64 = 2 << 48;
const SPOIL: u64 = 3 << 48;

/// What was done to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// Nothing.
    Clean,
    /// The picture is one colour; the caption is its own.
    Plain,
    /// The picture is mostly noise; the caption is its own.
    Noise,
    /// The picture is strongly blurred; the caption is its own.
    Blur,
    /// The picture is its own; the caption is another record's.
    WrongCaption,
    /// Picture and caption are those of another record.
    Duplicate,
}

impl Flaw {
    /// Every kind, the unspoiled one first.
    pub const ALL: [Self; 6] =
        [Self::Clean, Self::Plain, Self::Noise, Self::Blur, Self::WrongCaption, Self::Duplicate];

    /// The name in tables and CSV files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Plain => "plain",
            Self::Noise => "noise",
            Self::Blur => "blur",
            Self::WrongCaption => "wrong_caption",
            Self::Duplicate => "duplicate",
        }
    }

    /// Whether the flaw needs another record to take a caption or a picture from.
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
            Error::invalid(format!("`{name}` is not a flaw; the flaws are {}", names.join(", ")))
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
}

impl FlawShares {
    /// No flaws at all.
    pub const NONE: Self = Self { plain: 0.0, noise: 0.0, blur: 0.0, wrong_caption: 0.0, duplicate: 0.0 };

    /// The share of one flaw; what is left over for [`Flaw::Clean`].
    pub fn share(&self, flaw: Flaw) -> f64 {
        match flaw {
            Flaw::Clean => 1.0 - self.spoiled(),
            Flaw::Plain => self.plain,
            Flaw::Noise => self.noise,
            Flaw::Blur => self.blur,
            Flaw::WrongCaption => self.wrong_caption,
            Flaw::Duplicate => self.duplicate,
        }
    }

    /// The share of all flaws together.
    pub fn spoiled(&self) -> f64 {
        self.plain + self.noise + self.blur + self.wrong_caption + self.duplicate
    }
}

impl Default for FlawShares {
    /// 32% in all: 6% plain, 8% noise, 6% blurred, 7% with a wrong caption, 5% duplicates.
    fn default() -> Self {
        Self { plain: 0.06, noise: 0.08, blur: 0.06, wrong_caption: 0.07, duplicate: 0.05 }
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
            return Err(Error::invalid(format!(
                "the share of `{flaw}` is {share}; give a number from 0 to 1"
            )));
        }
        let count = (share * records as f64).round() as usize;
        flaws.resize(flaws.len() + count, *flaw);
    }
    if flaws.len() > records || (flaws.len() == records && records > 0) {
        return Err(Error::invalid(format!(
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
        return Err(Error::invalid(format!(
            "there are {} flaws for {} captions; give one of each for every record",
            flaws.len(),
            captions.len()
        )));
    }
    let clean: Vec<usize> = (0..flaws.len()).filter(|&record| flaws[record] == Flaw::Clean).collect();
    let take = |record: usize, flaw: Flaw| -> Result<Option<usize>> {
        let mut random = Random::new(seed, Purpose::Draw, SOURCES + record as u64);
        match flaw {
            Flaw::Duplicate if clean.is_empty() => Err(Error::invalid(
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
            Error::invalid(
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

/// Spoils a picture, `[height, width, 3]` bytes, by a flaw of pictures; the other flaws leave it as it is. The same
/// (`seed`, `record`) gives the same bytes.
///
/// # Errors
/// If `rgb` is not `width`×`height` pixels.
pub fn spoil(rgb: &mut [u8], width: usize, height: usize, flaw: Flaw, seed: u64, record: u64) -> Result<()> {
    if rgb.len() != width * height * 3 {
        return Err(Error::shape(
            "spoil",
            format!("{} bytes are not a picture of {width}×{height} pixels of 3 bytes", rgb.len()),
        ));
    }
    let mut random = Random::new(seed, Purpose::Draw, SPOIL + record);
    match flaw {
        Flaw::Plain => make_plain(rgb, &mut random),
        Flaw::Noise => add_noise(rgb, &mut random),
        Flaw::Blur => blur(rgb, width, height, &mut random),
        Flaw::Clean | Flaw::WrongCaption | Flaw::Duplicate => {}
    }
    Ok(())
}

/// Puts one random colour in place of the picture, each byte off by at most 2.
fn make_plain(rgb: &mut [u8], random: &mut Random) {
    let colour = [0; 3].map(|_: i32| 8 + random.below(240) as u8);
    for pixel in rgb.chunks_exact_mut(3) {
        for (byte, &base) in pixel.iter_mut().zip(&colour) {
            *byte = base + random.below(5) as u8 - 2;
        }
    }
}

/// Leaves 10 to 30% of the contrast and adds normal noise with a deviation of 55 to 85 of 255.
fn add_noise(rgb: &mut [u8], random: &mut Random) {
    let contrast = 0.1 + 0.2 * random.uniform();
    let deviation = 55.0 + 30.0 * random.uniform();
    for byte in rgb {
        // The sum of 12 uniform numbers has variance 1 and is close to normal; unlike a logarithm it is the same
        // bits on every platform.
        let uniforms: f64 = (0..6).map(|_| both_halves(random.next_u64())).sum();
        let normal = uniforms - 6.0;
        let value = 128.0 + contrast * (f64::from(*byte) - 128.0) + deviation * normal;
        *byte = (value + 0.5).clamp(0.0, 255.0) as u8;
    }
}

/// The sum of the two uniform numbers in [0, 1) that 64 bits hold.
fn both_halves(bits: u64) -> f64 {
    ((bits >> 32) + (bits & 0xFFFF_FFFF)) as f64 / (1u64 << 32) as f64
}

/// Blurs by three box filters in each direction, which together are close to a Gaussian with a deviation of 7 to 11%
/// of the shorter side.
fn blur(rgb: &mut [u8], width: usize, height: usize, random: &mut Random) {
    let deviation = (0.07 + 0.04 * random.uniform()) * width.min(height) as f64;
    // Three boxes of 2r + 1 pixels have variance ((2r + 1)² - 1) / 4.
    let radius = (((4.0 * deviation * deviation + 1.0).sqrt() - 1.0) / 2.0).round().max(1.0) as usize;
    let mut line = Vec::new();
    for channel in 0..3 {
        for row in 0..height {
            blur_line(rgb, row * width * 3 + channel, 3, width, radius, &mut line);
        }
        for column in 0..width {
            blur_line(rgb, column * 3 + channel, width * 3, height, radius, &mut line);
        }
    }
}

/// Filters the `count` bytes at `start`, `start + step`, ... three times; the picture's edge goes on outside it.
fn blur_line(rgb: &mut [u8], start: usize, step: usize, count: usize, radius: usize, line: &mut Vec<f64>) {
    line.clear();
    line.extend((0..count).map(|index| f64::from(rgb[start + index * step])));
    let share = 1.0 / (2 * radius + 1) as f64;
    for _ in 0..3 {
        let old = line.clone();
        let at = |index: isize| old[index.clamp(0, count as isize - 1) as usize];
        let reach = radius as isize;
        let mut sum: f64 = (-reach..=reach).map(at).sum();
        for (index, value) in line.iter_mut().enumerate() {
            *value = sum * share;
            sum += at(index as isize + reach + 1) - at(index as isize - reach);
        }
    }
    for (index, value) in line.iter().enumerate() {
        rgb[start + index * step] = (value + 0.5).clamp(0.0, 255.0) as u8;
    }
}
