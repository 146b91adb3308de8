//! Reads a range of a file, compressed or not.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::data::{
    location::Location,
    store::{Codec, Decompressed, Stamp},
};

/// Maximum number of decompressors kept for the next read.
const MOST_STREAMS: usize = 8;
/// How far back each of them can seek without starting over.
const WINDOW_BYTES: usize = 4 << 20;

/// A range of a file that is not compressed.
pub(super) struct Slice {
    file: File,
    start: u64,
    range: Range,
}

/// The length of a range, and the position of the next byte in it.
pub(super) struct Range {
    pub(super) length: u64,
    pub(super) at: u64,
}

impl Range {
    /// How many of `most` bytes are left.
    fn left(&self, most: usize) -> usize {
        most.min(usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX))
    }

    pub(super) fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(target) => Some(target),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = target
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a position before the start"))?;
        Ok(self.at)
    }
}

impl Slice {
    /// Opens the `length` bytes from `start` on of the file at `path`, at position `from` within them.
    pub(super) fn open(path: &Path, start: u64, length: u64, from: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start.saturating_add(from)))?;
        Ok(Self { file, start, range: Range { length, at: from } })
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.left(buffer.len());
        let read = self.file.read(&mut buffer[..left])?;
        self.range.at += read as u64;
        Ok(read)
    }
}

impl Seek for Slice {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = self.range.seek(to)?;
        self.file.seek(SeekFrom::Start(self.start.saturating_add(at)))?;
        Ok(at)
    }
}

/// A decompressor kept for the next read of its file.
struct Stream {
    path: PathBuf,
    stamp: Stamp,
    data: Decompressed,
}

/// Kept decompressors, the last used one at the end.
static STREAMS: Mutex<Vec<Stream>> = Mutex::new(Vec::new());

/// A range of a compressed file, by positions in the decompressed data.
pub(super) struct DecompressedSlice {
    path: PathBuf,
    stamp: Stamp,
    codec: Codec,
    start: u64,
    range: Range,
}

impl DecompressedSlice {
    /// Opens the `length` bytes from `start` on of the decompressed file at `path`, at position `from` within them.
    pub(super) fn new(path: PathBuf, stamp: Stamp, codec: Codec, start: u64, length: u64, from: u64) -> Self {
        Self { path, stamp, codec, start, range: Range { length, at: from } }
    }

    /// The kept decompressor that reaches `position` with the least work, or a new one.
    fn stream(&self, position: u64) -> io::Result<Stream> {
        let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
        let nearest = streams
            .iter()
            .enumerate()
            .filter(|(_, stream)| stream.path == self.path && stream.stamp == self.stamp)
            .filter(|(_, stream)| stream.data.earliest() <= position)
            .min_by_key(|(_, stream)| position.saturating_sub(stream.data.position()))
            .map(|(at, _)| at);
        if let Some(at) = nearest {
            return Ok(streams.remove(at));
        }
        drop(streams);
        let data = Decompressed::new(&Location::from(self.path.as_path()), self.codec, WINDOW_BYTES)?;
        Ok(Stream { path: self.path.clone(), stamp: self.stamp, data })
    }
}

impl Read for DecompressedSlice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.left(buffer.len());
        if left == 0 {
            return Ok(0);
        }
        let position = self.start.saturating_add(self.range.at);
        let mut stream = self.stream(position)?;
        stream.data.seek(SeekFrom::Start(position))?;
        let read = stream.data.read(&mut buffer[..left])?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the archive ends in the middle of this member; copy the archive again",
            ));
        }
        self.range.at += read as u64;
        let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
        streams.push(stream);
        if streams.len() > MOST_STREAMS {
            streams.remove(0);
        }
        Ok(read)
    }
}

impl Seek for DecompressedSlice {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.range.seek(to)
    }
}
