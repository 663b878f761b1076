//! Counting, telling, and the text of an event.

use std::string::ToString;
use std::sync::Mutex;
use std::vec::Vec;

use super::*;

fn event() -> ErrorEvent {
    ErrorEvent {
        sequence: 3,
        range: PaRange::new(Pa::new(0x8000_1000), 0x1000),
        severity: Severity::Recoverable,
        origin: Origin::Sea,
        cpu: 1,
        consumer: Some(Consumer::Vcpu {
            vm: Vmid::new(1).unwrap(),
            vcpu: 0,
            el: 1,
            attempt: Some(Attempt::Access(Access::Read)),
        }),
    }
}

/// Writes down what it is told.
struct Scribe {
    name: &'static str,
    list: &'static Mutex<Vec<(&'static str, Stage)>>,
}

impl Subscriber for Scribe {
    fn notify(&self, _: &ErrorEvent, stage: Stage) {
        self.list.lock().unwrap().push((self.name, stage));
    }
}

#[test]
fn an_event_shows_the_keys_of_the_protocol() {
    assert_eq!(
        event().to_string(),
        "seq=3 via=sea cpu=1 vcpu=0 el=1 access=read"
    );
    let optional = ErrorEvent {
        origin: Origin::Ghes(1),
        range: None,
        consumer: None,
        ..event()
    };
    assert!(!optional.is_action_required());
    assert_eq!(optional.to_string(), "seq=3 via=ghes cpu=1 source=1");
}

#[test]
fn every_subscriber_is_told_in_order_of_registration() {
    static LIST: Mutex<Vec<(&str, Stage)>> = Mutex::new(Vec::new());
    static FIRST: Scribe = Scribe {
        name: "first",
        list: &LIST,
    };
    static SECOND: Scribe = Scribe {
        name: "second",
        list: &LIST,
    };
    let announcer = Announcer::<2>::new();
    announcer.announce(&event(), Stage::Detected);
    announcer.register(&FIRST).unwrap();
    announcer.register(&SECOND).unwrap();
    announcer.announce(&event(), Stage::Known);
    assert_eq!(
        *LIST.lock().unwrap(),
        [("first", Stage::Known), ("second", Stage::Known)]
    );
}

#[test]
fn one_subscriber_too_many_is_refused_and_the_others_stay() {
    static LIST: Mutex<Vec<(&str, Stage)>> = Mutex::new(Vec::new());
    static ONLY: Scribe = Scribe {
        name: "only",
        list: &LIST,
    };
    static LATE: Scribe = Scribe {
        name: "late",
        list: &LIST,
    };
    let announcer = Announcer::<1>::new();
    announcer.register(&ONLY).unwrap();
    for _ in 0..2 {
        assert_eq!(announcer.register(&LATE), Err(TooManySubscribers));
    }
    announcer.announce(&event(), Stage::Fatal);
    assert_eq!(*LIST.lock().unwrap(), [("only", Stage::Fatal)]);
}

#[test]
fn a_plain_function_can_subscribe() {
    use core::sync::atomic::AtomicU64;
    static CALLS: AtomicU64 = AtomicU64::new(0);
    static CALL: fn(&ErrorEvent, Stage) = |event, _| {
        CALLS.fetch_add(event.sequence, Relaxed);
    };
    let announcer = Announcer::<1>::new();
    announcer.register(&CALL).unwrap();
    announcer.announce(&event(), Stage::Detected);
    assert_eq!(CALLS.load(Relaxed), 3);
}

#[test]
fn each_stage_counts_in_its_own_place() {
    let announcer = Announcer::<0>::new();
    for stage in [
        Stage::Detected,
        Stage::Corrected,
        Stage::NoRecord,
        Stage::Contained { pages: 512 },
        Stage::Known,
        Stage::GuestAborted,
        Stage::GuestSError,
        Stage::Touched,
        Stage::Unclaimed,
        Stage::Filtered { pages: 3 },
        Stage::Looped,
        Stage::Overflow,
        Stage::VmStopped,
        Stage::Repaired { pages: 2 },
        Stage::Moved { pages: 3 },
        Stage::Fatal,
    ] {
        announcer.announce(&event(), stage);
    }
    let snapshot = announcer.counters().snapshot();
    assert_eq!(
        snapshot,
        Snapshot {
            detected: 1,
            corrected: 1,
            no_record: 1,
            contained: 1,
            known: 1,
            guest_aborts: 1,
            guest_serrors: 1,
            touched: 1,
            unclaimed: 1,
            filtered: 1,
            loops: 1,
            overflows: 1,
            stopped_vms: 1,
            fatal: 1,
            lost_pages: 510,
            repaired_pages: 2,
            moved_pages: 3,
        }
    );
    assert_eq!(
        snapshot.to_string(),
        "detected=1 corrected=1 contained=1 vsea=1 touched=1 lost_pages=510 filtered=1 loops=1 repaired=2 moved=3"
    );
}

#[test]
fn a_vm_has_counters_of_its_own_and_kinds_are_counted_once_an_error() {
    let announcer = Announcer::<0>::new();
    let mine = event();
    let injected = ErrorEvent {
        origin: Origin::Injected,
        severity: Severity::Corrected,
        consumer: None,
        ..event()
    };
    for (event, stage) in [
        (mine, Stage::Detected),
        (mine, Stage::Contained { pages: 1 }),
        (mine, Stage::GuestAborted),
        (mine, Stage::Touched),
        (mine, Stage::GuestAborted),
        (injected, Stage::Detected),
        (injected, Stage::Filtered { pages: 1 }),
    ] {
        announcer.announce(&event, stage);
    }
    announcer.counters().count_distinct(Vmid::new(1).unwrap());
    let of = |vm| announcer.counters().vm(Vmid::new(vm).unwrap()).unwrap();
    assert_eq!(
        of(1).to_string(),
        "detected=1 vsea=2 vserror=0 touched=1 distinct=1 repeated=1 filtered=0 loops=0"
    );
    assert_eq!(of(2), crate::ras::counters::VmSnapshot::default());
    assert_eq!(announcer.counters().vm(Vmid::new(65).unwrap()), None);
    let kinds = announcer.counters().kinds();
    let seen: Vec<_> = kinds.by_origin().filter(|(_, n)| *n != [0; 3]).collect();
    assert_eq!(seen, [("sea", [0, 1, 0]), ("injected", [1, 0, 0])]);
    assert_eq!((kinds.required, kinds.optional), (1, 1));
}
