//! Outputs of commands: a lock, checks that protect the user's files, a staging folder, and a marker that lists what
//! was written.
//!
//! | next to an output `NAME` | purpose |
//! | --- | --- |
//! | `.NAME.lock` | held while a process writes `NAME` (`jobs::lock`) |
//! | `.NAME.unfinished/` | staging folder of the new output (`jobs::output`) |
//! | `.NAME.replaced/` | the previous output, until the new one is complete (`jobs::folder`) |
//! | `.NAME.alchemist.json` | the marker: command, sizes, SHA-256 (`jobs::marker`); in a folder, `.alchemist.json` |
//!
//! Jobs report progress through one trait, [`progress::Progress`].

mod contents;
pub(crate) mod folder;
pub(crate) mod lock;
pub(crate) mod marker;
pub(crate) mod output;
pub mod progress;

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    files::wildcard::covers,
};

/// Describes a command, for the checks on its output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    /// The command, such as `score`.
    pub(crate) command: &'static str,
    /// Files and folders that it reads. The command itself reports missing ones. `FOLDER/**` stands for everything in a
    /// folder; other wildcards stand for whatever they match, now or later.
    pub(crate) inputs: &'a [PathBuf],
    /// Whether an existing output of this program may be replaced.
    pub(crate) overwrite: bool,
}

/// Hint of every error about an output.
const OTHER: &str = "choose another --out";

/// An [`Error::Output`].
fn refuse(path: &Path, message: impl Into<String>) -> Error {
    Error::Output { path: path.to_path_buf(), message: message.into() }
}

/// Removes a folder of this program, its marker last, so that an incomplete removal can still be identified.
fn remove(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("remove", folder))? {
        let entry = entry.map_err(Error::io("remove", folder))?;
        if entry.file_name() != marker::MARKER {
            let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
    }
    fs::remove_dir_all(folder).map_err(Error::io("remove", folder))
}

/// The path of `.NAME` with a suffix, next to `path`.
fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

/// Extracts `NAME` from `.NAME` with a suffix.
pub(crate) fn hidden(text: &str, ending: &str) -> Option<String> {
    text.strip_prefix('.')?.strip_suffix(ending).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The real path of an output: its parent folder with all links resolved and, if the output itself is a link, the
/// link's target.
///
/// # Errors
/// If it has no name, its parent folder does not exist, or it is a broken link.
fn resolved(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
    // `--out .`, `--out runs/..` and `--out /` refer to a folder with another name, or none.
    let absolute = match absolute.components().next_back() {
        Some(std::path::Component::Normal(_)) => absolute,
        _ => absolute.canonicalize().map_err(Error::io("resolve", path))?,
    };
    let (Some(folder), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(refuse(path, format!("cannot be replaced; {OTHER}")));
    };
    let text = name.to_string_lossy();
    let own = [".unfinished", ".replaced", ".lock", marker::MARKER];
    if text == marker::MARKER || own.iter().any(|ending| hidden(&text, ending).is_some()) {
        return Err(refuse(
            path,
            format!("has a name that this program reserves for its own files; {OTHER}"),
        ));
    }
    if absolute.symlink_metadata().is_ok_and(|about| about.file_type().is_symlink()) {
        return absolute.canonicalize().map_err(|_| refuse(path, format!("is a broken link; {OTHER}")));
    }
    let folder = match folder.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse(path, format!("there is no folder {}; create it first", folder.display())));
        }
        found => found.map_err(Error::io("open the folder of", path))?,
    };
    if !folder.is_dir() {
        return Err(refuse(path, format!("its parent is a file, not a folder; {OTHER}")));
    }
    Ok(folder.join(name))
}

/// Fails if an output is an input, a folder that contains one, or matches the wildcards of one.
fn refuse_inputs(output: &Path, inputs: &[PathBuf]) -> Result<()> {
    for input in inputs {
        let Ok(canonical) = input.canonicalize() else { continue };
        if canonical == output {
            return Err(refuse(output, format!("is an input and would be replaced; {OTHER}")));
        }
        if canonical.starts_with(output) {
            return Err(refuse(
                output,
                format!("contains the input {}, which would be replaced; {OTHER}", input.display()),
            ));
        }
    }
    if let Some(input) = inputs.iter().find(|input| !input.exists() && covers(input, output)) {
        let of = input.to_string_lossy();
        let of = of.strip_suffix("/**").unwrap_or(&of);
        return Err(refuse(output, format!("would become part of the input {of}; {OTHER}")));
    }
    Ok(())
}
