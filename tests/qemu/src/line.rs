//! Lines of text that Cordon, its guests and the firmware write, and patterns that select them.
//!
//! Both have the same shape (docs/protocols.md, "Lines of text"), so that a scenario's author
//! copies a line from a console and deletes what does not matter:
//!
//! ```text
//! line     probe| guest: event=sweep pages=524288 lost=1 wrong=0
//! pattern  guest: event=sweep lost=1
//! pattern  guest: wrong!=0
//! pattern  ras: event=vsea far~=0x1000
//! pattern  panicked at
//! ```
//!
//! A pattern's terms may stand in any order and the line may hold more. Besides `=` there are
//! `!=`, `>=`, `<=`, and `~=` for an address in the same 4 KiB page; `=*` takes any value. A pattern without a known
//! prefix is plain text, to be found anywhere. `${...}` is replaced before a pattern is parsed
//! (see [`crate::expr`]), so nothing here knows of variables.

use std::fmt;

/// Who wrote a line. One name a prefix of docs/protocols.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `cordon: `, the life of the machine and of VMs.
    Cordon,
    /// `ras: `, everything about memory errors.
    Ras,
    /// `NAME| guest: `, a report of the probe guest in the VM called NAME.
    Guest(String),
    /// `NAME| `, anything else on the console of the VM called NAME.
    Vm(String),
    /// `! `, the firmware, unasked.
    Firmware,
    /// `ok ` or `error `: the firmware's answer to a command.
    Answer {
        /// Whether it was `ok`.
        ok: bool,
    },
    /// A line of none of these shapes, such as a bare message of an early boot.
    Other,
}

/// One line of a console, taken apart.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who wrote it.
    pub source: Source,
    /// The whole line without its end and without control characters.
    pub text: String,
    words: Vec<String>,
    keys: Vec<(String, String)>,
}

impl Line {
    /// Takes a line of UART 0 apart.
    pub fn console(raw: &str) -> Self {
        let text = clean(raw);
        let (source, body) = console_source(&text);
        Self::new(source, body.to_owned(), text)
    }

    /// Takes a line of the secure UART apart.
    pub fn firmware(raw: &str) -> Self {
        let text = clean(raw);
        let (source, body) = firmware_source(&text);
        Self::new(source, body.to_owned(), text)
    }

    fn new(source: Source, body: String, text: String) -> Self {
        let mut words = Vec::new();
        let mut keys = Vec::new();
        for token in body.split_whitespace() {
            match token.split_once('=') {
                Some((key, value)) if is_key(key) => keys.push((key.into(), value.into())),
                _ => words.push(token.into()),
            }
        }
        Self {
            source,
            text,
            words,
            keys,
        }
    }

    /// The value of `key`, where the line has it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.keys
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// The value of `key` as a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(parse_number)
    }

    /// The line's `event=`.
    pub fn event(&self) -> Option<&str> {
        self.get("event")
    }

    /// All keys with their values, in the line's order.
    pub fn keys(&self) -> &[(String, String)] {
        &self.keys
    }

    /// Whether this is the `ras:` event called `name`.
    pub fn is_ras(&self, name: &str) -> bool {
        self.source == Source::Ras && self.event() == Some(name)
    }

    /// Whether this is the `cordon:` event called `name`.
    pub fn is_cordon(&self, name: &str) -> bool {
        self.source == Source::Cordon && self.event() == Some(name)
    }

    /// Whether this is the probe guest's report called `name`.
    pub fn is_guest(&self, name: &str) -> bool {
        matches!(self.source, Source::Guest(_)) && self.event() == Some(name)
    }
}

/// Reads a number the way every part of Cordon writes one: decimal, or `0x` and hexadecimal.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// What Cordon wipes its monitor's prompt with, when somebody else prints.
const WIPE: &str = "\r\x1b[K";

/// Drops what a terminal would act on and a reader would not see.
fn clean(raw: &str) -> String {
    let left = raw.rsplit(WIPE).next().unwrap_or(raw);
    left.chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect::<String>()
        .trim_end()
        .to_owned()
}

