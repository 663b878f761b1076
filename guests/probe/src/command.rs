//! What a typed line asks for. The commands are listed in `docs/protocols.md`.

use crate::layout::Touch;

/// A command with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `fill`
    Fill,
    /// `patrol`
    Patrol,
    /// `stop`
    Stop,
    /// `sweep`
    Sweep,
    /// `lost`
    Lost,
    /// `storm SEED`
    Storm(u64),
    /// `calm`
    Calm,
    /// `audit`
    Audit,
    /// `mend`
    Mend,
    /// `read A` and its five relatives.
    Touch(Touch, u64),
    /// `fill-code A`
    FillCode(u64),
    /// `table A`
    Table(u64),
    /// `table-use`
    TableUse,
    /// `hammer A N`
    Hammer {
        /// Any address in the page in the middle.
        around: u64,
        /// How often each vCPU goes over the pages.
        rounds: u64,
    },
    /// `ram`
    Ram,
    /// `bad`
    Bad,
    /// `spin A N`
    Spin {
        /// What is read.
        ipa: u64,
        /// How often.
        rounds: u64,
    },
    /// `sgi N`
    Sgi(u64),
    /// `ipi N`
    Ipi(u64),
    /// `timer N`
    Timer(u64),
    /// `masked`
    Masked,
    /// `quiet A`
    Quiet(u64),
    /// `hold A`
    Hold(u64),
    /// `bench`
    Bench,
    /// `bench-touch A`
    BenchTouch(u64),
    /// `bench-load A`
    BenchLoad(u64),
    /// `forms A [B]`
    Forms {
        /// Where the instructions access memory.
        at: u64,
        /// Where they do so to compare, if not in ordinary memory.
        like: Option<u64>,
    },
    /// `atomics A`
    Atomics(u64),
    /// `straddle A`
    Straddle(u64),
    /// `contend A N`
    Contend {
        /// Where the words are that all vCPUs change.
        at: u64,
        /// How often each does so.
        rounds: u64,
    },
    /// `contend-vms A N`
    ContendVms {
        /// Where the words are that both VMs change.
        at: u64,
        /// How often each does so.
        rounds: u64,
    },
    /// `literals A`
    Literals(u64),
    /// `aarch32 A`
    Aarch32(u64),
    /// `scan A N STEP`
    Scan {
        /// Where the first load is.
        from: u64,
        /// How many there are.
        loads: u64,
        /// Bytes from each to the next.
        step: u64,
    },
    /// `vseas`
    Vseas,
    /// `hvc F [A B C]`
    Hvc([u64; 4]),
    /// `attack WHAT`
    Attack(Attack),
    /// `fuzz SEED STEPS`
    Fuzz {
        /// What chance begins with.
        seed: u64,
        /// How many attempts each vCPU makes.
        steps: u64,
    },
    /// `off`
    Off,
}

/// What `attack` tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Single pages that are not the guest's, in every way.
    Memory,
    /// Loads all over a range.
    Sweep {
        /// First IPA.
        from: u64,
        /// IPA behind the last.
        to: u64,
        /// Distance between loads, bytes.
        step: u64,
    },
    /// Every system register and system instruction.
    Registers,
    /// Calls by HVC and SMC.
    Calls,
    /// Emulated devices, by every instruction that accesses memory.
    Devices,
    /// PSTATE, debug, waiting, AArch32.
    State,
}

/// Why a line is no command. The names are what `event=error what=...` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// The first word is no command's name.
    UnknownCommand,
    /// A word that is neither decimal nor `0x...`, or does not fit into 64 bits.
    BadNumber,
    /// The command takes more arguments.
    MissingArgument,
    /// The command takes fewer arguments.
    ExtraArgument,
}

impl ParseError {
    /// The error's name on the console.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownCommand => "unknown-command",
            Self::BadNumber => "bad-number",
            Self::MissingArgument => "missing-argument",
            Self::ExtraArgument => "extra-argument",
        }
    }
}

