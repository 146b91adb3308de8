//! Measures of images against what Hugging Face's CLIP and pytorch-fid's Inception-v3 give (`fixtures_made/make_measures.py`), and
//! `measure` and GenEval's layout as a user meets them.

mod workplace;

use std::{
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    data::{Origin, Preprocess},
    engine::Tensor,
    interrupt::Interrupt,
    measure::{
        clip_image::ClipImage,
        clip_score::{ProjectedClipText, clip_score},
        images::MeasuredImage,
        inception::Inception,
        space::FeatureSpace,
    },
    weights::{Payload, write_safetensors},
};
use serde_json::{Value, json};
use workplace::Workplace;

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

fn images_of_clip() -> Vec<MeasuredImage> {
    let captions = read(&made("clip_image_tiny/expected.json"))["captions"].clone();
    (0..2)
        .map(|at| MeasuredImage {
            id: at.to_string(),
            origin: "images:1".parse().unwrap(),
            image: made("clip_image_tiny").join(format!("{at}.png")).into(),
            caption: Some(captions[at].as_str().unwrap().to_owned()),
            malformed: None,
        })
        .collect()
}

#[test]
fn embeddings_and_scores_are_those_of_hugging_faces_clip() {
    let expected = read(&made("clip_image_tiny/expected.json"));
    let network = ClipImage::open(&made("clip_image_tiny"), Preprocess::default_for(1)).unwrap();
    assert_eq!(network.dimensions(), 20);
    for at in 0..2 {
        let image = network.read(&made("clip_image_tiny").join(format!("{at}.png")).into()).unwrap();
        assert_eq!(image.shape(), [3, 30, 30]);
        let corners: Vec<f64> = image.to_f64_vec().unwrap().chunks(900).map(|plane| plane[0]).collect();
        assert!(error(&corners, &numbers(&expected["pixels_at_0_0"][at])) < 1e-6, "image {at}");
        let shape = [1, 3, 30, 30];
        let features = network.features(&image.reshape(&shape).unwrap()).unwrap();
        let error = error(&features.to_f64_vec().unwrap(), &numbers(&expected["images"][at]));
        println!("image {at}: {error:e}");
        assert!(error < EMBEDDING_TOLERANCE, "image {at}: {error:e}");
    }
    // The file alone names its folder, too.
    let text = ProjectedClipText::open(&made("clip_image_tiny/model.safetensors")).unwrap();
    let images = images_of_clip();
    let captions: Vec<&str> = images.iter().filter_map(|image| image.caption.as_deref()).collect();
    let found = text.embeddings(&captions).unwrap().to_f64_vec().unwrap();
    for (at, found) in found.chunks(20).enumerate() {
        let error = error(found, &numbers(&expected["texts"][at]));
        println!("text {at}: {error:e}");
        assert!(error < EMBEDDING_TOLERANCE, "text {at}: {error:e}");
    }
    let score = clip_score(&network, &text, &images, &Interrupt::default(), &mut ()).unwrap();
    let truth = numbers(&expected["scores"]).iter().sum::<f64>() / 2.0;
    println!("score {} for {truth}", score.value);
    approx::assert_relative_eq!(score.value, truth, max_relative = EMBEDDING_TOLERANCE);
    assert_eq!(score.pairs, 2);
}

