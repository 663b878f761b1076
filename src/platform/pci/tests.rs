use super::*;
use crate::addr::Pa;
use crate::platform::fuzz_config;
use crate::platform::machine::PciWindow;
use crate::platform::memory::GIB;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use proptest::prelude::*;

const IVSHMEM: u32 = 0x1110_1af4;
const MEM64_PREFETCHABLE: u32 = 0b1100;

/// A function that behaves as hardware does: identity and type bits are read-only, BAR bits below
/// the size are zero, status bits are cleared by ones.
struct Function {
    id: u32,
    command: u32,
    status: u32,
    header_type: u32,
    bars: [u32; 6],
    writable: [u32; 6],
}

impl Function {
    fn new(id: u32) -> Self {
        Self {
            id,
            command: 0,
            status: 0x10,
            header_type: 0,
            bars: [0; 6],
            writable: [0; 6],
        }
    }

    fn ivshmem(size: u64) -> Self {
        Self::new(IVSHMEM)
            .with_bar32(0, 0x100)
            .with_bar64(2, MEM64_PREFETCHABLE, size)
    }

    fn with_bar32(mut self, index: usize, size: u32) -> Self {
        self.writable[index] = !(size - 1);
        self
    }

    fn with_bar64(mut self, index: usize, kind: u32, size: u64) -> Self {
        let mask = !(size - 1);
        self.bars[index] = kind;
        self.writable[index] = (mask & 0xffff_fff0) as u32;
        self.writable[index + 1] = (mask >> 32) as u32;
        self
    }

    fn placed_at(mut self, index: usize, address: u64) -> Self {
        self.bars[index] |= address as u32;
        self.bars[index + 1] = (address >> 32) as u32;
        self.command = 0b11;
        self
    }

    fn bar64(&self, index: usize) -> u64 {
        u64::from(self.bars[index] & !0xf) | (u64::from(self.bars[index + 1]) << 32)
    }

    fn read(&self, offset: u16) -> u32 {
        match offset {
            0x00 => self.id,
            0x04 => (self.status << 16) | self.command,
            0x0c => self.header_type << 16,
            0x10..=0x24 => self.bars[usize::from(offset - 0x10) / 4],
            _ => 0,
        }
    }

    fn write(&mut self, offset: u16, value: u32) {
        match offset {
            0x04 => {
                assert_eq!(value >> 16, 0, "a status bit is cleared");
                self.command = value & 0x7ff;
            }
            0x10..=0x24 => {
                assert_eq!(self.command & 0b10, 0, "a BAR changes while it decodes");
                let index = usize::from(offset - 0x10) / 4;
                let fixed = self.bars[index] & !self.writable[index];
                self.bars[index] = fixed | (value & self.writable[index]);
            }
            _ => unreachable!("nobody writes {offset:#x}"),
        }
    }
}

#[derive(Default)]
struct Bus {
    functions: BTreeMap<Bdf, Function>,
}

impl Bus {
    fn with(mut self, device: u8, function: u8, what: Function) -> Self {
        self.functions.insert(bdf(device, function), what);
        self
    }

    fn find(&mut self) -> PciFindings {
        find_device_memory(self, &host())
    }
}

impl ConfigSpace for Bus {
    fn read32(&mut self, function: Bdf, offset: u16) -> u32 {
        self.functions
            .get(&function)
            .map_or(u32::MAX, |function| function.read(offset))
    }

    fn write32(&mut self, function: Bdf, offset: u16, value: u32) {
        self.functions
            .get_mut(&function)
            .unwrap()
            .write(offset, value);
    }
}

fn bdf(device: u8, function: u8) -> Bdf {
    Bdf::new(0, device, function).unwrap()
}

fn range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

/// The windows of QEMU's virt machine, the 64-bit one cut to 64 GiB.
fn host() -> PcieHost {
    let window = |start, size| {
        Some(PciWindow {
            cpu: range(start, size),
            pci: start,
        })
    };
    PcieHost {
        ecam: range(0x40_1000_0000, 0x1000_0000),
        buses: 0..=255,
        window32: window(0x1000_0000, 0x2eff_0000),
        window64: window(0x80_0000_0000, 64 * GIB),
        placed: false,
    }
}