/// Parses one line; `Ok(None)` for a blank one.
pub fn parse(line: &str) -> Result<Option<Command>, ParseError> {
    let mut words = line.split_ascii_whitespace();
    let Some(name) = words.next() else {
        return Ok(None);
    };
    let mut number = || {
        words
            .next()
            .ok_or(ParseError::MissingArgument)
            .and_then(parse_number)
    };
    let command = match name {
        "fill" => Command::Fill,
        "patrol" => Command::Patrol,
        "stop" => Command::Stop,
        "sweep" => Command::Sweep,
        "lost" => Command::Lost,
        "storm" => Command::Storm(number()?),
        "calm" => Command::Calm,
        "audit" => Command::Audit,
        "mend" => Command::Mend,
        "fill-code" => Command::FillCode(number()?),
        "table" => Command::Table(number()?),
        "table-use" => Command::TableUse,
        "hammer" => Command::Hammer {
            around: number()?,
            rounds: number()?,
        },
        "ram" => Command::Ram,
        "bad" => Command::Bad,
        "spin" => Command::Spin {
            ipa: number()?,
            rounds: number()?,
        },
        "sgi" => Command::Sgi(number()?),
        "ipi" => Command::Ipi(number()?),
        "timer" => Command::Timer(number()?),
        "masked" => Command::Masked,
        "quiet" => Command::Quiet(number()?),
        "hold" => Command::Hold(number()?),
        "bench" => Command::Bench,
        "bench-touch" => Command::BenchTouch(number()?),
        "bench-load" => Command::BenchLoad(number()?),
        "forms" => Command::Forms {
            at: number()?,
            like: words.next().map(parse_number).transpose()?,
        },
        "atomics" => Command::Atomics(number()?),
        "straddle" => Command::Straddle(number()?),
        "contend" => Command::Contend {
            at: number()?,
            rounds: number()?,
        },
        "contend-vms" => Command::ContendVms {
            at: number()?,
            rounds: number()?,
        },
        "literals" => Command::Literals(number()?),
        "aarch32" => Command::Aarch32(number()?),
        "scan" => Command::Scan {
            from: number()?,
            loads: number()?,
            step: number()?,
        },
        "vseas" => Command::Vseas,
        "hvc" => Command::Hvc(parse_hvc(&mut words)?),
        "attack" => Command::Attack(parse_attack(&mut words)?),
        "fuzz" => Command::Fuzz {
            seed: number()?,
            steps: number()?,
        },
        "off" => Command::Off,
        _ => match Touch::from_word(name) {
            Some(touch) => Command::Touch(touch, number()?),
            None => return Err(ParseError::UnknownCommand),
        },
    };
    match words.next() {
        None => Ok(Some(command)),
        Some(_) => Err(ParseError::ExtraArgument),
    }
}

fn parse_hvc<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<[u64; 4], ParseError> {
    let function = words.next().ok_or(ParseError::MissingArgument)?;
    let mut registers = [parse_number(function)?, 0, 0, 0];
    for register in &mut registers[1..] {
        let Some(word) = words.next() else { break };
        *register = parse_number(word)?;
    }
    Ok(registers)
}

fn parse_attack<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Attack, ParseError> {
    let what = words.next().ok_or(ParseError::MissingArgument)?;
    let mut number = || {
        words
            .next()
            .ok_or(ParseError::MissingArgument)
            .and_then(parse_number)
    };
    Ok(match what {
        "memory" => Attack::Memory,
        "sweep" => Attack::Sweep {
            from: number()?,
            to: number()?,
            step: number()?,
        },
        "registers" => Attack::Registers,
        "calls" => Attack::Calls,
        "devices" => Attack::Devices,
        "state" => Attack::State,
        _ => return Err(ParseError::UnknownCommand),
    })
}

