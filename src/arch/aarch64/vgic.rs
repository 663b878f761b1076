//! The hypervisor's side of this CPU's virtual interrupts: ICH_*_EL2 and the guest's timers.
#![expect(unsafe_code, reason = "system registers")]

use aarch64_cpu::registers::{
    CNTP_CTL_EL0, CNTV_CTL_EL0, ICH_HCR_EL2, ICH_VMCR_EL2, ICH_VTR_EL2, Readable, Writeable,
};
use cordon::vm::vgic::{CpuInterface, MAX_LISTS, PHYSICAL_TIMER, VIRTUAL_TIMER};
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

/// CNTx_CTL_EL0: ENABLE, IMASK and ISTATUS are bits 0 to 2.
const TIMER_ASKS: u64 = 0b101;

/// This CPU's virtual CPU interface.
#[derive(Debug, Default)]
pub struct VirtualInterface;

/// Reads or writes one of the numbered registers `$name`0 to `$name`15 with the instruction that
/// names it: registers have no other addresses.
macro_rules! numbered {
    ($index:expr, $access:ident, $value:ident, $($number:literal = $name:literal),+) => {
        match $index {
            $($number => numbered!(@$access $name, $value),)+
            _ => {}
        }
    };
    (@read $name:literal, $value:ident) => {
        // SAFETY: reads a register that the caller has made sure exists; no side effect.
        unsafe {
            asm!(concat!("mrs {}, ", $name), out(reg) $value, options(nomem, nostack, preserves_flags))
        }
    };
    (@write $name:literal, $value:ident) => {
        // SAFETY: writes a register that the caller has made sure exists; it affects the
        // guest's interrupts alone.
        unsafe {
            asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nomem, nostack, preserves_flags))
        }
    };
}

/// [`numbered!`] for ICH_LR`n`_EL2: S3_4_C12_C12_n, then S3_4_C12_C13_n.
macro_rules! list_register {
    ($index:expr, $access:ident, $value:ident) => {
        numbered!(
            $index,
            $access,
            $value,
            0 = "s3_4_c12_c12_0",
            1 = "s3_4_c12_c12_1",
            2 = "s3_4_c12_c12_2",
            3 = "s3_4_c12_c12_3",
            4 = "s3_4_c12_c12_4",
            5 = "s3_4_c12_c12_5",
            6 = "s3_4_c12_c12_6",
            7 = "s3_4_c12_c12_7",
            8 = "s3_4_c12_c13_0",
            9 = "s3_4_c12_c13_1",
            10 = "s3_4_c12_c13_2",
            11 = "s3_4_c12_c13_3",
            12 = "s3_4_c12_c13_4",
            13 = "s3_4_c12_c13_5",
            14 = "s3_4_c12_c13_6",
            15 = "s3_4_c12_c13_7"
        )
    };
}

/// [`numbered!`] for ICH_AP0R`n`_EL2 (n from 0) and ICH_AP1R`n`_EL2 (from 4).
macro_rules! active_priorities {
    ($index:expr, $access:ident, $value:ident) => {
        numbered!(
            $index,
            $access,
            $value,
            0 = "s3_4_c12_c8_0",
            1 = "s3_4_c12_c8_1",
            2 = "s3_4_c12_c8_2",
            3 = "s3_4_c12_c8_3",
            4 = "s3_4_c12_c9_0",
            5 = "s3_4_c12_c9_1",
            6 = "s3_4_c12_c9_2",
            7 = "s3_4_c12_c9_3"
        )
    };
}

/// How many list registers every CPU has that has a vCPU. Asked for on every interrupt, so it is kept:
/// registers of the interface can be slow to read.
static LIST_REGISTERS: AtomicUsize = AtomicUsize::new(MAX_LISTS);

/// Counts this CPU's list registers. No guest runs yet.
pub fn count_list_registers() {
    // ICH_VTR_EL2.ListRegs, less one.
    let count = (ICH_VTR_EL2.get() & 0xf) as usize + 1;
    LIST_REGISTERS.fetch_min(count, Ordering::Relaxed);
}

impl VirtualInterface {
    /// Nothing in any register, no priority active, the guest's own controls as after a reset.
    pub fn reset(&mut self) {
        /// ICH_VTR_EL2.PREbits, less one: preemption levels need 1, 2 or 4 registers.
        const PRE_BITS_SHIFT: u32 = 26;
        let bits = (ICH_VTR_EL2.get() >> PRE_BITS_SHIFT & 0b111) + 1;
        let registers = match bits {
            ..=5 => 1,
            6 => 2,
            _ => 4,
        };
        let none = 0_u64;
        for index in 0..registers {
            active_priorities!(index, write, none);
            active_priorities!(index + 4, write, none);
        }
        for index in 0..self.list_registers() {
            self.write_list(index, 0);
        }
        ICH_VMCR_EL2.set(0);
    }
}

impl CpuInterface for VirtualInterface {
    #[inline]
    fn list_registers(&self) -> usize {
        LIST_REGISTERS.load(Ordering::Relaxed)
    }

    #[inline]
    fn read_list(&self, index: usize) -> u64 {
        let mut value = 0_u64;
        if index < self.list_registers() {
            list_register!(index, read, value);
        }
        value
    }

    #[inline]
    fn write_list(&mut self, index: usize, value: u64) {
        if index < self.list_registers() {
            list_register!(index, write, value);
        }
    }

    #[inline]
    fn empty_lists(&self) -> u16 {
        let value: u64;
        // SAFETY: reads ICH_ELRSR_EL2, which every GICv3 CPU interface with EL2 has.
        unsafe {
            asm!("mrs {}, s3_4_c12_c11_5", out(reg) value, options(nomem, nostack, preserves_flags))
        };
        (value & 0xffff) as u16
    }

    #[inline]
    fn control(&self) -> u64 {
        ICH_HCR_EL2.get()
    }

    #[inline]
    fn set_control(&mut self, value: u64) {
        ICH_HCR_EL2.set(value);
    }

    #[inline]
    fn splits_end(&self) -> bool {
        /// ICH_VMCR_EL2.VEOIM.
        const END_IS_SPLIT: u64 = 1 << 9;
        ICH_VMCR_EL2.get() & END_IS_SPLIT != 0
    }

    #[inline]
    fn timer_line(&self, intid: u16) -> bool {
        let control = match intid {
            VIRTUAL_TIMER => CNTV_CTL_EL0.get(),
            PHYSICAL_TIMER => CNTP_CTL_EL0.get(),
            _ => 0,
        };
        control & 0b111 == TIMER_ASKS
    }

    fn wait(&self) {
        let all = u16::MAX >> (16 - self.list_registers());
        if self.empty_lists() & all == all {
            // Physical interrupts are masked here, and end it all the same (Arm ARM D1.6.2).
            aarch64_cpu::asm::wfi();
        }
    }

    fn silence_timers(&mut self) {
        CNTV_CTL_EL0.set(0);
        CNTP_CTL_EL0.set(0);
        // Their lines must have dropped before anybody looks.
        aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    }

    fn deactivate(&mut self, physical: u16) {
        super::gic::deactivate(physical.into());
    }
}
