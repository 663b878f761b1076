//! Virtual machines: what a bundle says of them, what they are made of, and what is done at each
//! exit.
//!
//! ```text
//!   config       the bundle's description, checked
//!   guest_dt     what the guest is told of its machine; caches: what its CPUs have
//!   hypervisor   the VMs and what they share; virtual_machine: one of them; platform: what they need of
//!                the machine; spaces: their maps, as containment has them
//!   boot         how a VM starts, and starts again
//!   vcpu         on or off
//!   vgic         interrupts
//!   device       devices of the machine that are a VM's own
//!   exit         why a guest stopped, and the answer; psci, vuart: what it may ask for;
//!                quick: the exits that come often;
//!                system_registers, id_registers: what it reads of its CPU;
//!                skip: how it goes on behind what was done for it
//!   hypercall    what a guest may ask of Cordon; services answers
//!   memory_error the part of exit that Cordon is for
//!   access       what a guest wants of the good pages under a hole, carried out
//!   injection    what is done on request: errors, filters; report: what was counted
//!   bad_memory   the guest's device tree, with what it has lost
//!   monitor      what a person at the monitor may ask for
//! ```

pub mod access;
pub mod bad_memory;
pub mod boot;
pub mod caches;
pub mod config;
pub mod cpu;
pub mod device;
pub mod error_device;
pub mod exit;
pub mod guest_acpi;
pub mod guest_dt;
pub mod hypercall;
pub mod hypervisor;
pub mod id_registers;
pub mod injection;
mod lookout;
pub mod memory_error;
pub mod mending;
pub mod monitor;
pub mod platform;
mod protect;
pub mod psci;
pub mod quick;
pub mod report;
pub mod services;
pub mod skip;
mod spaces;
pub mod system_registers;
#[cfg(test)]
mod tests;
pub mod vcpu;
pub mod vgic;
pub mod virtual_machine;
pub mod vuart;
