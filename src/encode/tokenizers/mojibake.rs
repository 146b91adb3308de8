//! Detects mojibake, UTF-8 that was decoded with another encoding ("cafÃ©"), and repairs it. Matches `fix_encoding` of
//! the Python library ftfy 6.3.1: the same encodings in the same order, and the same heuristics.

use std::{collections::HashMap, sync::LazyLock};

use encoding_rs::Encoding;
use regex::{Regex, bytes};

/// A single-byte encoding. In a sloppy one, unassigned bytes map to themselves, and byte 0x1a to the replacement
/// character.
struct CodePage {
    name: &'static str,
    /// Whether the encoding is sloppy.
    sloppy: bool,
    /// The characters of bytes from 0x80 on.
    upper: Vec<char>,
    bytes: HashMap<char, u8>,
}

/// The upper half of IBM's code page 437, which browsers do not support.
const CP437: &str = concat!(
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»",
    "░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀",
    "αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}",
);

/// The encodings, in the order in which they are tried.
static CODE_PAGES: LazyLock<Vec<CodePage>> = LazyLock::new(|| {
    let latin = || (0x80..=0xff).map(char::from).collect::<Vec<char>>();
    let of = |encoding: &'static Encoding| {
        let decode = |byte: u8| {
            let byte = [byte];
            let decoded = encoding.decode_without_bom_handling_and_without_replacement(&byte);
            decoded.and_then(|text| text.chars().next()).unwrap_or(char::from(byte[0]))
        };
        (0x80..=0xff).map(decode).collect::<Vec<char>>()
    };
    let pages = [
        ("latin-1", false, latin()),
        ("windows-1252", true, of(encoding_rs::WINDOWS_1252)),
        ("windows-1251", true, of(encoding_rs::WINDOWS_1251)),
        ("windows-1250", true, of(encoding_rs::WINDOWS_1250)),
        ("windows-1253", true, of(encoding_rs::WINDOWS_1253)),
        ("windows-1254", true, of(encoding_rs::WINDOWS_1254)),
        ("windows-1257", true, of(encoding_rs::WINDOWS_1257)),
        ("iso-8859-2", false, of(encoding_rs::ISO_8859_2)),
        ("macroman", false, of(encoding_rs::MACINTOSH)),
        ("cp437", false, CP437.chars().collect()),
    ];
    let page = |(name, sloppy, upper): (&'static str, bool, Vec<char>)| {
        let mut bytes: HashMap<char, u8> = (0..0x80).map(|byte: u8| (char::from(byte), byte)).collect();
        if sloppy {
            bytes.remove(&'\u{1a}');
            bytes.insert('\u{fffd}', 0x1a);
        }
        bytes.extend(upper.iter().copied().zip(0x80..=0xff));
        CodePage { name, sloppy, upper, bytes }
    };
    pages.into_iter().map(page).collect()
});

impl CodePage {
    fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|character| self.bytes.get(&character).copied()).collect()
    }
}

/// Clues about which byte of UTF-8 a character can be if the text was decoded with one of the code pages: the first
/// byte of two, three or four, or a continuation byte.
const FIRST_OF: [u8; 3] = [1, 2, 4];
const CONTINUES: u8 = 8;
const CONTINUES_STRICTLY: u8 = 16;

/// Characters that continue a sequence but also occur in ordinary text.
const COMMON_PUNCTUATION: &str = "–—―‘’‚“”„•…";

static CLUES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut clues = HashMap::from([(' ', CONTINUES)]);
    for page in &CODE_PAGES[..8] {
        for (&character, byte) in page.upper.iter().zip(0x80u8..=0xff) {
            let clue = match byte {
                0x80..=0xbf if COMMON_PUNCTUATION.contains(character) => CONTINUES,
                0x80..=0xbf => CONTINUES | CONTINUES_STRICTLY,
                0xc2..=0xdf => FIRST_OF[0],
                0xe0..=0xef => FIRST_OF[1],
                // Of the lead bytes of four-byte sequences, only these two start characters that are in use.
                0xf0 | 0xf3 => FIRST_OF[2],
                _ => 0,
            };
            // A character may have several clues: it can be a lead byte in one code page and a continuation byte in
            // another.
            *clues.entry(character).or_default() |= clue;
        }
    }
    clues
});

