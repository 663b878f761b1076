//! Any bytes as a HEST. See `cordon_fuzz::hest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::hest(bytes));