fn copy_clip(to: &Path) {
    for entry in fs::read_dir(made("clip_image_tiny")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_long_and_thin_image_is_left_out_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let thin = folder.path().join("thin.png");
    image::RgbImage::new(1, 100_000).save(&thin).unwrap();
    let image = ClipImage::open(&made("clip_image_tiny"), Preprocess::default_for(1)).unwrap();
    let text = ProjectedClipText::open(&made("clip_image_tiny")).unwrap();
    let mut images = images_of_clip();
    let caption = Some("a line".to_owned());
    let origin: Origin = "images:3".parse().unwrap();
    images.push(MeasuredImage {
        id: "thin".to_owned(),
        origin,
        image: thin.into(),
        caption,
        malformed: None,
    });
    let score = clip_score(&image, &text, &images, &Interrupt::default(), &mut ()).unwrap();
    assert_eq!((score.pairs, score.failed.len()), (2, 1));
    let failed = &score.failed[0];
    assert_eq!((failed.id.as_str(), failed.origin.to_string().as_str()), ("thin", "images:3"));
    for words in ["thin.png: ", "1 x 100000 pixels, too long and thin", "30 x 3000000"] {
        assert!(failed.reason.contains(words), "`{words}` is missing in: {}", failed.reason);
    }
}

#[test]
fn what_lies_in_the_place_of_a_towers_settings_is_named() {
    for (content, what) in [
        ("<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", "an HTML page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer"),
    ] {
        for file in ["config.json", "preprocessor_config.json"] {
            let folder = tempfile::tempdir().unwrap();
            copy_clip(folder.path());
            fs::write(folder.path().join(file), content).unwrap();
            let opened = ClipImage::open(folder.path(), Preprocess::default_for(1));
            let message = opened.map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(&format!("/{file}: not JSON but {what}")), "{message}");
        }
    }
}

#[test]
fn another_clip_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |change: &dyn Fn(&mut Value, &mut Value)| -> String {
        copy_clip(folder.path());
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
    refused("num_hidden_layers is 1001", &|config, _| {
        config["vision_config"]["num_hidden_layers"] = json!(1001)
    });
    refused("intermediate_size must be 1 or more", &|config, _| {
        config["vision_config"]["intermediate_size"] = json!(0)
    });
    let huge = 1_000_000_000_000_000_000_u64;
    refused("image_size is 1000000000000000000", &|config, _| {
        config["vision_config"]["image_size"] = json!(huge)
    });
    refused("is not a number of pixels from 1 to 8192", &|_, prepare| {
        prepare["size"]["shortest_edge"] = json!(huge)
    });
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

/// The weights of `made` in the script, and its images; the names and shapes are in inception.json.
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
        (name.clone(), Payload::from_tensor(&Tensor::new(&shape, values).unwrap()).unwrap())
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
    let sides: Vec<Vec<f64>> = expected["images"].as_array().unwrap().iter().map(numbers).collect();
    let images: Vec<Tensor> = sides
        .iter()
        .map(|image| {
            let (side, turn) = (image[0] as usize, image[1] as usize);
            let path = folder.path().join(format!("{side}.png"));
            alchemist_engine::data::image::preprocess::write_png(&path, &slopes(side, turn), side).unwrap();
            network.read(&path.into()).unwrap()
        })
        .collect();
    let values: Vec<f32> =
        images.iter().flat_map(|image| image.as_slice::<f32>().unwrap()).copied().collect();
    let features = network.features(&Tensor::new(&[2, 3, 299, 299], values).unwrap()).unwrap();
    assert_eq!(features.shape(), [2, 2048]);
    let places: Vec<usize> = numbers(&expected["places"]).iter().map(|&place| place as usize).collect();
    for (at, feature) in features.to_f64_vec().unwrap().chunks(2048).enumerate() {
        let kept: Vec<f64> = places.iter().map(|&place| feature[place]).collect();
        let error = error(&kept, &numbers(&expected["features"][at]));
        let norm = feature.iter().map(|value| value * value).sum::<f64>().sqrt();
        println!("image {at}: {error:e}, norm {norm} for {}", expected["norms"][at]);
        assert!(error < INCEPTION_TOLERANCE, "image {at}: {error:e}");
        let truth = expected["norms"][at].as_f64().unwrap();
        approx::assert_relative_eq!(norm, truth, max_relative = INCEPTION_TOLERANCE);
    }
    // One by itself has the same bits.
    let alone = network.features(&images[1].reshape(&[1, 3, 299, 299]).unwrap()).unwrap();
    assert!(alone.as_slice::<f32>().unwrap() == &features.as_slice::<f32>().unwrap()[2048..]);
    assert!(network.distance_name().starts_with("FID "));

    let message = Inception::open(&made("clip_image_tiny/model.safetensors"), Preprocess::default_for(1))
        .unwrap_err()
        .to_string();
    assert!(message.contains("Conv2d_1a_3x3.conv.weight"), "{message}");
}

