//! What rules match, in what order, and what is no rule.

use super::*;
use crate::addr::Ipa;
use crate::devmem::{Kind, Mapping};
use crate::ras::event::Consumer;
use crate::stage2::Attrs;
use proptest::prelude::*;
use std::vec::Vec;

const DEVICE: u64 = 0x80_0000_0000;
const OTHER: u64 = 0x90_0000_0000;
const M2: u64 = 2 << 20;

fn vm(number: u8) -> Vmid {
    Vmid::new(number).unwrap()
}

fn by_name(name: &str) -> Option<Vmid> {
    match name {
        "one" => Vmid::new(1),
        "two" => Vmid::new(2),
        _ => None,
    }
}

fn rule(text: &str) -> Rule {
    Rule::parse(text, by_name).unwrap()
}

/// VM 1 maps region 0, VM 2 region 1.
fn devmem() -> DevMem<'static> {
    let mut devmem = DevMem::new();
    for (number, start) in [(1, DEVICE), (2, OTHER)] {
        let range = PaRange::new(Pa::new(start), M2).unwrap();
        let id = devmem.register(Kind::Ram, range, "r", None).unwrap();
        let mapping = Mapping {
            vm: vm(number),
            ipa: Ipa::new(M2),
            range,
            attrs: Attrs::RAM,
        };
        devmem.add_mapping(id, mapping).unwrap();
    }
    devmem
}

fn event(origin: Origin, severity: Severity, consumer: Option<u8>) -> ErrorEvent {
    ErrorEvent {
        sequence: 1,
        range: None,
        severity,
        origin,
        cpu: 0,
        consumer: consumer.map(|number| Consumer::Vcpu {
            vm: vm(number),
            vcpu: 0,
            el: 0,
            attempt: None,
        }),
    }
}

fn drops(rules: &[&str], event: &ErrorEvent, pa: u64) -> Option<usize> {
    let mut filter = Filter::new();
    for text in rules {
        filter.add(rule(text)).unwrap();
    }
    filter.drops(event, Pa::new(pa), &devmem())
}

#[test]
fn each_condition_is_met_by_its_own_errors_only() {
    let nobody = event(Origin::Sea, Severity::Recoverable, None);
    for (text, hit, miss) in [
        ("vm=one", DEVICE, OTHER),
        ("region=1", OTHER, DEVICE),
        ("pa=0x8000001000", DEVICE + 0x1fff, DEVICE + 0x2000),
        ("pa=0x8000001000+8K", DEVICE + 0x2fff, DEVICE + 0x3000),
        // A page counts as soon as one byte of it does.
        ("pa=0x8000001ff0+32", DEVICE + 0x2800, DEVICE + 0x3000),
    ] {
        assert_eq!(drops(&[text], &nobody, hit), Some(0), "{text}");
        assert_eq!(drops(&[text], &nobody, miss), None, "{text}");
    }
    for (text, hit, miss) in [
        ("via=injected", Origin::Injected, Origin::Sea),
        ("via=ghes", Origin::Ghes(7), Origin::Imported),
    ] {
        let of = |origin| event(origin, Severity::Recoverable, None);
        assert_eq!(drops(&[text], &of(hit), DEVICE), Some(0), "{text}");
        assert_eq!(drops(&[text], &of(miss), DEVICE), None, "{text}");
    }
    let fatal = event(Origin::Sea, Severity::Fatal, None);
    assert_eq!(drops(&["severity=fatal"], &fatal, DEVICE), Some(0));
    assert_eq!(drops(&["severity=fatal"], &nobody, DEVICE), None);
}

#[test]
fn a_vm_is_meant_by_what_it_consumes_as_well_as_by_what_it_maps() {
    let consumed = event(Origin::Sea, Severity::Recoverable, Some(2));
    assert_eq!(drops(&["vm=two"], &consumed, 0x1000), Some(0));
    assert_eq!(drops(&["vm=one"], &consumed, 0x1000), None);
}

#[test]
fn all_conditions_of_a_rule_must_hold_and_the_first_rule_that_matches_decides() {
    let injected = event(Origin::Injected, Severity::Recoverable, None);
    let hardware = event(Origin::Ghes(0), Severity::Recoverable, None);
    let both = ["vm=one,via=injected"];
    assert_eq!(drops(&both, &injected, DEVICE), Some(0));
    assert_eq!(drops(&both, &hardware, DEVICE), None);
    assert_eq!(drops(&both, &injected, OTHER), None);
    let only = ["pass:via=injected", "drop:"];
    assert_eq!(drops(&only, &injected, DEVICE), None);
    assert_eq!(drops(&only, &hardware, DEVICE), Some(1));
    assert_eq!(drops(&[], &hardware, DEVICE), None);
}

#[test]
fn what_is_no_rule_is_named() {
    let why = |text| Rule::parse(text, by_name).unwrap_err();
    for text in ["colour=red", "vm", "x:vm=one", "all"] {
        assert_eq!(why(text), FilterError::UnknownKey, "{text}");
    }
    for text in [
        "region=65536",
        "region=-1",
        "pa=",
        "pa=x",
        "pa=1+0",
        "pa=0xffffffffffffffff+2",
        "via=Sea",
        "severity=bad",
    ] {
        assert_eq!(why(text), FilterError::BadValue, "{text}");
    }
    assert_eq!(why("vm=three"), FilterError::NoSuchVm);
    assert_eq!(why("pa=1,pa=2"), FilterError::Twice);
}

#[test]
fn a_full_filter_says_so_and_keeps_its_rules() {
    let mut filter = Filter::new();
    for _ in 0..MAX_RULES {
        filter.add(rule("pass:vm=one")).unwrap();
    }
    assert_eq!(filter.add(rule("drop:")), Err(FilterError::Full));
    assert_eq!(filter.rules().count(), MAX_RULES);
    filter.clear();
    assert_eq!(filter.rules().count(), 0);
}

#[test]
fn a_region_that_goes_takes_its_rules_and_the_order_of_the_others_stays() {
    let mut filter = Filter::new();
    for text in ["region=1", "pass:vm=one", "region=1,via=sea", "drop:"] {
        filter.add(rule(text)).unwrap();
    }
    let devmem = devmem();
    let gone = devmem.find(Pa::new(OTHER)).unwrap().id();
    assert_eq!(filter.forget_region(gone), 2);
    let left: Vec<Rule> = filter.rules().copied().collect();
    assert_eq!(left, [rule("pass:vm=one"), rule("drop:")]);
    assert_eq!(filter.add(rule("vm=two")), Ok(2));
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "slow, and there is nothing unsafe in it")]
    fn any_text_is_read_or_refused(text in "(drop:|pass:)?((vm|region|pa|via|severity|x)?=?[a-z0-9+,]{0,8}){0,4}") {
        let _ = Rule::parse(&text, by_name);
    }
}
