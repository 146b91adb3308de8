//! Cases of the benches: the sizes of PyTorch's CPU figures, with the networks and batches of each.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::hint::black_box;

use alchemist_engine::{
    encode::TextStates,
    engine::{
        DType, Parameters, Purpose, Random, Tensor,
        ops::pyramid::{PyramidQuantizer, cpu::resample::ResidualConvolution},
    },
    models::{BackboneConfig, Initialization, Proxy, Rater, Rope},
    rater::bilevel::{Bilevel, BilevelSettings, MicroBatch, StepRates},
    tokens::batch::Batch,
    training::optimizer::AdamWSettings,
};

/// The upstream share of the validation loss after a few epochs: with both terms, both passes run backward.
pub(crate) const RATES: StepRates =
    StepRates { upper_level_weight: 0.9, learning_rate: 1e-4, weight_decay: 0.05, warm_up: false };

/// The sizes of one case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) patch_nums: Vec<usize>,
    pub(crate) vocabulary: usize,
    pub(crate) code_channels: usize,
    pub(crate) proxy_depth: usize,
    pub(crate) rater_depth: usize,
    pub(crate) text_tokens: usize,
    pub(crate) text_channels: usize,
    pub(crate) batch: usize,
    pub(crate) score_batch: usize,
}

/// Both cases.
pub(crate) fn cases() -> [Case; 2] {
    [
        Case {
            name: "tiny-demo",
            patch_nums: vec![1, 2, 3, 4, 6, 8],
            vocabulary: 512,
            code_channels: 16,
            proxy_depth: 4,
            rater_depth: 2,
            text_tokens: 16,
            text_channels: 64,
            batch: 16,
            score_batch: 16,
        },
        Case {
            name: "small",
            patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            vocabulary: 4096,
            code_channels: 32,
            proxy_depth: 6,
            rater_depth: 4,
            text_tokens: 77,
            text_channels: 256,
            batch: 2,
            score_batch: 4,
        },
    ]
}

impl Case {
    pub(crate) fn backbone(&self, depth: usize) -> BackboneConfig {
        BackboneConfig {
            patch_nums: self.patch_nums.clone(),
            vocabulary: self.vocabulary,
            code_channels: self.code_channels,
            text_channels: self.text_channels,
            depth,
            width: 64 * depth,
            heads: depth,
            mlp_ratio: 4.0,
            attention_l2_norm: true,
            rope: Some(Rope { theta: 10_000.0, norm: 64.0 }),
            level_embedding: true,
            logit_norm: true,
            shared_aln: false,
            cross_attention: true,
            drop_path: 0.1 * depth as f64 / 24.0,
            cross_from_first_sample: false,
            initialization: Initialization { std: -1.0, head: 0.02, aln: 0.5, aln_gamma: 5e-5 },
        }
    }

    pub(crate) fn normal(&self, shape: &[usize], stream: u64) -> Tensor {
        let mut random = Random::new(1, Purpose::Test, stream);
        let values = (0..shape.iter().product()).map(|_| random.normal() as f32).collect();
        Tensor::new(shape, values).expect("the values fill the shape")
    }

    pub(crate) fn text(&self, batch: usize, stream: u64) -> TextStates {
        TextStates {
            states: self.normal(&[batch, self.text_tokens, self.text_channels], stream),
            mask: Tensor::new(&[batch, self.text_tokens], vec![1u32; batch * self.text_tokens])
                .expect("sizes fit"),
            pooled: self.normal(&[batch, self.text_channels], stream + 1),
        }
    }

    /// The pyramid's quantizer with the upstream number of shared convolutions.
    pub(crate) fn quantizer(&self) -> PyramidQuantizer {
        let channels = self.code_channels;
        let convolutions = (0..4)
            .map(|at| {
                let weight = self.normal(&[channels, channels, 3, 3], 40 + at);
                let bias = self.normal(&[channels], 50 + at);
                ResidualConvolution::new(&weight, &bias, 0.5).expect("sizes fit")
            })
            .collect();
        let codebook = self.normal(&[self.vocabulary, channels], 60);
        PyramidQuantizer::new(&self.patch_nums, &codebook, convolutions).expect("sizes fit")
    }

    /// The image tokenizer's features, `[B, Cvae, H, H]`, and the text of a batch.
    pub(crate) fn features(&self, batch: usize, stream: u64) -> (Tensor, TextStates) {
        let side = self.patch_nums.last().copied().unwrap_or(0);
        (self.normal(&[batch, self.code_channels, side, side], stream), self.text(batch, stream + 4))
    }

    pub(crate) fn batch(
        &self,
        quantizer: &PyramidQuantizer,
        (features, text): &(Tensor, TextStates),
    ) -> Batch {
        let codes = quantizer.encode(features).expect("features are quantized");
        Batch {
            input: Some(quantizer.input(&codes).expect("codes have an input")),
            through: None,
            codes,
            text: text.clone(),
            last_scale: self.patch_nums.last().map_or(0, |side| side * side),
        }
    }

    /// The `step`-th step, from features.
    pub(crate) fn step(
        &self,
        bilevel: &mut Bilevel,
        quantizer: &PyramidQuantizer,
        [train, validation]: &[(Tensor, TextStates); 2],
        step: u64,
    ) {
        let micro = [MicroBatch {
            train: self.batch(quantizer, train),
            validation: self.batch(quantizer, validation),
            prior: None,
        }];
        black_box(bilevel.step(&micro, RATES, step).expect("a step works"));
    }

    pub(crate) fn rater(&self) -> (Rater, Parameters) {
        Rater::new(&self.backbone(self.rater_depth), DType::F32, 2).expect("the sizes fit together")
    }

    pub(crate) fn bilevel(&self) -> Bilevel {
        let (proxy, proxy_parameters) =
            Proxy::new(&self.backbone(self.proxy_depth), DType::F32, 1).expect("the sizes fit together");
        Bilevel::new(
            (proxy, proxy_parameters),
            self.rater(),
            AdamWSettings::default(),
            BilevelSettings::released(),
        )
    }
}
