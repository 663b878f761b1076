//! What is typed at the monitor, and what it does to a machine.

use std::string::String;
use std::vec::Vec;

use super::fake::{DEVICE, DEVICE_AT, K4, RAM_AT, SPARES, World, esr};
use crate::addr::{PAGE_SIZE, Pa, PaRange};
use crate::console::line::Line;
use crate::ras::spares::Spares;
use crate::vm::exit::Next;
use crate::vm::hypervisor::{State, StopReason};
use crate::vm::monitor::LISTED;

/// Types a line and returns the answer, whose last line is about the command and the only such one.
fn typed(world: &World, text: &str) -> Vec<String> {
    let mut line = Line::new();
    for byte in text.bytes() {
        line.push(byte);
    }
    world.hypervisor.operate(&line);
    let answers = core::mem::take(&mut *world.hypervisor.platform.answers.lock().unwrap());
    let results = answers.iter().filter(|it| it.contains("event=monitor"));
    assert_eq!(results.count(), 1, "{answers:?}");
    assert!(answers.last().unwrap().contains("event=monitor"));
    answers
}

fn result(world: &World, text: &str) -> String {
    typed(world, text).pop().unwrap()
}

/// VM 0 consumes a page of the device memory.
fn lose(world: &World, page: u64) {
    let bad = page * PAGE_SIZE;
    assert!(world.firmware.report(Pa::new(DEVICE.get() + bad)));
    let sea = esr::data(esr::EXTERNAL);
    assert_eq!(world.sea(0, sea, DEVICE_AT[0] + bad).0, Next::Resume);
}

#[test]
fn vms_are_listed_with_what_they_do() {
    let world = World::new();
    world.vm(0).vcpus[1].turn_off();
    assert!(world.hypervisor.stop(world.vm(1), StopReason::Killed));
    assert_eq!(
        typed(&world, "vms"),
        [
            "cordon: event=vm number=1 vm=one state=running vcpus=2 on=1 focus=yes",
            "cordon: event=vm number=2 vm=two state=killed vcpus=2 on=2 focus=no",
            "cordon: event=monitor command=vms result=ok",
        ]
    );
}

#[test]
fn a_vm_is_stopped_reset_and_started_by_name_and_no_other_is() {
    let world = World::new();
    let ok = |command: &str| {
        let name = command.split(' ').next().unwrap();
        let expected = std::format!("cordon: event=monitor command={name} result=ok");
        assert_eq!(result(&world, command), expected);
    };
    let refused = |command: &str, why: &str| {
        let answer = result(&world, command);
        assert!(answer.ends_with(&std::format!("result=error why={why}")));
    };
    ok("reset two");
    assert_eq!(world.kicks(), [2, 3]);
    assert_eq!(world.vm(1).state(), State::Resetting);
    refused("reset two", "not-running");
    refused("start two", "not-off");
    ok("stop two");
    assert_eq!(world.vm(1).state(), State::Off);
    refused("stop two", "not-running");
    refused("focus two", "not-running");
    ok("start two");
    assert_eq!(world.vm(1).state(), State::Resetting);
    ok("focus two");
    refused("stop three", "unknown-vm");
    refused("stop", "missing-argument");
    refused("xyzzy", "unknown-command");
    // This machine has nobody who could.
    refused("off", "no-psci");
    refused("reboot", "no-psci");
    assert_eq!(world.vm(0).state(), State::Running);
}

#[test]
fn a_vm_that_was_killed_is_left_alone() {
    // The tables bring the test down if they are read.
    let world = World::new();
    world.lose_root_table(1);
    assert!(world.hypervisor.stop(world.vm(1), StopReason::Killed));
    for command in ["stage2 two", "reset two", "start two", "stop two"] {
        assert!(
            result(&world, command).contains("result=error"),
            "{command}"
        );
    }
}

#[test]
fn a_map_is_told_as_a_whole_and_by_region() {
    let world = World::new();
    lose(&world, 5);
    let told = typed(&world, "stage2 one");
    assert!(
        told[0].starts_with(
            "cordon: event=stage2 vm=one when=asked 1g=0 2m=512 4k=511 hole=1 hole_bytes=0x1000 dropped=0 contiguous=992 tables="
        )
    );
    let leaves = told.iter().filter(|it| it.contains("event=leaves vm=one"));
    assert_eq!(leaves.count(), 2);
}

#[test]
fn bad_pages_are_counted_and_listed() {
    let world = World::new();
    lose(&world, 5);
    lose(&world, 3);
    let counted = typed(&world, "poison");
    assert_eq!(counted[0], "ras: event=poison pages=2 capacity=40");
    let list = typed(&world, "poison list");
    assert!(list[0].starts_with("ras: event=bad-page pa=0x8000003000 seq="));
    assert!(list[1].starts_with("ras: event=bad-page pa=0x8000005000 seq="));
    assert_eq!(list[2], "ras: event=bad-pages shown=2 next=none");
    let rest = typed(&world, "poison list 0x8000003001");
    assert!(rest[0].contains("pa=0x8000003000"), "the page it is in");
    let rest = typed(&world, "poison list 0x8000004000");
    assert!(rest[0].contains("pa=0x8000005000"));
    for from in ["0x8000006000", "0xffffffffffffffff", "0xfffffffffffff000"] {
        let list = typed(&world, &std::format!("poison list {from}"));
        assert_eq!(list[0], "ras: event=bad-pages shown=0 next=none");
    }
}

