//! Work of the ordinary kind, for as long as something else goes on: processes come and go, memory is taken
//! and given back, files are written and read, pipes carry bytes. What comes back as something else is counted.
//!
//! Each worker is a process of its own, which works until its input ends.

use crate::report::report;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{Read, Write, stdin};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The name by which this program knows that it is a worker.
const ROLE: &str = "worker";

/// Bytes of memory, of a file and of what goes through a pipe, in one round.
const MEMORY: usize = 4 << 20;
const FILE: usize = 1 << 20;
const PIPE: usize = 256 << 10;

/// If this process was started as a worker, it is one to its end.
pub(crate) fn run_if_worker() {
    let mut words = std::env::args();
    if words.next().as_deref() == Some(ROLE) {
        let ended = work(&words.next().unwrap_or_default());
        if let Err(error) = &ended {
            println!("error {error:#}");
        }
        std::process::exit(i32::from(ended.is_err()));
    }
}

/// The workers there are.
#[derive(Default)]
pub(crate) struct Workers(Vec<Child>);

impl Workers {
    /// `stress COUNT` starts so many workers, `stress` ends them and says what they did.
    pub(crate) fn command(&mut self, count: &str) -> Result<()> {
        if count.is_empty() {
            return self.end();
        }
        let count: usize = count.parse().context("bad-number")?;
        ensure!(self.0.is_empty(), "at-work");
        for number in 0..count {
            let worker = Command::new("/proc/self/exe")
                .arg0(ROLE)
                .arg(number.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            self.0.push(worker);
        }
        report(&format!("event=stress workers={count}"));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        for worker in &mut self.0 {
            drop(worker.stdin.take());
        }
        let (mut workers, mut rounds, mut least, mut wrong) = (0, 0, u64::MAX, 0);
        for worker in self.0.drain(..) {
            let output = worker.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let mut numbers = text.split_whitespace().map(str::parse::<u64>);
            let (Some(Ok(done)), Some(Ok(bad))) = (numbers.next(), numbers.next()) else {
                bail!("a worker ended with {}: {}", output.status, text.trim());
            };
            workers += 1;
            rounds += done;
            least = least.min(done);
            wrong += bad;
        }
        report(&format!(
            "event=stress workers={workers} rounds={rounds} least={least} wrong={wrong}"
        ));
        Ok(())
    }
}

/// Works until nobody is there any more who could say that it is enough.
fn work(name: &str) -> Result<()> {
    let enough = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&enough);
    std::thread::spawn(move || {
        let _ = stdin().read_to_end(&mut Vec::new());
        seen.store(true, Ordering::Release);
    });
    let (mut rounds, mut wrong) = (0_u64, 0_u64);
    while !enough.load(Ordering::Acquire) {
        wrong += memory(rounds) + file(name, rounds)? + pipe(rounds)? + process()?;
        rounds += 1;
    }
    println!("{rounds} {wrong}");
    Ok(())
}

/// Bytes that tell their place and the round.
fn pattern(size: usize, round: u64) -> Vec<u8> {
    let words =
        (0..size as u64 / 8).map(|at| (at ^ round << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

fn differences(a: &[u8], b: &[u8]) -> u64 {
    let pairs = a.iter().zip(b).filter(|(a, b)| a != b);
    (pairs.count() + a.len().abs_diff(b.len())) as u64
}

/// Memory that is new in each round.
fn memory(round: u64) -> u64 {
    let bytes = pattern(MEMORY, round);
    differences(&bytes.clone(), &bytes)
}

fn file(name: &str, round: u64) -> Result<u64> {
    let (path, bytes) = (format!("/tmp/stress-{name}"), pattern(FILE, round));
    fs::write(&path, &bytes)?;
    let back = fs::read(&path)?;
    fs::remove_file(&path)?;
    Ok(differences(&bytes, &back))
}

/// There and back again, through a process.
fn pipe(round: u64) -> Result<u64> {
    let mut cat = Command::new("/bin/busybox")
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let bytes = pattern(PIPE, round);
    let mut input = cat.stdin.take().context("no pipe")?;
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || input.write_all(&sent));
    let back = cat.wait_with_output()?.stdout;
    sender
        .join()
        .map_err(|_| anyhow::anyhow!("a thread died"))??;
    Ok(differences(&bytes, &back))
}

fn process() -> Result<u64> {
    let status = Command::new("/bin/busybox").arg("true").status()?;
    Ok(u64::from(!status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_counts() {
        let (a, b) = (pattern(64, 1), pattern(64, 1));
        assert_eq!(differences(&a, &b), 0);
        assert_eq!(differences(&a, &b[..60]), 4);
        assert_ne!(differences(&a, &pattern(64, 2)), 0);
    }
}
