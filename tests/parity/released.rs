//! Networks of released checkpoints in ours: a rater's scores, and a proxy where there is one.

use alchemist_engine::{
    engine::{DType, Tape},
    models::{BackboneConfig, Mode, Proxy, Rater, Weighing},
    training::released,
    weights::Weights,
};

use super::{
    all_of, backbone_of, common::Fixture, compare, fixtures, lacks, near, parameters_near, tensors, text,
    text_near, tolerance, weights::file,
};

fn config(fixture: &Fixture, weights: &Weights) -> BackboneConfig {
    backbone_of(fixture, &|name| weights.entry(name).map(|entry| entry.shape.clone()), true)
}

#[test]
fn a_released_rater_gives_the_released_scores() {
    for fixture in fixtures("ar_ckpt") {
        let Some(file) = file(&fixture) else { continue };
        if !released::contains(&file, released::RATER).unwrap() {
            lacks(&fixture, "a rater");
            continue;
        }
        let weights = released::open(&file, released::RATER).unwrap();
        let config = config(&fixture, &weights);
        let (rater, mut parameters) = Rater::new(&config, DType::F32, 0).unwrap();
        released::load(&file, released::RATER, &mut parameters).unwrap();
        // A network of another depth does not fit.
        let (_, mut deeper) =
            Rater::new(&BackboneConfig { depth: config.depth + 1, ..config }, DType::F32, 0).unwrap();
        let said = released::load(&file, released::RATER, &mut deeper).unwrap_err().to_string();
        assert!(said.contains("missing"), "{said}");
        let parameters = parameters_near(parameters);
        let Some(io) = tensors(&fixture, "io.safetensors") else { continue };
        let Some([input]) = all_of(&fixture, &io, ["x_BLCv_wo_first_l"]) else { continue };
        let Some(text) = text(&fixture, &io, "") else { continue };
        let (input, text) = (&near(input), text_near(&text));
        let mut tape = Tape::inference(&parameters);
        let rated = rater.forward(&mut tape, input, &text, Weighing::Released, Mode::Evaluate).unwrap();
        let (what, limit) = ("scores by a released checkpoint", tolerance::PARITY_FORWARD);
        compare(&fixture, what, rated.score.value(), io.get("score"), limit);
    }
}

/// A checkpoint has a proxy or not: the first is loaded whole, the second refused by what it lacks.
#[test]
fn a_released_proxy_is_loaded_where_there_is_one() {
    for fixture in fixtures("ar_ckpt") {
        let Some(file) = file(&fixture) else { continue };
        if !released::contains(&file, released::PROXY).unwrap() {
            let said = released::open(&file, released::PROXY).unwrap_err().to_string();
            assert!(said.contains("without trainer.var_wo_ddp"), "{said}");
            continue;
        }
        let weights = released::open(&file, released::PROXY).unwrap();
        let (_, mut parameters) = Proxy::new(&config(&fixture, &weights), DType::F32, 0).unwrap();
        released::load(&file, released::PROXY, &mut parameters).unwrap();
        for (_, name, value) in parameters.iter() {
            assert!(*value == weights.read(name).unwrap(), "{name} is not the file's");
        }
        println!("parity {:<24} {} tensors of a proxy are the file's", fixture.name(), parameters.len());
    }
}
