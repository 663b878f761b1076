//! Processes that lose memory and live on.
//!
//! A victim is a process of its own with one piece of memory, of a kind that the kernel handles in its own
//! way. It fills the memory with words that tell their place, says which guest-physical page is behind it,
//! and then does what it is told: touch one place, or verify all of it. An access that the kernel answers with
//! SIGBUS is reported with what the signal said ([`access`]), and the victim goes on.
//!
//! The console's process keeps its victims by name and passes their commands on, one line each.

mod access;
mod map;
mod process;

use crate::report::report;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The name by which this program knows that it is a victim.
const ROLE: &str = "victim";

/// How long the kernel is left to itself after the death of a victim.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_millis(1500);

/// If this process was started as a victim, it is one to its end.
pub(crate) fn run_if_victim() {
    let mut words = std::env::args();
    if words.next().as_deref() == Some(ROLE) {
        let words: Vec<String> = words.collect();
        let ended = process::run(&words);
        if let Err(error) = &ended {
            println!("error {error:#}");
        }
        std::process::exit(i32::from(ended.is_err()));
    }
}

struct Victim {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// All victims there are.
#[derive(Default)]
pub(crate) struct Victims(BTreeMap<String, Victim>);

impl Victims {
    /// `victim NAME KIND SIZE`: starts one.
    pub(crate) fn start(&mut self, words: &str) -> Result<()> {
        let words: Vec<&str> = words.split_whitespace().collect();
        let [name, kind, size] = words[..] else {
            bail!("missing-argument");
        };
        ensure!(!self.0.contains_key(name), "there is one of that name");
        let mut child = Command::new("/proc/self/exe")
            .arg0(ROLE)
            .args([kind, size])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().context("no pipe")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        let victim = Victim {
            child,
            commands,
            answers,
        };
        self.0.insert(name.to_owned(), victim);
        self.answer("victim", name)
    }

    /// `COMMAND NAME ARGUMENTS`: one command for one victim.
    pub(crate) fn command(&mut self, command: &str, rest: &str) -> Result<()> {
        let (name, arguments) = rest.split_once(' ').unwrap_or((rest, ""));
        let victim = self.0.get_mut(name).context("no victim of that name")?;
        // A victim that is gone says so by its answer, which is none.
        let _ = writeln!(victim.commands, "{command} {arguments}");
        self.answer(command, name)
    }

    /// `busy`: all victims read their memory at once, again and again, until it is enough.
    pub(crate) fn busy(&mut self) -> Result<()> {
        for victim in self.0.values_mut() {
            let _ = writeln!(victim.commands, "busy");
        }
        report(&format!("event=busy victims={}", self.0.len()));
        Ok(())
    }

    /// `rest`: it is. Each reports what it found, and what it finds when it begins once more after this.
    pub(crate) fn rest(&mut self) -> Result<()> {
        File::create(process::ENOUGH)?;
        let names: Vec<String> = self.0.keys().cloned().collect();
        let answered = names.iter().try_for_each(|name| self.answer("busy", name));
        std::fs::remove_file(process::ENOUGH)?;
        answered?;
        report(&format!("event=rest victims={}", names.len()));
        Ok(())
    }

    /// Passes on the one line that a victim answers with. One that answers nothing is gone.
    fn answer(&mut self, command: &str, name: &str) -> Result<()> {
        let victim = self.0.get_mut(name).context("no victim of that name")?;
        let mut line = String::new();
        victim.answers.read_line(&mut line)?;
        let line = line.trim();
        if let Some(why) = line.strip_prefix("error ") {
            bail!("{}", why.to_owned());
        }
        if line.is_empty() {
            let status = victim.child.wait()?;
            // The kernel has much to say of a task that it kills, and says it between anyone's bytes.
            std::thread::sleep(LAST_WORDS);
            self.0.remove(name);
            report(&format!(
                "event={command} name={name} result=gone {}",
                ending(status)
            ));
        } else {
            report(&format!("event={command} name={name} {line}"));
        }
        Ok(())
    }
}

/// How a process ended.
fn ending(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status={code}"),
        (None, Some(signal)) => format!("signal={signal}"),
        (None, None) => "status=unknown".to_owned(),
    }
}