#[test]
fn ivshmem_gets_an_address_and_decodes_it() {
    let mut bus = Bus::default().with(0, 0, Function::new(0x0008_1b36)).with(
        3,
        0,
        Function::ivshmem(2 * GIB),
    );
    let findings = bus.find();
    assert_eq!(findings.errors, []);
    let expected = DeviceBar {
        function: bdf(3, 0),
        index: 2,
        range: range(0x80_0000_0000, 2 * GIB),
    };
    assert_eq!(findings.bars, [expected]);
    let function = &bus.functions[&bdf(3, 0)];
    assert_eq!(function.bar64(2), 0x80_0000_0000);
    assert_eq!(
        function.command, 0b10,
        "memory decoding is on, I/O stays off"
    );
    assert_eq!(
        function.bars[0], 0x1000_0000,
        "its registers do not decode at address 0"
    );
    assert_eq!(
        expected.to_string(),
        "function=00:03.0 bar=2 pa=0x8000000000 size=0x80000000"
    );
}

#[test]
fn what_is_not_on_the_list_is_not_touched() {
    let other = Function::new(0x1000_1af4)
        .with_bar64(4, MEM64_PREFETCHABLE, GIB)
        .placed_at(4, 0x1234_0000_0000);
    let mut bus = Bus::default().with(1, 0, other);
    assert_eq!(bus.find(), PciFindings::default());
    let function = &bus.functions[&bdf(1, 0)];
    assert_eq!(
        (function.bar64(4), function.command),
        (0x1234_0000_0000, 0b11)
    );
}

#[test]
fn bars_are_gigabyte_aligned_and_apart() {
    let mut bus = Bus::default()
        .with(1, 0, Function::ivshmem(1 << 20))
        .with(2, 0, Function::ivshmem(4 * GIB))
        .with(3, 0, Function::ivshmem(1 << 20));
    let ranges: Vec<_> = bus.find().bars.iter().map(|bar| bar.range).collect();
    let base = 0x80_0000_0000;
    assert_eq!(
        ranges,
        [
            range(base, 1 << 20),
            range(base + 4 * GIB, 4 * GIB),
            range(base + GIB, 1 << 20)
        ]
    );
}

#[test]
fn without_room_for_gigabyte_alignment_a_bar_is_aligned_to_its_size() {
    let mut host = host();
    let start = 0x80_0010_0000;
    host.window64 = Some(PciWindow {
        cpu: range(start, 4 << 20),
        pci: start,
    });
    let mut bus = Bus::default().with(1, 0, Function::ivshmem(2 << 20)).with(
        2,
        0,
        Function::ivshmem(2 << 20),
    );
    let findings = find_device_memory(&mut bus, &host);
    assert_eq!(findings.bars[0].range, range(0x80_0020_0000, 2 << 20));
    let refused = PciError::NoRoom {
        function: bdf(2, 0),
        index: 2,
        size: 2 << 20,
    };
    assert_eq!(findings.errors, [refused]);
    assert_eq!(bus.functions[&bdf(2, 0)].command & 0b10, 0);
}

#[test]
fn the_cpu_may_see_a_window_elsewhere_than_the_bus() {
    let mut host = host();
    host.window64 = Some(PciWindow {
        cpu: range(0x10_0000_0000, 8 * GIB),
        pci: 0,
    });
    let mut bus = Bus::default().with(1, 0, Function::ivshmem(GIB));
    let findings = find_device_memory(&mut bus, &host);
    assert_eq!(findings.bars[0].range, range(0x10_4000_0000, GIB));
    assert_eq!(bus.functions[&bdf(1, 0)].bar64(2), GIB, "never address 0");
}

#[test]
fn what_firmware_placed_stays_and_others_go_around_it() {
    let base = 0x80_0000_0000;
    let mut bus = Bus::default().with(1, 0, Function::ivshmem(GIB));
    let mut placed = Function::ivshmem(GIB).placed_at(2, base);
    placed.bars[0] = 0x1000_0000;
    bus = bus.with(2, 0, placed);
    let findings = bus.find();
    let ranges: Vec<_> = findings.bars.iter().map(|bar| bar.range).collect();
    assert_eq!(ranges, [range(base + GIB, GIB), range(base, GIB)]);
    assert_eq!(bus.functions[&bdf(2, 0)].command, 0b11);
}

#[test]
fn what_firmware_only_sized_is_placed_after_what_it_placed() {
    let base = 0x80_0000_0000;
    // As U-Boot leaves a BAR for which it has no window: its registers are placed, its memory is not.
    let mut sized = Function::ivshmem(GIB).placed_at(2, u64::MAX - GIB + 1);
    sized.bars[0] = 0x1000_0000;
    let mut placed = Function::ivshmem(GIB).placed_at(2, base);
    placed.bars[0] = 0x1000_1000;
    let mut bus = Bus::default().with(1, 0, sized).with(2, 0, placed);
    let findings = bus.find();
    assert_eq!(findings.errors, []);
    let ranges: Vec<_> = findings.bars.iter().map(|bar| bar.range).collect();
    assert_eq!(ranges, [range(base + GIB, GIB), range(base, GIB)]);
    assert_eq!(bus.functions[&bdf(1, 0)].bars[0], 0x1000_0000);
    assert_eq!(bus.functions[&bdf(1, 0)].command, 0b11);
}