fn console_source(text: &str) -> (Source, &str) {
    if let Some(body) = text.strip_prefix("cordon: ") {
        return (Source::Cordon, body);
    }
    if let Some(body) = text.strip_prefix("ras: ") {
        return (Source::Ras, body);
    }
    if let Some((name, body)) = text.split_once("| ")
        && is_vm_name(name)
    {
        // The guest's prompt and the echo of a half-typed command may stand before a report that
        // another of its vCPUs makes.
        return match body.split_once("guest: event=") {
            Some((before, _)) => {
                let report = body
                    .get(before.len() + "guest: ".len()..)
                    .unwrap_or_default();
                (Source::Guest(name.to_owned()), report)
            }
            None => (Source::Vm(name.to_owned()), body),
        };
    }
    (Source::Other, text)
}

fn firmware_source(text: &str) -> (Source, &str) {
    if let Some(body) = text.strip_prefix("! ") {
        return (Source::Firmware, body);
    }
    match text.split_once(' ').unwrap_or((text, "")) {
        ("ok", body) => (Source::Answer { ok: true }, body),
        ("error", body) => (Source::Answer { ok: false }, body),
        _ => (Source::Other, text),
    }
}

/// The names that docs/protocols.md allows a VM.
pub(crate) fn is_vm_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_key(key: &str) -> bool {
    !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
    /// In the same 4 KiB page: the machine knows the byte that was touched, a page is what is lost.
    SamePage,
}

#[derive(Clone, Debug)]
struct Term {
    key: String,
    relation: Relation,
    value: String,
}

impl Term {
    fn parse(token: &str) -> Option<Self> {
        let (left, value) = token.split_once('=')?;
        let (key, relation) = match left.as_bytes().last()? {
            b'!' => (&left[..left.len() - 1], Relation::NotEqual),
            b'>' => (&left[..left.len() - 1], Relation::AtLeast),
            b'<' => (&left[..left.len() - 1], Relation::AtMost),
            b'~' => (&left[..left.len() - 1], Relation::SamePage),
            _ => (left, Relation::Equal),
        };
        is_key(key).then(|| Self {
            key: key.into(),
            relation,
            value: value.into(),
        })
    }

    /// A key that the line lacks fails every relation, `!=` too: silence is not a different value.
    fn matches(&self, line: &Line) -> bool {
        let Some(value) = line.get(&self.key) else {
            return false;
        };
        if self.value == "*" {
            return self.relation == Relation::Equal;
        }
        let numbers = parse_number(value).zip(parse_number(&self.value));
        match (self.relation, numbers) {
            (Relation::Equal, Some((is, want))) => is == want,
            (Relation::Equal, None) => value == self.value,
            (Relation::NotEqual, Some((is, want))) => is != want,
            (Relation::NotEqual, None) => value != self.value,
            (Relation::AtLeast, Some((is, want))) => is >= want,
            (Relation::AtMost, Some((is, want))) => is <= want,
            (Relation::SamePage, Some((is, want))) => is >> 12 == want >> 12,
            (Relation::AtLeast | Relation::AtMost | Relation::SamePage, None) => false,
        }
    }
}

#[derive(Clone, Debug)]
enum Writer {
    Exactly(Source),
    AnyGuest,
}

/// What a scenario looks for in a console. See the module's text for the language.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    writer: Option<Writer>,
    words: Vec<String>,
    terms: Vec<Term>,
}

impl Pattern {
    /// Parses a pattern whose `${...}` have been replaced.
    pub fn parse(text: &str) -> Self {
        let (writer, body) = Self::writer(text);
        let mut pattern = Self {
            text: text.to_owned(),
            writer,
            words: Vec::new(),
            terms: Vec::new(),
        };
        if pattern.writer.is_some() {
            for token in body.split_whitespace() {
                match Term::parse(token) {
                    Some(term) => pattern.terms.push(term),
                    None => pattern.words.push(token.to_owned()),
                }
            }
        }
        pattern
    }

