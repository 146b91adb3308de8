//! Wildcards in paths: `*`, `?` and `[0-9]` within a name, and `**` as the last name for everything in a folder.

use std::path::{Component, Path, PathBuf};

/// Whether a name matches a pattern with `*`, `?` and `[...]`.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where to resume if the rest does not match: after the last `*`, one character further.
    let mut resume = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                resume = Some((at + 1, from));
                at += 1;
                continue;
            }
            Some('?') => {
                (at, from) = (at + 1, from + 1);
                continue;
            }
            Some('[') => {
                if let Some(next) = in_class(&pattern[at..], name[from]) {
                    (at, from) = (at + next, from + 1);
                    continue;
                }
            }
            Some(character) if *character == name[from] => {
                (at, from) = (at + 1, from + 1);
                continue;
            }
            _ => {}
        }
        let Some((after, tried)) = resume else { return false };
        (at, from) = (after, tried + 1);
        resume = Some((after, tried + 1));
    }
    pattern[at..].iter().all(|character| *character == '*')
}

/// If the class that `pattern` starts with, such as `[0-9a]` or `[!x]`, contains `character`, the length of the class.
fn in_class(pattern: &[char], character: char) -> Option<usize> {
    let close = pattern.iter().skip(2).position(|&other| other == ']')? + 2;
    let mut class = &pattern[1..close];
    let negated = class.first().is_some_and(|first| matches!(first, '!' | '^'));
    class = &class[usize::from(negated)..];
    let mut contained = false;
    while let [first, rest @ ..] = class {
        class = match rest {
            ['-', last, rest @ ..] => {
                contained |= (*first..=*last).contains(&character);
                rest
            }
            _ => {
                contained |= *first == character;
                rest
            }
        };
    }
    (contained != negated).then_some(close + 1)
}

/// Whether an output at this canonical path would be one of the files that `pattern` matches.
pub(crate) fn covers(pattern: &Path, output: &Path) -> bool {
    let is_plain = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let mut parts = pattern.components().peekable();
    let mut folder = PathBuf::new();
    // A folder that exists under this name is meant literally.
    while let Some(part) = parts.next_if(|part| is_plain(part) || folder.join(part).is_dir()) {
        folder.push(part);
    }
    let has_wildcard = parts.peek().is_some();
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
    let Ok(within) = folder.canonicalize().map(|folder| output.strip_prefix(folder).map(Path::to_path_buf))
    else {
        return false;
    };
    let Ok(within) = within else { return false };
    let mut names = within.components();
    for part in parts {
        let part = part.as_os_str().to_string_lossy();
        let Some(name) = names.next() else { return false };
        if part == "**" {
            return true;
        }
        if !matches(&part, &name.as_os_str().to_string_lossy()) {
            return false;
        }
    }
    has_wildcard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_wildcards() {
        for (pattern, name, matched) in [
            ("*", "a.csv", true),
            ("*", ".a", false),
            (".*", ".a", true),
            ("part-*.parquet", "part-00-x.parquet", true),
            ("part-*.parquet", "part-00-x.parquet.crc", false),
            ("*a*b", "xaybzb", true),
            ("*a*b", "xaybz", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[0-9][!a]", "7b", true),
            ("[0-9][!a]", "7a", false),
            ("[]]x", "]x", true),
        ] {
            assert_eq!(matches(pattern, name), matched, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_covers_outputs_that_would_match_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        for name in ["data/more", "a[1]/b", "a1", "c*/d", "cd"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        for (pattern, output, covered) in [
            ("data/**", "data/x.csv", true),
            ("data/**", "data/more/x/y.csv", true),
            ("data/**", "data", false),
            ("data/**", "data2/x.csv", false),
            ("data/../data/**", "data/x.csv", true),
            ("data/*.csv", "data/x.csv", true),
            ("data/*.csv", "data/x.parquet", false),
            ("*/x.csv", "data/x.csv", true),
            ("*/x.csv", "data/y.csv", false),
            ("data/x.csv", "data/x.csv", false),
            // Folders whose names look like wildcards.
            ("a[1]/**", "a[1]/x.csv", true),
            ("a[1]/**", "a1/x.csv", false),
            ("a[1]/b/*.csv", "a[1]/b/x.csv", true),
            ("c*/**", "c*/d/x.csv", true),
            ("c*/**", "cd/x.csv", false),
        ] {
            assert_eq!(covers(&folder.join(pattern), &folder.join(output)), covered, "{pattern} {output}");
        }
    }
}
