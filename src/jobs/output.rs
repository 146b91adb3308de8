//! Output files: checked and locked before anything is read, written to staging, and renamed together.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    Claim, OTHER, hidden,
    lock::Lock,
    marker::{MARKER, Marker, NEW, OutputFile, OutputState, name_of, remove_leftover},
    refuse, refuse_inputs, remove, resolved, sibling,
};
use crate::{
    error::{Error, Result},
    files::{
        folder_of, is_leftover, sync_folder,
        temporary::{forget, remove_on_exit},
    },
};

/// One file, or several that belong together, such as a table with its failed rows and its histogram.
#[derive(Debug)]
pub(crate) struct Output {
    command: &'static str,
    overwrite: bool,
    /// The file named by the user, with links resolved.
    primary: PathBuf,
    staging: PathBuf,
    former: Option<Marker>,
    rating_column: Option<String>,
    lock: Lock,
}

impl Output {
    /// Claims a file and its companions, whose names are its stem and one of these suffixes. Creates nothing but
    /// `.NAME.unfinished/`, and keeps what an earlier process left there.
    ///
    /// # Errors
    /// [`Error::Output`] if one of them is an input, is a folder, was not written by this program, has changed since,
    /// or exists and must not be replaced; [`Error::Locked`] if another process is writing one of them.
    pub(crate) fn claim(claim: &Claim<'_>, primary: &Path, companions: &[&str]) -> Result<Self> {
        let primary = resolved(primary)?;
        let companions = companions.iter().map(|ending| companion(&primary, ending));
        let outputs: Vec<PathBuf> = [primary.clone()].into_iter().chain(companions).collect();
        let lock = Lock::acquire(claim.command, &outputs)?;
        for output in &outputs {
            refuse_inputs(output, claim.inputs)?;
        }
        remove_leftover(&Marker::path_for(&primary))?;
        let former = Marker::read_for(&primary)?;
        for output in &outputs {
            check(claim, output, former.as_ref())?;
        }
        // The previous set may have had more files.
        for written in former.iter().flat_map(|marker| &marker.files) {
            check(claim, &primary.with_file_name(&written.name), former.as_ref())?;
        }
        let staging = sibling(&primary, ".unfinished");
        make_staging(&staging, claim.command)?;
        let (command, overwrite) = (claim.command, claim.overwrite);
        Ok(Self { command, overwrite, primary, staging, former, rating_column: None, lock })
    }

    /// Like [`claim`](Self::claim), but discards files that an earlier process left.
    ///
    /// # Errors
    /// See [`claim`](Self::claim).
    pub(crate) fn fresh(claim: &Claim<'_>, primary: &Path, companions: &[&str]) -> Result<Self> {
        let output = Self::claim(claim, primary, companions)?;
        output.clear()?;
        remove_on_exit(&output.staging);
        Ok(output)
    }

    /// Records the table's column of ratings in the marker.
    pub(crate) fn note_rating_column(&mut self, name: &str) {
        self.rating_column = Some(name.to_owned());
    }

    /// Removes all staged files.
    pub(crate) fn clear(&self) -> Result<()> {
        remove(&self.staging)?;
        make_staging(&self.staging, self.command)
    }

    /// The staging folder. Subfolders are for the command's own use.
    pub(crate) fn staging(&self) -> &Path {
        &self.staging
    }

    /// Staging path of the primary file.
    pub(crate) fn staged(&self) -> PathBuf {
        self.staged_sibling(&self.primary)
    }

    /// Staging path of the companion with this suffix.
    pub(crate) fn companion(&self, ending: &str) -> PathBuf {
        companion(&self.staged(), ending)
    }

    fn staged_sibling(&self, output: &Path) -> PathBuf {
        self.staging.join(output.file_name().unwrap_or_default())
    }

