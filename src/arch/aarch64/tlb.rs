//! TLB maintenance for stage 2 and the barriers that go with table updates (Arm ARM D8.17).
#![expect(unsafe_code, reason = "TLBI and DSB instructions")]

use super::fixup::{self, Poisoned};
use aarch64_cpu::registers::{Readable, VTTBR_EL2, Writeable};
use cordon::addr::{Ipa, Vmid};
use cordon::stage2::{Level, Tlb};
use core::arch::asm;

/// This machine's TLBs: the Inner Shareable domain.
#[derive(Clone, Copy, Debug, Default)]
pub struct HardwareTlb;

/// VTTBR_EL2.VMID is bits 63:48, of which Cordon uses 8.
const VMID_SHIFT: u32 = 48;

/// Runs `invalidate` with `vmid` current, as TLBI by VMID wants it. No guest runs on this CPU
/// meanwhile, and EL2's own accesses use neither the VMID nor the base that go with it.
fn with_vmid(vmid: Vmid, invalidate: impl FnOnce()) {
    let current = VTTBR_EL2.get();
    let wanted = u64::from(vmid.get());
    if current >> VMID_SHIFT == wanted {
        return invalidate();
    }
    VTTBR_EL2.set(wanted << VMID_SHIFT);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    invalidate();
    VTTBR_EL2.set(current);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

impl Tlb for HardwareTlb {
    fn publish(&self) {
        // SAFETY: a barrier.
        unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    }

    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa, _leaf: Option<Level>) {
        let operand = ipa.get() >> 12;
        with_vmid(vmid, || {
            // SAFETY: invalidating can only cost walks. No TTL hint is given: bits 47:44 are 0.
            unsafe {
                asm!("tlbi ipas2e1is, {}", "dsb ish", in(reg) operand,
                     options(nostack, preserves_flags));
            }
        });
    }

    fn invalidate_leaves(
        &self,
        vmid: Vmid,
        first: Ipa,
        (count, size): (usize, u64),
        _level: Level,
    ) {
        let (first, step) = (first.get() >> 12, size >> 12);
        with_vmid(vmid, || {
            for index in 0..count as u64 {
                let operand = first + index * step;
                // SAFETY: as above.
                unsafe {
                    asm!("tlbi ipas2e1is, {}", in(reg) operand, options(nostack, preserves_flags));
                }
            }
            // SAFETY: a barrier.
            unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
        });
    }

    fn invalidate_vm(&self, vmid: Vmid) {
        with_vmid(vmid, || {
            // SAFETY: as above.
            unsafe {
                asm!(
                    "tlbi vmalle1is",
                    "dsb ish",
                    "isb",
                    options(nostack, preserves_flags)
                );
            }
        });
    }

    fn invalidate_vm_all(&self, vmid: Vmid) {
        with_vmid(vmid, || {
            // SAFETY: as above.
            unsafe {
                asm!(
                    "tlbi vmalls12e1is",
                    "dsb ish",
                    "isb",
                    options(nostack, preserves_flags)
                );
            }
        });
    }
}

/// Makes what EL2 wrote to `address` and the `size` bytes from it visible to an observer without
/// caches: a CPU or guest that starts with the MMU off. Cleans and invalidates to the point of
/// coherency, and the instruction caches too.
///
/// # Errors
///
/// If it is poison.
pub fn clean_to_poc(address: u64, size: u64) -> Result<(), Poisoned> {
    let cleaned = clean_data_to_poc(address, size);
    // SAFETY: barriers, and instruction cache lines can be fetched again.
    unsafe {
        asm!(
            "ic ialluis",
            "dsb sy",
            "isb",
            options(nostack, preserves_flags)
        )
    };
    cleaned
}

/// The same of data caches alone: afterwards none of them holds anything of these bytes.
///
/// # Errors
///
/// If it is poison.
pub fn clean_data_to_poc(address: u64, size: u64) -> Result<(), Poisoned> {
    let ctr: u64;
    // SAFETY: reads an ID register. DminLine is log2 of words (Arm ARM D19.2.34).
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    let line = 4u64 << ((ctr >> 16) & 0xf);
    let cleaned = fixup::clean(address & !(line - 1), address + size, line);
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    cleaned
}
