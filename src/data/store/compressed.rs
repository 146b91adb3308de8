//! Files compressed with gzip or zstd, recognized by content and read as if they were not compressed.
//!
//! Data is decompressed as it is read and never kept as a whole, so a small file that expands to a large one costs time
//! but no memory. A stream has no index: to go back further than the [window](Decompressed), it is decompressed again
//! from its start.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};

use flate2::bufread::GzDecoder;

use super::Readable;
use crate::data::location::Location;

/// Bytes from which a codec is recognized.
const MAGIC_BYTES: usize = 4;
/// Bytes decompressed at a time.
const CHUNK: usize = 1 << 16;
/// Size of the buffer of compressed bytes.
const BUFFER_BYTES: usize = 1 << 17;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// gzip, in one or several members.
    Gzip,
    /// zstd, in one or several frames.
    Zstd,
}

impl Codec {
    /// Recognizes a compressed file by its first bytes.
    pub fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1F, 0x8B, 8, ..] => Some(Self::Gzip),
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn open(self, at: &Location) -> io::Result<Box<dyn Read + Send>> {
        let input = BufReader::with_capacity(BUFFER_BYTES, at.open(0)?);
        Ok(match self {
            Self::Gzip => Box::new(GzipMembers { member: Some(GzDecoder::new(input)) }),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        })
    }
}

/// The members of a gzip file. As in gzip, zeros after the last one are padding.
struct GzipMembers<R> {
    /// The member being read; `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            // An error while looking for the next member must not be mistaken for the end of the stream.
            let input = member.get_mut();
            loop {
                let next = input.fill_buf()?;
                let zeros = next.iter().take_while(|&&byte| byte == 0).count();
                let (at_end, only_zeros) = (next.is_empty(), zeros == next.len());
                if next.get(zeros).is_some_and(|&byte| byte != 0x1F) {
                    return Err(io::Error::new(ErrorKind::InvalidData, "its end is followed by other data"));
                }
                input.consume(zeros);
                if at_end {
                    self.member = None;
                    return Ok(0);
                }
                if !only_zeros {
                    break;
                }
            }
            self.member = self.member.take().map(|member| GzDecoder::new(member.into_inner()));
        }
        Ok(0)
    }
}

/// A decompressed stream. It keeps the last bytes, so that going back a little costs nothing.
pub struct Decompressed {
    at: Location,
    codec: Codec,
    stream: Box<dyn Read + Send>,
    /// The last bytes decompressed; at most twice as many as `window`.
    kept: Vec<u8>,
    window: usize,
    /// Bytes decompressed so far.
    decompressed: u64,
    /// The position of the next byte to be read.
    position: u64,
}

impl Decompressed {
    /// Decompresses the file at `at`, and keeps at least the last `window` bytes.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn new(at: &Location, codec: Codec, window: usize) -> io::Result<Self> {
        let stream = codec.open(at)?;
        let window = window.max(CHUNK);
        Ok(Self { at: at.clone(), codec, stream, kept: Vec::new(), window, decompressed: 0, position: 0 })
    }

    /// The position of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The first position that can be read without starting over.
    pub(super) fn earliest(&self) -> u64 {
        self.decompressed - self.kept.len() as u64
    }

    /// Decompresses some more bytes. Returns `false` at the end.
    fn advance(&mut self) -> io::Result<bool> {
        if self.kept.len() + CHUNK > 2 * self.window {
            let excess = self.kept.len() - self.window;
            self.kept.drain(..excess);
        }
        let before = self.kept.len();
        self.kept.resize(before + CHUNK, 0);
        let read = loop {
            match self.stream.read(&mut self.kept[before..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.kept.truncate(before + *read.as_ref().unwrap_or(&0));
        let read = read.map_err(|error| {
            let name = self.codec.name();
            match error.kind() {
                ErrorKind::UnexpectedEof => io::Error::new(
                    ErrorKind::InvalidData,
                    format!("the {name} data ends early; copy the file again"),
                ),
                _ => io::Error::new(
                    ErrorKind::InvalidData,
                    format!("the {name} data is damaged ({error}); copy the file again"),
                ),
            }
        })?;
        self.decompressed += read as u64;
        Ok(read > 0)
    }
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.position == self.decompressed && !self.advance()? {
            return Ok(0);
        }
        let from = usize::try_from(self.position - self.earliest()).unwrap_or(usize::MAX);
        let available = self.kept.get(from..).unwrap_or_default();
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Decompressed {
    /// Seeks relative to the start or the current position. A position after the end is an error.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(target) => Some(target),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        let target = target.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no such position"))?;
        if target < self.earliest() {
            self.stream = self.codec.open(&self.at)?;
            self.kept.clear();
            self.decompressed = 0;
        }
        while self.decompressed < target {
            if !self.advance()? {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("it has {} bytes once decompressed, fewer than {target}", self.decompressed),
                ));
            }
        }
        self.position = target;
        Ok(target)
    }
}

