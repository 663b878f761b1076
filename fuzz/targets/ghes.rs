//! Any memory behind a generic error source. See `cordon_fuzz::ghes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::ghes(bytes));
