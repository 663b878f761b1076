//! The console's commands: each prints one `guest: event=...` line when it is done.

mod aarch32;
pub(super) mod bench;
pub(super) mod forms;
pub(super) mod hammer;
pub(super) mod interrupts;
mod literals;
pub(super) mod memory;
mod scan;
mod table;
mod touch;

use super::patrol::{self, Patroller};
use super::report::report;
use super::storm::{self, Stormer};
use super::{aborts, access, attack, console, cpu, guest, psci, timed};
use cordon_probe::command::{self, Command};
use cordon_probe::editor::Line;
use table::TableTest;

/// Pages that vCPU 0 patrols between two looks at the console: a look may cost an exit to the
/// hypervisor, a page some hundred instructions.
const PAGES_PER_POLL: usize = 16;

/// What vCPU 0 remembers from command to command.
struct Session {
    /// The physical counter at the guest's first instruction.
    begun: u64,
    patroller: Patroller,
    stormer: Stormer,
    table: Option<TableTest>,
}

/// Obeys the commands of `script`, which `;` separates, then reads and obeys commands for ever, and
/// patrols meanwhile. `begun` is what the physical counter was at the first instruction.
pub(super) fn obey(begun: u64, script: &str) -> ! {
    let mut session = Session {
        begun,
        patroller: Patroller::new(),
        stormer: Stormer::new(),
        table: None,
    };
    script.split(';').for_each(|line| session.execute(line));
    console::prompt();
    loop {
        if let Some(line) = console::poll() {
            session.execute_line(&line);
            console::prompt();
        } else if session.in_background() {
            // Look again at once.
        } else {
            cpu::wait();
        }
    }
}

/// Answers a command that cannot be carried out.
pub(super) fn refuse(what: &str) {
    report!("event=error what={what}");
}

impl Session {
    /// A while of what goes on in the background; false if nothing does.
    fn in_background(&mut self) -> bool {
        let patrols = (0..PAGES_PER_POLL).all(|_| self.patroller.step());
        patrols || self.stormer.step()
    }

    fn execute_line(&mut self, line: &Line) {
        if line.is_truncated() {
            return refuse("line-too-long");
        }
        self.execute(line.as_str());
    }

    fn execute(&mut self, line: &str) {
        match command::parse(line) {
            Ok(Some(command)) => self.obey(command),
            Ok(None) => {}
            Err(error) => refuse(error.name()),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Fill => memory::fill(),
            Command::Sweep => memory::sweep(),
            Command::Lost => memory::lost(),
            Command::FillCode(ipa) => memory::fill_code(ipa),
            Command::Ram => memory::ram(),
            Command::Bad => memory::bad(),
            Command::Spin { ipa, rounds } => touch::spin(ipa, rounds),
            Command::Patrol => {
                let vcpus = patrol::start(&mut self.patroller);
                report!("event=patrol vcpus={vcpus}");
            }
            Command::Stop => {
                let sum = patrol::stop();
                report!("event=stop lines={} wrong={}", sum.accesses, sum.wrong);
            }
            Command::Storm(seed) => match storm::start(seed) {
                Some(vcpus) => report!("event=storm seed={seed:#x} vcpus={vcpus}"),
                None => refuse("out-of-memory"),
            },
            Command::Calm => storm::calm(),
            Command::Audit => storm::audit(),
            Command::Mend => storm::mend(),
            Command::Touch(touch, ipa) => touch::touch(touch, ipa),
            Command::Table(ipa) => table::make(&mut self.table, ipa),
            Command::TableUse => table::use_again(&mut self.table),
            Command::Hammer { around, rounds } => hammer::hammer(around, rounds),
            Command::Sgi(rounds) => interrupts::to_self(rounds),
            Command::Ipi(rounds) => interrupts::to_others(rounds),
            Command::Timer(rounds) => interrupts::timers(rounds),
            Command::Masked => interrupts::masked(),
            Command::Quiet(ipa) => touch::quiet(ipa),
            Command::Hold(ipa) => touch::hold(ipa),
            Command::Bench => bench::bench(self.begun),
            Command::BenchTouch(ipa) => bench::touch(ipa),
            Command::BenchLoad(ipa) => bench::load(ipa),
            Command::Forms { at, like } => forms::forms(at, like),
            Command::Atomics(ipa) => forms::atomics(ipa),
            Command::Straddle(ipa) => forms::straddle(ipa),
            Command::Contend { at, rounds } => forms::contend(at, rounds),
            Command::ContendVms { at, rounds } => forms::contend_vms(at, rounds),
            Command::Literals(ipa) => literals::literals(ipa),
            Command::Aarch32(ipa) => aarch32::aarch32(ipa),
            Command::Scan { from, loads, step } => scan::scan(from, loads, step),
            Command::Vseas => vseas(),
            Command::Hvc(registers) => hvc(registers),
            Command::Attack(what) => attack::attack(what),
            Command::Fuzz { seed, steps } => attack::fuzz::fuzz(seed, steps),
            Command::Off => off(),
        }
    }
}

fn vseas() {
    let (external, serrors, faults) = aborts::totals();
    report!("event=vseas count={external} serrors={serrors} faults={faults}");
}

fn hvc(registers: [u64; 4]) {
    let before = timed::now();
    let result = access::hvc(registers);
    let ticks = timed::now().saturating_sub(before);
    match result {
        Ok([x0, x1, x2, x3]) => {
            report!("event=hvc x0={x0:#x} x1={x1:#x} x2={x2:#x} x3={x3:#x} ticks={ticks}");
        }
        Err(abort) => report!("event=hvc result=fault esr={:#x}", abort.esr),
    }
}

fn off() {
    patrol::stop();
    storm::stop();
    report!("event=off vcpus={}", guest::get().vcpus());
    psci::off();
    refuse("off-failed");
}
