//! QEMU's qtest protocol: physical memory, read and written from outside of the machine.
//!
//! It is how a scenario does what a broken firmware or loader would have done: one line a command,
//! `read ADDR SIZE` or `write ADDR SIZE DATA`, one line an answer that begins with `OK`
//! (QEMU `system/qtest.c`). CPUs run on meanwhile; what they cache does not matter, as TCG
//! caches no data.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to QEMU's qtest server.
#[derive(Debug)]
pub(crate) struct Qtest {
    stream: BufReader<UnixStream>,
}

impl Qtest {
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// The `length` bytes from `at` on. `length` is not 0.
    pub(crate) fn read(&mut self, at: u64, length: usize) -> Result<Vec<u8>> {
        let answer = self.ask(&format!("read {at:#x} {length:#x}"))?;
        let digits = answer.trim().strip_prefix("0x").unwrap_or_default();
        let bytes = (0..digits.len()).step_by(2).map(|pair| {
            let pair = digits.get(pair..pair + 2)?;
            u8::from_str_radix(pair, 16).ok()
        });
        let bytes: Option<Vec<u8>> = bytes.collect();
        bytes
            .filter(|bytes| bytes.len() == length)
            .with_context(|| format!("qtest answered a read of {length} bytes with `{answer}`"))
    }

    /// Writes all of `bytes` from `at` on.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let length = bytes.len();
        self.ask(&format!("write {at:#x} {length:#x} 0x{digits}"))
            .map(|_| ())
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        let stream = self.stream.get_mut();
        stream
            .write_all(format!("{command}\n").as_bytes())
            .context("QEMU's qtest is closed")?;
        let mut answer = String::new();
        self.stream
            .read_line(&mut answer)
            .context("QEMU's qtest does not answer")?;
        match answer.strip_prefix("OK") {
            Some(rest) => Ok(rest.to_owned()),
            None => bail!("qtest answered with `{}`", answer.trim_end()),
        }
    }
}
