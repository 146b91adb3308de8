//! Converts raw values to checked ones: defaults (mostly the released ones), ranges, and refused values.

mod image;
mod rule;
mod text;

use std::{ops::RangeInclusive, path::PathBuf};

use serde_json::Value;

use super::{
    Compat, Config, CrossfitConfig, DataConfig, HEAD_WIDTH, NetworksConfig, Portion, Progressive,
    ScheduleShape, TrainingConfig,
    keys::{ConfigKey, Field, Flag, KEY, Number, Ranged, RawConfig, Text},
    source::Source,
};
use crate::{
    data::corpus::CorpusFormat,
    engine::{DType, cuda::DeviceChoice},
    error::{Error, Result},
    models::{Initialization, Rope},
};

/// Gives each key its value or default, writes it back, so that the effective configuration is complete, and checks
/// its range. Defaults and ranges come from the table of keys, unless they depend on other keys.
struct Checker<'a> {
    source: &'a Source,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn refuse<T>(&self, key: &ConfigKey, message: impl Into<String>) -> Result<T> {
        Err(self.source.refuse(key.name, message))
    }

    /// The value of a key within the range of the table. A default that depends on other keys must already be in
    /// `raw`.
    fn value<T: Ranged>(&self, raw: &mut RawConfig, field: &Field<T>) -> Result<T> {
        self.value_in(raw, field, field.range())
    }

    /// The value of a key within a range that depends on other keys.
    fn value_in<T: Ranged>(
        &self,
        raw: &mut RawConfig,
        field: &Field<T>,
        range: RangeInclusive<T>,
    ) -> Result<T> {
        let Some(value) = *field.filled(raw) else {
            return self.refuse(field, "has neither a value nor a default");
        };
        if range.contains(&value) {
            return Ok(value);
        }
        let (least, most) = range.into_inner();
        self.refuse(field, format!("must be between {least} and {most}, but is {value}"))
    }

    fn size(&self, raw: &mut RawConfig, field: &Field<i64>) -> Result<usize> {
        self.size_in(raw, field, field.range())
    }

    fn size_in(&self, raw: &mut RawConfig, field: &Field<i64>, range: RangeInclusive<i64>) -> Result<usize> {
        let value = self.value_in(raw, field, range)?;
        usize::try_from(value)
            .or_else(|_| self.refuse(field, format!("must not be negative, but is {value}")))
    }

    /// A share above the smallest value, or none.
    fn share(&self, raw: &mut RawConfig, field: &Field<Number>) -> Result<Option<f64>> {
        let (least, most) = field.range().into_inner();
        match *field.of(raw) {
            Some(value) if !(value > least && value <= most) => {
                self.refuse(field, format!("must be above {least} and at most {most}, but is {value}"))
            }
            other => Ok(other),
        }
    }

    fn flag(raw: &mut RawConfig, field: &Field<Flag>) -> bool {
        field.filled(raw).unwrap_or_default()
    }

    /// A switch that accepts only one value.
    fn only(&self, raw: &mut RawConfig, field: &Field<Flag>, reason: &str) -> Result<()> {
        let value = Self::flag(raw, field);
        if field.listed().contains(&value) {
            Ok(())
        } else {
            self.refuse(field, format!("is {value}, but {reason}"))
        }
    }

    fn text(raw: &mut RawConfig, field: &Field<Text>) -> String {
        field.filled(raw).clone().unwrap_or_default()
    }

    /// Refuses a name that the table does not list.
    fn unlisted<T>(&self, field: &Field<Text>, name: &str) -> Result<T> {
        let listed: Vec<String> = field.listed().iter().map(|listed| format!("\"{listed}\"")).collect();
        let listed = match listed.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        };
        self.refuse(field, format!("must be {listed}, but is \"{name}\""))
    }

    /// A path that may be empty; made absolute, so that a run can be resumed from another directory.
    fn path(&self, raw: &mut RawConfig, field: &Field<Text>) -> Result<Option<PathBuf>> {
        let text = field.filled(raw).get_or_insert_default();
        if text.is_empty() {
            return Ok(None);
        }
        let path = std::path::absolute(&*text).map_err(Error::io("resolve", &*text))?;
        match path.to_str() {
            Some(absolute) => absolute.clone_into(text),
            None => return self.refuse(field, "is not UTF-8"),
        }
        Ok(Some(path))
    }
}

