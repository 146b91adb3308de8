//! Output folders: checked and locked before anything is read, written next to their target or in place, and renamed
//! atomically.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

pub(crate) use super::contents::FolderPatterns;
use super::{
    Claim, OTHER,
    contents::{Other, Scope, describe, marked_in, matches, name_below},
    hidden,
    lock::{Lock, is_lock},
    marker::{MARKER, Marker, NEW, OutputFile, OutputState},
    output::{make_staging, rename},
    refuse, refuse_inputs, remove, resolved, sibling,
};
use crate::{
    error::{Error, Result},
    files::{
        folder_of, is_leftover, sync_folder, sync_tree,
        temporary::{forget, remove_on_exit},
    },
};

/// A locked output folder of a command.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    command: &'static str,
    layout: FolderPatterns,
    target: PathBuf,
    overwrite: bool,
    lock: Lock,
}

/// The existing contents of an output folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    /// Nothing, or an empty folder.
    Nothing,
    /// An output of this program whose command has not finished.
    Unfinished,
    /// A complete output of this program.
    Complete,
}

impl OutputFolder {
    /// Locks a folder, which need not exist, and recovers from a killed process.
    ///
    /// # Errors
    /// [`Error::Output`] if it is or contains an input, or is a file; [`Error::Locked`] if another process is writing
    /// it.
    pub(crate) fn claim(claim: &Claim<'_>, target: &Path, layout: FolderPatterns) -> Result<Self> {
        let absolute = std::path::absolute(target).map_err(Error::io("resolve", target))?;
        fs::create_dir_all(folder_of(&absolute)).map_err(Error::io("create", target))?;
        let target = resolved(target)?;
        refuse_inputs(&target, claim.inputs)?;
        if target.exists() && !target.is_dir() {
            return Err(refuse(&target, format!("is a file; {OTHER}")));
        }
        let lock = Lock::acquire(claim.command, std::slice::from_ref(&target))?;
        let Claim { command, overwrite, .. } = *claim;
        let folder = Self { command, layout, target, overwrite, lock };
        folder.recover()?;
        Ok(folder)
    }

    /// The folder, with links resolved.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The staging folder, if it is not written in place.
    pub(crate) fn staging(&self) -> PathBuf {
        sibling(&self.target, ".unfinished")
    }

    /// Where the previous output is kept until the new one is complete.
    pub(crate) fn replaced(&self) -> PathBuf {
        sibling(&self.target, ".replaced")
    }

    /// Completes or reverts a replacement that was killed between two renames.
    fn recover(&self) -> Result<()> {
        let (staging, replaced) = (self.staging(), self.replaced());
        let at = |folder: &Path| Marker::read(&folder.join(MARKER));
        let complete = at(&self.target)?.is_some_and(|marker| marker.state == OutputState::Complete);
        if at(&staging)?.is_some_and(|marker| marker.state != OutputState::Pending) {
            // The target has been swapped with the new output.
            if !self.target.exists() {
                rename_synced(&staging, &self.target)?;
            } else if complete || replaced.exists() {
                self.expect_own_in(&staging)?;
                self.move_others(&staging, &self.target)?;
                remove(&staging)?;
            } else {
                rename_synced(&staging, &replaced)?;
            }
        }
        if at(&replaced)?.is_some() {
            if !self.target.exists() {
                rename_synced(&replaced, &self.target)?;
            } else if complete {
                self.expect_own_in(&replaced)?;
                self.move_others(&replaced, &self.target)?;
                remove(&replaced)?;
            }
        }
        Ok(())
    }

