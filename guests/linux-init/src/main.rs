//! Process 1 of a Linux guest.
//!
//! It mounts what user space expects, says that it is up, and obeys lines from the console
//! (docs/protocols.md, "The Linux guest's console"). Words after `--` on the kernel's command line
//! arrive as arguments, each a command that is obeyed first. It never returns: where it has nothing
//! to do it waits for the next line, and what fails is a report, not an exit.

mod check;
mod counter;
mod dax;
mod device_memory;
mod disk;
mod einj;
mod losses;
mod memory;
mod modules;
mod power;
mod report;
mod stress;
mod system;
mod victim;

use anyhow::{Result, bail};
use report::{report, report_error};
use std::io::{BufRead, stdin};
use std::process::Command;
use stress::Workers;
use victim::Victims;

fn main() {
    victim::run_if_victim();
    stress::run_if_worker();
    let mut tasks = Tasks::default();
    if let Err(error) = system::mount_all() {
        report_error("mount", &error);
    }
    report_init();
    for word in std::env::args().skip(1) {
        obey(&word, &mut tasks);
    }
    loop {
        let mut line = String::new();
        match stdin().lock().read_line(&mut line) {
            Ok(1..) => obey(line.trim(), &mut tasks),
            // A console that is hung up comes back, if at all, in its own time.
            _ => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}

/// Processes that were started.
#[derive(Default)]
struct Tasks {
    victims: Victims,
    workers: Workers,
}

fn report_init() {
    let release = system::kernel_release();
    let cpus = system::online_cpus().map_or(0, |cpus| cpus.len());
    report(&format!(
        "event=init uptime_ms={} ticks={} cpus={cpus} kernel={release}",
        system::uptime_ms(),
        counter::counter()
    ));
}

/// Carries out one line and reports what came of it.
fn obey(line: &str, tasks: &mut Tasks) {
    let Tasks { victims, workers } = tasks;
    let (word, rest) = line.split_once([' ', '=']).unwrap_or((line, ""));
    let done = match word {
        "" => Ok(()),
        "check" => check::check(),
        "dax" => dax::device(),
        "fsdax" => dax::mapped_files(),
        "disk" => dax::cached_files(rest),
        "einj" => einj::inject(rest),
        "losses" => losses::losses(),
        "memory" => memory::memory(rest),
        "victim" => victims.start(rest),
        "touch" | "store" | "change" | "call" | "send" | "loop" | "where" | "verify" | "sync" => {
            victims.command(word, rest)
        }
        "busy" => victims.busy(),
        "rest" => victims.rest(),
        "stress" => workers.command(rest),
        "patrol" => check::patrol(rest),
        "disk-write" => disk::write(rest),
        "disk-read" => disk::read(rest),
        "sh" => run("sh", &["-c", rest], word),
        "shell" => run("setsid", &["-c", "sh", "-l"], word),
        "poweroff" => power::off(),
        "reboot" => power::reboot(),
        _ => Err(anyhow::anyhow!("unknown-command")),
    };
    if let Err(error) = done {
        report_error(if word.is_empty() { "line" } else { word }, &error);
    }
}

/// Runs one of busybox's programs to its end, on this console.
fn run(program: &str, arguments: &[&str], word: &str) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .arg(program)
        .args(arguments)
        .env("PATH", "/bin")
        .env("HOME", "/")
        .env("TERM", "vt100")
        .status()?;
    let Some(code) = status.code() else {
        bail!("{status}");
    };
    report(&format!("event={word} status={code}"));
    Ok(())
}
