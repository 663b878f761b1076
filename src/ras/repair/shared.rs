//! Repairs of memory that several VMs share.
//!
//! A page that went bad is a hole in every VM that maps it, and each that touches it is told. What one of
//! them does about it must not surprise another, whose contents are as lost whatever the media does now:
//!
//! - **In place**, the page comes back to the VM that asked, and to no other. From each of the others it
//!   is *withheld*: their holes stay, and whoever touches one is told as before. Asking is consent: a VM
//!   that asks later has the page back as it is then, without another repair, which would take away
//!   what the first has written.
//! - A VM that **keeps** bad pages mapped (its policy) would see the contents change under it. While there
//!   is one, the repair is refused.
//! - **A spare** for one VM alone would part what is shared, without a word; a spare for all would be
//!   zeros for those who have not asked. So that is refused.
//! - **Soft offline** moves contents that are in order, everywhere at once. Nobody can tell.
//!
//! The operator, who asks for no VM in particular, speaks for all of them: [`Ras::repair`].

use super::{Contents, How, Ras, RepairError, Step};
use crate::addr::{Pa, PaRange, Vmid};
use crate::devmem::Policy;
use crate::ras::ghes::PhysMemory;
use crate::ras::media::Media;
use crate::ras::poison::{BadPage, Standing};
use crate::ras::repair::Mendable;

/// Some of the VMs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Vms([u64; 4]);

impl Vms {
    fn add(&mut self, vm: Vmid) {
        let raw = vm.get();
        if let Some(word) = self.0.get_mut(usize::from(raw / 64)) {
            *word |= 1 << (raw % 64);
        }
    }

    /// Each once, in order.
    pub(super) fn iter(self) -> impl Iterator<Item = Vmid> + Clone {
        (1..=u8::MAX).filter_map(Vmid::new).filter(move |vm| {
            let word = self.0.get(usize::from(vm.get() / 64));
            word.is_some_and(|word| word >> (vm.get() % 64) & 1 == 1)
        })
    }

    fn is_empty(self) -> bool {
        self.0 == [0; 4]
    }
}

impl<S: PhysMemory, V: Mendable, M: Media> Step<'_, '_, S, V, M> {
    /// Those who have the page and have not asked; none where the repair is for all.
    ///
    /// # Errors
    /// [`RepairError::Shared`] if one of them would notice this repair.
    pub(super) fn others(&self, how: How) -> Result<Vms, RepairError> {
        let mut others = Vms::default();
        let Some(own) = self.by else {
            return Ok(others);
        };
        for user in self.ras.users_of(self.page).filter(|user| user.vm != own) {
            if user.policy == Policy::Keep {
                return Err(RepairError::Shared);
            }
            others.add(user.vm);
        }
        match how {
            How::Spare if !others.is_empty() => Err(RepairError::Shared),
            _ => Ok(others),
        }
    }

    /// The page is good again, for everybody but `others`.
    pub(super) fn forget(&self, others: Vms) -> Result<(), RepairError> {
        let mut asked = Vms::default();
        let users = self.ras.users_of(self.page);
        users
            .filter(|user| self.by.is_none_or(|by| by == user.vm))
            .for_each(|user| asked.add(user.vm));
        let mut poison = self.ras.poison.lock();
        let removed = poison.remove_but_for(self.page.pfn(), others.iter());
        removed.ok_or(RepairError::NoRoom)?;
        // It may have been withheld from them, and gone bad again before they asked.
        for vm in asked.iter() {
            let _ = poison.give_back(vm, self.page.pfn());
        }
        drop(poison);
        for vm in others.iter() {
            let (seq, page, name) = (self.seq, self.page, self.spaces.name(vm));
            log::info!(target: "ras", "event=withheld seq={seq} pa={page} vm={name}");
        }
        Ok(())
    }

    /// The page is good, and others have it back; now this VM wants it, too.
    pub(super) fn give_back(&self, vm: Vmid, how: How) -> Result<Contents, RepairError> {
        if how == How::Spare {
            return Err(RepairError::Shared);
        }
        let given = self.ras.poison.lock().give_back(vm, self.page.pfn());
        given.ok_or(RepairError::NotPoisoned)?;
        self.mend_all()?;
        Ok(Contents::Shared)
    }
}

impl<S: PhysMemory> Ras<'_, S> {
    /// The lowest page that shares a byte with `range` and that `vm` must not have mapped: because it is
    /// bad, or because it is withheld.
    pub fn first_lost_to(&self, vm: Vmid, range: PaRange) -> Option<Pa> {
        let poison = self.poison.lock();
        poison.first_for(vm, range).map(|page| page.pfn().pa())
    }

    /// What is known of the page that holds `pa`, if `vm` must not have it mapped.
    pub fn lost_to(&self, vm: Vmid, pa: Pa) -> Option<BadPage> {
        let poison = self.poison.lock();
        poison.get_for(vm, pa.pfn()).map(|page| page.snapshot())
    }

    /// Whether `vm` may have the page that holds `pa`.
    pub fn standing(&self, vm: Vmid, pa: Pa) -> Standing {
        self.poison.lock().standing(vm, pa.pfn())
    }

    /// How many pages are withheld, each counted for each VM that has not asked for it; also those that have
    /// gone bad again since.
    pub fn withheld(&self) -> usize {
        self.poison.lock().withheld()
    }
}
