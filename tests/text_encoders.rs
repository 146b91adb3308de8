//! Released text encoders from made-up folders: what is read, what is refused, and a run with one.

mod common;
#[path = "text_encoders/folders.rs"]
mod folders;
#[path = "text_encoders/forged.rs"]
mod forged;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use alchemist_engine::{
    config::{Config, TextEncoderKind},
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    encode::{
        TextEncoder, load_moved_text_encoder, load_text_encoder,
        pretrained::{EncoderKind, Pretrained, PretrainedSettings},
        tokenizers::TextTokenizer,
    },
    engine::cuda::DeviceChoice,
};
use common::{relative_error, tolerance};
use folders::{
    CHANNELS, CLIP_VOCABULARY, POSITIONS, Weights, clip_config, clip_pipeline, clip_tokenizer_json,
    clip_weights, copy_clip_tokenizer, t5_folder, t5_weights, write_shards, write_weights,
};
use serde_json::json;
use tempfile::TempDir;

const CAPTIONS: [&str; 5] = [
    "a photo of a dog on a sofa",
    "",
    "the lazy dog the lazy dog the lazy dog the lazy dog the lazy dog",
    "猫が寝ている",
    "A RED Car,parked!!",
];

fn settings(path: &Path) -> PretrainedSettings {
    PretrainedSettings { path: path.to_path_buf(), tokens: None, channels: None, mean_over_padding: false }
}

fn clip(path: &Path) -> Pretrained {
    Pretrained::open(EncoderKind::Clip, settings(path)).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refuses(kind: EncoderKind, settings: PretrainedSettings, words: &[&str]) {
    let message = Pretrained::open(kind, settings).err().expect("it is refused").to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}

/// A pipeline that a change is made to before it is opened.
fn changed(change: impl Fn(&Path, &mut Weights)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut weights = clip_weights();
    clip_pipeline(folder.path(), &weights);
    change(folder.path(), &mut weights);
    write_weights(&folder.path().join("text_encoder/model.safetensors"), &weights);
    folder
}

#[test]
fn clip_gives_every_caption_its_states() {
    let folder = changed(|_, _| {});
    let encoder = clip(folder.path());
    assert_eq!((encoder.tokens(), encoder.channels()), (POSITIONS, CHANNELS));
    let found = encoder.encode(&CAPTIONS).unwrap();
    assert_eq!(found.states.shape(), [5, POSITIONS, CHANNELS]);
    let mask = found.mask.as_slice::<u32>().unwrap();
    let tokens: Vec<u32> = mask.chunks(POSITIONS).map(|mask| mask.iter().sum()).collect();
    assert_eq!(tokens, [10, 2, POSITIONS as u32, POSITIONS as u32, 9]);
    // The vector of a caption is the state at its end mark.
    let (states, pooled) = (found.states.as_slice::<f32>().unwrap(), found.pooled.as_slice::<f32>().unwrap());
    for (at, &tokens) in tokens.iter().enumerate() {
        let state = &states[(at * POSITIONS + tokens as usize - 1) * CHANNELS..][..CHANNELS];
        assert!(state == &pooled[at * CHANNELS..][..CHANNELS], "caption {at}");
    }
}

/// What else is in a batch changes no bit of a caption's states, at sizes above those of the products' kernels for tiny
/// matrices.
#[test]
fn captions_are_encoded_each_for_itself() {
    let folder = changed(|_, _| {});
    let t5 = tempfile::tempdir().unwrap();
    t5_folder(t5.path(), true);
    let t5 =
        Pretrained::open(EncoderKind::T5, PretrainedSettings { tokens: Some(12), ..settings(t5.path()) })
            .unwrap();
    let clip = clip(folder.path());
    for encoder in [&clip as &dyn TextEncoder, &t5] {
        let many: Vec<&str> = CAPTIONS.iter().copied().cycle().take(150).collect();
        let together = encoder.encode(&many).unwrap();
        let states = together.states.as_slice::<f32>().unwrap().chunks(encoder.tokens() * encoder.channels());
        let pooled = together.pooled.as_slice::<f32>().unwrap().chunks(encoder.channels());
        for ((caption, states), pooled) in many.iter().zip(states).zip(pooled) {
            let alone = encoder.encode(&[caption]).unwrap();
            assert!(alone.states.as_slice::<f32>().unwrap() == states, "{caption:?}");
            assert!(alone.pooled.as_slice::<f32>().unwrap() == pooled, "{caption:?}");
        }
    }
}

/// On a device (the emulator, unless `ALCHEMIST_DEVICE` names another) they are those of the CPU, and no bit of one
/// depends on the others there either.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn captions_are_encoded_alike_on_a_device() {
    let emulated = || DeviceChoice::Emulated.open().unwrap().expect("the emulator");
    let device = common::open_device().unwrap_or_else(emulated);
    let pipeline = changed(|_, _| {});
    let folder = tempfile::tempdir().unwrap();
    t5_folder(folder.path(), true);
    let t5 = PretrainedSettings { tokens: Some(12), ..settings(folder.path()) };
    for (kind, settings) in [(EncoderKind::Clip, settings(pipeline.path())), (EncoderKind::T5, t5)] {
        let host = Pretrained::open(kind, settings.clone()).unwrap();
        let placed = Box::new(Pretrained::open(kind, settings).unwrap()).to_device(&device).unwrap();
        assert_eq!(placed.fingerprint(), host.fingerprint());
        let (expected, found) = (host.encode(&CAPTIONS).unwrap(), placed.encode(&CAPTIONS).unwrap());
        assert_eq!(found.mask, expected.mask);
        for (found, expected) in [(&found.states, &expected.states), (&found.pooled, &expected.pooled)] {
            assert_eq!(found.shape(), expected.shape());
            let error = relative_error(found, expected);
            assert!(error <= tolerance::NETWORK_F32, "{kind:?}: {error:e}");
        }
        let alone = placed.encode(&CAPTIONS[3..4]).unwrap();
        let length = placed.tokens() * placed.channels();
        let of_all = &found.states.as_slice::<f32>().unwrap()[3 * length..4 * length];
        assert!(alone.states.as_slice::<f32>().unwrap() == of_all, "{kind:?}");
    }
}

