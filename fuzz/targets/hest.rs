//! Any bytes as a HEST. See `cordon_fuzz::ras::hest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::ras::hest(bytes));
