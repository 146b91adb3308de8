//! Reads rows of delimited text (RFC 4180, with commas, tabs or semicolons) one at a time, in memory bounded by the
//! longest row.
//!
//! The `csv` crate is lenient where a corpus reader must not be: it reads `"a"b` as `ab`, treats the rest of the file
//! as one field if a quote is never closed, and allocates without bound while doing so. Here each of these is an
//! error with a line number. Well-formed input is parsed identically: quotes inside an unquoted field are literal,
//! `\n`, `\r\n` and `\r` end a row, and blank lines are skipped.

use std::{
    io::{BufRead, BufReader, Read, Seek},
    ops::Range,
};

use memchr::{memchr, memchr_iter, memchr2, memchr3};

/// Maximum length of a row. A longer one is nearly always an unclosed quote.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// Why a row cannot be read.
#[derive(Debug)]
pub enum RowError {
    /// An I/O error.
    Io(std::io::Error),
    /// The row is malformed.
    Malformed {
        /// The line of the error, counted from 1.
        line: u64,
        /// The error message.
        message: String,
        /// Whether the end of the row was found, so that reading continues at the next row.
        ended: bool,
    },
}

/// The fields of a row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The fields, joined by a separator.
    text: &'a str,
    /// End offset of each field.
    ends: &'a [usize],
}

impl<'a> Row<'a> {
    /// Number of fields.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The field at `index`.
    pub fn get(&self, index: usize) -> Option<&'a str> {
        let end = *self.ends.get(index)?;
        let begin = if index == 0 { 0 } else { self.ends[index - 1] + 1 };
        Some(&self.text[begin..end])
    }

    /// The fields in order.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        (0..self.len()).filter_map(move |index| self.get(index))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    RowStart,
    FieldStart,
    Unquoted,
    Quoted,
    AfterQuote,
    AfterReturn,
}

/// Reads rows from `input`, keeping one row in memory.
#[derive(Debug)]
pub struct RowReader<R> {
    input: R,
    separator: u8,
    /// The bytes of the row being read; empty between rows.
    bytes: Vec<u8>,
    /// The fields of the current row, joined by a separator.
    text: String,
    ends: Vec<usize>,
    row_line: u64,
    row_byte: u64,
    next_line: u64,
    next_byte: u64,
}

impl<R: BufRead> RowReader<R> {
    /// A reader whose input starts at byte `byte` (from 0), on line `line` (from 1), of a file with fields separated
    /// by the ASCII byte `separator`.
    pub fn new(input: R, separator: u8, line: u64, byte: u64) -> Self {
        Self {
            input,
            separator,
            bytes: Vec::new(),
            text: String::new(),
            ends: Vec::new(),
            row_line: line,
            row_byte: byte,
            next_line: line,
            next_byte: byte,
        }
    }

    /// The line on which the current row starts.
    pub fn row_line(&self) -> u64 {
        self.row_line
    }

    /// The byte range of the current row in the file, including its line break.
    pub fn row_bytes(&self) -> Range<u64> {
        self.row_byte..self.next_byte
    }

    /// The line and byte offset of the next row.
    pub fn next_position(&self) -> (u64, u64) {
        (self.next_line, self.next_byte)
    }

