//! What can be said to the monitor.
//!
//! A command is one row of [`COMMANDS`], which knows its name, says what it wants, and makes a
//! [`Command`] of the words behind the name. What a command does is one arm of the match in
//! `vm::monitor`. Nothing here touches the machine.

use crate::addr::{Ipa, Pa};
use crate::devmem::{Narrowing, Policy};
use crate::ras::pipeline::Injection;
use crate::ras::repair::How;
use core::fmt;
use core::str::SplitAsciiWhitespace;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Which commands there are.
    Help,
    /// All VMs.
    Vms,
    /// This VM gets what is typed.
    Focus(&'a str),
    /// Memory, and who maps it.
    Regions,
    /// How many pages are bad.
    Poison,
    /// The bad pages from this address on.
    PoisonList(Pa),
    /// The bad pages from this address on, by ranges, for a later start.
    PoisonExport(Pa),
    /// What a VM's map is made of.
    Stage2(&'a str),
    /// Which tables translate an address of a VM's.
    Tables(&'a str, Ipa),
    /// What was counted, in short.
    Counters,
    /// A VM's pages from an address on, so many, have this taken from them.
    Protect(&'a str, [u64; 2], Narrowing),
    /// What was counted, by kind, VM, vCPU and region.
    CountersAll,
    /// An error of this kind in so many pages of the machine.
    Inject(Pa, Injection, u64),
    /// The same in the pages that a VM has at this address.
    InjectVm(&'a str, Ipa, Injection, u64),
    /// What is bad of so many pages of a VM is to be made good.
    Repair(&'a str, Ipa, u64, How),
    /// A rule for the filter, which reads its text itself.
    FilterAdd(&'a str),
    /// The filter has no rules any more.
    FilterClear,
    /// What is done when a page goes bad of the memory that a VM has at this address.
    Policy(&'a str, Ipa, Policy),
    /// A VM ends.
    Stop(&'a str),
    /// A VM starts anew.
    Reset(&'a str),
    /// A VM that has turned itself off, or was stopped, starts again.
    Start(&'a str),
    /// The machine is turned off, with all VMs.
    Off,
    /// The machine begins anew.
    Reboot,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// There is no such command.
    UnknownCommand,
    /// A word is missing.
    MissingArgument,
    /// There is a word too many.
    ExtraArgument,
    /// A word is none of those that can stand here.
    BadArgument,
    /// A word should be a number and is not.
    BadNumber,
    /// The line had no room.
    LineTooLong,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::UnknownCommand => "unknown-command",
            Self::MissingArgument => "missing-argument",
            Self::ExtraArgument => "extra-argument",
            Self::BadArgument => "bad-argument",
            Self::BadNumber => "bad-number",
            Self::LineTooLong => "line-too-long",
        })
    }
}

impl core::error::Error for Mistake {}

/// The words behind a command's name.
#[derive(Clone, Debug)]
pub struct Words<'a>(SplitAsciiWhitespace<'a>);

impl<'a> Words<'a> {
    /// The next word, if there is one.
    pub fn optional(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    /// The next word.
    ///
    /// # Errors
    ///
    /// [`Mistake::MissingArgument`].
    pub fn word(&mut self) -> Result<&'a str, Mistake> {
        self.0.next().ok_or(Mistake::MissingArgument)
    }

    /// The next word as a number, decimal or `0x`.
    ///
    /// # Errors
    ///
    /// [`Mistake::MissingArgument`], [`Mistake::BadNumber`].
    pub fn number(&mut self) -> Result<u64, Mistake> {
        self.word().and_then(number)
    }

    /// The next word as a physical address.
    ///
    /// # Errors
    ///
    /// [`Mistake::MissingArgument`], [`Mistake::BadNumber`].
    pub fn pa(&mut self) -> Result<Pa, Mistake> {
        self.number().map(Pa::new)
    }

    /// The next word as an address of a guest's.
    ///
    /// # Errors
    ///
    /// [`Mistake::MissingArgument`], [`Mistake::BadNumber`].
    pub fn ipa(&mut self) -> Result<Ipa, Mistake> {
        self.number().map(Ipa::new)
    }

    /// The next word as one of those that `known` knows.
    ///
    /// # Errors
    ///
    /// [`Mistake::MissingArgument`], [`Mistake::BadArgument`].
    pub fn one_of<T>(&mut self, known: impl Fn(&str) -> Option<T>) -> Result<T, Mistake> {
        known(self.word()?).ok_or(Mistake::BadArgument)
    }

    /// How many pages; one where nothing is said.
    ///
    /// # Errors
    ///
    /// [`Mistake::BadNumber`].
    pub fn pages(&mut self) -> Result<u64, Mistake> {
        self.optional().map_or(Ok(1), number)
    }
}

fn number(word: &str) -> Result<u64, Mistake> {
    let digits = word.strip_prefix("0x");
    let radix = if digits.is_some() { 16 } else { 10 };
    let digits = digits.unwrap_or(word);
    // `from_str_radix` takes a sign as well.
    let plain = digits.bytes().all(|digit| digit.is_ascii_alphanumeric());
    let value = u64::from_str_radix(digits, radix).ok().filter(|_| plain);
    value.ok_or(Mistake::BadNumber)
}

/// A command's row.
pub struct Entry {
    /// Its first word.
    pub name: &'static str,
    /// What stands behind it, without blanks; what is optional in brackets.
    pub arguments: &'static str,
    /// What it does, in words with hyphens between them.
    pub does: &'static str,
    /// Makes a command of what stands behind it. What is left over afterwards is an error.
    parse: for<'a> fn(&mut Words<'a>) -> Result<Command<'a>, Mistake>,
}

const fn entry(
    name: &'static str,
    arguments: &'static str,
    does: &'static str,
    parse: for<'a> fn(&mut Words<'a>) -> Result<Command<'a>, Mistake>,
) -> Entry {
    Entry {
        name,
        arguments,
        does,
        parse,
    }
}

/// All commands, in the order in which `help` lists them.
pub const COMMANDS: &[Entry] = &[
    entry("help", "none", "lists-the-commands", |_| Ok(Command::Help)),
    entry("vms", "none", "lists-the-vms", |_| Ok(Command::Vms)),
    entry("focus", "VM", "gives-the-vm-what-is-typed", |words| {
        words.word().map(Command::Focus)
    }),
    entry("regions", "none", "lists-memory-and-who-maps-it", |_| {
        Ok(Command::Regions)
    }),
    entry(
        "poison",
        "[list|export,[PA]]",
        "counts-lists-or-exports-bad-pages",
        poison,
    ),
    entry(
        "stage2",
        "VM",
        "says-what-the-vms-map-is-made-of",
        |words| words.word().map(Command::Stage2),
    ),
    entry(
        "tables",
        "VM,IPA",
        "says-which-tables-lead-there",
        |words| Ok(Command::Tables(words.word()?, words.ipa()?)),
    ),
    entry("counters", "[all]", "says-what-was-counted", counters),
    entry(
        "inject",
        "PA,ce|ao,[PAGES]",
        "makes-an-error-in-the-machines-memory",
        |words| {
            Ok(Command::Inject(
                words.pa()?,
                words.one_of(Injection::from_name)?,
                words.pages()?,
            ))
        },
    ),
    entry(
        "inject-vm",
        "VM,IPA,ce|ao,[PAGES]",
        "makes-an-error-in-a-vms-memory",
        |words| {
            Ok(Command::InjectVm(
                words.word()?,
                words.ipa()?,
                words.one_of(Injection::from_name)?,
                words.pages()?,
            ))
        },
    ),
    entry(
        "repair",
        "VM,IPA,[PAGES,[in-place|spare]]",
        "makes-good-what-is-bad-there",
        repair,
    ),
    entry(
        "filter",
        "add,RULE|clear",
        "decides-which-errors-are-contained",
        filter,
    ),
    entry(
        "policy",
        "VM,IPA,isolate|refault|keep",
        "decides-what-a-bad-page-costs-from-now-on",
        |words| {
            Ok(Command::Policy(
                words.word()?,
                words.ipa()?,
                words.one_of(Policy::from_name)?,
            ))
        },
    ),
    entry(
        "protect",
        "VM,IPA,PAGES,WHAT",
        "makes-memory-read-only,no-execute,non-cacheable,device-or-none-of-it",
        protect,
    ),
    entry("stop", "VM", "ends-the-vm", |words| {
        words.word().map(Command::Stop)
    }),
    entry("reset", "VM", "starts-the-vm-anew", |words| {
        words.word().map(Command::Reset)
    }),
    entry("start", "VM", "starts-a-vm-that-is-off", |words| {
        words.word().map(Command::Start)
    }),
    entry("off", "none", "turns-the-machine-off", |_| Ok(Command::Off)),
    entry("reboot", "none", "starts-the-machine-anew", |_| {
        Ok(Command::Reboot)
    }),
];

fn protect<'a>(words: &mut Words<'a>) -> Result<Command<'a>, Mistake> {
    let (vm, range) = (words.word()?, [words.number()?, words.number()?]);
    let what = Narrowing::from_text(words.word()?).ok_or(Mistake::BadArgument)?;
    Ok(Command::Protect(vm, range, what))
}

fn poison<'a>(words: &mut Words<'a>) -> Result<Command<'a>, Mistake> {
    let Some(what) = words.optional() else {
        return Ok(Command::Poison);
    };
    let command = match what {
        "list" => Command::PoisonList,
        "export" => Command::PoisonExport,
        _ => return Err(Mistake::BadArgument),
    };
    let from = words.optional().map_or(Ok(0), number)?;
    Ok(command(Pa::new(from)))
}

