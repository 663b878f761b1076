//! Memory errors: from a raw exception or record to a contained page and a guest that knows.
//!
//! ```text
//!   learn of it                       decide            act
//!   esr   what the CPU says      \
//!   hest  where firmware reports  \
//!   watch how it makes that known |
//!   ghes  fetch one report        -> event, triage  ->  poison   which pages are bad
//!   cper  what the report says    /                     inject   what the guest is told
//! ```
//!
//! Everything in here is a function of its arguments: registers and memory are read by the caller
//! and handed in, what must be written is handed back. What firmware wrote and what a guest did are
//! allegations; they become typed values once, at the edge, or a named error.

pub mod capabilities;
pub mod contain;
pub mod counters;
pub mod cper;
pub mod esr;
pub mod event;
pub mod filter;
pub mod ghes;
pub mod hest;
pub mod inject;
pub mod journal;
pub mod loops;
pub mod media;
pub mod pipeline;
pub mod poison;
pub mod repair;
pub mod retired;
pub mod soft_offline;
mod sources;
pub mod spares;
pub mod triage;
pub mod watch;
