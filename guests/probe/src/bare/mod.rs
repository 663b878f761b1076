//! The guest on the machine: boots, brings up the vCPUs, and obeys the console.
//!
//! vCPU 0 reads the console and runs commands; all vCPUs take part in jobs (`smp`) and, while
//! nothing else is to be done, in the patrol. Interrupts are used by the commands about them alone:
//! who has nothing to do waits for an event. `unsafe` is in the leaves: `boot`, `vectors`, `access`, `el0`, `mmu`, `ram`,
//! `console`, `image`, `interrupts`, `debug`, `forms`, `held`, `translation`, `attack::lab` and `attack::forms`.
//!
//! Locks: the console's and those of `smp`, `mmu` and `ram`. None is taken while another is held,
//! with one exception: `mmu` asks `ram` for table frames. SErrors are masked while the console is
//! locked, because their handler prints; synchronous aborts are taken by the routines of `access`
//! and `el0` alone, which hold no lock.

mod aborts;
mod access;
mod attack;
mod boot;
mod commands;
mod console;
mod cpu;
mod debug;
mod el0;
mod forms;
mod guest;
mod held;
mod image;
mod interrupts;
mod mmu;
mod patrol;
mod psci;
mod ram;
mod report;
mod smp;
mod storm;
mod target;
mod timed;
mod translation;
mod vectors;

use cordon_probe::machine::{self, Machine};
use cordon_probe::pages::Region;

/// vCPU 0 arrives here from `boot`, with the MMU on and the image and the device tree mapped.
/// `begun` is what the physical counter was at the first instruction.
extern "C" fn main(tree: u64, begun: u64) -> ! {
    mmu::init();
    let (tree, tree_range) = boot::device_tree(tree);
    // First what it takes to say what is wrong, and to stop.
    if let Some(conduit) = machine::conduit(&tree) {
        psci::init(conduit);
    }
    if let Some(uart) = machine::uart(&tree) {
        console::init(uart);
    }
    match Machine::new(&tree) {
        Ok(machine) => start(machine, tree_range)
            .unwrap_or_else(|what| report::fatal(format_args!("what={what}"))),
        Err(missing) => report::fatal(format_args!("what=missing-{missing}")),
    }
    cpu::unmask_serror();
    let guest = guest::get();
    report::report!(
        "event=ready vcpus={} regions={} pages={}",
        guest.vcpus(),
        guest.pages.device_regions().len(),
        guest.pages.device_len()
    );
    commands::obey(begun, tree.chosen().bootargs().unwrap_or(""))
}

/// Maps everything and starts the other vCPUs; an error names what did not work.
fn start(machine: Machine, tree: Region) -> Result<(), &'static str> {
    for region in machine.memory() {
        mmu::map_ram(region).ok_or("cannot-map-ram")?;
    }
    ram::init(&machine, tree);
    guest::init(machine)?;
    smp::start_others().ok_or("no-ram-for-stacks")
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // The position has no blanks; the message may, and is left out.
    match info.location() {
        Some(at) => report::fatal(format_args!(
            "what=rust-panic at={}:{}",
            at.file(),
            at.line()
        )),
        None => report::fatal(format_args!("what=rust-panic")),
    }
}
