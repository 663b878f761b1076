//! What parses but cannot be meant: a scenario's checks before anything is started.
//!
//! Cordon checks its bundle again, because for it the bundle is somebody else's word. Here the
//! point is the author: every message names file, line and key. A scenario that damages its
//! bundle on purpose does so after these checks, by `[[bundle.mutate]]`.

use crate::expr::{self, holes, names};
use crate::line::is_vm_name;
use crate::scenario::{
    Boot, DEFAULT_NEVER, DeviceMemory, Granule, Mutation, Origin, Scenario, ScenarioError, Step, Vm,
};
use std::collections::BTreeSet;
use std::ops::Range;
use toml::Spanned;

type Result = std::result::Result<(), ScenarioError>;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The IPA page of a VM's PL011 (docs/protocols.md).
const UART: Range<u64> = 0x0900_0000..0x0900_1000;

/// Checks all of a scenario; the first fault ends it.
pub(crate) fn check(scenario: &Scenario) -> Result {
    check_names(scenario)?;
    check_machine(scenario)?;
    for vm in &scenario.vm {
        check_vm(scenario, vm)?;
    }
    check_totals(scenario)?;
    crate::disk::check(scenario)?;
    crate::board::check(scenario)?;
    check_direct(scenario)?;
    for mutation in &scenario.bundle.mutate {
        check_mutation(scenario, mutation)?;
    }
    check_damage(scenario)?;
    check_texts(scenario)
}

/// Damage to what the machine hands over.
fn check_damage(s: &Scenario) -> Result {
    let variants = s.variant.iter().flat_map(|variant| &variant.dtb);
    let trees = std::iter::once(&s.dtb).chain(variants);
    let mut any_dtb = false;
    for mutation in trees.flatten() {
        any_dtb = true;
        let one = mutation.patch.is_some() != mutation.replace.is_some();
        ensure(s, one, 0..0, || {
            "dtb: give one of patch, replace in each".into()
        })?;
        let bytes = mutation.patch.as_ref().map(|patch| &patch.bytes);
        check_hex(s, "dtb.patch.bytes", bytes)?;
    }
    let is_loaded = !matches!(s.machine.boot, Boot::El3 | Boot::Bios | Boot::Direct);
    ensure(s, !any_dtb || !is_loaded, 0..0, || {
        "dtb: with boot = \"kernel\" and its like the tree is nowhere in particular".into()
    })?;
    let variants = s.variant.iter().filter_map(|variant| variant.acpi.as_ref());
    for acpi in s.acpi.iter().chain(variants) {
        ensure(s, !is_loaded, 0..0, || {
            "acpi: with boot = \"kernel\" and its like nobody looks for tables".into()
        })?;
        for mutation in &acpi.mutate {
            let one = mutation.patch.is_some() != mutation.unlink.is_some();
            ensure(s, one, 0..0, || {
                "acpi.mutate: give one of patch, unlink in each".into()
            })?;
            let bytes = mutation.patch.as_ref().map(|patch| &patch.bytes);
            check_hex(s, "acpi.mutate.patch.bytes", bytes)?;
        }
    }
    Ok(())
}

fn check_hex(s: &Scenario, key: &str, bytes: Option<&Spanned<String>>) -> Result {
    let Some(bytes) = bytes else { return Ok(()) };
    let parsed = crate::bundle::hex_bytes(bytes.as_ref());
    ensure(s, parsed.is_some(), bytes.span(), || {
        format!("{key}: pairs of hexadecimal digits are wanted")
    })
}

fn ensure(
    scenario: &Scenario,
    holds: bool,
    span: Range<usize>,
    message: impl FnOnce() -> String,
) -> Result {
    if holds {
        Ok(())
    } else {
        Err(scenario.error(span, message()))
    }
}