#[test]
fn an_encoder_is_found_in_every_usual_place() {
    let folder = changed(|_, _| {});
    let expected = clip(folder.path());
    let states = expected.encode(&CAPTIONS).unwrap();
    let check = |path: &Path, what: &str| {
        let found = clip(path);
        assert_eq!(found.fingerprint(), expected.fingerprint(), "{what}");
        assert!(found.encode(&CAPTIONS).unwrap() == states, "{what}");
    };
    let model = folder.path().join("text_encoder");
    check(&model, "the encoder's own folder, the tokenizer next to it");
    fs::remove_file(model.join("model.safetensors")).unwrap();
    write_shards(&model, &clip_weights());
    check(folder.path(), "in shards");
    fs::rename(folder.path().join("tokenizer"), model.join("tokenizer")).unwrap();
    check(&model, "the tokenizer in the encoder's folder");
    fs::remove_dir_all(model.join("tokenizer")).unwrap();
    copy_clip_tokenizer(&model);
    check(&model, "the tokenizer's files next to the weights");

    // Names without their prefix, with the list of positions that old files hold.
    let bare = changed(|_, weights| {
        let renamed: Weights = weights
            .iter()
            .map(|(name, tensor)| (name.strip_prefix("text_model.").unwrap().to_owned(), tensor.clone()))
            .collect();
        *weights = renamed;
        weights.insert("embeddings.position_ids".to_owned(), (vec![1, POSITIONS], vec![0.0; POSITIONS]));
    });
    check(bare.path(), "names without text_model.");
}

