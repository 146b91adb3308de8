//! The level of each token: those of a pyramid follow each other.

use std::sync::OnceLock;

use super::size;
use crate::{
    engine::{
        autograd::contributions::TableRows,
        cuda::{Buffer, Device},
    },
    error::{Error, Result},
};

/// The level of each token of a sample.
#[derive(Debug)]
pub struct Levels {
    of_tokens: Vec<u32>,
    counts: Vec<usize>,
    /// The rows of the table of level vectors that make a pair: a level's own and the last.
    pub(super) pairs: TableRows,
    on_device: OnceLock<(Device, SequenceLevels)>,
}

impl Levels {
    /// Levels that follow each other: `counts[s]` tokens of level `s`.
    #[expect(clippy::cast_possible_truncation, reason = "a pyramid has some hundred tokens")]
    pub fn new(counts: &[usize]) -> Self {
        let of_level = |(level, &count): (usize, &usize)| std::iter::repeat_n(level as u32, count);
        let last = counts.len().saturating_sub(1) as u32;
        Self {
            of_tokens: counts.iter().enumerate().flat_map(of_level).collect(),
            counts: counts.to_vec(),
            pairs: TableRows::new((0..=last).flat_map(|level| [level, last]).collect(), last as usize + 1),
            on_device: OnceLock::new(),
        }
    }

    /// The level of each token.
    pub(crate) fn host(&self) -> &[u32] {
        &self.of_tokens
    }

    /// How many tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.of_tokens.len()
    }

    /// How many levels, `S`.
    pub(crate) fn count(&self) -> usize {
        self.counts.len()
    }

    /// The same on a device.
    pub(crate) fn on(&self, device: &Device) -> Result<&SequenceLevels> {
        let (held, levels) = match self.on_device.get() {
            Some(held) => held,
            None => {
                let made = SequenceLevels::new(device, &self.counts)?;
                self.on_device.get_or_init(|| (device.clone(), made))
            }
        };
        if held.is(device) {
            return Ok(levels);
        }
        Err(Error::invalid("a network is used on one device after another; build it once for each"))
    }

    /// Refuses unless there are as many tokens.
    pub(crate) fn expect(&self, op: &'static str, tokens: usize) -> Result<()> {
        if tokens == self.tokens() {
            return Ok(());
        }
        Err(Error::shape(op, format!("{tokens} tokens, but levels of {}", self.tokens())))
    }
}

/// Which level each token has.
#[derive(Debug)]
pub struct SequenceLevels {
    levels: Buffer<u32>,
    starts: Buffer<u32>,
    first: usize,
}

impl SequenceLevels {
    /// From the number of tokens of each level, that of the first level being the tokens without a row.
    ///
    /// # Errors
    /// If there is no level, or there is not enough memory.
    pub fn new(device: &Device, counts: &[usize]) -> Result<Self> {
        let Some(&first) = counts.first() else {
            return Err(Error::shape("levels", "there is no level"));
        };
        let (mut levels, mut starts) = (Vec::new(), vec![0]);
        for (level, &count) in counts.iter().enumerate() {
            levels.extend(std::iter::repeat_n(size("levels", "levels", level)?, count));
            starts.push(size("levels", "tokens", levels.len())?);
        }
        Ok(Self { levels: device.upload(&levels)?, starts: device.upload(&starts)?, first })
    }

    /// Tokens of a sample, `L`.
    pub fn tokens(&self) -> usize {
        self.levels.len()
    }

    /// Tokens of the first level, `L₀`.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// The level of each token, `[L]`.
    pub fn levels(&self) -> &Buffer<u32> {
        &self.levels
    }

    /// The first token of each level, and last `L`; `[S + 1]`.
    pub fn starts(&self) -> &Buffer<u32> {
        &self.starts
    }

    pub(crate) fn count(&self) -> usize {
        self.starts.len() - 1
    }
}
