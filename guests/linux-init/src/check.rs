//! The self-check: what a machine must do that a kernel takes for granted.
//!
//! Each part ends in numbers that were counted, not in a verdict: what they must be, the reader
//! knows (tests/qemu/scenarios/linux.toml).

use crate::report::report;
use crate::{device_memory, system};
use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Processes started on each CPU.
const FORKS: usize = 25;
/// Signals sent.
const SIGNALS: usize = 500;
/// Bytes of memory that are written, read back and compared: a part of them by each CPU.
const MEMORY: usize = 128 << 20;
/// Bytes of the file that goes through dd.
const FILE_MIB: usize = 16;

/// Runs all parts and reports them in one line.
pub(crate) fn check() -> Result<()> {
    let begun = Instant::now();
    let cpus = system::online_cpus()?;
    let present = system::present_cpus()?.len();
    let ticking = ticking(&cpus).context("ticks")?;
    let forks = on_each(&cpus, |_| forks())?.into_iter().sum::<usize>();
    let signals = signals().context("signals")?;
    let wrong = memory(&cpus, MEMORY).context("memory")?;
    let copied = copy().context("dd")?;
    let device = device_memory::check().context("device-memory")?;
    report(&format!(
        "event=check cpus={} present={present} ticking={ticking} forks={forks} signals={signals} \
         bytes={MEMORY} wrong={wrong} copied={copied} device_bytes={} device_wrong={} ms={}",
        cpus.len(),
        device.bytes,
        device.wrong,
        begun.elapsed().as_millis()
    ));
    Ok(())
}

/// Works on memory for so many seconds, and reports every round.
pub(crate) fn patrol(seconds: &str) -> Result<()> {
    /// Bytes of a round.
    const PART: usize = 16 << 20;
    let end = Duration::from_secs(seconds.parse().context("bad-number")?);
    let begun = Instant::now();
    let cpus = system::online_cpus()?;
    let mut rounds = 0_u64;
    while begun.elapsed() < end {
        let wrong = memory(&cpus, PART)?;
        rounds += 1;
        report(&format!("event=patrol rounds={rounds} wrong={wrong}"));
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// Calls `body` on every CPU at once, with the CPU's place in the list, and collects what it returns.
fn on_each<T: Send>(cpus: &[usize], body: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let pinned = |place: usize, cpu: usize| {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPU {cpu}"))?;
        ensure!(sched_getcpu() == cpu, "not on CPU {cpu}");
        body(place)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (cpus.iter().enumerate())
            .map(|(place, cpu)| scope.spawn(move || pinned(place, *cpu)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread died"))?
            })
            .collect()
    })
}

/// How many CPUs get timer interrupts while each is busy.
fn ticking(cpus: &[usize]) -> Result<usize> {
    const BUSY: Duration = Duration::from_millis(200);
    let before = system::timer_ticks()?;
    on_each(cpus, |_| {
        let begun = Instant::now();
        while begun.elapsed() < BUSY {
            std::hint::spin_loop();
        }
        // And asleep: the timer has to wake it.
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    })?;
    let after = system::timer_ticks()?;
    Ok(before.iter().zip(&after).filter(|(a, b)| b > a).count())
}

/// Starts processes that do nothing, and counts those that ended well.
fn forks() -> Result<usize> {
    let mut well = 0;
    for _ in 0..FORKS {
        let status = Command::new("/bin/busybox").arg("true").status()?;
        well += usize::from(status.success());
    }
    Ok(well)
}

/// Sends this process signals, each after the one before has been handled.
fn signals() -> Result<usize> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let seen = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&seen))?;
    let mut handled = 0;
    for _ in 0..SIGNALS {
        kill_process(getpid(), Signal::USR1)?;
        let sent = Instant::now();
        while !seen.swap(false, Ordering::AcqRel) {
            ensure!(
                sent.elapsed() < PATIENCE,
                "signal {handled} was not handled"
            );
            std::thread::yield_now();
        }
        handled += 1;
    }
    Ok(handled)
}

/// Fills memory on every CPU with numbers that tell their place, then checks each part on the next
/// CPU. Returns how many were wrong.
fn memory(cpus: &[usize], bytes: usize) -> Result<usize> {
    let words = bytes / size_of::<u64>() / cpus.len().max(1);
    let value =
        |part: usize, at: usize| (part as u64) << 48 ^ (at as u64).wrapping_mul(0x9e37_79b9);
    let parts = on_each(cpus, |part| {
        Ok((0..words).map(|at| value(part, at)).collect::<Vec<u64>>())
    })?;
    let wrong = on_each(cpus, |place| {
        let part = (place + 1) % parts.len();
        let words = parts.get(part).map_or(&[][..], Vec::as_slice);
        let good = |(at, word): &(usize, &u64)| **word == value(part, *at);
        Ok(words.iter().enumerate().filter(|pair| !good(pair)).count())
    })?;
    Ok(wrong.into_iter().sum())
}

/// Sends random bytes through dd and two files; returns how many came out as they went in.
fn copy() -> Result<usize> {
    dd("/dev/urandom", "/tmp/a")?;
    dd("/tmp/a", "/tmp/b")?;
    let (a, b) = (std::fs::read("/tmp/a")?, std::fs::read("/tmp/b")?);
    for file in ["/tmp/a", "/tmp/b"] {
        std::fs::remove_file(file)?;
    }
    Ok(a.iter().zip(&b).take_while(|(a, b)| a == b).count())
}

fn dd(from: &str, to: &str) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .args(["dd", "bs=64k"])
        .arg(format!("count={}", FILE_MIB * 16))
        .arg(format!("if={from}"))
        .arg(format!("of={to}"))
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
