//! Rows of a CSV file in RFC 4180 form, one at a time, in memory bounded by the longest row.
//!
//! The `csv` crate is lenient where a corpus must not be: it reads `"a"b` as `ab`, takes the rest of the file for one
//! field when a quote is never closed, and grows without bound while it does so. Here each of these is an error with
//! its line. What is well formed is read alike: quotes inside an unquoted field are literal, `\n`, `\r\n` and `\r`
//! end a row, and blank lines are skipped.

use std::io::BufRead;

/// The longest row that is read. A longer one is nearly always a quote that was never closed.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// Why a row cannot be read.
#[derive(Debug)]
pub enum RowError {
    /// Reading failed.
    Io(std::io::Error),
    /// The row is malformed.
    Malformed {
        /// The line it concerns, counted from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    RowStart,
    FieldStart,
    Unquoted,
    Quoted,
    QuoteSeen,
    ReturnSeen,
}

/// Reads rows from `input`. One row is held at a time.
#[derive(Debug)]
pub struct RowReader<R> {
    input: R,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    row_line: u64,
    next_line: u64,
    next_byte: u64,
}

impl<R: BufRead> RowReader<R> {
    /// A reader whose first byte is byte `byte` (from 0) on line `line` (from 1) of the file.
    pub fn new(input: R, line: u64, byte: u64) -> Self {
        Self { input, bytes: Vec::new(), ends: Vec::new(), row_line: line, next_line: line, next_byte: byte }
    }

    /// The line on which the row last read began.
    pub fn row_line(&self) -> u64 {
        self.row_line
    }

    /// The line and the byte at which the next row is looked for.
    pub fn next_position(&self) -> (u64, u64) {
        (self.next_line, self.next_byte)
    }

    /// Fields in the row last read.
    pub fn field_count(&self) -> usize {
        self.ends.len()
    }

    /// The fields of the row last read, as text.
    ///
    /// # Errors
    /// If a field is not UTF-8.
    pub fn fields(&self) -> Result<Vec<&str>, RowError> {
        let mut start = 0;
        let mut fields = Vec::with_capacity(self.ends.len());
        for (index, &end) in self.ends.iter().enumerate() {
            match std::str::from_utf8(&self.bytes[start..end]) {
                Ok(text) => fields.push(text),
                Err(error) => {
                    let before = &self.bytes[..start + error.valid_up_to()];
                    return Err(RowError::Malformed {
                        line: self.row_line + count_lines(before),
                        message: format!(
                            "field {} is not UTF-8 (byte 0x{:02x}); save the file as UTF-8",
                            index + 1,
                            self.bytes[start + error.valid_up_to()]
                        ),
                    });
                }
            }
            start = end;
        }
        Ok(fields)
    }

    /// Skips blank lines; whether anything is left after them.
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

    /// Reads the next row; `false` at the end of the file.
    ///
    /// # Errors
    /// If reading fails, a quote is not closed, text follows a closing quote, or the row is longer than
    /// [`MAX_ROW_BYTES`].
    pub fn read(&mut self) -> Result<bool, RowError> {
        self.bytes.clear();
        self.ends.clear();
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
                match state {
                    State::RowStart => return Ok(false),
                    State::Quoted => return Err(unclosed(quote_line)),
                    State::ReturnSeen => self.next_line += 1,
                    State::FieldStart | State::Unquoted | State::QuoteSeen => {
                        self.ends.push(self.bytes.len())
                    }
                }
                return Ok(true);
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
                        state = State::FieldStart;
                    }
                    State::FieldStart if byte == b'"' => {
                        quote_line = self.next_line;
                        state = State::Quoted;
                        used += 1;
                    }
                    State::QuoteSeen if byte == b'"' => {
                        self.bytes.push(b'"');
                        state = State::Quoted;
                        used += 1;
                    }
                    State::FieldStart | State::Unquoted | State::QuoteSeen
                        if matches!(byte, b',' | b'\n' | b'\r') =>
                    {
                        self.ends.push(self.bytes.len());
                        used += 1;
                        match byte {
                            b',' => state = State::FieldStart,
                            b'\r' => state = State::ReturnSeen,
                            _ => {
                                self.next_line += 1;
                                complete = true;
                            }
                        }
                    }
                    State::QuoteSeen => {
                        return Err(RowError::Malformed {
                            line: self.next_line,
                            message: format!(
                                "unbalanced quotes: text follows the quote that closes a field opened on line \
                                 {quote_line}; write a quote inside a quoted field twice"
                            ),
                        });
                    }
                    State::FieldStart | State::Unquoted => {
                        state = State::Unquoted;
                        let rest = &buffer[used..];
                        let run = rest
                            .iter()
                            .position(|byte| matches!(byte, b',' | b'\n' | b'\r'))
                            .unwrap_or(rest.len());
                        self.bytes.extend_from_slice(&rest[..run]);
                        used += run;
                    }
                    State::Quoted => {
                        let rest = &buffer[used..];
                        let closing = rest.iter().position(|&byte| byte == b'"');
                        let run = closing.unwrap_or(rest.len());
                        self.next_line += count_lines(&rest[..run]);
                        self.bytes.extend_from_slice(&rest[..run]);
                        used += run;
                        if closing.is_some() {
                            state = State::QuoteSeen;
                            used += 1;
                        }
                    }
                    State::ReturnSeen => {
                        used += usize::from(byte == b'\n');
                        self.next_line += 1;
                        complete = true;
                    }
                }
            }
            self.input.consume(used);
            self.next_byte += used as u64;
            if self.bytes.len() > MAX_ROW_BYTES {
                return Err(RowError::Malformed {
                    line: if state == State::Quoted { quote_line } else { self.row_line },
                    message: format!(
                        "the row is longer than {} MiB; most likely a quote is not closed",
                        MAX_ROW_BYTES >> 20
                    ),
                });
            }
        }
        Ok(true)
    }
}

fn unclosed(line: u64) -> RowError {
    RowError::Malformed {
        line,
        message:
            "unbalanced quotes: the quote opened here is never closed; close it, or write the whole field in \
                  quotes with the quotes inside it doubled"
                .to_owned(),
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(u64, Vec<String>)> {
        // A buffer of three bytes, so that every state also meets the end of a buffer.
        let mut reader = RowReader::new(std::io::BufReader::with_capacity(3, text.as_bytes()), 1, 0);
        let mut rows = Vec::new();
        while reader.read().unwrap() {
            let fields = reader.fields().unwrap().into_iter().map(str::to_owned).collect();
            rows.push((reader.row_line(), fields));
        }
        assert_eq!(reader.next_position().1, text.len() as u64);
        rows
    }

    #[test]
    fn rows_are_read_as_the_csv_crate_reads_them() {
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
}