#[test]
fn where_all_are_placed_addresses_are_kept_although_nothing_decodes_yet() {
    let host = PcieHost {
        placed: true,
        ..host()
    };
    let address = 0x88_0000_0000;
    let mut placed = Function::ivshmem(GIB).placed_at(2, address);
    placed.bars[0] = 0x1000_0000;
    placed.command = 0;
    // The second has no address: anywhere else may be another's.
    let mut bus = Bus::default()
        .with(1, 0, placed)
        .with(2, 0, Function::ivshmem(GIB));
    let findings = find_device_memory(&mut bus, &host);
    let ranges: Vec<_> = findings.bars.iter().map(|bar| bar.range).collect();
    assert_eq!(ranges, [range(address, GIB)]);
    assert_eq!(
        findings.errors,
        [PciError::BadPlace {
            function: bdf(2, 0),
            index: 0,
            address: 0
        }]
    );
    assert_eq!(bus.functions[&bdf(1, 0)].command & 0b10, 0b10);
    assert_eq!(bus.functions[&bdf(2, 0)].command & 0b10, 0);
}

#[test]
fn firmware_cannot_have_placed_a_bar_just_anywhere() {
    for address in [0, 0x40_0000_0000, 0x80_0000_0000 + 64 * GIB, 1 << 63] {
        let function = Function::new(IVSHMEM)
            .with_bar64(2, MEM64_PREFETCHABLE, GIB)
            .placed_at(2, address);
        let mut bus = Bus::default().with(1, 0, function);
        let refused = PciError::BadPlace {
            function: bdf(1, 0),
            index: 2,
            address,
        };
        assert_eq!(bus.find().errors, [refused], "{address:#x}");
        assert_eq!(bus.functions[&bdf(1, 0)].command & 0b10, 0);
    }
    let at = |device: u8| {
        let function = Function::new(IVSHMEM).with_bar64(2, MEM64_PREFETCHABLE, GIB);
        (device, 0, function.placed_at(2, 0x80_0000_0000))
    };
    let mut bus = [at(1), at(2)]
        .into_iter()
        .fold(Bus::default(), |bus, (d, f, what)| bus.with(d, f, what));
    let findings = bus.find();
    let refused = PciError::BadPlace {
        function: bdf(2, 0),
        index: 2,
        address: 0x80_0000_0000,
    };
    assert_eq!(
        (findings.bars.len(), findings.errors),
        (1, [refused].to_vec())
    );
}

#[test]
fn further_functions_exist_only_where_function_0_says_so() {
    let bus = || Bus::default().with(4, 5, Function::ivshmem(GIB));
    assert_eq!(bus().find().bars, []);
    assert_eq!(bus().with(4, 0, Function::new(0x1234_5678)).find().bars, []);
    let mut multi = Function::new(0x1234_5678);
    multi.header_type = 0x80;
    let found = bus().with(4, 0, multi).find();
    assert_eq!(found.bars[0].function, bdf(4, 5));
}

#[test]
fn only_large_prefetchable_64_bit_bars_are_device_memory() {
    let small = Function::new(IVSHMEM).with_bar64(0, MEM64_PREFETCHABLE, 1 << 19);
    let registers = Function::new(IVSHMEM).with_bar64(0, 0b0100, 1 << 20);
    let narrow = Function::new(IVSHMEM).with_bar32(0, 1 << 20);
    let mut bus = Bus::default()
        .with(1, 0, small)
        .with(2, 0, registers)
        .with(3, 0, narrow);
    assert_eq!(bus.find(), PciFindings::default());
}

#[test]
fn a_function_without_bars_is_harmless() {
    assert_eq!(
        Bus::default().with(1, 0, Function::new(IVSHMEM)).find(),
        PciFindings::default()
    );
    let mut io = Function::new(IVSHMEM);
    io.bars[0] = 1;
    io.writable[0] = 0xffe0;
    assert_eq!(Bus::default().with(1, 0, io).find(), PciFindings::default());
}