#[test]
fn folders_that_do_not_fit_are_refused_with_the_cause() {
    let open = |folder: &TempDir| settings(folder.path());
    let folder = changed(|folder, _| fs::remove_dir_all(folder.join("tokenizer")).unwrap());
    refuses(EncoderKind::Clip, open(&folder), &["no tokenizer", "merges.txt"]);
    let folder = changed(|folder, _| fs::remove_file(folder.join("tokenizer/merges.txt")).unwrap());
    refuses(EncoderKind::Clip, open(&folder), &["no tokenizer", "merges.txt"]);
    let folder = changed(|folder, _| fs::write(folder.join("tokenizer/vocab.json"), "{").unwrap());
    refuses(EncoderKind::Clip, open(&folder), &["damaged"]);
    let folder = changed(|folder, _| fs::remove_file(folder.join("text_encoder/config.json")).unwrap());
    refuses(EncoderKind::Clip, open(&folder), &["config.json"]);
    refuses(EncoderKind::Clip, settings(Path::new("/nowhere/at/all")), &["no such folder"]);
    refuses(EncoderKind::T5, open(&changed(|_, _| {})), &["neither tokenizer.json nor spiece.model"]);

    let config = |change: fn(&mut serde_json::Value)| {
        changed(move |folder, _| {
            let mut config = clip_config();
            change(&mut config);
            fs::write(folder.join("text_encoder/config.json"), config.to_string()).unwrap();
        })
    };
    let folder = config(|config| config["hidden_act"] = json!("mish"));
    refuses(EncoderKind::Clip, open(&folder), &["hidden_act", "mish", "quick_gelu"]);
    let folder = config(|config| config["num_attention_heads"] = json!(3));
    refuses(EncoderKind::Clip, open(&folder), &["64 channels", "3 heads"]);
    let folder = config(|config| config["model_type"] = json!("bert"));
    refuses(EncoderKind::Clip, open(&folder), &["bert", "clip_text_model"]);
    let folder = config(|config| config["hidden_size"] = json!("wide"));
    refuses(EncoderKind::Clip, open(&folder), &["config.json", "hidden_size"]);
    let folder = config(|config| config["eos_token_id"] = json!(49_407));
    refuses(EncoderKind::Clip, open(&folder), &["eos_token_id", "49407"]);
    let folder = config(|config| config["num_hidden_layers"] = json!(3));
    refuses(EncoderKind::Clip, open(&folder), &["missing", "encoder.layers.2."]);
    let folder = config(|config| config["num_hidden_layers"] = json!(1001));
    refuses(
        EncoderKind::Clip,
        open(&folder),
        &["config.json: num_hidden_layers is 1001", "more than 1000 layers"],
    );
    let folder = config(|config| config["intermediate_size"] = json!(0));
    refuses(EncoderKind::Clip, open(&folder), &["config.json", "intermediate_size must be 1 or more"]);

    let folder = changed(|_, weights| {
        let moved = weights.remove("text_model.encoder.layers.1.mlp.fc1.bias").unwrap();
        weights.insert("text_model.encoder.layers.1.mlp.fc3.bias".to_owned(), moved);
    });
    refuses(
        EncoderKind::Clip,
        open(&folder),
        &["1 missing", "1 surplus", "mlp.fc1.bias (perhaps", "mlp.fc3.bias"],
    );
    let folder = changed(|folder, weights| {
        let mut config = clip_config();
        config["vocab_size"] = json!(CLIP_VOCABULARY - 4);
        fs::write(folder.join("text_encoder/config.json"), config.to_string()).unwrap();
        let embedding = weights.get_mut("text_model.embeddings.token_embedding.weight").unwrap();
        embedding.0[0] -= 4;
        embedding.1.truncate((CLIP_VOCABULARY - 4) * CHANNELS);
    });
    refuses(EncoderKind::Clip, open(&folder), &["653", "650", "different models"]);
    let folder = changed(|_, weights| {
        weights.get_mut("text_model.final_layer_norm.bias").unwrap().1[3] = f32::NAN;
    });
    refuses(EncoderKind::Clip, open(&folder), &["final_layer_norm.bias", "NaN", "index 3"]);

    let folder = changed(|_, _| {});
    refuses(
        EncoderKind::Clip,
        PretrainedSettings { channels: Some(1024), ..open(&folder) },
        &["1024", "64 channels"],
    );
    refuses(
        EncoderKind::Clip,
        PretrainedSettings { tokens: Some(77), ..open(&folder) },
        &["77", "14 positions"],
    );
    refuses(
        EncoderKind::Clip,
        PretrainedSettings { tokens: Some(2), ..open(&folder) },
        &["2 tokens", "2 special tokens"],
    );
}

#[test]
fn sizes_that_no_t5_has_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    t5_folder(folder.path(), true);
    let path = folder.path().join("config.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let huge = 1_000_000_000_000_000_000_u64;
    for (changes, words) in [
        (json!({"num_layers": huge}), ["num_layers is 1000000000000000000", "more than 1000 layers"]),
        (json!({"num_heads": huge, "d_kv": huge}), ["(num_heads)", "(d_kv)"]),
        (json!({"d_model": 0}), ["d_model", "1 or more"]),
        (json!({"d_ff": 0}), ["d_ff", "1 or more"]),
    ] {
        let mut config = good.clone();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(&path, config.to_string()).unwrap();
        refuses(EncoderKind::T5, settings(folder.path()), &[&words[..], &["config.json"]].concat());
    }
}

