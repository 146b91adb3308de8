//! Saved tokenizers, with limits on how much their steps can expand a caption.
//!
//! A `tokenizer.json` is a small program: with a list of replacements, each of which doubles the text, a caption of a
//! few letters can exhaust memory. Therefore the size after each step is bounded before the step runs. Real tokenizers
//! expand text a few times at most.

use std::{cell::Cell, fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential,
    OffsetType, PostProcessorWrapper, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, TokenizerImpl,
    normalizers::replace::ReplacePattern, utils::SysRegex,
};

/// A tokenizer loaded from `tokenizer.json`, with limits.
pub(super) type SavedTokenizer =
    TokenizerImpl<ModelWrapper, Normalizing, PreTokenizing, PostProcessorWrapper, DecoderWrapper>;

/// Limits on the expanded text: this many times its length, plus a constant number of bytes.
const TIMES: usize = 64;
const MORE_BYTES: usize = 1 << 16;

/// Maximum number of ids that a post-processor may add to those of a caption.
const MAX_MARKS: usize = 64;

/// A caption's size limit, and how much of it is used.
#[derive(Clone, Copy)]
struct Room {
    limit: usize,
    used: usize,
    exceeded_by: Option<&'static str>,
}

thread_local! {
    /// The limit of the caption that this thread encodes. The tokenizers library drops a normalizer's errors, so they
    /// are recorded.
    static ROOM: Cell<Room> = const { Cell::new(Room { limit: MORE_BYTES, used: 0, exceeded_by: None }) };
}

/// Why a text cannot be encoded.
pub(super) enum Refusal {
    /// An error of the library.
    Library(tokenizers::Error),
    /// A step would have expanded the text beyond its limit.
    TooLong { step: &'static str, limit: usize },
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => error.fmt(formatter),
            Self::TooLong { step, limit } => write!(
                formatter,
                "its step {step} makes the text longer than {limit} bytes, {TIMES} times what it was and {MORE_BYTES} bytes; \
                 take the tokenizer's files from where the encoder came from"
            ),
        }
    }
}

