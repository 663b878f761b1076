//! The end of the machine: by PSCI, or by what UEFI has in its place.

use super::{crash, reset_service, smc};

/// Whether somebody can end the machine.
pub fn can_end() -> bool {
    smc::is_there() || reset_service::is_there()
}

/// Turns the machine off. Where nobody can, or will, this CPU stops.
pub fn off() -> ! {
    smc::system_off();
    reset_service::call(reset_service::How::Off);
    crash::wait_for_ever()
}

/// Starts the machine anew. Comes back if nobody will.
pub fn reset() {
    smc::system_reset();
    reset_service::call(reset_service::How::Anew);
}
