//! The configuration: released files are read as they are, every key is documented, and mistakes are named.

#[path = "device/pyramids.rs"]
mod pyramids;
#[path = "config/schema.rs"]
mod schema;

use std::{
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::config::{
    Compat, Config, Geometry, ImageTokenizerKind, Portion, RaterObjective, RuleSettings, keys,
    rules::{EXCESS, LOSS, NORM_GAIN},
};
use pyramids::PYRAMIDS;
use serde_json::{Value, json};

fn parse(text: &str) -> Config {
    Config::parse("test.json", text, &[]).unwrap()
}

fn refused(text: &str, sets: &[&str]) -> String {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    Config::parse("test.json", text, &sets).unwrap_err().to_string()
}

fn set(sets: &[&str]) -> Config {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    Config::parse("test.json", "{}", &sets).unwrap()
}

#[test]
fn the_released_configuration_is_accepted_as_it_is() {
    let config = Config::load("configs/rater.json", &[]).unwrap();
    let networks = &config.networks;
    assert_eq!((networks.proxy_depth, networks.proxy_width), (30, 1920));
    assert_eq!((networks.rater_depth, networks.rater_width), (8, 512));
    assert_eq!(networks.image_side(), 256);
    assert_eq!(networks.patch_nums, [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]);
    assert_eq!(config.proxy_backbone(4096, 32, 1024).tokens(), 680);
    assert_eq!((config.training.batch, config.training.epochs), (64, 10));
    assert_eq!((config.training.learning_rate, config.training.warmup_epochs), (1e-4, 0.2));
    assert_eq!((config.training.weight_decay, config.training.weight_decay_end), (0.05, 0.05));
    assert_eq!(config.data.caption_column, "cogvlm_caption");
    assert_eq!(config.data.train, None);
    let warned = config.warnings.join("\n");
    assert!(warned.contains("text_enc"), "{warned}");

    let config = Config::load("configs/model.json", &[]).unwrap();
    assert_eq!((config.networks.proxy_depth, config.networks.proxy_width), (16, 1024));
    assert_eq!((config.training.batch, config.training.epochs), (512, 10));
    assert_eq!((config.training.progressive, config.training.drop_scale_length), (None, None));
    assert_eq!(config.networks.initial_weights, None);
}

/// The files in `configs/` but for the schema.
fn shipped() -> Vec<PathBuf> {
    let files = fs::read_dir("configs").unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| !path.ends_with("schema.json")).collect()
}

#[test]
fn every_shipped_configuration_is_accepted() {
    let mut files = 0;
    for path in shipped() {
        let config = Config::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let pyramid = &config.networks.patch_nums[..];
        assert!(PYRAMIDS.contains(&pyramid), "no kernel is tested with {pyramid:?} of {}", path.display());
        files += 1;
    }
    assert!(files >= 3);
}

#[test]
fn an_effective_configuration_read_again_is_the_same() {
    let sets = [
        "bs=30",
        "ac=4",
        "pn=256",
        "compat.weighted_mean=true",
        "data_args.train_csv_path=a.csv",
        "tlr=null",
        "data_args.rank_portion_train=0.5",
    ];
    for config in [Config::load("configs/rater.json", &[]).unwrap(), set(&sets), set(&["compat=released"])] {
        let text = config.to_json().to_string();
        let again = Config::parse("again", &text, &[]).unwrap();
        assert_eq!(again.to_json(), config.to_json());
        assert_eq!((again.fingerprint(), &again), (config.fingerprint(), &config));
    }
}