#[test]
fn a_hostile_function_is_refused_by_name() {
    let refused = |function: Function| {
        let findings = Bus::default().with(1, 0, function).find();
        assert_eq!(findings.bars, []);
        findings.errors[0]
    };
    let function = bdf(1, 0);
    let mut bridge = Function::ivshmem(GIB);
    bridge.header_type = 1;
    assert_eq!(refused(bridge), PciError::BadHeader { function });

    let last_is_64bit = Function {
        bars: [0, 0, 0, 0, 0, 0b100],
        ..Function::new(IVSHMEM)
    };
    assert_eq!(
        refused(last_is_64bit),
        PciError::BadBar { function, index: 5 }
    );
    let reserved_type = Function {
        bars: [0b010, 0, 0, 0, 0, 0],
        ..Function::new(IVSHMEM)
    };
    assert_eq!(
        refused(reserved_type),
        PciError::BadBar { function, index: 0 }
    );

    let mut gap = Function::ivshmem(GIB);
    gap.writable[3] &= !1;
    let mask = 0xffff_fffe_c000_0000;
    assert_eq!(
        refused(gap),
        PciError::BadSize {
            function,
            index: 2,
            mask
        }
    );

    let huge = Function::ivshmem(1 << 63);
    assert_eq!(
        refused(huge),
        PciError::NoRoom {
            function,
            index: 2,
            size: 1 << 63
        }
    );
    let beyond = Function::ivshmem(128 * GIB);
    assert_eq!(
        refused(beyond),
        PciError::NoRoom {
            function,
            index: 2,
            size: 128 * GIB
        }
    );
}

#[test]
fn a_32_bit_bar_needs_a_window_of_32_bits() {
    let mut host = host();
    host.window32 = Some(PciWindow {
        cpu: range(0x1000_0000, 0x1000),
        pci: 1 << 40,
    });
    let mut bus = Bus::default().with(1, 0, Function::ivshmem(GIB));
    let refused = PciError::NoRoom {
        function: bdf(1, 0),
        index: 0,
        size: 0x100,
    };
    assert_eq!(find_device_memory(&mut bus, &host).errors, [refused]);
    host.window32 = None;
    assert_eq!(find_device_memory(&mut bus, &host).errors, [refused]);
}

#[test]
fn ecam_has_a_page_for_each_function() {
    let function = Bdf::new(5, 31, 7).unwrap();
    assert_eq!(function.ecam_offset(4), Some(0x1f_f000));
    assert_eq!(function.ecam_offset(6), None);
    assert_eq!((Bdf::new(0, 32, 0), Bdf::new(0, 0, 8)), (None, None));
}

/// Answers each read with the next of a list, whatever was written.
struct Liar {
    answers: Vec<u32>,
    next: usize,
}

impl ConfigSpace for Liar {
    fn read32(&mut self, _: Bdf, _: u16) -> u32 {
        self.next = (self.next + 1) % self.answers.len();
        self.answers[self.next]
    }

    fn write32(&mut self, _: Bdf, _: u16, _: u32) {}
}

proptest! {
    #![proptest_config(fuzz_config())]

    #[test]
    fn bars_never_overlap_whatever_the_bus_answers(
        answers in proptest::collection::vec(
            prop_oneof![
                4 => Just(IVSHMEM), 2 => Just(0), 2 => Just(u32::MAX), 2 => Just(0x80_0000),
                2 => Just(MEM64_PREFETCHABLE), 2 => (20_u32..32).prop_map(|bit| u32::MAX << bit),
                1 => any::<u32>(),
            ],
            1..24,
        )
    ) {
        let mut liar = Liar { answers, next: 0 };
        let host = host();
        let findings = find_device_memory(&mut liar, &host);
        for (index, bar) in findings.bars.iter().enumerate() {
            prop_assert!(host.window64.unwrap().cpu.contains_range(bar.range));
            for other in &findings.bars[..index] {
                prop_assert!(!bar.range.overlaps(other.range));
            }
        }
    }

    #[test]
    fn honest_devices_all_get_a_place_while_there_is_room(
        sizes in proptest::collection::vec(20_u32..32, 1..12)
    ) {
        let bus = |sizes: &[u32]| sizes.iter().zip(1..).fold(Bus::default(), |bus, (bits, device)| {
            bus.with(device, 0, Function::ivshmem(1 << bits))
        });
        let findings = bus(&sizes).find();
        prop_assert_eq!(findings.errors, []);
        let found: Vec<_> = findings.bars.iter().map(|bar| bar.range.size()).collect();
        let expected: Vec<_> = sizes.iter().map(|bits| 1_u64 << bits).collect();
        prop_assert_eq!(found, expected);
        for bar in &findings.bars {
            prop_assert!(bar.range.start().is_aligned(bar.range.size().max(GIB)));
        }
    }
}
