//! QEMU: one's own, or Debian's, unpacked under `target/qemu/` without changing the system.
//!
//! Poison needs FEAT_RME, which QEMU has from 10.0 on, newer than what most systems carry. Debian's
//! archive has such a one with everything it needs. `apt-get`, given directories of its own and an
//! empty package status, downloads it and all its libraries; `dpkg -x` unpacks them side by side;
//! and it runs by the C library that came with it. Everything happens in `target/qemu/new`, which
//! takes its final name only when QEMU has been seen to run, so an interrupted download leaves
//! nothing that looks whole.

use crate::{shell, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The oldest QEMU that has what Cordon's firmware and tests need.
const OLDEST: (u32, u32) = (10, 0);

/// The archive's suites: a release, and what was built later for it.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const PACKAGE: &str = "qemu-system-arm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long the download may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(15 * 60);

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
        record(&directory.join("VERSION"), &qemu.version)?;
        return Ok(qemu);
    }
    let root = directory.join("debian");
    if let Ok(version) = fs::read_to_string(root.join("VERSION")) {
        record(&directory.join("VERSION"), &version)?;
        let (command, env) = debian(&root);
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

fn record(path: &Path, version: &str) -> Result<()> {
    let text = format!("{}\n", version.trim());
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// How Debian's QEMU is called from where it was unpacked: by its own loader, with its own
/// libraries, firmware files and modules.
fn debian(root: &Path) -> (Vec<OsString>, Vec<(OsString, OsString)>) {
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
    for tool in ["apt-get", "dpkg"] {
        shell::output(Command::new(tool).arg("--version"))
            .with_context(|| format!("QEMU is fetched by apt-get and dpkg; install them, {OWN}"))?;
    }
    ensure!(
        Path::new(KEYRING).is_file(),
        "no {KEYRING}; install debian-archive-keyring, {OWN}"
    );

    let new = directory.join("new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot clear {}", new.display()))?;
    }
    let apt = Apt::new(new.join("apt"), &mirror()?)?;
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
    unpack(&apt.archives(), &unpacked)?;

    // A path is baked into nothing but the command line, so it may still move.
    let (command, env) = debian(&unpacked);
    let mut qemu = Qemu {
        command,
        env,
        version: String::new(),
    };
    let version = ask(&qemu, &["--version"]).context("QEMU was unpacked but does not run")?;
    qemu.version = version.lines().next().unwrap_or_default().to_owned();
    record(&unpacked.join("VERSION"), &qemu.version)?;
    fs::rename(&unpacked, root)
        .with_context(|| format!("cannot move QEMU to {}", root.display()))?;
    fs::remove_dir_all(&new).with_context(|| format!("cannot clear {}", new.display()))?;
    spinner.finish_and_clear();
    record(&directory.join("VERSION"), &qemu.version)?;
    (qemu.command, qemu.env) = debian(root);
    Ok(qemu)
}

/// Where this machine gets Debian packages from.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("CORDON_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let format = "$(REPO_URI) $(ORIGIN)";
    let mut query = Command::new("apt-get");
    let targets =
        shell::output(query.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    debian_mirror(&targets).with_context(|| {
        format!("apt is configured with no Debian mirror; name one in CORDON_DEBIAN_MIRROR, {OWN}")
    })
}

/// The mirror of the main archive among `URI Origin` lines. Where there is only a security
/// archive, the main one is beside it.
fn debian_mirror(targets: &str) -> Option<String> {
    let mut uris = targets
        .lines()
        .filter_map(|line| line.strip_suffix(" Debian"))
        .map(|uri| uri.trim_end_matches('/'));
    let main = uris.clone().find(|uri| !uri.ends_with("-security"));
    main.or_else(|| uris.next().map(|uri| uri.trim_end_matches("-security")))
        .map(str::to_owned)
}

/// An apt with directories and an empty package status of its own.
struct Apt {
    base: PathBuf,
}

impl Apt {
    fn new(base: PathBuf, mirror: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = base.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        let source = |suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        let sources: String = SUITES.iter().map(source).collect();
        fs::write(base.join("sources.list"), sources).context("cannot write sources.list")?;
        fs::write(base.join("status"), "").context("cannot write an empty package status")?;
        Ok(Self { base })
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let options = [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State", ""),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Log", ""),
        ];
        let mut command = Command::new("apt-get");
        command.arg("-q");
        for (name, path) in options {
            command
                .arg("-o")
                .arg(format!("{name}={}", self.base.join(path).display()));
        }
        // Under root apt would fetch as another user, who may not enter this directory.
        for option in [
            "Dir::Etc::sourceparts=/dev/null",
            "Dir::Etc::preferences=/dev/null",
            "Dir::Etc::preferencesparts=/dev/null",
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "Acquire::Retries=3",
            "Acquire::Languages=none",
        ] {
            command.args(["-o", option]);
        }
        let log = self.base.join("apt.log");
        let status = shell::logged(command.args(arguments), &log, DOWNLOAD_LIMIT)?;
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let hint = "is the network there, and the mirror right (CORDON_DEBIAN_MIRROR)?";
            bail!(
                "apt-get {} failed; {hint}\n{}",
                arguments[0],
                shell::tail(&said, 12)
            );
        }
        Ok(())
    }

    fn archives(&self) -> PathBuf {
        self.base.join("cache/archives")
    }
}

fn unpack(archives: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let mut count = 0;
    for entry in fs::read_dir(archives).context("no packages were downloaded")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            shell::output(Command::new("dpkg").arg("-x").arg(&path).arg(root))?;
            count += 1;
        }
    }
    ensure!(count > 0, "no packages were downloaded");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_apts_own() {
        let targets = "http://a.example/ubuntu/ Ubuntu\n\
                       http://s.example/debian-security/ Debian\n\
                       http://d.example/debian/ Debian\n";
        assert_eq!(
            debian_mirror(targets).as_deref(),
            Some("http://d.example/debian")
        );
        let only = "http://s.example/debian-security/ Debian\n";
        assert_eq!(
            debian_mirror(only).as_deref(),
            Some("http://s.example/debian")
        );
        assert_eq!(debian_mirror("http://a.example/ubuntu/ Ubuntu\n"), None);
        assert_eq!(debian_mirror(""), None);
    }

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
