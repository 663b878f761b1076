//! Files into the RAM of a VM that does not run.

use super::mmu::{self, Window};
use super::tlb;
use cordon::addr::PaRange;
use cordon::vm::boot::Contents;
use spin::Mutex;

/// Two VMs may be loaded from one file. Windows on the same memory exclude each other, so one after
/// the other it is.
static LOADING: Mutex<()> = Mutex::new(());

/// See [`cordon::vm::hypervisor::Platform::load`].
///
/// # Errors
///
/// If EL2's map does not reach the memory, or it is in use otherwise.
pub fn load(to: PaRange, contents: &Contents, offset: u64) -> Result<(), mmu::Error> {
    let _one_at_a_time = LOADING.lock();
    let mut window = Window::open_stopped(to)?;
    match contents {
        Contents::Bytes(bytes) => fill(&mut window, rest(bytes, offset)),
        Contents::Memory(range) => {
            let file = Window::open_stopped(*range)?;
            fill(&mut window, rest(&file, offset));
        }
    }
    tlb::clean_to_poc(to.start().get(), to.size());
    Ok(())
}

/// What is in `bytes` from `offset` on.
fn rest(bytes: &[u8], offset: u64) -> &[u8] {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    bytes.get(offset..).unwrap_or_default()
}

/// Copies as much of `from` as fits, and zeroes what is left.
fn fill(to: &mut [u8], from: &[u8]) {
    let (head, tail) = to.split_at_mut(from.len().min(to.len()));
    head.copy_from_slice(&from[..head.len()]);
    tail.fill(0);
}
