//! The built-in text encoder: every word has a fixed random vector, from a generator seeded with the word itself.
//!
//! It needs no training and no download; captions that share words share vectors, in any script.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    encode::{
        TextEncoder, TextStates,
        saved::{self, TEXT_ENCODER},
    },
    engine::{Purpose, Random, Tensor, cuda::Device},
    error::{Error, Result},
};

/// The `kind` in the saved JSON.
pub(super) const KIND: &str = "hashed-words";

/// Word vectors are cached up to this many words; beyond it they are recomputed each time.
const REMEMBERED_WORDS: usize = 65_536;

/// Amplitude of the position vectors, relative to the words' unit variance.
const POSITION_SCALE: f64 = 0.3;

/// Maps captions to fixed random vectors: a start token, then one token per word, plus sinusoidal positions.
#[derive(Debug)]
pub struct HashedWords {
    settings: Settings,
    positions: Vec<f32>,
    start: Arc<[f32]>,
    words: RwLock<HashMap<String, Arc<[f32]>>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    tokens: usize,
    channels: usize,
    seed: u64,
}

impl HashedWords {
    /// An encoder with `tokens` tokens per caption (`T`, including the start token) and `channels` channels (`D`).
    ///
    /// # Errors
    /// If `tokens` or `channels` is 0.
    pub fn new(tokens: usize, channels: usize, seed: u64) -> Result<Self> {
        if tokens == 0 || channels == 0 {
            return Err(Error::argument(format!(
                "the hashed-word encoder needs at least one token and one channel, not {tokens} and {channels}"
            )));
        }
        let positions =
            (0..tokens).flat_map(|at| (0..channels).map(move |channel| position(at, channel, channels)));
        Ok(Self {
            positions: positions.collect(),
            start: draw(seed, "", channels),
            words: RwLock::default(),
            settings: Settings { tokens, channels, seed },
        })
    }

    /// Loads an encoder written by [`save`](TextEncoder::save).
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(TEXT_ENCODER);
        let description = saved::read_description(&path)?;
        let settings: Settings = description.settings(&path, KIND)?;
        let loaded = Self::new(settings.tokens, settings.channels, settings.seed)
            .map_err(|error| Error::Checkpoint { path: path.clone(), message: error.to_string() })?;
        description.check_fingerprint(&path, &loaded.fingerprint())?;
        Ok(loaded)
    }

    /// The vector of a word, the same in every caption, batch and run.
    fn word(&self, word: &str) -> Arc<[f32]> {
        if let Some(vector) = self.words.read().unwrap_or_else(PoisonError::into_inner).get(word) {
            return Arc::clone(vector);
        }
        let vector = draw(self.settings.seed, word, self.settings.channels);
        let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
        if words.len() < REMEMBERED_WORDS {
            words.insert(word.to_owned(), Arc::clone(&vector));
        }
        vector
    }
}

impl TextEncoder for HashedWords {
    fn tokens(&self) -> usize {
        self.settings.tokens
    }

    fn channels(&self) -> usize {
        self.settings.channels
    }

    fn encode(&self, captions: &[&str]) -> Result<TextStates> {
        let Settings { tokens, channels, .. } = self.settings;
        let batch = captions.len();
        let mut states = vec![0f32; batch * tokens * channels];
        let mut mask = vec![0u32; batch * tokens];
        let mut pooled = vec![0f32; batch * channels];
        states
            .par_chunks_exact_mut(tokens * channels)
            .zip(mask.par_chunks_exact_mut(tokens))
            .zip(pooled.par_chunks_exact_mut(channels))
            .zip(captions)
            .for_each(|(((states, mask), pooled), caption)| {
                let words = words(caption);
                let vectors =
                    std::iter::once(Arc::clone(&self.start)).chain(words.iter().map(|word| self.word(word)));
                let mut used = 0f32;
                for (at, vector) in vectors.take(tokens).enumerate() {
                    let position = &self.positions[at * channels..][..channels];
                    let state = &mut states[at * channels..][..channels];
                    for (channel, state) in state.iter_mut().enumerate() {
                        *state = vector[channel] + position[channel];
                        pooled[channel] += *state;
                    }
                    mask[at] = 1;
                    used += 1.0;
                }
                for value in pooled {
                    *value /= used;
                }
            });
        Ok(TextStates {
            states: Tensor::new(&[batch, tokens, channels], states)?,
            mask: Tensor::new(&[batch, tokens], mask)?,
            pooled: Tensor::new(&[batch, channels], pooled)?,
        })
    }

    fn fingerprint(&self) -> String {
        let Settings { tokens, channels, seed } = &self.settings;
        let mut hash = Sha256::new();
        hash.update(format!("{KIND}/1 tokens {tokens} channels {channels} seed {seed}"));
        // Hashes the vectors themselves, so that another way to generate them changes the fingerprint.
        hash.update(bytemuck::cast_slice(&self.start));
        hash.update(bytemuck::cast_slice(&self.positions));
        saved::hexadecimal(&hash.finalize())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        saved::write_description(&folder.join(TEXT_ENCODER), KIND, &self.settings, &self.fingerprint())
    }

    /// There is no network to move.
    fn to_device(self: Box<Self>, _: &Device) -> Result<Box<dyn TextEncoder>> {
        Ok(self)
    }
}

