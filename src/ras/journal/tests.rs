//! The journal says what was noted, in order, and in the words that would have been used at once.

use std::string::{String, ToString};
use std::vec::Vec;

use super::*;
use crate::ras::cper::{Severity, StatusBlock};
use crate::ras::event::Origin;
use crate::ras::pipeline::tests::{page, record};
use crate::stage2::{Damage, HoleOutcome, Rebuilt, Suspect};
use proptest::prelude::*;

/// VMs that have names and nothing else.
struct Named;

impl AddressSpaces for Named {
    fn lost(&self, _: Vmid, _: Ipa, _: &ErrorEvent) {}

    fn make_hole(&self, _: Vmid, _: Ipa, _: Suspect<'_>) -> Option<Result<HoleOutcome, Damage>> {
        None
    }

    fn drop_block(&self, _: Vmid, _: Ipa, _: Suspect<'_>) -> Option<Result<HoleOutcome, Damage>> {
        None
    }

    fn rebuild(&self, _: Pa) -> Option<(Vmid, Rebuilt)> {
        None
    }

    fn name(&self, _: Vmid) -> &str {
        "probe"
    }

    fn counter(&self) -> u64 {
        0
    }

    fn give_up(&self, _: Vmid, _: &dyn fmt::Display) -> bool {
        false
    }
}

fn vm() -> Vmid {
    Vmid::new(1).unwrap()
}

fn deferring() -> Journal {
    let journal = Journal::new();
    journal.defer();
    journal
}

fn known(seq: u64) -> Note {
    let pa = Pa::new(0x4000);
    Note::Known { seq, pa }
}

fn said(journal: &Journal) -> Vec<String> {
    let mut lines = Vec::new();
    journal.drain(&Named, |line| lines.push(line.to_string()));
    lines
}

#[test]
fn nothing_is_taken_until_somebody_sees_to_its_being_said() {
    let journal = Journal::new();
    assert!(!journal.note(|| known(1), 5, &[]));
    assert!(!journal.is_waiting());
    journal.defer();
    assert!(journal.note(|| known(1), 6, &[]));
    assert!(journal.is_waiting());
    assert_eq!(said(&journal), ["event=known seq=1 pa=0x4000 at=6"]);
    assert!(!journal.is_waiting());
}

#[test]
fn a_full_journal_refuses_and_keeps_what_it_has() {
    let journal = deferring();
    for seq in 0..CAPACITY as u64 {
        assert!(journal.note(|| known(seq), seq, &[]));
    }
    assert!(!journal.note(|| known(999), 0, &[]));
    let lines = said(&journal);
    assert_eq!(lines.len(), CAPACITY);
    assert_eq!(lines[CAPACITY - 1], "event=known seq=63 pa=0x4000 at=63");
    assert!(journal.note(|| known(64), 0, &[]));
}

#[test]
fn who_adds_without_end_does_not_keep_the_one_who_says() {
    let journal = deferring();
    journal.note(|| known(0), 0, &[]);
    let mut count = 0;
    journal.drain(&Named, |_| {
        count += 1;
        journal.note(|| known(count), count, &[]);
    });
    assert_eq!(count, CAPACITY as u64);
}

