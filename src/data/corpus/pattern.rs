//! Lists of files in one argument: brace lists, `{00000..00099}.tar` and `{train,extra}.csv`, and wildcards, `*`, `?`
//! and `[0-9]`.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    files::wildcard::matches,
};

/// Upper bound on the paths that a brace list expands to.
const MOST_PATHS: usize = 1 << 20;

/// Whether a path contains a brace list or a wildcard.
pub(super) fn is_pattern(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(['{', '*', '?', '[']))
}

/// Whether a path contains a wildcard.
fn has_wildcard(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(['*', '?', '[']))
}

/// The paths that a pattern stands for: those of brace lists in the order of the list, whether or not they exist, and
/// for each with wildcards the existing ones, sorted byte by byte.
///
/// # Errors
/// If the pattern is malformed or a folder cannot be read.
pub(super) fn expand(pattern: &Path) -> Result<Vec<PathBuf>> {
    let refuse = |message: String| Error::Table { path: pattern.to_path_buf(), line: None, message };
    let text = pattern.to_str().ok_or_else(|| refuse("is not UTF-8".to_owned()))?;
    let mut paths = Vec::new();
    for listed in braces(text).map_err(refuse)? {
        let listed = PathBuf::from(listed);
        if has_wildcard(&listed) { paths.extend(wildcards(&listed)?) } else { paths.push(listed) }
    }
    Ok(paths)
}

/// Expands brace lists.
pub(super) fn braces(text: &str) -> Result<Vec<String>, String> {
    let Some(open) = text.find('{') else { return Ok(vec![text.to_owned()]) };
    let close = text[open..].find('}').ok_or_else(|| "a `{` has no `}`".to_owned())? + open;
    let rests = braces(&text[close + 1..])?;
    let items = items(&text[open + 1..close])?;
    if items.len().saturating_mul(rests.len()) > MOST_PATHS {
        return Err(format!("the brace list stands for more than {MOST_PATHS} paths"));
    }
    let before = &text[..open];
    Ok(items.iter().flat_map(|item| rests.iter().map(move |rest| format!("{before}{item}{rest}"))).collect())
}

/// The items of one brace list: a range of numbers, padded with zeros as its bounds are, or a list.
fn items(list: &str) -> Result<Vec<String>, String> {
    let Some((first, last)) = list.split_once("..") else {
        return Ok(list.split(',').map(str::to_owned).collect());
    };
    let refuse = || format!("`{{{list}}}` is not a range of numbers, such as {{00000..00099}}");
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u64>().map_err(|_| refuse()) } else { Err(refuse()) }
    };
    let (from, to) = (number(first)?, number(last)?);
    if from.abs_diff(to) >= MOST_PATHS as u64 {
        return Err(format!("the brace list stands for more than {MOST_PATHS} paths"));
    }
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    let text = |number: u64| format!("{number:0width$}");
    Ok(if from <= to { (from..=to).map(text).collect() } else { (to..=from).rev().map(text).collect() })
}

/// The existing paths that match. A wildcard does not match a leading dot.
fn wildcards(pattern: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let Component::Normal(name) = part else {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let name = name.to_string_lossy();
        if !name.contains(['*', '?', '[']) {
            found.iter_mut().for_each(|path| path.push(name.as_ref()));
            found.retain(|path| path.exists());
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            if !listed.is_dir() {
                continue;
            }
            for entry in fs::read_dir(listed).map_err(Error::io("read", listed))? {
                let entry = entry.map_err(Error::io("read", listed))?.file_name();
                if entry.to_str().is_some_and(|entry| matches(&name, entry)) {
                    next.push(folder.join(entry));
                }
            }
        }
        next.sort();
        found = next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brace_lists_stand_for_paths_in_their_order() {
        for (list, expected) in [
            ("{000..002}.tar", &["000.tar", "001.tar", "002.tar"][..]),
            ("{8..10}.tar", &["8.tar", "9.tar", "10.tar"]),
            ("{08..10}", &["08", "09", "10"]),
            ("{2..0}", &["2", "1", "0"]),
            ("{b,a}/{0..1}", &["b/0", "b/1", "a/0", "a/1"]),
            ("plain", &["plain"]),
        ] {
            assert_eq!(braces(list).unwrap(), expected, "{list}");
        }
        for malformed in
            ["{0..1", "{a..b}", "{0..9999999}", "{0..1048575}{0..1}", "{0..99999999999999999999}"]
        {
            assert!(braces(malformed).is_err(), "{malformed}");
        }
    }

    #[test]
    fn wildcards_match_existing_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/1.tar", "a/2.tar", "a/1.tar", "a/1.txt"] {
            fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = expand(&folder.path().join("{b,a}/*.tar")).unwrap();
        let found: Vec<&Path> = found.iter().map(|path| path.strip_prefix(folder.path()).unwrap()).collect();
        assert_eq!(found, ["b/1.tar", "a/1.tar", "a/2.tar"].map(Path::new));
        assert_eq!(expand(&folder.path().join("*/3.tar")).unwrap(), [] as [PathBuf; 0]);
    }
}
