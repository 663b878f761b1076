//! The guest's side of this CPU: its EL1 registers, and the EL2 registers that hold it in place.
//!
//! vCPUs are pinned, so EL1 state is never switched: it is set to its reset values before a vCPU
//! starts, and is the guest's from then on.
#![expect(unsafe_code, reason = "system registers and guest entry")]

use super::features::Features;
use super::vectors::{self, GuestFrame};
use super::vgic::{VirtualInterface, count_list_registers};
use super::{cpu::PerCpu, features, reset};
use crate::machine::ThisMachine;
use aarch64_cpu::registers::{
    CNTHCTL_EL2, CNTVOFF_EL2, CPTR_EL2, ELR_EL1, ELR_EL2, ESR_EL1, ESR_EL2, FAR_EL1, FAR_EL2,
    HAFGRTR_EL2, HCR_EL2, HDFGRTR_EL2, HDFGWTR_EL2, HFGITR_EL2, HFGRTR_EL2, HFGWTR_EL2, HPFAR_EL2,
    MDCR_EL2, MIDR_EL1, ReadWriteable, Readable, SCTLR_EL1, SP_EL0, SP_EL1, SPSR_EL1, SPSR_EL2,
    VBAR_EL1, VMPIDR_EL2, VTCR_EL2, VTTBR_EL2, Writeable,
};
use cordon::addr::Ipa;
use cordon::ras::inject::pstate::NZCV;
use cordon::ras::inject::{GuestState, Injected};
use cordon::vm::access::env::GuestRegisters;
use cordon::vm::cpu::{Denied, GuestCpu, Rights, Stage1};
use cordon::vm::hypervisor::Vm;
use cordon::vm::skip;
use cordon::vm::vgic::CpuInterface;
use core::arch::asm;
use core::sync::atomic::Ordering;

/// PSTATE out of reset and after CPU_ON: EL1h, D, A, I and F masked (Arm ARM D1.3.1.2).
const PSTATE_RESET: u64 = 0x3c5;
/// CPTR_EL2 with E2H = 0: its RES1 bits, SME (TSM) and SVE (TZ, bit 8) trapped, FP not.
const CPTR_EL2_BASE: u64 = 0x33ff;
const CPTR_EL2_TZ: u64 = 1 << 8;
/// CPTR_EL2.TTA and .TAM: trace and activity monitors are trapped. What they count and show is the
/// CPU's, EL2 included.
const CPTR_EL2_TTA: u64 = 1 << 20;
const CPTR_EL2_TAM: u64 = 1 << 30;
/// CNTHCTL_EL2 with E2H = 0: EL1PCTEN and EL1PCEN, counter and timer are the guest's.
const CNTHCTL_GUEST_TIMERS: u64 = 0b11;
/// ZCR_EL2.LEN: the longest vectors there are.
const ZCR_LONGEST: u64 = 0xf;
/// PMUVer of FEAT_PMUv3p1 and FEAT_PMUv3p5 (ID_AA64DFR0_EL1).
const PMU_V3P1: u8 = 4;
const PMU_V3P5: u8 = 6;
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

/// Lets this CPU use vector registers, at their full length: its guest, and EL2, which fills tables with them
/// ([`super::fill`]) whether there is a guest or not. So this comes before anything else.
pub fn open_vectors(features: &Features) {
    let trap_sve = if features.sve { 0 } else { CPTR_EL2_TZ };
    CPTR_EL2.set(CPTR_EL2_BASE & !CPTR_EL2_TZ | trap_sve | CPTR_EL2_TTA | CPTR_EL2_TAM);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    if features.sve {
        // SAFETY: ZCR_EL2, which is there and is not trapped any more.
        unsafe {
            asm!("msr s3_4_c1_c2_0, {}", "isb", in(reg) ZCR_LONGEST,
                 options(nomem, nostack, preserves_flags));
        }
    }
}

