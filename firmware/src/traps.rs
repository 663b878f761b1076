//! Exceptions at EL3, from the normal world and the firmware's own.
//!
//! The vectors have saved the general-purpose registers in a [`Frame`]; system registers still hold
//! the interrupted state, since nothing else can be taken at EL3 meanwhile.

use core::fmt::Write;

use cordon_firmware::exception::{self, Kind};
use cordon_firmware::fault::{
    EC_DATA_ABORT_LOWER, EC_GPC, EC_INSTRUCTION_ABORT_LOWER, EC_SERROR, EC_SMC64, ESR_IL,
    GranuleFault, exception_class,
};
use cordon_firmware::psci::{self, Outcome};
use cordon_firmware::service::{Entry, Interrupted, SMC_NOT_SUPPORTED};

use crate::image::stop;
use crate::machine::boot::{self, Frame};
use crate::machine::{cpu, gic, power, sysreg, uart};
use crate::state::{self, El3};

/// A synchronous exception from EL2, EL1 or EL0.
pub(crate) extern "C" fn synchronous(frame: &mut Frame) {
    /// SMC from AArch32.
    const EC_SMC32: u64 = 0x13;
    let esr = sysreg::esr_el3();
    match exception_class(esr) {
        EC_SMC64 | EC_SMC32 => smc(frame, esr),
        EC_GPC => granule_fault(esr),
        EC_INSTRUCTION_ABORT_LOWER | EC_DATA_ABORT_LOWER => forward_abort(esr),
        class => refuse(class, esr),
    }
}

/// An IRQ or FIQ while the normal world ran. IRQs are not routed here.
pub(crate) extern "C" fn interrupt(_: &mut Frame) {
    serve_interrupts();
}

/// An SError that is not of the firmware's making: `SCR_EL3.EA` brought it here, EL2 is to have it.
pub(crate) extern "C" fn serror(_: &mut Frame) {
    let (spsr, controls) = (sysreg::spsr_el3(), cpu::el2_controls());
    deliver(Entry {
        vector: exception::vector_offset(Kind::SError, spsr, controls),
        esr: EC_SERROR << 26 | ESR_IL | sysreg::esr_el3() & 0x1ff_ffff,
        far: None,
        pstate: exception::pstate(spsr, controls),
    });
}

/// The firmware itself failed. `vector` counts from `VBAR_EL3` in steps of 0x80.
pub(crate) extern "C" fn own(vector: u64) -> ! {
    stop(format_args!(
        "why=el3-exception cpu={} vector={:#x} esr={:#x} elr={:#x} far={:#x} mfar={:#x}",
        cpu::number(),
        vector * 0x80,
        sysreg::esr_el3(),
        sysreg::elr_el3(),
        sysreg::far_el3(),
        sysreg::mfar_el3(),
    ))
}

/// Handles what is pending of the firmware's interrupts.
pub(crate) fn serve_interrupts() {
    gic::handle(|event| match event {
        gic::Event::Uart => serve_uart(),
        // Whoever was called looks for the reason itself.
        gic::Event::Call => {}
        gic::Event::Timer => {
            sysreg::stop_own_timer();
            state::with_service(|service| service.flush(&mut El3));
        }
    });
}

/// Reads the UART until it is empty, and executes each line that completes.
fn serve_uart() {
    let mut buffer = state::LINE.lock();
    while let Some(byte) = uart::read() {
        let answer = buffer.push(byte, |line| {
            let mut answer = uart::Line::new();
            state::with_service(|service| {
                // An answer that does not fit is cut; none is that long.
                let _ = service.line(line, &mut El3, &mut answer);
            });
            answer
        });
        if let Some(answer) = answer {
            uart::write(answer.as_str());
        }
    }
}

