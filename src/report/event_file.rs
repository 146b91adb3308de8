//! TensorBoard event files, written without TensorFlow.
//!
//! Records use TFRecord's framing: length (u64, little-endian), masked CRC-32C of the length, data, masked
//! CRC-32C of the data. The data is a protobuf `Event` (tensorflow/core/util/event.proto) with the fields
//! `wall_time` = 1, `step` = 2, `file_version` = 3 and `summary` = 5, and in it `Summary.value` = 1 with `tag` = 1 and
//! `simple_value` = 2, which suffices for scalars.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::error::{Error, Result};

/// The source of an event's wall time, in seconds since 1970.
pub type Clock = Box<dyn FnMut() -> f64 + Send>;

/// The system clock.
pub(crate) fn system_clock() -> Clock {
    Box::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()))
}

/// An event file that scalars are appended to.
pub struct EventFile {
    path: PathBuf,
    writer: BufWriter<File>,
    clock: Clock,
}

const PREFIX: &str = "events.out.tfevents.";

impl EventFile {
    /// Creates an event file in `folder`, named after the time as TensorBoard expects, and writes its first record.
    /// With the same clock values and scalars, the file's name and bytes are the same.
    ///
    /// # Errors
    /// If the folder does not exist or cannot be written, or has an event file of that name.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds since 1970 in a name"
    )]
    pub fn create_with_clock(folder: &Path, mut clock: Clock) -> Result<Self> {
        let wall_time = clock();
        // A second file within one second gets a name that sorts after the first.
        let mut attempt = 0;
        let (path, file) = loop {
            let path = folder.join(format!("{PREFIX}{:010}.alchemist-engine.{attempt}", wall_time as u64));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < 9 => {
                    attempt += 1
                }
                outcome => break (path.clone(), outcome.map_err(Error::io("create", &path))?),
            }
        };
        let mut this = Self { path, writer: BufWriter::new(file), clock };
        let mut event = Vec::new();
        put_double(&mut event, 1, wall_time);
        put_bytes(&mut event, 3, b"brain.Event:2");
        this.write_record(&event)?;
        this.flush()?;
        Ok(this)
    }

    /// Resumes the newest event file in `folder` as if the run had stopped before `next_step`: truncates events of that
    /// step and later, and a record cut short by a crash. Creates a file if there is none.
    ///
    /// # Errors
    /// If the folder or the file cannot be read or written.
    pub(crate) fn resume(folder: &Path, next_step: u64) -> Result<Self> {
        Self::resume_with_clock(folder, next_step, system_clock())
    }

    /// Like [`resume`](Self::resume), with another source of wall times.
    ///
    /// # Errors
    /// See [`resume`](Self::resume).
    pub fn resume_with_clock(folder: &Path, next_step: u64, clock: Clock) -> Result<Self> {
        let mut newest: Option<PathBuf> = None;
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let entry = entry.map_err(Error::io("read", folder))?;
            let is_event_file = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            let path = entry.path();
            if is_event_file && newest.as_ref().is_none_or(|newest| *newest < path) {
                newest = Some(path);
            }
        }
        let Some(path) = newest else { return Self::create_with_clock(folder, clock) };
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let kept = length_before(&bytes, next_step);
        if kept == 0 {
            // Not even the first record is complete: nothing can be recovered, so the file is replaced.
            fs::remove_file(&path).map_err(Error::io("replace", &path))?;
            return Self::create_with_clock(folder, clock);
        }
        let mut file = OpenOptions::new().write(true).open(&path).map_err(Error::io("write", &path))?;
        file.set_len(kept as u64).map_err(Error::io("write", &path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("write", &path))?;
        Ok(Self { path, writer: BufWriter::new(file), clock })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one scalar, stored as f32.
    ///
    /// # Errors
    /// If the file cannot be written.
    #[expect(clippy::cast_possible_truncation, reason = "the format has 32 bits")]
    pub fn scalar(&mut self, tag: &str, value: f64, step: u64) -> Result<()> {
        let mut scalar = Vec::with_capacity(tag.len() + 8);
        put_bytes(&mut scalar, 1, tag.as_bytes());
        put_float(&mut scalar, 2, value as f32);
        let mut summary = Vec::with_capacity(scalar.len() + 4);
        put_bytes(&mut summary, 1, &scalar);
        let mut event = Vec::with_capacity(summary.len() + 24);
        put_double(&mut event, 1, (self.clock)());
        put_key(&mut event, 2, 0);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.write_record(&event)
    }

    /// Flushes to the operating system, so that TensorBoard can read the events and a killed process does not lose
    /// them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io("write", &self.path))
    }

    fn write_record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(data);
        record.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.writer.write_all(&record).map_err(Error::io("write", &self.path))
    }
}

/// TFRecord's masked CRC-32C: rotated, plus a constant, so that the checksum of data that contains checksums stays
/// meaningful.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// The key of a field; wire types: 0 varint, 1 64-bit, 2 length-delimited, 5 32-bit.
fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_float(out: &mut Vec<u8>, field: u64, value: f32) {
    put_key(out, field, 5);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The length in bytes of the leading complete records of steps before `next_step`.
fn length_before(bytes: &[u8], next_step: u64) -> usize {
    let mut kept = 0;
    while let Some((data, length)) = first_record(&bytes[kept..]) {
        let is_scalar = data.get(9) == Some(&(2 << 3));
        if is_scalar && step_of(data).is_none_or(|step| step >= next_step) {
            break;
        }
        kept += length;
    }
    kept
}

/// The data of the record at the start of `bytes` and the record's length, if it is complete and its checksums match.
fn first_record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*length_crc) != masked_crc(length) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (data, rest) = rest.split_at_checked(length)?;
    let (data_crc, _) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*data_crc) == masked_crc(data)).then_some((data, length + 16))
}

/// The step of an event that this module wrote: nine bytes of wall time, then the step.
fn step_of(data: &[u8]) -> Option<u64> {
    let mut step = 0u64;
    for (index, byte) in data.get(10..)?.iter().enumerate().take(10) {
        step |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(step);
        }
    }
    None
}