fn check_names(s: &Scenario) -> Result {
    let stem = s
        .file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    ensure(s, s.name() == stem, s.name.span(), || {
        format!("name: `{}` is not the file's name, `{stem}`", s.name())
    })?;
    let mut seen = BTreeSet::new();
    for vm in &s.vm {
        let name = vm.name.as_ref();
        ensure(s, is_vm_name(name), vm.name.span(), || {
            format!("vm.name: `{name}` is not 1 to 15 of a-z, 0-9 and -")
        })?;
        ensure(s, seen.insert(name), vm.name.span(), || {
            format!("vm.name: two VMs are called `{name}`")
        })?;
    }
    Ok(())
}

fn check_machine(s: &Scenario) -> Result {
    let machine = &s.machine;
    let cpus = *machine.cpus.as_ref();
    ensure(s, (1..=512).contains(&cpus), machine.cpus.span(), || {
        format!("machine.cpus: {cpus} is not 1 to 512")
    })?;
    for bar in &machine.device_memory {
        let size = bar.as_ref().0;
        ensure(s, size.is_power_of_two() && size >= MIB, bar.span(), || {
            format!(
                "machine.device-memory: {size:#x} is not a power of two from 1 MiB up, as a BAR is"
            )
        })?;
    }
    if let Some(cmdline) = &machine.cmdline {
        let nobody = matches!(machine.boot, Boot::Bios | Boot::Raw);
        ensure(s, !nobody, cmdline.span(), || {
            "machine.cmdline: with boot = \"bios\" or \"raw\" there is nobody to hand a command line over"
                .into()
        })?;
    }
    Ok(())
}

fn check_vm(s: &Scenario, vm: &Vm) -> Result {
    let vcpus = *vm.vcpus.as_ref();
    ensure(s, (1..=64).contains(&vcpus), vm.vcpus.span(), || {
        format!("vm.vcpus: {vcpus} is not 1 to 64")
    })?;
    let (base, size) = (vm.ram_base.as_ref().0, vm.ram.as_ref().0);
    ensure(s, base.is_multiple_of(2 * MIB), vm.ram_base.span(), || {
        format!("vm.ram-base: {base:#x} is not a multiple of 2 MiB")
    })?;
    ensure(
        s,
        size > 0 && size.is_multiple_of(2 * MIB),
        vm.ram.span(),
        || format!("vm.ram: {size:#x} is not a multiple of 2 MiB, or nothing"),
    )?;
    let offsets = [
        ("kernel-offset", &vm.kernel_offset),
        ("dtb-offset", &vm.dtb_offset),
    ];
    for (key, offset) in offsets {
        let Some(offset) = offset else { continue };
        let value = offset.as_ref().0;
        ensure(s, value.is_multiple_of(4 * KIB), offset.span(), || {
            format!("vm.{key}: {value:#x} is not a multiple of 4 KiB")
        })?;
        ensure(s, value < size, offset.span(), || {
            format!("vm.{key}: {value:#x} is beyond the VM's RAM")
        })?;
    }
    for memory in &vm.device_memory {
        check_device_memory(s, memory, vm.granule.unwrap_or(Granule::K4).page())?;
    }
    check_overlaps(s, vm)
}

/// `page`: bytes of a page of the VM's tables.
fn check_device_memory(s: &Scenario, memory: &DeviceMemory, page: u64) -> Result {
    let (offset, size, ipa) = (
        memory.offset.as_ref().0,
        memory.size.as_ref().0,
        memory.ipa.as_ref().0,
    );
    for (key, value, span) in [
        ("offset", offset, memory.offset.span()),
        ("size", size, memory.size.span()),
        ("ipa", ipa, memory.ipa.span()),
    ] {
        ensure(s, value.is_multiple_of(page), span, || {
            let page = page / KIB;
            format!("vm.device-memory.{key}: {value:#x} is not a multiple of {page} KiB")
        })?;
    }
    ensure(s, size > 0, memory.size.span(), || {
        "vm.device-memory.size: is nothing".into()
    })?;
    check_memory_type(s, memory)?;
    if memory.source == Origin::Reserved {
        return Ok(());
    }
    let index = *memory.index.as_ref();
    let bars = &s.machine.device_memory;
    let bar = usize::try_from(index)
        .ok()
        .and_then(|index| bars.get(index))
        .ok_or_else(|| {
            let message = format!(
                "vm.device-memory.index: there is no BAR {index}, machine.device-memory has {}",
                bars.len()
            );
            s.error(memory.index.span(), message)
        })?;
    let bar = bar.as_ref().0;
    ensure(
        s,
        offset.checked_add(size).is_some_and(|end| end <= bar),
        memory.size.span(),
        || {
            format!(
                "vm.device-memory.size: {offset:#x} + {size:#x} is beyond BAR {index}, which has {bar:#x} bytes"
            )
        },
    )?;
    // Blocks need the same offset on both sides; Cordon places BARs at multiples of their size.
    let block = GIB.min(bar);
    ensure(s, ipa % block == offset % block, memory.ipa.span(), || {
        format!(
            "vm.device-memory.ipa: {ipa:#x} and the PA differ within a block of {block:#x} bytes"
        )
    })
}