/// Confines this CPU's EL1 and EL0 to a VM: set once, before its vCPU first runs. Every register
/// that reset leaves UNKNOWN and that a guest could feel is written.
///
/// Traps: SMC, ID registers, implementation-defined registers, LORegions, external aborts (TEA), SErrors and
/// interrupts go to EL2. Pointer authentication, MTE and FP are the guest's to use.
pub fn confine(to: &Confinement, features: &Features) {
    count_list_registers();
    VTCR_EL2.set(to.vtcr);
    VTTBR_EL2.set(to.vttbr);
    set_virtual_midr(MIDR_EL1.get());
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
            + HCR_EL2::TID3::SET
            + HCR_EL2::TACR::SET
            + HCR_EL2::TLOR::SET
            + HCR_EL2::TEA::SET
            + HCR_EL2::TERR::SET
            + HCR_EL2::API::SET
            + HCR_EL2::APK::SET
            + HCR_EL2::FWB.val(to.fwb.into())
            + HCR_EL2::EnSCXT.val(features.scxtnum.into())
            + HCR_EL2::ATA.val(features.mte.into()),
    );
    confine_monitors(features);
    CNTHCTL_EL2.set(CNTHCTL_GUEST_TIMERS);
    set_optional_controls(features);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// Debug is the guest's. The PMU is trapped, for its interrupt is not delivered and no ID register
/// shows it; its counters are EL1's all the same (HPMN = PMCR_EL0.N) and count nothing of EL2's.
/// Profiling and tracing, which write memory by themselves, are trapped.
fn confine_monitors(features: &Features) {
    MDCR_EL2.write(
        MDCR_EL2::HPMN.val(pmu_counters(features))
            + MDCR_EL2::TPM::SET
            + MDCR_EL2::TPMCR::SET
            + MDCR_EL2::HPMD.val((features.pmu >= PMU_V3P1).into())
            + MDCR_EL2::HCCD.val((features.pmu >= PMU_V3P5).into())
            + MDCR_EL2::TPMS::SET
            + MDCR_EL2::TTRF::SET,
    );
}

/// PMCR_EL0.N, bits 15:11; 0 where there is no PMU.
fn pmu_counters(features: &Features) -> u64 {
    if features.pmu == 0 {
        return 0;
    }
    let pmcr: u64;
    // SAFETY: reads a register of FEAT_PMUv3, which is there.
    unsafe { asm!("mrs {}, pmcr_el0", out(reg) pmcr, options(nomem, nostack, preserves_flags)) };
    pmcr >> 11 & 0x1f
}

