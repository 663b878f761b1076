//! QEMU: one's own, or Debian's, unpacked under `target/qemu/` without changing the system.
//!
//! Poison needs FEAT_RME, which QEMU has from 10.0 on, newer than what most systems carry. Debian's
//! archive has such a one with everything it needs. [`crate::debian`] downloads it with all its
//! libraries, which are unpacked side by side; and it runs by the C library that came with it.
//! Everything happens in `target/qemu/new`, which takes its final name only when QEMU has been seen
//! to run, so an interrupted download leaves nothing that looks whole.

use crate::debian::{self, Apt};
use crate::{shell, workspace};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The oldest QEMU that has what Cordon's firmware and tests need.
const OLDEST: (u32, u32) = (10, 0);

/// The archive's suites: a release, and what was built later for it.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const PACKAGE: &str = "qemu-system-arm";

const OWN: &str = "or set CORDON_QEMU to a qemu-system-aarch64 of 10.0 or later";

/// A QEMU that runs.
pub(crate) struct Qemu {
    /// Program and first arguments.
    pub(crate) command: Vec<OsString>,
    /// Environment for it.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// What it says of itself.
    pub(crate) version: String,
}

/// The QEMU to use, fetched where it has to be.
pub(crate) fn ensure() -> Result<Qemu> {
    let directory = workspace::target().join("qemu");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    if let Some(path) = std::env::var_os("CORDON_QEMU") {
        let qemu = own(path)?;
        debian::record(&directory.join("VERSION"), &qemu.version)?;
        return Ok(qemu);
    }
    let root = directory.join("debian");
    if let Ok(version) = fs::read_to_string(root.join("VERSION")) {
        debian::record(&directory.join("VERSION"), &version)?;
        let (command, env) = unpacked_at(&root);
        return Ok(Qemu {
            command,
            env,
            version: version.trim().to_owned(),
        });
    }
    fetch(&directory, &root)
}

fn own(path: OsString) -> Result<Qemu> {
    let shown = path.display().to_string();
    let mut qemu = Qemu {
        command: vec![path],
        env: Vec::new(),
        version: String::new(),
    };
    let version = ask(&qemu, &["--version"]).context("CORDON_QEMU does not run")?;
    qemu.version = version.lines().next().unwrap_or_default().to_owned();
    let number = parse_version(&qemu.version)
        .with_context(|| format!("CORDON_QEMU: `{}` names no version", qemu.version))?;
    ensure!(
        number >= OLDEST,
        "CORDON_QEMU: {shown} is {}.{}, but FEAT_RME, the poison switch, is not in it before \
         {}.{}; use a later one or unset CORDON_QEMU",
        number.0,
        number.1,
        OLDEST.0,
        OLDEST.1
    );
    let devices = ask(&qemu, &["-device", "help"])?;
    ensure!(
        devices.contains("\"ivshmem-plain\""),
        "CORDON_QEMU: {shown} was built without ivshmem-plain, the device whose BAR is the device \
         memory of the tests"
    );
    Ok(qemu)
}

fn ask(qemu: &Qemu, arguments: &[&str]) -> Result<String> {
    let (program, first) = qemu.command.split_first().context("no QEMU was named")?;
    let mut command = Command::new(program);
    command
        .args(first)
        .args(arguments)
        .envs(qemu.env.iter().cloned());
    shell::output(&mut command)
}

/// Reads `QEMU emulator version 11.1.3 (...)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_once("version ")?.1;
    let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// How Debian's QEMU is called from where it was unpacked: by its own loader, with its own
/// libraries, firmware files and modules.
fn unpacked_at(root: &Path) -> (Vec<OsString>, Vec<(OsString, OsString)>) {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let command = vec![
        root.join("usr/lib64/ld-linux-x86-64.so.2").into(),
        "--library-path".into(),
        libraries.clone().into(),
        root.join("usr/bin/qemu-system-aarch64").into(),
        "-L".into(),
        root.join("usr/share/qemu").into(),
    ];
    (
        command,
        vec![("QEMU_MODULE_DIR".into(), libraries.join("qemu").into())],
    )
}

fn fetch(directory: &Path, root: &Path) -> Result<Qemu> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "Debian's QEMU is fetched for x86-64 hosts only; {OWN}"
    );
    debian::tools(OWN)?;
    let new = directory.join("new");
    debian::clear(&new)?;
    let apt = Apt::new(new.join("apt"), "amd64", &SUITES, OWN)?;
    let spinner = shell::spinner("QEMU: reading Debian's package lists");
    apt.run(&["update"])?;
    spinner.set_message("QEMU: downloading, about 40 MB");
    let backports = SUITES[1];
    let recommends = "APT::Install-Recommends=0";
    apt.run(&[
        "install", "-y", "-d", "-o", recommends, "-t", backports, PACKAGE,
    ])?;
    spinner.set_message("QEMU: unpacking");
    let unpacked = new.join("root");
    debian::unpack(&apt.archives(), &unpacked)?;

    // A path is baked into nothing but the command line, so it may still move.
    let (command, env) = unpacked_at(&unpacked);
    let mut qemu = Qemu {
        command,
        env,
        version: String::new(),
    };
    let version = ask(&qemu, &["--version"]).context("QEMU was unpacked but does not run")?;
    qemu.version = version.lines().next().unwrap_or_default().to_owned();
    debian::record(&unpacked.join("VERSION"), &qemu.version)?;
    fs::rename(&unpacked, root)
        .with_context(|| format!("cannot move QEMU to {}", root.display()))?;
    fs::remove_dir_all(&new).with_context(|| format!("cannot clear {}", new.display()))?;
    spinner.finish_and_clear();
    debian::record(&directory.join("VERSION"), &qemu.version)?;
    (qemu.command, qemu.env) = unpacked_at(root);
    Ok(qemu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let parse = |text| parse_version(text);
        assert_eq!(
            parse("QEMU emulator version 11.1.3 (Debian 1:11.1.3)"),
            Some((11, 1))
        );
        assert!(parse("QEMU emulator version 7.2.0") < Some(OLDEST));
        assert!(parse("QEMU emulator version 10.0.2") >= Some(OLDEST));
        assert_eq!(parse("something else"), None);
    }
}