fn check_memory_type(s: &Scenario, memory: &DeviceMemory) -> Result {
    let Some(kind) = &memory.memory_type else {
        return Ok(());
    };
    let name = kind.as_ref().as_str();
    let known = matches!(name, "write-back" | "non-cacheable" | "device");
    ensure(s, known, kind.span(), || {
        format!(
            "vm.device-memory.memory-type: `{name}` is none of write-back, non-cacheable, device"
        )
    })?;
    let usable = memory.appearance.is_none() || name == "write-back";
    ensure(s, usable, kind.span(), || {
        format!("vm.device-memory.memory-type: what has an `as` is used as memory, so not {name}")
    })
}

fn check_overlaps(s: &Scenario, vm: &Vm) -> Result {
    let mut taken = vec![("the PL011".to_owned(), UART)];
    let ram = (
        "vm.ram",
        vm.ram_base.as_ref().0,
        vm.ram.as_ref().0,
        vm.ram.span(),
    );
    // With `identity` Cordon alone knows where it is.
    let ram = Some(ram).filter(|_| !vm.identity);
    let memory = vm.device_memory.iter().map(|memory| {
        (
            "vm.device-memory.ipa",
            memory.ipa.as_ref().0,
            memory.size.as_ref().0,
            memory.ipa.span(),
        )
    });
    for (key, base, size, span) in ram.into_iter().chain(memory) {
        let end = base.checked_add(size).ok_or_else(|| {
            s.error(
                span.clone(),
                format!("{key}: {base:#x} + {size:#x} overflows"),
            )
        })?;
        let other = taken
            .iter()
            .find(|(_, range)| range.start < end && base < range.end);
        if let Some((name, range)) = other {
            let message = format!(
                "{key}: {base:#x}..{end:#x} overlaps {name} at {:#x}..{:#x}",
                range.start, range.end
            );
            return Err(s.error(span, message));
        }
        taken.push((key.to_owned(), base..end));
    }
    Ok(())
}

fn check_totals(s: &Scenario) -> Result {
    let cpus = u64::from(*s.machine.cpus.as_ref());
    let memory = s.machine.memory.as_ref().0;
    let (mut vcpus, mut ram) = (0, 0_u64);
    for vm in &s.vm {
        vcpus += u64::from(*vm.vcpus.as_ref());
        ram = ram.saturating_add(vm.ram.as_ref().0);
        ensure(s, vcpus <= cpus, vm.vcpus.span(), || {
            format!("vm.vcpus: {vcpus} vCPUs in all, but machine.cpus is {cpus}: each takes a CPU")
        })?;
        let fits = ram < memory || (s.machine.boot == Boot::Direct && ram == memory);
        ensure(s, fits, vm.ram.span(), || {
            format!("vm.ram: {ram:#x} bytes in all do not fit machine.memory, {memory:#x}")
        })?;
    }
    Ok(())
}

