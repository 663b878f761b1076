//! Virtual machines: description, vCPUs, exits.

pub mod config;
pub mod guest_dt;
