//! The marker of an output: the command that wrote it, and the size and SHA-256 of every file. Only files that a
//! marker lists and that are unchanged may be replaced.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::sibling;
use crate::{
    error::{Error, Result},
    files::{hexadecimal, sha256_of_file, write_atomic_under},
};

/// Name of the marker within a folder; next to a file, the file name is prepended.
pub(crate) const MARKER: &str = ".alchemist.json";

/// Progress of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputState {
    /// Still in staging; can be discarded.
    Pending,
    /// It has its final name, but its command has not finished. The files of a folder are then known by name only.
    Unfinished,
    /// All listed files exist.
    Complete,
}

/// A file of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputFile {
    /// Path relative to the output folder, with `/`.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl OutputFile {
    /// Describes the current state of a file.
    pub(crate) fn of(path: &Path, name: String) -> Result<Self> {
        let bytes = fs::metadata(path).map_err(Error::io("read", path))?.len();
        Ok(Self { name, bytes, sha256: sha256_of_file(path)? })
    }

    /// Whether a file is unchanged.
    pub(crate) fn is_unchanged(&self, path: &Path) -> Result<bool> {
        let about = fs::symlink_metadata(path).map_err(Error::io("read", path))?;
        if about.is_symlink() {
            return Ok(self.sha256 == link_digest(path)?);
        }
        Ok(about.is_file() && about.len() == self.bytes && sha256_of_file(path)? == self.sha256)
    }

    /// Describes a symbolic link by its target, which is not followed.
    pub(crate) fn link(path: &Path, name: String) -> Result<Self> {
        Ok(Self { name, bytes: 0, sha256: link_digest(path)? })
    }
}

fn link_digest(path: &Path) -> Result<String> {
    let target = fs::read_link(path).map_err(Error::io("read", path))?;
    Ok(format!("link:{}", crate::files::sha256(target.as_os_str().as_encoded_bytes())))
}

/// Metadata of an output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Marker {
    format: u32,
    /// The command that wrote it.
    pub(crate) command: String,
    version: String,
    pub(crate) state: OutputState,
    /// Its files.
    pub(crate) files: Vec<OutputFile>,
    /// For files: the name of the file next to the marker. A copy next to another file is invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<String>,
    /// While files are being replaced: whether the previous output was complete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) replaces: bool,
    /// For a ratings table: its column of ratings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rating_column: Option<String>,
    /// While files are being replaced: the previous files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) former: Vec<OutputFile>,
}

impl Marker {
    const FORMAT: u32 = 1;

    pub(crate) fn new(command: &str, state: OutputState, files: Vec<OutputFile>) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            format: Self::FORMAT,
            command: command.to_owned(),
            version,
            state,
            files,
            output: None,
            replaces: false,
            rating_column: None,
            former: Vec::new(),
        }
    }

    /// Path of the marker of a file.
    pub(crate) fn path_for(output: &Path) -> PathBuf {
        sibling(output, MARKER)
    }

    /// Reads a marker.
    ///
    /// # Errors
    /// If it exists but cannot be read, is damaged or is not a marker.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        // Opening a named pipe would block.
        if fs::symlink_metadata(path).is_ok_and(|about| !about.is_file()) {
            return Err(super::refuse(
                path,
                "is not a regular file, but this program keeps its marker there; move it away",
            ));
        }
        match fs::read(path) {
            Ok(bytes) => {
                let marker = serde_json::from_slice(&bytes).ok();
                let marker = marker.filter(|marker: &Self| marker.format == Self::FORMAT);
                let damaged = "is damaged or was not written by this program, so nothing next to it is replaced; move \
                               it away";
                marker.map(Some).ok_or_else(|| super::refuse(path, damaged))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// Writes the marker atomically. The temporary file that a killed process leaves has a known name; see
    /// [`remove_leftover`].
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec(self).map_err(|error| Error::invalid(error.to_string()))?;
        text.push(b'\n');
        remove_leftover(path)?;
        write_atomic_under(&unfinished(path), path, &text)
    }

    /// Reads the marker next to a file. A copy of another file's marker is ignored.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub(crate) fn read_for(output: &Path) -> Result<Option<Self>> {
        let name = name_of(output.file_name().unwrap_or_default());
        let marker = Self::read(&Self::path_for(output))?;
        Ok(marker.filter(|marker| marker.output.as_ref().is_none_or(|own| *own == name)))
    }

    /// The entries for a file.
    pub(crate) fn of(&self, name: &str) -> impl Iterator<Item = &OutputFile> {
        self.files.iter().chain(&self.former).filter(move |written| written.name == name)
    }

    /// Whether the marker lists the file and the file is unchanged.
    pub(crate) fn vouches_for(&self, name: &str, path: &Path) -> Result<bool> {
        for written in self.of(name) {
            if written.is_unchanged(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Temporary path of a marker.
fn unfinished(marker: &Path) -> PathBuf {
    let mut name = marker.file_name().unwrap_or_default().to_os_string();
    name.push(NEW);
    marker.with_file_name(name)
}

/// Suffix of a temporary marker.
pub(crate) const NEW: &str = ".new";

/// Removes the temporary marker of a killed process. The output must be locked.
pub(crate) fn remove_leftover(marker: &Path) -> Result<()> {
    let path = unfinished(marker);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// The name of a file in markers: the name itself, or a unique one if it is not UTF-8.
pub(crate) fn name_of(name: &OsStr) -> String {
    name.to_str().map_or_else(|| format!("bytes:{}", hexadecimal(name.as_encoded_bytes())), str::to_owned)
}

/// Fails if the file is part of a set whose replacement was interrupted. For commands that read outputs of other
/// commands.
///
/// # Errors
/// [`Error::Output`] if so.
pub(crate) fn expect_settled(path: &Path) -> Result<()> {
    let Some(marker) = Marker::read_for(path)? else { return Ok(()) };
    if marker.state == OutputState::Complete || marker.files.len() < 2 {
        return Ok(());
    }
    Err(super::refuse(
        path,
        format!(
            "is part of a set that `{}` was replacing when it was stopped; run that command again",
            marker.command
        ),
    ))
}
