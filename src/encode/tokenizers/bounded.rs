//! Saved tokenizers whose steps make a caption only so much longer.
//!
//! A `tokenizer.json` is a little program: a list of replacements, each of which may double the text, fills any memory with
//! a caption of a few letters. Here each step is measured before it is taken. Real tokenizers make text a few times longer.

use std::{cell::Cell, fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential,
    OffsetType, PostProcessorWrapper, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, TokenizerImpl,
    normalizers::replace::ReplacePattern, utils::SysRegex,
};

/// A tokenizer as it is saved, with bounds.
pub(super) type SavedTokenizer =
    TokenizerImpl<ModelWrapper, Normalizing, PreTokenizing, PostProcessorWrapper, DecoderWrapper>;

/// A text may become this many times as long, and so many bytes longer.
const TIMES: usize = 64;
const MORE_BYTES: usize = 1 << 16;

/// Ids that a post-processor may put around a caption's.
const MOST_MARKS: usize = 64;

/// What a caption has used of the room that it has.
#[derive(Clone, Copy)]
struct Room {
    limit: usize,
    used: usize,
    exceeded_by: Option<&'static str>,
}

thread_local! {
    /// Of the caption that this thread encodes. The tokenizers' library drops a normalizer's errors, so that they are noted.
    static ROOM: Cell<Room> = const { Cell::new(Room { limit: MORE_BYTES, used: 0, exceeded_by: None }) };
}

/// Why a text cannot be encoded.
pub(super) enum Refusal {
    /// The library's reason.
    Library(tokenizers::Error),
    /// A step would have made the text longer than its room.
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

/// Does something with a text of so many bytes, within the room that it has.
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

/// Whether a text may become so long; notes if not.
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
    format!("{step} makes the text too long").into()
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

/// How long a step can make a text.
#[derive(Clone, Debug)]
enum Growth {
    /// So many times as long, and so many bytes longer.
    Times { name: &'static str, times: usize, more: usize },
    /// What a replacement puts in the place of each match.
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

    /// At least the bytes that the step makes of a text.
    fn after(&self, text: &str) -> usize {
        match self {
            Self::Times { times, more, .. } => text.len().saturating_mul(*times).saturating_add(*more),
            Self::Replace { pattern, content } => {
                let most = (text.len() + 1).saturating_mul(*content).saturating_add(text.len());
                // Where it might be too much, matches are counted.
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
    /// Bounds a normalizer; `longest` is the longest text that one of its character maps puts in a character's place.
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

/// How long each step can make a text, in UTF-8: from Unicode's tables, the longest decomposition by compatibility is 11 times
/// its character, the longest canonical one 3 times.
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
        // Taken apart above.
        NormalizerWrapper::Sequence(_) => times("Sequence", 1),
        NormalizerWrapper::Replace(replace) => {
            // The pattern is only told by writing the step.
            let mut told = serde_json::to_value(replace)?;
            let pattern = match serde_json::from_value(told["pattern"].take())? {
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
            // A byte becomes a letter of two, a space a letter of at most four; each part may get one more at its beginning.
            let (name, times) = match step {
                PreTokenizerWrapper::ByteLevel(_) => ("ByteLevel", 2),
                PreTokenizerWrapper::Metaspace(_) => ("Metaspace", 4),
                _ => ("Split", 1),
            };
            let parts = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
            let bytes: usize = parts.iter().map(|(part, ..)| part.len()).sum();
            let after = bytes.saturating_add(parts.len()).saturating_mul(times);
            let room = ROOM.get();
            // All parts are here: what normalizing them used is not added.
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

/// What is looked at of a `tokenizer.json` before it is read.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    post_processor: Value,
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// If it is damaged, or its steps make text, or what comes around it, longer than there is room.
pub(super) fn read(bytes: &[u8]) -> Result<SavedTokenizer, Refusal> {
    let read = || {
        let parts: Parts = serde_json::from_slice(bytes)?;
        let mut templates = 0;
        templates_within(&parts.post_processor, &mut templates)?;
        SavedTokenizer::from_bytes(bytes)
    };
    within_room(bytes.len(), read)
}

/// Refuses templates that repeat a caption, or of which one is around another: the library has a caption of one part only.
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
    if captions > 1 || marks > MOST_MARKS {
        return Err(format!(
            "the template of its post_processor has a caption {captions} times and {marks} marks; one and at most {MOST_MARKS} \
             are usual"
        ));
    }
    Ok(())
}

/// Checks every character map within a normalizer, and gives the length of the longest text that one puts in.
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

/// Checks a character map of SentencePiece, whose reader trusts it: an array of 32-bit units, a trie over bytes, and texts
/// that end in NUL, in which its leaves are places. Gives the length of the longest text.
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
    let mut seen = vec![false; units.len()];
    let mut waiting = vec![0];
    while let Some(at) = waiting.pop() {
        let unit = *units.get(at).ok_or_else(damaged)?;
        let base = at ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6));
        // Whatever byte comes next is looked up.
        if base | 0xff >= units.len() {
            return Err(damaged());
        }
        if (unit >> 8) & 1 == 1 && at > 0 && !texts.is_char_boundary(units[base] & 0x7fff_ffff) {
            return Err(damaged());
        }
        for byte in 1..=0xff {
            let child = base ^ byte;
            if units[child] & (1 << 31 | 0xff) == byte && !std::mem::replace(&mut seen[child], true) {
                waiting.push(child);
            }
        }
    }
    Ok(texts.split('\0').map(str::len).max().unwrap_or(0))
}
