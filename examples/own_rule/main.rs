//! Trains a rater with a custom rule, the example of docs/rules.md, on generated scenes and their captions. Prints the
//! pairs by rating, with the rule's constant of each: the lower the constant, the higher the rating that the rater
//! learns.
//!
//! ```sh
//! cargo run --release --example own_rule
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

mod matching;

use alchemist_engine::{
    Result,
    config::Config,
    data::{SquareImage, stack, synthetic::draw_scene},
    encode::{
        ImageTokenizer, TextEncoder,
        hashed::HashedWords,
        pca::{PcaSettings, PcaTokenizer},
    },
    engine::{DType, ops::pyramid::Reach},
    models::{Proxy, Rater},
    rater::{
        bilevel::{Bilevel, BilevelSettings, MicroBatch, Prior, StepRates},
        rules::RuleSettings,
    },
    tokens::{batch::Batch, encoded::batch},
    training::optimizer::AdamWSettings,
};
use matching::MATCHING;

/// Pairs in the training batch, and in the validation batch after it.
const PAIRS: usize = 32;
const STEPS: u64 = 60;

fn main() -> Result<()> {
    // The sizes of the networks, and of the images that fit them.
    let sets = ["depth=1", "proxy_width=64", "raterDepth=1", "pn=1_2_3_4"].map(str::to_owned);
    let config = Config::parse("configs/demo.json", include_str!("../../configs/demo.json"), &sets)?;
    let side = config.networks.image_side();

    // The pairs, as codes and text states.
    let (mut images, mut captions) = (Vec::new(), Vec::new());
    for pair in 0..2 * PAIRS {
        let scene = draw_scene(0, pair as u64, side);
        images.push(SquareImage { side, rgb: scene.rgb });
        captions.push(scene.caption);
    }
    let settings = PcaSettings {
        side,
        patch: config.networks.patch_size,
        components: 8,
        codes: 64,
        patch_nums: config.networks.patch_nums.clone(),
        seed: 0,
    };
    let (tokenizer, _) = PcaTokenizer::fit_batch(settings, &stack(&images)?)?;
    let (quantizer, text) = (tokenizer.quantizer(), HashedWords::new(16, 32, 0)?);
    let encoded = |from: usize| -> Result<Batch> {
        let codes = tokenizer.encode(&stack(&images[from..from + PAIRS])?)?;
        let captions: Vec<&str> = captions[from..from + PAIRS].iter().map(String::as_str).collect();
        // The inputs of the proxy and of the rater.
        batch(codes, &captions, &tokenizer, &text)?
            .with_input(quantizer)?
            .with_reach(quantizer, Reach::Through)
    };
    let mut pairs = MicroBatch { train: encoded(0)?, validation: encoded(PAIRS)?, prior: None };

    // Both networks, and the rule, which need not be in the table of rules.
    let (codes, channels) = (quantizer.vocabulary(), quantizer.channels());
    let proxy = Proxy::new(&config.proxy_backbone(codes, channels, text.channels()), DType::F32, 1)?;
    let rater = Rater::new(&config.rater_backbone(codes, channels, text.channels()), DType::F32, 2)?;
    let settings = BilevelSettings { rule: RuleSettings::of(&MATCHING), ..BilevelSettings::default() };
    let mut bilevel = Bilevel::new(proxy, rater, AdamWSettings::default(), settings);

    let rates = StepRates { upper_level_weight: 0.5, learning_rate: 1e-3, weight_decay: 0.0, warm_up: false };
    // The rater is fitted to the negative constant of each pair, standardized with the statistics of the previous step.
    let (mut mean, mut inverse_deviation) = (0.0, 0.0);
    let (mut ratings, mut constants) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        pairs.prior = Some(Prior { averages: vec![[0.0, 1.0]; PAIRS], mean, inverse_deviation });
        let report = bilevel.step(std::slice::from_ref(&pairs), rates, step)?;
        if step % 20 == 0 || step + 1 == STEPS {
            println!("step {step}: validation loss {:.4}", report.validation_loss);
        }
        let count = PAIRS as f64;
        mean = -report.constant.iter().sum::<f64>() / count;
        let variance = report.constant.iter().map(|constant| (constant + mean).powi(2)).sum::<f64>() / count;
        inverse_deviation = 1.0 / variance.sqrt();
        (ratings, constants) = (report.logit, report.constant);
    }
    let mut ranking: Vec<usize> = (0..PAIRS).collect();
    ranking.sort_by(|&one, &other| ratings[other].total_cmp(&ratings[one]));
    println!("rank   rating  constant  caption");
    for (rank, pair) in ranking.into_iter().enumerate() {
        println!("{:>4} {:>8.4} {:>9.4}  {}", rank + 1, ratings[pair], constants[pair], captions[pair]);
    }
    Ok(())
}
