//! The proxy: a scale-wise autoregressive text-to-image model (released: `VAR`), whose loss on a sample is what the
//! rater's weights are about.

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

/// The proxy network; its weights live in a [`Parameters`] beside it.
#[derive(Clone, Debug)]
pub struct Proxy {
    backbone: Backbone,
    logit_norm: bool,
    head_weight: ParameterId,
    head_bias: ParameterId,
}

impl Proxy {
    /// A proxy with freshly drawn weights.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn new(config: &BackboneConfig, dtype: DType, seed: u64) -> Result<(Self, Parameters)> {
        Self::declared(config, dtype, Some(seed))
    }

    /// A proxy whose weights a checkpoint is about to replace: nothing is drawn.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub(crate) fn undrawn(config: &BackboneConfig, dtype: DType) -> Result<(Self, Parameters)> {
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
    /// Never, as there is a factor for each sample.
    pub fn draw(&self, seed: u64, stream: u64, batch: usize) -> Result<DropPath> {
        self.backbone.draw(seed, stream, batch)
    }

    /// See `Backbone::layout`.
    pub fn layout(&self) -> &Layout {
        self.backbone.layout()
    }

    /// The same network for a part of the pyramid's tokens; it has the same weights.
    #[must_use]
    pub fn with_layout(&self, layout: Layout) -> Self {
        Self { backbone: self.backbone.with_layout(layout), ..self.clone() }
    }

    /// See `Backbone::cache`.
    pub fn cache(&self) -> Cache {
        self.backbone.cache()
    }

    /// Logits of the tokens of the next scale, `[B, pn², V]`, from its part of the pyramid `[B, pn², Cvae]` (of the first
    /// scale `[B, 0, Cvae]`) and the text.
    ///
    /// # Errors
    /// If the pyramid has all its scales, or the sizes do not fit.
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
    /// If the sizes do not fit.
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

    /// Loss of every sample against its codes `[B, L]`, all tokens alike.
    ///
    /// # Errors
    /// If the sizes do not fit.
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

    /// The same with a weight for each token, `[L]`: a sample's loss is `Σ_t weights_t loss_t / L`.
    ///
    /// # Errors
    /// If the sizes do not fit.
    #[expect(clippy::too_many_arguments, reason = "what a loss is made of")]
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