#[test]
fn every_key_is_in_the_documentation() {
    fn leaves(prefix: &str, value: &Value, found: &mut Vec<String>) {
        for (key, value) in value.as_object().unwrap() {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            let groups = ["data_args", "columns", "crossfit", "image_tokenizer", "text_encoder"];
            let nested = groups.contains(&name.as_str());
            if nested { leaves(&name, value, found) } else { found.push(name) }
        }
    }
    let mut known = Vec::new();
    leaves("", &parse("{}").to_json(), &mut known);
    let mut listed: Vec<&str> = keys::KEYS.iter().map(|key| key.name).collect();
    // Accepted and dropped.
    known.push("$schema".to_owned());
    known.sort();
    listed.sort_unstable();
    assert_eq!(known, listed);

    let path = Path::new("docs/config.md");
    let tables = keys::tables().unwrap();
    let document = fs::read_to_string(path).unwrap();
    if std::env::var_os("ALCHEMIST_WRITE_DOCS").is_some() {
        let (start, rest) = document.split_once("<!-- tables -->").unwrap();
        let (_, end) = rest.split_once("<!-- end of tables -->").unwrap();
        fs::write(path, format!("{start}<!-- tables -->\n{tables}<!-- end of tables -->{end}")).unwrap();
        return;
    }
    assert!(
        document.contains(&tables),
        "docs/config.md is out of date; run ALCHEMIST_WRITE_DOCS=1 cargo test --release --test config"
    );
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_one() {
    let error = refused("{\n  \"dept\": 3\n}", &[]);
    assert!(error.starts_with("test.json: dept: ") && error.contains("did you mean `depth`?"), "{error}");
    assert!(error.contains("line 2"), "{error}");
    let error = refused(r#"{"data_args": {"train_csv": "a"}}"#, &[]);
    assert!(error.contains("data_args.train_csv: ") && error.contains("`train_csv_path`"), "{error}");
    let error = refused(r#"{"compat": {"weighted_men": true}}"#, &[]);
    assert!(error.contains("compat.weighted_men: ") && error.contains("`weighted_mean`"), "{error}");
    let error = refused("{}", &["train_csv_path=a.csv"]);
    assert!(
        error.starts_with("--set: train_csv_path: ") && error.contains("`data_args.train_csv_path`"),
        "{error}"
    );
    let error = refused("{}", &["qqqqqqqq=1"]);
    assert!(error.contains("docs/config.md"), "{error}");
}

#[test]
fn a_value_out_of_range_is_named_with_the_range() {
    for (text, key, part) in [
        (r#"{"bs": 0}"#, "bs", "between 1 and"),
        (r#"{"ep": -1}"#, "ep", "between 1 and"),
        (r#"{"ls": 1.0}"#, "ls", "between 0 and 0.99"),
        (r#"{"upperlevel_weight": 1.5}"#, "upperlevel_weight", "between 0 and 1"),
        (r#"{"rater_temperature": 0}"#, "rater_temperature", "between"),
        (r#"{"proxy_width": 100}"#, "proxy_width", "multiple of 64"),
        (r#"{"validation_portion": 0}"#, "validation_portion", "above 0"),
        (r#"{"sche": "pi"}"#, "sche", "lin00"),
        (r#"{"opt": "sgd"}"#, "opt", "adamw"),
        (r#"{"device": "tpu"}"#, "device", "cpu"),
        (r#"{"checkpoint_every": 0}"#, "checkpoint_every", "1 or more"),
        (r#"{"ac": 9, "bs": 4}"#, "ac", "lower ac"),
        (r#"{"compat": "old"}"#, "compat", "released"),
        (r#"{"batch_size": 7}"#, "batch_size", "set it to 0"),
        (r#"{"rule": "aligned"}"#, "rule", "\"alignment\", \"gain\" or \"norm-gain\""),
        (r#"{"rule": "loss", "rule_geometry": "adamw"}"#, "rule_geometry", "uses no inner products"),
        (r#"{"rule_scaling": "median"}"#, "rule_scaling", "\"standardize\""),
        (r#"{"rater_objective": "both"}"#, "rater_objective", "\"regression\""),
        (r#"{"rule": "alignment", "compat": "released"}"#, "rule", "per-sample gradients"),
        (
            r#"{"rule": "loss", "record_norms": true, "compat": {"cross_attention_first_sample": true}}"#,
            "record_norms",
            "switch it off",
        ),
        (
            r#"{"rule": "loss", "rater_only_epochs": 2}"#,
            "rater_only_epochs",
            "set rater_objective to regression",
        ),
        (r#"{"ep": 3, "proxy_warmup_epochs": 3}"#, "proxy_warmup_epochs", "between 0 and 2"),
    ] {
        let error = refused(text, &[]);
        assert!(error.starts_with(&format!("test.json: {key}: ")) && error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_rule_brings_its_own_defaults() {
    let excess = set(&["rule=excess", "ep=4"]).training;
    assert_eq!((excess.rule.objective, excess.proxy_warmup_epochs), (RaterObjective::Regression, 1));
    assert_eq!((excess.rater_only_epochs, excess.record_norms), (4, true));
    let weights = set(&["rule=excess", "rater_objective=reweight"]).training;
    assert_eq!(weights.rater_only_epochs, 0, "without averages there is nothing to learn alone");
    let alignment = set(&["rule=alignment", "ep=4"]).training;
    assert_eq!(
        (alignment.rule.geometry, alignment.rule.objective),
        (Geometry::AdamW, RaterObjective::Regression)
    );
    assert_eq!((alignment.average_from_epoch, alignment.record_norms), (1, true));
    // The released code has the rule of the loss alone, and where samples are mixed none has a gradient of its own.
    let rule = |sets: &[&str]| set(sets).training.rule.rule;
    assert_eq!(rule(&[]), &NORM_GAIN);
    assert_eq!(rule(&["compat.validation_epoch=true"]), &EXCESS);
    assert_eq!(rule(&["compat.loss_rule=true"]), &LOSS);
    assert_eq!(rule(&["compat.cross_attention_first_sample=true"]), &LOSS);
    assert_eq!(rule(&["compat.loss_rule=true", "rule=excess"]), &EXCESS);
    let released = set(&["compat=released"]).training;
    assert_eq!((released.rule, released.record_norms), (RuleSettings::default(), false));
}

#[test]
fn a_pyramid_that_does_not_fit_is_refused() {
    for (text, key) in [
        (r#"{"patch_nums": [1, 2, 2]}"#, "patch_nums"),
        (r#"{"patch_nums": [0, 2, 4]}"#, "patch_nums"),
        (r#"{"patch_nums": []}"#, "patch_nums"),
        (r#"{"pn": "1_3_2"}"#, "pn"),
        (r#"{"pn": "1_two"}"#, "pn"),
        (r#"{"pn": "1_2_4", "patch_nums": [1, 2, 8]}"#, "patch_nums"),
        (r#"{"pn": "1_2_4", "data_load_reso": 256}"#, "data_load_reso"),
        (r#"{"pn": "1_2_4", "resos": [16, 32, 60]}"#, "resos"),
        (r#"{"pn": "1_2_300"}"#, "pn"),
    ] {
        let error = refused(text, &[]);
        assert!(error.starts_with(&format!("test.json: {key}: ")), "{text}: {error}");
    }
    assert_eq!(parse(r#"{"pn": "1024", "patch_size": 16}"#).networks.image_side(), 1024);
    assert_eq!(parse(r#"{"patch_nums": [1, 2, 8], "patch_size": 8}"#).networks.image_side(), 64);
    assert_eq!(parse(r#"{"pn": "1-2-8", "patch_size": 8, "data_load_reso": 64}"#).networks.image_side(), 64);
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    for (key, value) in [
        ("data_args.lmdb_dirs", json!(["a"])),
        ("precomputed_latent", json!(true)),
        ("using_webtar", json!(true)),
        ("using_csv", json!(false)),
        ("hflip", json!(true)),
        ("from_0", json!(true)),
        ("text_enc", json!("bert")),
        ("pg", json!(1.5)),
        ("image_tokenizer.kind", json!("vqgan")),
        ("text_encoder.kind", json!("clip")),
    ] {
        let error = refused("{}", &[&format!("{key}={value}")]);
        assert!(error.starts_with(&format!("--set: {key}: ")), "{error}");
    }
    // What contradicts something else is refused under the key that says more.
    for (sets, key) in [
        (["image_tokenizer.kind=vqvae", "seed=1"], "image_tokenizer.path"),
        (["ckpt_path=vae", "image_tokenizer.path=other"], "ckpt_path"),
        (["ckpt_path=vae", "image_tokenizer.kind=pca"], "ckpt_path"),
        (["pretrained_ckpt=a.pth", "warmupVAR=b.pth"], "pretrained_ckpt"),
        (["pg=0.5", "drop_scale_length=100"], "drop_scale_length"),
    ] {
        let error = refused("{}", &sets);
        assert!(error.contains(&format!("{key}: ")), "{sets:?}: {error}");
    }
    let config = set(&["ckpt_path=vae", "warmupVAR=a.pth"]);
    assert_eq!(config.image_tokenizer.kind, ImageTokenizerKind::VqVae);
    assert!(config.image_tokenizer.path.unwrap().ends_with("vae"));
    assert!(config.networks.initial_weights.unwrap().ends_with("a.pth"));
}

#[test]
fn json_that_cannot_be_read_is_placed() {
    let error = refused("{\n \"ep\": 1,\n}", &[]);
    assert!(error.contains("line 3"), "{error}");
    let error = refused("{\"ep\": \"ten\"}", &[]);
    assert_eq!(error, "test.json: ep: must be an integer, but is \"ten\" (line 1, column 12)");
    let error = refused("{} {}", &[]);
    assert!(error.contains("trailing"), "{error}");
    let error = refused("{\"ep\": 1, \"ep\": 2}", &[]);
    assert!(error.contains("ep: duplicate key"), "{error}");
    let error = refused("", &[]);
    assert!(error.starts_with("test.json: is empty; "), "{error}");
    let error = refused("[1]", &[]);
    assert!(error.starts_with("test.json: is not a JSON object; "), "{error}");
    let error = Config::load("no/such.json", &[]).unwrap_err().to_string();
    assert!(error.contains("cannot read no/such.json"), "{error}");
}

#[test]
fn set_takes_json_and_bare_text() {
    let config =
        set(&["sche=cos", "pn=1_2_4", "data_args.train_csv_path=42", "columns.id=key", "ini=-1", "tlr=2e-4"]);
    assert_eq!(config.training.learning_rate, 2e-4);
    assert_eq!(config.data.id_column, "key");
    assert!(config.data.train.unwrap().ends_with("42"));
    assert_eq!(config.networks.patch_nums, [1, 2, 4]);
    let one_off = set(&["compat=released", "compat.double_softmax=false"]).compat;
    assert_eq!(one_off, Compat { double_softmax: false, ..Compat::RELEASED });
    assert_eq!(set(&["ep=3", "ep=4"]).training.epochs, 4);
    assert_eq!(set(&["data_args.random_portion_train=0.5"]).data.portion, Portion::Random(0.5));
    let error = refused("{}", &["ep=many"]);
    assert!(error.starts_with("--set: ep: "), "{error}");
    let error = refused("{}", &["ep"]);
    assert!(error.contains("key=value"), "{error}");
}

#[test]
fn only_what_changes_results_changes_the_fingerprint() {
    let base = set(&[]);
    let harmless =
        set(&["workers=9", "keep_checkpoints=0", "exp_name=b", "local_out_dir_path=runs/a", "infer_bsz=3"]);
    assert_eq!(base.fingerprint(), harmless.fingerprint());
    assert_eq!(base.first_difference(&harmless), None);
    for change in ["ep=9", "seed=1", "compat.weighted_mean=true", "image_tokenizer.codes=8", "ls=0.1"] {
        let changed = set(&[change]);
        assert_ne!(base.fingerprint(), changed.fingerprint(), "{change}");
        let (key, _, _) = base.first_difference(&changed).unwrap();
        assert!(change.starts_with(&key), "{change}: {key}");
    }
}
