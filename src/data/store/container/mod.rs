//! Files within containers. The members of a tar archive, compressed or not, and the cells of a Parquet file have paths
//! of their own, `SHARD.tar/MEMBER` and `FILE.parquet/COLUMN/ROW`, and are read like files.
//!
//! The index of a container is built when something in it is first read, and is kept as long as the container has the
//! same stamp. A member of an uncompressed tar is read in place. The members of a compressed one are decompressed: only
//! once if they are read in the order of the archive, repeatedly in any other order.
//!
//! In a path, the name of a member is [`escaped`], so that it stays below its container: no `..`, no absolute path.

mod cells;
mod slice;
pub mod tar;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use cells::Cells;
use slice::{DecompressedSlice, Slice};
use tar::{MemberKind, NO_HEADER, TarError, TarScan, sample_key};

use super::{Codec, Kind, Readable, Stamp};
use crate::data::location::Location;

/// Upper bound on the total number of members in the indices that are kept.
const MOST_MEMBERS: usize = 1 << 19;
/// The number of members that an open table counts as, because its footer is kept.
const TABLE_MEMBERS: usize = 1 << 13;
/// First bytes of a Parquet file.
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// Where a member is in its archive.
#[derive(Clone, Copy, Debug)]
struct Place {
    kind: MemberKind,
    data: u64,
    size: u64,
    /// Bytes of its contents that are missing at the end of the archive.
    missing: u64,
    /// Whether another member has the same name.
    repeated: bool,
}

/// An archive whose members have been listed.
pub(crate) struct Archive(Arc<Index>);

impl Archive {
    /// Lists the members of an archive; `None` if the file is not an archive.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or something follows its end.
    pub(crate) fn list(path: &Path) -> io::Result<Option<Self>> {
        let index = index_of(path)?.filter(|index| matches!(index.contents, Contents::Archive { .. }));
        Ok(index.map(Self))
    }

    /// Whether the members of a sample are not adjacent.
    pub(crate) fn is_split(&self, key: &[u8]) -> bool {
        matches!(&self.0.contents, Contents::Archive { split, .. } if split.contains(key))
    }
}

/// The contents of a container.
enum Contents {
    /// The members of an archive by their names.
    Archive {
        codec: Option<Codec>,
        members: HashMap<Box<[u8]>, Place>,
        /// The keys of samples whose members are not adjacent.
        split: HashSet<Box<[u8]>>,
    },
    /// The cells of a table.
    Table(Box<Cells>),
}

/// The contents of a container with a given stamp.
struct Index {
    stamp: Stamp,
    contents: Contents,
}

/// The index of one container, once it is built.
type Slot = Arc<Mutex<Option<Arc<Index>>>>;

/// The indices of containers, the last used one at the end.
static INDICES: Mutex<Vec<(PathBuf, Slot)>> = Mutex::new(Vec::new());

/// What is at a path within a container; `None` if no folder of the path is a container.
pub(super) fn kind(path: &Path) -> io::Result<Option<Kind>> {
    let Some((container, name)) = split(path) else { return Ok(None) };
    let Some(index) = index_of(&container)? else { return Ok(None) };
    Ok(Some(match &index.contents {
        Contents::Archive { members, .. } => {
            Kind::File(Stamp { bytes: find(members, &name)?.size, ..index.stamp })
        }
        Contents::Table(cells) => {
            cells.look(&text_of(name))?;
            Kind::Cell(index.stamp)
        }
    }))
}

/// Opens a file within a container; `None` if no folder of the path is a container.
pub(super) fn open(path: &Path, from: u64) -> io::Result<Option<Box<dyn Readable>>> {
    let Some((container, name)) = split(path) else { return Ok(None) };
    let Some(index) = index_of(&container)? else { return Ok(None) };
    let (codec, members) = match &index.contents {
        Contents::Archive { codec, members, .. } => (codec, members),
        Contents::Table(cells) => return Ok(Some(cells.cell(&text_of(name), from)?)),
    };
    let Place { data, size, .. } = find(members, &name)?;
    Ok(Some(match *codec {
        None => Box::new(Slice::open(&container, data, size, from)?),
        Some(codec) => Box::new(DecompressedSlice::new(container, index.stamp, codec, data, size, from)),
    }))
}

