//! Reads the headers of tar archives: ustar, GNU (long names) and PAX. The tar may be compressed.
//!
//! Only headers are read, and contents are skipped, in memory that is bounded for any archive. Nothing is ever written
//! to the names in an archive.

use std::{
    fmt,
    io::{self, BufRead, BufReader, ErrorKind, Read, Seek},
};

use tar::{EntryType, Header};

use crate::data::{
    location::Location,
    store::{Kind, Readable},
};

/// Size of a block: a header is one block, and contents are padded to whole blocks.
pub const BLOCK: usize = 512;
/// Size of the read buffer: contents are skipped, so little beyond a header is needed.
const BUFFER_BYTES: usize = 1 << 13;
/// Upper bound on a long name or a PAX header.
const MOST_EXTENSION_BYTES: u64 = 1 << 20;

/// Why reading an archive cannot continue.
#[derive(Debug)]
pub enum TarError {
    /// Reading failed.
    Io(io::Error),
    /// The block at this position is not a valid header.
    Damaged {
        /// Position of the block in bytes.
        at: u64,
        /// What is wrong.
        message: &'static str,
    },
    /// Something follows the end of the archive, at this position.
    Trailing {
        /// Its position in bytes.
        at: u64,
    },
}

impl From<TarError> for io::Error {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Io(error) => error,
            error => Self::new(ErrorKind::InvalidData, error.to_string()),
        }
    }
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for TarError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(formatter),
            Self::Damaged { at, message } => {
                write!(formatter, "the archive is damaged at byte {at}: {message}; copy it again")
            }
            Self::Trailing { at } => write!(
                formatter,
                "data follows the end of the archive at byte {at}, as in archives that were joined with cat; only the first \
                 would be read, so pass them as separate files"
            ),
        }
    }
}

/// The kind of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A file of which only parts are stored.
    Sparse,
    /// A link to another file.
    Link,
    /// Anything else, such as a folder or a device.
    Other,
}

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, without `./` at the start.
    pub name: Vec<u8>,
    /// Its kind.
    pub kind: MemberKind,
    /// Position of its first header.
    pub at: u64,
    /// Position of its contents.
    pub data: u64,
    /// Length of its contents.
    pub size: u64,
}

/// Reads the members of an archive in order.
pub struct TarScan {
    input: BufReader<Box<dyn Readable>>,
    /// Length of the archive, if it is not compressed.
    length: Option<u64>,
    /// Position of the input.
    position: u64,
    /// Position of the next header.
    next: u64,
    /// Whether the end-of-archive block has been read.
    complete: bool,
}

impl TarScan {
    /// Opens an archive; the first header is at `from`.
    ///
    /// # Errors
    /// If it cannot be read, or ends before `from`.
    pub fn open(at: &Location, from: u64) -> io::Result<Self> {
        let length = match (at.codec()?, at.kind()?) {
            (None, Kind::File(stamp)) => Some(stamp.bytes),
            _ => None,
        };
        let input = BufReader::with_capacity(BUFFER_BYTES, at.open_decompressed(from, 0)?);
        Ok(Self { input, length, position: from, next: from, complete: false })
    }

    /// Position of the next header.
    pub fn next_header(&self) -> u64 {
        self.next
    }

