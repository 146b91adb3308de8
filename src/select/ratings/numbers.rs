//! Tables with several numeric columns along with the columns of the corpus, written by `attribute` as CSV or Parquet.
//!
//! In Parquet, text columns are UTF8 and numeric columns DOUBLE, optional if values may be missing, compressed with
//! snappy. In CSV a missing value is an empty field, and other values are the shortest decimals that parse back to
//! the same value.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as PhysicalType},
    data_type::{ByteArray, ByteArrayType, DoubleType},
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::{ColumnPath, Type},
};

use super::{
    TableKind,
    comma_separated::{finish_csv, write_error},
    parquet_file::{GROUP_BYTES, GROUP_ROWS},
    table_error,
};
use crate::{
    data::corpus::parquet::parquet_error,
    error::{Error, Result},
    files::AtomicFile,
};

/// A numeric column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NumberColumn {
    /// Its name.
    pub name: String,
    /// Whether values may be missing.
    pub optional: bool,
}

/// The columns of a table: those of the corpus, with the numeric ones right after the id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NumberHeader {
    texts: Vec<String>,
    id: usize,
    numbers: Vec<NumberColumn>,
}

impl NumberHeader {
    /// The header for a corpus with these columns; `id` is the index of the id column.
    ///
    /// # Errors
    /// If two columns would have the same name, or there is no column `id`.
    pub(crate) fn for_corpus(columns: &[String], id: usize, numbers: Vec<NumberColumn>) -> Result<Self> {
        if id >= columns.len() {
            return Err(Error::invalid("the corpus has no column of ids"));
        }
        for (at, column) in columns.iter().enumerate() {
            if numbers.iter().any(|number| number.name == *column) {
                return Err(Error::argument(format!(
                    "the corpus already has a column `{column}`, which is an output column; rename it"
                )));
            }
            if columns[..at].contains(column) {
                return Err(Error::argument(format!("two columns are called `{column}`; rename one")));
            }
        }
        Ok(Self { texts: columns.to_vec(), id, numbers })
    }

    /// All columns in order, as indices into the texts and the values.
    fn fields(&self) -> impl Iterator<Item = Field> {
        let texts = |range: std::ops::Range<usize>| range.map(Field::Text);
        texts(0..self.id + 1)
            .chain((0..self.numbers.len()).map(Field::Number))
            .chain(texts(self.id + 1..self.texts.len()))
    }
}

/// The source of a column's values.
#[derive(Clone, Copy)]
enum Field {
    Text(usize),
    Number(usize),
}

/// Writes a table row by row in constant memory. The file is created atomically by [`finish`](Self::finish).
pub(crate) struct NumberWriter {
    path: PathBuf,
    header: NumberHeader,
    kind: Kind,
}

enum Kind {
    Csv(Box<csv::Writer<AtomicFile>>),
    Parquet(Box<Groups>),
}

impl NumberWriter {
    /// Starts a table at `path`, whose extension selects CSV or Parquet.
    ///
    /// # Errors
    /// If the extension is unknown or the folder is not writable.
    pub(crate) fn create(path: &Path, header: NumberHeader) -> Result<Self> {
        let kind = match TableKind::of(path)? {
            TableKind::Csv => {
                let mut writer = csv::Writer::from_writer(AtomicFile::create(path)?);
                let names = header.fields().map(|field| match field {
                    Field::Text(at) => &header.texts[at],
                    Field::Number(at) => &header.numbers[at].name,
                });
                writer.write_record(names).map_err(|error| write_error(path, error))?;
                Kind::Csv(Box::new(writer))
            }
            TableKind::Parquet => Kind::Parquet(Box::new(Groups::create(path, &header)?)),
        };
        Ok(Self { path: path.to_path_buf(), header, kind })
    }

