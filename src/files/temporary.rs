//! What is to go when the process ends without unwinding: unfinished files, locks, and staging places that nobody can continue.

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
/// Whether anything was ever made.
static BEGUN: AtomicBool = AtomicBool::new(false);

fn temporary() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers a path that is to go.
pub(crate) fn remove_on_exit(path: &Path) {
    temporary().insert(path.to_path_buf());
}

/// Makes something that is to go, and remembers it before the process can end in between.
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

/// Whether nothing has been written yet: every command begins with a lock.
pub(crate) fn is_untouched() -> bool {
    !BEGUN.load(Ordering::SeqCst)
}

/// Forgets it: it has its final name, or has gone.
pub(crate) fn forget(path: &Path) {
    temporary().remove(path);
}

/// Removes what is remembered. To be called right before the process ends without unwinding: whoever makes something temporary from
/// now on waits for that end.
pub(crate) fn clean_up() {
    let mut remembered = temporary();
    for path in std::mem::take(&mut *remembered) {
        let _already_gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    std::mem::forget(remembered);
}