    /// Whether the end-of-archive block has been read; a truncated archive has none.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The next member; `None` at the end of the archive. A truncated archive has no more members, and its last one may
    /// be [incomplete](Self::missing).
    ///
    /// # Errors
    /// If reading fails, or there is no header where one should be.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let at = self.next;
        let (mut long_name, mut extended) = (None, Extended::default());
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let here = self.next;
            let refuse = |message| TarError::Damaged { at: here, message };
            if block.iter().all(|&byte| byte == 0) {
                self.complete = true;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            if !is_header(&block) {
                return Err(refuse(NO_HEADER));
            }
            let kind = header.entry_type();
            let stored = header.entry_size().map_err(|_| refuse("the size of a member is not a number"))?;
            let size = extended.size.unwrap_or(stored);
            let size = if has_data(kind) { size } else { 0 };
            let data = here + BLOCK as u64;
            let end = data
                .checked_add(size)
                .and_then(|end| end.checked_next_multiple_of(BLOCK as u64))
                .ok_or_else(|| refuse("the size of a member is impossible"))?;
            self.next = end;
            match kind {
                EntryType::GNULongName => {
                    let mut name = self.extension(size).map_err(|_| refuse(TOO_LONG))?;
                    name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
                    long_name = Some(name);
                }
                EntryType::GNULongLink | EntryType::XGlobalHeader => {}
                EntryType::XHeader => {
                    let bytes = self.extension(size).map_err(|_| refuse(TOO_LONG))?;
                    extended = Extended::parse(&bytes).ok_or_else(|| refuse("a PAX header is malformed"))?;
                }
                _ => {
                    let name =
                        extended.name.or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
                    let kind = match kind {
                        _ if extended.sparse => MemberKind::Sparse,
                        EntryType::GNUSparse => MemberKind::Sparse,
                        EntryType::Regular | EntryType::Continuous if !name.ends_with(b"/") => {
                            MemberKind::File
                        }
                        EntryType::Link | EntryType::Symlink => MemberKind::Link,
                        _ => MemberKind::Other,
                    };
                    return Ok(Some(Member { name: plain_name(name), kind, at, data, size }));
                }
            }
        }
    }

    /// Reads the header block at `next`; `None` at the end of the archive.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        if self.length.is_some_and(|length| self.next >= length) {
            return Ok(None);
        }
        let ended = |error: io::Error| match error.kind() {
            // The end of a compressed archive is known only once it is reached.
            ErrorKind::UnexpectedEof if self.length.is_none() => Ok(None),
            _ => Err(error),
        };
        if let Err(error) = skip(&mut self.input, self.position, self.next) {
            return ended(error);
        }
        self.position = self.next;
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) => return Ok(None),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return ended(error),
            }
            self.position = self.next + filled as u64;
        }
        Ok(Some(block))
    }

    /// Reads the contents of the member that was returned last, up to `most` bytes. They are shorter than the member's
    /// size if the archive is truncated.
    ///
    /// # Errors
    /// If reading fails.
    pub fn contents(&mut self, member: &Member, most: u64) -> io::Result<Vec<u8>> {
        skip(&mut self.input, self.position, member.data)?;
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(member.size.min(most)).read_to_end(&mut bytes);
        self.position = member.data + bytes.len() as u64;
        match read {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(bytes),
        }
    }

    /// The contents of a header that describes the next one.
    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MOST_EXTENSION_BYTES {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut bytes)?;
        self.position += bytes.len() as u64;
        if bytes.len() as u64 == size { Ok(bytes) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads what follows the end of the archive, which must be zeros. For a compressed archive, this also verifies its
    /// checksum.
    ///
    /// # Errors
    /// If something else follows, or reading fails.
    pub fn expect_end(&mut self) -> Result<(), TarError> {
        loop {
            let buffer = match self.input.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                buffer => buffer?,
            };
            if let Some(at) = buffer.iter().position(|&byte| byte != 0) {
                return Err(TarError::Trailing { at: self.position + at as u64 });
            }
            let read = buffer.len();
            if read == 0 {
                return Ok(());
            }
            self.input.consume(read);
            self.position += read as u64;
        }
    }

    /// How many bytes of a member's contents are missing because the archive is truncated. 0 if the archive is
    /// compressed: the truncation is then found when the contents are read.
    pub fn missing(&self, member: &Member) -> u64 {
        self.length.map_or(0, |length| (member.data + member.size).saturating_sub(length).min(member.size))
    }
}

/// The error for a file that is not an archive.
pub(super) const NO_HEADER: &str = "there is no header, or its checksum is wrong";
const TOO_LONG: &str = "a long name or PAX header is truncated or too long";

/// The fields of a PAX header, which apply to the next member.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Extended {
    /// Parses records `LENGTH KEY=VALUE\n`, whose values may contain line breaks; `None` if one is malformed.
    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut found = Self::default();
        while !bytes.is_empty() {
            let digits = bytes.iter().position(|&byte| byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()?;
            let record = bytes.get(digits + 1..length)?.strip_suffix(b"\n")?;
            bytes = &bytes[length..];
            let equals = record.iter().position(|&byte| byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => found.name = Some(value.to_vec()),
                b"size" => found.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                key if key.starts_with(b"GNU.sparse.") => found.sparse = true,
                _ => {}
            }
        }
        Some(found)
    }
}

/// Moves the input forward.
fn skip(input: &mut BufReader<Box<dyn Readable>>, from: u64, to: u64) -> io::Result<()> {
    let by = i64::try_from(to).ok().zip(i64::try_from(from).ok()).map(|(to, from)| to - from);
    match by {
        Some(0) => Ok(()),
        Some(by) => input.seek_relative(by),
        None => input.seek(io::SeekFrom::Start(to)).map(drop),
    }
}

/// Splits a member's name at the first dot of its last path component into the key of its sample and the extension,
/// like WebDataset. `None` if there is no dot, or only a leading one.
pub fn sample_key(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let base = name.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    let dot = base + name[base..].iter().position(|&byte| byte == b'.').filter(|&dot| dot > 0)?;
    Some((&name[..dot], &name[dot + 1..]))
}

