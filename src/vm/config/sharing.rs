//! Memory that several pieces of device memory have in common: only where each of them says so.
//!
//! One VM that maps another's memory can read and write it. So that is nothing to happen by a slip in an
//! offset or an index; and a VM that has memory to itself may rely on that.

use super::{ConfigError, DeviceMemory, VmConfig, Why};
use alloc::format;

/// # Errors
/// [`Why::NotShared`] for a piece that is not `shared` and has some memory in common with another.
pub(super) fn check(vms: &[VmConfig<'_>]) -> Result<(), ConfigError> {
    let mut all = vms.iter().flat_map(|vm| &vm.device_memory);
    while let Some(piece) = all.next() {
        for other in all.clone().filter(|other| piece.meets(other)) {
            // The one that says it is right, and the other one is blamed.
            let (blamed, by) = if piece.shared {
                (other, piece)
            } else {
                (piece, other)
            };
            if !blamed.shared {
                let with = format!("{}:{}", by.origin.0, by.origin.1);
                return Err(blamed.error("shared", Why::NotShared { with }));
            }
        }
    }
    Ok(())
}

impl DeviceMemory {
    /// Whether the two have memory in common.
    fn meets(&self, other: &Self) -> bool {
        // An offset that makes this wrap around is found wrong when the source is known.
        let end = |piece: &Self| piece.offset.saturating_add(piece.ipa.size());
        (self.source, self.index) == (other.source, other.index)
            && self.offset < end(other)
            && other.offset < end(self)
    }
}
