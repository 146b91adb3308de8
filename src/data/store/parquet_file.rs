//! Opens Parquet files.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
};

/// The first and the last bytes of a file.
const MAGIC: [u8; 4] = *b"PAR1";

/// Opens a file and reads its footer.
///
/// # Errors
/// If it cannot be read or is no Parquet file, or if several were joined into one: its footer is that of the last, whose
/// offsets then lead into the first.
pub(crate) fn open_parquet(path: &Path) -> Result<SerializedFileReader<File>, ParquetError> {
    let opened = SerializedFileReader::new(File::open(path)?)?;
    if is_joined(File::open(path)?, &opened)? {
        return Err(ParquetError::General(
            "several Parquet files were joined into one, of which only the last could be read; keep them in a folder \
             instead"
                .to_owned(),
        ));
    }
    Ok(opened)
}

/// Whether another file ends where the footer's data begins: as many bytes from the start as the footer does not account
/// for.
fn is_joined(mut file: File, opened: &SerializedFileReader<File>) -> Result<bool, ParquetError> {
    let length = file.metadata()?.len();
    let mut tail = [0; 4];
    file.seek(SeekFrom::Start(length.saturating_sub(8)))?;
    file.read_exact(&mut tail)?;
    let footer = length.saturating_sub(8 + u64::from(u32::from_le_bytes(tail)));
    let index = |offset: Option<i64>, length: Option<i32>| {
        let end = offset.unwrap_or(0).saturating_add(i64::from(length.unwrap_or(0)));
        u64::try_from(end).unwrap_or(0)
    };
    let columns = opened.metadata().row_groups().iter().flat_map(|group| group.columns());
    let end = columns.flat_map(|column| {
        let (start, length) = column.byte_range();
        [
            start.saturating_add(length),
            index(column.column_index_offset(), column.column_index_length()),
            index(column.offset_index_offset(), column.offset_index_length()),
            index(column.bloom_filter_offset(), column.bloom_filter_length()),
        ]
    });
    // A file without rows has only the magic before its footer.
    let end = end.max().unwrap_or(0).max(MAGIC.len() as u64);
    let Some(before) = footer.checked_sub(end).filter(|&before| before >= 12 && before + 4 <= length) else {
        return Ok(false);
    };
    let mut boundary = [0; 8];
    file.seek(SeekFrom::Start(before - 4))?;
    file.read_exact(&mut boundary)?;
    Ok(boundary == [MAGIC, MAGIC].concat()[..])
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use parquet::{
        data_type::Int64Type,
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };

    use super::*;

    fn table(rows: i64) -> Vec<u8> {
        let schema = Arc::new(parse_message_type("message t { required int64 a; }").unwrap());
        let mut bytes = Vec::new();
        let mut writer =
            SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::default())).unwrap();
        let values: Vec<i64> = (0..rows).map(|row| row * row).collect();
        for values in values.chunks(100) {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(values, None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn joined_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let sizes = [0, 1, 50, 1000];
        for first in sizes {
            fs::write(&path, table(first)).unwrap();
            assert!(open_parquet(&path).is_ok(), "{first} rows");
            for last in sizes {
                fs::write(&path, [table(first), table(last)].concat()).unwrap();
                let refused = open_parquet(&path).err().map(|error| error.to_string());
                assert!(refused.is_some_and(|refused| refused.contains("joined")), "{first} + {last}");
            }
        }
        fs::write(&path, [table(7), table(30), table(500)].concat()).unwrap();
        assert!(open_parquet(&path).is_err());
    }
}