#[test]
fn what_lies_in_the_place_of_a_models_file_is_named() {
    for (content, what) in [
        ("<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", "an HTML page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer"),
    ] {
        for file in [
            "text_encoder/config.json",
            "tokenizer/tokenizer.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "tokenizer/added_tokens.json",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
        ] {
            let folder = changed(|folder, _| fs::write(folder.join(file), content).unwrap());
            refuses(EncoderKind::Clip, settings(folder.path()), &[file, what, "download the file"]);
        }
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "config.json"] {
            t5_folder(folder.path(), true);
            fs::write(folder.path().join(file), content).unwrap();
            refuses(EncoderKind::T5, settings(folder.path()), &[file, what, "download the file"]);
        }
    }
}

#[test]
fn states_that_are_not_finite_are_refused_with_layer_and_caption() {
    let folder = changed(|_, weights| {
        // Finite, but too large to be multiplied: the second layer overflows.
        let values = &mut weights.get_mut("text_model.encoder.layers.1.mlp.fc2.weight").unwrap().1;
        values.iter_mut().for_each(|value| *value *= 1e38);
        let values = &mut weights.get_mut("text_model.encoder.layers.1.mlp.fc1.weight").unwrap().1;
        values.iter_mut().for_each(|value| *value *= 1e6);
    });
    let message = clip(folder.path()).encode(&["a dog"]).unwrap_err().to_string();
    assert!(message.contains("layer 1 of the CLIP") && message.contains("\"a dog\""), "{message}");
}

#[test]
fn the_fast_form_of_clips_tokenizer_gives_the_same_ids() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), clip_tokenizer_json().to_string()).unwrap();
    let fast = TextTokenizer::clip(folder.path(), Some(24), 77).unwrap();
    let slow = TextTokenizer::clip(Path::new("tests/fixtures/clip_tokenizer_tiny"), Some(24), 77).unwrap();
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read("tests/fixtures/clip_tokenizer_tiny/expected.json").unwrap())
            .unwrap();
    let mut captions: Vec<&str> =
        expected["prompts"].as_array().unwrap().iter().map(|prompt| prompt.as_str().unwrap()).collect();
    captions.extend(CAPTIONS);
    for caption in captions {
        assert_eq!(fast.encode(&[caption]).unwrap(), slow.encode(&[caption]).unwrap(), "{caption:?}");
    }
    // Without settings, as many as there are positions.
    assert_eq!(TextTokenizer::clip(folder.path(), None, 77).unwrap().length(), 77);
    fs::write(folder.path().join("tokenizer_config.json"), r#"{"model_max_length": 20}"#).unwrap();
    assert_eq!(TextTokenizer::clip(folder.path(), None, 77).unwrap().length(), 20);
    // A mark in capitals is a mark for the slow form, which the released code uses.
    let ids = slow.encode(&["<|ENDOFTEXT|> x"]).unwrap().ids;
    assert_eq!(ids.as_slice::<u32>().unwrap()[..4], [652, 653, 343, 653]);
}