    fn writer(text: &str) -> (Option<Writer>, &str) {
        if let Some(body) = text.strip_prefix("guest: ") {
            return (Some(Writer::AnyGuest), body);
        }
        if let Some((name, body)) = text.split_once("| ")
            && is_vm_name(name)
        {
            return match body.strip_prefix("guest: ") {
                Some(report) => (Some(Writer::Exactly(Source::Guest(name.into()))), report),
                None => (Some(Writer::Exactly(Source::Vm(name.into()))), body),
            };
        }
        let (source, body) = match console_source(text) {
            (Source::Other, _) => firmware_source(text),
            found => found,
        };
        match source {
            Source::Other => (None, text),
            source => (Some(Writer::Exactly(source)), body),
        }
    }

    /// Whether `line` is one that this pattern means.
    pub fn matches(&self, line: &Line) -> bool {
        match &self.writer {
            None => line.text.contains(&self.text),
            Some(writer) => {
                Self::is_writer(writer, line)
                    && self.words.iter().all(|word| line.words.contains(word))
                    && self.terms.iter().all(|term| term.matches(line))
            }
        }
    }

    /// Whether `line` is the same event as this pattern means, whatever its other keys say. Such a
    /// line is what the reader of a failure wants to see.
    pub fn nearly_matches(&self, line: &Line) -> bool {
        let Some(writer) = &self.writer else {
            return false;
        };
        let mut events = self
            .terms
            .iter()
            .filter(|term| term.key == "event")
            .peekable();
        Self::is_writer(writer, line)
            && (!self.words.is_empty() || events.peek().is_some())
            && self.words.iter().all(|word| line.words.contains(word))
            && events.all(|term| term.matches(line))
    }

