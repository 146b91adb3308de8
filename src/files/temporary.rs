//! Paths to remove when the process exits without unwinding: unfinished files, locks, and staging folders that cannot
//! be continued.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

static TEMPORARY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
/// Whether anything has been created yet.
static BEGUN: AtomicBool = AtomicBool::new(false);

fn temporary() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a path for removal.
pub(crate) fn remove_on_exit(path: &Path) {
    temporary().insert(path.to_path_buf());
}

/// Creates something temporary and registers it, so that the process cannot exit in between.
pub(crate) fn create_temporary<T, E>(
    create: impl FnOnce() -> Result<T, E>,
    path: impl Fn(&T) -> PathBuf,
) -> Result<T, E> {
    let mut remembered = temporary();
    BEGUN.store(true, Ordering::SeqCst);
    let made = create()?;
    remembered.insert(path(&made));
    Ok(made)
}

/// Whether nothing has been written yet: every command starts by creating a lock.
pub(crate) fn is_untouched() -> bool {
    !BEGUN.load(Ordering::SeqCst)
}

/// Unregisters a path that now has its final name or was removed.
pub(crate) fn forget(path: &Path) {
    temporary().remove(path);
}

/// Removes all registered paths. Call it right before the process exits without unwinding: a thread that creates
/// something temporary afterwards blocks until the exit.
pub(crate) fn clean_up() {
    let mut remembered = temporary();
    for path in std::mem::take(&mut *remembered) {
        let _already_gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    std::mem::forget(remembered);
}
