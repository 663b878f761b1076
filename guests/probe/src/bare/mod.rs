//! The guest on the machine: boots, brings up the vCPUs, and obeys the console.
//!
//! vCPU 0 reads the console and runs commands; all vCPUs take part in jobs (`smp`) and, while
//! nothing else is to be done, in the patrol. No interrupts are used: who has nothing to do waits
//! for an event. `unsafe` is in the leaves: `boot`, `vectors`, `access`, `el0`, `mmu`, `ram`,
//! `console`, `psci`.
//!
//! Locks: the console's and those of `smp`, `mmu` and `ram`. None is taken while another is held,
//! with one exception: `mmu` asks `ram` for table frames. SErrors are masked while the console is
//! locked, because their handler prints; synchronous aborts are taken by the routines of `access`
//! and `el0` alone, which hold no lock.

mod aborts;
mod access;
mod boot;
mod commands;
mod console;
mod cpu;
mod el0;
mod guest;
mod image;
mod mmu;
mod patrol;
mod psci;
mod ram;
mod report;
mod smp;
mod target;
mod vectors;

use cordon_probe::machine::Machine;
use cordon_probe::pages::Region;

/// vCPU 0 arrives here from `boot`, with the MMU on and the image and the device tree mapped.
extern "C" fn main(tree: u64) -> ! {
    mmu::init();
    let (tree, tree_range) = boot::device_tree(tree);
    let machine = match Machine::new(&tree) {
        Ok(machine) => machine,
        // Without a UART there is no way to say it; without PSCI none to stop.
        Err(_) => cpu::halt(),
    };
    console::init(machine.uart);
    psci::init(machine.conduit);
    if start(machine, tree_range).is_none() {
        report::fatal(format_args!("what=out-of-memory"));
    }
    cpu::unmask_serror();
    let space = guest::get();
    report::report!(
        "event=ready vcpus={} regions={} pages={}",
        space.vcpus(),
        space.pages.device_regions().len(),
        space.pages.device_len()
    );
    commands::obey()
}

/// Maps everything and starts the other vCPUs. `None` where RAM does not suffice.
fn start(machine: Machine, tree: Region) -> Option<()> {
    for region in machine.memory() {
        mmu::map_ram(region)?;
    }
    ram::init(&machine, tree);
    guest::init(machine)?;
    smp::start_others()
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
