//! Cordon's own command line: words of `key=value`, parted by blanks.
//!
//! | word | |
//! |---|---|
//! | `bbm=auto`, `0`, `1`, `2` | the FEAT_BBM level to rely on, instead of what the CPUs report |
//! | `contiguous=on`, `off` | whether CPUs may cache neighbouring leaves of stage 2 as one |
//! | `lpa2=on`, `off` | whether FEAT_LPA2 is used where the CPU has it: blocks of 512 GiB, or of 64 GiB with the 16K granule |
//! | `loglevel=off`, `error`, `warn`, `info`, `debug`, `trace` | how much is printed |
//! | `console=lines`, `raw` | how what the VM in focus prints is shown: as lines behind its name, or as it is |
//! | `filter=RULE` | which memory errors are acted on ([`crate::ras::filter`]); may be repeated, the first that matches decides |
//! | `loop=log`, `stop`, `N`, `stop,N` | what is done about a guest that goes round in circles ([`crate::ras::loops`]) |
//! | `retired=PA` | the page at this address is a table of pages that are bad ([`crate::ras::retired`]) |
//! | `uncontained=machine`, `vm` | what an error costs that a guest met and hardware could not contain |
//! | `spares=SIZE` | take RAM from the VMs' pool for pages that stand in for bad ones |
//! | `tables=N` | table frames that each VM keeps for containment, 0 to 65536 |
//! | `corrected=move`, `tell`, `ignore`, `N`, `move,N` | what is done about a page with N corrected errors ([`crate::ras::soft_offline`]) |
//! | `psci=off`, `on` | whether PSCI is called where there is one |
//! | `reserved=SIZE`, `reserved=SIZE@PA` | take RAM from the VMs' pool and offer it as device memory; may be repeated |
//!
//! Numbers are decimal or `0x`, sizes may end in `K`, `M` or `G`. The line is written by a person
//! and often carries words for somebody else, so a word that is not understood is reported and
//! passed over; it never stops the boot.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use log::LevelFilter;

use crate::addr::{PAGE_SIZE, Pa, PaRange};
use crate::ras::loops;
use crate::ras::soft_offline::{Action, SoftOffline};

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which FEAT_BBM level to rely on.
    pub bbm: Bbm,
    /// Whether CPUs may cache neighbouring leaves of stage 2 as one.
    pub contiguous: bool,
    /// Whether FEAT_LPA2 is used where the CPU has it.
    pub lpa2: bool,
    /// The most detailed level that is printed.
    pub loglevel: LevelFilter,
    /// Whether the VM in focus has the terminal for itself.
    pub raw_console: bool,
    /// An error that hardware could not contain costs the VM that met it, and not the machine: the
    /// interconnect is trusted to keep it away from all others.
    pub isolates_vms: bool,
    /// RAM to be offered as device memory, in the order given.
    pub reserved: Vec<ReservedWord>,
    /// Rules of the filter, in the order given. What they name is known when there are VMs.
    pub filter: Vec<String>,
    /// What is done about guests that go round in circles.
    pub loops: loops::Policy,
    /// Tables of retired pages, page-aligned.
    pub retired: Vec<Pa>,
    /// Bytes of RAM for spare pages, whole pages.
    pub spares: Option<u64>,
    /// Table frames that each VM keeps for containment.
    pub tables: Option<usize>,
    /// What is done about corrected errors.
    pub corrected: SoftOffline,
    /// PSCI is called where there is one. On a machine whose PSCI is broken, UEFI may be better.
    pub uses_psci: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bbm: Bbm::Auto,
            contiguous: true,
            lpa2: true,
            loglevel: LevelFilter::Info,
            raw_console: false,
            isolates_vms: false,
            reserved: Vec::new(),
            filter: Vec::new(),
            loops: loops::Policy::DEFAULT,
            retired: Vec::new(),
            spares: None,
            tables: None,
            corrected: SoftOffline::DEFAULT,
            uses_psci: true,
        }
    }
}

/// Which FEAT_BBM level to rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bbm {
    /// What all CPUs report.
    Auto,
    /// This level, 0 to 2, even where the CPUs report a higher one.
    Level(u8),
}

/// A `reserved=` word: whole pages, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedWord {
    /// That many bytes, wherever they fit best.
    Anywhere {
        /// Size in bytes.
        size: u64,
    },
    /// Exactly this memory.
    At(PaRange),
}