    /// The current row.
    pub fn row(&self) -> Row<'_> {
        Row { text: &self.text, ends: &self.ends }
    }

    /// Reads the next row. Returns `false` at the end of the file.
    ///
    /// # Errors
    /// If reading fails, a quote is not closed, text follows a closing quote, a field is not UTF-8, or the row is
    /// longer than [`MAX_ROW_BYTES`].
    pub fn read(&mut self) -> Result<bool, RowError> {
        self.bytes = std::mem::take(&mut self.text).into_bytes();
        self.bytes.clear();
        self.ends.clear();
        if !self.read_bytes()? {
            return Ok(false);
        }
        match String::from_utf8(std::mem::take(&mut self.bytes)) {
            Ok(text) => {
                self.text = text;
                Ok(true)
            }
            Err(error) => Err(self.not_text(error.as_bytes())),
        }
    }

    /// The error for a row that is not UTF-8.
    fn not_text(&self, bytes: &[u8]) -> RowError {
        let mut start = 0;
        for (index, &end) in self.ends.iter().enumerate() {
            if let Err(error) = std::str::from_utf8(&bytes[start..end]) {
                let at = start + error.valid_up_to();
                return RowError::Malformed {
                    line: self.row_line + count_lines(&bytes[..at]),
                    message: format!(
                        "field {} is not UTF-8 (byte 0x{:02x}); save the file as UTF-8",
                        index + 1,
                        bytes[at]
                    ),
                    ended: true,
                };
            }
            start = end + 1;
        }
        RowError::Malformed {
            line: self.row_line,
            message: "the row is not UTF-8; save the file as UTF-8".to_owned(),
            ended: true,
        }
    }

    /// Skips blank lines. Returns whether anything follows them.
    ///
    /// # Errors
    /// If reading fails.
    pub fn has_more(&mut self) -> Result<bool, RowError> {
        loop {
            let buffer = self.input.fill_buf().map_err(RowError::Io)?;
            let Some(&byte) = buffer.first() else { return Ok(false) };
            if byte != b'\n' && byte != b'\r' {
                return Ok(true);
            }
            self.next_line += u64::from(byte == b'\n');
            self.next_byte += 1;
            self.input.consume(1);
        }
    }

    /// Reads the bytes of the next row and the ends of its fields. Returns `false` at the end of the file.
    fn read_bytes(&mut self) -> Result<bool, RowError> {
        let separator = self.separator;
        let mut state = State::RowStart;
        let mut quote_line = self.next_line;
        let mut complete = false;
        while !complete {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(RowError::Io(error)),
            };
            if buffer.is_empty() {
                return self.end_of_file(state, quote_line);
            }
            let mut used = 0;
            while used < buffer.len() && !complete {
                let byte = buffer[used];
                match state {
                    State::RowStart if byte == b'\n' || byte == b'\r' => {
                        self.next_line += u64::from(byte == b'\n');
                        used += 1;
                    }
                    State::RowStart => {
                        self.row_line = self.next_line;
                        self.row_byte = self.next_byte + used as u64;
                        let rest = &buffer[used..];
                        let (taken, is_row) = without_quotes(rest, separator);
                        let fields = &rest[..taken];
                        self.bytes.extend_from_slice(fields);
                        self.ends.extend(memchr_iter(separator, fields));
                        used += taken;
                        state = State::FieldStart;
                        if let Some(line_break) = is_row {
                            self.ends.push(taken);
                            self.next_line += 1;
                            used += line_break;
                            complete = true;
                        }
                    }
                    State::FieldStart if byte == b'"' => {
                        quote_line = self.next_line;
                        state = State::Quoted;
                        used += 1;
                    }
                    State::AfterQuote if byte == b'"' => {
                        self.bytes.push(b'"');
                        state = State::Quoted;
                        used += 1;
                    }
                    State::FieldStart | State::Unquoted | State::AfterQuote
                        if byte == separator || byte == b'\n' || byte == b'\r' =>
                    {
                        self.ends.push(self.bytes.len());
                        used += 1;
                        if byte == b'\r' {
                            state = State::AfterReturn;
                        } else if byte == b'\n' {
                            self.next_line += 1;
                            complete = true;
                        } else {
                            self.bytes.push(separator);
                            state = State::FieldStart;
                        }
                    }
                    State::AfterQuote => return Err(unbalanced(self.next_line, quote_line)),
                    State::FieldStart | State::Unquoted => {
                        state = State::Unquoted;
                        let rest = &buffer[used..];
                        let run = memchr3(separator, b'\n', b'\r', rest).unwrap_or(rest.len());
                        self.bytes.extend_from_slice(&rest[..run]);
                        used += run;
                    }
                    State::Quoted => {
                        let rest = &buffer[used..];
                        let closing = memchr(b'"', rest);
                        let run = closing.unwrap_or(rest.len());
                        self.next_line += count_lines(&rest[..run]);
                        self.bytes.extend_from_slice(&rest[..run]);
                        used += run;
                        if closing.is_some() {
                            state = State::AfterQuote;
                            used += 1;
                        }
                    }
                    State::AfterReturn => {
                        used += usize::from(byte == b'\n');
                        self.next_line += 1;
                        complete = true;
                    }
                }
            }
            self.input.consume(used);
            self.next_byte += used as u64;
            if self.bytes.len() > MAX_ROW_BYTES {
                return Err(too_long(if state == State::Quoted { quote_line } else { self.row_line }));
            }
        }
        Ok(true)
    }

    /// Completes the row at the end of the file, if there is one.
    fn end_of_file(&mut self, state: State, quote_line: u64) -> Result<bool, RowError> {
        match state {
            State::RowStart => return Ok(false),
            State::Quoted => return Err(unclosed(quote_line)),
            State::AfterReturn => self.next_line += 1,
            State::FieldStart | State::Unquoted | State::AfterQuote => self.ends.push(self.bytes.len()),
        }
        Ok(true)
    }
}

/// Fast path: the number of bytes from the start of a row that are complete unquoted fields, and the length of the
/// line break if they are the whole row. Most rows of most tables take this path.
fn without_quotes(rest: &[u8], separator: u8) -> (usize, Option<usize>) {
    match memchr3(b'\n', b'"', b'\r', rest) {
        Some(at) if rest[at] == b'\n' => (at, Some(1)),
        Some(at) if rest[at..].starts_with(b"\r\n") => (at, Some(2)),
        Some(at) if rest[at] == b'"' && at > 0 && rest[at - 1] == separator => (at, None),
        _ => (0, None),
    }
}