    /// Appends a row: the corpus' fields and the values, each in the order of the header.
    ///
    /// # Errors
    /// If the number of fields or values differs from the header, a value is not finite, a required value is missing,
    /// or the disk is full.
    pub(crate) fn write(&mut self, texts: &[String], numbers: &[Option<f64>]) -> Result<()> {
        let NumberHeader { texts: own, id, numbers: columns } = &self.header;
        if texts.len() != own.len() || numbers.len() != columns.len() {
            return Err(table_error(&self.path, None, "the number of fields differs from the header"));
        }
        for (column, number) in columns.iter().zip(numbers) {
            if !number.map_or(column.optional, f64::is_finite) {
                let (name, id) = (&column.name, &texts[*id]);
                return Err(table_error(
                    &self.path,
                    None,
                    format!("id `{id}`: the value of `{name}` is missing or not finite"),
                ));
            }
        }
        match &mut self.kind {
            Kind::Csv(writer) => {
                let number = |at: usize| numbers[at].map_or(String::new(), |number| format!("{number:?}"));
                for field in self.header.fields() {
                    match field {
                        Field::Text(at) => writer.write_field(&texts[at]),
                        Field::Number(at) => writer.write_field(number(at)),
                    }
                    .map_err(|error| write_error(&self.path, error))?;
                }
                writer.write_record(None::<&[u8]>).map_err(|error| write_error(&self.path, error))
            }
            Kind::Parquet(groups) => groups.write(&self.header, texts, numbers, &self.path),
        }
    }

    /// Completes the file and renames it to its final name.
    ///
    /// # Errors
    /// If the disk is full or the rename fails.
    pub(crate) fn finish(self) -> Result<()> {
        match self.kind {
            Kind::Csv(writer) => finish_csv(*writer, &self.path),
            Kind::Parquet(groups) => groups.finish(&self.header, &self.path),
        }
    }
}

/// Rows buffered for the next row groups of a Parquet file.
struct Groups {
    writer: SerializedFileWriter<AtomicFile>,
    texts: Vec<Vec<ByteArray>>,
    numbers: Vec<Vec<f64>>,
    /// Definition levels per numeric column: 1 for a value, 0 for a missing one.
    levels: Vec<Vec<i16>>,
    rows: usize,
    bytes: usize,
}

impl Groups {
    fn create(path: &Path, header: &NumberHeader) -> Result<Self> {
        let failed = |error| parquet_error("write", path, error);
        let column_type = |field: Field| match field {
            Field::Text(at) => Type::primitive_type_builder(&header.texts[at], PhysicalType::BYTE_ARRAY)
                .with_logical_type(Some(LogicalType::String))
                .with_repetition(Repetition::REQUIRED)
                .build(),
            Field::Number(at) => {
                let NumberColumn { name, optional } = &header.numbers[at];
                let repetition = if *optional { Repetition::OPTIONAL } else { Repetition::REQUIRED };
                Type::primitive_type_builder(name, PhysicalType::DOUBLE).with_repetition(repetition).build()
            }
        };
        let fields = header.fields().map(|field| column_type(field).map(Arc::new));
        let schema = fields
            .collect::<std::result::Result<Vec<_>, _>>()
            .and_then(|fields| Type::group_type_builder("attribution").with_fields(fields).build())
            .map_err(failed)?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::None);
        // Ids and values hardly ever repeat, so a dictionary would only cost time.
        let unique = header.numbers.iter().map(|column| &column.name).chain([&header.texts[header.id]]);
        for name in unique {
            properties = properties.set_column_dictionary_enabled(ColumnPath::new(vec![name.clone()]), false);
        }
        let properties = Arc::new(properties.build());
        let writer = SerializedFileWriter::new(AtomicFile::create(path)?, Arc::new(schema), properties)
            .map_err(failed)?;
        Ok(Self {
            writer,
            texts: vec![Vec::new(); header.texts.len()],
            numbers: vec![Vec::new(); header.numbers.len()],
            levels: vec![Vec::new(); header.numbers.len()],
            rows: 0,
            bytes: 0,
        })
    }

    fn write(
        &mut self,
        header: &NumberHeader,
        texts: &[String],
        numbers: &[Option<f64>],
        path: &Path,
    ) -> Result<()> {
        for (column, text) in self.texts.iter_mut().zip(texts) {
            self.bytes += text.len();
            column.push(ByteArray::from(text.as_str()));
        }
        for ((column, levels), number) in self.numbers.iter_mut().zip(&mut self.levels).zip(numbers) {
            levels.push(i16::from(number.is_some()));
            column.extend(number);
        }
        self.bytes += size_of_val(numbers);
        self.rows += 1;
        if self.rows >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            self.write_group(header).map_err(|error| parquet_error("write", path, error))?;
        }
        Ok(())
    }

    /// Writes the buffered rows as a row group and clears the buffers.
    fn write_group(&mut self, header: &NumberHeader) -> std::result::Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        for field in header.fields() {
            let Some(mut column) = group.next_column()? else { break };
            match field {
                Field::Text(at) => {
                    column.typed::<ByteArrayType>().write_batch(&self.texts[at], None, None)?;
                    self.texts[at].clear();
                }
                Field::Number(at) => {
                    let levels = header.numbers[at].optional.then_some(&self.levels[at][..]);
                    column.typed::<DoubleType>().write_batch(&self.numbers[at], levels, None)?;
                    self.numbers[at].clear();
                    self.levels[at].clear();
                }
            }
            column.close()?;
        }
        group.close()?;
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }

    fn finish(mut self, header: &NumberHeader, path: &Path) -> Result<()> {
        let failed = |error| parquet_error("write", path, error);
        if self.rows > 0 {
            self.write_group(header).map_err(failed)?;
        }
        // Writes the footer and returns the file.
        self.writer.into_inner().map_err(failed)?.finish()
    }
}

