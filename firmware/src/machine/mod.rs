//! The machine: everything that is an instruction, a system register or a device register.
//!
//! The only part of the firmware with unsafe code, in few modules that each say why.

pub(crate) mod boot;
pub(crate) mod cpu;
pub(crate) mod fw_cfg;
pub(crate) mod gic;
pub(crate) mod heap;
pub(crate) mod mmio;
pub(crate) mod power;
pub(crate) mod ram;
pub(crate) mod sysreg;
pub(crate) mod uart;