#[test]
fn t5_pads_cuts_and_averages() {
    let folder = tempfile::tempdir().unwrap();
    for gated in [true, false] {
        let mut weights = t5_folder(folder.path(), gated);
        let open = |mean_over_padding| {
            let settings =
                PretrainedSettings { tokens: Some(8), mean_over_padding, ..settings(folder.path()) };
            Pretrained::open(EncoderKind::T5, settings).unwrap_or_else(|error| panic!("{error}"))
        };
        let (tokens, everything) = (open(false), open(true));
        assert_ne!(tokens.fingerprint(), everything.fingerprint());
        let captions = ["cat", "", "cat dog cat dog cat dog cat dog cat"];
        let found = tokens.encode(&captions).unwrap();
        let mask = found.mask.as_slice::<u32>().unwrap();
        let lengths: Vec<u32> = mask.chunks(8).map(|mask| mask.iter().sum()).collect();
        assert_eq!(lengths, [2, 1, 8]);
        let released = everything.encode(&captions).unwrap();
        assert!(released.states == found.states);
        let (one, other) =
            (found.pooled.as_slice::<f32>().unwrap(), released.pooled.as_slice::<f32>().unwrap());
        let states = found.states.as_slice::<f32>().unwrap();
        for channel in 0..CHANNELS {
            let mean = |count: usize| {
                (0..count).map(|at| states[at * CHANNELS + channel]).sum::<f32>() / count as f32
            };
            approx::assert_relative_eq!(one[channel], mean(2), epsilon = 1e-5);
            approx::assert_relative_eq!(other[channel], mean(8), epsilon = 1e-5);
        }
        // A decoder's tensors, and the embedding under its second name, are left alone.
        let embedding = weights["shared.weight"].clone();
        weights.insert("encoder.embed_tokens.weight".to_owned(), embedding);
        weights.insert("decoder.final_layer_norm.weight".to_owned(), (vec![2], vec![1.0; 2]));
        write_weights(&folder.path().join("model.safetensors"), &weights);
        assert_eq!(open(false).fingerprint(), tokens.fingerprint());
        weights.remove("shared.weight");
        write_weights(&folder.path().join("model.safetensors"), &weights);
        assert!(open(false).encode(&captions).unwrap() == found);
    }
    fs::rename(folder.path().join("tokenizer.json"), folder.path().join("spiece.model")).unwrap();
    refuses(EncoderKind::T5, settings(folder.path()), &["spiece.model", "not a SentencePiece model"]);
}

/// A T5 folder as it is often copied, without `tokenizer.json`.
#[test]
fn t5_is_read_with_spiece_model_alone() {
    let folder = tempfile::tempdir().unwrap();
    t5_folder(folder.path(), true);
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    fs::copy("tests/field/weights/t5/spiece.model", folder.path().join("spiece.model")).unwrap();
    // More pieces than the encoder has vectors for.
    refuses(EncoderKind::T5, settings(folder.path()), &["ids up to 171", "only 40", "different models"]);
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = json!(172);
    fs::write(&path, config.to_string()).unwrap();
    let mut weights = t5_weights(true);
    weights.insert("shared.weight".to_owned(), (vec![172, CHANNELS], vec![0.5; 172 * CHANNELS]));
    write_weights(&folder.path().join("model.safetensors"), &weights);
    let encoder =
        Pretrained::open(EncoderKind::T5, PretrainedSettings { tokens: Some(8), ..settings(folder.path()) });
    let found = encoder.unwrap_or_else(|error| panic!("{error}")).encode(&["a dog", ""]).unwrap();
    assert_eq!(found.states.shape(), [2, 8, CHANNELS]);
}

#[test]
fn a_saved_encoder_says_where_it_is_and_what_it_was() {
    let place = tempfile::tempdir().unwrap();
    let pipeline = place.path().join("pipeline");
    clip_pipeline(&pipeline, &clip_weights());
    let run = place.path().join("run");
    let encoder = clip(&pipeline);
    encoder.save(&run).unwrap();
    let files: Vec<PathBuf> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files, [run.join("text_encoder.json")]);
    let loaded = load_text_encoder(&run).unwrap();
    assert_eq!(loaded.fingerprint(), encoder.fingerprint());
    assert!(loaded.encode(&CAPTIONS).unwrap() == encoder.encode(&CAPTIONS).unwrap());

    let elsewhere = place.path().join("elsewhere");
    fs::rename(&pipeline, &elsewhere).unwrap();
    let gone = load_text_encoder(&run).err().unwrap().to_string();
    assert!(gone.contains("no such folder any more") && gone.contains("text_encoder.path="), "{gone}");
    let moved = load_moved_text_encoder(&run, Some(&elsewhere)).unwrap();
    assert_eq!(moved.fingerprint(), encoder.fingerprint());

    let mut weights = clip_weights();
    weights.get_mut("text_model.final_layer_norm.bias").unwrap().1[0] += 1.0;
    write_weights(&elsewhere.join("text_encoder/model.safetensors"), &weights);
    let other = load_moved_text_encoder(&run, Some(&elsewhere)).err().unwrap().to_string();
    assert!(other.contains("another one") && other.contains(&encoder.fingerprint()), "{other}");
}

