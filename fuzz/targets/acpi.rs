//! Any bytes as memory that holds ACPI tables. See `cordon_fuzz::platform::acpi`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::platform::acpi(bytes));
