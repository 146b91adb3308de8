//! The text encoder: our own keys and the released ones, which must agree.

use super::{Checker, RawConfig};
use crate::{
    config::{TextEncoderConfig, TextEncoderKind},
    encode::pretrained::{Kind, T5_TOKENS},
    error::Result,
};

/// The name of the embedded encoder.
const HASHED_WORDS: &str = "hashed_words";

/// Checks `text_encoder`, `text_enc` and `text_enc_path`. The effective configuration says everything by `text_encoder`,
/// so that one key moves the folder later.
pub(super) fn check(checker: &mut Checker<'_>, raw: &mut RawConfig) -> Result<TextEncoderConfig> {
    let released_path = checker.path("text_enc_path", &mut raw.text_enc_path)?;
    if released_path.is_some() {
        // As in the released code.
        raw.text_enc.get_or_insert_with(|| Kind::Clip.name().to_owned());
    }
    let released = match raw.text_enc.as_deref() {
        None => None,
        Some(name) => match Kind::named(name) {
            Some(kind) => Some(kind),
            None => {
                return checker.refuse("text_enc", format!("must be \"clip\" or \"t5\", but is \"{name}\""));
            }
        },
    };
    let held = raw.text_encoder.get_or_insert_default();
    if let Some(path) = &released_path {
        let own = checker.path("text_encoder.path", &mut held.path)?;
        if let Some(own) = own.filter(|own| own != path) {
            let (own, path) = (own.display(), path.display());
            let message = format!("{own} contradicts `text_enc_path`, {path}; give one of the two");
            return checker.refuse("text_encoder.path", message);
        }
        held.path = raw.text_enc_path.take();
    }
    raw.text_enc_path = Some(String::new());
    let path = checker.path("text_encoder.path", &mut held.path)?;
    let implied = released.filter(|_| path.is_some()).map_or(HASHED_WORDS, Kind::name);
    let name = held.kind.get_or_insert_with(|| implied.to_owned()).clone();
    let kind = Kind::named(&name);
    if kind.is_none() && name != HASHED_WORDS {
        let message = format!("must be \"{HASHED_WORDS}\", \"clip\" or \"t5\", but is \"{name}\"");
        return checker.refuse("text_encoder.kind", message);
    }
    if let Some(released) = released
        && kind != Some(released)
        && (kind.is_some() || released_path.is_some())
    {
        let message =
            format!("\"{name}\" contradicts `text_enc`, \"{}\"; give one of the two", released.name());
        return checker.refuse("text_encoder.kind", message);
    }
    let Some(kind) = kind else {
        if let Some(released) = released {
            checker.warnings.push(format!(
                "text_enc: without the folder of {} (text_enc_path or text_encoder.path), captions are encoded by hashed \
                 words",
                released.name()
            ));
        }
        let kind = TextEncoderKind::HashedWords {
            tokens: checker.size("text_encoder.tokens", &mut held.tokens, 77, 1, 4096)?,
            channels: checker.size("text_encoder.channels", &mut held.channels, 1024, 1, 16_384)?,
        };
        return Ok(TextEncoderConfig { kind, path });
    };
    if path.is_none() {
        let message = format!("is \"{name}\", which needs the folder of that encoder in text_encoder.path");
        return checker.refuse("text_encoder.kind", message);
    }
    if kind == Kind::T5 {
        held.tokens.get_or_insert(T5_TOKENS as i64);
    }
    let given = |key: &str, held: &mut Option<i64>, least: i64, most: i64| {
        held.is_some().then(|| checker.size(key, held, 0, least, most)).transpose()
    };
    let tokens = given("text_encoder.tokens", &mut held.tokens, 2, 4096)?;
    let channels = given("text_encoder.channels", &mut held.channels, 1, 16_384)?;
    Ok(TextEncoderConfig { kind: TextEncoderKind::Pretrained { kind, tokens, channels }, path })
}
