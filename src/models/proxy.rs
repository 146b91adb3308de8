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
        BackboneConfig, DropPath, Mode,
        block::{Backbone, EPSILON, declare},
    },
};

/// The proxy network; its weights live in a [`Parameters`] beside it.
#[derive(Clone, Debug)]
pub struct Proxy {
    backbone: Backbone,
    logit_norm: bool,
    head: ParameterId,
    head_bias: ParameterId,
}

impl Proxy {
    /// A proxy with freshly drawn weights.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn new(config: &BackboneConfig, dtype: DType, seed: u64) -> Result<(Self, Parameters)> {
        declare(config, dtype, seed, |init| {
            let backbone = Backbone::new(init, config)?;
            let head = init.head("head_logits.weight", &[config.vocabulary, config.width])?;
            let head_bias = init.zeros("head_logits.bias", &[config.vocabulary])?;
            Ok(Self { backbone, logit_norm: config.logit_norm, head, head_bias })
        })
    }

    /// See [`Backbone::repeated`].
    pub fn repeated(&self) -> &[ParameterId] {
        self.backbone.repeated()
    }

    /// See [`Backbone::draw`].
    ///
    /// # Errors
    /// Never, as there is a factor for each sample.
    pub fn draw(&self, seed: u64, stream: u64, batch: usize) -> Result<DropPath> {
        self.backbone.draw(seed, stream, batch)
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
        let mut x = self.backbone.forward(tape, input, text, mode)?;
        if self.logit_norm {
            x = layer_norm(tape, &x, EPSILON, None)?;
        }
        linear(tape, &x, self.head, &[Bias { parameter: self.head_bias, column: 0 }])
    }

    /// Loss of every sample against its codes `[B, L]`.
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
        let logits = self.logits(tape, input, text, mode)?;
        cross_entropy(tape, &logits, codes, smoothing)
    }
}
