//! Which tokens of the pyramid a network is given, and where they stand.

use std::sync::Arc;

use crate::{
    engine::ops::{
        attention::{RotaryTable, Visible, visible_of_levels},
        levels::Levels,
    },
    error::{Error, Result},
};

/// Some tokens of a pyramid, in order: all of them, those of the coarser scales alone (progressive training), all but some
/// that are dropped, or those of one scale (sampling).
#[derive(Clone, Debug)]
pub struct Layout {
    /// The scale of each token.
    pub(super) levels: Arc<Levels>,
    /// How many of these tokens each of them sees.
    pub(super) visible: Arc<Visible>,
    /// Rotary positions of these tokens, if positions are rotary.
    pub(super) rotary: Option<Arc<RotaryTable>>,
    /// The place of each token in the whole pyramid.
    pub(super) places: Arc<Vec<usize>>,
    /// The whole pyramid's.
    whole: Whole,
}

/// What all layouts of a network share.
#[derive(Clone, Debug)]
struct Whole {
    patch_nums: Arc<Vec<usize>>,
    rotary: Option<Arc<RotaryTable>>,
    head_dim: usize,
}

impl Layout {
    /// All tokens.
    pub(super) fn whole(patch_nums: &[usize], rotary: Option<RotaryTable>, head_dim: usize) -> Self {
        let counts: Vec<usize> = patch_nums.iter().map(|side| side * side).collect();
        let rotary = rotary.map(Arc::new);
        Self {
            levels: Arc::new(Levels::new(&counts)),
            visible: Arc::new(visible_of_levels(&counts).into()),
            rotary: rotary.clone(),
            places: Arc::new((0..counts.iter().sum()).collect()),
            whole: Whole { patch_nums: Arc::new(patch_nums.to_vec()), rotary, head_dim },
        }
    }

    /// The tokens at these places of the whole pyramid, each seeing those of its own and coarser scales among them.
    ///
    /// # Errors
    /// If there is none, they are not in order, or there are fewer tokens in the pyramid.
    pub fn of(&self, places: &[usize]) -> Result<Self> {
        let counts: Vec<usize> = self.whole.patch_nums.iter().map(|side| side * side).collect();
        let tokens: usize = counts.iter().sum();
        if places.is_empty()
            || places.windows(2).any(|pair| pair[0] >= pair[1])
            || places[places.len() - 1] >= tokens
        {
            return Err(Error::invalid(format!(
                "{} tokens that are not in order among the {tokens} of a pyramid",
                places.len()
            )));
        }
        let mut end = 0;
        let kept: Vec<usize> = counts
            .iter()
            .map(|count| {
                let start = end;
                end += count;
                places.iter().filter(|&&place| (start..end).contains(&place)).count()
            })
            .collect();
        Ok(Self {
            levels: Arc::new(Levels::new(&kept)),
            visible: Arc::new(visible_of_levels(&kept).into()),
            rotary: self.whole.rotary.as_ref().map(|table| Arc::new(table.rows(places, self.whole.head_dim))),
            places: Arc::new(places.to_vec()),
            whole: self.whole.clone(),
        })
    }

    /// The tokens of scale `scale` alone, for a pass with a cache: positions stay those of the whole pyramid, of which the
    /// attention takes the last that there are.
    ///
    /// # Errors
    /// If there is no such scale.
    pub(super) fn scale(&self, scale: usize) -> Result<Self> {
        let sides = &self.whole.patch_nums;
        let Some(side) = sides.get(scale) else {
            return Err(Error::invalid(format!("there is no scale {scale} among {}", sides.len())));
        };
        let start: usize = sides[..scale].iter().map(|side| side * side).sum();
        let places: Vec<usize> = (start..start + side * side).collect();
        Ok(Self { rotary: self.whole.rotary.clone(), ..self.of(&places)? })
    }

    /// The place of each token in the whole pyramid.
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// Tokens of the finest scale that any of these tokens is of.
    pub fn last_scale(&self) -> usize {
        let levels = self.levels.host();
        levels.iter().rev().take_while(|level| Some(*level) == levels.last()).count()
    }

    /// Tokens of the whole pyramid's first scale.
    pub(crate) fn whole_first(&self) -> usize {
        self.whole.patch_nums.first().map_or(0, |side| side * side)
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.places.len()
    }
}