/// Whether a block is a header with the right checksum.
pub fn is_header(block: &[u8; BLOCK]) -> bool {
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(byte) })
        .sum();
    Header::from_byte_slice(block).cksum().is_ok_and(|stored| stored == sum)
}

/// Whether members of a kind have contents. Links, folders and devices have none, whatever size their headers state.
fn has_data(kind: EntryType) -> bool {
    !(kind.is_hard_link()
        || kind.is_symlink()
        || kind.is_dir()
        || kind.is_character_special()
        || kind.is_block_special()
        || kind.is_fifo())
}

/// Removes `./` from the start of a name, which `tar -cf FILE .` writes.
fn plain_name(mut name: Vec<u8>) -> Vec<u8> {
    while name.starts_with(b"./") {
        name.drain(..2);
    }
    name
}

#[cfg(test)]
mod tests {
    use tar::Builder;

    use super::*;

    #[test]
    fn pax_records_are_delimited_by_their_lengths() {
        let found = Extended::parse(b"20 path=two\nlines.jpg\n12 size=345\n");
        assert!(found.is_none(), "the second length is wrong");
        let found = Extended::parse(b"22 path=two\nlines.jpg\n12 size=345\n").unwrap();
        assert_eq!((found.name.as_deref(), found.size), (Some(&b"two\nlines.jpg"[..]), Some(345)));
        for malformed in [&b"99 path=a\n"[..], b"path=a\n", b"10 path=a", b"8 pathab\n", b"0 \n"] {
            assert!(Extended::parse(malformed).is_none());
        }
    }

    #[test]
    fn members_are_grouped_by_the_first_dot_of_the_last_part() {
        for (name, expected) in [
            ("a.jpg", Some(("a", "jpg"))),
            ("a.seg.png", Some(("a", "seg.png"))),
            ("x.y/a.jpg", Some(("x.y/a", "jpg"))),
            ("a", None),
            ("x.y/a", None),
            (".a.jpg", None),
        ] {
            let expected = expected.map(|(key, rest): (&str, &str)| (key.as_bytes(), rest.as_bytes()));
            assert_eq!(sample_key(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn names_and_sizes_of_pax_headers_are_read_and_sparse_members_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Builder::new(Vec::new());
        let long = "x".repeat(300);
        for (name, key, value, kind) in [
            ("a.txt", "path", long.as_str(), EntryType::Regular),
            ("b.txt", "GNU.sparse.major", "1", EntryType::Regular),
            ("c.txt", "comment", "none", EntryType::GNUSparse),
            ("d.txt", "comment", "none", EntryType::Link),
        ] {
            archive.append_pax_extensions([(key, value.as_bytes())]).unwrap();
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(if kind == EntryType::Link { 0 } else { 5 });
            header.set_path(name).unwrap();
            header.set_cksum();
            archive.append(&header, &b"hello"[..header.entry_size().unwrap() as usize]).unwrap();
        }
        let at = Location::from(folder.path().join("a.tar"));
        let bytes = archive.into_inner().unwrap();
        std::fs::write(at.as_path(), &bytes).unwrap();
        let mut scan = TarScan::open(&at, 0).unwrap();
        let mut found = Vec::new();
        while let Some(member) = scan.next_member().unwrap() {
            let contents = scan.contents(&member, 10).unwrap();
            found.push((String::from_utf8(member.name).unwrap(), member.kind, contents.len()));
        }
        let expected = [
            (long.as_str(), MemberKind::File, 5),
            ("b.txt", MemberKind::Sparse, 5),
            ("c.txt", MemberKind::Sparse, 5),
            ("d.txt", MemberKind::Link, 0),
        ];
        assert_eq!(found, expected.map(|(name, kind, length)| (name.to_owned(), kind, length)));
        assert!(scan.is_complete());
        // A header that is damaged is named by its position, and a member that is cut by what is missing.
        let mut damaged = bytes.clone();
        let second = bytes.windows(5).position(|window| window == b"b.txt").unwrap();
        damaged[second] = b'?';
        std::fs::write(at.as_path(), &damaged).unwrap();
        let mut scan = TarScan::open(&at, 0).unwrap();
        scan.next_member().unwrap().unwrap();
        let error = scan.next_member().unwrap_err().to_string();
        assert!(error.contains(&format!("damaged at byte {second}")), "{error}");
        std::fs::write(at.as_path(), &bytes[..second + BLOCK + 3]).unwrap();
        let mut scan = TarScan::open(&at, 0).unwrap();
        scan.next_member().unwrap().unwrap();
        let cut = scan.next_member().unwrap().unwrap();
        assert_eq!((scan.missing(&cut), scan.next_member().unwrap(), scan.is_complete()), (2, None, false));
    }
}