    /// The existing contents of the folder.
    ///
    /// # Errors
    /// [`Error::Output`] if it has contents but no marker of this command.
    pub(crate) fn present(&self) -> Result<Present> {
        let entries = match fs::read_dir(&self.target) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Present::Nothing),
            Err(error) => return Err(Error::io("read", &self.target)(error)),
        };
        let mut empty = true;
        for entry in entries {
            let name = entry.map_err(Error::io("read", &self.target))?.file_name();
            let name = name.to_string_lossy();
            empty &= is_leftover(name.as_ref().as_ref()) || name.strip_suffix(NEW) == Some(MARKER);
        }
        if empty {
            return Ok(Present::Nothing);
        }
        match self.marker()? {
            Some(marker) if marker.state == OutputState::Complete => Ok(Present::Complete),
            Some(_) => Ok(Present::Unfinished),
            None => Err(refuse(
                &self.target,
                format!(
                    "is not empty and was not written by `{}`, so it is not replaced; {OTHER}",
                    self.command
                ),
            )),
        }
    }

    /// Fails if the folder has contents, unless they may be replaced and are unchanged.
    ///
    /// # Errors
    /// [`Error::Output`] if so.
    pub(crate) fn refuse_present(&self, overwrite: bool) -> Result<()> {
        match self.present()? {
            Present::Nothing => Ok(()),
            _ if !overwrite => {
                Err(refuse(&self.target, format!("already exists; pass --overwrite or {OTHER}")))
            }
            _ => self.expect_own(),
        }
    }

    /// Writes the folder to staging with `write` and publishes it; on failure, staging is removed.
    ///
    /// # Errors
    /// The error of `write`; see also [`publish`](Self::publish).
    pub(crate) fn write<T>(&self, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let staging = self.begin_sibling(false)?;
        remove_on_exit(&staging);
        match write(&staging) {
            Ok(written) => {
                forget(&staging);
                self.publish().map(|()| written)
            }
            Err(error) => {
                forget(&staging);
                self.discard();
                Err(error)
            }
        }
    }

    fn marker(&self) -> Result<Option<Marker>> {
        Ok(Marker::read(&self.target.join(MARKER))?.filter(|marker| marker.command == self.command))
    }

    /// Fails if the folder contains a file that is listed neither by its marker nor by another marker in it, or that
    /// has changed since.
    ///
    /// # Errors
    /// [`Error::Output`] for the first such file; [`Error::Locked`] if another process is writing in the folder.
    pub(crate) fn expect_own(&self) -> Result<()> {
        if self.marker()?.is_none() {
            return self.present().map(drop);
        }
        let inner = self.expect_own_in(&self.target)?;
        // Other commands must have finished writing in it; a file that they write later is not a known file and is
        // refused.
        Lock::acquire(self.command, &inner).map(drop)
    }

    /// Names of the files that other commands have written to the folder.
    pub(crate) fn others(&self) -> Result<Vec<String>> {
        let mut others: Vec<String> = self
            .others_in(&self.target)?
            .into_iter()
            .flat_map(|other| other.files)
            .map(|path| name_below(&self.target, &path))
            .collect();
        others.sort_unstable();
        Ok(others)
    }

    /// Checks a folder that has, or had, this output. Returns the outputs of other commands in it, to be locked.
    fn expect_own_in(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let marker = Marker::read(&folder.join(MARKER))?.filter(|marker| marker.command == self.command);
        let Some(marker) = marker else {
            return Err(refuse(
                folder,
                format!("is in the way and was not written by `{}`; move it away", self.command),
            ));
        };
        let mut inner = Vec::new();
        self.look_through(&Scope { root: folder, marker, layout: self.layout.to_vec() }, folder, &mut inner)?;
        Ok(inner)
    }

    /// Outputs of other commands within a folder. An output whose files all match the layout is this command's own.
    fn others_in(&self, folder: &Path) -> Result<Vec<Other>> {
        let is_own =
            |path: &PathBuf| self.layout.iter().any(|pattern| matches(pattern, &name_below(folder, path)));
        let mut others = marked_in(folder)?;
        others.retain(|other| !other.files.iter().all(is_own));
        Ok(others)
    }

    /// Moves the files of other commands from a folder that will be removed to the one that replaces it, each marker
    /// last.
    fn move_others(&self, from: &Path, to: &Path) -> Result<()> {
        let mut folders = BTreeSet::new();
        for Other { marker, files } in self.others_in(from)? {
            for path in files.iter().chain([&marker]) {
                let below = path.strip_prefix(from).unwrap_or(path);
                let target = to.join(below);
                if !target.exists() {
                    fs::create_dir_all(folder_of(&target))
                        .map_err(Error::io("create", folder_of(&target)))?;
                    rename(path, &target, false)?;
                    folders.insert(folder_of(&target).to_path_buf());
                }
            }
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))
    }

    fn look_through(&self, scope: &Scope<'_>, folder: &Path, inner: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let entry = entry.map_err(Error::io("read", folder))?;
            let (path, file_name) = (entry.path(), entry.file_name());
            let text = file_name.to_string_lossy();
            let is_marker = text.strip_suffix(NEW).unwrap_or(&text) == MARKER;
            if is_marker && folder == scope.root || is_leftover(&file_name) {
                continue;
            }
            if let Some(output) = hidden(&text, ".lock").filter(|_| is_lock(&path)) {
                inner.push(folder.join(output));
                continue;
            }
            let about = entry.file_type().map_err(Error::io("read", &path))?;
            if !about.is_dir() {
                if !scope.is_own(&path)? {
                    return Err(self.foreign(&path, "was not written by it, or has changed since"));
                }
                continue;
            }
            let within = Marker::read(&path.join(MARKER))?;
            if within.is_some() && hidden(&text, ".unfinished").is_some() {
                continue;
            }
            match within {
                None => self.look_through(scope, &path, inner)?,
                Some(marker) => {
                    // A folder with a marker of its own is another output, unless it is a part of this one.
                    let prefix = format!("{}/", name_below(scope.root, &path));
                    let layout: Vec<&str> =
                        scope.layout.iter().filter_map(|pattern| pattern.strip_prefix(&prefix)).collect();
                    if layout.is_empty() {
                        return Err(self.foreign(&path, &format!("was written by `{}`", marker.command)));
                    }
                    self.look_through(&Scope { root: &path, marker, layout }, &path, inner)?;
                }
            }
        }
        Ok(())
    }

    fn foreign(&self, path: &Path, why: &str) -> Error {
        let root = [self.staging(), self.replaced()].into_iter().find(|root| path.starts_with(root));
        let root = root.unwrap_or_else(|| self.target.clone());
        refuse(
            &root,
            format!(
                "is an output of `{}`, but {} in it {why}, so it is not replaced; move that away or {OTHER}",
                self.command,
                name_below(&root, path)
            ),
        )
    }

    /// Fails if a listed file of a complete folder has changed. A file that was removed is accepted.
    ///
    /// # Errors
    /// [`Error::Output`] for the first such file.
    pub(crate) fn expect_listed(&self) -> Result<()> {
        let marker = self.marker()?.filter(|marker| marker.state == OutputState::Complete);
        for written in marker.iter().flat_map(|marker| &marker.files) {
            let path = self.target.join(&written.name);
            if path.exists() && !written.is_unchanged(&path)? {
                return Err(self.foreign(&path, "has changed since"));
            }
        }
        Ok(())
    }

    /// Marks the folder as complete, with these files.
    pub(crate) fn complete_with(&self, files: &[PathBuf]) -> Result<()> {
        let of = |path: &PathBuf| OutputFile::of(path, name_below(&self.target, &resolved(path)?));
        let files = files.iter().map(of).collect::<Result<_>>()?;
        Marker::new(self.command, OutputState::Complete, files).write(&self.target.join(MARKER))
    }

    /// Starts writing in place. Creates the folder if necessary; existing contents are kept.
    pub(crate) fn begin_in_place(&self) -> Result<()> {
        fs::create_dir_all(&self.target).map_err(Error::io("create", &self.target))?;
        Marker::new(self.command, OutputState::Unfinished, Vec::new()).write(&self.target.join(MARKER))
    }

    /// Removes everything except the marker from an output of this command, after [`expect_own`](Self::expect_own).
    pub(crate) fn clear_in_place(&self) -> Result<()> {
        self.begin_in_place()?;
        let kept: Vec<PathBuf> = self
            .others_in(&self.target)?
            .into_iter()
            .flat_map(|other| [other.files, vec![other.marker]].concat())
            .collect();
        for entry in fs::read_dir(&self.target).map_err(Error::io("read", &self.target))? {
            let entry = entry.map_err(Error::io("read", &self.target))?;
            if entry.file_name() != MARKER && !kept.iter().any(|kept| kept.starts_with(entry.path())) {
                let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
                let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Discards what was written in place, unless the folder contains files of others. Removes the folder itself if
    /// it was `made` for this output.
    pub(crate) fn discard_in_place(&self, made: bool) {
        let emptied = self.expect_own().and_then(|()| self.clear_in_place()).is_ok();
        if emptied && fs::remove_file(self.target.join(MARKER)).is_ok() && made {
            let _not_empty = fs::remove_dir(&self.target);
        }
    }

    /// Starts writing to staging; with `keep`, the contents of an earlier process are kept.
    pub(crate) fn begin_sibling(&self, keep: bool) -> Result<PathBuf> {
        let staging = self.staging();
        make_staging(&staging, self.command)?;
        if !keep {
            remove(&staging)?;
            make_staging(&staging, self.command)?;
        }
        Ok(staging)
    }

    /// Renames staging to the target while the command continues. The previous output is kept under another name
    /// until [`complete`](Self::complete) or [`restore`](Self::restore).
    pub(crate) fn show(&self) -> Result<()> {
        self.lock.expect_held()?;
        self.refuse_present(self.overwrite)?;
        let (staging, replaced) = (self.staging(), self.replaced());
        Marker::new(self.command, OutputState::Unfinished, Vec::new()).write(&staging.join(MARKER))?;
        if !self.target.exists() {
            return rename_synced(&staging, &self.target);
        }
        if !exchange(&staging, &self.target)? {
            if replaced.exists() {
                self.move_others(&self.target, &replaced)?;
                remove(&self.target)?;
            } else {
                rename(&self.target, &replaced, false)?;
            }
            rename(&staging, &self.target, false)?;
        } else if replaced.exists() {
            self.move_others(&staging, &replaced)?;
            remove(&staging)?;
        } else {
            rename(&staging, &replaced, false)?;
        }
        self.move_others(&replaced, &self.target)?;
        sync_folder(folder_of(&self.target))
    }

    /// Moves a complete output aside, so that a new one can be written in place. See [`show`](Self::show).
    pub(crate) fn put_aside(&self) -> Result<()> {
        let replaced = self.replaced();
        if replaced.exists() {
            self.move_others(&self.target, &replaced)?;
            return remove(&self.target);
        }
        rename_synced(&self.target, &replaced)
    }

    /// Moves the previous output back, if there is one.
    pub(crate) fn restore(&self) -> Result<()> {
        if !self.replaced().exists() {
            return Ok(());
        }
        if self.target.exists() {
            self.move_others(&self.target, &self.replaced())?;
            remove(&self.target)?;
        }
        rename_synced(&self.replaced(), &self.target)
    }

    /// Whether a previous output is kept until the new one is complete.
    pub(crate) fn keeps_former(&self) -> bool {
        self.replaced().exists()
    }

    /// Marks the folder as complete, with all its files, and removes the previous output.
    pub(crate) fn complete(&self) -> Result<()> {
        let replaced = self.replaced();
        if replaced.exists() {
            self.move_others(&replaced, &self.target)?;
        }
        self.lock.expect_held()?;
        describe(self.command, &self.target, self.layout)?;
        if replaced.exists() { remove(&replaced) } else { Ok(()) }
    }

    /// Marks staging as complete and renames it to the target, replacing the previous output.
    pub(crate) fn publish(&self) -> Result<()> {
        let staging = self.staging();
        describe(self.command, &staging, &[])?;
        sync_tree(&staging)?;
        // The target may have been created or changed since the command started.
        self.lock.expect_held()?;
        self.refuse_present(self.overwrite)?;
        if !self.target.exists() {
            return rename_synced(&staging, &self.target);
        }
        let mut former = staging.clone();
        if exchange(&staging, &self.target)? {
            sync_folder(folder_of(&self.target))?;
        } else {
            self.put_aside()?;
            rename_synced(&staging, &self.target)?;
            former = self.replaced();
        }
        // The previous output is removed only after the new one has the name.
        self.move_others(&former, &self.target)?;
        remove(&former)
    }

    /// Discards staging.
    pub(crate) fn discard(&self) {
        let _already_gone = remove(&self.staging());
    }
}

/// Renames a folder to a new name in the same parent folder and syncs the parent.
fn rename_synced(from: &Path, to: &Path) -> Result<()> {
    rename(from, to, false)?;
    sync_folder(folder_of(to))
}

/// Swaps two folders atomically; `false` if the file system does not support it.
#[cfg(target_os = "linux")]
fn exchange(new: &Path, old: &Path) -> Result<bool> {
    use rustix::{
        fs::{CWD, RenameFlags, renameat_with},
        io::Errno,
    };
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(Error::io("replace", old)(error.into())),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_new: &Path, _old: &Path) -> Result<bool> {
    Ok(false)
}
