//! Any bytes as the machine's device tree: refused, or read and printed.
#![no_main]

use cordon::addr::Pa;
use cordon::platform::fdt::CheckedFdt;
use cordon::platform::machine::Machine;
use cordon::platform::memory::FreeMemory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|blob: &[u8]| {
    let Ok(fdt) = CheckedFdt::new(blob) else { return };
    let Ok(machine) = Machine::from_fdt(&fdt, Pa::new(0x4000_0000)) else { return };
    let _ = machine.to_string();
    let reserved = machine.reserved.iter().map(|reserved| reserved.range);
    let free = FreeMemory::new(machine.ram.iter().copied(), reserved);
    assert!(free.ranges().all(|range| range.size() % 4096 == 0));
});