impl<R: Read + Seek> RowReader<BufReader<R>> {
    /// Skips to the line after the one on which the current row starts, if the end of the row was not found.
    ///
    /// # Errors
    /// If reading fails.
    #[expect(clippy::cast_possible_wrap, reason = "offsets in a file, which are below 2^63")]
    pub fn skip_line(&mut self) -> Result<(), RowError> {
        let back = self.row_byte as i64 - self.next_byte as i64;
        self.input.seek_relative(back).map_err(RowError::Io)?;
        (self.next_line, self.next_byte) = (self.row_line, self.row_byte);
        loop {
            let buffer = self.input.fill_buf().map_err(RowError::Io)?;
            let found = memchr2(b'\n', b'\r', buffer);
            let used = found.map_or(buffer.len(), |at| at + 1);
            let at_return = found.is_some_and(|at| buffer[at] == b'\r');
            self.next_byte += used as u64;
            self.input.consume(used);
            if found.is_some() {
                self.next_line += 1;
                // The second byte of a two-byte line break does not start a line.
                if at_return && self.input.fill_buf().map_err(RowError::Io)?.first() == Some(&b'\n') {
                    self.next_byte += 1;
                    self.input.consume(1);
                }
                return Ok(());
            }
            if used == 0 {
                return Ok(());
            }
        }
    }
}

/// The error for text after a closing quote.
fn unbalanced(line: u64, quote_line: u64) -> RowError {
    RowError::Malformed {
        line,
        message: format!(
            "unbalanced quotes: text follows the quote that closes a field opened on line {quote_line}; write a \
             quote inside a quoted field twice"
        ),
        ended: false,
    }
}

/// The error for a row that exceeds the maximum length.
fn too_long(line: u64) -> RowError {
    RowError::Malformed {
        line,
        message: format!(
            "the row is longer than {} MiB; probably a quote is not closed",
            MAX_ROW_BYTES >> 20
        ),
        ended: false,
    }
}

fn unclosed(line: u64) -> RowError {
    RowError::Malformed {
        line,
        message:
            "unbalanced quotes: the quote opened here is never closed; close it, or write the whole field in \
                  quotes with the quotes inside it doubled"
                .to_owned(),
        ended: false,
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(u64, Vec<String>)> {
        separated(text, b',')
    }

    fn separated(text: &str, separator: u8) -> Vec<(u64, Vec<String>)> {
        // A buffer of three bytes, so that every state also meets the end of a buffer.
        let input = BufReader::with_capacity(3, text.as_bytes());
        let mut reader = RowReader::new(input, separator, 1, 0);
        let mut rows = Vec::new();
        while reader.read().unwrap() {
            rows.push((reader.row_line(), reader.row().iter().map(str::to_owned).collect()));
        }
        assert_eq!(reader.next_position().1, text.len() as u64);
        rows
    }

    #[test]
    fn rows_match_those_of_the_csv_crate() {
        let text = "a,b\n\"x, \"\"y\"\"\nz\",5\" nail\r\n\r\n,\"\"\nlast,\"q\"";
        let read = rows(text);
        let mut reference = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
        let expected: Vec<Vec<String>> =
            reference.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
        assert_eq!(read.iter().map(|row| row.1.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(read.iter().map(|row| row.0).collect::<Vec<_>>(), [1, 2, 5, 6]);
    }

    #[test]
    fn all_three_line_ends_count_as_one_line() {
        for end in ["\n", "\r\n", "\r"] {
            let lines: Vec<u64> =
                rows(&["a,b", "c,d", "e,f"].join(end)).into_iter().map(|row| row.0).collect();
            assert_eq!(lines, [1, 2, 3], "{end:?}");
        }
    }

    #[test]
    fn other_separators_are_read_alike_and_rows_know_their_bytes() {
        let text = "a,b\n\n\"x, \"\"y\"\"\nz\",5\" nail\r\nlast,\"q\"";
        for (separator, mark) in [(b'\t', "\t"), (b';', ";")] {
            let other = text.replace(", ", "\u{1}").replace(',', mark).replace('\u{1}', ", ");
            assert_eq!(separated(&other, separator), rows(text));
        }
        let mut reader = RowReader::new(BufReader::with_capacity(3, text.as_bytes()), b',', 1, 0);
        let mut found = Vec::new();
        while reader.read().unwrap() {
            let bytes = reader.row_bytes();
            found.push(&text[bytes.start as usize..bytes.end as usize]);
        }
        assert_eq!(found, ["a,b\n", "\"x, \"\"y\"\"\nz\",5\" nail\r\n", "last,\"q\""]);
    }

    #[test]
    fn reading_continues_at_the_line_after_an_unbalanced_quote() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["a,b", "c,\"d", "e,\"f\"g", "h,i", "j,\"k"].join(end);
            let input = BufReader::with_capacity(3, std::io::Cursor::new(text.as_bytes()));
            let mut reader = RowReader::new(input, b',', 1, 0);
            let mut found = Vec::new();
            loop {
                match reader.read() {
                    Ok(false) => break,
                    Ok(true) => {
                        found.push((reader.row_line(), reader.row().iter().collect::<Vec<_>>().join(",")))
                    }
                    Err(RowError::Malformed { ended, .. }) => {
                        assert!(!ended);
                        found.push((reader.row_line(), "!".to_owned()));
                        reader.skip_line().unwrap();
                    }
                    Err(RowError::Io(error)) => panic!("{error}"),
                }
            }
            let expected = [(1, "a,b"), (2, "!"), (3, "!"), (4, "h,i"), (5, "!")];
            assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())), "{end:?}");
        }
    }
}
