//! The victim itself: one line in, one line out.

use super::access::{self, BusError};
use super::map::{self, Memory, PAGE};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Write, stdin, stdout};
use std::path::Path;

/// While there is this file, it is enough.
pub(super) const ENOUGH: &str = "/tmp/enough";

/// `RET`, twice: a word of code.
const CODE: u64 = 0xd65f_03c0_d65f_03c0;

/// Maps `KIND SIZE`, then obeys lines until there are no more.
pub(super) fn run(words: &[String]) -> Result<()> {
    let [kind, size] = words else {
        bail!("missing-argument");
    };
    access::prepare()?;
    let (kind, as_it_is) = match kind.strip_prefix('=') {
        Some(kind) => (kind, true),
        None => (kind.as_str(), false),
    };
    let victim = Victim {
        memory: map::map(kind, parse_size(size)?)?,
        is_code: kind == "code",
    };
    let lost = if as_it_is { 0 } else { victim.fill() };
    if kind == "pages" {
        map::split_huge_pages(&victim.memory)?;
    }
    say(&victim.describe(lost)?)?;
    for line in stdin().lines() {
        let answer = victim.obey(line?.trim());
        say(&answer.unwrap_or_else(|error| format!("error {error:#}")))?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// `64k`, `2M`, `4G`, or bytes.
fn parse_size(text: &str) -> Result<usize> {
    let shift = match text.chars().last() {
        Some('k' | 'K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    Ok(number(digits)? as usize * (1 << shift))
}

fn number(text: &str) -> Result<u64> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.context("bad-number")
}

struct Victim {
    memory: Memory,
    is_code: bool,
}

impl Victim {
    /// What belongs at `offset`.
    fn value(&self, offset: usize) -> u64 {
        if self.is_code {
            CODE
        } else {
            (offset as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
        }
    }

    fn address(&self, offset: usize) -> u64 {
        self.memory.start + offset as u64
    }

    /// Writes the first word of each 64 bytes. Returns how many pages were lost.
    fn fill(&self) -> usize {
        let mut lost = 0;
        for page in (0..self.memory.size).step_by(PAGE) {
            let filled = (page..page + PAGE)
                .step_by(if self.is_code { 8 } else { 64 })
                .try_for_each(|at| access::store(self.address(at), self.value(at)));
            lost += usize::from(filled.is_err());
        }
        lost
    }

    /// What the memory is. Reads its first word, so that there is a page behind it.
    fn describe(&self, lost: usize) -> Result<String> {
        let (start, size) = (self.memory.start, self.memory.size);
        let _ = access::load(start);
        let ipa = map::physical(start)?;
        let huge = map::huge_kib()?;
        Ok(format!(
            "pid={} va={start:#x} ipa={ipa:#x} size={size} lost={lost} huge_kib={huge}",
            std::process::id()
        ))
    }

    fn obey(&self, line: &str) -> Result<String> {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "touch" => self.touch(number(argument)? as usize),
            "store" => self.store(number(argument)? as usize, |value| value),
            "change" => self.store(number(argument)? as usize, |value| !value),
            "sync" => self.sync(),
            "call" => self.call(number(argument)? as usize),
            "send" => self.send(number(argument)? as usize),
            "loop" => self.touch_again(argument),
            "where" => self.find(number(argument)? as usize),
            "verify" => Ok(self.verify(&mut BTreeSet::new())),
            "busy" => Ok(self.keep_verifying()),
            _ => bail!("unknown-command"),
        }
    }

    fn checked(&self, offset: usize) -> Result<u64> {
        anyhow::ensure!(
            offset < self.memory.size && offset.is_multiple_of(8),
            "bad-offset"
        );
        Ok(self.address(offset))
    }

    fn touch(&self, offset: usize) -> Result<String> {
        let loaded = access::load(self.checked(offset)?);
        Ok(match loaded {
            Ok(value) => format!("result=ok good={}", value == self.value(offset)),
            Err(error) => error.to_string(),
        })
    }

    /// Stores what belongs there, or what `change` makes of it.
    fn store(&self, offset: usize, change: impl Fn(u64) -> u64) -> Result<String> {
        let stored = access::store(self.checked(offset)?, change(self.value(offset)));
        Ok(stored.map_or_else(|error| error.to_string(), |()| "result=ok".to_owned()))
    }

    /// Has the file written to its disk, and says what the kernel says of that.
    fn sync(&self) -> Result<String> {
        let file = self.memory.file.as_ref().context("no-file")?;
        Ok(match file.sync_all() {
            Ok(()) => "result=ok".to_owned(),
            Err(error) => format!("result=error errno={}", error.raw_os_error().unwrap_or(0)),
        })
    }

    fn call(&self, offset: usize) -> Result<String> {
        anyhow::ensure!(self.is_code, "no-code");
        let called = access::call(self.checked(offset)?);
        Ok(called.map_or_else(|error| error.to_string(), |()| "result=ok".to_owned()))
    }

    /// Lets the kernel read the place.
    fn send(&self, offset: usize) -> Result<String> {
        let read = access::show_kernel(self.checked(offset)?);
        Ok(format!("result=ok read={read}"))
    }

    /// `OFFSET COUNT`: touches one place again and again.
    fn touch_again(&self, arguments: &str) -> Result<String> {
        let (offset, count) = arguments.split_once(' ').context("missing-argument")?;
        let address = self.checked(number(offset)? as usize)?;
        let mut signals = 0;
        let count = number(count)?;
        for _ in 0..count {
            signals += u64::from(access::load(address).is_err());
        }
        Ok(format!("touches={count} signals={signals}"))
    }

    /// Which guest-physical page is behind the offset now.
    fn find(&self, offset: usize) -> Result<String> {
        let address = self.checked(offset)?;
        let mut line = String::new();
        match map::physical(address) {
            Ok(ipa) => write!(line, "ipa={ipa:#x}")?,
            Err(_) => write!(line, "ipa=none")?,
        }
        Ok(line)
    }

    /// Verifies again and again, and once more when it is enough. It keeps off pages that it knows to be lost.
    fn keep_verifying(&self) -> String {
        let (mut rounds, mut lost) = (0_u64, BTreeSet::new());
        loop {
            let is_last = Path::new(ENOUGH).exists();
            let found = self.verify(&mut lost);
            rounds += 1;
            if is_last {
                return format!("rounds={rounds} {found}");
            }
        }
    }

    /// Reads everything once but for pages in `lost`. A page is lost from its first signal on.
    fn verify(&self, lost: &mut BTreeSet<usize>) -> String {
        let mut wrong = 0;
        for page in (0..self.memory.size).step_by(PAGE) {
            if lost.contains(&page) {
                continue;
            }
            for at in (page..page + PAGE).step_by(64) {
                match access::load(self.address(at)) {
                    Ok(value) => wrong += usize::from(value != self.value(at)),
                    Err(_) => {
                        lost.insert(page);
                        break;
                    }
                }
            }
        }
        let (pages, lost) = (self.memory.size / PAGE, lost.len());
        format!("pages={pages} lost={lost} wrong={wrong}")
    }
}

impl std::fmt::Display for BusError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            address,
            lsb,
            at,
        } = self;
        write!(
            f,
            "result=sigbus code={code} addr={address:#x} lsb={lsb} at={at}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("64k").unwrap(), 64 << 10);
        assert_eq!(parse_size("2M").unwrap(), 2 << 20);
        assert_eq!(parse_size("0x1000").unwrap(), 4096);
        assert!(parse_size("M").is_err() && parse_size("").is_err());
    }
}
