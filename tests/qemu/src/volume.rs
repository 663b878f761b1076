//! A disk that UEFI starts Cordon from: an MBR with one EFI system partition, FAT (UEFI 2.10, 5.2.1 and 13.3).

use crate::machine::Tools;
use crate::scenario::{Boot, Scenario};
use anyhow::{Context, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use std::ffi::OsString;
use std::io::{Cursor, Write};
use std::path::Path;

/// Where firmware for 64-bit Arm looks on a volume for what to start (UEFI 2.10, 3.5.1.1).
const PROGRAM: &str = "EFI/BOOT/BOOTAA64.EFI";
/// What Cordon looks for on the volume that it was started from (docs/protocols.md).
const BUNDLE: &str = "cordon.bundle";
const CMDLINE: &str = "cordon.cmdline";
/// What is to be typed into UEFI's shell.
const TYPED: &str = "cordon.efi";
/// Where Debian's GRUB looks for its configuration, on the volume that it was started from.
const GRUB_CFG: &str = "EFI/debian/grub.cfg";
/// What it is told to start, under a name of no consequence.
const GRUB_IMAGE: &str = "cordon.img";

const SECTOR: usize = 512;
/// The partition begins here: partitioning tools leave as much.
const START: usize = 1 << 20;
/// What the file system needs beside the files.
const OVERHEAD: usize = 2 << 20;
/// Less is FAT12, which not every firmware reads.
const LEAST: usize = 8 << 20;

/// A disk image with `program`, started by itself, that finds `bundle` and `cmdline`.
///
/// # Errors
/// More than a file system of this kind holds.
pub fn image(program: &[u8], bundle: Option<&[u8]>, cmdline: Option<&str>) -> Result<Vec<u8>> {
    with_files(&own_files(PROGRAM, program, bundle, cmdline))
}

/// What Cordon looks for, beside itself.
fn own_files<'a>(
    name: &'a str,
    program: &'a [u8],
    bundle: Option<&'a [u8]>,
    cmdline: Option<&'a str>,
) -> Vec<(&'a str, &'a [u8])> {
    let beside = [(BUNDLE, bundle), (CMDLINE, cmdline.map(str::as_bytes))];
    let beside = beside.into_iter();
    let there = beside.filter_map(|(name, file)| Some((name, file?)));
    [(name, program)].into_iter().chain(there).collect()
}

/// GRUB's configuration: the image, with its words, and the bundle.
fn grub_cfg(cmdline: Option<&str>, bundle: Option<&[u8]>) -> String {
    let words = cmdline.unwrap_or_default();
    let initrd = bundle.map_or(String::new(), |_| format!("initrd /{BUNDLE}\n"));
    format!("linux /{GRUB_IMAGE} {words}\n{initrd}boot\n")
}

/// A disk image with these files.
fn with_files(files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let content: usize = files.iter().map(|(_, file)| file.len()).sum();
    let size = (content + content / 64 + OVERHEAD).max(LEAST);
    let size = size.next_multiple_of(START);
    let mut disk = vec![0; START + size];
    let (head, partition) = disk.split_at_mut(START);
    write_mbr(head, size)?;
    let mut partition = Cursor::new(partition);
    let options = FormatVolumeOptions::new().volume_label(*b"CORDON     ");
    fatfs::format_volume(&mut partition, options).context("cannot make a FAT file system")?;
    let volume = FileSystem::new(partition, FsOptions::new()).context("the new file system")?;
    let root = volume.root_dir();
    let efi = root.create_dir("EFI")?;
    efi.create_dir("BOOT")?;
    efi.create_dir("debian")?;
    drop(efi);
    for (name, content) in files {
        let file = root.create_file(name);
        file.and_then(|mut file| file.write_all(content))
            .with_context(|| format!("cannot put {name} on the volume"))?;
    }
    drop(root);
    volume.unmount().context("cannot finish the file system")?;
    Ok(disk)
}

