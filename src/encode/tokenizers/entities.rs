//! HTML entities the way ftfy decodes them: only entities that end in a semicolon, also names in capitals if they are
//! unambiguous, and numbers as browsers decode them.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};

static ENTITY: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").expect("a fixed pattern"));

/// Names in capitals that are entities even without a semicolon; a longer name that starts with one of them is not an
/// entity.
const OLD_CAPITALS: [&str; 8] = ["AMP", "COPY", "ETH", "GT", "LT", "QUOT", "REG", "THORN"];

/// Replaces entities with their characters; unknown ones stay.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    ENTITY.replace_all(text, |found: &Captures<'_>| {
        let entity = &found[0];
        let name = &entity[1..entity.len() - 1];
        let plain = match name.strip_prefix('#') {
            Some(number) => numbered(number),
            None => named(entity, name),
        };
        plain.unwrap_or_else(|| entity.to_owned())
    })
}

fn named(entity: &str, name: &str) -> Option<String> {
    let known = |entity: &str| {
        let plain = html_escape::decode_html_entities(entity);
        (plain != entity).then(|| plain.into_owned())
    };
    known(entity).or_else(|| {
        let small = name.to_ascii_lowercase();
        let capitals = name.to_ascii_uppercase() == name && small != name;
        if !capitals || OLD_CAPITALS.iter().any(|old| name.starts_with(old)) {
            return None;
        }
        known(&format!("&{small};")).map(|plain| plain.to_uppercase())
    })
}

/// The character of `&#number;` according to the HTML standard; `None` if it is not a number, or if the character is a
/// semicolon.
fn numbered(number: &str) -> Option<String> {
    let (digits, base) = match number.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    // Numbers that overflow the type are also beyond the last character.
    let code = u32::from_str_radix(digits, base).unwrap_or(u32::MAX);
    let never =
        matches!(code, 0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef) || code & 0xfffe == 0xfffe;
    Some(match code {
        0x3b => return None,
        0 => '\u{fffd}'.to_string(),
        // These were meant as Windows-1252.
        0x80..=0x9f => encoding_rs::WINDOWS_1252.decode_without_bom_handling(&[code as u8]).0.into_owned(),
        _ if code <= 0x10_ffff && never => String::new(),
        _ => char::from_u32(code).unwrap_or('\u{fffd}').to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn entities_are_those_of_ftfy() {
        for (text, plain) in [
            ("&lt;tag&gt; &checkmark; P&eacute;rez", "<tag> ✓ Pérez"),
            ("P&EACUTE;REZ BUNDESSTRA&SZLIG;E", "PÉREZ BUNDESSTRASSE"),
            ("&ntilde; &Ntilde; &NTILDE; &nTILDE;", "ñ Ñ Ñ &nTILDE;"),
            ("this&not that &amp &unknown; &GTDOT;", "this&not that &amp &unknown; &GTDOT;"),
            ("&#233;&#xe9;&#XE9; &#150;&#x81;", "ééé –\u{81}"),
            ("&#0;|&#1;|&#127;|&#xffff;|&#xd800;|&#99999999999;", "\u{fffd}||||\u{fffd}|\u{fffd}"),
            ("&#59; &#12ab; &#x; &#;", "&#59; &#12ab; &#x; &#;"),
        ] {
            assert_eq!(unescape(text), plain, "{text}");
        }
    }
}
