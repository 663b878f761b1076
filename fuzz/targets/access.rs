//! Any instruction with any registers. See `cordon_fuzz::access::access`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::access::access(bytes));