fn counters<'a>(words: &mut Words<'a>) -> Result<Command<'a>, Mistake> {
    match words.optional() {
        None => Ok(Command::Counters),
        Some("all") => Ok(Command::CountersAll),
        Some(_) => Err(Mistake::BadArgument),
    }
}

fn repair<'a>(words: &mut Words<'a>) -> Result<Command<'a>, Mistake> {
    let (vm, ipa, pages) = (words.word()?, words.ipa()?, words.pages()?);
    let how = match words.optional() {
        None => How::InPlace,
        Some(name) => How::from_name(name).ok_or(Mistake::BadArgument)?,
    };
    Ok(Command::Repair(vm, ipa, pages, how))
}

fn filter<'a>(words: &mut Words<'a>) -> Result<Command<'a>, Mistake> {
    match words.word()? {
        "add" => words.word().map(Command::FilterAdd),
        "clear" => Ok(Command::FilterClear),
        _ => Err(Mistake::BadArgument),
    }
}

/// The first word of a line: what its answer is called.
pub fn name(line: &str) -> &str {
    line.split_ascii_whitespace().next().unwrap_or("?")
}

/// Reads a line.
///
/// # Errors
///
/// The first [`Mistake`] in it.
pub fn parse(line: &str) -> Result<Command<'_>, Mistake> {
    let mut words = Words(line.split_ascii_whitespace());
    let name = words.optional().ok_or(Mistake::UnknownCommand)?;
    let entry = COMMANDS.iter().find(|entry| entry.name == name);
    let command = (entry.ok_or(Mistake::UnknownCommand)?.parse)(&mut words)?;
    match words.optional() {
        None => Ok(command),
        Some(_) => Err(Mistake::ExtraArgument),
    }
}

#[cfg(test)]
mod tests;
