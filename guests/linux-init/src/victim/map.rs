//! A victim's memory, by kind.
#![expect(unsafe_code, reason = "maps memory by system calls")]

use anyhow::{Context, Result, bail, ensure};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Memory of a victim.
pub(super) struct Memory {
    /// Where it begins.
    pub(super) start: u64,
    /// Its size in bytes.
    pub(super) size: usize,
    /// The file that it is a map of.
    pub(super) file: Option<File>,
}

/// Maps `size` bytes of memory of `kind`:
///
/// | kind | |
/// |---|---|
/// | `anon` | anonymous memory in pages of 4 KiB |
/// | `thp` | anonymous memory in transparent huge pages |
/// | `pages` | anonymous memory in pages of 4 KiB that lie in a row |
/// | `code` | anonymous memory that can be executed |
/// | `shm` | a file in memory that all victims of this kind share |
/// | `dax` | `/dev/dax0.0` |
/// | a path | that file, shared |
pub(super) fn map(kind: &str, size: usize) -> Result<Memory> {
    ensure!(size > 0 && size.is_multiple_of(PAGE), "bad-size");
    let (start, file) = match kind {
        "anon" => anonymous(size, ProtFlags::empty(), Advice::LinuxNoHugepage)?,
        "thp" | "pages" => anonymous(size, ProtFlags::empty(), Advice::LinuxHugepage)?,
        "code" => anonymous(size, ProtFlags::EXEC, Advice::LinuxNoHugepage)?,
        "shm" => file("/tmp/shm", size, true)?,
        "dax" => file("/dev/dax0.0", size, false)?,
        path if path.starts_with('/') => file(path, size, true)?,
        _ => bail!("unknown-kind"),
    };
    Ok(Memory { start, size, file })
}

fn anonymous(size: usize, more: ProtFlags, advice: Advice) -> Result<(u64, Option<File>)> {
    let rights = ProtFlags::READ | ProtFlags::WRITE | more;
    // SAFETY: new memory, at an address of the kernel's choice, that nothing refers to.
    let start = unsafe { mmap_anonymous(null_mut(), size + HUGE, rights, MapFlags::PRIVATE)? };
    let aligned = start.addr().next_multiple_of(HUGE);
    let start = start.with_addr(aligned);
    // SAFETY: the advice changes how it is backed, not what is in it; it is inside the mapping.
    unsafe { madvise(start, size, advice)? };
    Ok((aligned as u64, None))
}

fn file(path: &str, size: usize, grow: bool) -> Result<(u64, Option<File>)> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(grow)
        .truncate(false)
        .open(path)
        .with_context(|| path.to_owned())?;
    if grow && file.metadata()?.len() < size as u64 {
        file.set_len(size as u64)?;
    }
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: as for anonymous memory; the file is not shortened by anyone.
    let start = unsafe { mmap(null_mut(), size, rights, MapFlags::SHARED, &file, 0)? };
    Ok((start.addr() as u64, Some(file)))
}

/// The guest-physical address behind `address`, which is mapped: bits 0 to 54 of its entry in pagemap
/// are the page's number (Linux `Documentation/admin-guide/mm/pagemap.rst`).
pub(super) fn physical(address: u64) -> Result<u64> {
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, address / PAGE as u64 * 8)?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry & PRESENT != 0, "not-present");
    let page = entry & ((1 << 55) - 1);
    Ok(page * PAGE as u64 + address % PAGE as u64)
}

/// Has the kernel take the huge pages behind `memory` apart, once there are any (Linux
/// `Documentation/admin-guide/mm/transhuge.rst`). Its pages stay where they are, so they lie in a row, and are
/// each a page of its own to the kernel.
pub(super) fn split_huge_pages(memory: &Memory) -> Result<()> {
    let (start, end) = (memory.start, memory.start + memory.size as u64);
    let pid = std::process::id();
    let file = "/sys/kernel/debug/split_huge_pages";
    std::fs::write(file, format!("{pid},{start:#x},{end:#x}")).context(file)?;
    // The kernel's own thread would make a huge page of them again, and read all of them.
    let start = std::ptr::without_provenance_mut(start as usize);
    // SAFETY: the advice changes how it is backed, not what is in it; it is all of the memory.
    unsafe { madvise(start, memory.size, Advice::LinuxNoHugepage)? };
    Ok(())
}

/// How much of this process's memory is in huge pages, in KiB.
pub(super) fn huge_kib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find(|line| line.starts_with("AnonHugePages:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no AnonHugePages")?.parse()?)
}
