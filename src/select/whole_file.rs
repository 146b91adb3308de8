//! Files that appear whole or not at all: written under a temporary name in the same folder, synchronised, renamed.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::error::{Error, Result};

/// Tells the temporary files of one process apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A file that gets its name only when it is complete. Dropped before [`finish`](Self::finish), it leaves nothing.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    published: bool,
}

impl WholeFile {
    /// Opens a temporary file beside `path`; `path` itself is not touched yet.
    ///
    /// # Errors
    /// If the folder does not exist or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::invalid(format!("{} is not the name of a file.", path.display())));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{}.partial", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(hidden);
        let file = File::create(&temporary).map_err(Error::io("create", path))?;
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_path_buf(), temporary, writer, published: false })
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything out, synchronises and gives the file its name, replacing what had that name.
    ///
    /// # Errors
    /// If the disk is full or the rename is refused.
    pub fn finish(mut self) -> Result<()> {
        self.synchronise()?;
        self.publish()
    }

    fn synchronise(&mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io("write", &self.path))?;
        self.writer.get_ref().sync_all().map_err(Error::io("write", &self.path))
    }

    fn publish(&mut self) -> Result<()> {
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename into", &self.path))?;
        self.published = true;
        // The rename itself survives a power cut only once the folder is synchronised. Not every system can open a
        // folder; there the rename is as durable as that system makes it.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
            let _durable = folder.sync_all();
        }
        Ok(())
    }
}

impl Write for WholeFile {
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

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.published {
            let _already_gone = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes `bytes` as the whole of `path`.
///
/// # Errors
/// If the file cannot be created, written or renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.finish()
}

/// Finishes files that belong together: all are on disk before the first gets its name, and if one cannot get its
/// name those that did are removed. The last is named last, so its presence says that the others are there.
///
/// # Errors
/// If the disk is full or a rename is refused.
pub fn finish_together(mut files: Vec<WholeFile>) -> Result<()> {
    for file in &mut files {
        file.synchronise()?;
    }
    for index in 0..files.len() {
        if let Err(error) = files[index].publish() {
            for done in &files[..index] {
                let _already_gone = fs::remove_file(&done.path);
            }
            return Err(error);
        }
    }
    Ok(())
}
