//! Aligned plain-text tables for the terminal and for logs.

use std::{borrow::Cow, fmt};

use super::visible::visible_line;

/// A table with a header. Cells are escaped by `visible_line`. Columns of numbers are aligned to the right, others to
/// the left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextTable {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// An empty table with these columns.
    pub fn new<Cell: Into<String>>(header: impl IntoIterator<Item = Cell>) -> Self {
        Self { header: header.into_iter().map(shown).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty, further cells add columns.
    pub fn row<Cell: Into<String>>(&mut self, cells: impl IntoIterator<Item = Cell>) -> &mut Self {
        self.rows.push(cells.into_iter().map(shown).collect());
        self
    }

    fn cells(&self, column: usize) -> impl Iterator<Item = &str> {
        self.rows.iter().map(move |row| row.get(column).map_or("", String::as_str))
    }
}

/// The maximum number of characters shown per cell; cells from files may be of any length.
const WIDEST: usize = 1000;

fn shown(cell: impl Into<String>) -> String {
    let mut cell = cell.into();
    if let Some((at, _)) = cell.char_indices().nth(WIDEST) {
        cell.truncate(at);
        cell.push('…');
    }
    match visible_line(&cell) {
        Cow::Borrowed(_) => cell,
        Cow::Owned(shown) => shown,
    }
}

/// Whether a cell is a number, with or without a unit such as `%`, `×`, `s` or `MiB`, or a placeholder for a missing
/// one.
fn is_number(cell: &str) -> bool {
    let number =
        cell.trim_end_matches(|character: char| !character.is_ascii_digit() && character != '.').trim_end();
    matches!(cell, "-" | "–" | "—" | "NaN" | "inf" | "-inf")
        || number.replace([',', ' '], "").parse::<f64>().is_ok()
}

impl fmt::Display for TextTable {
    /// Two spaces between columns, a line under the header, no trailing spaces, no trailing line break.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).chain([self.header.len()]).max().unwrap_or(0);
        let header = |column: usize| self.header.get(column).map_or("", String::as_str);
        let layout: Vec<(usize, bool)> = (0..columns)
            .map(|column| {
                let cells = self.cells(column).chain([header(column)]);
                let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
                let mut filled = self.cells(column).filter(|cell| !cell.is_empty()).peekable();
                (width, filled.peek().is_some() && filled.all(is_number))
            })
            .collect();
        let line = |cells: &dyn Fn(usize) -> String| {
            let padded = layout.iter().enumerate().map(|(column, &(width, to_the_right))| {
                let cell = cells(column);
                if to_the_right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        write!(formatter, "{}", line(&|column| header(column).to_owned()))?;
        write!(formatter, "\n{}", line(&|column| "─".repeat(layout[column].0)))?;
        for row in &self.rows {
            write!(formatter, "\n{}", line(&|column| row.get(column).cloned().unwrap_or_default()))?;
        }
        Ok(())
    }
}