#[test]
fn a_list_ends_and_says_where_to_go_on() {
    let world = World::new();
    // What the VM's tables hold is not the point, and there are few.
    let bad = |page: u64| {
        let range = crate::addr::PaRange::new(Pa::new(DEVICE.get() + page * PAGE_SIZE), PAGE_SIZE);
        let occasion = crate::ras::pipeline::Occasion {
            origin: crate::ras::event::Origin::Ghes(0),
            cpu: 0,
            consumer: None,
        };
        let severity = crate::ras::cper::Severity::Recoverable;
        let event = occasion.event(page, severity, range);
        world
            .hypervisor
            .ras
            .contain(&event, range.unwrap(), &world.hypervisor);
    };
    for page in 0..LISTED as u64 {
        bad(page);
    }
    let list = typed(&world, "poison list");
    assert_eq!(list.len(), LISTED + 2);
    assert!(list[LISTED].ends_with(&std::format!("shown={LISTED} next=none")));
    bad(LISTED as u64);
    let list = typed(&world, "poison list");
    assert_eq!(list.len(), LISTED + 2);
    assert!(list[LISTED].ends_with(&std::format!("shown={LISTED} next=0x8000020000")));
    let list = typed(&world, "poison list 0x8000020000");
    assert!(list[1].ends_with("shown=1 next=none"));
}

#[test]
fn memory_and_its_users_are_listed() {
    let world = World::new();
    let list = typed(&world, "regions");
    let mappings = |vm: &str| {
        let vm = std::format!("vm={vm} ");
        list.iter()
            .filter(|it| it.contains("event=mapping") && it.contains(&vm))
            .count()
    };
    assert_eq!((mappings("one"), mappings("two")), (2, 2));
    let regions = list.iter().filter(|it| it.contains("event=memory"));
    // Each VM's RAM, the device memory of both, and spare pages.
    assert_eq!(regions.count(), 4);
}

#[test]
fn what_was_counted_is_told() {
    let world = World::new();
    lose(&world, 5);
    let told = typed(&world, "counters");
    assert!(told[0].starts_with("ras: event=counters detected=1 corrected=0 contained=1 vsea=1"));
    assert_eq!(told[1], "ras: event=vm-counters vm=one vsea=1");
    assert_eq!(told[2], "ras: event=vm-counters vm=two vsea=0");
}

#[test]
fn errors_are_made_and_made_good_by_command() {
    let world = World::new();
    let at = DEVICE_AT[0] + 8 * PAGE_SIZE;
    let told = typed(
        &world,
        &std::format!("inject {:#x} ao 2", DEVICE.get() + 8 * PAGE_SIZE),
    );
    assert_eq!(
        told[0],
        "ras: event=injected pa=0x8000008000 pages=2 kind=ao"
    );
    let both = [DEVICE_AT[0], DEVICE_AT[1]].map(|start| start + 8 * PAGE_SIZE);
    assert!(world.is_hole(0, both[0]) && world.is_hole(1, both[1]));
    let told = typed(&world, &std::format!("repair one {at:#x} 64"));
    assert!(told[0].starts_with("ras: event=range-repaired vm=one "));
    assert!(told[0].ends_with("how=in-place pages=2 left=0"), "{told:?}");
    // What the other VM had there is lost: it has the page back when it is asked for in its name.
    assert!(world.is_mapped(0, both[0]) && world.is_hole(1, both[1]));
    typed(&world, &std::format!("repair two {:#x} 64", both[1]));
    assert!(world.is_mapped(1, both[1]));

    let told = typed(&world, &std::format!("inject-vm two {RAM_AT:#x} ao"));
    assert!(told[0].ends_with("pages=1 kind=ao"), "{told:?}");
    assert!(world.is_hole(1, RAM_AT) && world.is_mapped(0, RAM_AT));
    let corrected = world.counters().corrected;
    typed(&world, &std::format!("inject-vm two {:#x} ce", RAM_AT + K4));
    assert_eq!(world.counters().corrected, corrected + 1);
    assert!(world.is_mapped(1, RAM_AT + K4));
    // A spare takes the place of what was lost.
    refused_for_want_of_a_spare(&world);
    let spares = PaRange::new(SPARES, PAGE_SIZE).unwrap();
    *world.hypervisor.ras.mender.spares.lock() = Spares::new(spares);
    let told = typed(&world, &std::format!("repair two {RAM_AT:#x} 1 spare"));
    assert!(told[0].ends_with("how=spare pages=1 left=0"), "{told:?}");
    assert!(world.is_mapped(1, RAM_AT));
}

fn refused_for_want_of_a_spare(world: &World) {
    let answer = result(world, &std::format!("repair two {RAM_AT:#x} 1 spare"));
    assert!(answer.ends_with("result=error why=no-spare"), "{answer}");
}

