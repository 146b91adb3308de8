//! The links of a document that lead to a heading, and the anchors that GitHub gives headings.

use std::{collections::BTreeSet, path::Path};

/// The relative links of a document whose anchor is the anchor of no heading, as `PATH:LINE: LINK`. `read` reads a page.
pub(crate) fn broken(document: &Path, page: &str, read: &dyn Fn(&Path) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in prose(page) {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let Some((path, anchor)) = target.split_once('#') else { continue };
            if target.contains("://") {
                continue;
            }
            let known = if path.is_empty() {
                Some(anchors(page))
            } else {
                read(&document.with_file_name(path)).map(|other| anchors(&other))
            };
            if known.is_none_or(|known| !known.contains(anchor)) {
                found.push(format!("{}:{number}: {target}", document.display()));
            }
        }
    }
    found
}

/// The anchors of the headings of a page. The second heading of one name has `-1` after it, the third `-2`.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(page) {
        let heading = line.trim_start_matches('#');
        let level = line.len() - heading.len();
        if !(1..=6).contains(&level) || !heading.starts_with(' ') {
            continue;
        }
        let name = slug(heading.trim());
        let mut anchor = name.clone();
        let mut repeated = 0_usize;
        while !found.insert(anchor) {
            repeated += 1;
            anchor = format!("{name}-{repeated}");
        }
    }
    found
}

/// A heading in lower case, without punctuation, and with a hyphen for each space.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The lines of a page outside its code blocks, numbered from 1.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    page.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!in_code && !fence).then_some((at + 1, line))
    })
}
