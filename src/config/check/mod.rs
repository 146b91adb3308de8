//! From raw values to checked ones: defaults (mostly those of the released configuration), ranges, and what is refused.

mod image;
mod rule;
mod text;

use std::path::PathBuf;

use serde_json::Value;

use super::{
    Compat, Config, DataConfig, HEAD_WIDTH, NetworksConfig, Portion, Progressive, ScheduleShape,
    TrainingConfig, raw::RawConfig, source::Source,
};
use crate::{
    engine::{DType, cuda::DeviceChoice},
    error::{Error, Result},
    models::{Initialisation, Rope},
};

/// Gives each key its value: what is written, or the default; writes it back, so that the effective configuration is
/// whole; and checks its range.
struct Checker<'a> {
    source: &'a Source,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn refuse<T>(&self, key: &str, message: impl Into<String>) -> Result<T> {
        Err(self.source.refuse(key, message))
    }

    fn integer(&self, key: &str, held: &mut Option<i64>, default: i64, least: i64, most: i64) -> Result<i64> {
        let value = *held.get_or_insert(default);
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        self.refuse(key, format!("must lie between {least} and {most}, but is {value}"))
    }

    fn size(&self, key: &str, held: &mut Option<i64>, default: i64, least: i64, most: i64) -> Result<usize> {
        let value = self.integer(key, held, default, least, most)?;
        usize::try_from(value).or_else(|_| self.refuse(key, format!("must not be negative, but is {value}")))
    }

    fn number(&self, key: &str, held: &mut Option<f64>, default: f64, least: f64, most: f64) -> Result<f64> {
        let value = *held.get_or_insert(default);
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        self.refuse(key, format!("must lie between {least} and {most}, but is {value}"))
    }

    /// A share above 0, or none.
    fn share(&self, key: &str, held: Option<f64>, most: f64) -> Result<Option<f64>> {
        match held {
            Some(value) if !(value > 0.0 && value <= most) => {
                self.refuse(key, format!("must be above 0 and at most {most}, but is {value}"))
            }
            other => Ok(other),
        }
    }

    /// A switch of which only one position is accepted.
    fn only(&self, key: &str, held: &mut Option<bool>, accepted: bool, cure: &str) -> Result<()> {
        let value = *held.get_or_insert(accepted);
        if value == accepted { Ok(()) } else { self.refuse(key, format!("is {value}, but {cure}")) }
    }

    fn flag(held: &mut Option<bool>, default: bool) -> bool {
        *held.get_or_insert(default)
    }

    /// A path that may be empty; made absolute, so that a run resumes from another directory.
    fn path(&self, key: &str, held: &mut Option<String>) -> Result<Option<PathBuf>> {
        let text = held.get_or_insert_default();
        if text.is_empty() {
            return Ok(None);
        }
        let path = std::path::absolute(&*text).map_err(Error::io("resolve", &*text))?;
        match path.to_str() {
            Some(absolute) => absolute.clone_into(text),
            None => return self.refuse(key, "leads through a folder whose name is not UTF-8"),
        }
        Ok(Some(path))
    }
}

/// Checks everything.
pub(super) fn check(source: Source) -> Result<Config> {
    let mut raw = source.raw.clone();
    let mut checker = Checker { source: &source, warnings: Vec::new() };
    refused(&checker, &mut raw)?;
    without_effect(&mut checker, &mut raw)?;
    let compat = compat(&checker, &mut raw)?;
    let seed = checker.integer("seed", &mut raw.seed, 0, 0, i64::MAX)?.unsigned_abs();
    let networks = networks(&checker, &mut raw)?;
    let image_tokenizer = image::tokenizer(&checker, &mut raw, networks.patch_size)?;
    let text_encoder = text::check(&mut checker, &mut raw)?;
    let data = data(&checker, &mut raw)?;
    let (training, checkpoint_every) = training(&checker, &mut raw, compat)?;
    let keep = checker.size("keep_checkpoints", &mut raw.keep_checkpoints, 3, 0, 1_000_000)?;
    let log_lines = checker.integer("print_every", &mut raw.print_every, 500, 1, i64::MAX)?.unsigned_abs();
    let (device, compute) = device(&checker, &mut raw)?;
    let out = checker.path("local_out_dir_path", &mut raw.local_out_dir_path)?;
    Ok(Config {
        seed,
        device,
        compute,
        recompute: *raw.recompute.get_or_insert(false),
        cuda_graph: *raw.cuda_graph.get_or_insert(true),
        experiment: raw.exp_name.get_or_insert_default().clone(),
        out,
        data,
        image_tokenizer,
        text_encoder,
        networks,
        training,
        compat,
        checkpoint_every,
        keep_checkpoints: (keep > 0).then_some(keep),
        log_lines,
        warnings: checker.warnings,
        effective: raw,
    })
}

