//! The registers of QEMU's fw_cfg (`docs/specs/fw_cfg.rst`, "Register Locations", Arm).
#![expect(unsafe_code, reason = "device registers and a DMA descriptor")]

use super::mmu;
use cordon::addr::{Pa, PaRange};
use cordon::platform::fw_cfg::{DMA_BYTES_MAX, DmaBuffer, Transport, dma_descriptor};
use core::ptr::{read_volatile, write_volatile};

/// Register offsets: data (8 bits), selector (16 bits, big-endian), DMA address (64 bits,
/// big-endian).
const DATA: u64 = 0;
const SELECTOR: u64 = 8;
const DMA: u64 = 16;
/// Bit 0 of the control word, which stays set if the transfer failed.
const DMA_ERROR: u32 = 1;

/// What the device reads and writes by DMA.
#[repr(C, align(16))]
struct Descriptor {
    head: [u8; 16],
    bytes: [u8; DMA_BYTES_MAX],
}

/// The device's registers.
#[derive(Debug)]
pub struct Registers(Pa);

impl Registers {
    /// Maps the registers at `range`.
    ///
    /// # Errors
    ///
    /// If EL2's map does not reach them.
    pub fn map(range: PaRange) -> Result<Self, mmu::Error> {
        mmu::map_device(range)?;
        Ok(Self(range.start()))
    }

    fn register(&self, offset: u64) -> u64 {
        self.0.get() + offset
    }
}

impl Transport for Registers {
    fn select(&mut self, key: u16) {
        // SAFETY: the selector, mapped for this driver; naturally aligned.
        unsafe { write_volatile(self.register(SELECTOR) as *mut u16, key.to_be()) };
    }

    fn read(&mut self, out: &mut [u8]) {
        for byte in out {
            // SAFETY: the data register; reading it moves the device's own position only.
            *byte = unsafe { read_volatile(self.register(DATA) as *const u8) };
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
        // SAFETY: the DMA register. The device reads the descriptor, which lives until it has
        // finished, and writes its first word and, for a read, memory that the caller gave it.
        unsafe { write_volatile(self.register(DMA) as *mut u64, address.to_be()) };
        loop {
            // SAFETY: the control word, 4-byte aligned, as the device leaves it.
            let state = u32::from_be(unsafe { read_volatile(at.cast::<u32>()) });
            if state & !DMA_ERROR == 0 {
                aarch64_cpu::asm::barrier::dmb(aarch64_cpu::asm::barrier::SY);
                return state;
            }
        }
    }
}