/// One partition of type 0xef, an EFI system partition.
fn write_mbr(head: &mut [u8], size: usize) -> Result<()> {
    const ENTRY: usize = 446;
    const TYPE: u8 = 0xef;
    let sectors = |bytes: usize| u32::try_from(bytes / SECTOR).context("a disk of over 2 TiB");
    let mut entry = [0; 16];
    // Cylinders and heads are those of an address that has none.
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = TYPE;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&sectors(START)?.to_le_bytes());
    entry[12..].copy_from_slice(&sectors(size)?.to_le_bytes());
    // The disk's signature, by which UEFI tells its partitions from others' (10.3.5.1).
    head[440..444].copy_from_slice(b"CRDN");
    head[ENTRY..ENTRY + 16].copy_from_slice(&entry);
    head[SECTOR - 2..SECTOR].copy_from_slice(&[0x55, 0xaa]);
    Ok(())
}

/// Makes the disk in `logs`, where `scenario` boots from one, and returns QEMU's arguments for it.
pub(crate) fn attach(
    tools: &Tools,
    scenario: &Scenario,
    bundle: Option<&[u8]>,
    logs: &Path,
) -> Result<Vec<OsString>> {
    let machine = &scenario.machine;
    if !machine.boot.has_volume() {
        return Ok(Vec::new());
    }
    let program = tools
        .images
        .join(machine.image.as_deref().unwrap_or("cordon.img"));
    let program =
        std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let cmdline = machine.cmdline.as_ref().map(|line| line.as_ref().as_str());
    let path = logs.join("volume.img");
    let disk = match machine.boot {
        Boot::Grub => {
            let grub = tools.images.join("grub.efi");
            let grub =
                std::fs::read(&grub).with_context(|| format!("cannot read {}", grub.display()))?;
            let configuration = grub_cfg(cmdline, bundle);
            let mut files = own_files(GRUB_IMAGE, &program, bundle, None);
            files.extend([(PROGRAM, &*grub), (GRUB_CFG, configuration.as_bytes())]);
            with_files(&files)?
        }
        Boot::UefiShell => with_files(&own_files(TYPED, &program, bundle, cmdline))?,
        _ => image(&program, bundle, cmdline)?,
    };
    std::fs::write(&path, disk).with_context(|| format!("cannot write {}", path.display()))?;
    let mut drive = OsString::from("if=none,id=volume,format=raw,file=");
    drive.push(path.display().to_string().replace(',', ",,"));
    // The last transport: a scenario's own disks are in the first ones.
    let device = "virtio-blk-device,drive=volume,bus=virtio-mmio-bus.31";
    Ok(vec![
        "-drive".into(),
        drive,
        "-device".into(),
        device.into(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn read(disk: &[u8], name: &str) -> Option<Vec<u8>> {
        let mut partition = Cursor::new(disk[START..].to_vec());
        let volume = FileSystem::new(&mut partition, FsOptions::new()).expect("a file system");
        let mut content = Vec::new();
        let mut file = volume.root_dir().open_file(name).ok()?;
        file.read_to_end(&mut content).expect("it can be read");
        Some(content)
    }

    #[test]
    fn what_firmware_and_cordon_look_for_is_where_they_look() {
        let bundle: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let disk = image(b"MZ program", Some(&bundle), Some("bbm=0")).expect("an image");
        assert_eq!(&disk[510..512], [0x55, 0xaa]);
        assert_eq!((disk[450], &disk[454..458]), (0xef, &[0, 8, 0, 0][..]));
        let sectors = u32::from_le_bytes(disk[458..462].try_into().expect("four"));
        assert_eq!(START + 512 * sectors as usize, disk.len());
        assert_eq!(
            read(&disk, "efi/boot/bootaa64.efi").as_deref(),
            Some(&b"MZ program"[..])
        );
        assert!(read(&disk, "cordon.bundle").is_some_and(|found| found == bundle));
        assert_eq!(
            read(&disk, "cordon.cmdline").as_deref(),
            Some(&b"bbm=0"[..])
        );
    }

    #[test]
    fn grub_is_told_what_to_start() {
        assert_eq!(
            grub_cfg(Some("bbm=0 psci=off"), Some(b"")),
            "linux /cordon.img bbm=0 psci=off\ninitrd /cordon.bundle\nboot\n"
        );
        assert_eq!(grub_cfg(None, None), "linux /cordon.img \nboot\n");
    }

    #[test]
    fn a_volume_may_have_no_bundle() {
        let disk = image(b"MZ", None, None).expect("an image");
        assert_eq!(read(&disk, "cordon.bundle"), None);
        assert_eq!(read(&disk, "cordon.cmdline"), None);
    }
}
