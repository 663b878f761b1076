//! Cordon as a UEFI application: from the firmware's call to where every other boot loader would have left it.
//!
//! ```text
//!   entry     the image relocates itself where the firmware has put it, and takes a stack as it is
//!   start     finds bundle, words and tables, and that they will do (`platform::efi`); what is wrong is
//!             said on the firmware's console, all memory given back, and the firmware called its own again
//!   move      room for image, stacks and heap at a multiple of 2 MiB; a copy of the file there
//!   leave     boot services end; then MMU and caches are off, and the copy starts as one that a loader left
//! ```
//!
//! The MMU is the firmware's until the last step, an identity map of all that the memory map has (UEFI 2.10,
//! 2.3.6.1). Nothing of this image's own memory goes along but its file: not `.bss`, and not its heap, which
//! is pages of the firmware's here.
#![expect(unsafe_code, reason = "the firmware's services are raw pointers")]

mod services;

use super::acpi_map::BootTables;
use super::{boot, heap, layout};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CurrentEL, Readable};
use cordon::addr::{Pa, PaRange};
use cordon::platform::acpi::{CheckedTables, Madt, PhysicalBytes};
use cordon::platform::bundle::Bundle;
use cordon::platform::efi::{self, EfiError, Firmware, Handover, Memory, PAGE, Status};
use cordon::platform::fdt::{CheckedFdt, without_nops};
use cordon::platform::machine::{AcpiParts, Description, Machine, MachineError};
use core::arch::{asm, naked_asm};
use core::fmt::Write;
use services::Services;
use uefi_raw::table::system::SystemTable;
use zerocopy::IntoBytes;

/// The file with the words that Cordon is started with (docs/protocols.md).
const CMDLINE: &str = "\\cordon.cmdline";
/// What a loader for Linux promises (`booting.rst`).
const ALIGN: u64 = 2 << 20;
/// Memory for the time of the application, in pages: what it reads are tables of a few KiB.
const HEAP_PAGES: u64 = 512;

/// x0 = image handle, x1 = system table (UEFI 2.10, 2.3.6).
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    naked_asm!(
        "stp    x29, x30, [sp, #-48]!",
        "mov    x29, sp",
        "stp    x0, x1, [sp, #16]",
        "str    x21, [sp, #32]",
        "adrp   x21, __image_start",
        "bl     {relocate}",
        "ldp    x0, x1, [sp, #16]",
        "bl     {start}",
        "ldr    x21, [sp, #32]",
        "ldp    x29, x30, [sp], #48",
        "ret",
        relocate = sym boot::relocate,
        start = sym start,
    )
}

/// Returns only what went wrong.
unsafe extern "C" fn start(image: uefi_raw::Handle, table: *mut SystemTable) -> usize {
    // SAFETY: UEFI calls an application with these two.
    let Some(mut services) = (unsafe { Services::new(image, table) }) else {
        return Status::INVALID_PARAMETER.0;
    };
    let error = match boot(&mut services) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let status = error.status();
    // Where boot services may have ended, nobody may be asked to print.
    if !matches!(error, EfiError::Exit(_)) {
        // The console does not fail in a way that anybody could hear of.
        let _ = write!(services, "\r\ncordon: event=error {error}\r\n");
        let _ = write!(services, "cordon: event=return status={status}\r\n");
        // Before the heap is the firmware's again.
        drop(error);
        services.give_back();
    }
    status.0
}

fn boot(services: &mut Services) -> Result<core::convert::Infallible, EfiError> {
    let level = CurrentEL.read(CurrentEL::EL);
    if level != 2 {
        let level = u8::try_from(level).unwrap_or_default();
        return Err(EfiError::NotEl2 { level });
    }
    let own = services.allocate(HEAP_PAGES).map_err(EfiError::Memory)?;
    // SAFETY: pages that were allocated just now, mapped and nobody else's.
    unsafe { heap::init_with(own) };
    let bundle = efi::load_bundle(services)?;
    // SAFETY: memory that was loaded just now, and that nobody writes.
    Bundle::parse(unsafe { bytes(bundle) }).map_err(EfiError::Bundle)?;
    let words = efi::load_text(services, CMDLINE)?;
    // SAFETY: as above.
    let words = words.map_or(&[][..], |words| unsafe { bytes(words) });
    let line = efi::command_line(services.load_options(), words);
    let tables = services.tables();
    try_machine(services, tables)?;
    let image = make_room(services)?;
    let cmdline = keep(services, line.as_bytes())?;
    let handover = Handover::new(bundle, cmdline).with_tables(tables);
    let handover = (services.reset_system()).map_or(handover, |at| handover.with_reset(at));
    let place = keep(services, handover.as_bytes())?.ok_or(EfiError::NoBundle)?;
    let exited = efi::exit(services)?;
    let handover = handover.with_map(exited);
    // SAFETY: memory of this application's, of that size.
    unsafe { write(place, handover.as_bytes()) };
    // SAFETY: there is no firmware any more. `image` is a copy of this image with room for the rest of it.
    unsafe {
        clean(layout::image_start(), layout::text_end());
        let file = layout::file_end() - layout::image_start();
        clean(image.start().get(), image.start().get() + file);
        leave(place.start().get(), image.start().get())
    }
}

