//! The proxy: a scale-wise autoregressive text-to-image model (upstream: `VAR`). The rater weights its per-sample
//! losses.

use crate::{
    encode::TextStates,
    engine::{
        DType, ParameterId, Parameters, Tape, Tensor, Var,
        ops::{
            cross_entropy::{CrossEntropy, cross_entropy},
            layer_norm::layer_norm,
            linear::{Bias, linear},
        },
    },
    error::Result,
    models::{
        BackboneConfig, Cache, DropPath, Layout, Mode,
        block::{Backbone, EPSILON, declare},
    },
};

/// The proxy network; its weights are kept separately, in a [`Parameters`].
#[derive(Clone, Debug)]
pub struct Proxy {
    backbone: Backbone,
    logit_norm: bool,
    head_weight: ParameterId,
    head_bias: ParameterId,
}

impl Proxy {
    /// A proxy with newly initialized weights.
    ///
    /// # Errors
    /// If the sizes are inconsistent.
    pub fn new(config: &BackboneConfig, dtype: DType, seed: u64) -> Result<(Self, Parameters)> {
        Self::declared(config, dtype, Some(seed))
    }

    /// A proxy with uninitialized weights, to be loaded from a checkpoint.
    ///
    /// # Errors
    /// If the sizes are inconsistent.
    pub(crate) fn uninitialized(config: &BackboneConfig, dtype: DType) -> Result<(Self, Parameters)> {
        Self::declared(config, dtype, None)
    }

    fn declared(config: &BackboneConfig, dtype: DType, seed: Option<u64>) -> Result<(Self, Parameters)> {
        declare(config, dtype, seed, |init| {
            let backbone = Backbone::new(init, config)?;
            let head_weight = init.head("head_logits.weight", &[config.vocabulary, config.width])?;
            let head_bias = init.zeros("head_logits.bias", &[config.vocabulary])?;
            Ok(Self { backbone, logit_norm: config.logit_norm, head_weight, head_bias })
        })
    }

    /// See `Backbone::repeated`.
    pub fn repeated(&self) -> &[ParameterId] {
        self.backbone.repeated()
    }

    /// See `Backbone::draw`.
    ///
    /// # Errors
    /// Never: there is one factor per sample.
    pub fn draw(&self, seed: u64, stream: u64, batch: usize) -> Result<DropPath> {
        self.backbone.draw(seed, stream, batch)
    }

    /// See `Backbone::layout`.
    pub fn layout(&self) -> &Layout {
        self.backbone.layout()
    }

    /// The same network on a subset of the pyramid's tokens, with the same weights.
    #[must_use]
    pub fn with_layout(&self, layout: Layout) -> Self {
        Self { backbone: self.backbone.with_layout(layout), ..self.clone() }
    }

    /// See `Backbone::cache`.
    pub fn cache(&self) -> Cache {
        self.backbone.cache()
    }

    /// Logits of the next scale's tokens, `[B, pn², V]`, from its part of the pyramid `[B, pn², Cvae]` (first scale:
    /// `[B, 0, Cvae]`) and the text.
    ///
    /// # Errors
    /// If the pyramid already has all its scales, or the sizes do not match.
    pub fn next_logits(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        cache: &mut Cache,
    ) -> Result<Var> {
        let x = self.backbone.forward_scale(tape, input, text, cache)?;
        self.head(tape, x)
    }

    /// Logits of every token, `[B, L, V]`, from the pyramid `[B, L − L₀, Cvae]` and the text.
    ///
    /// # Errors
    /// If the sizes do not match.
    pub fn logits(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        mode: Mode<'_>,
    ) -> Result<Var> {
        let x = self.backbone.forward(tape, input, text, mode)?;
        self.head(tape, x)
    }

    fn head(&self, tape: &mut Tape<'_>, mut x: Var) -> Result<Var> {
        if self.logit_norm {
            x = layer_norm(tape, &x, EPSILON, None)?;
        }
        linear(tape, &x, self.head_weight, &[Bias { parameter: self.head_bias, column: 0 }])
    }

    /// Per-sample loss against the codes `[B, L]`, averaged over tokens.
    ///
    /// # Errors
    /// If the sizes do not match.
    pub fn loss(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        codes: &Tensor,
        smoothing: f64,
        mode: Mode<'_>,
    ) -> Result<CrossEntropy> {
        self.weighted_loss(tape, input, text, codes, smoothing, None, mode)
    }

    /// As [`loss`](Self::loss), with a weight per token, `[L]`: a sample's loss is `Σ_t weights_t loss_t / L`.
    ///
    /// # Errors
    /// If the sizes do not match.
    #[expect(clippy::too_many_arguments, reason = "the inputs of a loss")]
    pub(crate) fn weighted_loss(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        codes: &Tensor,
        smoothing: f64,
        weights: Option<&[f64]>,
        mode: Mode<'_>,
    ) -> Result<CrossEntropy> {
        let logits = self.logits(tape, input, text, mode)?;
        cross_entropy(tape, &logits, codes, smoothing, weights)
    }
}
