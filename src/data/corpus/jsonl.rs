//! A corpus in JSON Lines: one object per line.
//!
//! The columns are the keys of the first lines, in order of first appearance. Text is unescaped, numbers and booleans
//! are kept as written, and null or a missing key is an empty field. A list or an object is kept as its JSON text, but
//! is an error as an id, an image or a caption.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::{BufRead, BufReader, Read as _},
    sync::Arc,
};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    columns::warn_once,
    delimited::{Malformed, Read},
    read_error::read_error,
    reader::{Origin, TableReader},
    rows::MAX_ROW_BYTES,
};
use crate::{
    data::{
        location::Location,
        store::{Kind, Readable},
    },
    error::{Error, Result},
};

/// Number of lines whose keys become columns.
const SCANNED_LINES: usize = 1000;
/// Size of the read buffer.
const BUFFER_BYTES: usize = 1 << 18;
/// Maximum number of keys named in a warning because they have no column.
const NAMED_KEYS: usize = 16;

/// A value as text: whether it is a list or an object, and the text.
pub(super) struct Text {
    nested: bool,
    /// The text; for a list or an object, its JSON.
    pub(super) text: String,
}

impl Text {
    fn of(value: &RawValue) -> Result<Self, serde_json::Error> {
        let raw = value.get();
        Ok(match raw.as_bytes().first() {
            Some(b'"') => Self { nested: false, text: serde_json::from_str(raw)? },
            Some(b'n') => Self { nested: false, text: String::new() },
            Some(b'{' | b'[') => Self { nested: true, text: raw.to_owned() },
            _ => Self { nested: false, text: raw.to_owned() },
        })
    }

    /// The text, unless it is a list or an object.
    ///
    /// # Errors
    /// `a list` or `an object`.
    pub(super) fn scalar(&self) -> Result<&str, &'static str> {
        match (self.nested, self.text.starts_with('[')) {
            (false, _) => Ok(&self.text),
            (true, true) => Err("a list"),
            (true, false) => Err("an object"),
        }
    }
}

/// The keys and values of an object, in order.
pub(super) struct Object(pub(super) Vec<(String, Text)>);

impl Object {
    /// Parses one object.
    ///
    /// # Errors
    /// A message, if the bytes are not one JSON object with distinct keys.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Vec<(String, Text)>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                use serde::de::Error as _;
                let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<&RawValue>()?;
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("the key `{key}` occurs twice")));
                    }
                    pairs.push((key, Text::of(value).map_err(A::Error::custom)?));
                }
                Ok(pairs)
            }
        }
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let pairs = (&mut deserializer).deserialize_map(Keys).and_then(|pairs| {
            deserializer.end()?;
            Ok(pairs)
        });
        pairs.map(Self).map_err(|error| {
            let message = error.to_string();
            // Every object is on one line.
            message.replace(" at line 1 column ", " at column ").replace(" at line 0 column 0", "")
        })
    }
}

/// A hint for a line that is not one object.
fn how_to_write(line: &[u8]) -> &'static str {
    match line.trim_ascii_start().first() {
        Some(b'{') => "JSON Lines have one whole object per line (jq -c . FILE)",
        Some(b'[') => "JSON Lines have one object per line, not a list (jq -c '.[]' FILE)",
        _ => "JSON Lines have one whole object per line",
    }
}

/// Reads lines of JSON, keeping one line in memory.
pub(super) struct JsonLines {
    at: Location,
    input: BufReader<Box<dyn Readable>>,
    header: Vec<String>,
    /// The column of each key.
    columns: HashMap<String, usize>,
    /// Columns that must not contain lists or objects; set after the columns are known.
    plain: Vec<String>,
    /// The current row.
    fields: Vec<String>,
    bytes: Vec<u8>,
    /// Number of the current line, counted from 1.
    line: u64,
    next: [u64; 2],
    other_keys: HashSet<String>,
}

impl JsonLines {
    /// Opens a file. Its columns are `header` or, if that is `None`, the keys of its first lines.
    ///
    /// # Errors
    /// If it cannot be read, or no line of it is an object.
    pub(super) fn open(at: &Location, header: Option<&[String]>) -> Result<Self> {
        let path = at.as_path();
        if !matches!(at.kind().map_err(Error::io("read", path))?, Kind::File(_)) {
            let message =
                "is not a regular file, and a table is read more than once; write it to a file first";
            return Err(Error::Table { path: path.to_path_buf(), line: None, message: message.to_owned() });
        }
        let mut lines = Self {
            at: at.clone(),
            input: Self::input(at, 0)?,
            header: header.unwrap_or_default().to_vec(),
            columns: HashMap::new(),
            plain: Vec::new(),
            fields: Vec::new(),
            bytes: Vec::new(),
            line: 0,
            next: [1, 0],
            other_keys: HashSet::new(),
        };
        if header.is_none() {
            lines.scan()?;
            lines.input = Self::input(at, 0)?;
            (lines.line, lines.next) = (0, [1, 0]);
        }
        let named = lines.header.iter().enumerate();
        lines.columns = named.map(|(column, name)| (name.clone(), column)).collect();
        lines.fields = vec![String::new(); lines.header.len()];
        Ok(lines)
    }

    fn input(at: &Location, from: u64) -> Result<BufReader<Box<dyn Readable>>> {
        let input = at.open_decompressed(from, 0).map_err(read_error(at))?;
        Ok(BufReader::with_capacity(BUFFER_BYTES, input))
    }