/// Sees whether this machine can be understood, as long as there is somebody to be told if not.
fn try_machine(services: &mut Services, tables: efi::Tables) -> Result<(), EfiError> {
    let map = services.look_at_map()?;
    // SAFETY: memory of this application's, which the map was written into.
    let memory = Memory::read(unsafe { bytes(map.map) }, map.descriptor_size)?;
    let view = View(&memory);
    let acpi = tables.rsdp.map(|rsdp| describe(&view, rsdp)).transpose();
    let acpi = acpi.map_err(|error| EfiError::Machine(MachineError::Acpi(error)))?;
    let damaged = |error| EfiError::Machine(MachineError::Fdt(error));
    let blob = tables.dtb.and_then(|at| view.tree(at));
    let closed_up = blob.map(without_nops).transpose().map_err(damaged)?;
    let blob = closed_up.as_ref().and_then(Option::as_deref).or(blob);
    let fdt = blob.map(CheckedFdt::new).transpose().map_err(damaged)?;
    Machine::from_efi(&memory, fdt.as_ref().zip(tables.dtb), acpi.as_ref())
        .map(drop)
        .map_err(EfiError::Machine)
}

fn describe(view: &View<'_>, rsdp: Pa) -> Result<Description, cordon::platform::acpi::AcpiError> {
    let tables = CheckedTables::new(view, rsdp)?;
    let madt = tables
        .madt()
        .map(|_| Madt::read(&BootTables::open(&tables, view)?));
    Description::read(AcpiParts {
        tables: &tables,
        memory: view,
        madt: madt.transpose()?,
    })
}

/// Memory under the firmware's identity map.
struct View<'m>(&'m Memory);

impl View<'_> {
    /// The device tree at `at`, as far as its head says.
    fn tree(&self, at: Pa) -> Option<&[u8]> {
        let head = self.bytes(at, CheckedFdt::HEADER_LEN)?;
        self.bytes(at, CheckedFdt::total_size(head).ok()?)
    }
}

impl PhysicalBytes for View<'_> {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        let range = PaRange::new(start, len as u64)?;
        // SAFETY: RAM by the firmware's memory map, which it has mapped; what of it is tables is not
        // written as long as this application is the only thing that runs.
        (self.0.contains(range) && start.get() != 0).then(|| unsafe { bytes(range) })
    }
}

/// Copies the file's part of this image to where there is room for all of it. The relocations that were applied
/// for here are applied again for there.
fn make_room(services: &mut Services) -> Result<PaRange, EfiError> {
    let no_room = EfiError::Memory(Status::OUT_OF_RESOURCES);
    let size = layout::image_end() - layout::image_start();
    let pages = (size + ALIGN).div_ceil(PAGE);
    let room = services.allocate(pages).map_err(EfiError::Memory)?;
    let start = room.start().get().checked_next_multiple_of(ALIGN);
    let image = start.and_then(|start| PaRange::new(Pa::new(start), size));
    let image = image
        .filter(|image| room.contains_range(*image))
        .ok_or(no_room)?;
    let file = layout::file_end() - layout::image_start();
    let file = PaRange::new(Pa::new(layout::image_start()), file);
    // SAFETY: this image, and new memory; nothing in `.data` is written meanwhile.
    unsafe {
        write(
            image,
            bytes(file.ok_or(EfiError::Memory(Status::LOAD_ERROR))?),
        )
    };
    Ok(image)
}

/// A copy of `content` in pages of its own, if there is any.
fn keep(services: &mut Services, content: &[u8]) -> Result<Option<PaRange>, EfiError> {
    let size = content.len() as u64;
    if size == 0 {
        return Ok(None);
    }
    let pages = services
        .allocate(size.div_ceil(PAGE))
        .map_err(EfiError::Memory)?;
    // SAFETY: new memory of at least that size.
    unsafe { write(pages, content) };
    Ok(PaRange::new(pages.start(), size))
}

/// The bytes of `range`.
///
/// # Safety
///
/// It must be mapped, and nobody may write it any more.
unsafe fn bytes<'a>(range: PaRange) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(range.start().get() as *const u8, range.size() as usize) }
}

/// Writes `content` to the beginning of `range`.
///
/// # Safety
///
/// There must be room, mapped, that nobody refers to.
unsafe fn write(range: PaRange, content: &[u8]) {
    let to = range.start().get() as *mut u8;
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(content.as_ptr(), to, content.len()) };
}

/// Cleans and drops what the caches hold of these addresses, to the point of coherency: from there on they are
/// read and written past the caches.
///
/// # Safety
///
/// They must be mapped.
unsafe fn clean(start: u64, end: u64) {
    let shape: u64;
    // SAFETY: CTR_EL0 can be read.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) shape, options(nomem, nostack, preserves_flags)) };
    // DminLine: log2 of the words in the smallest line.
    let line = 4_u64 << (shape >> 16 & 0xf);
    let mut at = start & !(line - 1);
    while at < end {
        // SAFETY: the caller's promise.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    barrier::dsb(barrier::SY);
}

/// Switches MMU and caches off and starts the copy of this image at `image`, whose door is that of UEFI.
///
/// # Safety
///
/// All of it, and of this function, must be clean in the caches.
#[unsafe(naked)]
unsafe extern "C" fn leave(handover: u64, image: u64) -> ! {
    naked_asm!(
        "msr    daifset, #0xf",
        "mov    x20, x0",
        "mov    x21, x1",
        "mov    x22, #{uefi}",
        "adrp   x2, __image_start",
        "adr    x3, {start}",
        "sub    x3, x3, x2",
        "add    x3, x3, x21",
        "mrs    x4, sctlr_el2",
        // M, C and I (Arm ARM D19.2.137).
        "bic    x4, x4, #(1 << 0)",
        "bic    x4, x4, #(1 << 2)",
        "bic    x4, x4, #(1 << 12)",
        "dsb    sy",
        "msr    sctlr_el2, x4",
        "isb",
        "tlbi   alle2",
        "ic     iallu",
        "dsb    sy",
        "isb",
        "br     x3",
        uefi = const boot::door::UEFI,
        start = sym boot::relocate_and_start,
    )
}