/// The lines that scenarios and people know, word for word.
#[test]
fn lines_read_as_in_the_protocol() {
    let journal = deferring();
    let (seq, pa, ipa) = (7, Pa::new(0x5000), Ipa::new(0x10_0000_5000));
    let contained = |block| Note::Contained {
        seq,
        pa,
        vm: vm(),
        ipa,
        block,
        hole: 4096,
        tables: 2,
        reserve: 510,
    };
    let aborted = |ipa, touched| Note::Aborted {
        touched,
        seq,
        vm: vm(),
        vcpu: 1,
        ipa,
        far: 0xf000,
        esr: 0x9600_0010,
        el: 1,
        access: Attempt::Walk,
    };
    let reported = |seq, source, severity| Note::Reported {
        seq,
        vm: vm(),
        source,
        severity,
        ipa,
    };
    for note in [
        contained(1 << 30),
        contained(2 << 20),
        contained(4096),
        contained(512 << 30),
        Note::Resolved {
            seq,
            pa,
            ipa,
            vm: vm(),
            by: "cper",
        },
        aborted(Some(ipa), None),
        aborted(None, None),
        Note::SError {
            seq,
            vm: vm(),
            vcpu: 1,
            vsesr: 0x30,
        },
        Note::Touched {
            seq,
            vm: vm(),
            vcpu: 1,
            ipa,
            count: 3,
        },
        // A touch and what the guest was told of it are one note.
        aborted(Some(Ipa::new(ipa.get() + 8)), Some(4)),
        reported(Some(seq), 0, None),
        reported(None, 1, Some(Severity::Recoverable)),
    ] {
        assert!(journal.note(|| note, 77, &[]));
    }
    let contained = |block: &str| {
        std::format!(
            "event=contained seq=7 pa=0x5000 vm=probe ipa=0x1000005000 block={block} hole=4k tables=2 reserve=510 at=77"
        )
    };
    let blocks: Vec<String> = ["1g", "2m", "4k", "512g"].map(contained).into();
    let lines = said(&journal);
    assert_eq!(lines[..4], blocks);
    assert_eq!(
        lines[4..],
        [
            "event=resolved seq=7 pa=0x5000 ipa=0x1000005000 vm=probe by=cper at=77",
            "event=vsea seq=7 vm=probe vcpu=1 ipa=0x1000005000 far=0xf000 esr=0x96000010 el=1 access=walk at=77",
            "event=vsea seq=7 vm=probe vcpu=1 far=0xf000 esr=0x96000010 el=1 access=walk at=77",
            "event=vserror seq=7 vm=probe vcpu=1 vsesr=0x30 at=77",
            "event=touched seq=7 vm=probe vcpu=1 ipa=0x1000005000 count=3 at=77",
            "event=touched seq=7 vm=probe vcpu=1 ipa=0x1000005008 count=4 at=77",
            "event=vsea seq=7 vm=probe vcpu=1 ipa=0x1000005000 far=0xf000 esr=0x96000010 el=1 access=walk at=77",
            "event=reported seq=7 vm=probe source=0 ipa=0x1000005000 at=77",
            "event=reported vm=probe source=1 severity=recoverable ipa=0x1000005000 at=77",
        ]
    );
}

#[test]
fn a_section_is_said_as_it_was_when_it_was_noted() {
    let journal = deferring();
    let event = ErrorEvent {
        sequence: 3,
        range: None,
        severity: Severity::Recoverable,
        origin: Origin::Sea,
        cpu: 0,
        consumer: Some(Consumer::Vcpu {
            vm: vm(),
            vcpu: 0,
            el: 1,
            attempt: Some(Attempt::Walk),
        }),
    };
    let mut block = record(Severity::Recoverable, &[page(Pa::new(0x1234_5000))]);
    let section = StatusBlock::parse(&block).unwrap().sections().next();
    let section = section.unwrap().unwrap();
    let at_once = section.line().to_string();
    assert!(journal.note(|| Note::Detected(event), 9, section.bytes()));
    // The block is firmware's again, and another record is in it.
    block.fill(0xff);
    let line = std::format!(
        "event=detected seq=3 via=sea cpu=0 vcpu=0 el=1 access=walk vm=probe {at_once} at=9"
    );
    assert!(at_once.contains("pa=0x12345000"), "{at_once}");
    assert_eq!(said(&journal), [line]);
}

#[test]
fn a_section_that_is_too_long_is_refused_rather_than_cut() {
    let journal = deferring();
    let bytes = [0_u8; MAX_SECTION + 1];
    assert!(!journal.ring.lock().push(|| known(1), 0, &bytes));
    assert!(journal.ring.lock().push(|| known(2), 0, &bytes[1..]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 64 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a queue of numbers: what was taken is said, once, in order.
    #[test]
    #[cfg_attr(miri, ignore = "slow, and there is nothing unsafe in it")]
    fn notes_come_out_as_they_went_in(rounds in proptest::collection::vec(0_usize..CAPACITY + 10, 1..20)) {
        let journal = deferring();
        let mut next = 0;
        for count in rounds {
            let mut taken = Vec::new();
            for _ in 0..count {
                if journal.note(|| known(next), next, &[]) {
                    taken.push(std::format!("event=known seq={next} pa=0x4000 at={next}"));
                }
                next += 1;
            }
            prop_assert_eq!(taken.len(), count.min(CAPACITY));
            prop_assert_eq!(said(&journal), taken);
        }
    }
}