#[test]
fn the_released_keys_and_our_own_agree() {
    let parse = |text: serde_json::Value| Config::parse("test.json", &text.to_string(), &[]);
    let refused = |text: serde_json::Value, words: &[&str]| {
        let message = parse(text).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is missing in: {message}"));
    };
    let pretrained = |kind, tokens| TextEncoderKind::Pretrained { kind, tokens, channels: None };
    let same = |one: serde_json::Value, kind: TextEncoderKind| {
        let config = parse(one).unwrap();
        assert_eq!(config.text_encoder.kind, kind);
        assert_eq!(config.text_encoder.path.as_deref(), Some(Path::new("/models/x")));
        assert!(!config.warnings.join("\n").contains("text_enc"), "{:?}", config.warnings);
        let again = parse(config.to_json()).unwrap();
        assert_eq!(again.text_encoder, config.text_encoder);
        assert_eq!(again.fingerprint(), config.fingerprint());
    };
    same(json!({"text_enc": "clip", "text_enc_path": "/models/x"}), pretrained(EncoderKind::Clip, None));
    same(json!({"text_enc_path": "/models/x"}), pretrained(EncoderKind::Clip, None));
    same(json!({"text_enc": "t5", "text_enc_path": "/models/x"}), pretrained(EncoderKind::T5, Some(120)));
    same(
        json!({"text_enc": "t5", "text_encoder": {"path": "/models/x"}}),
        pretrained(EncoderKind::T5, Some(120)),
    );
    same(json!({"text_encoder": {"kind": "clip", "path": "/models/x"}}), pretrained(EncoderKind::Clip, None));
    let warned = parse(json!({"text_enc": "clip", "text_enc_path": ""})).unwrap();
    assert!(warned.warnings.join("\n").contains("text_enc: "), "{:?}", warned.warnings);
    refused(json!({"text_enc": "bert"}), &["text_enc", "bert", "clip"]);
    refused(json!({"text_encoder": {"kind": "bert"}}), &["text_encoder.kind", "bert", "clip"]);
    refused(json!({"text_encoder": {"kind": "clip"}}), &["text_encoder.kind", "text_encoder.path"]);
    refused(
        json!({"text_enc": "t5", "text_encoder": {"kind": "clip", "path": "/models/x"}}),
        &["text_encoder.kind", "clip", "t5"],
    );
    refused(
        json!({"text_enc_path": "/models/x", "text_encoder": {"path": "/models/y"}}),
        &["text_encoder.path", "/models/x", "/models/y"],
    );
    refused(
        json!({"text_enc_path": "/models/x", "text_encoder": {"kind": "hashed_words"}}),
        &["text_encoder.kind", "hashed_words"],
    );
}

#[test]
fn a_run_is_trained_and_scored_with_clip_even_after_it_moved() {
    let work = tempfile::tempdir().unwrap();
    let settings =
        DataSetSettings { train: 16, validation: 8, side: 24, shares: FlawShares::default(), seed: 3 };
    let data = write_data_set(&work.path().join("data"), &settings).unwrap();
    let pipeline = work.path().join("pipeline");
    clip_pipeline(&pipeline, &clip_weights());
    let config = json!({
        "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
        "depth": 1, "raterDepth": 1, "pn": "1_2_3", "patch_size": 8, "rule": "excess",
            "bs": 8, "ep": 1, "tlr": 1e-3, "workers": 1,
        "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 16},
        "text_enc": "clip", "text_enc_path": pipeline,
    });
    fs::write(work.path().join("config.json"), config.to_string()).unwrap();
    let program = |arguments: &[&str]| {
        let built = || OsString::from(env!("CARGO_BIN_EXE_alchemist-engine"));
        let mut command = Command::new(env::var_os("ALCHEMIST_PROGRAM").unwrap_or_else(built));
        let output = command.current_dir(work.path()).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, errors) = program(&["train", "--config", "config.json", "--out", "run"]);
    assert!(done, "{errors}");
    let score = ["score", "--checkpoint", "run", "--data", "data/train.csv", "--out"];
    let (done, errors) = program(&[&score[..], &["before.csv"]].concat());
    assert!(done, "{errors}");
    fs::rename(&pipeline, work.path().join("moved")).unwrap();
    let (done, errors) = program(&[&score[..], &["lost.csv"]].concat());
    assert!(!done && errors.contains("text_encoder.path=FOLDER"), "{errors}");
    let (done, errors) = program(&[&score[..], &["after.csv", "--set", "text_encoder.path=moved"]].concat());
    assert!(done, "{errors}");
    let ratings = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(work.path().join(name)).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    assert!(ratings("before.csv").len() > 8 && ratings("before.csv") == ratings("after.csv"));
}
