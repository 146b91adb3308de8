//! The rater: the proxy's backbone, shallower, with an instance head and a group head on the mean-pooled features
//! (upstream: `VARRater`, `BatchHead`).

use crate::{
    encode::TextStates,
    engine::{
        DType, Parameters, Tape, Tensor, Var,
        ops::{
            activation::{Activation, activate},
            batch_softmax::batch_softmax,
            batch_statistics::batch_statistics,
            mean_tokens::mean_tokens,
            scale_all::scale_all,
        },
    },
    error::Result,
    models::{
        BackboneConfig, DropPath, Mode,
        block::{Backbone, LinearLayer, declare},
    },
};

/// Hidden width of both heads, as in the upstream code.
const HEAD_WIDTH: usize = 64;

/// How the heads' outputs become a batch's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighing {
    /// Upstream behavior: softmax of the sigmoid, times the group score, then a second softmax (upstream.md, A2). The
    /// weights are nearly uniform.
    Released,
    /// One softmax over the batch of the raw instance logits times the group score, at this temperature (eq. 7). The
    /// group score is inside the softmax: outside it, weights would not be normalized, and the rater would lower
    /// its loss by driving the score of every batch to 0.
    Logits {
        /// Divides the logits.
        temperature: f64,
    },
}

/// The rater's output for a batch.
pub struct RaterOutput {
    /// Raw instance logits, `[B, 1]`, independent of the rest of the batch.
    pub logit: Var,
    /// Mean-pooled features, `[B, C]`.
    pub pooled: Var,
    /// The group head's score, `[1, 1]`, in (0, 1).
    pub group: Var,
    /// The rating within the batch, `[B, 1]`; upstream: instance softmax times the group score.
    pub score: Var,
    /// The weight per sample, `[B, 1]`.
    pub weight: Var,
}

/// The rater network; its weights are kept separately, in a [`Parameters`].
#[derive(Clone, Debug)]
pub struct Rater {
    backbone: Backbone,
    instance: [LinearLayer; 2],
    group: [LinearLayer; 2],
}

impl Rater {
    /// A rater with newly initialized weights.
    ///
    /// # Errors
    /// If the sizes are inconsistent.
    pub fn new(config: &BackboneConfig, dtype: DType, seed: u64) -> Result<(Self, Parameters)> {
        Self::declared(config, dtype, Some(seed))
    }

    /// A rater with uninitialized weights, to be loaded from a checkpoint.
    ///
    /// # Errors
    /// If the sizes are inconsistent.
    pub(crate) fn uninitialized(config: &BackboneConfig, dtype: DType) -> Result<(Self, Parameters)> {
        Self::declared(config, dtype, None)
    }

    fn declared(config: &BackboneConfig, dtype: DType, seed: Option<u64>) -> Result<(Self, Parameters)> {
        declare(config, dtype, seed, |init| {
            let backbone = Backbone::new(init, config)?;
            let width = config.width;
            let instance = [
                LinearLayer::new(init, "head_instance.0", HEAD_WIDTH, width)?,
                LinearLayer::new(init, "head_instance.2", 1, HEAD_WIDTH)?,
            ];
            let group = [
                LinearLayer::new(init, "head_batch.fc.0", HEAD_WIDTH, 2 * width)?,
                LinearLayer::new(init, "head_batch.fc.2", 1, HEAD_WIDTH)?,
            ];
            Ok(Self { backbone, instance, group })
        })
    }

    /// See `Backbone::draw`.
    ///
    /// # Errors
    /// Never: there is one factor per sample.
    pub fn draw(&self, seed: u64, stream: u64, batch: usize) -> Result<DropPath> {
        self.backbone.draw(seed, stream, batch)
    }

    /// Pooled features `[B, C]` and instance logits `[B, 1]`, which do not depend on the rest of the batch.
    ///
    /// # Errors
    /// If the sizes do not match.
    pub fn instance(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        mode: Mode<'_>,
    ) -> Result<(Var, Var)> {
        let x = self.backbone.forward(tape, input, text, mode)?;
        let pooled = mean_tokens(tape, &x)?;
        drop(x);
        let hidden = self.instance[0].forward(tape, &pooled)?;
        let hidden = activate(tape, &hidden, Activation::GeluTanh)?;
        let logit = self.instance[1].forward(tape, &hidden)?;
        Ok((pooled, logit))
    }

    /// Rates a batch: the pyramid `[B, L − L₀, Cvae]` and the text.
    ///
    /// # Errors
    /// If the sizes do not match.
    pub fn forward(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        weighing: Weighing,
        mode: Mode<'_>,
    ) -> Result<RaterOutput> {
        let (pooled, logit) = self.instance(tape, input, text, mode)?;
        let statistics = batch_statistics(tape, &pooled)?;
        let hidden = self.group[0].forward(tape, &statistics)?;
        let hidden = activate(tape, &hidden, Activation::GeluErf)?;
        let group = self.group[1].forward(tape, &hidden)?;
        let group = activate(tape, &group, Activation::Sigmoid)?;
        let (score, weight) = match weighing {
            Weighing::Released => {
                let squashed = activate(tape, &logit, Activation::Sigmoid)?;
                let share = batch_softmax(tape, &squashed, 1.0)?;
                let score = scale_all(tape, &share, &group)?;
                let weight = batch_softmax(tape, &score, 1.0)?;
                (score, weight)
            }
            Weighing::Logits { temperature } => {
                let scaled = scale_all(tape, &logit, &group)?;
                let weight = batch_softmax(tape, &scaled, temperature)?;
                (weight.clone(), weight)
            }
        };
        Ok(RaterOutput { logit, pooled, group, score, weight })
    }
}
