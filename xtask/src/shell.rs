//! Other programs: run them, bound them in time, and say what they said when they fail.

use anyhow::{Context, Result, bail};
use cordon_qemu::interrupt;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs a command and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{name}`, is it installed?"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{name}` failed ({}):\n{}",
            output.status,
            tail(&stderr, 15)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command with all it says in a file, for at most `limit`.
pub(crate) fn logged(command: &mut Command, log: &Path, limit: Duration) -> Result<ExitStatus> {
    let name = describe(command);
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    // A group of its own, so that the compilers that cargo starts end with it.
    let child = command.process_group(0).spawn();
    let mut group = Group(child.with_context(|| format!("cannot run `{name}`, is it installed?"))?);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = group.0.try_wait()? {
            return Ok(status);
        }
        if interrupt::requested() {
            bail!("interrupted while `{name}` ran");
        }
        if Instant::now() > deadline {
            bail!(
                "`{name}` took longer than {} s and was ended",
                limit.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child and all that it started. Dropping it while it runs ends them all.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let (Ok(None), Ok(id)) = (self.0.try_wait(), i32::try_from(self.0.id()))
            && let Some(group) = Pid::from_raw(id)
        {
            // Both fail only where the processes are gone already, which is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}

/// A spinner on the terminal; elsewhere, in a log, one line that says what has begun.
pub(crate) fn spinner(message: impl Into<String>) -> ProgressBar {
    let message = message.into();
    if !std::io::stderr().is_terminal() {
        eprintln!("{message}");
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .take(6)
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