#[cfg(test)]
mod tests {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::RowAccessor,
    };

    use super::*;

    fn header() -> NumberHeader {
        let column = |name: &str, optional| NumberColumn { name: name.to_owned(), optional };
        let columns = ["key", "id", "caption"].map(str::to_owned);
        NumberHeader::for_corpus(&columns, 1, vec![column("loss", false), column("cosine", true)]).unwrap()
    }

    #[test]
    fn a_missing_value_is_an_empty_field_and_a_null() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [(0.1 + 0.2, Some(-1e-12)), (2.0, None), (1e300, Some(0.5))];
        for name in ["a.csv", "a.parquet"] {
            let mut writer = NumberWriter::create(&folder.path().join(name), header()).unwrap();
            for (at, (loss, cosine)) in rows.iter().enumerate() {
                let texts = ["k".to_owned(), format!("{at}"), "a, \"b\"".to_owned()];
                writer.write(&texts, &[Some(*loss), *cosine]).unwrap();
            }
            writer.finish().unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(folder.path().join("a.csv")).unwrap(),
            "key,id,loss,cosine,caption\nk,0,0.30000000000000004,-1e-12,\"a, \"\"b\"\"\"\n\
             k,1,2.0,,\"a, \"\"b\"\"\"\nk,2,1e300,0.5,\"a, \"\"b\"\"\"\n"
        );
        let file = std::fs::File::open(folder.path().join("a.parquet")).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let names = reader.metadata().file_metadata().schema_descr().columns().to_vec();
        let names: Vec<String> = names.iter().map(|column| column.name().to_owned()).collect();
        assert_eq!(names, ["key", "id", "loss", "cosine", "caption"]);
        for (row, (at, (loss, cosine))) in reader.get_row_iter(None).unwrap().zip(rows.iter().enumerate()) {
            let row = row.unwrap();
            assert_eq!(row.get_string(1).unwrap(), &at.to_string());
            assert_eq!((row.get_double(2).unwrap(), row.get_double(3).ok()), (*loss, *cosine));
        }
    }

    #[test]
    fn values_that_are_not_finite_and_clashing_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        let texts = ["k", "7", "c"].map(str::to_owned);
        for numbers in [[Some(f64::NAN), None], [None, None], [Some(1.0), Some(f64::INFINITY)]] {
            let mut writer = NumberWriter::create(&path, header()).unwrap();
            let refused = writer.write(&texts, &numbers).unwrap_err().to_string();
            assert!(refused.contains("id `7`: the value of `"), "{refused}");
        }
        assert!(!path.exists());
        let column = NumberColumn { name: "loss".to_owned(), optional: false };
        let refused = |columns: [&str; 2]| {
            let columns = columns.map(str::to_owned);
            NumberHeader::for_corpus(&columns, 0, vec![column.clone()]).unwrap_err().to_string()
        };
        assert!(refused(["id", "loss"]).contains("already has a column `loss`"));
        assert!(refused(["id", "id"]).contains("two columns are called `id`"));
    }
}