    fn is_writer(writer: &Writer, line: &Line) -> bool {
        match writer {
            Writer::Exactly(source) => *source == line.source,
            Writer::AnyGuest => matches!(line.source, Source::Guest(_)),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(pattern: &str, line: &str) -> bool {
        let pattern = Pattern::parse(pattern);
        pattern.matches(&Line::console(line)) || pattern.matches(&Line::firmware(line))
    }

    #[test]
    fn a_line_is_known_by_its_prefix() {
        let source = |text| Line::console(text).source;
        assert_eq!(source("cordon: event=boot"), Source::Cordon);
        assert_eq!(source("ras: event=fatal"), Source::Ras);
        assert_eq!(
            source("probe| guest: event=ready"),
            Source::Guest("probe".into())
        );
        assert_eq!(source("probe| hello"), Source::Vm("probe".into()));
        assert_eq!(source("UPPER| hello"), Source::Other);
        assert_eq!(Line::firmware("! ready cpus=2").source, Source::Firmware);
        assert_eq!(
            Line::firmware("ok poisoned pages=1").source,
            Source::Answer { ok: true }
        );
        assert_eq!(
            Line::firmware("error bad-number").source,
            Source::Answer { ok: false }
        );
    }

    #[test]
    fn a_report_after_the_guests_prompt_is_a_report() {
        let line = Line::console("probe| probe> sto guest: event=sea vcpu=1 far=0x10");
        assert_eq!(line.source, Source::Guest("probe".into()));
        assert_eq!(line.number("far"), Some(16));
        assert!(line.is_guest("sea"));
    }

    #[test]
    fn escape_sequences_and_line_ends_are_no_part_of_a_line() {
        assert_eq!(
            Line::console("cordon: event=boot cpus=2\r").get("cpus"),
            Some("2")
        );
        assert!(Line::console("\u{7}cordon: event=boot").is_cordon("boot"));
    }

    #[test]
    fn equal_means_equal_as_a_number_where_both_are_numbers() {
        assert!(found("ras: pa=4096", "ras: event=contained pa=0x1000"));
        assert!(found("ras: block=1g", "ras: event=contained block=1g"));
        assert!(!found("ras: block=1g", "ras: event=contained block=2m"));
        assert!(!found("ras: pa=4097", "ras: event=contained pa=0x1000"));
    }

    #[test]
    fn a_key_that_is_missing_matches_nothing() {
        for pattern in [
            "ras: pa=1",
            "ras: pa!=1",
            "ras: pa>=0",
            "ras: pa<=9",
            "ras: pa=*",
        ] {
            assert!(!found(pattern, "ras: event=contained"), "{pattern}");
        }
        assert!(found("ras: pa=*", "ras: event=contained pa=0x1"));
    }

    #[test]
    fn relations_compare_numbers() {
        assert!(found(
            "guest: wrong!=0",
            "probe| guest: event=sweep wrong=3"
        ));
        assert!(!found(
            "guest: wrong!=0",
            "probe| guest: event=sweep wrong=0"
        ));
        assert!(found("guest: lines>=3", "probe| guest: event=stop lines=3"));
        assert!(!found(
            "guest: lines>=4",
            "probe| guest: event=stop lines=3"
        ));
        assert!(found("guest: lines<=3", "probe| guest: event=stop lines=3"));
        assert!(!found(
            "guest: lines>=4",
            "probe| guest: event=stop lines=many"
        ));
    }

    #[test]
    fn an_address_may_be_known_by_its_page() {
        assert!(found("ras: pa~=0x1000", "ras: event=contained pa=0x1fff"));
        assert!(!found("ras: pa~=0x1000", "ras: event=contained pa=0x2000"));
        assert!(!found("ras: pa~=0x1000", "ras: event=contained pa=none"));
    }

    #[test]
    fn firmware_lines_are_known_by_their_words() {
        assert!(found("! consumed pa=16", "! consumed pa=0x10 cpu=0"));
        assert!(!found("! consumed", "! ready cpus=2"));
        assert!(found("ok poisoned pages=1", "ok poisoned pages=1"));
        assert!(!found("ok", "error no-table"));
        assert!(found("error no-table", "error no-table"));
    }

    #[test]
    fn a_pattern_names_its_guest_or_means_any() {
        assert!(found(
            "probe| guest: event=ready",
            "probe| guest: event=ready vcpus=2"
        ));
        assert!(!found(
            "other| guest: event=ready",
            "probe| guest: event=ready vcpus=2"
        ));
        assert!(found(
            "guest: event=ready",
            "probe| guest: event=ready vcpus=2"
        ));
    }

    #[test]
    fn a_prompt_that_was_wiped_is_not_there() {
        let line = Line::console("cordon> vm\r\x1b[Kras: event=detected\r");
        assert!(line.is_ras("detected"));
        assert_eq!(line.text, "ras: event=detected");
    }

    #[test]
    fn text_without_a_prefix_is_found_anywhere() {
        assert!(found("panicked at", "thread panicked at src/main.rs:1"));
        assert!(!found("panicked at", "cordon: event=boot"));
    }

    #[test]
    fn a_near_match_is_the_same_event_with_other_values() {
        let near = |p: &str, l: &str| Pattern::parse(p).nearly_matches(&Line::console(l));
        assert!(near(
            "ras: event=contained tables=2",
            "ras: event=contained tables=3"
        ));
        assert!(!near(
            "ras: event=contained tables=2",
            "ras: event=vsea tables=3"
        ));
        assert!(!near("panicked", "panicked"));
    }

    proptest! {
        #[test]
        fn no_line_and_no_pattern_makes_the_parser_panic(a in ".{0,60}", b in ".{0,60}") {
            let pattern = Pattern::parse(&a);
            let (console, firmware) = (Line::console(&b), Line::firmware(&b));
            let _ = pattern.matches(&console) | pattern.nearly_matches(&firmware);
        }

        #[test]
        fn what_was_written_is_what_is_read(value: u64) {
            let line = Line::console(&format!("ras: event=x dec={value} hex={value:#x}"));
            prop_assert_eq!(line.number("dec"), Some(value));
            prop_assert_eq!(line.number("hex"), Some(value));
        }
    }
}
