//! Resource templates (ACPI 6.5, section 6.4): what a device uses, or a bridge forwards.

use crate::addr::{Pa, PaRange};
use crate::platform::machine::PciWindow;

/// Addresses that a host bridge forwards, the first range of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciWindows {
    /// Below 4 GiB on the bus.
    pub window32: Option<PciWindow>,
    /// Above.
    pub window64: Option<PciWindow>,
}

/// The items of a template: tag and contents, up to the first that is longer than what is left.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, body) = self.0.split_first()?;
        // 6.4.2: a small item has its length in the tag. 6.4.3: a large one has it behind the tag.
        let (length, body) = if tag & 0x80 == 0 {
            (usize::from(tag & 7), body)
        } else {
            let (length, body) = body.split_first_chunk()?;
            (usize::from(u16::from_le_bytes(*length)), body)
        };
        let (item, behind) = body.split_at_checked(length)?;
        self.0 = behind;
        Some((tag, item))
    }
}

/// The first interrupt (6.4.3.6), and whether it is edge-triggered.
pub(super) fn interrupt(template: &[u8]) -> Option<(u32, bool)> {
    const EXTENDED_INTERRUPT: u8 = 0x89;
    const EDGE: u8 = 1 << 1;
    Items(template).find_map(|(tag, item)| match item {
        [flags, count, numbers @ ..] if tag == EXTENDED_INTERRUPT && *count > 0 => {
            let number = u32::from_le_bytes(*numbers.first_chunk()?);
            Some((number, flags & EDGE != 0))
        }
        _ => None,
    })
}

/// Ranges of memory that a host bridge forwards (6.4.3.5).
pub(super) fn windows(template: &[u8]) -> PciWindows {
    let mut found = PciWindows::default();
    for window in Items(template).filter_map(|(tag, item)| window(tag, item)) {
        let is_low = (window.pci.checked_add(window.cpu.size() - 1))
            .is_some_and(|last| u32::try_from(last).is_ok());
        let place = match is_low {
            true => &mut found.window32,
            false => &mut found.window64,
        };
        *place = place.or(Some(window));
    }
    found
}

/// The range of a DWORD or QWORD address space descriptor: granularity, first and last address on
/// the bus, what is added to them for the CPU, and the length, behind three bytes of what they mean.
fn window(tag: u8, item: &[u8]) -> Option<PciWindow> {
    const DWORD: u8 = 0x87;
    const QWORD: u8 = 0x8a;
    const MEMORY: u8 = 0;
    let (kind, numbers) = (*item.first()?, item.get(3..)?);
    let number = |index: usize| match tag {
        DWORD => {
            let bytes = numbers.get(4 * index..)?.first_chunk()?;
            Some(u64::from(u32::from_le_bytes(*bytes)))
        }
        QWORD => {
            let bytes = numbers.get(8 * index..)?.first_chunk()?;
            Some(u64::from_le_bytes(*bytes))
        }
        _ => None,
    };
    let (pci, last, offset, length) = (number(1)?, number(2)?, number(3)?, number(4)?);
    let is_whole = kind == MEMORY && last.checked_sub(pci)?.checked_add(1) == Some(length);
    let cpu = PaRange::new(Pa::new(pci.checked_add(offset)?), length)?;
    is_whole.then_some(PciWindow { cpu, pci })
}
