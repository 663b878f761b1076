//! Any bytes as the machine's device tree. See `cordon_fuzz::platform::fdt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::platform::fdt(bytes));
