//! Atomic writes of files and folders: readers see the complete output or none, even if the process is killed.

pub(crate) mod mistaken;
pub mod sealed;
pub(crate) mod temporary;
pub(crate) mod text;
pub(crate) mod wildcard;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempDir};

use self::temporary::{create_temporary, forget};
use crate::error::{Error, Result};

/// Prefix of temporary names; see `remove_leftovers`.
pub const LEFTOVER: &str = ".unfinished-";

/// Number of random characters after [`LEFTOVER`] in a temporary name.
const RANDOM: usize = 12;

/// Whether `name` is a temporary name of this program.
pub(crate) fn is_leftover(name: &std::ffi::OsStr) -> bool {
    let random = name.to_str().and_then(|name| name.strip_prefix(LEFTOVER));
    random.is_some_and(|random| {
        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Formats bytes in hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// SHA-256 of a file, which may be larger than memory.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn digest_of_file(path: &Path) -> io::Result<[u8; 32]> {
    digest_of(File::open(path)?)
}

/// SHA-256 of the remaining bytes of `input`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn digest_of(mut input: impl io::Read) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// SHA-256 of a file in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn sha256_of_file(path: &Path) -> Result<String> {
    Ok(hexadecimal(&digest_of_file(path).map_err(Error::io("read", path))?))
}

/// The parent folder of `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Syncs the entries of a folder to disk.
///
/// # Errors
/// If the folder cannot be synced.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}

/// Syncs everything below a folder to disk: with one call where the system supports it, else file by file.
///
/// # Errors
/// If a file or folder cannot be synced.
pub(crate) fn sync_tree(folder: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        let open = File::open(folder).map_err(Error::io("sync", folder))?;
        rustix::fs::syncfs(&open).map_err(|error| Error::io("sync", folder)(error.into()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let path = entry.map_err(Error::io("read", folder))?.path();
            if path.is_dir() {
                sync_tree(&path)?;
            } else {
                File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("sync", &path))?;
            }
        }
        sync_folder(folder)
    }
}

/// Creates a file with these bytes and syncs it, under its final name.
fn write_through(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

/// Creates a file with an unpredictable name, so that a link cannot redirect the write.
fn temporary_file(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(LEFTOVER).rand_bytes(RANDOM);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Restricted by the umask, like any new file.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder_of(path))
}

/// A file that gets its name only when it is complete. If dropped before `finish`, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `path`. `path` itself is not changed yet.
    ///
    /// # Errors
    /// If the folder does not exist or is not writable.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if path.file_name().is_none() {
            return Err(Error::argument(format!("{} is not a file name", path.display())));
        }
        let file = create_temporary(|| temporary_file(path), |file| file.path().to_path_buf());
        let file = file.map_err(Error::io("create", path))?;
        Ok(Self { path: path.to_path_buf(), writer: BufWriter::with_capacity(1 << 20, file) })
    }

    /// The final path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Like [`finish`](Self::finish) without syncing: for many small files that are synced together before a marker
    /// lists them.
    ///
    /// # Errors
    /// If the disk is full or the rename fails.
    pub(crate) fn finish_unsynced(mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io("write", &self.path))?;
        self.rename()
    }

    /// Flushes and syncs the file and renames it to its final name, replacing an existing file.
    ///
    /// # Errors
    /// If the disk is full or the rename fails.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io("write", &self.path))?;
        self.writer.get_ref().as_file().sync_all().map_err(Error::io("write", &self.path))?;
        let path = self.path.clone();
        self.rename()?;
        sync_folder(folder_of(&path))
    }

    fn rename(self) -> Result<()> {
        // The buffer is empty, so dropping the writer cannot lose data.
        let (temporary, path) = (self.writer.get_ref().path().to_path_buf(), self.path.clone());
        let Self { writer, .. } = self;
        let (file, _) = writer.into_parts();
        let persisted = file.persist(&path).map_err(|error| Error::io("write", &path)(error.error));
        forget(&temporary);
        persisted.map(drop)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Writes a file atomically: under a temporary name in the same folder, synced, renamed, and the folder synced.
///
/// # Errors
/// If the folder is missing or not writable, or the disk is full; an existing file is then unchanged.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.finish()
}

