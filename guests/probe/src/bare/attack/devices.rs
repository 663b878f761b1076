//! The emulated devices, by every instruction: each must give a result or an abort, and leave the
//! machine standing.

use super::Attacker;
use super::forms::{self, Form};
use crate::bare::guest;
use cordon_probe::PAGE_SIZE;
use cordon_probe::attack::verdict::Access;
use cordon_probe::paging::Attributes;

/// Offsets into a page: registers of the distributor, redistributors and the UART, and what is
/// between them and across the page's end.
const OFFSETS: [u64; 42] = [
    0x000, 0x001, 0x002, 0x003, 0x004, 0x005, 0x007, 0x008, 0x00c, 0x010, 0x014, 0x018, 0x024,
    0x02c, 0x030, 0x038, 0x044, 0x080, 0x084, 0x100, 0x104, 0x180, 0x200, 0x280, 0x300, 0x380,
    0x400, 0x421, 0x800, 0xc00, 0xc04, 0xd00, 0xf00, 0xf10, 0xfd0, 0xfe8, 0xff0, 0xff8, 0xffc,
    0xffd, 0xffe, 0xfff,
];

/// Pages of the distributor with registers, and two without.
const DISTRIBUTOR: [u64; 5] = [0x0000, 0x1000, 0x6000, 0x7000, 0xf000];
/// Pages of two redistributors, and of what may be behind the last.
const REDISTRIBUTORS: [u64; 9] = [
    0x0_0000, 0x0_f000, 0x1_0000, 0x1_f000, 0x2_0000, 0x2_f000, 0x3_0000, 0x3_f000, 0x4_0000,
];

/// The pages with devices.
fn pages() -> impl Iterator<Item = u64> {
    let guest = guest::get();
    let gic = guest.gic().into_iter();
    let gic = gic.flat_map(|gic| {
        let distributor = DISTRIBUTOR.iter().map(move |page| gic.distributor + page);
        distributor.chain(REDISTRIBUTORS.iter().map(move |at| gic.redistributors + at))
    });
    gic.chain([guest.uart()])
}

/// Everything at every offset, as Device and as Normal memory.
pub(super) fn all(attacker: &mut Attacker) {
    for page in pages() {
        for attributes in [Attributes::EL0_DEVICE, Attributes::EL0_DATA] {
            attacker.point_at_device(page, attributes);
            for offset in OFFSETS {
                Form::all().for_each(|form| attacker.use_device(form, page, offset, false));
            }
            for form in Form::all() {
                attacker.use_device(form, page, 0, true);
            }
        }
    }
}

impl Attacker {
    fn point_at_device(&self, page: u64, attributes: Attributes) {
        let window = self.lab.window;
        window.point(0, page, attributes);
        window.point(1, page + PAGE_SIZE, attributes);
    }

    fn use_device(&mut self, form: Form, page: u64, offset: u64, el0: bool) {
        let va = self.lab.window.va(0) + offset;
        let outcome = self.access(form, va, el0);
        let access = Access {
            va,
            kind: form.kind,
            el0,
            peculiar: form.peculiar || !va.is_multiple_of(form.size),
        };
        let judged = outcome.map(drop);
        let verdict = access.device(judged.map_err(|abort| (abort.syndrome(), abort.far)));
        self.judge(verdict, (form.word, page + offset), outcome);
    }

    /// An access by chance to a device.
    pub(super) fn use_device_by_chance(&mut self) {
        let count = pages().count() as u64;
        let number = self.random.below(count) as usize;
        let Some(page) = pages().nth(number) else {
            return;
        };
        let attributes = [Attributes::EL0_DATA, Attributes::EL0_DEVICE];
        let attributes = self.random.choose(&attributes);
        self.point_at_device(page, attributes.unwrap_or(Attributes::EL0_DEVICE));
        let el0 = self.random.below(8) == 0;
        for _ in 0..4 {
            let offset = match self.random.below(4) {
                0 => self.random.below(PAGE_SIZE),
                _ => self.random.below(PAGE_SIZE / 4) * 4,
            };
            // UARTDR would fill the console.
            let printing = page == guest::get().uart() && offset < 4;
            let form = Form::get(self.random.below(forms::COUNT as u64) as usize);
            if let Some(form) = form.filter(|_| !printing) {
                self.use_device(form, page, offset, el0);
            }
        }
    }
}