fn text_of(name: Vec<u8>) -> String {
    String::from_utf8(name).unwrap_or_default()
}

/// The container that a path leads into: the one of its folders that is a file, if any.
pub(crate) fn container_of(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|folder| fs::metadata(folder).is_ok_and(|about| about.is_file()))
}

/// The container that a path leads into, and the name of the member.
fn split(path: &Path) -> Option<(PathBuf, Vec<u8>)> {
    let container = container_of(path)?;
    let within: Vec<&[u8]> =
        path.strip_prefix(container).ok()?.iter().map(|part| part.as_encoded_bytes()).collect();
    Some((container.to_path_buf(), unescaped(&within.join(&b'/'))))
}

/// The index of a container, built if necessary; `None` if the file is not a container.
fn index_of(path: &Path) -> io::Result<Option<Arc<Index>>> {
    let location = Location::from(path);
    let Kind::File(stamp) = location.kind()? else { return Ok(None) };
    let slot = {
        let mut indices = INDICES.lock().unwrap_or_else(PoisonError::into_inner);
        let found = indices.iter().position(|(known, _)| known == path);
        let entry = found.map_or_else(|| (path.to_path_buf(), Slot::default()), |at| indices.remove(at));
        indices.push(entry.clone());
        entry.1
    };
    // Other threads wait for the index instead of building it as well.
    let mut built = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(index) = built.as_ref().filter(|index| index.stamp == stamp) {
        return Ok(Some(Arc::clone(index)));
    }
    let Some(index) = Index::build(&location, stamp)? else { return Ok(None) };
    let index = Arc::new(index);
    *built = Some(Arc::clone(&index));
    drop(built);
    forget_others(path);
    Ok(Some(index))
}

/// Drops the least recently used indices, except that of `path`, while they have too many members.
fn forget_others(path: &Path) {
    let mut indices = INDICES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut members = 0;
    let mut kept = Vec::with_capacity(indices.len());
    for (known, slot) in indices.drain(..).rev() {
        // An index that is being built is in use.
        let size = slot.try_lock().map_or(0, |index| index.as_ref().map_or(0, |index| index.size()));
        members += size;
        if members <= MOST_MEMBERS || known == path || size == 0 {
            kept.push((known, slot));
        }
    }
    kept.truncate(1 << 10);
    kept.reverse();
    *indices = kept;
}

impl Index {
    /// Number of members; for a table, the number that it counts as.
    fn size(&self) -> usize {
        match &self.contents {
            Contents::Archive { members, .. } => members.len(),
            Contents::Table(_) => TABLE_MEMBERS,
        }
    }