impl Location {
    /// How the file at this location is compressed, by its first bytes; `None` if it is not.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn codec(&self) -> io::Result<Option<Codec>> {
        let mut start = Vec::with_capacity(MAGIC_BYTES);
        self.open(0)?.take(MAGIC_BYTES as u64).read_to_end(&mut start)?;
        Ok(Codec::of(&start))
    }

    /// Opens the file like [`open`](Self::open), decompressed if it is compressed with gzip or zstd. `from` is then a
    /// position in the decompressed data, of which the last `window` bytes are kept.
    ///
    /// # Errors
    /// If it cannot be read, or ends before `from`.
    pub fn open_decompressed(&self, from: u64, window: usize) -> io::Result<Box<dyn Readable>> {
        let Some(codec) = self.codec()? else { return self.open(from) };
        let mut stream = Decompressed::new(self, codec, window)?;
        stream.seek(SeekFrom::Start(from))?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    /// Compresses each part into a member or frame of its own.
    fn compressed(codec: Codec, parts: &[&[u8]]) -> Vec<u8> {
        let one = |part: &&[u8]| match codec {
            Codec::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(part).unwrap();
                encoder.finish().unwrap()
            }
            Codec::Zstd => zstd::encode_all(*part, 3).unwrap(),
        };
        parts.iter().flat_map(one).collect()
    }

    #[test]
    fn a_compressed_file_is_read_from_any_position() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        for codec in [Codec::Gzip, Codec::Zstd] {
            // The name says nothing.
            let at = Location::from(folder.path().join("a.csv"));
            fs::write(at.as_path(), compressed(codec, &[&bytes[..600_001], &bytes[600_001..]])).unwrap();
            assert_eq!(at.codec().unwrap(), Some(codec));
            let mut stream = Decompressed::new(&at, codec, 0).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert!(all == bytes && stream.kept.len() <= 2 * CHUNK);
            for position in [1_599_000, 0, 600_000, 1_200_000, 1_199_999, 3, 1_600_000] {
                stream.seek(SeekFrom::Start(position)).unwrap();
                let mut some = Vec::new();
                (&mut stream).take(5000).read_to_end(&mut some).unwrap();
                let from = position as usize;
                assert_eq!(some, bytes[from..(from + 5000).min(bytes.len())], "{position}");
            }
            assert_eq!(stream.seek(SeekFrom::Start(1_600_001)).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            let cut = compressed(codec, &[&bytes]);
            fs::write(at.as_path(), &cut[..cut.len() / 2]).unwrap();
            let error = at.open_decompressed(0, 0).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("copy the file again"), "{error}");
        }
        let plain = Location::from(folder.path().join("b.csv.gz"));
        fs::write(plain.as_path(), "id,image\n").unwrap();
        let mut text = String::new();
        plain.open_decompressed(3, 0).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((plain.codec().unwrap(), text.as_str()), (None, "image\n"));
    }
}
