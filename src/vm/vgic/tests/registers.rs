//! Registers out of reset, and who may access them how.

use super::super::*;
use super::fake::Guest;

/// (frame, offset, size, value after a reset), for four vCPUs.
const RESET: &[(Frame, u64, u8, u64)] = &[
    (Frame::Distributor, 0x0000, 4, 0x50),
    (Frame::Distributor, 0x0004, 4, 0x0248_0003),
    (Frame::Distributor, 0x0008, 4, 0x4300_043b),
    (Frame::Distributor, 0x0010, 4, 0),
    (Frame::Distributor, 0x0084, 4, 0),
    (Frame::Distributor, 0x0104, 4, 0),
    (Frame::Distributor, 0x0c08, 4, 0),
    (Frame::Distributor, 0x6108, 8, 0),
    (Frame::Distributor, 0xffe8, 4, 0x3b),
    (Frame::Redistributors, 0x0_0000, 4, 0),
    (Frame::Redistributors, 0x0_0008, 8, 0),
    (Frame::Redistributors, 0x6_0008, 8, 0x3_0000_0310),
    (Frame::Redistributors, 0x6_000c, 4, 3),
    (Frame::Redistributors, 0x0_0014, 4, 6),
    (Frame::Redistributors, 0x0_ffe8, 4, 0x3b),
    (Frame::Redistributors, 0x1_0c00, 4, 0xaaaa_aaaa),
    (Frame::Redistributors, 0x1_0c04, 4, 0),
];

struct Nobody;

impl Others for Nobody {
    fn kick(&self, _: usize) {}

    fn timer_lines(&self, _: usize) -> u32 {
        0
    }
}

fn fresh() -> (Vgic, super::fake::Interface) {
    let vgic = Vgic::new(4, Timers::default());
    (vgic, super::fake::Interface::new(4, false))
}

#[test]
fn registers_have_their_reset_values() {
    let (vgic, mut cpu) = fresh();
    for (frame, offset, size, value) in RESET {
        let read = vgic.read(0, (*frame, *offset, *size), &mut cpu, &Nobody);
        assert_eq!(read, *value, "{frame:?} {offset:#x}");
    }
}

/// What is in no register's place, or too narrow or too wide for it, reads as zero and ignores
/// writes; the identification cannot be written.
#[test]
fn what_is_not_there_reads_zero_and_changes_nothing() {
    let (vgic, mut cpu) = fresh();
    let mut read = |frame, offset, size| vgic.read(0, (frame, offset, size), &mut cpu, &Nobody);
    for (frame, offset, size) in [
        (Frame::Distributor, 0x104, 8),
        (Frame::Distributor, 0x104, 1),
        (Frame::Distributor, 0x106, 4),
        (Frame::Distributor, 0x420, 2),
        (Frame::Distributor, 0x800, 4),
        (Frame::Distributor, 0xffff, 1),
        (Frame::Distributor, u64::MAX - 3, 4),
        (Frame::Redistributors, 0x0_0070, 8),
        (Frame::Redistributors, 0x1_0104, 4),
        (Frame::Redistributors, 0x8_0000, 4),
        (Frame::Redistributors, u64::MAX - 7, 8),
    ] {
        assert_eq!(read(frame, offset, size), 0, "{frame:?} {offset:#x}");
    }
    for offset in (0..0x1_0000).step_by(4) {
        for frame in [Frame::Distributor, Frame::Redistributors] {
            for size in [1, 2, 4, 8] {
                let _ = vgic.write(0, (frame, offset, size), u64::MAX, &mut cpu, &Nobody);
            }
        }
    }
    for (frame, offset, size, value) in RESET.iter().filter(|row| row.1 % 0x1_0000 < 0x10) {
        let read = vgic.read(0, (*frame, *offset, *size), &mut cpu, &Nobody);
        assert_eq!(read & !0b11, *value & !0b11, "{frame:?} {offset:#x}");
    }
}

#[test]
fn priorities_are_bytes_of_which_five_bits_count() {
    let guest = Guest::new(1, 4, false);
    let at = FRAME_SIZE + 0x400;
    guest.write(0, (Frame::Redistributors, at + 5, 1), 0xff);
    guest.write(0, (Frame::Redistributors, at + 8, 4), 0x1122_3344);
    assert_eq!(
        guest.read(0, (Frame::Redistributors, at + 4, 4)),
        0x8080_f880
    );
    assert_eq!(guest.read(0, (Frame::Redistributors, at + 8, 1)), 0x40);
    assert_eq!(
        guest.read(0, (Frame::Redistributors, at + 8, 4)),
        0x1020_3040
    );
}

#[test]
fn the_trigger_of_an_own_interrupt_cannot_be_chosen_and_that_of_a_shared_one_can() {
    let guest = Guest::new(1, 4, false);
    for offset in [0xc00, 0xc04] {
        guest.write(
            0,
            (Frame::Redistributors, FRAME_SIZE + offset, 4),
            0x5555_5555,
        );
    }
    assert_eq!(
        guest.read(0, (Frame::Redistributors, FRAME_SIZE + 0xc00, 4)),
        0xaaaa_aaaa
    );
    assert_eq!(
        guest.read(0, (Frame::Redistributors, FRAME_SIZE + 0xc04, 4)),
        0
    );
    guest.write(0, (Frame::Distributor, 0xc0c, 4), 0xffff_ffff);
    assert_eq!(guest.read(0, (Frame::Distributor, 0xc0c, 4)), 0xaaaa_aaaa);
    assert_eq!(guest.read(0, (Frame::Distributor, 0xc08, 4)), 0);
}

#[test]
fn the_wake_up_handshake_is_completed_at_once() {
    let guest = Guest::new(1, 4, false);
    for (written, read) in [(0, 0), (2, 6), (0, 0)] {
        guest.write(0, (Frame::Redistributors, 0x14, 4), written);
        assert_eq!(guest.read(0, (Frame::Redistributors, 0x14, 4)), read);
    }
}

#[test]
fn a_route_can_be_accessed_by_halves() {
    let guest = Guest::new(2, 4, false);
    let at = 0x6000 + 8 * 127;
    guest.write(0, (Frame::Distributor, at, 8), u64::MAX);
    assert_eq!(guest.read(0, (Frame::Distributor, at, 8)), 0xff_00ff_ffff);
    guest.write(0, (Frame::Distributor, at + 4, 4), 0);
    guest.write(0, (Frame::Distributor, at, 4), 1);
    assert_eq!(guest.read(0, (Frame::Distributor, at, 8)), 1);
    assert_eq!(guest.read(0, (Frame::Distributor, at + 4, 4)), 0);
}
