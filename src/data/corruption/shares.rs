//! How many records have each flaw, and which.

use std::{fmt, str::FromStr};

use super::Flaw;
use crate::{
    Error, Result,
    engine::{Purpose, Random},
};

/// First stream index under [`Purpose::Draw`] for planning flaws; synthetic scenes use low indices.
const PLAN: u64 = 1 << 48;
/// Stream index for moving flaws to other records.
const RELOCATE: u64 = 5 << 48;

/// The share of records with each flaw, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlawShares([f64; Flaw::ALL.len()]);

impl FlawShares {
    /// No flaws.
    pub const NONE: Self = Self([0.0; Flaw::ALL.len()]);

    /// Seven flaws, 30% in total: the default of `plant`.
    pub const PLANTED: Self = Self::of(&[
        (Flaw::Plain, 0.04),
        (Flaw::Noise, 0.05),
        (Flaw::Blur, 0.05),
        (Flaw::WrongCaption, 0.06),
        (Flaw::Duplicate, 0.04),
        (Flaw::Jpeg, 0.03),
        (Flaw::Watermark, 0.03),
    ]);

    /// These shares, and 0 for the other flaws. A share of [`Flaw::Clean`] has no effect: it is the remainder.
    pub const fn of(shares: &[(Flaw, f64)]) -> Self {
        let mut all = Self::NONE;
        let mut index = 0;
        while index < shares.len() {
            all.0[shares[index].0 as usize] = shares[index].1;
            index += 1;
        }
        all
    }

    /// The share of one flaw; the remainder for [`Flaw::Clean`].
    pub fn share(&self, flaw: Flaw) -> f64 {
        match flaw {
            Flaw::Clean => 1.0 - self.corrupted(),
            _ => self.0[flaw as usize],
        }
    }

    /// Sets the share of one flaw. The share of [`Flaw::Clean`] is the remainder and cannot be set.
    ///
    /// # Errors
    /// If `flaw` is [`Flaw::Clean`].
    pub(crate) fn set(&mut self, flaw: Flaw, share: f64) -> Result<()> {
        if flaw == Flaw::Clean {
            return Err(Error::argument(
                "the share of `clean` is the remainder; set the shares of the flaws",
            ));
        }
        self.0[flaw as usize] = share;
        Ok(())
    }

    /// The total share of corrupted records.
    pub(crate) fn corrupted(&self) -> f64 {
        Flaw::ALL[1..].iter().map(|&flaw| self.share(flaw)).sum()
    }

    /// The flaws with a share other than 0.
    pub(crate) fn flaws(&self) -> impl Iterator<Item = Flaw> {
        Flaw::ALL.into_iter().skip(1).filter(|&flaw| self.share(flaw) != 0.0)
    }
}

impl Default for FlawShares {
    /// The shares of the synthetic data set, 32% in total: 6% plain, 8% noise, 6% blur, 7% wrong caption, 5%
    /// duplicates.
    fn default() -> Self {
        Self::of(&[
            (Flaw::Plain, 0.06),
            (Flaw::Noise, 0.08),
            (Flaw::Blur, 0.06),
            (Flaw::WrongCaption, 0.07),
            (Flaw::Duplicate, 0.05),
        ])
    }
}

/// A named set of flaws, which corrupt 30% of the records in equal shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixture {
    /// Corrupted images.
    Pixels,
    /// Corrupted captions; the images are unchanged.
    Text,
    /// Both: 15% corrupted images, 15% corrupted captions.
    Both,
    /// Captions that are fine on their own but do not fit the image.
    Mismatch,
    /// Duplicates, exact and near.
    Duplicates,
}

/// The share of corrupted records in a mixture.
const DAMAGE: f64 = 0.3;
const OF_PIXELS: &[Flaw] = &[Flaw::Plain, Flaw::Noise, Flaw::Blur, Flaw::Jpeg, Flaw::Watermark];
const OF_TEXT: &[Flaw] = &[
    Flaw::WrongCaption,
    Flaw::NeighborCaption,
    Flaw::TruncatedCaption,
    Flaw::GenericCaption,
    Flaw::BoilerplateCaption,
];
const OF_MISMATCH: &[Flaw] = &[Flaw::WrongCaption, Flaw::NeighborCaption];
/// Flaws of [`OF_MISMATCH`] that need the scene.
const OF_SCENES: &[Flaw] =
    &[Flaw::WrongAttribute, Flaw::WrongCount, Flaw::WrongPosition, Flaw::SwappedSubjects];
const OF_DUPLICATES: &[Flaw] =
    &[Flaw::Duplicate, Flaw::CroppedDuplicate, Flaw::FlippedDuplicate, Flaw::RecompressedDuplicate];

impl Mixture {
    /// Every variant.
    pub const ALL: [Self; 5] = [Self::Pixels, Self::Text, Self::Both, Self::Mismatch, Self::Duplicates];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pixels => "pixels",
            Self::Text => "text",
            Self::Both => "both",
            Self::Mismatch => "mismatch",
            Self::Duplicates => "duplicates",
        }
    }

    /// The shares; `scenes` adds the flaws that need the scene of an image.
    pub fn shares(self, scenes: bool) -> FlawShares {
        let of_scenes: &[Flaw] = if scenes { OF_SCENES } else { &[] };
        let foreign = if scenes { Flaw::TranslatedCaption } else { Flaw::ForeignCaption };
        let text = [OF_TEXT, &[foreign], of_scenes].concat();
        let parts = match self {
            Self::Pixels => vec![OF_PIXELS.to_vec()],
            Self::Text => vec![text],
            Self::Both => vec![OF_PIXELS.to_vec(), text],
            Self::Mismatch => vec![[OF_MISMATCH, of_scenes].concat()],
            Self::Duplicates => vec![OF_DUPLICATES.to_vec()],
        };
        let mut shares = FlawShares::NONE;
        for part in &parts {
            for &flaw in part {
                shares.0[flaw as usize] = DAMAGE / (parts.len() * part.len()) as f64;
            }
        }
        shares
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Mixture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|mixture| mixture.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::argument(format!("unknown mixture `{name}`; expected one of {names}"))
        })
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

/// Moves each flaw that its record cannot have to a clean record that can have it. The counts remain the same.
///
/// # Errors
/// If there are too few such records.
pub fn relocate(flaws: &mut [Flaw], seed: u64, fits: impl Fn(usize, Flaw) -> bool) -> Result<()> {
    let misplaced: Vec<usize> =
        (0..flaws.len()).filter(|&at| flaws[at] != Flaw::Clean && !fits(at, flaws[at])).collect();
    let mut clean: Vec<usize> = (0..flaws.len()).filter(|&at| flaws[at] == Flaw::Clean).collect();
    Random::new(seed, Purpose::Draw, RELOCATE).shuffle(&mut clean);
    // Where the search for each flaw continues: a record that a flaw does not fit need not be tried again.
    let mut next = [0; Flaw::ALL.len()];
    for from in misplaced {
        let flaw = flaws[from];
        let next = &mut next[flaw as usize];
        let found = clean[*next..].iter().position(|&at| flaws[at] == Flaw::Clean && fits(at, flaw));
        let Some(steps) = found else {
            let count = flaws.iter().filter(|&&other| other == flaw).count();
            return Err(Error::not_enough_data(format!(
                "`{flaw}` applies to too few records for its share ({count} of {}); lower the share",
                flaws.len()
            )));
        };
        flaws.swap(from, clean[*next + steps]);
        *next += steps + 1;
        clean.push(from);
    }
    Ok(())
}
