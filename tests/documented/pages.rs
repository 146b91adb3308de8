//! The commands in the blocks of a document, and what it shows of their output.

use std::{fs, sync::LazyLock};

use regex::Regex;

/// A command of a document.
pub(crate) struct Shown {
    /// The line of the document where it begins.
    pub(crate) line: usize,
    /// The command, continued lines joined.
    pub(crate) command: String,
    /// What the document shows as printed.
    pub(crate) printed: Option<String>,
}

/// The commands of the document at this path.
pub(crate) fn shown(document: &str) -> Vec<Shown> {
    commands(&fs::read_to_string(document).unwrap())
}

/// The commands of a document: every line of a block `sh` and, in a block `console`, those that begin with `$`, with what
/// follows as their output. A block `text` shows what the first command of its section prints.
pub(crate) fn commands(page: &str) -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let (mut language, mut section) = (None, 0);
    let mut continued = false;
    for (at, line) in page.lines().enumerate() {
        if let Some(opened) = line.strip_prefix("```") {
            language = if language.is_none() { Some(opened) } else { None };
            continue;
        }
        match language {
            None if line.starts_with('#') => section = found.len(),
            Some("sh" | "bash") if !line.trim().is_empty() => {
                let text = line.strip_suffix('\\').unwrap_or(line).trim_start();
                match found.last_mut() {
                    Some(last) if continued => last.command.push_str(&format!(" {text}")),
                    _ => found.push(Shown { line: at + 1, command: text.to_owned(), printed: None }),
                }
                continued = line.ends_with('\\');
            }
            Some("console") => match line.strip_prefix("$ ") {
                Some(command) => found.push(Shown {
                    line: at + 1,
                    command: command.to_owned(),
                    printed: Some(String::new()),
                }),
                None => print(found.last_mut(), line),
            },
            Some("text") => print(found.get_mut(section), line),
            _ => {}
        }
    }
    found
}

fn print(command: Option<&mut Shown>, line: &str) {
    if let Some(Shown { printed, .. }) = command {
        let printed = printed.get_or_insert_default();
        if !printed.is_empty() {
            printed.push('\n');
        }
        printed.push_str(line);
    }
}

/// The lines of an output in which numbers, and the widths of columns, do not count; without empty lines, and those that
/// begin with one of `left_out`.
pub(crate) fn shape(text: &str, left_out: &[&str]) -> Vec<String> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"-?\d+(\.\d+)?").unwrap());
    static RULE: LazyLock<Regex> = LazyLock::new(|| Regex::new("─+").unwrap());
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.first().is_some_and(|first| !left_out.contains(first)))
        .map(|words| {
            let line = NUMBER.replace_all(&words.join(" "), "#").into_owned();
            RULE.replace_all(&line, "─").into_owned()
        })
        .collect()
}
