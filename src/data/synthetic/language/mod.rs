//! Descriptions in words: English for captions, and other languages for [`Flaw::TranslatedCaption`].
//!
//! [`Flaw::TranslatedCaption`]: crate::data::corruption::Flaw::TranslatedCaption

mod english;
mod german;
mod spanish;

pub(super) use english::english;

use super::{color::pick, description::Description};
use crate::engine::Random;

/// The description in German or Spanish.
pub(super) fn translated(description: &Description, random: &mut Random) -> String {
    pick(random, &[german::german, spanish::spanish])(description)
}

/// The parts of a sentence that are not empty, separated by spaces.
fn joined<const N: usize>(parts: [&str; N]) -> String {
    let mut sentence = String::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        if !sentence.is_empty() {
            sentence.push(' ');
        }
        sentence.push_str(part);
    }
    sentence
}
