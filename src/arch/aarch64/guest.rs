//! The guest's side of this CPU: its EL1 registers, and the EL2 registers that hold it in place.
//!
//! vCPUs are pinned, so EL1 state is never switched: it is set to its reset values before a vCPU
//! starts, and is the guest's from then on.
#![expect(unsafe_code, reason = "system registers and guest entry")]

use super::cpu::PerCpu;
use super::features::Features;
use super::vectors::{self, GuestFrame};
use super::vgic::VirtualInterface;
use crate::machine::ThisMachine;
use aarch64_cpu::registers::{
    CNTHCTL_EL2, CNTKCTL_EL1, CNTVOFF_EL2, CPACR_EL1, CPTR_EL2, ELR_EL1, ELR_EL2, ESR_EL1, ESR_EL2,
    FAR_EL1, FAR_EL2, HCR_EL2, HDFGRTR_EL2, HDFGWTR_EL2, HFGITR_EL2, HFGRTR_EL2, HFGWTR_EL2,
    HPFAR_EL2, MDCR_EL2, ReadWriteable, Readable, SCTLR_EL1, SPSR_EL1, SPSR_EL2, TCR_EL1,
    TTBR0_EL1, TTBR1_EL1, VBAR_EL1, VMPIDR_EL2, VTCR_EL2, VTTBR_EL2, Writeable,
};
use cordon::addr::Ipa;
use cordon::ras::inject::{GuestState, Injected};
use cordon::vm::cpu::GuestCpu;
use cordon::vm::hypervisor::Vm;
use cordon::vm::vgic::CpuInterface;
use core::arch::asm;
use core::sync::atomic::Ordering;

/// SCTLR_EL1 out of reset: MMU and caches off; the bits that are RES1 without their features
/// (Arm ARM D19.2.136).
const SCTLR_EL1_RESET: u64 = 0x30d0_0800;
/// PSTATE out of reset and after CPU_ON: EL1h, D, A, I and F masked (Arm ARM D1.3.1.2).
const PSTATE_RESET: u64 = 0x3c5;
/// SPSR_ELx.BTYPE and .SS.
const PSTATE_BTYPE: u64 = 3 << 10;
const PSTATE_SS: u64 = 1 << 21;
/// CPTR_EL2 with E2H = 0: its RES1 bits, SME (TSM) and SVE (TZ, bit 8) trapped, FP not.
const CPTR_EL2_BASE: u64 = 0x33ff;
const CPTR_EL2_TZ: u64 = 1 << 8;
/// VMPIDR_EL2: RES1 bit 31.
const MPIDR_RES1: u64 = 1 << 31;

/// Everything that a VM's address space and its vCPU decide of EL2's registers.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    /// `VTCR_EL2`.
    pub vtcr: u64,
    /// `VTTBR_EL2`.
    pub vttbr: u64,
    /// The tables' memory attributes are those of FEAT_S2FWB.
    pub fwb: bool,
    /// Affinity fields of the MPIDR that the guest sees.
    pub mpidr: u64,
}