/// A word that was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadWord<'a> {
    /// Nobody knows the key.
    Unknown(&'a str),
    /// The key is known, the value is none of its values.
    BadValue(&'a str),
}

impl fmt::Display for BadWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "why=unknown-word word={word}"),
            Self::BadValue(word) => write!(f, "why=bad-value word={word}"),
        }
    }
}

impl core::error::Error for BadWord<'_> {}

/// Reads a command line. Every word has its effect or is among the words returned.
pub fn parse(line: &str) -> (Options, Vec<BadWord<'_>>) {
    let mut options = Options::default();
    let mut bad = Vec::new();
    for word in line.split_ascii_whitespace() {
        if let Err(error) = options.apply(word) {
            bad.push(error);
        }
    }
    (options, bad)
}

impl Options {
    fn apply<'a>(&mut self, word: &'a str) -> Result<(), BadWord<'a>> {
        let (key, value) = word.split_once('=').ok_or(BadWord::Unknown(word))?;
        let bad = BadWord::BadValue(word);
        match key {
            "contiguous" => self.contiguous = on_off(value).ok_or(bad)?,
            "bbm" => self.bbm = bbm(value).ok_or(bad)?,
            "lpa2" => self.lpa2 = on_off(value).ok_or(bad)?,
            "loglevel" => self.loglevel = value.parse().map_err(|_| bad)?,
            "filter" => self.filter.push(value.into()),
            "loop" => self.loops = self.loops.parse(value).ok_or(bad)?,
            "retired" => self.retired.push(page(value).ok_or(bad)?),
            // With other values it is somebody else's word, and a well-known one.
            "console" => self.raw_console = console(value).ok_or(BadWord::Unknown(word))?,
            "uncontained" => self.isolates_vms = uncontained(value).ok_or(bad)?,
            "spares" => self.spares = Some(spares(value).ok_or(bad)?),
            "tables" => self.tables = Some(tables(value).ok_or(bad)?),
            "corrected" => self.corrected = corrected(value).ok_or(bad)?,
            "psci" => self.uses_psci = on_off(value).ok_or(bad)?,
            "reserved" => self.reserved.push(reserved(value).ok_or(bad)?),
            _ => return Err(BadWord::Unknown(word)),
        }
        Ok(())
    }
}

fn bbm(value: &str) -> Option<Bbm> {
    Some(match value {
        "auto" => Bbm::Auto,
        "0" => Bbm::Level(0),
        "1" => Bbm::Level(1),
        "2" => Bbm::Level(2),
        _ => return None,
    })
}

fn page(value: &str) -> Option<Pa> {
    number(value)
        .map(Pa::new)
        .filter(|pa| pa.is_aligned(PAGE_SIZE))
}

fn console(value: &str) -> Option<bool> {
    match value {
        "raw" => Some(true),
        "lines" => Some(false),
        _ => None,
    }
}

