//! What can be said to the monitor.
//!
//! A command is one row of [`COMMANDS`], which knows its name, says what it wants, and makes a
//! [`Command`] of the words behind the name. What a command does is one arm of the match in
//! `vm::monitor`. Nothing here touches the machine.

use crate::addr::Pa;
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
    /// What a VM's map is made of.
    Stage2(&'a str),
    /// What was counted.
    Counters,
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
    entry("poison", "[list,[PA]]", "counts-or-lists-bad-pages", poison),
    entry(
        "stage2",
        "VM",
        "says-what-the-vms-map-is-made-of",
        |words| words.word().map(Command::Stage2),
    ),
    entry("counters", "none", "says-what-was-counted", |_| {
        Ok(Command::Counters)
    }),
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

fn poison<'a>(words: &mut Words<'a>) -> Result<Command<'a>, Mistake> {
    match words.optional() {
        None => Ok(Command::Poison),
        Some("list") => match words.optional() {
            None => Ok(Command::PoisonList(Pa::new(0))),
            Some(from) => number(from).map(|from| Command::PoisonList(Pa::new(from))),
        },
        Some(_) => Err(Mistake::BadArgument),
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
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;

    #[test]
    fn lines_become_commands() {
        for (line, command) in [
            ("help", Command::Help),
            ("  vms  ", Command::Vms),
            ("focus two", Command::Focus("two")),
            ("poison", Command::Poison),
            ("poison list", Command::PoisonList(Pa::new(0))),
            ("poison list 0x1000", Command::PoisonList(Pa::new(0x1000))),
            ("poison list 4096", Command::PoisonList(Pa::new(0x1000))),
            ("stage2\tone", Command::Stage2("one")),
            ("off", Command::Off),
            ("reboot", Command::Reboot),
        ] {
            assert_eq!(parse(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn every_mistake_has_a_name() {
        for (line, mistake) in [
            ("", Mistake::UnknownCommand),
            ("Help", Mistake::UnknownCommand),
            ("helpme", Mistake::UnknownCommand),
            ("focus", Mistake::MissingArgument),
            ("vms all", Mistake::ExtraArgument),
            ("stop one two", Mistake::ExtraArgument),
            ("poison lost", Mistake::BadArgument),
            ("poison list +1", Mistake::BadNumber),
            ("poison list 0x", Mistake::BadNumber),
            ("poison list 0x10000000000000000", Mistake::BadNumber),
            ("poison list 1 2", Mistake::ExtraArgument),
        ] {
            assert_eq!(parse(line), Err(mistake), "{line}");
        }
    }

    #[test]
    fn rows_are_words_and_no_two_have_one_name() {
        for (at, entry) in COMMANDS.iter().enumerate() {
            for text in [entry.name, entry.arguments, entry.does] {
                assert!(!text.is_empty() && !text.contains(' '), "{text}");
            }
            assert!(COMMANDS[..at].iter().all(|it| it.name != entry.name));
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_command_or_a_mistake(line in "[ -~]{0,120}") {
            let _ = parse(&line);
        }

        #[test]
        fn what_a_row_names_is_not_unknown(at in 0..COMMANDS.len(), rest in "[ -~]{0,20}") {
            let line = alloc::format!("{} {rest}", COMMANDS[at].name);
            prop_assert_ne!(parse(&line), Err(Mistake::UnknownCommand));
        }

        #[test]
        fn numbers_are_what_was_written(value: u64) {
            let hex: String = alloc::format!("{value:#x}");
            prop_assert_eq!(number(&hex), Ok(value));
            let decimal: String = alloc::format!("{value}");
            prop_assert_eq!(number(&decimal), Ok(value));
        }
    }
}