/// Checks all keys.
pub(super) fn check(source: Source) -> Result<Config> {
    let mut raw = source.raw.clone();
    let mut checker = Checker { source: &source, warnings: Vec::new() };
    refused(&checker, &mut raw)?;
    without_effect(&mut checker, &mut raw)?;
    let compat = compat(&checker, &mut raw)?;
    let seed = checker.value(&mut raw, &KEY.seed)?.unsigned_abs();
    let networks = networks(&checker, &mut raw)?;
    let image_tokenizer = image::tokenizer(&checker, &mut raw, networks.patch_size)?;
    let text_encoder = text::check(&mut checker, &mut raw)?;
    let data = data(&checker, &mut raw)?;
    let (training, checkpoint_every) = training(&checker, &mut raw, compat)?;
    let crossfit = CrossfitConfig {
        folds: checker.size(&mut raw, &KEY.crossfit.folds)?,
        epochs: checker.value(&mut raw, &KEY.crossfit.epochs)?.unsigned_abs(),
        patience: checker.value(&mut raw, &KEY.crossfit.patience)?.unsigned_abs(),
        captions: checker.size(&mut raw, &KEY.crossfit.captions)?,
    };
    let keep = checker.size(&mut raw, &KEY.keep_checkpoints)?;
    let log_lines = checker.value(&mut raw, &KEY.print_every)?.unsigned_abs();
    let (device, compute) = device(&checker, &mut raw)?;
    let out = checker.path(&mut raw, &KEY.local_out_dir_path)?;
    Ok(Config {
        seed,
        device,
        compute,
        recompute: Checker::flag(&mut raw, &KEY.recompute),
        cuda_graph: Checker::flag(&mut raw, &KEY.cuda_graph),
        experiment: Checker::text(&mut raw, &KEY.exp_name),
        out,
        data,
        image_tokenizer,
        text_encoder,
        networks,
        training,
        crossfit,
        compat,
        checkpoint_every,
        keep_checkpoints: (keep > 0).then_some(keep),
        log_lines,
        warnings: checker.warnings,
        effective: raw,
    })
}

