//! Which tokens of the pyramid a network processes, and their positions.

use std::sync::Arc;

use crate::{
    engine::ops::{
        attention::{RotaryTable, Visible, visible_of_levels},
        levels::Levels,
    },
    error::{Error, Result},
};

/// A subset of a pyramid's tokens, in order: all, those of the coarser scales (progressive training), those left after
/// token dropping, or those of one scale (sampling).
#[derive(Clone, Debug)]
pub struct Layout {
    /// The scale of each token.
    pub(super) levels: Arc<Levels>,
    /// How many of these tokens each token attends to.
    pub(super) visible: Arc<Visible>,
    /// Rotary embeddings of these tokens, if the positions are rotary.
    pub(super) rotary: Option<Arc<RotaryTable>>,
    /// The index of each token in the whole pyramid.
    pub(super) indices: Arc<Vec<usize>>,
    /// Shared data of the whole pyramid.
    whole: Whole,
}

/// Data shared by all layouts of a network.
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
            indices: Arc::new((0..counts.iter().sum()).collect()),
            whole: Whole { patch_nums: Arc::new(patch_nums.to_vec()), rotary, head_dim },
        }
    }

    /// The tokens at these indices of the whole pyramid; each attends to those of its own and coarser scales among
    /// them.
    ///
    /// # Errors
    /// If `indices` is empty, not in ascending order, or out of range.
    pub fn of(&self, indices: &[usize]) -> Result<Self> {
        let counts: Vec<usize> = self.whole.patch_nums.iter().map(|side| side * side).collect();
        let tokens: usize = counts.iter().sum();
        if indices.is_empty()
            || indices.windows(2).any(|pair| pair[0] >= pair[1])
            || indices[indices.len() - 1] >= tokens
        {
            return Err(Error::invalid(format!(
                "{} tokens that are not in order among the {tokens} of a pyramid",
                indices.len()
            )));
        }
        let mut end = 0;
        let kept: Vec<usize> = counts
            .iter()
            .map(|count| {
                let start = end;
                end += count;
                indices.iter().filter(|&&index| (start..end).contains(&index)).count()
            })
            .collect();
        Ok(Self {
            levels: Arc::new(Levels::new(&kept)),
            visible: Arc::new(visible_of_levels(&kept).into()),
            rotary: self
                .whole
                .rotary
                .as_ref()
                .map(|table| Arc::new(table.rows(indices, self.whole.head_dim))),
            indices: Arc::new(indices.to_vec()),
            whole: self.whole.clone(),
        })
    }

    /// The tokens of scale `scale` only, for a pass with a cache: positions remain those of the whole pyramid, and the
    /// attention uses the last ones.
    ///
    /// # Errors
    /// If there is no such scale.
    pub(super) fn scale(&self, scale: usize) -> Result<Self> {
        let sides = &self.whole.patch_nums;
        let Some(side) = sides.get(scale) else {
            return Err(Error::invalid(format!("no scale {scale}: there are {}", sides.len())));
        };
        let start: usize = sides[..scale].iter().map(|side| side * side).sum();
        let indices: Vec<usize> = (start..start + side * side).collect();
        Ok(Self { rotary: self.whole.rotary.clone(), ..self.of(&indices)? })
    }

    /// The index of each token in the whole pyramid.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// Number of these tokens that belong to the finest scale among them.
    pub fn last_scale(&self) -> usize {
        let levels = self.levels.host();
        levels.iter().rev().take_while(|level| Some(*level) == levels.last()).count()
    }

    /// Number of tokens in the first scale of the whole pyramid.
    pub(crate) fn whole_first(&self) -> usize {
        self.whole.patch_nums.first().map_or(0, |side| side * side)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.indices.len()
    }
}