/// Runs `work` on a text of this many bytes, within its size limit.
pub(super) fn within_room<T>(
    bytes: usize,
    encode: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T, Refusal> {
    let limit = bytes.saturating_mul(TIMES).saturating_add(MORE_BYTES);
    ROOM.set(Room { limit, used: 0, exceeded_by: None });
    let encoded = encode();
    match ROOM.get().exceeded_by {
        Some(step) => Err(Refusal::TooLong { step, limit }),
        None => encoded.map_err(Refusal::Library),
    }
}

/// Whether a text may grow to this size; records the step if not.
fn admits(step: &'static str, bytes: usize) -> bool {
    let mut room = ROOM.get();
    let fits = room.exceeded_by.is_none() && room.used.saturating_add(bytes) <= room.limit;
    if !fits {
        room.exceeded_by = room.exceeded_by.or(Some(step));
        ROOM.set(room);
    }
    fits
}

fn too_long(step: &str) -> tokenizers::Error {
    format!("{step} exceeds the text's size limit").into()
}

/// A normalizer, step by step.
#[derive(Clone, Debug)]
pub(super) struct Normalizing {
    steps: Vec<NormalizingStep>,
}

#[derive(Clone, Debug)]
struct NormalizingStep {
    step: NormalizerWrapper,
    growth: Growth,
}

/// How much a step can expand a text.
#[derive(Clone, Debug)]
enum Growth {
    /// This many times the length, plus this many bytes.
    Times { name: &'static str, times: usize, more: usize },
    /// The replacement of each match.
    Replace { pattern: Arc<Searched>, content: usize },
}

#[derive(Debug)]
enum Searched {
    Text(String),
    Regex(SysRegex),
}

impl Growth {
    fn name(&self) -> &'static str {
        match self {
            Self::Times { name, .. } => name,
            Self::Replace { .. } => "Replace",
        }
    }

    /// An upper bound of the size of a text after the step.
    fn after(&self, text: &str) -> usize {
        match self {
            Self::Times { times, more, .. } => text.len().saturating_mul(*times).saturating_add(*more),
            Self::Replace { pattern, content } => {
                let most = (text.len() + 1).saturating_mul(*content).saturating_add(text.len());
                // Count matches only if the bound might be exceeded.
                if most <= MORE_BYTES {
                    return most;
                }
                let matches = match &**pattern {
                    Searched::Text(pattern) => text.matches(pattern.as_str()).count(),
                    Searched::Regex(regex) => regex.find_iter(text).count(),
                };
                matches.saturating_mul(*content).saturating_add(text.len())
            }
        }
    }
}

impl Normalizing {
    /// Bounds a normalizer; `longest` is the longest replacement in its character maps.
    pub(super) fn new(normalizer: NormalizerWrapper, longest: usize) -> tokenizers::Result<Self> {
        let mut steps = Vec::new();
        let mut waiting = vec![normalizer];
        while let Some(step) = waiting.pop() {
            if let NormalizerWrapper::Sequence(sequence) = &step {
                waiting.extend(sequence.as_ref().iter().rev().cloned());
                continue;
            }
            steps.push(NormalizingStep { growth: growth(&step, longest)?, step });
        }
        Ok(Self { steps })
    }
}

/// How much each step can expand a text, in UTF-8: in Unicode's tables the longest compatibility decomposition is 11
/// times as long as its character, the longest canonical one 3 times.
fn growth(step: &NormalizerWrapper, longest: usize) -> tokenizers::Result<Growth> {
    let times = |name, times| Growth::Times { name, times, more: 0 };
    Ok(match step {
        NormalizerWrapper::BertNormalizer(_) => times("BertNormalizer", 15),
        NormalizerWrapper::StripNormalizer(_) => times("Strip", 1),
        NormalizerWrapper::StripAccents(_) => times("StripAccents", 1),
        NormalizerWrapper::NFC(_) => times("NFC", 3),
        NormalizerWrapper::NFD(_) => times("NFD", 3),
        NormalizerWrapper::NFKC(_) => times("NFKC", 11),
        NormalizerWrapper::NFKD(_) => times("NFKD", 11),
        NormalizerWrapper::Lowercase(_) => times("Lowercase", 3),
        NormalizerWrapper::Nmt(_) => times("Nmt", 1),
        NormalizerWrapper::Precompiled(_) => times("Precompiled", longest.max(4)),
        NormalizerWrapper::ByteLevel(_) => times("ByteLevel", 2),
        NormalizerWrapper::Prepend(prepend) => {
            Growth::Times { name: "Prepend", times: 1, more: prepend.prepend.len() }
        }
        // Split above.
        NormalizerWrapper::Sequence(_) => times("Sequence", 1),
        NormalizerWrapper::Replace(replace) => {
            // The pattern is private; serializing the step exposes it.
            let mut value = serde_json::to_value(replace)?;
            let pattern = match serde_json::from_value(value["pattern"].take())? {
                ReplacePattern::String(text) => Searched::Text(text),
                ReplacePattern::Regex(regex) => Searched::Regex(SysRegex::new(&regex)?),
            };
            Growth::Replace { pattern: Arc::new(pattern), content: replace.content.len() }
        }
    })
}

impl Normalizer for Normalizing {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        for NormalizingStep { step, growth } in &self.steps {
            if !admits(growth.name(), growth.after(text.get())) {
                return Err(too_long(growth.name()));
            }
            step.normalize(text)?;
        }
        let mut room = ROOM.get();
        room.used = room.used.saturating_add(text.get().len());
        ROOM.set(room);
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Normalizing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let longest = charsmaps(&value).map_err(D::Error::custom)?;
        let normalizer: NormalizerWrapper = serde_json::from_value(value).map_err(D::Error::custom)?;
        Self::new(normalizer, longest).map_err(D::Error::custom)
    }
}

/// A pre-tokenizer, step by step.
#[derive(Clone, Debug)]
pub(super) struct PreTokenizing {
    steps: Vec<PreTokenizerWrapper>,
}

impl PreTokenizing {
    pub(super) fn new(pre_tokenizer: PreTokenizerWrapper) -> Self {
        let mut steps = Vec::new();
        let mut waiting = vec![pre_tokenizer];
        while let Some(step) = waiting.pop() {
            match &step {
                PreTokenizerWrapper::Sequence(sequence) => {
                    waiting.extend(sequence.as_ref().iter().rev().cloned())
                }
                _ => steps.push(step),
            }
        }
        Self { steps }
    }
}

