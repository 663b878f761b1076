//! Device memory as Linux offers it to programs: `/dev/dax0.0`, or files that are mapped where they are. And,
//! for what is different there, files of a disk.

use crate::modules;
use crate::report::report;
use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount};
use std::ffi::CString;
use std::fs;
use std::process::{Command, Stdio};

/// Where the file system goes.
const MOUNTED: &str = "/mnt";
/// What the kernel knows of NVDIMMs.
const BUS: &str = "/sys/bus/nd";

/// `dax`: makes `/dev/dax0.0` of memory for a special purpose. Its driver takes what it is told to take,
/// and would leave it to be used as RAM otherwise.
pub(crate) fn device() -> Result<()> {
    modules::load(modules::DAX)?;
    put("/sys/bus/dax/drivers/device_dax/new_id", "dax0.0")?;
    modules::wait_for_character("dax0.0")?;
    let size = fs::read_to_string("/sys/bus/dax/devices/dax0.0/size").context("size")?;
    report(&format!("event=dax size={}", size.trim()));
    Ok(())
}

/// `fsdax`: makes a file system on persistent memory and mounts it, with files that are mapped where they
/// are.
pub(crate) fn mapped_files() -> Result<()> {
    modules::load(modules::NVDIMM)?;
    modules::wait_for("pmem0")?;
    map_pages()?;
    file_system("fsdax", "pmem0", Some("dax=always"))
}

/// `disk`, `disk DEVICE`: makes a file system on a disk, `vda` or another block device, and mounts it. Its
/// files are mapped through the page cache.
pub(crate) fn cached_files(device: &str) -> Result<()> {
    let device = match device {
        "" => "vda",
        device => device,
    };
    modules::load(match device {
        "pmem0" => modules::NVDIMM,
        _ => modules::VIRTIO_BLOCK,
    })?;
    modules::wait_for(device)?;
    file_system("disk", device, None)
}

fn file_system(kind: &str, device: &str, options: Option<&str>) -> Result<()> {
    let device = format!("/dev/{device}");
    make_file_system(&device)?;
    fs::create_dir_all(MOUNTED)?;
    let options = options.map(CString::new).transpose()?;
    mount(
        device.as_str(),
        MOUNTED,
        "ext4",
        MountFlags::empty(),
        options.as_deref(),
    )
    .context("cannot mount")?;
    report(&format!("event={kind} mounted={MOUNTED}"));
    Ok(())
}

/// Gives the region's pages a `struct page` each, which is what lets files be mapped where they are
/// (Linux `Documentation/driver-api/nvdimm/`).
fn map_pages() -> Result<()> {
    put(&format!("{BUS}/drivers/nd_pmem/unbind"), "namespace0.0")?;
    // The region makes the seed of the next one when the last user of this one is gone, and says what it is called.
    let mut seed = pfn_seed();
    for _ in 0..100 {
        if seed.is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        seed = pfn_seed();
    }
    let seed = seed.context("the region has no pfn_seed")?;
    let device = format!("{BUS}/devices/{seed}");
    put(&format!("{device}/mode"), "pmem")?;
    put(
        &format!("{device}/uuid"),
        "6f1a5f6e-1f5e-4c0f-9f43-2f4ac4f11d10",
    )?;
    put(&format!("{device}/align"), "2097152")?;
    put(&format!("{device}/namespace"), "namespace0.0")?;
    put(&format!("{BUS}/drivers/nd_pmem/bind"), &seed)?;
    modules::wait_for("pmem0")?;
    Ok(())
}

/// The name of the device that the region's next user of `struct page` will be, where there is one.
fn pfn_seed() -> Option<String> {
    let name = fs::read_to_string(format!("{BUS}/devices/region0/pfn_seed")).ok()?;
    let name = name.trim();
    let is_there = fs::exists(format!("{BUS}/devices/{name}/mode")).unwrap_or(false);
    (!name.is_empty() && is_there).then(|| name.to_owned())
}

fn make_file_system(device: &str) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .args(["mke2fs", "-b", "4096", device])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("mke2fs: {status}");
    }
    Ok(())
}

pub(crate) fn put(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {path}"))
}