#[test]
fn what_cannot_be_done_about_errors_is_refused_by_name() {
    let world = World::new();
    let refused = |command: &str, why: &str| {
        let answer = result(&world, command);
        let end = std::format!("result=error why={why}");
        assert!(answer.ends_with(&end), "{command}: {answer}");
    };
    refused("inject 0x8000000000 ar", "no-consumer");
    refused("inject 0x8000000000 ao 0", "bad-range");
    refused("inject 0x8000000000 ao 4097", "bad-range");
    refused("inject 0xfffffffffffff000 ao 2", "bad-range");
    refused("inject-vm three 0x40000000 ao", "unknown-vm");
    refused("inject-vm one 0x1000 ao", "not-memory");
    refused("repair three 0x40000000", "unknown-vm");
    refused("repair one 0x40000000", "not-poisoned");
    refused("repair one 0x40000000 0", "bad-range");
    refused("repair one 0x40000000 262145", "bad-range");
    refused("filter add vm=three", "no-such-vm");
    refused("filter add colour=red", "unknown-key");
    refused("policy one 0x1000 keep", "not-memory");
    assert_eq!(world.counters().detected, 0);
}

#[test]
fn a_filter_and_a_policy_count_from_the_command_on() {
    let world = World::new();
    let ok = |command: &str| assert!(result(&world, command).ends_with("result=ok"), "{command}");
    ok("filter add drop:via=injected");
    ok(&std::format!("inject-vm one {RAM_AT:#x} ao"));
    assert!(world.is_mapped(0, RAM_AT), "the filter has it");
    ok("filter clear");
    ok(&std::format!("inject-vm one {RAM_AT:#x} ao"));
    assert!(world.is_hole(0, RAM_AT));
    let at = DEVICE_AT[0];
    ok(&std::format!("policy one {at:#x} keep"));
    ok(&std::format!("inject-vm one {at:#x} ao"));
    assert!(world.is_mapped(0, at));
    ok(&std::format!("policy one {at:#x} isolate"));
    assert!(world.is_hole(0, at), "what is bad already as well");
}

#[test]
fn what_is_bad_is_exported_by_ranges() {
    let world = World::new();
    let inject = |page: u64, pages: u64| {
        let pa = DEVICE.get() + page * PAGE_SIZE;
        typed(&world, &std::format!("inject {pa:#x} ao {pages}"));
    };
    inject(3, 2);
    inject(5, 1);
    inject(9, 1);
    assert_eq!(
        typed(&world, "poison export")[..3],
        [
            "ras: event=bad-range pa=0x8000003000 pages=3",
            "ras: event=bad-range pa=0x8000009000 pages=1",
            "ras: event=exported ranges=2 pages=4 next=none",
        ]
    );
    let rest = typed(&world, "poison export 0x8000004000");
    assert_eq!(rest[0], "ras: event=bad-range pa=0x8000004000 pages=2");
    let none = typed(&world, "poison export 0xffffffffffffffff");
    assert_eq!(none[0], "ras: event=exported ranges=0 pages=0 next=none");
}

#[test]
fn a_table_that_is_said_to_lead_to_a_page_is_one_that_can_be_done_without() {
    let world = World::new();
    lose(&world, 5);
    let at = DEVICE_AT[0] + 5 * PAGE_SIZE;
    let (before, tables) = (world.census(0), std::format!("tables one {at:#x}"));
    let told = typed(&world, &tables);
    let table = |line: &str| String::from(line.rsplit_once("pa=").unwrap().1);
    assert!(told[0].contains(" level=3 pa=") && told[1].contains(" level=2 pa="));
    typed(&world, &std::format!("inject {} ao", table(&told[0])));
    assert_eq!(world.census(0), before, "the guest notices nothing");
    assert!(world.is_hole(0, at));
    let now = typed(&world, &tables);
    assert_ne!(table(&now[0]), table(&told[0]), "it is another");
    assert_eq!(table(&now[1]), table(&told[1]));
    assert_eq!(typed(&world, "tables one 0x1000000000000").len(), 1);
}

#[test]
fn all_that_was_counted_is_told() {
    let world = World::new();
    lose(&world, 5);
    let told = typed(&world, "counters all");
    assert!(told[0].starts_with("ras: event=summary detected=1 "));
    for part in [
        "kind=all required=1",
        "via=sea",
        "vm=one lost_pages=1",
        "vm=one vcpu=0",
        "region=",
    ] {
        assert!(
            told.iter().any(|line| line.contains(part)),
            "{part}: {told:?}"
        );
    }
}

#[test]
fn every_row_of_the_commands_is_listed_and_carried_out() {
    let world = World::new();
    let help = typed(&world, "help");
    for entry in crate::console::monitor::COMMANDS {
        let row = std::format!("command={} ", entry.name);
        assert!(
            help.iter().any(|line| line.contains(&row)),
            "{}",
            entry.name
        );
        assert!(!result(&world, entry.name).contains("unknown-command"));
    }
}
