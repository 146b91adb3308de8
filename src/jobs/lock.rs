//! A lock on the outputs of a command. The kernel releases it when the process exits for whatever reason. For file
//! systems that do not share locks between hosts, the lock file names its host and is touched periodically.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{refuse, sibling};
use crate::{
    error::{Error, Result},
    files::temporary::{create_temporary, forget},
};

/// How often a held lock is touched.
const BEAT: Duration = Duration::from_secs(10);
/// How long a lock of another host is valid without being touched.
const EXPIRY: Duration = Duration::from_secs(60);
/// Larger files are not locks of this program.
const LARGEST: u64 = 4096;

/// The holder of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    command: String,
    host: String,
    process: u32,
}

/// Locks on outputs, held until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    held: Vec<(PathBuf, File)>,
    stop: Option<Sender<()>>,
    beating: Option<JoinHandle<()>>,
}

impl Lock {
    /// Locks the outputs for a command.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process is writing one of them; also if a lock file cannot be written.
    pub(crate) fn acquire(command: &str, outputs: &[PathBuf]) -> Result<Self> {
        let holder = Holder { command: command.to_owned(), host: host(), process: std::process::id() };
        let mut lock = Self { held: Vec::new(), stop: None, beating: None };
        for output in outputs {
            let path = sibling(output, ".lock");
            let file = create_temporary(|| acquire(output, &path, &holder), |_| path.clone())?;
            lock.held.push((path, file));
        }
        let files = lock.held.iter().map(|(path, file)| file.try_clone().map_err(Error::io("lock", path)));
        let files = files.collect::<Result<Vec<_>>>()?;
        let (stop, stopped) = channel();
        lock.stop = Some(stop);
        let named = std::thread::Builder::new().name("lock".to_owned());
        let beating = named.spawn(move || beat(&files, &stopped));
        lock.beating =
            Some(beating.map_err(Error::io("lock", outputs.first().map_or(Path::new(""), |o| o)))?);
        Ok(lock)
    }
}

impl Lock {
    /// Fails if a lock file was removed: another process may have taken the lock since then.
    ///
    /// # Errors
    /// [`Error::Output`] if so.
    pub(crate) fn expect_held(&self) -> Result<()> {
        for (path, file) in &self.held {
            if !is_named(path, file).map_err(Error::io("read", path))? {
                return Err(refuse(
                    path,
                    "was removed while this command held it, so another one may have written the same output; run \
                     the command again",
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is removed while its lock is held, so that no other process can lock a file that is about to be
        // removed.
        for (path, file) in &self.held {
            if is_named(path, file).unwrap_or(false) {
                let _already_gone = fs::remove_file(path);
            }
            forget(path);
        }
        drop(self.stop.take());
        if let Some(beating) = self.beating.take() {
            let _ended = beating.join();
        }
    }
}

fn acquire(output: &Path, path: &Path, holder: &Holder) -> Result<File> {
    loop {
        // Opening a named pipe would block.
        if fs::symlink_metadata(path).is_ok_and(|about| !about.is_file()) {
            return Err(refuse(path, "is in the way and is not a lock of this program; move it away"));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            // Links are not followed.
            options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        }
        let mut file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Error::io("write into the folder of", output)(error)
            }
            io::ErrorKind::InvalidFilename => refuse(
                output,
                "its name is too long for the lock and marker next to it; choose a shorter one",
            ),
            _ => Error::io("write", path)(error),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(output, holder_of(&mut file).as_ref())),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        // A file with this name that is not a lock must not be written to.
        let own = file.metadata().map_err(Error::io("read", path))?;
        if !own.is_file() || links(&own) > 1 || !names_a_holder(&mut file) {
            return Err(refuse(path, "is in the way and is not a lock of this program; move it away"));
        }
        // The previous holder may have removed the file between opening and locking it.
        match is_named(path, &file) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => return Err(Error::io("read", path)(error)),
        }
        if let Some(other) = holder_of(&mut file)
            && other.host != holder.host
            && is_fresh(&file)
        {
            return Err(locked_elsewhere(output, &other));
        }
        let text = serde_json::to_vec(holder).map_err(|error| Error::invalid(error.to_string()))?;
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&text)
        };
        write().map_err(Error::io("write", path))?;
        return Ok(file);
    }
}

fn locked(output: &Path, holder: Option<&Holder>) -> Error {
    let mut who = "another process".to_owned();
    if let Some(Holder { command, host, process }) = holder {
        who.clear();
        let _infallible = write!(who, "`{command}` (process {process} on {host})");
    }
    Error::Locked { path: output.to_path_buf(), holder: who }
}

