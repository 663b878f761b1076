//! The QEMU harness: starts machines, plays scenarios, judges what came out.
//!
//! A scenario is a TOML file under `scenarios/`, in the language that README.md beside this crate
//! describes. From the file to the verdict:
//!
//! ```text
//! scenario ─ check ─ bundle, acpi, dtb ─ machine ══ QEMU
//!                               │ lines, with their time of arrival
//!                             steps ─ line (patterns), expr (${...}), pages (what to strike)
//!                               │ outcome
//!                             report: PASS or FAIL, and the table of a containment
//! ```
//!
//! Nothing here knows what Cordon should do; the scenarios say that. What is here sees to it that
//! a scenario cannot pass without it: every wait is bounded, every figure was measured.

mod acpi;
mod board;
pub mod bundle;
mod check;
pub mod cpio;
mod disk;
mod dtb;
pub mod expr;
pub mod interactive;
pub mod interrupt;
pub mod line;
pub mod machine;
pub mod outcome;
mod pages;
mod qtest;
mod record;
pub mod report;
pub mod scenario;
pub mod steps;
mod tables;
pub mod volume;