    /// Reads the keys of the first lines.
    fn scan(&mut self) -> Result<()> {
        let (mut first, mut known) = (None, HashSet::new());
        for _ in 0..SCANNED_LINES {
            match self.object()? {
                None => break,
                Some(Ok(Object(pairs))) => {
                    let keys = pairs.into_iter().map(|(key, _)| key);
                    self.header.extend(keys.filter(|key| known.insert(key.clone())));
                }
                Some(Err(message)) if first.is_none() => {
                    first = Some((self.line, format!("{message}; {}", how_to_write(&self.bytes))));
                }
                Some(Err(_)) => {}
            }
        }
        match first {
            Some((line, message)) if self.header.is_empty() => {
                Err(Error::Table { path: self.at.as_path().to_path_buf(), line: Some(line), message })
            }
            _ => Ok(()),
        }
    }

    /// Reads the next line that is not blank into `bytes`. Returns `false` at the end of the file, and an inner error
    /// for a line that is too long, which is skipped.
    fn line(&mut self) -> Result<Option<Result<(), String>>> {
        loop {
            self.bytes.clear();
            let most = MAX_ROW_BYTES as u64 + 1;
            let failed = |error| read_error(&self.at)(error);
            let mut read =
                (&mut self.input).take(most).read_until(b'\n', &mut self.bytes).map_err(failed)? as u64;
            if read == 0 {
                return Ok(None);
            }
            let too_long = read == most && self.bytes.last() != Some(&b'\n');
            while too_long && self.bytes.last() != Some(&b'\n') {
                self.bytes.clear();
                let more = (&mut self.input).take(most).read_until(b'\n', &mut self.bytes).map_err(failed)?;
                read += more as u64;
                if more == 0 {
                    break;
                }
            }
            self.line = self.next[0];
            self.next = [self.line + 1, self.next[1] + read];
            if too_long {
                return Ok(Some(Err(format!("the line is longer than {} MiB", MAX_ROW_BYTES >> 20))));
            }
            if self.line == 1 && self.bytes.starts_with(b"\xEF\xBB\xBF") {
                self.bytes.drain(..3);
            }
            if !self.bytes.trim_ascii().is_empty() {
                return Ok(Some(Ok(())));
            }
        }
    }

    /// The next object; `None` at the end of the file.
    fn object(&mut self) -> Result<Option<Result<Object, String>>> {
        Ok(self.line()?.map(|line| {
            line.and_then(|()| {
                Object::parse(self.bytes.trim_ascii_end())
                    .map_err(|error| format!("the line is not one JSON object: {error}"))
            })
        }))
    }

    /// The object, unless a value that must be plain text is a list or an object.
    fn with_plain_text(&self, object: Object) -> Result<Object, String> {
        for (key, value) in object.0.iter().filter(|(key, _)| self.plain.contains(key)) {
            if let Err(what) = value.scalar() {
                return Err(format!("the value of `{key}` is {what}, not text"));
            }
        }
        Ok(object)
    }

    /// Sets the fields of the current row.
    fn fill(&mut self, Object(pairs): Object) {
        self.fields.iter_mut().for_each(String::clear);
        for (key, value) in pairs {
            match self.columns.get(&key) {
                Some(&column) => self.fields[column] = value.text,
                None if self.other_keys.len() < NAMED_KEYS && !self.other_keys.contains(&key) => {
                    warn_once(format!(
                        "{}: the key `{key}` first occurs on line {}, after the columns were determined; it is ignored",
                        self.at, self.line
                    ));
                    self.other_keys.insert(key);
                }
                None => {}
            }
        }
    }
}

impl TableReader for JsonLines {
    fn header(&self) -> &[String] {
        &self.header
    }

    fn expect_text(&mut self, columns: &[usize]) {
        self.plain = columns.iter().map(|&column| self.header[column].clone()).collect();
    }

    fn read(&mut self) -> Result<Read> {
        let Some(object) = self.object()? else { return Ok(Read::End) };
        Ok(match object.and_then(|object| self.with_plain_text(object)) {
            Ok(object) => {
                self.fill(object);
                Read::Row
            }
            Err(message) => Read::Malformed(Malformed { line: self.line, message }),
        })
    }

    fn field(&self, column: usize) -> &str {
        self.fields.get(column).map_or("", String::as_str)
    }

    fn unit(&self) -> &'static str {
        "line"
    }

    fn number(&self) -> u64 {
        self.line
    }

    fn origin(&self, file: &Arc<Location>) -> Origin {
        Origin::new(file, self.line)
    }

    fn position(&self) -> [u64; 2] {
        self.next
    }

    fn seek(&mut self, to: [u64; 2]) -> Result<()> {
        if self.next != to {
            self.input = Self::input(&self.at, to[1])?;
            self.next = to;
        }
        Ok(())
    }

    fn has_more(&mut self) -> Result<bool> {
        let before = self.next;
        let more = self.line()?.is_some();
        self.seek(before)?;
        Ok(more)
    }

    fn refuse_header(&self, message: String) -> Error {
        Error::Table { path: self.at.as_path().to_path_buf(), line: None, message }
    }

    fn refuse_row(&self, row: Malformed) -> Error {
        super::delimited::refuse_row(self.at.as_path(), Some(row.line), row.message)
    }
}
