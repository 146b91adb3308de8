//! The released rater's checkpoint in our network.

use alchemist_engine::{
    engine::{DType, Tape, Tensor},
    models::{BackboneConfig, Initialisation, Mode, Rater, Rope, Weighing},
    train::released,
};

use super::{common::relative_error, fixtures, near, parameters_near, report, text, text_near, tolerance};

#[test]
fn a_released_rater_gives_the_released_scores() {
    for fixture in fixtures("ar_ckpt") {
        let file = fixture.folder.join(fixture.manifest["pth"].as_str().unwrap());
        assert!(released::holds(&file, released::RATER).unwrap());
        assert!(!released::holds(&file, released::PROXY).unwrap());
        let weights = released::open(&file, released::RATER).unwrap();
        let shape = |name: &str| weights.entry(name).unwrap().shape.clone();
        let config = BackboneConfig {
            patch_nums: fixture.patch_nums(),
            vocabulary: fixture.size("V"),
            code_channels: shape("word_embed.weight")[1],
            text_channels: shape("encoder_proj.weight")[1],
            depth: (0..).take_while(|at| weights.contains(&format!("blocks.{at}.ffn.fc1.weight"))).count(),
            width: shape("pos_start")[2],
            heads: shape("blocks.0.attn.scale_mul_1H11")[1],
            mlp_ratio: fixture.number("mlp_ratio"),
            attention_l2_norm: true,
            rope: Some(Rope { theta: fixture.number("rope_theta"), norm: fixture.number("rope_norm") }),
            level_embedding: true,
            logit_norm: true,
            shared_aln: weights.contains("lvl_embed_proj.weight"),
            cross_attention: true,
            drop_path: 0.0,
            cross_from_first_sample: true,
            initialisation: Initialisation { std: -1.0, head: 0.02, aln: 0.5, aln_gamma: 5e-5 },
        };
        let (rater, mut parameters) = Rater::new(&config, DType::F32, 0).unwrap();
        released::load(&file, released::RATER, &mut parameters).unwrap();
        let parameters = parameters_near(parameters);
        let io = fixture.tensors("io.safetensors");
        let (input, text): (&Tensor, _) = (&near(&io["x_BLCv_wo_first_l"]), text_near(&text(&io, "")));
        let mut tape = Tape::inference(&parameters);
        let rated = rater.forward(&mut tape, input, &text, Weighing::Released, Mode::Evaluate).unwrap();
        let error = relative_error(rated.score.value(), &io["score"]);
        report(&fixture, "scores by a released checkpoint", error, tolerance::PARITY_FORWARD);
        // The proxy is not in it, and a network of another depth does not fit.
        let said = released::load(&file, released::PROXY, &mut parameters.clone()).unwrap_err().to_string();
        assert!(said.contains("without trainer.var_wo_ddp"), "{said}");
        let (_, mut deeper) =
            Rater::new(&BackboneConfig { depth: config.depth + 1, ..config }, DType::F32, 0).unwrap();
        let said = released::load(&file, released::RATER, &mut deeper).unwrap_err().to_string();
        assert!(said.contains("missing"), "{said}");
    }
}
