//! The registers of QEMU's fw_cfg (`docs/specs/fw_cfg.rst`, "Register Locations", Arm).
#![expect(unsafe_code, reason = "device registers and a DMA descriptor")]

use super::mmu;
use cordon::addr::{Pa, PaRange};
use cordon::platform::fw_cfg::{DMA_BYTES_MAX, DmaBuffer, Transport, dma_descriptor};
use core::ptr::read_volatile;
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::register_structs;
use tock_registers::registers::{ReadOnly, WriteOnly};

register_structs! {
    /// The device's registers. All but the data are big-endian.
    Layout {
        /// The selected item's next byte.
        (0x00 => data: ReadOnly<u8>),
        (0x01 => _reserved0),
        /// Selects an item.
        (0x08 => selector: WriteOnly<u16>),
        (0x0a => _reserved1),
        /// PA of a DMA descriptor; writing it starts the transfer.
        (0x10 => dma: WriteOnly<u64>),
        (0x18 => @END),
    }
}

/// Bit 0 of the control word, which stays set if the transfer failed.
const DMA_ERROR: u32 = 1;

/// What the device reads and writes by DMA.
#[repr(C, align(16))]
struct Descriptor {
    head: [u8; 16],
    bytes: [u8; DMA_BYTES_MAX],
}

/// The device's registers, mapped.
pub struct Registers(&'static Layout);

impl Registers {
    /// Maps the registers at `range`.
    ///
    /// # Errors
    ///
    /// If EL2's map does not reach them.
    pub fn map(range: PaRange) -> Result<Self, mmu::Error> {
        let size = range.size().max(size_of::<Layout>() as u64);
        mmu::map_device(PaRange::new(range.start(), size).ok_or(mmu::Error::NotReady)?)?;
        // SAFETY: mapped as device memory for good, page by page, so all of the layout is there;
        // no other driver has it; registers may change under a shared reference.
        Ok(Self(unsafe { &*(range.start().get() as *const Layout) }))
    }
}

impl Transport for Registers {
    fn select(&mut self, key: u16) {
        self.0.selector.set(key.to_be());
    }

    fn read(&mut self, out: &mut [u8]) {
        for byte in out {
            *byte = self.0.data.get();
        }
    }

    fn dma(&mut self, control: u32, buffer: DmaBuffer<'_>) -> u32 {
        let mut descriptor = Descriptor {
            head: [0; 16],
            bytes: [0; DMA_BYTES_MAX],
        };
        let own = Pa::new((&raw const descriptor.bytes).addr() as u64);
        let (length, address) = match buffer {
            DmaBuffer::Skip(length) => (length, Pa::new(0)),
            DmaBuffer::Memory(range) => match u32::try_from(range.size()) {
                Ok(length) => (length, range.start()),
                Err(_) => return DMA_ERROR,
            },
            DmaBuffer::Bytes(bytes) => {
                for (to, from) in descriptor.bytes.iter_mut().zip(bytes) {
                    *to = *from;
                }
                (bytes.len().min(DMA_BYTES_MAX) as u32, own)
            }
        };
        descriptor.head = dma_descriptor(control, length, address);
        let at = &raw mut descriptor;
        // Exposed: the device reads what was written there.
        let address = at.expose_provenance() as u64;
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
        // The device reads the descriptor, which lives until it has finished, and writes its first
        // word and, for a read, memory that the caller gave it.
        self.0.dma.set(address.to_be());
        loop {
            // SAFETY: the descriptor's control word, 4-byte aligned, as the device leaves it.
            let state = u32::from_be(unsafe { read_volatile(at.cast::<u32>()) });
            if state & !DMA_ERROR == 0 {
                aarch64_cpu::asm::barrier::dmb(aarch64_cpu::asm::barrier::SY);
                return state;
            }
        }
    }
}