fn locked_elsewhere(output: &Path, Holder { command, host, process }: &Holder) -> Error {
    let seconds = EXPIRY.as_secs();
    let holder = format!(
        "`{command}` (process {process} on {host}; if it has died, its lock expires within {seconds} s)"
    );
    Error::Locked { path: output.to_path_buf(), holder }
}

fn holder_of(file: &mut File) -> Option<Holder> {
    file.rewind().ok()?;
    let mut text = Vec::new();
    Read::take(file, LARGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whether a file has the contents of a lock. A process killed while writing it leaves a prefix, or nothing.
fn names_a_holder(file: &mut File) -> bool {
    const BEGINNING: &[u8] = br#"{"command":""#;
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| Read::take(&mut *file, LARGEST + 1).read_to_end(&mut text));
    let begins = text.starts_with(BEGINNING) || BEGINNING.starts_with(&text);
    read.is_ok() && begins && text.len() as u64 <= LARGEST
}

/// Whether a file is a lock of this program.
pub(super) fn is_lock(path: &Path) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|about| about.is_file() && links(&about) == 1);
    is_file && File::open(path).is_ok_and(|mut file| names_a_holder(&mut file))
}

fn is_fresh(file: &File) -> bool {
    let touched = file.metadata().and_then(|about| about.modified());
    // Another host's clock may be ahead, but not by more than a heartbeat.
    let age = |touched| SystemTime::now().duration_since(touched).unwrap_or_else(|ahead| ahead.duration());
    touched.is_ok_and(|touched| age(touched) < EXPIRY)
}

fn beat(files: &[File], stopped: &Receiver<()>) {
    while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
        for file in files {
            // If touching fails, the lock is still valid on this host.
            let _untouched = file.set_modified(SystemTime::now());
        }
    }
}

/// Number of hard links of a file.
#[cfg(unix)]
fn links(about: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(about)
}

#[cfg(not(unix))]
fn links(_about: &fs::Metadata) -> u64 {
    1
}

/// Whether a path still refers to an open file.
#[cfg(unix)]
fn is_named(path: &Path, file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_named(path: &Path, _file: &File) -> io::Result<bool> {
    path.try_exists()
}

#[cfg(unix)]
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_and_the_holder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("a.csv");
        let lock = Lock::acquire("score", std::slice::from_ref(&output)).unwrap();
        let message = Lock::acquire("plant", std::slice::from_ref(&output)).unwrap_err().to_string();
        assert!(message.contains("`score` (process ") && message.contains("a.csv"), "{message}");
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the lock's file is left behind");
        Lock::acquire("plant", &[output]).unwrap();
    }

    #[test]
    fn locks_of_dead_processes_are_ignored_and_those_of_other_hosts_expire() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("a.csv");
        let path = sibling(&output, ".lock");
        let leave = |host: &str, age: Duration| {
            let holder = Holder { command: "score".to_owned(), host: host.to_owned(), process: 1 };
            fs::write(&path, serde_json::to_vec(&holder).unwrap()).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        };
        leave(&host(), Duration::ZERO);
        drop(Lock::acquire("score", std::slice::from_ref(&output)).unwrap());
        leave("elsewhere.invalid", Duration::ZERO);
        let message = Lock::acquire("score", std::slice::from_ref(&output)).unwrap_err().to_string();
        assert!(message.contains("on elsewhere.invalid"), "{message}");
        leave("elsewhere.invalid", EXPIRY * 2);
        drop(Lock::acquire("score", std::slice::from_ref(&output)).unwrap());
        for length in [0, 1, 12, 30] {
            let holder = Holder { command: "score".to_owned(), host: host(), process: 1 };
            fs::write(&path, &serde_json::to_vec(&holder).unwrap()[..length]).unwrap();
            drop(Lock::acquire("score", std::slice::from_ref(&output)).unwrap());
        }
        fs::write(&path, "something else").unwrap();
        assert!(Lock::acquire("score", &[output]).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"something else");
    }

    #[cfg(unix)]
    #[test]
    fn a_planted_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (output, target) = (folder.path().join("a.csv"), folder.path().join("mine"));
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, sibling(&output, ".lock")).unwrap();
        assert!(Lock::acquire("score", &[output]).is_err());
        assert_eq!(fs::read(&target).unwrap(), b"mine");
    }
}
