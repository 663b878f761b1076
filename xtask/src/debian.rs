//! Debian's archive, for what is fetched from it: by `apt-get` with directories and an empty package
//! status of its own, which verifies the archive's signatures and changes nothing of the system.
//!
//! The mirror is the one that apt is configured with. Versions move, so packages are named without
//! them, and what was got is recorded in a file `VERSION`.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long one download may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Sees that what this needs is installed. `otherwise` says how to do without it.
pub(crate) fn tools(otherwise: &str) -> Result<()> {
    for tool in ["apt-get", "dpkg"] {
        shell::output(Command::new(tool).arg("--version"))
            .with_context(|| format!("this needs apt-get and dpkg; install them, {otherwise}"))?;
    }
    ensure!(
        Path::new(KEYRING).is_file(),
        "no {KEYRING}; install debian-archive-keyring, {otherwise}"
    );
    Ok(())
}

/// Removes what an interrupted attempt left.
pub(crate) fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot clear {}", directory.display()))?;
    }
    Ok(())
}

/// Writes down what was got.
pub(crate) fn record(path: &Path, version: &str) -> Result<()> {
    let text = format!("{}\n", version.trim());
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Where this machine gets Debian packages from.
fn mirror(otherwise: &str) -> Result<String> {
    if let Ok(mirror) = std::env::var("CORDON_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let format = "$(REPO_URI) $(ORIGIN)";
    let mut query = Command::new("apt-get");
    let targets =
        shell::output(query.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    debian_mirror(&targets).with_context(|| {
        format!(
            "apt is configured with no Debian mirror; name one in CORDON_DEBIAN_MIRROR, {otherwise}"
        )
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
pub(crate) struct Apt {
    base: PathBuf,
    architecture: &'static str,
}

impl Apt {
    /// One in the directory `base`, for the packages of `architecture` in `suites`.
    pub(crate) fn new(
        base: PathBuf,
        architecture: &'static str,
        suites: &[&str],
        otherwise: &str,
    ) -> Result<Self> {
        let mirror = mirror(otherwise)?;
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = base.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        let source = |suite| {
            format!("deb [arch={architecture} signed-by={KEYRING}] {mirror} {suite} main\n")
        };
        let sources: String = suites.iter().map(source).collect();
        fs::write(base.join("sources.list"), sources).context("cannot write sources.list")?;
        fs::write(base.join("status"), "").context("cannot write an empty package status")?;
        Ok(Self { base, architecture })
    }

    /// Runs `apt-get` with these arguments.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("apt-get");
        let log = self.base.join("apt.log");
        // `download` writes to where it runs.
        command.current_dir(self.archives());
        let status = shell::logged(command.args(arguments), &log, DOWNLOAD_LIMIT)?;
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let hint = "is the network there, and the mirror right (CORDON_DEBIAN_MIRROR)?";
            bail!(
                "apt-get {} failed; {hint}\n{}",
                arguments.join(" "),
                shell::tail(&said, 12)
            );
        }
        Ok(())
    }

    /// The package whose name begins with `prefix` among those that `package` depends on.
    pub(crate) fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let said = shell::output(self.command("apt-cache").args(["depends", package]))?;
        let found = dependency(&said, prefix).map(str::to_owned);
        found.with_context(|| format!("{package} depends on no {prefix}*"))
    }

    /// `program` of apt, with the directories of this one.
    fn command(&self, program: &str) -> Command {
        let options = [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State", ""),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Log", ""),
        ];
        let mut command = Command::new(program);
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
            "Acquire::Retries=3",
            "Acquire::Languages=none",
        ] {
            command.args(["-o", option]);
        }
        for name in ["APT::Architecture", "APT::Architectures"] {
            command
                .arg("-o")
                .arg(format!("{name}={}", self.architecture));
        }
        command
    }

    /// Where packages are downloaded to.
    pub(crate) fn archives(&self) -> PathBuf {
        self.base.join("cache/archives")
    }
}

/// Finds the first `Depends:` with this prefix in what `apt-cache depends` says.
fn dependency<'a>(said: &'a str, prefix: &str) -> Option<&'a str> {
    said.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
}

/// Unpacks all packages of `archives` side by side into `root`.
pub(crate) fn unpack(archives: &Path, root: &Path) -> Result<()> {
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
    fn of_what_a_metapackage_depends_on_the_kernel_is_found() {
        let said = "linux-image-cloud-arm64\n  Depends: linux-image-6.12.1+deb13-cloud-arm64\n";
        assert_eq!(
            dependency(said, "linux-image-"),
            Some("linux-image-6.12.1+deb13-cloud-arm64")
        );
        assert_eq!(dependency("busybox-static\n", "linux-image-"), None);
    }
}
