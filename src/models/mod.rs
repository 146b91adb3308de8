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

/// Sizes and switches of a backbone; both networks are built from one. Keys of the upstream configs in parentheses.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneConfig {
    /// Side lengths of the token maps, coarsest first (`patch_nums`).
    pub patch_nums: Vec<usize>,
    /// Vocabulary size, `V`.
    pub vocabulary: usize,
    /// Channels per code, `Cvae`.
    pub code_channels: usize,
    /// Channels of the text states, `D_text`.
    pub text_channels: usize,
    /// Number of blocks (`depth`, `raterDepth`).
    pub depth: usize,
    /// Channels of the residual stream; 64 per head upstream.
    pub width: usize,
    /// Attention heads; upstream, as many as blocks.
    pub heads: usize,
    /// Hidden width of the MLP relative to the width of the stream.
    pub mlp_ratio: f64,
    /// L2-normalize queries and keys, with a learned scale per head (`anorm`).
    pub attention_l2_norm: bool,
    /// Rotary position embedding with these settings, or a learned table when `None` (`rope_emb`).
    pub rope: Option<Rope>,
    /// Add a learned embedding per scale (`lvl_emb`).
    pub level_embedding: bool,
    /// Layer norm before the proxy's logits (`logit_norm`).
    pub logit_norm: bool,
    /// Adaptive layer norm conditioned on the level, shared over blocks (`saln`).
    pub shared_aln: bool,
    /// Cross-attention to the text (`enable_cross`).
    pub cross_attention: bool,
    /// Drop-path rate of the last block, increasing linearly from 0 at the first; upstream: `0.1·depth/24`.
    pub drop_path: f64,
    /// Reproduce upstream behavior: use the first sample's cross-attention for the whole batch.
    pub cross_from_first_sample: bool,
    /// Weight initialization.
    pub initialization: Initialization,
}

/// Settings of the rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// Length to which the positions of each scale are stretched (`rope_norm`).
    pub norm: f64,
}

/// Weight initialization (`ini`, `hd`, `aln`, `alng`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Initialization {
    /// Standard deviation; if negative, `sqrt(1/(3C))`.
    pub std: f64,
    /// Factor on the head's weight.
    pub head: f64,
    /// Factor on the modulation's scales and shifts.
    pub aln: f64,
    /// Factor on the modulation's gates.
    pub aln_gamma: f64,
}

impl BackboneConfig {
    /// Number of tokens in the pyramid, `L = Σ pn²`.
    pub fn tokens(&self) -> usize {
        self.patch_nums.iter().map(|side| side * side).sum()
    }
}
