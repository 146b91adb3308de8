//! The token pyramid and the image tokenizer: upstream keys and this project's own must agree.

use super::{Checker, ConfigKey, KEY, RawConfig};
use crate::{
    config::{ImageTokenizerConfig, ImageTokenizerKind},
    error::Result,
};

/// The released pyramid for 256 pixels.
const RELEASED_PYRAMID: &str = "1_2_3_4_5_6_8_10_13_16";

/// The largest side of an image.
const MOST_PIXELS: i64 = 4096;

/// `patch_nums` and `patch_size`; checks that `pn`, `resos` and `data_load_reso` agree with them.
pub(super) fn pyramid(checker: &Checker<'_>, raw: &mut RawConfig) -> Result<(Vec<usize>, usize)> {
    let patch_size = checker.size(raw, &KEY.patch_size)?;
    let from_pn = raw.pn.as_deref().map(|pn| parse_pn(checker, pn)).transpose()?;
    let sides = match (from_pn, raw.patch_nums.take()) {
        (Some(from_pn), Some(listed)) if from_pn != listed => {
            let message = format!(
                "{listed:?} contradicts `pn` \"{}\", which is {from_pn:?}; set only one of them",
                raw.pn.as_deref().unwrap_or_default()
            );
            return checker.refuse(&KEY.patch_nums, message);
        }
        (_, Some(listed)) => listed,
        (Some(from_pn), None) => from_pn,
        (None, None) => parse_pn(checker, RELEASED_PYRAMID)?,
    };
    let key: &ConfigKey = if raw.pn.is_some() { &KEY.pn } else { &KEY.patch_nums };
    let (side_range, lengths) = KEY.patch_nums.items();
    if !lengths.contains(&sides.len()) {
        let (least, most) = lengths.into_inner();
        let message = format!("must have between {least} and {most} scales, but has {}", sides.len());
        return checker.refuse(key, message);
    }
    let (least, most) = side_range.into_inner();
    if sides[0] < least || sides.windows(2).any(|pair| pair[0] >= pair[1]) {
        let message = format!("must start at {least} or more and grow from scale to scale, but is {sides:?}");
        return checker.refuse(key, message);
    }
    let last = sides[sides.len() - 1];
    let side = last.saturating_mul(patch_size as i64);
    if last > most || side > MOST_PIXELS {
        let message = format!(
            "gives an image side of {side} pixels and {last} patches; at most {MOST_PIXELS} and {most} are allowed"
        );
        return checker.refuse(key, message);
    }
    let resos: Vec<i64> = sides.iter().map(|side| side * patch_size as i64).collect();
    if let Some(given) = raw.resos.replace(resos.clone())
        && given != resos
    {
        let message = format!("{given:?} does not fit: patch_nums · patch_size is {resos:?}; set it to null");
        return checker.refuse(&KEY.resos, message);
    }
    if let Some(given) = raw.data_load_reso.replace(side)
        && given != side
    {
        let message = format!(
            "{given} does not fit: the pyramid ends at {last} patches of {patch_size} pixels, so the side is {side}; \
             change patch_nums or patch_size, or set this to null"
        );
        return checker.refuse(&KEY.data_load_reso, message);
    }
    raw.pn = Some(sides.iter().map(i64::to_string).collect::<Vec<_>>().join("_"));
    raw.patch_nums = Some(sides.clone());
    Ok((sides.into_iter().map(|side| side.unsigned_abs() as usize).collect(), patch_size))
}

fn parse_pn(checker: &Checker<'_>, pn: &str) -> Result<Vec<i64>> {
    let spelled = match pn {
        "256" => RELEASED_PYRAMID,
        "512" => "1_2_3_4_6_9_13_18_24_32",
        "1024" => "1_2_3_4_5_7_9_12_16_21_27_36_48_64",
        other => other,
    };
    let sides: Result<Vec<i64>, _> =
        spelled.replace('-', "_").split('_').map(|side| side.trim().parse()).collect();
    sides.or_else(|_| {
        let message = format!(
            "must be integers separated by _ (such as 1_2_3_4), or 256, 512 or 1024, but is \"{pn}\""
        );
        checker.refuse(&KEY.pn, message)
    })
}

pub(super) fn tokenizer(
    checker: &Checker<'_>,
    raw: &mut RawConfig,
    patch_size: usize,
) -> Result<ImageTokenizerConfig> {
    let keys = &KEY.image_tokenizer;
    let released = checker.path(raw, &KEY.ckpt_path)?;
    let mut path = checker.path(raw, &keys.path)?;
    if let Some(released) = released {
        if path.as_ref().is_some_and(|path| *path != released) {
            return checker.refuse(&KEY.ckpt_path, "contradicts image_tokenizer.path; set only one of them");
        }
        keys.kind.of(raw).get_or_insert_with(|| "vqvae".to_owned());
        *keys.path.of(raw) = raw.ckpt_path.clone();
        path = Some(released);
    }
    let kind = match keys.kind.of(raw).get_or_insert_with(|| "pca".to_owned()).clone().as_str() {
        "pca" if raw.ckpt_path.as_deref() != Some("") => {
            return checker
                .refuse(&KEY.ckpt_path, "gives VQ-VAE weights, but image_tokenizer.kind is \"pca\"");
        }
        "pca" => ImageTokenizerKind::Pca,
        "vqvae" if path.is_none() => {
            return checker.refuse(
                &keys.path,
                "is empty, but the kind \"vqvae\" needs weights, such as vae_ch160v4096z32.pth",
            );
        }
        "vqvae" => ImageTokenizerKind::VqVae,
        other => return checker.unlisted(&keys.kind, other),
    };
    let most = (3 * patch_size * patch_size) as i64;
    keys.components.of(raw).get_or_insert(32.min(most));
    Ok(ImageTokenizerConfig {
        kind,
        components: checker.size_in(raw, &keys.components, keys.components.up_to(most))?,
        codes: checker.size(raw, &keys.codes)?,
        fit_images: checker.size(raw, &keys.fit_images)?,
        path,
    })
}
