//! What the fuzzers drive, and what they start from.
//!
//! Each target takes any bytes at all and panics if a promise is broken: that nothing panics, that
//! what was read can be shown on one line without blanks in its values, that it can be written and
//! read again, that memory is touched only where it may be.
//!
//! [`TARGETS`] has them by name. `targets/NAME.rs` hands one to libFuzzer; the tests here run them
//! over all beginnings of all seeds without it.

pub mod access;
pub mod platform;
pub mod ras;

/// Where a fuzzer starts: the target's name, the seed's own, and its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// A target: anything at all may be given to it.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("access", access::access),
    ("cper", ras::cper),
    ("hest", ras::hest),
    ("ghes", ras::ghes),
    ("fdt", platform::fdt),
    ("bundle", platform::bundle),
    ("vms", platform::vms),
    ("acpi", platform::acpi),
    ("table_loader", platform::table_loader),
];

/// The seeds of all targets.
pub fn seeds() -> Vec<Seed> {
    [access::seeds(), ras::seeds(), platform::seeds()].concat()
}

/// An error must be fit to be the value of a `why=` key.
fn one_word(text: &str) {
    assert!(
        !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '='),
        "{text}"
    );
}

/// An error must be fit to end a line of events: `why=NAME`, then keys and values without blanks.
fn why_and_keys(text: &str) {
    assert!(text.starts_with("why="), "{text}");
    for pair in text.split(' ') {
        let (key, value) = pair.split_once('=').unwrap_or_default();
        assert!(!key.is_empty() && !value.is_empty(), "{text:?}");
        assert!(pair.chars().all(|c| c.is_ascii_graphic()), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_and_every_beginning_of_one_keeps_the_promises() {
        for (target, name, bytes) in seeds() {
            let known = TARGETS.iter().find(|(known, _)| *known == target);
            let (_, run) = known.unwrap_or_else(|| panic!("no target {target} for {name}"));
            for end in 0..=bytes.len() {
                run(&bytes[..end]);
            }
        }
    }

    #[test]
    fn every_target_has_a_seed_and_a_program() {
        for (target, _) in TARGETS {
            assert!(seeds().iter().any(|(of, ..)| *of == target), "{target}");
            let manifest = include_str!("../Cargo.toml");
            let program = format!("name = \"{target}\"\npath = \"targets/{target}.rs\"");
            assert!(manifest.contains(&program), "{target}");
        }
    }
}