    /// Opens a container; `None` if the file is not one.
    fn build(location: &Location, stamp: Stamp) -> io::Result<Option<Self>> {
        static TABLES: AtomicU64 = AtomicU64::new(0);
        let mut start = Vec::new();
        location.open(0)?.take(PARQUET_MAGIC.len() as u64).read_to_end(&mut start)?;
        if let (PARQUET_MAGIC, Some(path)) = (&start[..], location.local()) {
            let cells = Cells::open(path, TABLES.fetch_add(1, Ordering::Relaxed))?;
            return Ok(Some(Self { stamp, contents: Contents::Table(Box::new(cells)) }));
        }
        let codec = location.codec()?;
        let mut scan = TarScan::open(location, 0)?;
        let mut members: HashMap<Box<[u8]>, Place> = HashMap::new();
        let (mut keys, mut split, mut last) = (HashSet::new(), HashSet::new(), Box::<[u8]>::default());
        loop {
            match scan.next_member() {
                Ok(Some(member)) => {
                    let place = Place {
                        kind: member.kind,
                        data: member.data,
                        size: member.size,
                        missing: scan.missing(&member),
                        repeated: false,
                    };
                    if member.kind != MemberKind::Other
                        && let Some((key, _)) = sample_key(&member.name)
                        && *key != *last
                    {
                        last = Box::from(key);
                        if !keys.insert(last.clone()) {
                            split.insert(last.clone());
                        }
                    }
                    members
                        .entry(member.name.into_boxed_slice())
                        .and_modify(|known| known.repeated = true)
                        .or_insert(place);
                }
                Ok(None) if scan.is_complete() => {
                    scan.expect_end()?;
                    break;
                }
                Ok(None) => break,
                Err(TarError::Damaged { at: 0, message: NO_HEADER }) => return Ok(None),
                // The members before the damage can be read.
                Err(TarError::Damaged { .. }) if !members.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(Self { stamp, contents: Contents::Archive { codec, members, split } }))
    }
}

/// Finds a regular file in an archive.
fn find(members: &HashMap<Box<[u8]>, Place>, name: &[u8]) -> io::Result<Place> {
    let refuse = |kind, message: String| io::Error::new(kind, message);
    let place = *members.get(name).ok_or_else(|| {
        refuse(io::ErrorKind::NotFound, "there is no such member in the archive".to_owned())
    })?;
    match place.kind {
        _ if place.repeated => Err(refuse(
            io::ErrorKind::InvalidData,
            "the archive contains several members of this name, so which one is meant is unknown".to_owned(),
        )),
        MemberKind::File if place.missing > 0 => Err(refuse(
            io::ErrorKind::InvalidData,
            format!(
                "the archive ends in the middle of this member, {} of {} bytes are missing; copy the archive again",
                place.missing, place.size
            ),
        )),
        MemberKind::File => Ok(place),
        MemberKind::Sparse => Err(refuse(
            io::ErrorKind::Unsupported,
            "a sparse member, which is not read; pack the archive again without --sparse".to_owned(),
        )),
        MemberKind::Link => Err(refuse(
            io::ErrorKind::Unsupported,
            "a link, which is not followed; pack the archive again with the files themselves (tar --dereference \
             --hard-dereference)"
                .to_owned(),
        )),
        MemberKind::Other => Err(refuse(io::ErrorKind::Unsupported, "a folder, not an image".to_owned())),
    }
}

/// Escapes the name of a member so that it is a path below its container: `%`, control characters and bytes that are
/// not UTF-8 become `%XX`, and so do the dots of `.` and `..` and every `/` that does not follow a name.
pub fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    let escape = |text: &mut String, byte: u8| text.push_str(&format!("%{byte:02X}"));
    for (index, part) in name.split(|&byte| byte == b'/').enumerate() {
        if index > 0 {
            if text.is_empty() || text.ends_with('/') || text.ends_with("%2F") {
                escape(&mut text, b'/');
            } else {
                text.push('/');
            }
        }
        if part == b"." || part == b".." {
            part.iter().for_each(|&byte| escape(&mut text, byte));
            continue;
        }
        for chunk in part.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '%' | '\0'..='\x1F' | '\x7F' => escape(&mut text, character as u8),
                    '\\' if cfg!(windows) => escape(&mut text, b'\\'),
                    _ => text.push(character),
                }
            }
            chunk.invalid().iter().for_each(|&byte| escape(&mut text, byte));
        }
    }
    text
}

/// The name of a member, from its escaped form.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut name = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                name.push(u8::try_from(high << 4 | low).unwrap_or(b'%'));
                at += 3;
            }
            _ => {
                name.push(byte);
                at += 1;
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_path_below_its_container_and_back() {
        for (name, path) in [
            (&b"000.jpg"[..], "000.jpg"),
            (b"a b/c#?.jpg", "a b/c#?.jpg"),
            (b"50%.jpg", "50%25.jpg"),
            (b"../../etc/x.jpg", "%2E%2E/%2E%2E/etc/x.jpg"),
            (b"/etc/x.jpg", "%2Fetc/x.jpg"),
            (b"a//b/./c", "a/%2Fb/%2E/c"),
            (b"caf\xE9.jpg", "caf%E9.jpg"),
            ("gr\u{f6}\u{df}e.jpg".as_bytes(), "gr\u{f6}\u{df}e.jpg"),
            (b"two\nlines.jpg", "two%0Alines.jpg"),
        ] {
            assert_eq!(escaped(name), path);
            assert_eq!(unescaped(path.as_bytes()), name);
            let whole = Path::new("x.tar").join(escaped(name));
            assert!(whole.components().all(|part| matches!(part, std::path::Component::Normal(_))), "{path}");
        }
    }
}