/// Like [`write_atomic`] with a given temporary name, which must not exist: for folders that others write to as well,
/// where leftovers are removed by name after a kill.
///
/// # Errors
/// See [`write_atomic`]; also if the temporary name exists.
pub(crate) fn write_atomic_under(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        // Only a new file, so that an existing link is not followed.
        let mut file = File::options().write(true).create_new(true).open(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    write().map_err(|error| {
        let _already_gone = fs::remove_file(temporary);
        Error::io("write", path)(error)
    })?;
    sync_folder(folder_of(path))
}

/// Writes a CSV with these columns and rows atomically.
///
/// # Errors
/// If the number of fields of a row differs from the header; see also [`write_atomic`].
pub(crate) fn write_csv<Field: AsRef<[u8]>>(
    path: &Path,
    header: &[impl AsRef<[u8]>],
    rows: impl IntoIterator<Item = impl IntoIterator<Item = Field>>,
) -> Result<()> {
    let refuse = |message: String| Error::Table { path: path.to_path_buf(), line: None, message };
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(header).map_err(|error| refuse(error.to_string()))?;
    for row in rows {
        table.write_record(row).map_err(|error| refuse(error.to_string()))?;
    }
    let bytes = table.into_inner().map_err(|error| refuse(error.to_string()))?;
    write_atomic(path, &bytes)
}

/// Creates a folder with an unpredictable name.
fn temporary_folder(path: &Path) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(LEFTOVER).rand_bytes(RANDOM);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    create_temporary(|| builder.tempdir_in(folder_of(path)), |folder| folder.path().to_path_buf())
}

/// A folder that is created atomically: files are written to a temporary folder next to it, which `publish` renames. If
/// dropped before that, it is removed.
#[derive(Debug)]
pub struct PendingFolder {
    temporary: TempDir,
    target: PathBuf,
}

impl PendingFolder {
    /// Starts a folder that will be renamed to `target`.
    ///
    /// # Errors
    /// If the temporary folder cannot be created.
    pub(crate) fn new(target: &Path) -> Result<Self> {
        let temporary = temporary_folder(target).map_err(Error::io("create", target))?;
        Ok(Self { temporary, target: target.to_path_buf() })
    }

    /// The temporary folder.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes a file to the folder.
    ///
    /// # Errors
    /// If writing fails; the message names the final path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_through(&self.path().join(name), bytes).map_err(|error| match error {
            Error::Io { action, source, .. } => Error::Io { action, path: self.target.join(name), source },
            other => other,
        })
    }

    /// Renames the folder to its final name, replacing an existing folder.
    ///
    /// # Errors
    /// If a folder cannot be renamed or synced.
    pub(crate) fn publish(mut self) -> Result<()> {
        sync_folder(self.path())?;
        if self.target.exists() {
            remove_folder(&self.target)?;
        }
        fs::rename(self.path(), &self.target).map_err(Error::io("create", &self.target))?;
        self.temporary.disable_cleanup(true);
        forget(self.path());
        sync_folder(folder_of(&self.target))
    }
}

/// Removes a folder atomically.
///
/// # Errors
/// If it cannot be renamed or removed.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    let hidden = temporary_folder(folder).map_err(Error::io("remove", folder))?;
    fs::rename(folder, hidden.path().join("removed")).map_err(Error::io("remove", folder))?;
    forget(hidden.path());
    hidden.close().map_err(Error::io("remove", folder))
}

/// Removes temporary files of killed processes from a folder that no other process writes to.
///
/// # Errors
/// If the folder cannot be read or a file cannot be removed.
pub(crate) fn remove_leftovers(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        if !is_leftover(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io("read", &path))?;
        let removed = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_atomically_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a.json"]);
        let error = write_atomic(&folder.path().join("missing/a.json"), b"one").unwrap_err().to_string();
        assert!(error.contains("cannot create") && error.contains("missing/a.json"), "{error}");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_folder_is_created_atomically() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("step");
        let pending = PendingFolder::new(&target).unwrap();
        pending.write("a", b"1").unwrap();
        assert!(!target.exists());
        drop(pending);
        assert!(names(folder.path()).is_empty());
        for content in [b"1", b"2"] {
            let pending = PendingFolder::new(&target).unwrap();
            pending.write("a", content).unwrap();
            pending.publish().unwrap();
            assert_eq!(fs::read(target.join("a")).unwrap(), content);
            assert_eq!(names(folder.path()), ["step"]);
        }
    }

    #[test]
    fn leftovers_go_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let kept = temporary_folder(&folder.path().join("a")).unwrap().keep();
        fs::write(kept.join("c"), "").unwrap();
        temporary_file(&folder.path().join("b")).unwrap().keep().unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        for name in [".hidden", ".unfinished-novel", ".unfinished-novel-in-12.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_leftovers(folder.path()).unwrap();
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left, [".hidden", ".unfinished-novel", ".unfinished-novel-in-12.txt"]);
    }

    #[test]
    fn the_digest_is_that_of_the_standard() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
