//! A corpus in delimited text whose rows refer to images.

use std::sync::Arc;

use super::{
    delimited::{DelimitedTable, Malformed, Read},
    reader::{Origin, TableReader},
};
use crate::{
    data::location::Location,
    error::{Error, Result},
};

impl TableReader for DelimitedTable {
    fn header(&self) -> &[String] {
        self.header()
    }

    fn read(&mut self) -> Result<Read> {
        self.read()
    }

    fn field(&self, column: usize) -> &str {
        self.field(column)
    }

    fn unit(&self) -> &'static str {
        "line"
    }

    fn number(&self) -> u64 {
        self.line()
    }

    fn origin(&self, file: &Arc<Location>) -> Origin {
        Origin::new(file, self.line())
    }

    fn position(&self) -> [u64; 2] {
        let (line, byte) = self.next_position();
        [line, byte]
    }

    fn seek(&mut self, [line, byte]: [u64; 2]) -> Result<()> {
        self.seek(line, byte)
    }

    fn has_more(&mut self) -> Result<bool> {
        self.has_more()
    }

    fn refuse_header(&self, message: String) -> Error {
        self.refuse_header(message)
    }

    fn refuse_row(&self, row: Malformed) -> Error {
        self.refuse_row(row)
    }
}
