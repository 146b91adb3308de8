//! Text from files and names as a terminal may show it: what would move the cursor, change colors or the direction of writing is
//! escaped, so that it is seen and does nothing.

use std::borrow::Cow;

/// A line: line breaks are escaped, too.
pub(crate) fn visible_line(text: &str) -> Cow<'_, str> {
    escaped(text, acts)
}

/// Lines: line breaks stay.
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

/// Whether a terminal does something else with a character than showing it: C0, DEL and C1 controls, line and paragraph
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
        // Twice is once.
        assert_eq!(visible_line(&visible_line("\u{1b}\n")), "\\u{1b}\\n");
    }
}
