//! The two networks: the proxy (a scale-wise autoregressive text-to-image model, VAR/STAR) and the rater.

pub(crate) mod block;
pub(crate) mod init;
pub(crate) mod layout;
pub(crate) mod proxy;
pub(crate) mod rater;

pub use block::{Cache, DropPath, Mode};
pub use layout::Layout;
pub use proxy::Proxy;
pub use rater::{Rater, RaterOutput, Weighing};

/// Sizes and switches of a backbone; both networks are built from one. Keys of the released configs in brackets.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneConfig {
    /// Sides of the token maps, coarsest first (`patch_nums`).
    pub patch_nums: Vec<usize>,
    /// Codes in the vocabulary, `V`.
    pub vocabulary: usize,
    /// Channels of a code, `Cvae`.
    pub code_channels: usize,
    /// Channels of the text states, `D_text`.
    pub text_channels: usize,
    /// Blocks (`depth`, `raterDepth`).
    pub depth: usize,
    /// Channels of the residual stream, 64 a head as released.
    pub width: usize,
    /// Attention heads, as many as blocks as released.
    pub heads: usize,
    /// Width of the MLP over the width of the stream.
    pub mlp_ratio: f64,
    /// Normalize queries and keys and learn a scale a head (`anorm`).
    pub attention_l2_norm: bool,
    /// Rotary positions with these settings, or a learned table when `None` (`rope_emb`).
    pub rope: Option<Rope>,
    /// Add a learned vector a scale (`lvl_emb`).
    pub level_embedding: bool,
    /// Layer norm before the proxy's logits (`logit_norm`).
    pub logit_norm: bool,
    /// Modulate the norms by the level, shared over blocks (`saln`).
    pub shared_aln: bool,
    /// Cross-attention to the text (`enable_cross`).
    pub cross_attention: bool,
    /// Drop-path rate of the last block, growing linearly from 0 at the first; released: `0.1·depth/24`.
    pub drop_path: f64,
    /// Reproduce the released mistake of giving the first sample's cross-attention to the whole batch.
    pub cross_from_first_sample: bool,
    /// How weights start.
    pub initialization: Initialization,
}

/// Rotary position settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// Positions of each scale are stretched to this length (`rope_norm`).
    pub norm: f64,
}

/// How weights start (`ini`, `hd`, `aln`, `alng`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Initialization {
    /// Standard deviation; negative: `sqrt(1/(3C))`.
    pub std: f64,
    /// Factor on the head's weight.
    pub head: f64,
    /// Factor on the modulation's scales and shifts.
    pub aln: f64,
    /// Factor on the modulation's gates.
    pub aln_gamma: f64,
}

impl BackboneConfig {
    /// Tokens of the pyramid, `L = Σ pn²`.
    pub fn tokens(&self) -> usize {
        self.patch_nums.iter().map(|side| side * side).sum()
    }
}
