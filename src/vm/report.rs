//! What was counted, what is bad, and what maps are made of: on request, and when a VM starts or stops or
//! the machine halts.

use super::hypervisor::{Hypervisor, Platform, Vm};
use crate::devmem::Region;
use crate::ras::contain::BlockSize;
use crate::ras::event::Origin;
use crate::stage2::{Census, Damage, Granule, Level};
use core::fmt;
use core::sync::atomic::Ordering;

/// Takes a line without its prefix.
type Say<'a> = dyn FnMut(fmt::Arguments<'_>) + 'a;

impl<P: Platform> Hypervisor<P> {
    /// Prints the counters: the sums, then by kind, by VM, by vCPU and by region.
    pub fn print_counters(&self) {
        self.say_counters(&mut |line| log::info!(target: "ras", "{line}"));
    }

    /// Says the same to whom it may concern.
    pub(super) fn say_counters(&self, say: &mut Say<'_>) {
        let counters = self.ras.announcer.counters();
        let carried = self.vms().iter();
        let carried: u64 = carried
            .map(|vm| vm.carried_out.load(Ordering::Relaxed))
            .sum();
        say(format_args!(
            "event=summary {} carried_out={carried}",
            counters.snapshot()
        ));
        let kinds = counters.kinds();
        let (required, optional) = (kinds.required, kinds.optional);
        say(format_args!(
            "event=counters kind=all required={required} optional={optional}"
        ));
        for (via, [corrected, recoverable, fatal]) in kinds.by_origin() {
            if corrected + recoverable + fatal > 0 {
                say(format_args!(
                    "event=counters via={via} corrected={corrected} recoverable={recoverable} fatal={fatal}"
                ));
            }
        }
        for vm in self.vms() {
            self.say_vm(vm, say);
        }
        for region in self.ras.devmem.regions() {
            self.say_region(region, say);
        }
    }

    fn say_vm(&self, vm: &Vm<P>, say: &mut Say<'_>) {
        let lost = self.ras.lost_pages_of(vm.vmid).count();
        let injected = vm.injected.load(Ordering::Relaxed);
        let name = &vm.name;
        if let Some(met) = self.ras.announcer.counters().vm(vm.vmid) {
            say(format_args!(
                "event=counters vm={name} lost_pages={lost} injected={injected} {met} carried_out={} not_carried_out={}",
                vm.carried_out.load(Ordering::Relaxed),
                vm.not_carried_out.load(Ordering::Relaxed)
            ));
        }
        for vcpu in &vm.vcpus {
            let consumed = vcpu.consumed.load(Ordering::Relaxed);
            let distinct = vcpu.distinct.load(Ordering::Relaxed);
            if consumed > 0 {
                let (index, repeated) = (vcpu.index, consumed.saturating_sub(distinct));
                say(format_args!(
                    "event=counters vm={name} vcpu={index} distinct={distinct} repeated={repeated}"
                ));
            }
        }
    }

    fn say_region(&self, region: &Region<'_>, say: &mut Say<'_>) {
        let empty = (0_u64, 0_u64);
        let sum = |(pages, touched): (u64, u64), page: crate::ras::poison::BadPage| {
            (pages + 1, touched.saturating_add(page.touches))
        };
        let (pages, touched) = self.ras.bad_in(region.range()).fold(empty, sum);
        if pages > 0 {
            let (id, kind) = (region.id(), region.kind());
            say(format_args!(
                "event=counters region={id} kind={kind} lost_pages={pages} touched={touched}"
            ));
        }
    }

    /// Prints every page that is bad, in the order of their addresses: what a later start can import.
    pub fn print_poison(&self) {
        for page in self.ras.all_bad_pages() {
            let (pa, seq, touched) = (page.pa, page.sequence, page.touches);
            let known = if page.acknowledged { "yes" } else { "no" };
            let region = self.ras.devmem.find(pa).map(Region::id);
            match region {
                Some(id) => {
                    log::info!(target: "ras", "event=poison pa={pa} seq={seq} touched={touched} acknowledged={known} region={id}")
                }
                None => {
                    log::info!(target: "ras", "event=poison pa={pa} seq={seq} touched={touched} acknowledged={known}")
                }
            }
        }
    }

    /// Imports `ranges`, pages that were bad before Cordon started, on physical CPU number `cpu`, and says
    /// how many there are.
    pub fn import_poison(&self, ranges: &[crate::addr::PaRange], cpu: usize) {
        if ranges.is_empty() {
            return;
        }
        let n = self.ras.import(ranges.iter().copied(), cpu, self);
        let via = Origin::Imported;
        log::info!(target: "ras", "event=imported n={n} via={via} ranges={}", ranges.len());
    }

    /// Says at a start and a stop what the VM's map is made of.
    pub(super) fn print_stage2(&self, vm: &Vm<P>, when: &str) {
        let said = self.say_stage2(vm, when, &mut |line| log::info!("{line}"));
        if let Err(damage) = said {
            log::error!("event=error what=stage2 vm={} why={damage}", vm.name);
        }
    }

    /// Says what a VM's map is made of, as a whole and by the regions that it maps.
    pub(super) fn say_stage2(
        &self,
        vm: &Vm<P>,
        when: &str,
        say: &mut Say<'_>,
    ) -> Result<(), Damage> {
        let stage2 = vm.stage2.lock();
        let granule = stage2.config().granule();
        let census = stage2.census()?;
        say(format_args!(
            "event=stage2 vm={} when={when} {} tables={} reserve={}",
            vm.name,
            Leaves(&census, granule),
            census.tables,
            stage2.reserve_left()
        ));
        for region in self.ras.devmem.regions() {
            for mapping in region.mappings().filter(|mapping| mapping.vm == vm.vmid) {
                if let Ok(census) = stage2.census_of(mapping.ipa, mapping.range.size()) {
                    let (id, kind) = (region.id(), region.kind());
                    let (ipa, leaves) = (mapping.ipa, Leaves(&census, granule));
                    say(format_args!(
                        "event=leaves vm={} when={when} region={id} kind={kind} ipa={ipa} {leaves}",
                        vm.name
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Leaves by size, with this granule, and holes.
struct Leaves<'a>(&'a Census, Granule);

impl fmt::Display for Leaves<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(census, granule) = self;
        let levels = Level::ALL.into_iter();
        for level in levels.filter(|level| granule.has_leaves(*level)) {
            let (size, leaves) = (BlockSize(granule.span(level)), census.leaves(level));
            write!(f, "{size}={leaves} ")?;
        }
        write!(
            f,
            "hole={} hole_bytes={:#x} dropped={} contiguous={}",
            census.holes, census.hole_bytes, census.parked, census.contiguous
        )
    }
}
