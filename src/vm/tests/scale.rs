//! What things cost where there is much of everything: 64 VMs, terabytes of device memory, a hundred
//! thousand bad pages. Counted in nodes of the poison set and in tables that are looked at, never in time.

use super::fake::{FakeMachine, G1, K4, Tables, TlbLog};
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Vmid};
use crate::devmem::{DevMem, Kind, Mapping};
use crate::ras::cper::Severity;
use crate::ras::event::Origin;
use crate::ras::pipeline::tests::{Firmware, poison_set};
use crate::ras::pipeline::{Occasion, Ras, Toucher};
use crate::ras::poison::{PoisonedPage, steps};
use crate::ras::repair::How;
use crate::ras::triage;
use crate::stage2::{Attrs, Config, Stage2};
use crate::vm::boot::Boot;
use crate::vm::hypercall::Pages;
use crate::vm::hypervisor::{Hypervisor, Vm};
use crate::vm::vcpu::Vcpu;
use crate::vm::vgic::Timers;
use std::println;
use std::vec::Vec;

const VMS: u64 = 64;
/// Bad pages lie next to each other, as the lines of a bad row do.
const RUN: u64 = 8;
/// Where the device memory is, and where each VM has its own part of it.
const DEVICE: u64 = 0x1000_0000_0000;
const AT: u64 = 0x400_0000_0000;
const TIB: u64 = 1 << 40;
/// Times that each thing is done.
const SAMPLES: u64 = 32;

struct World {
    hypervisor: Hypervisor<FakeMachine>,
    tables: Vec<Tables>,
    /// Bytes of each VM's part.
    part: u64,
    random: u64,
}

fn vmid(vm: u64) -> Vmid {
    Vmid::new(u8::try_from(vm + 1).unwrap()).unwrap()
}

impl World {
    /// `size` bytes of device memory with `pages` bad pages, shared out between all VMs.
    fn new(size: u64, pages: u64) -> Self {
        let part = size / VMS;
        let mut devmem = DevMem::new();
        let bar = PaRange::new(Pa::new(DEVICE), size).unwrap();
        let bar = devmem.register(Kind::Bar, bar, "bar", None).unwrap();
        let reserve = usize::try_from(2 * (pages / RUN / VMS + 1 + 2 * SAMPLES)).unwrap();
        let (mut vms, mut all_tables) = (Vec::new(), Vec::new());
        for vm in 0..VMS {
            let range = PaRange::new(Pa::new(DEVICE + vm * part), part).unwrap();
            let mapping = Mapping {
                vm: vmid(vm),
                ipa: Ipa::new(AT),
                range,
                attrs: Attrs::RAM,
            };
            devmem.add_mapping(bar, mapping).unwrap();
            // A root, and one for each 512 GiB.
            let tables = Tables::new(reserve + 3);
            vms.push(build(&mapping, &tables, reserve));
            all_tables.push(tables);
        }
        let nodes = usize::try_from(pages + 4 * SAMPLES).unwrap();
        let ras = Ras::new(devmem, poison_set(nodes), Firmware::new().sources());
        let promises = triage::Machine {
            feat_ras: true,
            isolates_vms: false,
        };
        let mut world = Self {
            hypervisor: Hypervisor::new(FakeMachine::default(), ras, promises, vms),
            tables: all_tables,
            part,
            random: 1,
        };
        world.hypervisor.platform.media.lock().unwrap().heals = true;
        for run in 0..pages / RUN {
            let start = world.place(run % VMS);
            for page in 0..RUN {
                world.strike(Pa::new(start.get() + page * K4));
            }
        }
        world
    }

    /// A place in the middle of the part of a VM, 64 KiB aligned: runs do not overlap by halves.
    fn place(&mut self, vm: u64) -> Pa {
        // Knuth's MMIX.
        self.random = (self.random)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let offset = ((self.random >> 16) % (self.part >> 16)) << 16;
        Pa::new(DEVICE + vm * self.part + offset)
    }

    fn strike(&self, page: Pa) {
        let range = PaRange::new(page, PAGE_SIZE).unwrap();
        let occasion = Occasion {
            origin: Origin::Repair,
            cpu: 0,
            consumer: None,
        };
        let ras = &self.hypervisor.ras;
        let event = occasion.event(ras.next_sequence(), Severity::Recoverable, Some(range));
        assert!(ras.contain(&event, range, &self.hypervisor).is_some());
    }

    fn visits(&self) -> u64 {
        self.tables.iter().map(Tables::visits).sum()
    }

    /// What `action` costs: nodes and tables that are looked at.
    fn cost(&self, action: impl FnOnce()) -> [u64; 2] {
        let before = [steps::taken(), self.visits()];
        action();
        let after = [steps::taken(), self.visits()];
        [0, 1].map(|at: usize| after[at] - before[at])
    }