fn smc(frame: &mut Frame, esr: u64) {
    let [x0, x1, x2, x3, ..] = frame.x;
    // The function's number is W0; the immediate must be 0 (SMCCC 2.8).
    let function = (x0 & 0xffff_ffff) as u32;
    let known = esr & 0xffff == 0;
    let this = cpu::number();
    let psci = psci::call(&state::CPUS, this, function, [x1, x2, x3]).filter(|_| known);
    if let Some(outcome) = psci {
        frame.x[0] = psci_outcome(outcome, this).cast_unsigned();
        return;
    }
    let service = known
        .then(|| state::with_service(|service| service.smc(function, [x1, x2], &mut El3)))
        .flatten()
        .flatten();
    match service {
        Some((result, second)) => {
            frame.x[0] = result;
            frame.x[1] = second.unwrap_or(x1);
        }
        None => frame.x[0] = SMC_NOT_SUPPORTED.cast_unsigned(),
    }
}

/// Does what PSCI decided; returns x0.
fn psci_outcome(outcome: Outcome, this: usize) -> i64 {
    match outcome {
        Outcome::Return(value) => value,
        Outcome::Wake(target) => {
            gic::call(target);
            0
        }
        Outcome::Standby => {
            // An interrupt of the normal world ends the wait as well: it is masked, not muted.
            sysreg::wait_for_interrupt();
            0
        }
        Outcome::Off => boot::abandon_for_pen(this),
        Outcome::SystemOff => power::off(),
        Outcome::SystemReset => power::reset(),
    }
}

/// Somebody met poison.
fn granule_fault(esr: u64) {
    let at = sysreg::counter();
    let mfar = sysreg::mfar_el3();
    let Ok(fault) = GranuleFault::decode(esr, mfar) else {
        stop(format_args!(
            "why=granule-table esr={esr:#x} mfar={mfar:#x}"
        ));
    };
    let interrupted = Interrupted {
        cpu: cpu::number(),
        spsr: sysreg::spsr_el3(),
        far: sysreg::far_el3(),
        controls: cpu::el2_controls(),
        at,
    };
    let written = state::record(fault.page);
    let mut message = uart::Line::new();
    let entry =
        state::with_service(|service| service.consume(fault, interrupted, written, &mut message));
    uart::write(message.as_str());
    if let Some(entry) = entry {
        deliver(entry);
        state::tell_now();
    }
}

/// An external abort that is not of the firmware's making, as `SCR_EL3.EA` brings it here.
fn forward_abort(esr: u64) {
    let (spsr, controls) = (sysreg::spsr_el3(), cpu::el2_controls());
    let same_level = u64::from(exception::source_el(spsr) == 2);
    deliver(Entry {
        vector: exception::vector_offset(Kind::Synchronous, spsr, controls),
        esr: esr + (same_level << 26),
        far: Some(sysreg::far_el3()),
        pstate: exception::pstate(spsr, controls),
    });
}

/// A trap that nobody asked for: something the firmware does not enable, so it is undefined to
/// EL2. `ESR_EL2` says "unknown reason".
fn refuse(class: u64, esr: u64) {
    let (spsr, controls) = (sysreg::spsr_el3(), cpu::el2_controls());
    let mut line = uart::Line::new();
    let _ = writeln!(
        line,
        "! undefined ec={class:#x} esr={esr:#x} elr={:#x} cpu={} el={}",
        sysreg::elr_el3(),
        cpu::number(),
        exception::source_el(spsr),
    );
    uart::write(line.as_str());
    deliver(Entry {
        vector: exception::vector_offset(Kind::Synchronous, spsr, controls),
        esr: ESR_IL,
        far: None,
        pstate: exception::pstate(spsr, controls),
    });
}

/// The next return from EL3 enters EL2's vector, as if EL2 had taken the exception.
fn deliver(entry: Entry) {
    sysreg::set_elr_el2(sysreg::elr_el3());
    sysreg::set_spsr_el2(sysreg::spsr_el3());
    sysreg::set_esr_el2(entry.esr);
    if let Some(far) = entry.far {
        sysreg::set_far_el2(far);
    }
    sysreg::set_elr_el3(sysreg::vbar_el2().wrapping_add(entry.vector));
    sysreg::set_spsr_el3(entry.pstate);
}
