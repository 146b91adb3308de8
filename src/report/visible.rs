//! Escapes text from files and names for the terminal: characters that would move the cursor or change colors or the
//! writing direction are shown as escapes.

use std::borrow::Cow;

/// Escapes a single line: line breaks, too.
pub(crate) fn visible_line(text: &str) -> Cow<'_, str> {
    escaped(text, acts)
}

/// Escapes several lines: line breaks stay.
pub(crate) fn visible_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character != '\n' && acts(character))
}

fn escaped(text: &str, acts: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if acts(character) { shown.extend(character.escape_default()) } else { shown.push(character) }
    }
    Cow::Owned(shown)
}

/// Whether a terminal interprets a character instead of showing it: C0, DEL and C1 controls, line and paragraph
/// separators, and the marks, embeddings, overrides and isolates of bidirectional text.
fn acts(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_all_else_stays() {
        for text in ["", "a fox", "Ünïcode 狐 🦊 e\u{301}", "a \\ b"] {
            assert!(matches!(visible_line(text), Cow::Borrowed(same) if same == text));
        }
        assert_eq!(
            visible_line("a\u{1b}[2J\u{7}\u{9b}1m\u{7f}\t\r\nb"),
            "a\\u{1b}[2J\\u{7}\\u{9b}1m\\u{7f}\\t\\r\\nb"
        );
        assert_eq!(visible_line("\u{202e}gpj.exe\u{2066}"), "\\u{202e}gpj.exe\\u{2066}");
        assert_eq!(visible_lines("a\nb\u{1b}"), "a\nb\\u{1b}");
        // Escaping is idempotent.
        assert_eq!(visible_line(&visible_line("\u{1b}\n")), "\\u{1b}\\n");
    }
}
