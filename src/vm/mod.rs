//! Virtual machines: description, vCPUs, exits.

pub mod psci;
pub mod vuart;