const PROMPTS: [&str; 3] = [
    r#"{"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a red circle"}"#,
    r#"{"prompt":"two \"blue\" squares, été", "tag":"counting",  "z": 1.50, "a": null}"#,
    r#"{"tag": "colors", "prompt": "a green triangle"}"#,
];

/// The rows of a table of measures in JSON: name, value, images, images compared with.
fn measures(path: &Path) -> Vec<(String, f64, u64, Option<u64>)> {
    let rows = read(path)["measures"].as_array().unwrap().clone();
    let row = |row: &Value| {
        let name = row["name"].as_str().unwrap().to_owned();
        (name, row["value"].as_f64().unwrap(), row["generated"].as_u64().unwrap(), row["reference"].as_u64())
    };
    rows.iter().map(row).collect()
}

#[test]
fn drawn_images_lie_as_geneval_reads_them_and_are_measured() {
    let work = Workplace::new(96, &json!({"depth": 1, "proxy_width": 64, "ep": 1}));
    work.succeed(&["fit", "--config", "config.json", "--out", "run"]);
    fs::write(work.path("prompts.jsonl"), PROMPTS.join("\n") + "\n\n").unwrap();
    let draw =
        ["sample", "--checkpoint", "run", "--prompts", "prompts.jsonl", "--layout", "geneval", "--out"];
    let said = work.succeed(&[&draw[..], &["drawn"]].concat());
    assert!(said.contains("12 images"), "{said}");
    let side = 24;
    for (at, line) in PROMPTS.iter().enumerate() {
        let folder = work.path("drawn").join(format!("{at:05}"));
        assert_eq!(fs::read_to_string(folder.join("metadata.jsonl")).unwrap(), format!("{line}\n"));
        let mut names: Vec<_> =
            fs::read_dir(folder.join("samples")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0000.png", "0001.png", "0002.png", "0003.png"]);
        let size = image_size(&folder.join("grid.png"));
        assert_eq!(size, (4 * (side + 2) + 2, side + 4));
        assert_eq!(image_size(&folder.join("samples/0003.png")), (side, side));
    }
    // They are what the flat layout has.
    let flat: Vec<&str> = vec![
        "sample",
        "--checkpoint",
        "run",
        "--prompt",
        "a red circle",
        "--prompt",
        "two \"blue\" squares, été",
        "--prompt",
        "a green triangle",
        "--each",
        "4",
        "--out",
        "flat",
    ];
    work.succeed(&flat);
    for (own, other) in [("00000/samples/0000.png", "0000_00.png"), ("00002/samples/0003.png", "0002_03.png")]
    {
        let bytes = |folder: &str, name: &str| fs::read(work.path(folder).join(name)).unwrap();
        assert!(bytes("drawn", own) == bytes("flat", other), "{own}");
    }
    work.refused(
        &["sample", "--checkpoint", "run", "--prompt", "x", "--layout", "geneval", "--out", "no"],
        &["--prompts"],
    );
    fs::write(work.path("plain.txt"), "a red circle\n").unwrap();
    work.refused(
        &["sample", "--checkpoint", "run", "--prompts", "plain.txt", "--layout", "geneval", "--out", "no"],
        &["plain.txt, line 1", "`prompt`"],
    );

    // Measured against the validation set, with CLIP-Score from the prompts.
    let clip = made("clip_image_tiny");
    let clip = clip.to_str().unwrap();
    let run = |generated: &str, more: &[&str]| {
        work.succeed(
            &[
                &[
                    "measure",
                    "--generated",
                    generated,
                    "--checkpoint",
                    "run",
                    "--out",
                    "out.json",
                    "--overwrite",
                ],
                more,
            ]
            .concat(),
        )
    };
    let against = ["--reference", "data/train.csv", "--features", "tokenizer,clip", "--clip", clip];
    let said = run("drawn", &against);
    let found = measures(&work.path("out.json"));
    let names: Vec<&str> = found.iter().map(|row| row.0.as_str()).collect();
    assert!(
        names[0] == "Fréchet distance of tokenizer features, mean and standard deviation over the grid",
        "{names:?}"
    );
    assert!(names[1].starts_with("Fréchet distance of CLIP ViT image embedding, 20 dimensions"), "{names:?}");
    assert!(names[2].starts_with("CLIP-Score, mean of max(100 · cos, 0), CLIP ViT"), "{names:?}");
    assert!(names.iter().all(|name| said.contains(name) && !name.contains("FID")), "{said}");
    assert!(said.contains("12 and 96 images are too few"), "{said}");
    assert!(found.iter().all(|row| row.1 > 0.0 && row.2 == 12), "{found:?}");
    assert_eq!([found[0].3, found[1].3, found[2].3], [Some(96), Some(96), None]);
    let identity = read(&work.path("out.json"))["networks"].clone();
    // The same with one thread, from the flat folder, and from its table.
    for (generated, more) in [("drawn", &["--threads", "1"][..]), ("flat", &[]), ("flat/samples.csv", &[])] {
        run(generated, &[&against[..], more].concat());
        assert!(measures(&work.path("out.json")) == found, "{generated} {more:?}");
    }
    assert!(read(&work.path("out.json"))["networks"] == identity);
    // A set is at no distance from itself, and nearer than what a hardly trained model draws.
    run("data/train.csv", &["--reference", "data/train.csv"]);
    let own = measures(&work.path("out.json"));
    assert!(own.len() == 1 && own[0].1 < 1e-9 && own[0].2 == 96, "{own:?}");
    // Without captions or a reference there is less to be measured.
    let said = run("data/validation", &against);
    assert!(said.contains("CLIP-Score is not measured"), "{said}");
    assert_eq!(measures(&work.path("out.json")).len(), 2);
    run("flat", &["--clip", clip]);
    assert!(measures(&work.path("out.json"))[..] == found[2..]);

    // A broken image is told and skipped.
    fs::write(work.path("flat/0001_02.png"), b"no image").unwrap();
    let said = run("flat", &against);
    assert!(said.contains("skipped 0001_02.png: ") && said.contains("1 images could not be used"), "{said}");
    assert!(measures(&work.path("out.json")).iter().all(|row| row.2 == 11));
    let left_out = read(&work.path("out.json"))["left_out"]["generated"].clone();
    assert_eq!(
        (left_out.as_array().unwrap().len(), left_out[0]["origin"].as_str()),
        (1, Some("samples.csv:8"))
    );

    let measure = ["measure", "--generated", "flat", "--reference", "data/train.csv"];
    work.refused(&measure, &["--config FILE or --checkpoint DIR"]);
    work.refused(&[&measure[..], &["--features", "inception"]].concat(), &["--inception FILE"]);
    work.refused(&[&measure[..], &["--features", "clip"]].concat(), &["--clip FOLDER"]);
    work.refused(&["measure", "--generated", "flat"], &["nothing to measure"]);
    fs::create_dir(work.path("empty")).unwrap();
    work.refused(&["measure", "--generated", "empty", "--clip", clip], &["contains no images"]);
}

fn image_size(path: &Path) -> (usize, usize) {
    let image = alchemist_engine::data::load_full_image(path, &Preprocess::default_for(1)).unwrap();
    (image.width, image.height)
}