/// Character classes of mojibake, for the pattern below.
const KINDS: [(&str, &str); 14] = [
    ("{common}", "\u{a0}\u{ad}·´–—―…’"),
    ("{c1}", "\u{80}-\u{9f}"),
    ("{bad}", "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}ªº"),
    ("{law}", "¶§"),
    ("{currency}", "¢£¥₧€"),
    ("{start}", "¡«¿©΄΅‘‚“„•‹\u{f8ff}"),
    ("{end}", "®»˝”›™"),
    ("{numeric}", "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№"),
    ("{face}", "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°"),
    ("{upper}", "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    ("{lower}", "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ"),
    ("{upper_common}", "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я"),
    ("{lower_common}", "α-ωάέήίΰа-џ"),
    ("{box}", "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓"),
];

/// Character pairs that are far more likely in mojibake than in real text.
const BROKEN: [&str; 37] = [
    "[{c1}]",
    "[{bad}{lower}{upper}{box}{start}{end}{currency}{numeric}{law}][{bad}]",
    "[a-zA-Z][{lower_common}{upper_common}][{bad}]",
    "[{bad}][{lower}{upper}{box}{start}{end}{currency}{numeric}{law}]",
    "[{lower}{lower_common}{box}{end}{currency}{numeric}][{upper}]",
    "[{box}{end}{currency}{numeric}][{lower}]",
    "[{lower}{box}{end}][{currency}]",
    r"[\s\x1c-\x1f][{upper}][{currency}]",
    "[{upper}{box}][{numeric}{law}]",
    "[{lower}{upper}{box}{currency}{end}][{start}][{numeric}]",
    "[{lower}{upper}{currency}{numeric}{box}{law}][{end}][{start}]",
    "[{currency}{numeric}{box}][{start}]",
    "[a-z][{upper}][{start}{currency}]",
    "[{box}][{face}]",
    "[{lower}{upper}{currency}{numeric}{start}{end}{law}][{box}]",
    "[{box}][{end}]",
    r"[{lower}{upper}][{start}{end}][\p{L}\p{N}_]",
    "[Œœ][^A-Za-z]",
    "[{upper}]°",
    // Windows-1252.
    "[ÂÃÎÐ][€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»{start}{end}–—´]",
    "×[²³]",
    // Arabic as Windows-1252.
    "[ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»][ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»]",
    // Scripts of South Asia.
    "à[²µ¹¼½¾]",
    // MacRoman.
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    // Windows-1251.
    "вЂ",
    "[ВГРС][{c1}{bad}{start}{end}{currency}°µ][ВГРС]",
    "ГўВЂВ.[A-Za-z ]",
    // An à, an á, and a no-break space.
    "Ã[\u{a0}¡]",
    r"[a-z][\s\x1c-\x1f]?[ÃÂ][ ]",
    "^[ÃÂ][ ]",
    "[a-z.,?!{end}]Â[ {start}{end}]",
    // Windows-1253.
    "β€[™\u{a0}Ά\u{ad}®°]",
    "[ΒΓΞΟ][{c1}{bad}{start}{end}{currency}°][ΒΓΞΟ]",
    // Windows-1257.
    "ā€",
];

static LOOKS_BROKEN: LazyLock<Regex> = LazyLock::new(|| {
    let whole = BROKEN.join("|");
    let pattern = KINDS.iter().fold(whole, |pattern, (name, characters)| pattern.replace(name, characters));
    Regex::new(&pattern).expect("a fixed pattern")
});

/// UTF-8 in which a space replaced the byte 0xa0, where that would be a likely character.
const WITH_SPACES: [&str; 6] = [
    r"[\xc2\xc3\xc5\xce\xd0\xd9] ",
    r"[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]",
    r"[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] ",
    r"\xf0 [\x80-\xbf][\x80-\xbf]",
    r"\xf0[\x80-\xbf] [\x80-\xbf]",
    r"\xf0[\x80-\xbf][\x80-\xbf] ",
];

/// UTF-8, or surrogates in three bytes each, in which a byte was lost: replaced by 0x1a, or by one question mark.
const LOSSY: [&str; 10] = [
    r"[\xc2-\xdf]\x1a",
    r"[\xc2-\xc3][?]",
    r"\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
    r"\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
    r"[\xe0-\xef][\x1a?][\x1a\x80-\xbf]",
    r"[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
    r"[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]",
    r"[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
    r"[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]",
    r"\x1a",
];

/// Matches any of these byte sequences.
fn any_of(sequences: &[&str]) -> bytes::Regex {
    bytes::Regex::new(&format!("(?-u){}", sequences.join("|"))).expect("a fixed pattern")
}

static SPACED: LazyLock<bytes::Regex> = LazyLock::new(|| any_of(&WITH_SPACES));
static LOST: LazyLock<bytes::Regex> = LazyLock::new(|| any_of(&LOSSY));

/// Undoes decoding with the wrong encoding, repeatedly if necessary.
pub(super) fn fix_encoding(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        let fixed = fix_once(&text);
        if fixed == text {
            return fixed;
        }
        text = fixed;
    }
}