/// The words of a caption in lower case: runs of letters, digits and marks; single characters in scripts that are
/// written without spaces (Han, kana, Thai, Khmer and others), and for pictographs.
///
/// ```
/// use alchemist_engine::encode::hashed::words;
/// assert_eq!(words("A red-and-white CAT, 3×"), ["a", "red", "and", "white", "cat", "3"]);
/// assert_eq!(words("赤い猫"), ["赤", "い", "猫"]);
/// ```
pub fn words(caption: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    let mut joinable = false;
    for character in caption.chars().flat_map(char::to_lowercase) {
        if is_mark(character) {
            // A mark belongs to the preceding character, whatever the script.
            if let (true, Some(word)) = (joinable, words.last_mut()) {
                word.push(character);
            }
        } else if stands_alone(character) {
            words.push(character.to_string());
            (open, joinable) = (false, true);
        } else if character.is_alphanumeric() {
            match words.last_mut() {
                Some(word) if open => word.push(character),
                _ => words.push(character.to_string()),
            }
            (open, joinable) = (true, true);
        } else {
            (open, joinable) = (false, false);
        }
    }
    words
}

/// Combining marks and joiners, some of which [`char::is_alphanumeric`] excludes.
fn is_mark(character: char) -> bool {
    matches!(u32::from(character),
        0x0300..=0x036F | 0x0483..=0x0489 | 0x0591..=0x05BD | 0x05BF | 0x05C1..=0x05C2 | 0x05C4..=0x05C5 | 0x05C7
        | 0x0610..=0x061A | 0x064B..=0x065F | 0x0670 | 0x06D6..=0x06DC | 0x06DF..=0x06E8 | 0x06EA..=0x06ED
        | 0x093C | 0x094D | 0x09BC | 0x09CD | 0x0A3C | 0x0A4D | 0x0ABC | 0x0ACD | 0x0B3C | 0x0B4D | 0x0BCD
        | 0x0C4D | 0x0CBC | 0x0CCD | 0x0D3B..=0x0D3C | 0x0D4D | 0x0DCA
        | 0x0E31 | 0x0E34..=0x0E3A | 0x0E47..=0x0E4E | 0x0EB1 | 0x0EB4..=0x0EBC | 0x0EC8..=0x0ECE
        | 0x0F18..=0x0F19 | 0x0F35 | 0x0F37 | 0x0F39 | 0x0F71..=0x0F84 | 0x0F86..=0x0F87 | 0x0F8D..=0x0FBC
        | 0x102B..=0x103E | 0x1056..=0x1059 | 0x17B4..=0x17D3 | 0x17DD | 0x1A55..=0x1A7F | 0x1AB0..=0x1AFF
        | 0x1B34..=0x1B44 | 0x1DC0..=0x1DFF | 0x200C..=0x200D | 0x20D0..=0x20FF | 0x3099..=0x309A
        | 0xA9B3..=0xA9C0 | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F | 0x1F3FB..=0x1F3FF | 0xE0100..=0xE01EF)
}

/// Characters that form a word by themselves: scripts without spaces between words, and pictographs.
fn stands_alone(character: char) -> bool {
    match u32::from(character) {
        0x2600..=0x27BF | 0x1F000..=0x1FAFF => true,
        0x0E00..=0x0EFF
        | 0x0F00..=0x109F
        | 0x1780..=0x17FF
        | 0x1950..=0x19DF
        | 0x1A20..=0x1AAF
        | 0x1B00..=0x1B7F
        | 0x3005..=0x3007
        | 0x3040..=0x312F
        | 0x31A0..=0x31BF
        | 0x31F0..=0x31FF
        | 0x3400..=0x4DBF
        | 0x4E00..=0x9FFF
        | 0xA000..=0xA4CF
        | 0xA980..=0xA9DF
        | 0xAA60..=0xAA7F
        | 0xF900..=0xFAFF
        | 0xFF66..=0xFF9F
        | 0x17000..=0x18DFF
        | 0x1B000..=0x1B2FF
        | 0x20000..=0x3FFFF => character.is_alphanumeric(),
        _ => false,
    }
}

/// A standard normal vector, seeded with the word's UTF-8 (FNV-1a, 64 bits). The empty word stands for the start token.
#[expect(clippy::cast_possible_truncation, reason = "a state is f32")]
fn draw(seed: u64, word: &str, channels: usize) -> Arc<[f32]> {
    let hash = word.bytes().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    let mut random = Random::new(seed, Purpose::Words, hash);
    (0..channels).map(|_| random.normal() as f32).collect()
}

/// The sinusoidal position vectors of "Attention is all you need", scaled.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "small values; a state is f32"
)]
fn position(at: usize, channel: usize, channels: usize) -> f32 {
    let frequency = 10_000f64.powf(-((channel - channel % 2) as f64) / channels as f64);
    let angle = at as f64 * frequency;
    (POSITION_SCALE * if channel.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn every_script_gives_words() {
        for (caption, expected) in [
            ("", vec![]),
            ("  …!? ", vec![]),
            ("Straße ÜBER Åland", vec!["straße", "über", "åland"]),
            ("e\u{301}tude", vec!["e\u{301}tude"]),
            ("красный кот", vec!["красный", "кот"]),
            ("قِطّة حمراء", vec!["قِطّة", "حمراء"]),
            ("लाल बिल्ली", vec!["लाल", "बिल्ली"]),
            ("แมวสีแดง", vec!["แ", "ม", "ว", "สี", "แ", "ด", "ง"]),
            ("ねこcat猫", vec!["ね", "こ", "cat", "猫"]),
            ("빨간 고양이", vec!["빨간", "고양이"]),
            ("🐈 on 🚗", vec!["🐈", "on", "🚗"]),
            ("\u{301}\u{301}", vec![]),
        ] {
            assert_eq!(words(caption), expected, "{caption}");
        }
    }
}