/// A decimal or `0x` hexadecimal number of at most 64 bits, without sign.
pub fn parse_number(word: &str) -> Result<u64, ParseError> {
    let (digits, radix) = match word.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (word, 10),
    };
    // from_str_radix would take a sign.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return Err(ParseError::BadNumber);
    }
    u64::from_str_radix(digits, radix).map_err(|_| ParseError::BadNumber)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Access, Level};
    use proptest::prelude::*;

    #[test]
    fn every_command_of_the_protocol_is_understood() {
        let touch = |access, level| Command::Touch(Touch { access, level }, 0x1000);
        for (line, command) in [
            ("fill", Command::Fill),
            ("patrol", Command::Patrol),
            ("stop", Command::Stop),
            ("sweep", Command::Sweep),
            ("lost", Command::Lost),
            ("storm 7", Command::Storm(7)),
            ("calm", Command::Calm),
            ("audit", Command::Audit),
            ("mend", Command::Mend),
            ("read 0x1000", touch(Access::Read, Level::El1)),
            ("write 4096", touch(Access::Write, Level::El1)),
            ("exec 0x1000", touch(Access::Exec, Level::El1)),
            ("read-el0 0x1000", touch(Access::Read, Level::El0)),
            ("write-el0 0x1000", touch(Access::Write, Level::El0)),
            ("exec-el0 0x1000", touch(Access::Exec, Level::El0)),
            ("fill-code 0x1000", Command::FillCode(0x1000)),
            ("table 0x1000", Command::Table(0x1000)),
            ("table-use", Command::TableUse),
            (
                "hammer 0x1000 7",
                Command::Hammer {
                    around: 0x1000,
                    rounds: 7,
                },
            ),
            ("ram", Command::Ram),
            ("bad", Command::Bad),
            (
                "spin 0x1000 9",
                Command::Spin {
                    ipa: 0x1000,
                    rounds: 9,
                },
            ),
            ("sgi 3", Command::Sgi(3)),
            ("ipi 3", Command::Ipi(3)),
            ("timer 3", Command::Timer(3)),
            ("masked", Command::Masked),
            ("quiet 0x1000", Command::Quiet(0x1000)),
            ("hold 0x1000", Command::Hold(0x1000)),
            ("bench", Command::Bench),
            ("bench-touch 0x1000", Command::BenchTouch(0x1000)),
            ("bench-load 0x1000", Command::BenchLoad(0x1000)),
            (
                "forms 0x1000",
                Command::Forms {
                    at: 0x1000,
                    like: None,
                },
            ),
            (
                "forms 0x1000 0x2000",
                Command::Forms {
                    at: 0x1000,
                    like: Some(0x2000),
                },
            ),
            ("atomics 0x1000", Command::Atomics(0x1000)),
            ("straddle 0x1000", Command::Straddle(0x1000)),
            (
                "contend 0x1000 9",
                Command::Contend {
                    at: 0x1000,
                    rounds: 9,
                },
            ),
            (
                "contend-vms 0x1000 9",
                Command::ContendVms {
                    at: 0x1000,
                    rounds: 9,
                },
            ),
            ("literals 0x1000", Command::Literals(0x1000)),
            ("aarch32 0x1000", Command::Aarch32(0x1000)),
            (
                "scan 0x1000 3 4096",
                Command::Scan {
                    from: 0x1000,
                    loads: 3,
                    step: 4096,
                },
            ),
            ("vseas", Command::Vseas),
            ("hvc 0x84000000", Command::Hvc([0x8400_0000, 0, 0, 0])),
            ("hvc 1 2 3 4", Command::Hvc([1, 2, 3, 4])),
            ("attack memory", Command::Attack(Attack::Memory)),
            (
                "attack sweep 0 0x4000 16",
                Command::Attack(Attack::Sweep {
                    from: 0,
                    to: 0x4000,
                    step: 16,
                }),
            ),
            ("attack state", Command::Attack(Attack::State)),
            (
                "fuzz 7 100",
                Command::Fuzz {
                    seed: 7,
                    steps: 100,
                },
            ),
            ("  off  ", Command::Off),
        ] {
            assert_eq!(parse(line), Ok(Some(command)), "{line}");
        }
        assert_eq!(parse("   "), Ok(None));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_named() {
        for (line, error) in [
            ("frobnicate", ParseError::UnknownCommand),
            ("FILL", ParseError::UnknownCommand),
            ("read", ParseError::MissingArgument),
            ("storm", ParseError::MissingArgument),
            ("mend 1", ParseError::ExtraArgument),
            ("hammer 0x1000", ParseError::MissingArgument),
            ("hvc", ParseError::MissingArgument),
            ("attack", ParseError::MissingArgument),
            ("attack everything", ParseError::UnknownCommand),
            ("attack sweep 0", ParseError::MissingArgument),
            ("attack memory 1", ParseError::ExtraArgument),
            ("read 0x1000 2", ParseError::ExtraArgument),
            ("hvc 1 2 3 4 5", ParseError::ExtraArgument),
            ("fill 1", ParseError::ExtraArgument),
            ("read x", ParseError::BadNumber),
            ("read 0x", ParseError::BadNumber),
            ("read +1", ParseError::BadNumber),
            ("read -1", ParseError::BadNumber),
            ("read 0x+1", ParseError::BadNumber),
            ("read 1f", ParseError::BadNumber),
            ("read 0x10000000000000000", ParseError::BadNumber),
            ("hvc 1 z", ParseError::BadNumber),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
    }

    proptest! {
        #![proptest_config(crate::test_config())]

        #[test]
        fn numbers_are_read_as_they_are_printed(number: u64) {
            prop_assert_eq!(parse_number(&format!("{number}")), Ok(number));
            prop_assert_eq!(parse_number(&format!("{number:#x}")), Ok(number));
        }

        #[test]
        fn no_line_makes_the_parser_panic(line in ".{0,60}") {
            let _ = parse(&line);
        }
    }
}