/// Without Cordon there is one VM at most, and nothing that Cordon would give it.
fn check_direct(s: &Scenario) -> Result {
    if s.machine.boot != Boot::Direct {
        return Ok(());
    }
    let own = |vm: &Vm| !vm.device_memory.is_empty() || !vm.device.is_empty();
    let alone = s.vm.len() == 1 && !s.vm.iter().any(own);
    ensure(s, alone && s.machine.cmdline.is_none(), 0..0, || {
        "machine.boot: with \"direct\" there is one VM, without device memory or devices, and no cmdline"
            .into()
    })
}

fn check_mutation(s: &Scenario, mutation: &Mutation) -> Result {
    let Mutation {
        truncate,
        remove,
        patch,
        property,
    } = mutation;
    let given = [
        truncate.is_some(),
        remove.is_some(),
        patch.is_some(),
        property.is_some(),
    ];
    let one = given.iter().filter(|given| **given).count() == 1;
    ensure(s, one, 0..0, || {
        "bundle.mutate: give one of truncate, remove, patch, property in each".into()
    })?;
    let bytes = patch.as_ref().map(|patch| &patch.bytes);
    check_hex(s, "bundle.mutate.patch.bytes", bytes)
}

/// Follows the steps in order and sees that every `${...}` has a value by then, and that every
/// figure was measured.
fn check_texts(s: &Scenario) -> Result {
    let mut known = Known {
        picked: s.set.keys().cloned().collect(),
        ..Known::default()
    };
    for pick in &s.pick {
        let pages = pick.span.as_ref().0 / (4 * KIB);
        let count = pick.count.as_ref().map_or(1, |count| *count.as_ref());
        ensure(s, (1..=pages).contains(&count), pick.span.span(), || {
            format!("pick.span: {count} different pages cannot be picked out of {pages}")
        })?;
        let set = if pick.count.is_some() {
            &mut known.lists
        } else {
            &mut known.picked
        };
        set.insert(pick.name.as_ref().clone());
    }
    for step in &s.step {
        check_step(s, step, &mut known)?;
    }
    for figure in &s.figures {
        check_figure(s, figure, &known)?;
    }
    for allow in &s.allow {
        ensure(
            s,
            DEFAULT_NEVER.contains(&allow.as_ref().as_str()),
            allow.span(),
            || format!("allow: `{}` is none of {DEFAULT_NEVER:?}", allow.as_ref()),
        )?;
    }
    Ok(())
}

/// Variables that have a value after the steps looked at so far.
#[derive(Default)]
struct Known {
    picked: BTreeSet<String>,
    lists: BTreeSet<String>,
    measured: BTreeSet<String>,
}

impl Known {
    /// A name with a dot, such as `bar.pa`, comes from the events that announce regions.
    fn is_measured(&self, name: &str) -> bool {
        name.contains('.') || self.measured.contains(name)
    }
}