    /// Writes the files with `write` and publishes them; on failure, nothing is left.
    ///
    /// # Errors
    /// The error of `write`; see also [`publish`](Self::publish).
    pub(crate) fn write<T>(self, write: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        match write(&self) {
            Ok(written) => self.publish().map(|()| written),
            Err(error) => {
                let _already_gone = remove(&self.staging);
                forget(&self.staging);
                Err(error)
            }
        }
    }

    /// Renames all staged files to their final names, the primary one last, and writes the marker. If the process is
    /// killed meanwhile, the marker records it: readers reject the set, and the command can be run again.
    ///
    /// # Errors
    /// If a name was taken meanwhile, the disk is full, or a rename fails.
    pub(crate) fn publish(self) -> Result<()> {
        let mut marker = self.name_files()?;
        marker.state = OutputState::Complete;
        marker.former.clear();
        marker.replaces = false;
        marker.write(&Marker::path_for(&self.primary))
    }

    /// Publishes the files of a failed job, such as the list of reasons, as unfinished: the command can be run again.
    ///
    /// # Errors
    /// See [`publish`](Self::publish).
    pub(crate) fn publish_unfinished(self) -> Result<()> {
        self.name_files().map(drop)
    }

    /// Renames the files. Returns their marker, in the state of an unfinished output.
    fn name_files(&self) -> Result<Marker> {
        let folder = folder_of(&self.primary).to_path_buf();
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.staging).map_err(Error::io("read", &self.staging))? {
            let entry = entry.map_err(Error::io("read", &self.staging))?;
            let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
            let name = entry.file_name();
            if kind.is_file() && name != MARKER && !is_leftover(&name) {
                names.push(name);
            }
        }
        names.sort_by_key(|name| (Some(name.as_os_str()) == self.primary.file_name(), name.clone()));
        let mut files = Vec::new();
        for name in &names {
            let staged = self.staging.join(name);
            File::open(&staged).and_then(|file| file.sync_all()).map_err(Error::io("write", &staged))?;
            files.push(OutputFile::of(&staged, name_of(name))?);
        }
        // Existing files may have changed since the command started.
        self.lock.expect_held()?;
        let claim = Claim { command: self.command, inputs: &[], overwrite: self.overwrite };
        let old = self.former.iter().flat_map(|marker| marker.files.iter().map(|old| folder.join(&old.name)));
        for output in names.iter().map(|name| folder.join(name)).chain(old) {
            check(&claim, &output, self.former.as_ref())?;
        }
        let former = self
            .former
            .as_ref()
            .map_or(Vec::new(), |marker| marker.files.iter().chain(&marker.former).cloned().collect());
        let path = Marker::path_for(&self.primary);
        let mut marker = Marker::new(self.command, OutputState::Unfinished, files);
        marker.former.clone_from(&former);
        marker.output = Some(name_of(self.primary.file_name().unwrap_or_default()));
        marker.replaces = self
            .former
            .as_ref()
            .is_some_and(|marker| marker.state == OutputState::Complete || marker.replaces);
        marker.rating_column.clone_from(&self.rating_column);
        marker.write(&path)?;
        for name in &names {
            let known = former.iter().any(|written| written.name == name_of(name));
            rename(&self.staging.join(name), &folder.join(name), known)?;
        }
        for old in former.iter().filter(|old| marker.files.iter().all(|new| new.name != old.name)) {
            let path = folder.join(&old.name);
            if path.is_file() && old.is_unchanged(&path)? {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        sync_folder(&folder)?;
        remove(&self.staging)?;
        forget(&self.staging);
        Ok(marker)
    }
}

impl Drop for Output {
    /// A command that fails before it keeps anything leaves nothing behind.
    fn drop(&mut self) {
        let kept = fs::read_dir(&self.staging).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != MARKER))
        });
        if !kept {
            let _already_gone = remove(&self.staging);
        }
    }
}

/// `dir/name.csv` to `dir/name` with a suffix.
fn companion(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(ending);
    path.with_file_name(name)
}

