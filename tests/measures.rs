//! Measures of pictures against what Hugging Face's CLIP and pytorch-fid's Inception-v3 give (`fixtures_made/make_measures.py`), and
//! `measure` as a user meets it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::engine::Tensor;
use alchemist_engine::{
    data::Preprocess,
    interrupt::Interrupt,
    measure::{
        clip_image::ClipImage,
        clip_score::{ClipText, clip_score},
        inception::Inception,
        pictures::Pictured,
        space::FeatureSpace,
    },
    weights::{Payload, write_safetensors},
};
use serde_json::{Value, json};

/// Relative to the length of the embedding: other orders of sums in f32.
const EMBEDDING_TOLERANCE: f64 = 1e-5;
/// The same through the 94 layers of Inception-v3.
const INCEPTION_TOLERANCE: f64 = 1e-4;

fn made(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures_made").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// The length of the difference over the length of the truth.
fn error(found: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square(&mut found.iter().zip(truth).map(|(a, b)| a - b));
    (difference / square(&mut truth.iter().copied())).sqrt()
}

fn pictures_of_clip() -> Vec<Pictured> {
    let captions = read(&made("clip_image_tiny/expected.json"))["captions"].clone();
    (0..2)
        .map(|at| Pictured {
            id: at.to_string(),
            line: 1,
            path: made("clip_image_tiny").join(format!("{at}.png")),
            caption: Some(captions[at].as_str().unwrap().to_owned()),
        })
        .collect()
}

#[test]
fn embeddings_and_scores_are_those_of_hugging_faces_clip() {
    let expected = read(&made("clip_image_tiny/expected.json"));
    let image = ClipImage::open(&made("clip_image_tiny"), Preprocess::default_for(1)).unwrap();
    assert_eq!(image.dimensions(), 20);
    for at in 0..2 {
        let picture = image.read(&made("clip_image_tiny").join(format!("{at}.png"))).unwrap();
        assert_eq!(picture.shape(), [3, 30, 30]);
        let corners: Vec<f64> = picture.to_f64_vec().unwrap().chunks(900).map(|plane| plane[0]).collect();
        assert!(error(&corners, &numbers(&expected["pixels_at_0_0"][at])) < 1e-6, "picture {at}");
        let shape = [1, 3, 30, 30];
        let features = image.features(&picture.reshape(&shape).unwrap()).unwrap();
        let error = error(&features.to_f64_vec().unwrap(), &numbers(&expected["images"][at]));
        println!("image {at}: {error:e}");
        assert!(error < EMBEDDING_TOLERANCE, "image {at}: {error:e}");
    }
    // The file alone names its folder, too.
    let text = ClipText::open(&made("clip_image_tiny/model.safetensors")).unwrap();
    let pictures = pictures_of_clip();
    let captions: Vec<&str> = pictures.iter().filter_map(|picture| picture.caption.as_deref()).collect();
    let found = text.embeddings(&captions).unwrap().to_f64_vec().unwrap();
    for (at, found) in found.chunks(20).enumerate() {
        let error = error(found, &numbers(&expected["texts"][at]));
        println!("text {at}: {error:e}");
        assert!(error < EMBEDDING_TOLERANCE, "text {at}: {error:e}");
    }
    let score = clip_score(&image, &text, &pictures, &Interrupt::default(), &mut |_, _, _| {}).unwrap();
    let truth = numbers(&expected["scores"]).iter().sum::<f64>() / 2.0;
    println!("score {} for {truth}", score.value);
    approx::assert_relative_eq!(score.value, truth, max_relative = EMBEDDING_TOLERANCE);
    assert_eq!(score.pairs, 2);
}

#[test]
fn another_clip_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |change: &dyn Fn(&mut Value, &mut Value)| -> String {
        for entry in fs::read_dir(made("clip_image_tiny")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let at = |name| folder.path().join(name);
        let (mut config, mut prepare) = (read(&at("config.json")), read(&at("preprocessor_config.json")));
        change(&mut config, &mut prepare);
        fs::write(at("config.json"), config.to_string()).unwrap();
        fs::write(at("preprocessor_config.json"), prepare.to_string()).unwrap();
        ClipImage::open(folder.path(), Preprocess::default_for(1)).map(|_| ()).unwrap_err().to_string()
    };
    let refused = |word: &str, change: &dyn Fn(&mut Value, &mut Value)| {
        let message = copy(change);
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    };
    refused("do not split into 5 heads", &|config, _| {
        config["vision_config"]["num_attention_heads"] = json!(5)
    });
    refused("position_embedding", &|config, _| config["vision_config"]["patch_size"] = json!(15));
    refused("layers.2", &|config, _| config["vision_config"]["num_hidden_layers"] = json!(3));
    refused("resample", &|_, prepare| prepare["resample"] = json!(2));
    refused("the network takes 30", &|_, prepare| prepare["crop_size"] = json!(28));
    refused("image_std", &|_, prepare| prepare["image_std"] = json!([1, 2]));
}

/// The formula of `number` in the script.
fn number(name: &str, length: usize) -> impl Iterator<Item = f64> {
    let salt =
        name.bytes().fold(2_166_136_261u32, |salt, byte| (salt ^ u32::from(byte)).wrapping_mul(16_777_619));
    (0..length as u64).map(move |place| {
        let mut mixed = (place + u64::from(salt)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^= mixed >> 29;
        mixed = mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed >> 48) as f64 / 32768.0 - 1.0
    })
}

/// The weights of `made` in the script, and its pictures; the names and shapes are in inception.json.
fn inception_weights(path: &Path, shapes: &Value) {
    let tensors = shapes.as_object().unwrap().iter().map(|(name, shape)| {
        let shape: Vec<usize> = numbers(shape).iter().map(|&size| size as usize).collect();
        let inner: usize = shape[1..].iter().product();
        let spread = (6.0 / inner as f64).sqrt();
        let values: Vec<f32> = number(name, shape.iter().product())
            .map(|noise| {
                let value = if name.ends_with("conv.weight") {
                    noise * spread
                } else if name.ends_with("bn.weight") || name.ends_with("running_var") {
                    1.0 + 0.25 * noise
                } else {
                    0.25 * noise
                };
                value as f32
            })
            .collect();
        (name.clone(), Payload::held(&Tensor::new(&shape, values).unwrap()).unwrap())
    });
    write_safetensors(path, &tensors.collect::<Vec<_>>(), &[]).unwrap();
}

fn slopes(side: usize, turn: usize) -> Vec<u8> {
    let pixel = |x: usize, y: usize| {
        let green = if (x / 5 + y / 4).is_multiple_of(2) { 40 + 60 * turn } else { 220 };
        [(x * 7 + y * 3 + turn * 31) % 256, green, (x * x + 2 * y * y + x * y * turn) % 256]
    };
    (0..side * side).flat_map(|at| pixel(at % side, at / side)).map(|level| level as u8).collect()
}

#[test]
fn features_are_those_of_pytorch_fids_inception() {
    let expected = read(&made("inception.json"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inception.safetensors");
    inception_weights(&path, &expected["shapes"]);
    let network = Inception::open(&path, Preprocess::default_for(1)).unwrap();
    let sides: Vec<Vec<f64>> = expected["pictures"].as_array().unwrap().iter().map(numbers).collect();
    let pictures: Vec<Tensor> = sides
        .iter()
        .map(|picture| {
            let (side, turn) = (picture[0] as usize, picture[1] as usize);
            let path = folder.path().join(format!("{side}.png"));
            alchemist_engine::data::picture::write_png(&path, &slopes(side, turn), side).unwrap();
            network.read(&path).unwrap()
        })
        .collect();
    let values: Vec<f32> =
        pictures.iter().flat_map(|picture| picture.as_slice::<f32>().unwrap()).copied().collect();
    let features = network.features(&Tensor::new(&[2, 3, 299, 299], values).unwrap()).unwrap();
    assert_eq!(features.shape(), [2, 2048]);
    let places: Vec<usize> = numbers(&expected["places"]).iter().map(|&place| place as usize).collect();
    for (at, feature) in features.to_f64_vec().unwrap().chunks(2048).enumerate() {
        let kept: Vec<f64> = places.iter().map(|&place| feature[place]).collect();
        let error = error(&kept, &numbers(&expected["features"][at]));
        let norm = feature.iter().map(|value| value * value).sum::<f64>().sqrt();
        println!("picture {at}: {error:e}, norm {norm} for {}", expected["norms"][at]);
        assert!(error < INCEPTION_TOLERANCE, "picture {at}: {error:e}");
        let truth = expected["norms"][at].as_f64().unwrap();
        approx::assert_relative_eq!(norm, truth, max_relative = INCEPTION_TOLERANCE);
    }
    // One by itself has the same bits.
    let alone = network.features(&pictures[1].reshape(&[1, 3, 299, 299]).unwrap()).unwrap();
    assert!(alone.as_slice::<f32>().unwrap() == &features.as_slice::<f32>().unwrap()[2048..]);
    assert!(network.distance_name().starts_with("FID "));

    let message = Inception::open(&made("clip_image_tiny/model.safetensors"), Preprocess::default_for(1))
        .unwrap_err()
        .to_string();
    assert!(message.contains("Conv2d_1a_3x3.conv.weight"), "{message}");
}
