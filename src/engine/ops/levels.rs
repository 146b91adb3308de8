//! The level of each token; levels are consecutive in a pyramid.

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
    /// The rows of the level table that form a pair: a level's own and the last.
    pub(super) pairs: TableRows,
    on_device: OnceLock<(Device, SequenceLevels)>,
}

impl Levels {
    /// Consecutive levels: `counts[s]` tokens of level `s`.
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

    /// Number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.of_tokens.len()
    }

    /// Number of levels, `S`.
    pub(crate) fn count(&self) -> usize {
        self.counts.len()
    }

    /// The levels on a device.
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
        Err(Error::invalid("a network cannot be used on several devices; build one for each"))
    }

    /// Returns an error unless the number of tokens matches.
    pub(crate) fn expect(&self, op: &'static str, tokens: usize) -> Result<()> {
        if tokens == self.tokens() {
            return Ok(());
        }
        Err(Error::shape(op, format!("{tokens} tokens, but levels of {}", self.tokens())))
    }
}

/// The level of each token, on a device.
#[derive(Debug)]
pub struct SequenceLevels {
    levels: Buffer<u32>,
    starts: Buffer<u32>,
    first: usize,
}

impl SequenceLevels {
    /// Builds the levels from the number of tokens of each; the tokens of the first level have no rows in the pyramid.
    ///
    /// # Errors
    /// If there are no levels, or there is not enough memory.
    pub fn new(device: &Device, counts: &[usize]) -> Result<Self> {
        let Some(&first) = counts.first() else {
            return Err(Error::shape("levels", "no levels"));
        };
        let (mut levels, mut starts) = (Vec::new(), vec![0]);
        for (level, &count) in counts.iter().enumerate() {
            levels.extend(std::iter::repeat_n(size("levels", "levels", level)?, count));
            starts.push(size("levels", "tokens", levels.len())?);
        }
        Ok(Self { levels: device.upload(&levels)?, starts: device.upload(&starts)?, first })
    }

    /// Tokens per sample, `L`.
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

    /// The first token of each level, followed by `L`; `[S + 1]`.
    pub fn starts(&self) -> &Buffer<u32> {
        &self.starts
    }

    pub(crate) fn count(&self) -> usize {
        self.starts.len() - 1
    }
}
