//! Any bytes as QEMU's ACPI table-loader script. See `cordon_fuzz::platform::table_loader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::platform::table_loader(bytes));
