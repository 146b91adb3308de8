//! Summarizes why rows were skipped: the reasons with their counts, and the first files of each.

use std::path::Path;

use super::Error;

/// Maximum number of reasons in the summary.
const NAMED: usize = 3;
/// Maximum number of files per reason.
const FILES: usize = 3;

/// Reasons why rows were skipped, grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    groups: Vec<Group>,
    rows: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    why: String,
    rows: u64,
    /// The first files.
    files: Vec<String>,
}

impl Reasons {
    /// Counts a skipped row by its error message: `cannot read FILE: why`, or `FILE: why`.
    pub fn add(&mut self, message: &str) {
        self.rows += 1;
        let (file, why) = split_message(message);
        let group = match self.groups.iter().position(|group| group.why == why) {
            Some(at) => &mut self.groups[at],
            None => {
                self.groups.push(Group { why: why.to_owned(), rows: 0, files: Vec::new() });
                let last = self.groups.len() - 1;
                &mut self.groups[last]
            }
        };
        group.rows += 1;
        if let Some(file) = file
            && group.files.len() < FILES
            && !group.files.iter().any(|named| named == file)
        {
            group.files.push(file.to_owned());
        }
    }

    /// Number of skipped rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The error of a job for which no row of `table` is usable; `list` is the file with all reasons.
    pub fn none_usable(&self, table: &Path, list: Option<&Path>) -> Error {
        let rows = match self.rows {
            0 => {
                return Error::Table {
                    path: table.to_path_buf(),
                    line: None,
                    message: "the table has a header but no rows".to_owned(),
                };
            }
            1 => "the only row cannot be used".to_owned(),
            rows => format!("none of {rows} rows can be used"),
        };
        let list = list.map_or(String::new(), |list| format!("; see {}", list.display()));
        Error::Table { path: table.to_path_buf(), line: None, message: format!("{rows}: {self}{list}") }
    }
}

impl<'a> FromIterator<&'a str> for Reasons {
    fn from_iter<T: IntoIterator<Item = &'a str>>(messages: T) -> Self {
        let mut reasons = Self::default();
        messages.into_iter().for_each(|message| reasons.add(message));
        reasons
    }
}

impl std::fmt::Display for Reasons {
    /// Formats the most frequent reasons first: `why (58 rows: a.png, b.png, c.png, …), …`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.rows));
        for (at, group) in groups.iter().take(NAMED).enumerate() {
            let Group { why, rows, files } = group;
            let comma = if at > 0 { ", " } else { "" };
            let noun = if *rows == 1 { "row" } else { "rows" };
            write!(formatter, "{comma}{why} ({rows} {noun}")?;
            if !files.is_empty() {
                let more = if *rows > files.len() as u64 { ", …" } else { "" };
                write!(formatter, ": {}{more}", files.join(", "))?;
            }
            write!(formatter, ")")?;
        }
        let others: u64 = groups.iter().skip(NAMED).map(|group| group.rows).sum();
        if others > 0 { write!(formatter, ", and other reasons ({others})") } else { Ok(()) }
    }
}

/// Splits a message into the file it names and the rest.
fn split_message(message: &str) -> (Option<&str>, &str) {
    let rest = message.strip_prefix("cannot ").and_then(|rest| rest.split_once(' ')).map(|(_, rest)| rest);
    match rest.unwrap_or(message).split_once(": ") {
        Some((file, why)) if !file.is_empty() => (Some(file), why),
        _ => (None, message),
    }
}

/// Logs skipped rows: the first ones individually, and the total at the end.
#[derive(Debug, Default)]
pub(crate) struct LeftOutRows(u64);

impl LeftOutRows {
    /// Number of rows that are logged individually.
    const SAID: u64 = 5;

    /// Logs or counts a skipped row.
    pub(crate) fn add(&mut self, id: &str, reason: &dyn std::fmt::Display) {
        self.0 += 1;
        if self.0 <= Self::SAID {
            tracing::warn!("skipped {id}: {reason}");
        }
    }
}

impl Drop for LeftOutRows {
    fn drop(&mut self) {
        if self.0 > Self::SAID {
            tracing::warn!("skipped {} rows in total", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_grouped_and_the_first_files_named() {
        let mut reasons = Reasons::default();
        assert_eq!(
            reasons.none_usable(Path::new("t.csv"), None).to_string(),
            "t.csv: the table has a header but no rows"
        );
        reasons.add("b.png: not an image: every byte is 0");
        assert_eq!(
            reasons.none_usable(Path::new("t.csv"), None).to_string(),
            "t.csv: the only row cannot be used: not an image: every byte is 0 (1 row: b.png)"
        );
        for number in 0..5 {
            reasons.add(&format!("cannot read a/{number}.png: Permission denied"));
        }
        for why in ["one", "two", "three"] {
            reasons.add(&format!("c.png: {why}"));
        }
        let error = reasons.none_usable(Path::new("t.csv"), Some(Path::new("run/failed.csv"))).to_string();
        assert_eq!(
            error,
            "t.csv: none of 9 rows can be used: Permission denied (5 rows: a/0.png, a/1.png, a/2.png, …), \
             not an image: every byte is 0 (1 row: b.png), one (1 row: c.png), and other reasons (2); see \
             run/failed.csv"
        );
    }
}
