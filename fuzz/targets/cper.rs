//! Any bytes as a Generic Error Status Block. See `cordon_fuzz::ras::cper`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::ras::cper(bytes));