fn fix_once(text: &str) -> String {
    if text.is_ascii() || !LOOKS_BROKEN.is_match(text) {
        return text.to_owned();
    }
    for page in CODE_PAGES.iter() {
        let fixed = page.encode(text).and_then(|bytes| decoded_again(bytes, page));
        if let Some(fixed) = fixed {
            return fixed;
        }
    }
    let fixed = fix_within(text);
    if fixed != text {
        return fixed;
    }
    // Latin-1 that was meant as Windows-1252.
    if let Some(bytes) = CODE_PAGES[0].encode(text) {
        let unassigned = |byte: &u8| matches!(byte, 0x81 | 0x8d | 0x8f | 0x90 | 0x9d);
        if !bytes.iter().any(unassigned) {
            let fixed = encoding_rs::WINDOWS_1252.decode_without_bom_handling(&bytes).0.into_owned();
            if fixed != text {
                return fixed;
            }
        }
    }
    text.chars().map(without_c1).collect()
}

/// Maps a control character of Latin-1 to its character in Windows-1252.
pub(super) fn without_c1(character: char) -> char {
    match character {
        '\u{80}'..='\u{9f}' => CODE_PAGES[1].upper[character as usize - 0x80],
        other => other,
    }
}

fn decoded_again(mut bytes: Vec<u8>, page: &CodePage) -> Option<String> {
    // In MacRoman this would be a dash before a space.
    if page.name != "macroman" && SPACED.is_match(&bytes) {
        let spaced = a_before_words(&bytes);
        let restored = SPACED.replace_all(&spaced, |found: &bytes::Captures<'_>| {
            found[0].iter().map(|&byte| if byte == b' ' { 0xa0 } else { byte }).collect::<Vec<u8>>()
        });
        bytes = restored.into_owned();
    }
    if page.sloppy {
        bytes = LOST.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
    }
    if bytes.contains(&0xed) || bytes.contains(&0xc0) {
        decode_variants(&bytes)
    } else {
        String::from_utf8(bytes).ok()
    }
}

/// `Ã ` before a word is an à followed by a space, unless the two are one word, such as "àquele".
fn a_before_words(bytes: &[u8]) -> Vec<u8> {
    let mut spaced = Vec::with_capacity(bytes.len() + 4);
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let goes_on = |ending: &[u8]| rest.get(2..).is_some_and(|word| word.starts_with(ending));
        let endings: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
        if rest.starts_with(b"\xc3 ") && !endings.into_iter().any(goes_on) {
            spaced.extend(b"\xc3\xa0 ");
            at += 2;
        } else {
            spaced.push(bytes[at]);
            at += 1;
        }
    }
    spaced
}