/// Confines this CPU's EL1 and EL0 to a VM: set once, before its vCPU first runs.
///
/// Traps: SMC, implementation-defined registers, external aborts (TEA), SErrors and interrupts go
/// to EL2. Pointer authentication, MTE and FP are the guest's to use.
pub fn confine(to: &Confinement, features: &Features) {
    VTCR_EL2.set(to.vtcr);
    VTTBR_EL2.set(to.vttbr);
    VMPIDR_EL2.set(to.mpidr | MPIDR_RES1);
    HCR_EL2.write(
        HCR_EL2::VM::Enable
            + HCR_EL2::RW::EL1IsAarch64
            + HCR_EL2::IMO::SET
            + HCR_EL2::FMO::SET
            + HCR_EL2::AMO::SET
            + HCR_EL2::SWIO::SET
            + HCR_EL2::TSC::EnableTrapEl1SmcToEl2
            + HCR_EL2::TIDCP::SET
            + HCR_EL2::TEA::SET
            + HCR_EL2::TERR::SET
            + HCR_EL2::API::SET
            + HCR_EL2::APK::SET
            + HCR_EL2::FWB.val(to.fwb.into())
            + HCR_EL2::ATA.val(features.mte.into()),
    );
    let trap_sve = if features.sve { 0 } else { CPTR_EL2_TZ };
    CPTR_EL2.set(CPTR_EL2_BASE & !CPTR_EL2_TZ | trap_sve);
    // All of the PMU's counters are the guest's (HPMN = PMCR_EL0.N), nothing is trapped.
    MDCR_EL2.write(MDCR_EL2::HPMN.val(pmu_counters()));
    CNTHCTL_EL2.set(0b11);
    set_optional_controls(features);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// PMCR_EL0.N, bits 15:11.
fn pmu_counters() -> u64 {
    let pmcr: u64;
    // SAFETY: reads a register of FEAT_PMUv3, which every CPU with EL2 that Cordon knows has.
    unsafe { asm!("mrs {}, pmcr_el0", out(reg) pmcr, options(nomem, nostack, preserves_flags)) };
    pmcr >> 11 & 0x1f
}

/// Registers that exist only with their feature and reset to UNKNOWN: no fine-grained traps but
/// those of features that are newer than Cordon (their bits are inverted), no extensions enabled.
fn set_optional_controls(features: &Features) {
    if features.fgt {
        HFGRTR_EL2.set(0);
        HFGWTR_EL2.set(0);
        HFGITR_EL2.set(0);
        HDFGRTR_EL2.set(0);
        HDFGWTR_EL2.set(0);
    }
    // SAFETY: each register is written only where its feature is there.
    unsafe {
        if features.hcx {
            // HCRX_EL2.
            asm!(
                "msr s3_4_c1_c2_2, xzr",
                options(nomem, nostack, preserves_flags)
            );
        }
        if features.sve {
            // ZCR_EL2: the longest vectors there are.
            asm!("msr s3_4_c1_c2_0, {}", in(reg) 0xf_u64, options(nomem, nostack, preserves_flags));
        }
    }
}

/// Puts EL1 into its reset state and PC and PSTATE to `entry`.
fn reset_el1(entry: u64) {
    SCTLR_EL1.set(SCTLR_EL1_RESET);
    CPACR_EL1.set(0);
    TCR_EL1.set(0);
    TTBR0_EL1.set(0);
    TTBR1_EL1.set(0);
    VBAR_EL1.set(0);
    ELR_EL1.set(0);
    SPSR_EL1.set(0);
    ESR_EL1.set(0);
    FAR_EL1.set(0);
    CNTKCTL_EL1.set(0);
    ELR_EL2.set(entry);
    SPSR_EL2.set(PSTATE_RESET);
}

/// Runs vCPU number `vcpu` of `vm` from its reset state, at `entry` with `context` in x0. Comes back
/// never: the next exit starts on a fresh stack.
pub fn start(cpu: &PerCpu, vm: &Vm<ThisMachine>, vcpu: usize, (entry, context): (u64, u64)) -> ! {
    let mut interrupts = VirtualInterface;
    interrupts.silence_timers();
    CNTVOFF_EL2.set(vm.counter_offset.load(Ordering::Relaxed));
    reset_el1(entry);
    interrupts.reset();
    vm.vgic.start(vcpu, &mut interrupts);
    let mut frame = GuestFrame::default();
    frame.x[0] = context;
    // SAFETY: `confine` has given this CPU's EL1 an address space of its own, `reset_el1` has set
    // its state, the stack is this CPU's, and the caller, having no way back, holds no lock.
    unsafe { vectors::enter_guest(&frame, cpu.stack_top) }
}

/// A virtual SError for the current guest, with `vsesr` as its syndrome where there is FEAT_RAS.
pub fn set_virtual_serror(vsesr: u64, features: &Features) {
    if features.ras {
        // SAFETY: VSESR_EL2 exists with FEAT_RAS, and is read by a virtual SError alone.
        unsafe {
            asm!("msr s3_4_c5_c2_3, {}", in(reg) vsesr, options(nomem, nostack, preserves_flags))
        };
    }
    HCR_EL2.modify(HCR_EL2::VSE::SET);
}

/// Leaves the guest for good: goes to `then` on a fresh stack.
pub fn leave(then: extern "C" fn() -> !) -> ! {
    let stack_top =
        super::cpu::try_this().map_or_else(|| super::layout::stack_top(0), |cpu| cpu.stack_top);
    // SAFETY: it is this CPU's stack, and an exit handler holds no lock when it returns this.
    unsafe { vectors::restart(stack_top, then) }
}

/// The CPU that took an exit, with its guest's registers.
pub struct ThisCpu<'a> {
    frame: &'a mut GuestFrame,
    interrupts: VirtualInterface,
}

impl<'a> ThisCpu<'a> {
    /// At the exit that pushed `frame`.
    pub fn new(frame: &'a mut GuestFrame) -> Self {
        Self {
            frame,
            interrupts: VirtualInterface,
        }
    }
}

impl GuestCpu for ThisCpu<'_> {
    type Interrupts = VirtualInterface;

    fn esr(&self) -> u64 {
        ESR_EL2.get()
    }

    fn far(&self) -> u64 {
        FAR_EL2.get()
    }

    fn hpfar(&self) -> u64 {
        HPFAR_EL2.get()
    }

    fn register(&self, number: u8) -> u64 {
        self.frame.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    fn set_register(&mut self, number: u8, value: u64) {
        if let Some(register) = self.frame.x.get_mut(usize::from(number)) {
            *register = value;
        }
    }

    fn skip_instruction(&mut self) {
        ELR_EL2.set(ELR_EL2.get().wrapping_add(4));
        SPSR_EL2.set(SPSR_EL2.get() & !(PSTATE_BTYPE | PSTATE_SS));
    }

    fn exception_level(&self) -> u8 {
        // SPSR.M[3:2]; an AArch32 guest runs at EL0 only.
        ((SPSR_EL2.get() >> 2) & 3) as u8
    }

    fn state(&self) -> GuestState {
        GuestState {
            pc: ELR_EL2.get(),
            pstate: SPSR_EL2.get(),
            vbar: VBAR_EL1.get(),
            sctlr: SCTLR_EL1.get(),
            ease: false,
            exlocken: false,
            features: super::features::get().for_injection(),
        }
    }

    fn deliver(&mut self, exception: &Injected) {
        ESR_EL1.set(exception.esr_el1);
        if let Some(far) = exception.far_el1 {
            FAR_EL1.set(far);
        }
        ELR_EL1.set(exception.elr_el1);
        SPSR_EL1.set(exception.spsr_el1);
        ELR_EL2.set(exception.pc);
        SPSR_EL2.set(exception.pstate);
    }

    fn virtual_serror(&mut self, vsesr: u64) {
        set_virtual_serror(vsesr, super::features::get());
    }

    #[inline]
    fn interrupts(&mut self) -> &mut VirtualInterface {
        &mut self.interrupts
    }

    fn translate(&self, va: u64) -> Option<Ipa> {
        super::fixup::stage1_translate(va)
    }
}
