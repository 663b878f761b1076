//! Drivers that the kernel has as modules. Each is a file in /lib/modules, compressed or not: the
//! kernel unpacks it by itself.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Whoever needs these names them in the order in which they depend on each other.
pub(crate) const VIRTIO_BLOCK: &[&str] = &["virtio_mmio", "virtio_blk"];
pub(crate) const PMEM: &[&str] = &["libnvdimm", "nd_btt", "nd_pmem", "of_pmem"];

pub(crate) const NVDIMM: &[&str] = &["libnvdimm", "nd_btt", "nd_pmem", "nfit"];
pub(crate) const DAX: &[&str] = &["device_dax", "dax_hmem"];
pub(crate) const EINJ: &[&str] = &["einj"];

const DIRECTORY: &str = "/lib/modules";

/// MODULE_INIT_COMPRESSED_FILE of finit_module(2).
const COMPRESSED: i32 = 4;

/// How long a device may take to appear once its driver is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// Loads what is not loaded yet.
pub(crate) fn load(names: &[&str]) -> Result<()> {
    for name in names {
        load_one(name).with_context(|| format!("module {name}"))?;
    }
    Ok(())
}

fn load_one(name: &str) -> Result<()> {
    if Path::new("/sys/module").join(name).exists() {
        return Ok(());
    }
    let (path, flags) = find(name).context("not in the initramfs")?;
    let file = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::system::finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The file of a module, and how it is loaded.
fn find(name: &str) -> Option<(PathBuf, i32)> {
    let files = [
        ("ko", 0),
        ("ko.xz", COMPRESSED),
        ("ko.zst", COMPRESSED),
        ("ko.gz", COMPRESSED),
    ];
    files.into_iter().find_map(|(end, flags)| {
        let path = Path::new(DIRECTORY).join(format!("{name}.{end}"));
        path.is_file().then_some((path, flags))
    })
}

/// Waits until a block device can be opened, and returns its file. That is there a little before it can;
/// whoever tries then makes the kernel look for a driver, and complain.
pub(crate) fn wait_for(name: &str) -> Result<PathBuf> {
    wait_until_open(name, &Path::new("/sys/class/block").join(name).join("bdi"))
}

/// The same for a character device, which can be opened as soon as it has a file.
pub(crate) fn wait_for_character(name: &str) -> Result<PathBuf> {
    wait_until_open(name, &Path::new("/dev").join(name))
}

fn wait_until_open(name: &str, sign: &Path) -> Result<PathBuf> {
    let begun = Instant::now();
    let device = Path::new("/dev").join(name);
    while !(sign.exists() && File::open(&device).is_ok()) {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "no {}", device.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(device)
}