impl PreTokenizer for PreTokenizing {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        for step in &self.steps {
            // A byte becomes a letter of two bytes, a space one of at most four; each part may be prefixed with one
            // more.
            let (name, times) = match step {
                PreTokenizerWrapper::ByteLevel(_) => ("ByteLevel", 2),
                PreTokenizerWrapper::Metaspace(_) => ("Metaspace", 4),
                _ => ("Split", 1),
            };
            let parts = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
            let bytes: usize = parts.iter().map(|(part, ..)| part.len()).sum();
            let after = bytes.saturating_add(parts.len()).saturating_mul(times);
            let room = ROOM.get();
            // All parts exist at this point, so the sizes during their normalization do not add up.
            ROOM.set(Room { used: 0, ..room });
            let admitted = admits(name, after);
            ROOM.set(Room { used: room.used, ..ROOM.get() });
            if !admitted {
                return Err(too_long(name));
            }
            step.pre_tokenize(text)?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PreTokenizing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PreTokenizerWrapper::deserialize(deserializer).map(Self::new)
    }
}

/// The parts of a `tokenizer.json` that are checked before it is loaded.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    post_processor: Value,
}

/// Loads a `tokenizer.json`.
///
/// # Errors
/// If it is damaged, or its steps or its post-processor could exceed the limits.
pub(super) fn read(bytes: &[u8]) -> Result<SavedTokenizer, Refusal> {
    let read = || {
        let parts: Parts = serde_json::from_slice(bytes)?;
        let mut templates = 0;
        templates_within(&parts.post_processor, &mut templates)?;
        SavedTokenizer::from_bytes(bytes)
    };
    within_room(bytes.len(), read)
}

/// Rejects templates that repeat a caption or nest: the library supports captions of one part only.
fn templates_within(post_processor: &Value, templates: &mut usize) -> Result<(), String> {
    if let Some(steps) = post_processor.get("processors").and_then(Value::as_array) {
        return steps.iter().try_for_each(|step| templates_within(step, templates));
    }
    let Some(single) = post_processor.get("single").and_then(Value::as_array) else { return Ok(()) };
    *templates += 1;
    if *templates > 1 {
        return Err("its post_processor has more than one template; one can be applied".to_owned());
    }
    let captions = single.iter().filter(|piece| piece.get("Sequence").is_some()).count();
    let ids = |piece: &Value| {
        let id = piece.get("SpecialToken")?.get("id")?.as_str()?;
        Some(post_processor.get("special_tokens")?.get(id)?.get("ids")?.as_array()?.len())
    };
    let marks = single.iter().fold(0, |sum: usize, piece| sum.saturating_add(ids(piece).unwrap_or(1)));
    if captions > 1 || marks > MAX_MARKS {
        return Err(format!(
            "the template of its post_processor has a caption {captions} times and {marks} marks; one and at most {MAX_MARKS} \
             are usual"
        ));
    }
    Ok(())
}

/// Checks every character map of a normalizer, and returns the length of the longest replacement.
fn charsmaps(normalizer: &Value) -> Result<usize, String> {
    let mut longest = 0;
    let mut waiting = vec![normalizer];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(items) => {
                if let Some(map) = items.get("precompiled_charsmap") {
                    let bytes = map.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
                    longest = longest.max(charsmap(&bytes.ok_or("its precompiled_charsmap is not base64")?)?);
                }
                waiting.extend(items.values());
            }
            _ => {}
        }
    }
    Ok(longest)
}

/// Checks a SentencePiece character map, which its reader trusts: an array of 32-bit units, a trie over bytes, and
/// NUL-terminated strings into which its leaves point. Returns the length of the longest string.
///
/// Source: `DoubleArray` of the crate `spm_precompiled`, and darts-clone.
pub(super) fn charsmap(map: &[u8]) -> Result<usize, String> {
    let damaged = || "its precompiled_charsmap is damaged".to_owned();
    let (size, rest) = map.split_first_chunk::<4>().ok_or_else(damaged)?;
    let units = u32::from_le_bytes(*size) as usize / 4;
    let (units, texts) = rest.split_at_checked(units.saturating_mul(4)).ok_or_else(damaged)?;
    let texts = std::str::from_utf8(texts).map_err(|_| damaged())?;
    let units: Vec<usize> =
        units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let mut visited = vec![false; units.len()];
    let mut waiting = vec![0];
    while let Some(at) = waiting.pop() {
        let unit = *units.get(at).ok_or_else(damaged)?;
        let base = at ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6));
        // Any byte may come next.
        if base | 0xff >= units.len() {
            return Err(damaged());
        }
        if (unit >> 8) & 1 == 1 && at > 0 && !texts.is_char_boundary(units[base] & 0x7fff_ffff) {
            return Err(damaged());
        }
        for byte in 1..=0xff {
            let child = base ^ byte;
            if units[child] & (1 << 31 | 0xff) == byte && !std::mem::replace(&mut visited[child], true) {
                waiting.push(child);
            }
        }
    }
    Ok(texts.split('\0').map(str::len).max().unwrap_or(0))
}
