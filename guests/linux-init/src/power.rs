//! The ways out: both are PSCI calls of the kernel.

use anyhow::{Context, Result};
use rustix::system::{RebootCommand, reboot as system_reboot};

/// SYSTEM_OFF.
pub(crate) fn off() -> Result<()> {
    end(RebootCommand::PowerOff)
}

/// SYSTEM_RESET.
pub(crate) fn reboot() -> Result<()> {
    end(RebootCommand::Restart)
}

fn end(how: RebootCommand) -> Result<()> {
    rustix::fs::sync();
    system_reboot(how).context("the kernel refused")
}