    /// The mean cost of each operation, in tenths.
    fn measure(&mut self) -> [[u64; 2]; OPERATIONS.len()] {
        let mut sums = [[0; 2]; OPERATIONS.len()];
        for sample in 0..SAMPLES {
            let vm = sample * 7 % VMS;
            let page = self.place(vm);
            let fresh = Pa::new(page.get() + 12 * K4);
            let ipa = Ipa::new(AT + (fresh.get() - DEVICE - vm * self.part));
            let (hypervisor, own) = (&self.hypervisor, vmid(vm));
            let ras = &hypervisor.ras;
            let gigabyte = PaRange::new(Pa::new(page.get() & !(G1 - 1)), G1).unwrap();
            let costs = [
                self.cost(|| self.strike(fresh)),
                self.cost(|| {
                    let place = hypervisor.vms()[vm as usize].follow(ipa).unwrap();
                    assert_eq!(place.memory().map(Pa::page), Some(fresh.page()));
                    let who = Toucher {
                        vm: own,
                        cpu: 0,
                        siblings: 1,
                    };
                    assert_eq!(ras.touched(who, fresh).count, 1);
                }),
                self.cost(|| assert!(ras.first_lost_to(own, gigabyte).is_some())),
                self.cost(|| {
                    let last = Ipa::new(ipa.get() + 4 * K4 - 1);
                    assert_eq!(ras.lost_pages_in(own, ipa, last).count(), 1);
                }),
                self.cost(|| assert_eq!(ras.devmem.resolve(own, ipa).unwrap().0, fresh)),
                self.cost(|| {
                    let pages = Pages::new(ipa.get(), 1, 1).unwrap();
                    let done = hypervisor
                        .repair_range(own, pages, How::InPlace, 0)
                        .unwrap();
                    assert_eq!((done.pages, done.left), (1, 0));
                }),
            ];
            for (sum, cost) in sums.iter_mut().zip(costs) {
                sum[0] += cost[0];
                sum[1] += cost[1];
            }
        }
        sums.map(|sum| sum.map(|all| all * 10 / SAMPLES))
    }

    fn bad(&self) -> u64 {
        self.hypervisor.ras.poison_set_fill().0 as u64
    }
}

const OPERATIONS: [&str; 6] = [
    "contain",
    "touch",
    "bad-in-1g",
    "query-4-pages",
    "resolve",
    "repair",
];

fn build(mapping: &Mapping, tables: &Tables, reserve: usize) -> Vm<FakeMachine> {
    let (mut frames, tlb) = (tables.clone(), TlbLog::default());
    let config = Config::new(5).unwrap();
    let map = Stage2::new(
        config,
        mapping.vm,
        tables.clone(),
        tlb,
        &mut frames,
        reserve,
    );
    let mut map = map.unwrap();
    let (pa, size) = (mapping.range.start(), mapping.range.size());
    map.map(mapping.ipa, pa, size, mapping.attrs, &mut frames)
        .unwrap();
    let timers = Timers {
        virtual_: None,
        physical: None,
    };
    let boot = Boot {
        acpi: None,
        images: Vec::new(),
        entry: Ipa::new(AT),
        dtb: Ipa::new(AT),
        ram: 0,
    };
    let number = usize::from(mapping.vm.get());
    let vcpus = [Vcpu::new(0, number)];
    Vm::new(
        "vm".into(),
        mapping.vm,
        vcpus.into(),
        map,
        number,
        timers,
        boot,
    )
}

/// Prints both as a table: per operation, nodes and tables.
fn print(title: &str, few: &[[u64; 2]], many: &[[u64; 2]]) {
    println!("{title}");
    for ((name, few), many) in OPERATIONS.iter().zip(few).zip(many) {
        let tenths = |value: u64| std::format!("{}.{}", value / 10, value % 10);
        println!(
            "{name:>14}  nodes {:>6} {:>6}  tables {:>6} {:>6}",
            tenths(few[0]),
            tenths(many[0]),
            tenths(few[1]),
            tenths(many[1])
        );
    }
}

/// A hundred times as many may take twice the nodes, for log 100,000 is less than twice log 1,000, and
/// no more tables.
fn assert_logarithmic(few: &[[u64; 2]], many: &[[u64; 2]]) {
    for ((name, few), many) in OPERATIONS.iter().zip(few).zip(many) {
        assert!(many[0] <= 2 * few[0] + 20, "{name}: {few:?} {many:?}");
        assert!(
            many[1] <= few[1] + few[1] / 4 + 10,
            "{name}: {few:?} {many:?}"
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "too much of everything for an interpreter")]
fn a_hundred_thousand_bad_pages_cost_little_more_each_than_a_thousand() {
    let (mut few, mut many) = (World::new(16 * TIB, 1_000), World::new(16 * TIB, 100_000));
    assert!(
        few.bad() >= 990 && many.bad() >= 99_000,
        "few runs fall together"
    );
    let (few, many) = (few.measure(), many.measure());
    print("16 TiB, 64 VMs: 1,000 and 100,000 bad pages", &few, &many);
    assert_logarithmic(&few, &many);
}

#[test]
#[cfg_attr(miri, ignore = "too much of everything for an interpreter")]
fn sixteen_terabytes_cost_what_one_does() {
    let (mut small, mut large) = (World::new(TIB, 1_000), World::new(16 * TIB, 1_000));
    let (small, large) = (small.measure(), large.measure());
    print("1,000 bad pages, 64 VMs: 1 TiB and 16 TiB", &small, &large);
    assert_logarithmic(&small, &large);
    assert_logarithmic(&large, &small);
}

/// `cargo test -p cordon --lib scale -- --ignored --nocapture` prints what is in `docs/performance.md`.
#[test]
#[ignore = "prints a table"]
fn memory() {
    for pages in [0, 1_000, 10_000, 100_000] {
        let world = World::new(16 * TIB, pages);
        let reserve: usize = (world.hypervisor.vms().iter())
            .map(|vm| vm.stage2.lock().reserve_left())
            .sum();
        let tables = world.tables.iter().map(Tables::taken).sum::<usize>() - reserve;
        println!(
            "bad={} set_bytes={} tables={tables} table_bytes={}",
            world.bad(),
            world.bad() * size_of::<PoisonedPage>() as u64,
            tables * 4096
        );
    }
}
