//! The service on a machine of two pages of RAM: the first holds the ack register and the block.

use std::string::String;
use std::vec;
use std::vec::Vec;

use cordon::ras::cper::{Body, FruText, StatusBlock};

use super::*;
use crate::source::Ack;

const RAM: u64 = 0x4400_0000;
const ACK: Pa = Pa::new(RAM);
const BLOCK: Pa = Pa::new(RAM + 0x100);

struct Fake {
    ram: Vec<u8>,
    /// Where something was written, in order.
    written: Vec<Pa>,
    signals: Vec<u32>,
    reminders: usize,
}

impl Tlb for Fake {
    fn publish(&mut self) {}
    fn invalidate(&mut self) {}
}

impl Machine for Fake {
    fn read_u64(&mut self, at: Pa) -> u64 {
        let at = usize::try_from(at.get() - RAM).unwrap();
        u64::from_le_bytes(self.ram[at..at + 8].try_into().unwrap())
    }

    fn write_u64(&mut self, at: Pa, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn write(&mut self, to: Pa, bytes: &[u8]) {
        self.written.push(to);
        let to = usize::try_from(to.get() - RAM).unwrap();
        self.ram[to..to + bytes.len()].copy_from_slice(bytes);
    }

    fn now(&mut self) -> u64 {
        1_700_000_000
    }

    fn signal(&mut self, intid: u32) {
        self.signals.push(intid);
    }

    fn remind(&mut self) {
        self.reminders += 1;
    }

    fn counter(&mut self) -> u64 {
        99
    }

    fn told(&mut self) -> u64 {
        77
    }
}

type Small = Service<'static, 2>;

fn source() -> RecordSource {
    let range = |start, size| PaRange::new(start, size).unwrap();
    let ack = Ack {
        register: range(ACK, 8),
        bits: 1,
    };
    RecordSource {
        block: range(BLOCK, 0x400),
        ack: Some(ack),
    }
}

fn machine() -> (Small, Fake) {
    let (level0, pool) = crate::gpt::tests::tables();
    let gpt = Gpt::new(level0, pool);
    let mut service = Service::new(gpt, 4);
    service.set_source(source());
    let mut fake = Fake {
        ram: vec![0; 0x2000],
        written: Vec::new(),
        signals: Vec::new(),
        reminders: 0,
    };
    fake.write_u64(ACK, 0xf1);
    fake.written.clear();
    (service, fake)
}

fn say(service: &mut Small, fake: &mut Fake, line: &str) -> String {
    let mut answer = String::new();
    service
        .line(Ok(line.as_bytes()), fake, &mut answer)
        .unwrap();
    answer
}

const EL1H: u64 = 0b0101;
const EL2H: u64 = 0b1001;

fn state(spsr: u64) -> Interrupted {
    let controls = El2Controls {
        hcr: 1 << 31 | 1 << 5,
        ..El2Controls::default()
    };
    Interrupted {
        cpu: 1,
        spsr,
        far: 0xffff_0000_1234_5678,
        controls,
        at: 88,
    }
}

fn consume(service: &mut Small, fake: &mut Fake, spsr: u64) -> (Entry, String) {
    let esr = 0x1e << 26 | 1 << 25 | 0b1101 << 14 | 0x28;
    let fault = GranuleFault::decode(esr, 0x80_1234_5000).unwrap();
    // The one attempt stands for all that the image makes within its time.
    let written = service.record(fault.page, fake);
    let written = written.unwrap_or_else(|| service.postpone(fault.page, fake));
    let mut message = String::new();
    let entry = service.consume(fault, state(spsr), written, &mut message);
    (entry, message)
}

#[test]
fn lines_are_answered_as_the_protocol_says() {
    let (mut service, mut fake) = machine();
    let mut say = |line: &str| say(&mut service, &mut fake, line);
    assert_eq!(say("poison 0x8000001234 3"), "ok poisoned pages=3 at=99\n");
    assert_eq!(say("poison 0x8000002000"), "ok poisoned pages=0 at=99\n");
    assert_eq!(
        say("status"),
        "ok poisoned=3 consumed=0 unacked=0 mode=sea record=on cpus=4 tables_free=1 told=77 queued=0 lost=0\n"
    );
    assert_eq!(say("heal 0x8000000000 16"), "ok healed pages=3\n");
    assert_eq!(say("mode serror"), "ok mode=serror\n");
    assert_eq!(say("record off"), "ok record=off\n");
    assert_eq!(
        say("help"),
        "ok commands=poison,heal,report,mode,record,status,help\n"
    );
    assert_eq!(say(""), "");
}

#[test]
fn lines_are_refused_as_the_protocol_says() {
    let (mut service, mut fake) = machine();
    let mut say = |line: &str| say(&mut service, &mut fake, line);
    assert_eq!(say("bite"), "error unknown-command\n");
    assert_eq!(say("poison zero"), "error bad-number\n");
    assert_eq!(say("poison"), "error bad-argument\n");
    assert_eq!(say("poison 0xe000000"), "error not-memory pa=0xe000000\n");
    assert_eq!(say("poison 0x40000000 0"), "error empty-block\n");
    assert_eq!(say("poison 0x40000000 1000000"), "error no-table\n");
    let mut answer = String::new();
    service
        .line(Err(control::Error::LineTooLong), &mut fake, &mut answer)
        .unwrap();
    assert_eq!(answer, "error line-too-long\n");
}

#[test]
fn smcs_return_counts_or_small_negative_numbers() {
    let (mut service, mut fake) = machine();
    let mut smc = |function, arguments| service.smc(function, arguments, &mut fake);
    assert_eq!(smc(0xc200_0000, [0, 0]), Some((0x434f_5244, Some(1))));
    assert_eq!(smc(0xc200_0001, [0x4000_0000, 2]), Some((2, None)));
    assert_eq!(smc(0xc200_0002, [0x4000_0000, 1]), Some((1, None)));
    assert_eq!(
        smc(0xc200_0001, [0, 1]),
        Some(((-2i64).cast_unsigned(), None))
    );
    assert_eq!(
        smc(0xc200_0001, [0x4000_0000, 0]),
        Some(((-2i64).cast_unsigned(), None))
    );
    assert_eq!(
        smc(0xc200_0001, [0x4000_0000, 1 << 20]),
        Some(((-4i64).cast_unsigned(), None))
    );
    assert_eq!(smc(0xc200_0003, [1, 0]), Some((0, None)));
    assert_eq!(
        smc(0xc200_0003, [2, 0]),
        Some(((-2i64).cast_unsigned(), None))
    );
    assert_eq!(
        smc(0xc200_0004, [0x4000_0000, 0]),
        Some(((-3i64).cast_unsigned(), None)),
        "no source for reports"
    );
    assert_eq!(smc(0xc200_0005, [0, 0]), None);
}

#[test]
fn a_consumed_page_is_recorded_and_signalled() {
    let (mut service, mut fake) = machine();
    let (entry, message) = consume(&mut service, &mut fake, EL1H);
    assert_eq!(entry.vector, 0x400);
    assert_eq!(entry.esr, 0x9200_0010);
    assert_eq!(entry.far, Some(0xffff_0000_1234_5678));
    assert_eq!(entry.pstate, 0x3c9);
    assert_eq!(
        message,
        "! consumed pa=0x8012345000 cpu=1 el=1 access=read record=written signal=sea \
         far=0xffff000012345678 at=88\n"
    );
    assert_eq!(fake.read_u64(ACK), 0xf0, "only the ack bit is cleared");
    assert_eq!(record_in(&fake), Some((Pa::new(0x80_1234_5000), 1)));
}

/// Which page the record in the block is about, and its sequence number.
fn record_in(fake: &Fake) -> Option<(Pa, u64)> {
    let block = StatusBlock::parse(&fake.ram[0x100..0x500]).ok()?;
    let section = block.sections().next()?.ok()?;
    let text = |number| FruText::new(&std::format!("gpt {number:015x}"));
    let sequence = (0..10).find(|number| section.fru_text == Some(text(*number)))?;
    match section.body {
        Body::Memory(memory) => Some((memory.address?, sequence)),
        _ => None,
    }
}

#[test]
fn the_ack_is_cleared_before_the_block_is_touched_and_block_status_comes_last() {
    for line in ["record on", "record garbage"] {
        let (mut service, mut fake) = machine();
        say(&mut service, &mut fake, line);
        consume(&mut service, &mut fake, EL1H);
        let rest = Pa::new(BLOCK.get() + 8);
        assert_eq!(fake.written, [ACK, rest, BLOCK], "{line}");
    }
}

#[test]
fn a_source_without_ack_is_free_once_its_block_status_is_cleared() {
    let (mut service, mut fake) = machine();
    service.set_source(RecordSource {
        ack: None,
        ..source()
    });
    let (_, message) = consume(&mut service, &mut fake, EL1H);
    assert!(message.contains("record=written"), "{message}");
    let (_, message) = consume(&mut service, &mut fake, EL1H);
    assert!(message.contains("record=queued"), "{message}");
    fake.write(BLOCK, &[0; 4]);
    let (_, message) = consume(&mut service, &mut fake, EL1H);
    assert!(message.contains("record=written"), "{message}");
    assert_eq!(fake.read_u64(ACK), 0xf1, "not this source's");
}

#[test]
fn a_record_that_was_not_acknowledged_stays_and_is_counted() {
    let (mut service, mut fake) = machine();
    consume(&mut service, &mut fake, EL1H);
    let before = fake.ram.clone();
    let (entry, message) = consume(&mut service, &mut fake, EL1H);
    assert!(message.contains("record=queued"), "{message}");
    assert_eq!(fake.ram, before);
    assert_eq!(entry.vector, 0x400, "the exception comes all the same");
    assert!(say(&mut service, &mut fake, "status").contains("consumed=2 unacked=1"));
}

#[test]
fn while_a_record_waits_the_service_answers_and_the_next_attempt_sees_the_ack() {
    let (mut service, mut fake) = machine();
    consume(&mut service, &mut fake, EL1H);
    let page = Pa::new(0x80_0000_0000);
    assert_eq!(service.record(page, &mut fake), None);
    assert_eq!(
        say(&mut service, &mut fake, "poison 0x8000000000"),
        "ok poisoned pages=1 at=99\n"
    );
    assert_eq!(service.record(page, &mut fake), None);
    fake.write_u64(ACK, 0xf1);
    assert_eq!(service.record(page, &mut fake), Some(Written::Written));
    assert_eq!(record_in(&fake), Some((page, 2)));
}

#[test]
fn serror_mode_signals_where_el2_takes_it() {
    let (mut service, mut fake) = machine();
    say(&mut service, &mut fake, "mode serror");
    let (entry, message) = consume(&mut service, &mut fake, EL1H | 0xf << 6);
    assert_eq!(
        (entry.vector, entry.esr, entry.far),
        (0x580, 0xbe00_0c11, None)
    );
    assert!(message.contains("signal=serror"), "{message}");
    assert_eq!(consume(&mut service, &mut fake, EL2H).0.vector, 0x380);
    let (masked, message) = consume(&mut service, &mut fake, EL2H | 1 << 8);
    assert_eq!((masked.vector, masked.esr), (0x200, 0x9600_0010));
    assert!(message.contains("signal=sea"), "{message}");
}

#[test]
fn record_off_and_garbage_do_what_they_say() {
    let (mut service, mut fake) = machine();
    say(&mut service, &mut fake, "record off");
    let before = fake.ram.clone();
    assert!(
        consume(&mut service, &mut fake, EL1H)
            .1
            .contains("record=none")
    );
    assert_eq!(fake.ram, before);
    say(&mut service, &mut fake, "record garbage");
    assert!(
        consume(&mut service, &mut fake, EL1H)
            .1
            .contains("record=written")
    );
    assert_eq!(fake.read_u64(ACK) & 1, 0);
    assert!(StatusBlock::parse(&fake.ram[0x100..0x500]).is_err());
}

#[test]
fn a_poisoned_block_is_not_touched() {
    for pa in [ACK, BLOCK] {
        let (mut service, mut fake) = machine();
        say(&mut service, &mut fake, &std::format!("poison {pa}"));
        let before = fake.ram.clone();
        assert!(
            consume(&mut service, &mut fake, EL1H)
                .1
                .contains("record=none")
        );
        assert_eq!(fake.ram, before);
    }
}

const REPORTS: Pa = Pa::new(RAM + 0x800);
const REPORTS_ACK: Pa = Pa::new(RAM + 8);

/// The machine with a second source, notified by interrupt 232.
fn reporting_machine() -> (Small, Fake) {
    let (mut service, mut fake) = machine();
    let range = |start, size| PaRange::new(start, size).unwrap();
    let ack = Ack {
        register: range(REPORTS_ACK, 8),
        bits: 1,
    };
    service.set_report_source(ReportSource {
        records: RecordSource {
            block: range(REPORTS, 0x400),
            ack: Some(ack),
        },
        interrupt: Some(232),
    });
    fake.write_u64(REPORTS_ACK, 1);
    fake.written.clear();
    (service, fake)
}

/// The pages that the record at `start` is about, and whether there are said to be more.
fn pages_at(fake: &Fake, start: Pa) -> (Vec<u64>, bool) {
    let at = usize::try_from(start.get() - RAM).unwrap();
    let block = StatusBlock::parse(&fake.ram[at..at + 0x400]).unwrap();
    let page = |body| match body {
        Body::Memory(memory) => memory.address.map_or(0, Pa::get),
        _ => 0,
    };
    let pages = block.sections().map(|section| page(section.unwrap().body));
    (pages.collect(), block.status().raw() & 0xc != 0)
}

#[test]
fn a_report_is_written_and_signalled_at_once() {
    let (mut service, mut fake) = reporting_machine();
    let answer = say(&mut service, &mut fake, "report 0x8000001234 ao");
    assert_eq!(answer, "ok reported pages=1 queued=0 lost=0\n");
    assert_eq!(pages_at(&fake, REPORTS), (vec![0x80_0000_1000], false));
    assert_eq!((fake.signals.as_slice(), fake.reminders), (&[232][..], 0));
    assert_eq!(fake.read_u64(ACK), 0xf1, "not this source's");
}

#[test]
fn reports_wait_for_the_reader_and_none_takes_the_place_of_another() {
    let (mut service, mut fake) = reporting_machine();
    let answer = say(&mut service, &mut fake, "report 0x8000000000 ce 3");
    assert_eq!(answer, "ok reported pages=3 queued=2 lost=0\n");
    assert!(fake.reminders > 0);
    for page in [0x80_0000_0000, 0x80_0000_1000, 0x80_0000_2000] {
        service.flush(&mut fake);
        assert_eq!(
            pages_at(&fake, REPORTS),
            (vec![page], false),
            "until it is acknowledged"
        );
        fake.write_u64(REPORTS_ACK, 1);
        fake.reminders = 0;
        service.flush(&mut fake);
    }
    assert_eq!(fake.signals, [232; 3]);
    assert_eq!(fake.reminders, 0, "nothing is left to do");
}

#[test]
fn what_finds_no_room_is_counted_and_said_in_the_next_record() {
    let (mut service, mut fake) = reporting_machine();
    let answer = say(&mut service, &mut fake, "report 0x8000000000 ao 40");
    assert_eq!(answer, "ok reported pages=40 queued=32 lost=7\n");
    assert!(say(&mut service, &mut fake, "status").ends_with("queued=32 lost=7\n"));
    for number in 1..=32 {
        fake.write_u64(REPORTS_ACK, 1);
        service.flush(&mut fake);
        let expected = (vec![0x80_0000_0000 + number * 0x1000], number == 1);
        assert_eq!(pages_at(&fake, REPORTS), expected);
    }
}

#[test]
fn a_consumed_error_whose_record_is_late_is_reported_where_somebody_is_told() {
    let (mut service, mut fake) = reporting_machine();
    consume(&mut service, &mut fake, EL1H);
    let (_, message) = consume(&mut service, &mut fake, EL1H);
    assert!(message.contains("record=queued"), "{message}");
    assert_eq!(pages_at(&fake, REPORTS), (vec![0x80_1234_5000], false));
    assert_eq!(fake.signals, [232]);
}

#[test]
fn without_such_a_place_it_comes_with_the_next_consumed_error() {
    let (mut service, mut fake) = machine();
    let first = Pa::new(0x80_0000_0000);
    assert_eq!(service.record(first, &mut fake), Some(Written::Written));
    for number in 1..=8 {
        let late = Pa::new(0x80_0000_0000 + number * 0x1000);
        assert_eq!(service.record(late, &mut fake), None);
        assert_eq!(service.postpone(late, &mut fake), Written::Queued);
    }
    assert_eq!(pages_at(&fake, BLOCK).0, [0x80_0000_0000], "it stays");
    assert_eq!(fake.reminders, 0, "there is nobody to be told");
    // The block has room for six, of which the new one is first.
    let mut expected = (1..=8).map(|number| 0x80_0000_0000 + number * 0x1000);
    for (new, others) in [
        (0x80_1000_0000, 5),
        (0x80_2000_0000, 3),
        (0x80_3000_0000, 0),
    ] {
        fake.write_u64(ACK, 0xf1);
        assert_eq!(
            service.record(Pa::new(new), &mut fake),
            Some(Written::Written)
        );
        let (pages, _) = pages_at(&fake, BLOCK);
        assert_eq!(pages[0], new);
        assert!(
            pages[1..]
                .iter()
                .copied()
                .eq(expected.by_ref().take(others)),
            "{pages:x?}"
        );
    }
}

#[test]
fn a_poisoned_source_of_reports_is_left_alone() {
    let (mut service, mut fake) = reporting_machine();
    say(&mut service, &mut fake, &std::format!("poison {REPORTS}"));
    let before = fake.ram.clone();
    say(&mut service, &mut fake, "report 0x8000000000 ao");
    assert_eq!(fake.ram, before);
    assert!(fake.signals.is_empty());
}

#[test]
fn a_machine_without_a_source_refuses_reports() {
    let (mut service, mut fake) = machine();
    let mut say = |line: &str| say(&mut service, &mut fake, line);
    assert_eq!(say("report 0x8000000000 ao"), "error no-source\n");
    assert_eq!(
        say("report 0xe000000 ao"),
        "error not-memory pa=0xe000000\n"
    );
    assert_eq!(say("report 0x8000000000 ao 0"), "error empty-block\n");
}
