//! Classifies the contents of an output folder: which files are the command's own, another command's, or neither.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    hidden,
    marker::{MARKER, Marker, OutputFile, OutputState, name_of},
};
use crate::{
    error::{Error, Result},
    files::folder_of,
};

/// The files that a command may have written to its folder before it finished: names with `/`, in which `*` matches
/// anything within one component. These patterns are all that identifies the files of a killed process.
pub(crate) type FolderPatterns = &'static [&'static str];

/// An output whose contents are checked.
pub(super) struct Scope<'a> {
    pub(super) root: &'a Path,
    pub(super) marker: Marker,
    pub(super) layout: Vec<&'a str>,
}

impl Scope<'_> {
    /// Whether a file was written by the command of the folder, or by a command whose marker is next to the file.
    pub(super) fn is_own(&self, path: &Path) -> Result<bool> {
        let name = name_below(self.root, path);
        if self.marker.vouches_for(&name, path)? {
            return Ok(true);
        }
        if self.marker.state != OutputState::Complete
            && self.layout.iter().any(|pattern| matches(pattern, &name))
        {
            return Ok(true);
        }
        let file_name = name_of(path.file_name().unwrap_or_default());
        if let Some(output) = hidden(&file_name, MARKER) {
            return Ok(Marker::read(path)?.is_some_and(|other| other.of(&output).next().is_some()));
        }
        // A set of files has a single marker, next to one of them.
        for entry in fs::read_dir(folder_of(path)).map_err(Error::io("read", folder_of(path)))? {
            let entry = entry.map_err(Error::io("read", path))?;
            if hidden(&entry.file_name().to_string_lossy(), MARKER).is_some()
                && let Some(other) = Marker::read(&entry.path())?
                && other.vouches_for(&file_name, path)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// An output of another command within a folder.
pub(super) struct Other {
    pub(super) marker: PathBuf,
    /// Its files that exist and are unchanged.
    pub(super) files: Vec<PathBuf>,
}

/// Outputs of other commands within a folder, each with a marker of its own.
pub(super) fn marked_in(folder: &Path) -> Result<Vec<Other>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(found) };
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(marked_in(&path)?);
            continue;
        }
        let is_marker = hidden(&entry.file_name().to_string_lossy(), MARKER).is_some();
        // A damaged marker lists nothing.
        let Some(marker) = is_marker.then(|| Marker::read(&path).ok().flatten()).flatten() else { continue };
        let mut files = Vec::new();
        for written in &marker.files {
            let file = folder.join(&written.name);
            if file.is_file() && written.is_unchanged(&file)? {
                files.push(file);
            }
        }
        found.push(Other { marker: path, files });
    }
    Ok(found)
}

/// The path of a file relative to a folder, with `/`.
pub(super) fn name_below(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.iter().map(name_of).collect::<Vec<_>>().join("/")
}

/// Whether a name matches a pattern of [`FolderPatterns`].
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (patterns, names) = (pattern.split('/'), name.split('/'));
    pattern.matches('/').count() == name.matches('/').count()
        && patterns.zip(names).all(|(pattern, name)| match pattern.split_once('*') {
            None => pattern == name,
            Some((before, after)) => {
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            }
        })
}

/// Writes the marker of a complete folder. The marker does not list outputs that have markers of their own, nor files
/// that the command does not write; without a layout, all files count as the command's.
pub(super) fn describe(command: &str, folder: &Path, layout: FolderPatterns) -> Result<()> {
    let mut files = Vec::new();
    list(folder, "", &mut files)?;
    if !layout.is_empty() {
        files.retain(|written| layout.iter().any(|pattern| matches(pattern, &written.name)));
    }
    files.sort_by(|left, right| left.name.cmp(&right.name));
    Marker::new(command, OutputState::Complete, files).write(&folder.join(MARKER))
}

fn list(folder: &Path, prefix: &str, files: &mut Vec<OutputFile>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let (path, name) = (entry.path(), name_of(&entry.file_name()));
        let about = entry.file_type().map_err(Error::io("read", &path))?;
        if about.is_dir() {
            if !path.join(MARKER).exists() {
                list(&path, &format!("{prefix}{name}/"), files)?;
            }
        } else if about.is_symlink() {
            files.push(OutputFile::link(&path, format!("{prefix}{name}"))?);
        } else if !name.starts_with('.') && !Marker::path_for(&path).exists() {
            files.push(OutputFile::of(&path, format!("{prefix}{name}"))?);
        }
    }
    Ok(())
}
