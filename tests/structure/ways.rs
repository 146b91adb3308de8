//! The ways through the program that docs/architecture.md lists.

use std::{collections::BTreeSet, fs, path::Path};

/// The folder that a file counts to, its subfolders included. The parts of `data` are folders of their own: a record and its image are
/// read at different times.
fn block(file: &str) -> &str {
    let depth = if file.starts_with("data/") { 2 } else { 1 };
    let end = file.match_indices('/').nth(depth - 1).map_or(file.len(), |(at, _)| at);
    &file[..end]
}

/// What is wrong with the lists of a page: a function that is not in its file, a folder or a file that comes up again.
pub(crate) fn mistakes(page: &str, text_of: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for section in page.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap_or_default();
        let (mut blocks, mut files, mut at) = (BTreeSet::new(), BTreeSet::new(), "");
        for line in section.lines().filter_map(|line| line.strip_prefix("- `src/")) {
            let Some((file, functions)) = line.split_once("`: ") else {
                found.push(format!("{title}: {line} names no function"));
                continue;
            };
            if block(file) != at && !blocks.insert(block(file)) {
                found.push(format!("{title}: the folder {} is entered twice", block(file)));
            }
            at = block(file);
            if !files.insert(file) {
                found.push(format!("{title}: {file} is entered twice"));
            }
            let text = text_of(file).unwrap_or_default();
            for function in functions.split(", ").map(|function| function.trim_matches('`')) {
                if !["(", "<"].iter().any(|after| text.contains(&format!("fn {function}{after}"))) {
                    found.push(format!("{title}: {file} has no function {function}"));
                }
            }
        }
    }
    found
}

/// A file of `src/`.
pub(crate) fn source(file: &str) -> Option<String> {
    fs::read_to_string(Path::new("src").join(file)).ok()
}
