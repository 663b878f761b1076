//! Disks: raw images that the harness makes for a run, behind virtio transports of the machine.
//!
//! What a guest is to have written is known here as well (docs/protocols.md, "The Linux guest's
//! console"), so the image can be looked at from outside.

use crate::scenario::{Scenario, ScenarioError, Vm};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// QEMU's `virt` has this many virtio transports, one behind the other.
pub(crate) const SLOTS: u32 = 32;
const FIRST_SLOT: u64 = 0x0a00_0000;
const SLOT_SIZE: u64 = 0x200;
const PAGE: u64 = 0x1000;

/// Makes the images of `scenario` in `logs`, empty, and returns QEMU's arguments for them.
pub(crate) fn attach(scenario: &Scenario, logs: &Path) -> Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = Vec::new();
    let disks = &scenario.machine.disk;
    if !disks.is_empty() {
        // The registers of Virtio 1, not those from before it.
        arguments.extend(["-global", "virtio-mmio.force-legacy=false"].map(OsString::from));
    }
    for (index, disk) in disks.iter().enumerate() {
        let path = image(logs, index);
        let made = File::create(&path).and_then(|file| file.set_len(disk.size.as_ref().0));
        made.with_context(|| format!("cannot make {}", path.display()))?;
        let mut drive = OsString::from(format!("if=none,id=disk{index},format=raw,file="));
        // A comma in a path would end it.
        drive.push(path.display().to_string().replace(',', ",,"));
        let slot = disk.slot.as_ref();
        let device = format!("virtio-blk-device,drive=disk{index},bus=virtio-mmio-bus.{slot}");
        arguments.extend(["-drive".into(), drive, "-device".into(), device.into()]);
    }
    Ok(arguments)
}

/// Where disk number `index` of a run is.
fn image(logs: &Path, index: usize) -> PathBuf {
    logs.join(format!("disk{index}.img"))
}