/// Keys that would change results and are not supported.
fn refused(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<()> {
    for field in [&KEY.data_args.lmdb_dirs, &KEY.data_args.lmdb_dirs_val] {
        if field.filled(raw).as_ref().is_some_and(|folders| !folders.is_empty()) {
            return checker.refuse(field, "LMDB is not supported; list the images in a CSV");
        }
    }
    checker.only(raw, &KEY.precomputed_latent, "precomputed features are not supported")?;
    checker.only(raw, &KEY.using_webtar, "tar shards are not supported; list the images in a CSV")?;
    checker.only(raw, &KEY.using_csv, "only a CSV is supported")?;
    checker.only(raw, &KEY.hflip, "each image is tokenized once, so random mirroring is not supported")?;
    checker.only(raw, &KEY.from_0, "a run resumes completely; start a new one instead")?;
    let optimizer = Checker::text(raw, &KEY.opt);
    if !KEY.opt.listed().contains(&optimizer.trim().to_lowercase().as_str()) {
        return checker.unlisted(&KEY.opt, &optimizer);
    }
    Ok(())
}

/// The device of the networks, and the dtype of their activations on it.
fn device(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<(DeviceChoice, DType)> {
    let device = match Checker::text(raw, &KEY.device).parse::<DeviceChoice>() {
        Ok(device) => device,
        Err(error) => return checker.refuse(&KEY.device, error.to_string()),
    };
    let compute = match checker.value(raw, &KEY.fp16)? {
        0 => DType::F32,
        1 => DType::F16,
        _ => DType::Bf16,
    };
    Ok((device, compute))
}

/// Keys that are accepted without effect; they default to the released values.
fn without_effect(checker: &mut Checker<'_>, raw: &mut RawConfig) -> Result<()> {
    // The key is for editors and relative to the file, so a copy in another folder would point to a missing file.
    raw.schema = None;
    for field in [&KEY.data_args.test_csv_path, &KEY.precomputed_rootdir, &KEY.data_path] {
        field.filled(raw);
    }
    checker.value(raw, &KEY.reward_thre)?;
    checker.value(raw, &KEY.vfast)?;
    checker.value(raw, &KEY.tfast)?;
    checker.value(raw, &KEY.mid_reso)?;
    checker.value(raw, &KEY.default_label)?;
    checker.value(raw, &KEY.cfg)?;
    checker.value(raw, &KEY.infer_bsz)?;
    match raw.instance_prompt.get_or_insert(Value::Null) {
        Value::Null | Value::String(_) => {}
        Value::Array(files) if files.iter().all(Value::is_string) => {}
        other => {
            let message = format!("must be a file or a list of files, but is {other}");
            return checker.refuse(&KEY.instance_prompt, message);
        }
    }
    for field in [
        &KEY.afuse,
        &KEY.fuse,
        &KEY.tf32,
        &KEY.enable_discard,
        &KEY.enable_discard_low,
        &KEY.enable_discard_aesthetic,
        &KEY.enable_fig_val,
        &KEY.score_head_gelu,
    ] {
        field.filled(raw);
    }
    Ok(())
}

fn compat(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<Compat> {
    match Compat::from_json(KEY.compat.filled(raw).get_or_insert_default()) {
        Ok(compat) => {
            raw.compat = Some(compat.to_json());
            Ok(compat)
        }
        Err((key, message)) if key.is_empty() => checker.refuse(&KEY.compat, message),
        Err((key, message)) => Err(checker.source.refuse(&format!("{}.{key}", KEY.compat.name), message)),
    }
}

fn networks(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<NetworksConfig> {
    let (patch_nums, patch_size) = image::pyramid(checker, raw)?;
    let warm_up = checker.path(raw, &KEY.warmup_var)?;
    let pretrained = checker.path(raw, &KEY.pretrained_ckpt)?;
    if warm_up.is_some() && pretrained.is_some() && warm_up != pretrained {
        return checker.refuse(&KEY.pretrained_ckpt, "contradicts warmupVAR; set only one of them");
    }
    let initial_weights = warm_up.or(pretrained);
    let proxy_depth = checker.size(raw, &KEY.depth)?;
    let rater_depth = checker.size(raw, &KEY.rater_depth)?;
    let width = |raw: &mut RawConfig, field: &Field<i64>, depth: usize| {
        field.of(raw).get_or_insert((HEAD_WIDTH * depth) as i64);
        let width = checker.size(raw, field)?;
        if width % HEAD_WIDTH != 0 {
            return checker.refuse(field, format!("must be a multiple of {HEAD_WIDTH}, but is {width}"));
        }
        Ok(width)
    };
    let proxy_width = width(raw, &KEY.proxy_width, proxy_depth)?;
    let rater_width = width(raw, &KEY.rater_width, rater_depth)?;
    let norm = checker.value(raw, &KEY.rope_norm)?;
    let theta = checker.value(raw, &KEY.rope_theta)?;
    let initialization = Initialization {
        std: checker.value(raw, &KEY.ini)?,
        head: checker.value(raw, &KEY.hd)?,
        aln: checker.value(raw, &KEY.aln)?,
        aln_gamma: checker.value(raw, &KEY.alng)?,
    };
    Ok(NetworksConfig {
        patch_nums,
        patch_size,
        proxy_depth,
        proxy_width,
        rater_depth,
        rater_width,
        attention_l2_norm: Checker::flag(raw, &KEY.anorm),
        rope: Checker::flag(raw, &KEY.rope_emb).then_some(Rope { theta, norm }),
        level_embedding: Checker::flag(raw, &KEY.lvl_emb),
        logit_norm: Checker::flag(raw, &KEY.logit_norm),
        shared_aln: Checker::flag(raw, &KEY.saln),
        cross_attention: Checker::flag(raw, &KEY.enable_cross),
        zero_cross_attention: !Checker::flag(raw, &KEY.from_scratch),
        initial_weights,
        initialization,
    })
}

fn data(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<DataConfig> {
    let train = checker.path(raw, &KEY.data_args.train_csv_path)?;
    let validation = checker.path(raw, &KEY.data_args.val_csv_path)?;
    let cogvlm = Checker::flag(raw, &KEY.data_args.cogvlm);
    let random = checker.share(raw, &KEY.data_args.random_portion_train)?;
    let first = checker.share(raw, &KEY.data_args.rank_portion_train)?;
    let portion = match (random, first) {
        (Some(_), Some(_)) => {
            return checker.refuse(
                &KEY.data_args.rank_portion_train,
                "contradicts random_portion_train; set only one of them",
            );
        }
        (Some(share), None) => Portion::Random(share),
        (None, Some(share)) => Portion::First(share),
        (None, None) => Portion::All,
    };
    let caption = if cogvlm { "cogvlm_caption" } else { "caption" };
    KEY.columns.caption.of(raw).get_or_insert_with(|| caption.to_owned());
    let named = |raw: &mut RawConfig, field: &Field<Text>| {
        let name = Checker::text(raw, field);
        if name.is_empty() { checker.refuse(field, "must not be empty") } else { Ok(name) }
    };
    let format = Checker::text(raw, &KEY.data_format);
    let format: Option<CorpusFormat> = match format.as_str() {
        "" => None,
        name => match name.parse() {
            Ok(format) => Some(format),
            Err(_) => return checker.unlisted(&KEY.data_format, name),
        },
    };
    let formats = [&train, &validation].into_iter().flatten().cloned().zip(format.into_iter().cycle());
    Ok(DataConfig {
        formats: formats.collect(),
        train,
        validation,
        validation_portion: checker.share(raw, &KEY.validation_portion)?,
        portion,
        id_column: named(raw, &KEY.columns.id)?,
        image_column: named(raw, &KEY.columns.image)?,
        caption_column: named(raw, &KEY.columns.caption)?,
        skip_bad_rows: Checker::flag(raw, &KEY.skip_bad_rows),
        workers: checker.size(raw, &KEY.workers)?.max(1),
        max_pixels: checker.value(raw, &KEY.max_pixels)?.unsigned_abs(),
        truncated_images: Checker::flag(raw, &KEY.truncated_images),
        token_cache: checker.path(raw, &KEY.token_cache)?,
    })
}

/// The progressive training settings, if enabled.
fn progressive(checker: &Checker<'_>, raw: &mut RawConfig, epochs: i64) -> Result<Option<Progressive>> {
    let share = checker.value(raw, &KEY.pg)?;
    let first = checker.size(raw, &KEY.pg0)?;
    let warm_up_epochs = checker.value(raw, &KEY.pgwp)?;
    let warm_up_epochs = if warm_up_epochs == 0.0 { epochs as f64 / 300.0 } else { warm_up_epochs };
    Ok((share > 0.0).then_some(Progressive { share, first, warm_up_epochs }))
}

fn training(
    checker: &Checker<'_>,
    raw: &mut RawConfig,
    compat: Compat,
) -> Result<(TrainingConfig, Option<u64>)> {
    let epochs = checker.value(raw, &KEY.ep)?;
    let accumulation = checker.size(raw, &KEY.ac)?;
    let update = checker.size(raw, &KEY.bs)?;
    // Python's `round`, as upstream.
    let batch = (update as f64 / accumulation as f64).round_ties_even() as usize;
    if batch == 0 {
        return checker.refuse(
            &KEY.ac,
            format!("splits {update} samples into {accumulation} batches; lower ac or raise bs"),
        );
    }
    for field in [&KEY.batch_size, &KEY.glb_batch_size] {
        let given = field.of(raw).replace(batch as i64).unwrap_or(0);
        if given != 0 && given != batch as i64 {
            let message = format!("is {given}, but bs and ac make batches of {batch}; set it to 0");
            return checker.refuse(field, message);
        }
    }
    let base = checker.value(raw, &KEY.tblr)?;
    let default_rate = accumulation as f64 * base * batch as f64 / 5120.0;
    raw.tlr.get_or_insert(default_rate);
    let learning_rate = checker.value(raw, &KEY.tlr)?;
    let weight_decay = checker.value(raw, &KEY.twd)?;
    if raw.twde == Some(0.0) {
        raw.twde = None;
    }
    raw.twde.get_or_insert(weight_decay);
    let weight_decay_end = checker.value(raw, &KEY.twde)?;
    if raw.wp == Some(0.0) {
        raw.wp = None;
    }
    raw.wp.get_or_insert(epochs as f64 / 50.0);
    let warmup_epochs = checker.value_in(raw, &KEY.wp, KEY.wp.up_to(epochs as f64))?;
    let progressive = progressive(checker, raw, epochs)?;
    let drop_scale_length = match raw.drop_scale_length {
        Some(_) if progressive.is_some() => {
            return checker.refuse(&KEY.drop_scale_length, "contradicts pg; set only one of them");
        }
        Some(_) => Some(checker.size(raw, &KEY.drop_scale_length)?),
        None => None,
    };
    let name = match progressive {
        // Upstream: the learning rate stays at its peak until all scales are trained.
        Some(Progressive { share, .. }) => raw.sche.insert(format!("lin{share}")).clone(),
        None => Checker::text(raw, &KEY.sche),
    };
    let schedule =
        name.parse::<ScheduleShape>().map_err(|message| checker.source.refuse(KEY.sche.name, message))?;
    let ends = if schedule == ScheduleShape::Exponential { KEY.wpe.from(1e-12) } else { KEY.wpe.range() };
    let clip = checker.value(raw, &KEY.tclip)?;
    let val_it = checker.value(raw, &KEY.val_it)?;
    let every = raw.checkpoint_every;
    if let Some(every) = every
        && !KEY.checkpoint_every.range().contains(&every)
    {
        let message = format!("must be 1 or more, or null for `val_it`, but is {every}");
        return checker.refuse(&KEY.checkpoint_every, message);
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
        warmup_start: checker.value(raw, &KEY.wp0)?,
        end: checker.value_in(raw, &KEY.wpe, ends)?,
        weight_decay,
        weight_decay_end,
        clip: (clip > 0.0).then_some(clip),
        label_smoothing: checker.value(raw, &KEY.ls)?,
        progressive,
        drop_scale_length,
        upper_level_weight: checker.value(raw, &KEY.upperlevel_weight)?,
        upper_level_weight_decay: checker.value(raw, &KEY.upperlevel_weight_decay)?,
        caption_drop: checker.value(raw, &KEY.classifier_free_training_prob)?,
        rater_temperature: checker.value(raw, &KEY.rater_temperature)?,
        rater_regularization: Checker::flag(raw, &KEY.rater_reg),
        freeze_proxy: Checker::flag(raw, &KEY.fix_var),
        sampler_seed: checker.value(raw, &KEY.same_seed_for_all_ranks)?.unsigned_abs(),
        rule: rule.settings,
        proxy_warmup_epochs: rule.proxy_warmup_epochs,
        average_from_epoch: rule.average_from_epoch,
        rater_only_epochs: rule.rater_only_epochs,
        record_every: rule.record_every,
        record_norms: rule.record_norms,
    };
    Ok((training, Some(every)))
}
