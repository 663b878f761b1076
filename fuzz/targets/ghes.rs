//! Any memory behind a generic error source. See `cordon_fuzz::ras::ghes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::ras::ghes(bytes));