/// Fails if an output exists, unless it may be replaced.
fn check(claim: &Claim<'_>, output: &Path, former: Option<&Marker>) -> Result<()> {
    let about = match fs::symlink_metadata(output) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", output)(error)),
    };
    if about.is_dir() {
        return Err(refuse(output, format!("is a folder; {OTHER}")));
    }
    let name = name_of(output.file_name().unwrap_or_default());
    let Some(marker) = former.filter(|marker| marker.of(&name).next().is_some()) else {
        let whose = match owner(output, &name)? {
            Some(other) => format!("belongs to {other}"),
            None => "was not written by this command".to_owned(),
        };
        return Err(refuse(
            output,
            format!("already exists and {whose}, so it is not replaced; move it away or {OTHER}"),
        ));
    };
    let stopped = marker.state != OutputState::Complete && !marker.replaces;
    if !claim.overwrite && !stopped {
        return Err(refuse(output, format!("already exists; pass --overwrite or {OTHER}")));
    }
    if marker.command != claim.command {
        return Err(refuse(
            output,
            format!("was written by `{}`, so it is not replaced; move it away or {OTHER}", marker.command),
        ));
    }
    if !marker.vouches_for(&name, output)? {
        return Err(refuse(
            output,
            format!(
                "has changed since `{}` wrote it, so it is not replaced; move it away or {OTHER}",
                marker.command
            ),
        ));
    }
    Ok(())
}

/// The other file whose marker also lists `name`.
fn owner(output: &Path, name: &str) -> Result<Option<String>> {
    let folder = folder_of(output);
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let Some(other) = hidden(&entry.file_name().to_string_lossy(), MARKER) else { continue };
        // A damaged marker lists nothing.
        if let Ok(Some(marker)) = Marker::read(&entry.path())
            && marker.of(name).next().is_some()
        {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Creates the staging folder, or finds that of an earlier process.
pub(super) fn make_staging(staging: &Path, command: &str) -> Result<()> {
    match fs::create_dir(staging) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let about = fs::symlink_metadata(staging).map_err(Error::io("read", staging))?;
            // A process that was killed before it wrote the marker left nothing else.
            let mut empty = true;
            for entry in fs::read_dir(staging).map_err(Error::io("read", staging))? {
                let name = entry.map_err(Error::io("read", staging))?.file_name();
                empty &= name.to_str().and_then(|name| name.strip_suffix(NEW)) == Some(MARKER);
            }
            let known = empty || Marker::read(&staging.join(MARKER))?.is_some();
            if !about.is_dir() || !is_own(&about) || !known {
                return Err(refuse(staging, "is in the way and was not made by this program; move it away"));
            }
        }
        Err(error) => return Err(Error::io("create", staging)(error)),
    }
    if Marker::read(&staging.join(MARKER))?.is_none_or(|marker| marker.command != command) {
        Marker::new(command, OutputState::Pending, Vec::new()).write(&staging.join(MARKER))?;
    }
    Ok(())
}

/// Whether a file is owned by the user of this process.
#[cfg(unix)]
fn is_own(about: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    about.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(not(unix))]
fn is_own(_about: &fs::Metadata) -> bool {
    true
}

/// Renames a file or folder. An existing target is replaced only if it is `known` to be replaceable.
pub(super) fn rename(from: &Path, to: &Path, known: bool) -> Result<()> {
    #[cfg(target_os = "linux")]
    if !known {
        use rustix::{
            fs::{CWD, RenameFlags, renameat_with},
            io::Errno,
        };
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // The file system does not support an atomic exchange.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(error) => return Err(Error::io("write", to)(error.into())),
        }
    }
    if !known && fs::symlink_metadata(to).is_ok() {
        return Err(refuse(to, format!("appeared while the command was running; move it away or {OTHER}")));
    }
    fs::rename(from, to).map_err(Error::io("write", to))
}