/// What would change results and is not there.
fn refused(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<()> {
    let data = raw.data_args.get_or_insert_default();
    for (key, held) in
        [("data_args.lmdb_dirs", &mut data.lmdb_dirs), ("data_args.lmdb_dirs_val", &mut data.lmdb_dirs_val)]
    {
        if !held.get_or_insert_default().is_empty() {
            return checker.refuse(key, "names LMDB folders, which are not read; list the pictures in a CSV");
        }
    }
    checker.only(
        "precomputed_latent",
        &mut raw.precomputed_latent,
        false,
        "features are computed from pictures here",
    )?;
    checker.only(
        "using_webtar",
        &mut raw.using_webtar,
        false,
        "tar shards are not read; list the pictures in a CSV",
    )?;
    checker.only("using_csv", &mut raw.using_csv, true, "a CSV is all that is read")?;
    checker.only(
        "hflip",
        &mut raw.hflip,
        false,
        "each picture is tokenised once, so it cannot be mirrored at random",
    )?;
    checker.only("from_0", &mut raw.from_0, false, "a run resumes whole; start a new one instead")?;
    let optimizer = raw.opt.get_or_insert_with(|| "adamw".to_owned());
    if !["adam", "adamw"].contains(&optimizer.trim().to_lowercase().as_str()) {
        return checker.refuse("opt", format!("must be \"adamw\" or \"adam\", but is \"{optimizer}\""));
    }
    Ok(())
}

/// Where the networks are, and the type of their activations there.
fn device(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<(DeviceChoice, DType)> {
    let name = raw.device.get_or_insert_with(|| "cpu".to_owned()).clone();
    let device = match name.parse::<DeviceChoice>() {
        Ok(device) => device,
        Err(error) => return checker.refuse("device", error.to_string()),
    };
    let compute = match checker.integer("fp16", &mut raw.fp16, 2, 0, 2)? {
        0 => DType::F32,
        1 => DType::F16,
        _ => DType::Bf16,
    };
    Ok((device, compute))
}

/// What is accepted and changes nothing here; the default is the released value.
fn without_effect(checker: &mut Checker<'_>, raw: &mut RawConfig) -> Result<()> {
    let data = raw.data_args.get_or_insert_default();
    data.test_csv_path.get_or_insert_default();
    raw.precomputed_rootdir.get_or_insert_default();
    raw.data_path.get_or_insert_default();
    checker.number("reward_thre", &mut raw.reward_thre, 0.0, f64::MIN, f64::MAX)?;
    checker.integer("vfast", &mut raw.vfast, 0, 0, 3)?;
    checker.integer("tfast", &mut raw.tfast, 0, 0, 3)?;
    checker.number("mid_reso", &mut raw.mid_reso, 1.125, f64::MIN, f64::MAX)?;
    checker.integer("default_label", &mut raw.default_label, 1000, i64::MIN, i64::MAX)?;
    checker.number("cfg", &mut raw.cfg, 4.0, f64::MIN, f64::MAX)?;
    checker.integer("infer_bsz", &mut raw.infer_bsz, 16, 1, i64::MAX)?;
    match raw.instance_prompt.get_or_insert(Value::Null) {
        Value::Null | Value::String(_) => {}
        Value::Array(files) if files.iter().all(Value::is_string) => {}
        other => {
            let message = format!("must be a file or a list of files, but is {other}");
            return checker.refuse("instance_prompt", message);
        }
    }
    for held in
        [&mut raw.afuse, &mut raw.fuse, &mut raw.tf32, &mut raw.enable_discard, &mut raw.enable_discard_low]
    {
        held.get_or_insert(true);
    }
    raw.enable_discard_aesthetic.get_or_insert(true);
    raw.enable_fig_val.get_or_insert(true);
    raw.score_head_gelu.get_or_insert(false);
    Ok(())
}

fn compat(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<Compat> {
    match Compat::from_json(raw.compat.get_or_insert(Value::Null)) {
        Ok(compat) => {
            raw.compat = Some(compat.to_json());
            Ok(compat)
        }
        Err((key, message)) if key.is_empty() => checker.refuse("compat", message),
        Err((key, message)) => checker.refuse(&format!("compat.{key}"), message),
    }
}

fn networks(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<NetworksConfig> {
    let (patch_nums, patch_size) = image::pyramid(checker, raw)?;
    let warm_up = checker.path("warmupVAR", &mut raw.warmup_var)?;
    let pretrained = checker.path("pretrained_ckpt", &mut raw.pretrained_ckpt)?;
    if warm_up.is_some() && pretrained.is_some() && warm_up != pretrained {
        return checker
            .refuse("pretrained_ckpt", "names other weights than warmupVAR; leave one of them empty");
    }
    let initial_weights = warm_up.or(pretrained);
    let proxy_depth = checker.size("depth", &mut raw.depth, 30, 1, 128)?;
    let rater_depth = checker.size("raterDepth", &mut raw.rater_depth, 8, 1, 128)?;
    let width = |key: &str, held: &mut Option<i64>, depth: usize| {
        let head = HEAD_WIDTH as i64;
        let width = checker.size(key, held, head * depth as i64, head, 256 * head)?;
        if width % HEAD_WIDTH != 0 {
            return checker.refuse(key, format!("must be a multiple of {HEAD_WIDTH}, but is {width}"));
        }
        Ok(width)
    };
    let proxy_width = width("proxy_width", &mut raw.proxy_width, proxy_depth)?;
    let rater_width = width("rater_width", &mut raw.rater_width, rater_depth)?;
    let norm = checker.number("rope_norm", &mut raw.rope_norm, 64.0, 1e-6, 1e6)?;
    let theta = checker.number("rope_theta", &mut raw.rope_theta, 10_000.0, 1.0, 1e12)?;
    let initialisation = Initialisation {
        std: checker.number("ini", &mut raw.ini, -1.0, -1.0, 10.0)?,
        head: checker.number("hd", &mut raw.hd, 0.02, 0.0, 100.0)?,
        aln: checker.number("aln", &mut raw.aln, 0.5, 0.0, 100.0)?,
        aln_gamma: checker.number("alng", &mut raw.alng, 5e-5, 0.0, 100.0)?,
    };
    Ok(NetworksConfig {
        patch_nums,
        patch_size,
        proxy_depth,
        proxy_width,
        rater_depth,
        rater_width,
        attention_l2_norm: Checker::flag(&mut raw.anorm, true),
        rope: Checker::flag(&mut raw.rope_emb, true).then_some(Rope { theta, norm }),
        level_embedding: Checker::flag(&mut raw.lvl_emb, true),
        logit_norm: Checker::flag(&mut raw.logit_norm, true),
        shared_aln: Checker::flag(&mut raw.saln, false),
        cross_attention: Checker::flag(&mut raw.enable_cross, true),
        zero_cross_attention: !Checker::flag(&mut raw.from_scratch, true),
        initial_weights,
        initialisation,
    })
}

fn data(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<DataConfig> {
    let held = raw.data_args.get_or_insert_default();
    let train = checker.path("data_args.train_csv_path", &mut held.train_csv_path)?;
    let validation = checker.path("data_args.val_csv_path", &mut held.val_csv_path)?;
    let cogvlm = Checker::flag(&mut held.cogvlm, false);
    let random = checker.share("data_args.random_portion_train", held.random_portion_train, 1.0)?;
    let first = checker.share("data_args.rank_portion_train", held.rank_portion_train, 1.0)?;
    let portion = match (random, first) {
        (Some(_), Some(_)) => {
            return checker.refuse(
                "data_args.rank_portion_train",
                "contradicts random_portion_train; give one of the two",
            );
        }
        (Some(share), None) => Portion::Random(share),
        (None, Some(share)) => Portion::First(share),
        (None, None) => Portion::All,
    };
    let columns = raw.columns.get_or_insert_default();
    let caption = if cogvlm { "cogvlm_caption" } else { "caption" };
    let named = |key: &str, held: &mut Option<String>, default: &str| {
        let name = held.get_or_insert_with(|| default.to_owned());
        if name.is_empty() { checker.refuse(key, "must not be empty") } else { Ok(name.clone()) }
    };
    Ok(DataConfig {
        train,
        validation,
        validation_portion: checker.share("validation_portion", raw.validation_portion, 0.9)?,
        portion,
        id_column: named("columns.id", &mut columns.id, "id")?,
        image_column: named("columns.image", &mut columns.image, "image_save_path")?,
        caption_column: named("columns.caption", &mut columns.caption, caption)?,
        skip_bad_rows: Checker::flag(&mut raw.skip_bad_rows, false),
        workers: checker.size("workers", &mut raw.workers, 3, 0, 1024)?.max(1),
        max_pixels: checker
            .integer("max_pixels", &mut raw.max_pixels, 89_478_485, 1, 1 << 40)?
            .unsigned_abs(),
        truncated_images: Checker::flag(&mut raw.truncated_images, false),
        token_cache: checker.path("token_cache", &mut raw.token_cache)?,
    })
}

/// Progressive training, if there is any.
fn progressive(checker: &Checker<'_>, raw: &mut RawConfig, epochs: i64) -> Result<Option<Progressive>> {
    let share = checker.number("pg", &mut raw.pg, 0.0, 0.0, 0.99)?;
    let first = checker.size("pg0", &mut raw.pg0, 4, 0, 64)?;
    let warm_up_epochs = checker.number("pgwp", &mut raw.pgwp, 0.0, 0.0, f64::MAX)?;
    let warm_up_epochs = if warm_up_epochs == 0.0 { epochs as f64 / 300.0 } else { warm_up_epochs };
    Ok((share > 0.0).then_some(Progressive { share, first, warm_up_epochs }))
}

fn training(
    checker: &Checker<'_>,
    raw: &mut RawConfig,
    compat: Compat,
) -> Result<(TrainingConfig, Option<u64>)> {
    let epochs = checker.integer("ep", &mut raw.ep, 10, 1, 1_000_000)?;
    let accumulation = checker.size("ac", &mut raw.ac, 1, 1, 65_536)?;
    let update = checker.size("bs", &mut raw.bs, 64, 1, 1 << 20)?;
    // Python's `round`, as in the released code.
    let batch = (update as f64 / accumulation as f64).round_ties_even() as usize;
    if batch == 0 {
        return checker
            .refuse("ac", format!("splits {update} samples into {accumulation} batches; give fewer"));
    }
    for (key, held) in [("batch_size", &mut raw.batch_size), ("glb_batch_size", &mut raw.glb_batch_size)] {
        let given = held.replace(batch as i64).unwrap_or(0);
        if given != 0 && given != batch as i64 {
            let message = format!("is {given}, but bs and ac make batches of {batch}; set it to 0");
            return checker.refuse(key, message);
        }
    }
    let base = checker.number("tblr", &mut raw.tblr, 1e-4, 0.0, 10.0)?;
    let default_rate = accumulation as f64 * base * batch as f64 / 5120.0;
    let learning_rate = checker.number("tlr", &mut raw.tlr, default_rate, 0.0, 10.0)?;
    let weight_decay = checker.number("twd", &mut raw.twd, 0.05, 0.0, 10.0)?;
    if raw.twde == Some(0.0) {
        raw.twde = None;
    }
    let weight_decay_end = checker.number("twde", &mut raw.twde, weight_decay, 0.0, 10.0)?;
    if raw.wp == Some(0.0) {
        raw.wp = None;
    }
    let warmup_epochs = checker.number("wp", &mut raw.wp, epochs as f64 / 50.0, 0.0, epochs as f64)?;
    let progressive = progressive(checker, raw, epochs)?;
    let drop_scale_length = match raw.drop_scale_length {
        Some(_) if progressive.is_some() => {
            return checker.refuse("drop_scale_length", "contradicts pg; give one of the two");
        }
        Some(_) => Some(checker.size("drop_scale_length", &mut raw.drop_scale_length, 1, 1, 1 << 24)?),
        None => None,
    };
    let name = match progressive {
        // Released: the learning rate stays at its peak until all scales are trained.
        Some(Progressive { share, .. }) => raw.sche.insert(format!("lin{share}")).clone(),
        None => raw.sche.get_or_insert_with(|| "lin0".to_owned()).clone(),
    };
    let schedule = name.parse::<ScheduleShape>().map_err(|message| checker.source.refuse("sche", message))?;
    let least_end = if schedule == ScheduleShape::Exponential { 1e-12 } else { 0.0 };
    let clip = checker.number("tclip", &mut raw.tclip, 2.0, 0.0, 1e9)?;
    let val_it = checker.integer("val_it", &mut raw.val_it, 10_000, 1, i64::MAX)?;
    let every = raw.checkpoint_every;
    if let Some(every) = every
        && every < 1
    {
        let message = format!("must be 1 or more, or null for `val_it`, but is {every}");
        return checker.refuse("checkpoint_every", message);
    }
    let every = every.unwrap_or((val_it / accumulation as i64).max(1)).unsigned_abs();
    let rule = rule::check(checker, raw, compat)?;
    let training = TrainingConfig {
        epochs: epochs.unsigned_abs(),
        batch,
        accumulation,
        schedule,
        learning_rate,
        warmup_epochs,
        warmup_start: checker.number("wp0", &mut raw.wp0, 0.005, 0.0, 1.0)?,
        end: checker.number("wpe", &mut raw.wpe, 0.01, least_end, 1.0)?,
        weight_decay,
        weight_decay_end,
        clip: (clip > 0.0).then_some(clip),
        label_smoothing: checker.number("ls", &mut raw.ls, 0.0, 0.0, 0.99)?,
        progressive,
        drop_scale_length,
        upper_level_weight: checker.number("upperlevel_weight", &mut raw.upperlevel_weight, 1.0, 0.0, 1.0)?,
        upper_level_weight_decay: checker.number(
            "upperlevel_weight_decay",
            &mut raw.upperlevel_weight_decay,
            0.03,
            0.0,
            1.0,
        )?,
        caption_drop: checker.number(
            "classifier_free_training_prob",
            &mut raw.classifier_free_training_prob,
            0.1,
            0.0,
            1.0,
        )?,
        rater_temperature: checker.number(
            "rater_temperature",
            &mut raw.rater_temperature,
            10.0,
            1e-6,
            1e6,
        )?,
        rater_regularisation: Checker::flag(&mut raw.rater_reg, false),
        freeze_proxy: Checker::flag(&mut raw.fix_var, false),
        sampler_seed: checker
            .integer("same_seed_for_all_ranks", &mut raw.same_seed_for_all_ranks, 0, 0, i64::from(u32::MAX))?
            .unsigned_abs(),
        rule: rule.settings,
        proxy_warmup_epochs: rule.proxy_warmup_epochs,
        average_from_epoch: rule.average_from_epoch,
        rater_only_epochs: rule.rater_only_epochs,
        record_every: rule.record_every,
        record_norms: rule.record_norms,
    };
    Ok((training, Some(every)))
}