fn on_off(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// Whether it is the VM that pays.
fn uncontained(value: &str) -> Option<bool> {
    match value {
        "vm" => Some(true),
        "machine" => Some(false),
        _ => None,
    }
}

/// Most bytes of spare pages: 1 GiB.
const MAX_SPARES: u64 = 1 << 30;
/// Most table frames that one VM keeps.
const MAX_TABLES: u64 = 1 << 16;

fn spares(value: &str) -> Option<u64> {
    number(value).filter(|size| (1..=MAX_SPARES).contains(size) && size.is_multiple_of(PAGE_SIZE))
}

fn tables(value: &str) -> Option<usize> {
    let count = number(value).filter(|count| *count <= MAX_TABLES)?;
    usize::try_from(count).ok()
}

fn corrected(value: &str) -> Option<SoftOffline> {
    let mut policy = SoftOffline::DEFAULT;
    for part in value.split(',') {
        match Action::from_name(part) {
            Some(action) => policy.action = action,
            None => policy.threshold = u32::try_from(number(part)?).ok().filter(|it| *it > 0)?,
        }
    }
    Some(policy)
}

fn reserved(value: &str) -> Option<ReservedWord> {
    let (size, pa) = value
        .split_once('@')
        .map_or((value, None), |(size, pa)| (size, Some(pa)));
    let size = number(size).filter(|size| *size > 0 && size.is_multiple_of(PAGE_SIZE))?;
    let Some(pa) = pa else {
        return Some(ReservedWord::Anywhere { size });
    };
    let pa = Pa::new(number(pa)?);
    let range = PaRange::new(pa, size).filter(|_| pa.is_aligned(PAGE_SIZE))?;
    Some(ReservedWord::At(range))
}

/// A decimal or `0x` number with an optional `K`, `M` or `G`.
pub(crate) fn number(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 1 << 10),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 1 << 20),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 1 << 30),
        _ => (text, 1),
    };
    let (digits, radix) = digits
        .strip_prefix("0x")
        .map_or((digits, 10), |hex| (hex, 16));
    // `from_str_radix` would take a sign.
    if !digits.starts_with(|digit: char| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn who_pays_for_an_uncontained_error_can_be_said() {
        assert!(!parse("").0.isolates_vms);
        assert!(parse("uncontained=vm").0.isolates_vms);
        assert!(!parse("uncontained=vm uncontained=machine").0.isolates_vms);
        let (options, bad) = parse("uncontained=nobody");
        assert_eq!(bad, [BadWord::BadValue("uncontained=nobody")]);
        assert!(!options.isolates_vms);
    }

    #[test]
    fn an_empty_line_gives_the_defaults() {
        assert_eq!(parse(" \t "), (Options::default(), vec![]));
    }

    #[test]
    fn every_word_has_its_effect() {
        let (options, bad) =
            parse("bbm=1 loglevel=debug reserved=2G@0x100000000 reserved=64M reserved=4096@8k");
        assert_eq!(bad, []);
        assert_eq!(options.bbm, Bbm::Level(1));
        assert_eq!(options.loglevel, LevelFilter::Debug);
        let at = |pa, size| ReservedWord::At(PaRange::new(Pa::new(pa), size).unwrap());
        assert_eq!(
            options.reserved,
            [
                at(4 << 30, 2 << 30),
                ReservedWord::Anywhere { size: 64 << 20 },
                at(8192, 4096)
            ]
        );
        let (options, bad) = parse("filter=pass:via=sea loop=stop,9 filter=drop: retired=0x5000");
        assert_eq!(bad, []);
        assert_eq!(options.filter, ["pass:via=sea", "drop:"]);
        let loops = options.loops;
        assert_eq!((loops.action, loops.limit), (loops::Action::Stop, 9));
        assert_eq!(options.retired, [Pa::new(0x5000)]);
        assert!(parse("console=raw").0.raw_console);
        assert!(!parse("console=raw console=lines").0.raw_console);
        let (options, bad) = parse("spares=2M tables=3 corrected=tell,5");
        assert_eq!(bad, []);
        assert_eq!((options.spares, options.tables), (Some(2 << 20), Some(3)));
        let (action, threshold) = (Action::Tell, 5);
        assert_eq!(options.corrected, SoftOffline { action, threshold });
        assert!(!parse("psci=off").0.uses_psci);
        assert!(parse("psci=off psci=on").0.uses_psci);
        assert_eq!(parse("bbm=0").0.bbm, Bbm::Level(0));
        assert_eq!(parse("bbm=2 bbm=auto").0.bbm, Bbm::Auto);
        assert!(parse("").0.contiguous && parse("contiguous=on").0.contiguous);
        assert!(!parse("contiguous=off").0.contiguous);
        assert!(parse("").0.lpa2 && !parse("lpa2=off").0.lpa2);
    }

    #[test]
    fn a_word_that_is_not_understood_is_reported_and_changes_nothing() {
        for word in ["quiet", "console=ttyS0", "=", "bbm"] {
            assert_eq!(
                parse(word),
                (Options::default(), vec![BadWord::Unknown(word)])
            );
        }
        for word in [
            "bbm=3",
            "contiguous=yes",
            "lpa2=52",
            "bbm=",
            "loglevel=loud",
            "loop=kill",
            "retired=0x5008",
            "reserved=",
            "reserved=0",
            "spares=0",
            "spares=1G1",
            "spares=4097",
            "spares=2G",
            "tables=65537",
            "tables=-1",
            "corrected=",
            "corrected=0",
            "corrected=often",
            "psci=no",
            "reserved=4097",
            "reserved=+4096",
            "reserved=4096@1",
            "reserved=4096@",
            "reserved=17179869184G",
            "reserved=0x2000@0xfffffffffffff000",
            "reserved=2\u{e9}",
        ] {
            assert_eq!(
                parse(word),
                (Options::default(), vec![BadWord::BadValue(word)]),
                "{word}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "((bbm|loglevel|console|reserved|loop|retired|x)?=?[0-9a-zA-Z@=+é]{0,12} ?){0,8}") {
            let (options, bad) = parse(&line);
            let words = line.split_ascii_whitespace().count();
            prop_assert!(options.reserved.len() + options.retired.len() + bad.len() <= words);
        }
    }
}
