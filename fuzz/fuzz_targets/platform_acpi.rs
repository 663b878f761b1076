//! Any bytes as memory that holds ACPI tables, the RSDP first: checked without a panic.
#![no_main]

use cordon::addr::Pa;
use cordon::platform::acpi::{CheckedTables, PhysicalBytes};
use libfuzzer_sys::fuzz_target;

struct Memory<'a>(&'a [u8]);

impl PhysicalBytes for Memory<'_> {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(start.get()).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

fuzz_target!(|memory: &[u8]| {
    let _ = CheckedTables::new(&Memory(memory), Pa::new(0));
});