/// Decodes UTF-8, surrogate pairs in three bytes each (CESU-8), and NUL in two bytes.
fn decode_variants(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at..] {
            [0xc0, 0x80, ..] => {
                text.push('\0');
                at += 2;
            }
            [
                0xed,
                second @ 0xa0..=0xaf,
                third @ 0x80..=0xbf,
                0xed,
                fifth @ 0xb0..=0xbf,
                sixth @ 0x80..=0xbf,
                ..,
            ] => {
                let high = u32::from(second & 0x0f) << 16 | u32::from(third & 0x3f) << 10;
                let low = u32::from(fifth & 0x0f) << 6 | u32::from(sixth & 0x3f);
                text.push(char::from_u32(high + low + 0x1_0000)?);
                at += 6;
            }
            [first, ..] => {
                let length = match first {
                    0x00..=0x7f => 1,
                    0x80..=0xdf => 2,
                    0xe0..=0xef => 3,
                    _ => 4,
                };
                text.push_str(std::str::from_utf8(bytes.get(at..at + length)?).ok()?);
                at += length;
            }
            [] => {}
        }
    }
    Some(text)
}

/// Repairs parts that look like UTF-8 within a text that is not UTF-8 as a whole.
fn fix_within(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let clue =
        |at: usize| characters.get(at).and_then(|character| CLUES.get(character)).copied().unwrap_or(0);
    let sequence = |at: usize| {
        let lengths = FIRST_OF.iter().zip(2..);
        lengths
            .filter(|&(&first, _)| clue(at) & first != 0)
            .map(|(_, length)| length)
            .find(|&length| (1..length).all(|next| clue(at + next) & CONTINUES != 0))
    };
    let mut fixed = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let mut end = at;
        if at == 0 || clue(at - 1) & CONTINUES_STRICTLY == 0 {
            while let Some(length) = sequence(end) {
                end += length;
            }
        }
        if end == at {
            fixed.push(characters[at]);
            at += 1;
            continue;
        }
        let piece: String = characters[at..end].iter().collect();
        if piece.len() < text.len() && LOOKS_BROKEN.is_match(&piece) {
            fixed.push_str(&fix_encoding(&piece));
        } else {
            fixed.push_str(&piece);
        }
        at = end;
    }
    fixed
}

#[cfg(test)]
mod tests {
    use super::fix_encoding;

    #[test]
    fn text_that_was_decoded_wrongly_is_decoded_again() {
        for (text, fixed) in [
            ("cafÃ© RenÃ©e", "café Renée"),
            ("â€œquotesâ€\u{9d} âœ” done", "“quotes” ✔ done"),
            ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
            // Twice; with a space instead of a no-break space; before a word; with a byte lost.
            ("ÃƒÂ©tÃƒÂ©", "été"),
            ("Ã perturber la rÃ©flexion", "à perturber la réflexion"),
            ("voilÃ le travail", "voilà le travail"),
            ("â€\u{fffd}quoteâ€\u{fffd}", "\u{fffd}quote\u{fffd}"),
            // Within text of another script; MacRoman; Windows-1251; surrogates; Windows-1252 as Latin-1.
            ("猫 cafÃ© 猫", "猫 café 猫"),
            ("caf√©", "café"),
            ("РїСЂРёРІРµС‚ вЂ” РјРёСЂ", "привет — мир"),
            ("\u{ed}\u{a0}\u{bd}\u{ed}\u{b8}\u{80}", "😀"),
            ("It\u{92}s 5\u{80}", "It’s 5€"),
            // Text that somebody may well have written.
            ("café – “naïve”, 5 €, 20°C, ½ × ²", "café – “naïve”, 5 €, 20°C, ½ × ²"),
            ("Ångström à la carte, ¿qué?", "Ångström à la carte, ¿qué?"),
        ] {
            assert_eq!(fix_encoding(text), fixed, "{text}");
        }
    }
}