fn check_step(s: &Scenario, step: &Step, known: &mut Known) -> Result {
    let span = step_span(step);
    let verbs = [
        step.wait.is_some(),
        step.guest.is_some(),
        step.monitor.is_some(),
        step.keys.is_some(),
        step.firmware.is_some(),
        step.qmp.is_some(),
        step.record.is_some(),
        step.acpi.is_some(),
        step.count.is_some(),
        step.disk.is_some(),
        step.pause.is_some(),
        step.exit.is_some(),
    ];
    let verbs = verbs.iter().filter(|given| **given).count();
    ensure(
        s,
        verbs == 1 || (verbs == 0 && !step.expect.is_empty()),
        span.clone(),
        || {
            "step: one of wait, guest, monitor, keys, firmware, qmp, record, acpi, count, disk, pause, exit, or expect alone, is wanted"
            .into()
        },
    )?;
    ensure(
        s,
        (step.count.is_some() || step.disk.is_some()) == step.into.is_some(),
        span.clone(),
        || "step: `count` or `disk` and `into` go together".into(),
    )?;
    if let Some(look) = &step.disk {
        let index = *look.index.as_ref();
        ensure(s, index < s.machine.disk.len(), look.index.span(), || {
            format!("step.disk.index: there is no disk {index}")
        })?;
    }
    ensure(
        s,
        step.exit.as_ref().is_none_or(|exit| *exit.as_ref()),
        span.clone(),
        || "step: `exit = false` says nothing, leave it out".into(),
    )?;
    let lines = [&step.wait, &step.guest, &step.monitor, &step.firmware];
    let lines = lines.into_iter().any(Option::is_some);
    let takes = !step.capture.is_empty() || step.clock.is_some();
    ensure(s, lines || !takes, span, || {
        "step: `capture` and `clock` take from a line, and this step waits for none".into()
    })?;
    let bound = step.each.as_ref().map(|each| each.as_ref().as_str());
    if let (Some(name), Some(each)) = (bound, &step.each) {
        ensure(s, known.lists.contains(name), each.span(), || {
            format!("step.each: no pick with a count is called `{name}`")
        })?;
    }
    let texts = [
        &step.wait,
        &step.guest,
        &step.monitor,
        &step.keys,
        &step.firmware,
        &step.answer,
        &step.qmp,
        &step.count,
    ];
    let table = step.acpi.as_ref().map(|patch| &patch.bytes);
    check_hex(s, "step.acpi.bytes", table)?;
    let record = step.record.as_ref();
    for patch in record.iter().flat_map(|record| &record.patch) {
        check_hex(s, "step.record.patch.bytes", Some(&patch.bytes))?;
    }
    let record = record
        .into_iter()
        .flat_map(|record| record.at.iter().chain([&record.pa]));
    for text in texts.into_iter().flatten().chain(record) {
        for hole in holes(text.as_ref()) {
            check_expression(s, hole, text.span(), known, bound)?;
        }
    }
    known.measured.extend(step.capture.keys().cloned());
    known.measured.extend(step.clock.clone());
    known
        .measured
        .extend(step.into.iter().map(|into| into.as_ref().clone()));
    for expect in &step.expect {
        check_expression(s, expect.as_ref(), expect.span(), known, bound)?;
        let relation = expr::compare(expect.as_ref(), &expr::Variables::new());
        let relation = relation
            .err()
            .is_some_and(|error| error.contains("compares nothing"));
        ensure(s, !relation, expect.span(), || {
            format!("step.expect: `{}` compares nothing", expect.as_ref())
        })?;
    }
    Ok(())
}

fn step_span(step: &Step) -> Range<usize> {
    let texts = [
        &step.wait,
        &step.guest,
        &step.monitor,
        &step.keys,
        &step.firmware,
        &step.qmp,
        &step.count,
        &step.into,
    ];
    let first = texts.into_iter().flatten().next().map(Spanned::span);
    let exit = step.exit.as_ref().map(Spanned::span);
    first
        .or(exit)
        .or_else(|| step.expect.first().map(Spanned::span))
        .unwrap_or_default()
}

fn check_expression(
    s: &Scenario,
    expression: &str,
    span: Range<usize>,
    known: &Known,
    bound: Option<&str>,
) -> Result {
    let unknown = names(expression).into_iter().find(|name| {
        !known.is_measured(name) && !known.picked.contains(*name) && bound != Some(*name)
    });
    match unknown {
        None => Ok(()),
        Some(name) => Err(s.error(span, format!("step: nothing gives `{name}` a value before"))),
    }
}

fn check_figure(s: &Scenario, figure: &Spanned<String>, known: &Known) -> Result {
    let text = figure.as_ref();
    let shape = text.split_once('=').is_some_and(|(key, value)| {
        !key.contains(' ') && value.starts_with("${") && value.find('}') == Some(value.len() - 1)
    });
    ensure(s, shape, figure.span(), || {
        format!("figures: `{text}` is not `key=${{value}}`")
    })?;
    let used: Vec<&str> = holes(text).flat_map(names).collect();
    let measured = !used.is_empty() && used.iter().all(|name| known.is_measured(name));
    ensure(s, measured, figure.span(), || {
        format!("figures: `{text}` is not made of what a step captured or counted")
    })
}
