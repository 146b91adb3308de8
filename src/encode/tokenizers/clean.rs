//! Cleans captions before CLIP's tokenizer splits them, the way the upstream tokenizer does with the Python library
//! ftfy: HTML entities, mojibake, ligatures, character widths, quotation marks and control characters.

use unicode_normalization::UnicodeNormalization;

use super::{
    entities::unescape,
    mojibake::{fix_encoding, without_c1},
};

/// Maximum rounds of unescaping; captions may be escaped more than once.
const ROUNDS: usize = 8;

/// Fixes a caption: HTML entities (unless a `<` indicates markup), mojibake, terminal escapes,
/// Latin ligatures, full and half widths, curly quotation marks, line ends and control characters; then NFC.
///
/// ```
/// use alchemist_engine::encode::tokenizers::fix_text;
/// assert_eq!(fix_text("“ﬁne” cats &amp; dogs"), "\"fine\" cats & dogs");
/// assert_eq!(fix_text("<b>cats &amp; dogs</b>"), "<b>cats &amp; dogs</b>");
/// ```
pub fn fix_text(text: &str) -> String {
    let mut escaped = true;
    let mut mended = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        // From the first line with markup on, entities are considered part of it.
        escaped &= !line.contains('<');
        mended.push_str(&fix_line(line, escaped));
    }
    mended
}

fn fix_line(line: &str, escaped: bool) -> String {
    let mut text = line.to_owned();
    for _ in 0..ROUNDS {
        let plain = fix_encoding(&if escaped { unescape(&text) } else { text.as_str().into() });
        let mut mended = String::with_capacity(plain.len());
        let shown = without_terminal_escapes(&plain);
        shown.chars().map(without_c1).for_each(|character| mend(&mut mended, character));
        let mended = mended.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
        let mended: String = mended.nfc().collect();
        if mended == text {
            break;
        }
        text = mended;
    }
    text
}

/// Fixed, in lower case, and with single spaces: the text that CLIP's vocabulary was built from.
pub(super) fn clean(text: &str) -> String {
    fix_text(text).split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Appends the replacement of a character: itself, others, or nothing.
fn mend(mended: &mut String, character: char) {
    match character {
        '\0'..='\u{8}'
        | '\u{b}'
        | '\u{e}'..='\u{1f}'
        | '\u{7f}'
        | '\u{206a}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffc}' => {}
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => mended.push('\''),
        '\u{201c}'..='\u{201f}' => mended.push('"'),
        '\u{3000}' => mended.push(' '),
        // Every character of this block has a counterpart of ordinary width.
        '\u{ff01}'..='\u{ffef}' => mended.extend(std::iter::once(character).nfkc()),
        other => match ligature(other) {
            Some(letters) => mended.push_str(letters),
            None => mended.push(other),
        },
    }
}

/// The letters of a Latin ligature.
fn ligature(character: char) -> Option<&'static str> {
    Some(match character {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Removes `ESC [ numbers letter`, which colors a terminal.
fn without_terminal_escapes(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut parts = text.split("\u{1b}[");
    kept.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let end = part.find(|character: char| !character.is_ascii_digit() && character != ';');
        match end.and_then(|end| part[end..].chars().next().map(|letter| (end, letter))) {
            Some((end, letter)) if letter.is_ascii_alphabetic() => kept.push_str(&part[end + 1..]),
            _ => {
                kept.push('[');
                kept.push_str(part);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{clean, fix_text};

    #[test]
    fn captions_are_mended_as_by_the_released_tokenizer() {
        for (caption, mended) in [
            ("a&amp;b &lt;tag&gt;", "a&b <tag>"),
            ("&amp;amp; &#233; &unknown; &amp", "& é &unknown; &amp"),
            ("<i>&amp;</i>\n&amp;", "<i>&amp;</i>\n&amp;"),
            ("&amp;\n<i>", "&\n<i>"),
            ("‘a’ “b” ＬＯＵＤ　ｶﾅ", "'a' \"b\" LOUD カナ"),
            ("\u{1b}[36;44mblue\u{1b}[0m", "blue"),
            ("e\u{301}\u{feff}\u{0}x\r\ny", "éx\ny"),
            ("ﬃ ĳ ﬅ", "ffi ij ſt"),
        ] {
            assert_eq!(fix_text(caption), mended, "{caption:?}");
        }
    }

    /// Pairs generated with ftfy; `MENDED=FILE` names others, made by tests/fixtures_made/make_mended.py.
    #[test]
    fn captions_are_mended_as_by_ftfy() {
        let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures_made/mended.json");
        let file = std::env::var_os("MENDED").unwrap_or_else(|| kept.into());
        let pairs: Vec<[String; 2]> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let wrong: Vec<String> = pairs
            .iter()
            .map(|[text, mended]| (text, mended, fix_text(text)))
            .filter(|(_, mended, found)| found != *mended)
            .map(|(text, mended, found)| format!("{text:?}: {found:?}, not {mended:?}"))
            .collect();
        assert!(pairs.len() > 100 && wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), pairs.len());
    }

    #[test]
    fn cleaning_leaves_single_spaces_and_lower_case() {
        assert_eq!(clean("  A RED\t\u{a0}Car\n\n ÄÖ "), "a red car äö");
        assert_eq!(clean(""), "");
    }
}