/// No fine-grained traps but those of features that are newer than Cordon (their bits are
/// inverted), no extensions enabled, no traps of AArch32.
fn set_optional_controls(features: &Features) {
    if features.fgt {
        HFGRTR_EL2.set(0);
        HFGWTR_EL2.set(0);
        HFGITR_EL2.set(0);
        HDFGRTR_EL2.set(0);
        HDFGWTR_EL2.set(0);
    }
    if features.fgt && features.amu {
        HAFGRTR_EL2.set(0);
    }
    // SAFETY: EL2's controls of its guest; each is written only where its feature is there.
    unsafe {
        asm!(
            "msr hstr_el2, xzr",
            options(nomem, nostack, preserves_flags)
        );
        if features.fgt2 {
            // HFGRTR2_EL2, HFGWTR2_EL2, HFGITR2_EL2, HDFGRTR2_EL2, HDFGWTR2_EL2.
            asm!(
                "msr s3_4_c3_c1_2, xzr",
                "msr s3_4_c3_c1_3, xzr",
                "msr s3_4_c3_c1_7, xzr",
                "msr s3_4_c3_c1_0, xzr",
                "msr s3_4_c3_c1_1, xzr",
                options(nomem, nostack, preserves_flags)
            );
        }
        if features.hcx {
            // HCRX_EL2.
            asm!(
                "msr s3_4_c1_c2_2, xzr",
                options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// Lets guests read `midr` as MIDR_EL1: VPIDR_EL2 is UNKNOWN out of reset where there is an EL3.
fn set_virtual_midr(midr: u64) {
    // SAFETY: only guests see it.
    unsafe { asm!("msr vpidr_el2, {}", in(reg) midr, options(nomem, nostack, preserves_flags)) };
}

/// Runs vCPU number `vcpu` of `vm` from its reset state, at `entry` with `context` in x0. Comes back
/// never: the next exit starts on a fresh stack.
pub fn start(cpu: &PerCpu, vm: &Vm<ThisMachine>, vcpu: usize, (entry, context): (u64, u64)) -> ! {
    let mut interrupts = VirtualInterface;
    interrupts.silence_timers();
    CNTVOFF_EL2.set(vm.counter_offset.load(Ordering::Relaxed));
    reset::reset_el1(features::get());
    ELR_EL2.set(entry);
    SPSR_EL2.set(PSTATE_RESET);
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

/// Which of a guest's registers an exit has saved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// Those that a function may clobber, x0 to x18 and x30.
    CallerSaved,
    /// All.
    All,
}

/// The CPU that took an exit, with its guest's registers.
pub struct ThisCpu<'a> {
    frame: &'a mut GuestFrame,
    saved: Saved,
    interrupts: VirtualInterface,
}

impl<'a> ThisCpu<'a> {
    /// At the exit that pushed `frame`.
    #[inline]
    pub fn new(frame: &'a mut GuestFrame, saved: Saved) -> Self {
        Self {
            frame,
            saved,
            interrupts: VirtualInterface,
        }
    }

    /// SPSR.M: EL1h. AArch32, at EL0 alone, has no SP here.
    fn uses_sp_el1(&self) -> bool {
        SPSR_EL2.get() & 0x1f == 0b00101
    }
}

impl GuestRegisters for ThisCpu<'_> {
    fn register(&self, number: u8) -> u64 {
        self.frame.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    fn set_register(&mut self, number: u8, value: u64) {
        if let Some(register) = self.frame.x.get_mut(usize::from(number)) {
            *register = value;
        }
    }

    fn stack_pointer(&self) -> u64 {
        if self.uses_sp_el1() {
            SP_EL1.get()
        } else {
            SP_EL0.get()
        }
    }

    fn set_stack_pointer(&mut self, value: u64) {
        if self.uses_sp_el1() {
            SP_EL1.set(value);
        } else {
            SP_EL0.set(value);
        }
    }

    fn vector(&self, number: u8) -> u128 {
        super::vectors_of_guest::read(number)
    }

    fn set_vector(&mut self, number: u8, value: u128) {
        super::vectors_of_guest::write(number, value);
    }

    fn pc(&self) -> u64 {
        ELR_EL2.get()
    }

    fn zero_block(&self) -> u64 {
        /// DCZID_EL0.BS: log2 of words, at most 9.
        const BS: u64 = 0xf;
        let dczid: u64;
        // SAFETY: reads an ID register.
        unsafe {
            asm!("mrs {}, dczid_el0", out(reg) dczid, options(nomem, nostack, preserves_flags));
        }
        4 << (dczid & BS).min(9)
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

    fn pfar(&self) -> Option<u64> {
        if !features::get().pfar {
            return None;
        }
        let pfar: u64;
        // SAFETY: PFAR_EL2, which is there. Firmware that does not enable it (SCR_EL3.PFAREn) keeps
        // ESR_EL2.PFV from ever being set, and is not asked: see `Abort::pfar_valid`.
        unsafe {
            asm!("mrs {}, s3_4_c6_c0_5", out(reg) pfar, options(nomem, nostack, preserves_flags));
        }
        Some(pfar)
    }

    fn overstates_serrors(&self) -> bool {
        cordon::ras::triage::overstates_serrors(MIDR_EL1.get())
    }

    fn move_fault(&mut self, far: u64) {
        FAR_EL2.set(far);
    }

    fn has_register(&self, number: u8) -> bool {
        self.saved == Saved::All || !(19..30).contains(&number)
    }

    fn skip_instruction(&mut self) {
        let (pc, pstate) = skip::behind(ELR_EL2.get(), SPSR_EL2.get(), ESR_EL2.get());
        ELR_EL2.set(pc);
        SPSR_EL2.set(pstate);
    }

    fn go_on(&mut self, pc: u64, flags: u64) {
        // Of what stepping over the last instruction does, all but the address.
        let (_, pstate) = skip::behind(pc, SPSR_EL2.get(), ESR_EL2.get());
        ELR_EL2.set(pc);
        SPSR_EL2.set(pstate & !NZCV | flags & NZCV);
    }

    fn id_register(&self, crm: u8, op2: u8) -> u64 {
        super::id::read(crm, op2)
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
            features: super::features::get().injection,
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

    fn interrupts(&mut self) -> &mut VirtualInterface {
        &mut self.interrupts
    }

    fn translate(&self, va: u64) -> Option<Ipa> {
        super::fixup::stage1_translate(va)
    }

    fn translate_for(&self, va: u64, rights: Rights) -> Result<Stage1, Denied> {
        super::fixup::stage1(va, rights)
    }
}
