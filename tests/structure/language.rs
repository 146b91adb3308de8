//! The words that the project does not write, each with what it writes in their place: tests/structure/words.txt.

/// A line of the list: a phrase, what is written in its place, and the files where it may stand.
pub(crate) struct Word {
    phrase: String,
    instead: String,
    /// Ends of paths.
    allowed: Vec<String>,
}

/// Reads the list. A line is `phrase | in its place | files where it may stand`, the last part being optional; `#` begins a comment.
pub(crate) fn words(list: &str) -> Vec<Word> {
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut parts = line.split('|').map(str::trim);
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let (phrase, instead, allowed) = (next().to_lowercase(), next(), next());
            assert!(
                !phrase.is_empty() && !instead.is_empty(),
                "{line}: a phrase and what is written in its place"
            );
            Word { phrase, instead, allowed: allowed.split_whitespace().map(str::to_owned).collect() }
        })
        .collect()
}

/// Where a text has one of the words: line, the word, what to write.
pub(crate) fn found(words: &[Word], path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.to_lowercase();
        for Word { phrase, instead, allowed } in words {
            if has(&line, phrase) && !allowed.iter().any(|end| path.ends_with(end.as_str())) {
                found.push(format!("{path}:{}: `{phrase}`; write {instead}", number + 1));
            }
        }
    }
    found
}

/// Whether the phrase stands in a line between characters that are no letters; `phrase*` stands for all words that begin so.
fn has(line: &str, phrase: &str) -> bool {
    let (phrase, whole) = phrase.strip_suffix('*').map_or((phrase, true), |start| (start, false));
    line.match_indices(phrase).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + phrase.len()..].chars().next();
        let begins = !before.is_some_and(char::is_alphanumeric);
        let ends = !whole || !after.is_some_and(char::is_alphanumeric);
        begins && ends
    })
}