/// Word number `at` of the pattern that `seed` stands for.
const fn word(seed: u64, at: u64) -> u64 {
    seed.wrapping_shl(32) ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// How many bytes of a disk hold the pattern of `seed`, from its beginning to the first that does not.
pub(crate) fn bytes_of_pattern(logs: &Path, index: usize, seed: u64) -> Result<u64> {
    let path = image(logs, index);
    let mut content = Vec::new();
    File::open(&path)
        .and_then(|mut file| file.read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let (words, _) = content.as_chunks::<8>();
    let right = (0_u64..).zip(words);
    let right = right.take_while(|(at, bytes)| u64::from_le_bytes(**bytes) == word(seed, *at));
    Ok(8 * right.count() as u64)
}

/// Disks and devices that parse but cannot be meant.
pub(crate) fn check(s: &Scenario) -> Result<(), ScenarioError> {
    let mut slots = Vec::new();
    for disk in &s.machine.disk {
        let slot = *disk.slot.as_ref();
        ensure(s, slot < SLOTS, &disk.slot, || {
            format!("machine.disk.slot: {slot} is not 0 to {}", SLOTS - 1)
        })?;
        ensure(s, !slots.contains(&slot), &disk.slot, || {
            format!("machine.disk.slot: two disks are in slot {slot}")
        })?;
        slots.push(slot);
        let size = disk.size.as_ref().0;
        ensure(s, size > 0 && size.is_multiple_of(PAGE), &disk.size, || {
            format!("machine.disk.size: {size:#x} is not a multiple of 4 KiB, or nothing")
        })?;
    }
    let mut pages: Vec<(u64, &str)> = Vec::new();
    for vm in &s.vm {
        check_vm(s, vm, &mut pages)?;
    }
    Ok(())
}

fn check_vm<'s>(
    s: &Scenario,
    vm: &'s Vm,
    pages: &mut Vec<(u64, &'s str)>,
) -> Result<(), ScenarioError> {
    let given = vm.ram_base.span() != (0..0);
    ensure(s, !(vm.identity && given), &vm.ram_base, || {
        "vm.ram-base: with `identity` RAM is where Cordon finds room for it".into()
    })?;
    for device in &vm.device {
        let address = device.address.as_ref().0;
        let unconfined = device
            .dma
            .as_ref()
            .is_some_and(|dma| dma.as_ref() == "unconfined");
        ensure(s, unconfined, &device.address, || {
            "vm.device.dma: this device can read and write all of the machine's memory, Cordon's \
             and the other VMs' too; give dma = \"unconfined\" to have it nevertheless"
                .into()
        })?;
        ensure(s, vm.identity, &device.address, || {
            "vm.device: a device that uses memory needs `identity = true` for its VM".into()
        })?;
        let slot = address.checked_sub(FIRST_SLOT);
        let is_slot =
            |slot: u64| slot.is_multiple_of(SLOT_SIZE) && slot / SLOT_SIZE < u64::from(SLOTS);
        let fits = device.compatible.as_ref() != "virtio,mmio" || slot.is_some_and(is_slot);
        ensure(s, fits, &device.address, || {
            format!(
                "vm.device.address: no virtio transport is at {address:#x}; there are {SLOTS} from \
                 {FIRST_SLOT:#x}, {SLOT_SIZE:#x} bytes apart"
            )
        })?;
        let (page, name) = (address / PAGE, vm.name.as_ref().as_str());
        let other = pages
            .iter()
            .find(|(taken, owner)| *taken == page && *owner != name);
        ensure(s, other.is_none(), &device.address, || {
            let owner = other.map_or("", |(_, owner)| owner);
            format!(
                "vm.device.address: `{owner}` has a device in the same page, {:#x}",
                page * PAGE
            )
        })?;
        pages.push((page, name));
    }
    Ok(())
}

fn ensure<T>(
    s: &Scenario,
    holds: bool,
    at: &Spanned<T>,
    message: impl FnOnce() -> String,
) -> Result<(), ScenarioError> {
    if holds {
        Ok(())
    } else {
        Err(s.error(at.span(), message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(disks: &str, vms: &str) -> Result<Scenario, ScenarioError> {
        let text = format!(
            "name = \"t\"\nsummary = \"t\"\nfigures = []\nstep = []\n\
             [machine]\nboot = \"el3\"\ncpus = 2\nmemory = \"1G\"\n{disks}\n{vms}"
        );
        Scenario::parse(Path::new("t.toml"), &text).map(|mut all| all.remove(0))
    }

    fn vm(name: &str, more: &str) -> String {
        format!("[[vm]]\nname = \"{name}\"\nvcpus = 1\nram = \"64M\"\nkernel = \"k\"\n{more}\n")
    }

    fn device(address: &str) -> String {
        format!(
            "[[vm.device]]\ncompatible = \"virtio,mmio\"\naddress = {address}\ndma = \"unconfined\""
        )
    }

    fn refused(disks: &str, vms: &str, line: usize, message: &str) {
        let error = parse(disks, vms).expect_err(message);
        assert!(error.message.contains(message), "{error}");
        assert_eq!(error.line, line, "{error}");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let disk = |slot: u32| format!("[[machine.disk]]\nslot = {slot}\nsize = \"4M\"\n");
        assert!(parse(&disk(31), "").is_ok());
        refused(&disk(32), "", 10, "32 is not 0 to 31");
        refused(&(disk(1) + &disk(1)), "", 13, "two disks are in slot 1");
        refused(
            &disk(0).replace("4M", "4097"),
            "",
            11,
            "is not a multiple of 4 KiB",
        );
        let own = |address: &str| format!("identity = true\n{}", device(address));
        let good = vm("a", &own("0x0a000000"));
        assert!(parse("", &good).is_ok());
        refused(
            "",
            &good.replace("\ndma = \"unconfined\"", ""),
            18,
            "give dma = \"unconfined\"",
        );
        refused(
            "",
            &good.replace("unconfined", "none"),
            18,
            "give dma = \"unconfined\"",
        );
        refused(
            "",
            &good.replace("identity = true", ""),
            18,
            "needs `identity = true`",
        );
        refused(
            "",
            &good.replace("000000", "000100"),
            18,
            "no virtio transport is at 0xa000100",
        );
        refused(
            "",
            &good.replace("000000", "004000"),
            18,
            "no virtio transport",
        );
        refused(
            "",
            &good.replace("identity", "ram-base = \"1G\"\nidentity"),
            15,
            "vm.ram-base",
        );
        let both = |second: &str| good.clone() + &vm("b", &own(second));
        assert!(parse("", &both("0x0a001000")).is_ok());
        refused(
            "",
            &both("0x0a000200"),
            28,
            "`a` has a device in the same page, 0xa000000",
        );
    }

    #[test]
    fn an_image_is_read_up_to_the_first_wrong_word() {
        let logs = std::env::temp_dir().join(format!("cordon-disk-{}", std::process::id()));
        std::fs::create_dir_all(&logs).expect("a directory");
        let mut content: Vec<u8> = (0..1024).flat_map(|at| word(7, at).to_le_bytes()).collect();
        let found = |content: &[u8]| {
            std::fs::write(image(&logs, 2), content).expect("an image");
            bytes_of_pattern(&logs, 2, 7).expect("it is there")
        };
        assert_eq!(found(&content), 8192);
        content[4003] ^= 1;
        assert_eq!(found(&content), 4000);
        assert_eq!(found(&[0; 64]), 0);
        std::fs::remove_dir_all(&logs).expect("removed");
    }
}
