//! Where things are, and the lock that keeps two xtasks from undoing each other's work.

use anyhow::{Context, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Everything that is made, is made under here.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The flat images.
pub(crate) fn images() -> PathBuf {
    target().join("images")
}

/// The logs of runs.
pub(crate) fn runs() -> PathBuf {
    target().join("runs")
}

/// The scenarios.
pub(crate) fn scenarios() -> PathBuf {
    root().join("tests/qemu/scenarios")
}

/// Waits until no other xtask works in this tree. The lock goes with the returned file, and with
/// the process however that ends.
pub(crate) fn lock() -> Result<File> {
    let path = target().join("xtask.lock");
    fs::create_dir_all(target())
        .with_context(|| format!("cannot create {}", target().display()))?;
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("waiting for another `cargo xtask` to end"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
