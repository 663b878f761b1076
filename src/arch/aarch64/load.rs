//! Files into the RAM of a VM that does not run.

use super::fixup::{self, Poisoned};
use super::mmu::{self, Window};
use super::tlb;
use cordon::addr::PaRange;
use cordon::vm::boot::{Contents, LoadError};
use spin::Mutex;

/// Two VMs may be loaded from one file. Windows on the same memory exclude each other, so one after
/// the other it is.
static LOADING: Mutex<()> = Mutex::new(());

/// See [`cordon::vm::hypervisor::Platform::load`].
///
/// # Errors
///
/// If EL2's map does not reach the memory, it is in use otherwise, or it is poison.
pub fn load(to: PaRange, contents: &Contents, offset: u64) -> Result<(), LoadError<mmu::Error>> {
    let _one_at_a_time = LOADING.lock();
    let mut window = Window::open_stopped(to).map_err(LoadError::Platform)?;
    let written = match contents {
        Contents::Bytes(bytes) => fill(&mut window, rest(bytes, offset)),
        Contents::Memory(range) => {
            let file = Window::open_stopped(*range).map_err(LoadError::Platform)?;
            fill(&mut window, rest(&file, offset))
        }
    };
    let cleaned = written.and_then(|()| tlb::clean_to_poc(to.start().get(), to.size()));
    cleaned.map_err(|error| LoadError::Poisoned(error.pa))
}

/// What is in `bytes` from `offset` on.
fn rest(bytes: &[u8], offset: u64) -> &[u8] {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    bytes.get(offset..).unwrap_or_default()
}

/// Copies as much of `from` as fits, and zeroes what is left.
fn fill(to: &mut [u8], from: &[u8]) -> Result<(), Poisoned> {
    let (head, tail) = to.split_at_mut(from.len().min(to.len()));
    fixup::copy(head, from)?;
    fixup::zero(tail)
}
