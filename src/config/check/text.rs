//! The text encoder: this project's keys and the upstream ones, which must agree.

use super::{Checker, Field, KEY, RawConfig};
use crate::{
    config::{TextEncoderConfig, TextEncoderKind},
    encode::pretrained::{EncoderKind, T5_TOKENS},
    error::Result,
};

/// The name of the embedded encoder.
const HASHED_WORDS: &str = "hashed_words";

/// Checks `text_encoder`, `text_enc` and `text_enc_path`. The effective configuration uses `text_encoder` alone, so
/// that one key changes the folder later.
pub(super) fn check(checker: &mut Checker<'_>, raw: &mut RawConfig) -> Result<TextEncoderConfig> {
    let keys = &KEY.text_encoder;
    let released_path = checker.path(raw, &KEY.text_enc_path)?;
    if released_path.is_some() {
        // As in the released code.
        raw.text_enc.get_or_insert_with(|| EncoderKind::Clip.name().to_owned());
    }
    let released = match raw.text_enc.as_deref() {
        None => None,
        Some(name) => match EncoderKind::named(name) {
            Some(kind) => Some(kind),
            None => return checker.unlisted(&KEY.text_enc, name),
        },
    };
    if let Some(path) = &released_path {
        let own = checker.path(raw, &keys.path)?;
        if let Some(own) = own.filter(|own| own != path) {
            let (own, path) = (own.display(), path.display());
            let message = format!("{own} contradicts `text_enc_path`, {path}; set only one of them");
            return checker.refuse(&keys.path, message);
        }
        *keys.path.of(raw) = raw.text_enc_path.take();
    }
    raw.text_enc_path = Some(String::new());
    let path = checker.path(raw, &keys.path)?;
    let implied = released.filter(|_| path.is_some()).map_or(HASHED_WORDS, EncoderKind::name);
    let name = keys.kind.of(raw).get_or_insert_with(|| implied.to_owned()).clone();
    let kind = EncoderKind::named(&name);
    if kind.is_none() && name != HASHED_WORDS {
        return checker.unlisted(&keys.kind, &name);
    }
    if let Some(released) = released
        && kind != Some(released)
        && (kind.is_some() || released_path.is_some())
    {
        let message =
            format!("\"{name}\" contradicts `text_enc`, \"{}\"; set only one of them", released.name());
        return checker.refuse(&keys.kind, message);
    }
    let Some(kind) = kind else {
        if let Some(released) = released {
            checker.warnings.push(format!(
                "text_enc: no folder for {} (text_enc_path or text_encoder.path), so captions are encoded by hashed \
                 words",
                released.name()
            ));
        }
        keys.tokens.of(raw).get_or_insert(77);
        keys.channels.of(raw).get_or_insert(1024);
        let kind = TextEncoderKind::HashedWords {
            tokens: checker.size(raw, &keys.tokens)?,
            channels: checker.size(raw, &keys.channels)?,
        };
        return Ok(TextEncoderConfig { kind, path });
    };
    if path.is_none() {
        let message = format!("is \"{name}\", which needs the encoder's folder; set text_encoder.path");
        return checker.refuse(&keys.kind, message);
    }
    if kind == EncoderKind::T5 {
        keys.tokens.of(raw).get_or_insert(T5_TOKENS as i64);
    }
    let mut given = |field: &Field<i64>, range| {
        field.of(raw).is_some().then(|| checker.size_in(raw, field, range)).transpose()
    };
    let tokens = given(&keys.tokens, keys.tokens.from(2))?;
    let channels = given(&keys.channels, keys.channels.range())?;
    Ok(TextEncoderConfig { kind: TextEncoderKind::Pretrained { kind, tokens, channels }, path })
}
