//! The filter: which errors are acted on.
//!
//! A list of [`Rule`]s, of which the first that matches an error decides: `drop` keeps it from being
//! contained, `pass` lets it be. What no rule matches is acted on, so an empty filter changes nothing. It
//! is a tool for tests (after Linux's `hwpoison_filter`): with errors coming from real hardware, a
//! rule narrows down which of them count. An error that is dropped is said and counted; a guest that has
//! consumed it is told nevertheless, for its CPU cannot go on, but its map stays as it is.
//!
//! ```text
//! [drop:|pass:]KEY=VALUE[,KEY=VALUE...]      all keys must match; none at all matches everything
//!   vm=NAME         the VM consumed it, or maps the page
//!   region=ID       the page is in this region of memory
//!   pa=START[+SIZE] the page shares a byte with these addresses; SIZE is a page where it is not said
//!   via=sea|serror|ghes|imported|injected
//!   severity=corrected|recoverable|fatal
//! ```
//!
//! The lock around a [`Filter`] is a leaf: nothing is locked while it is held, and it is held for one
//! decision.

use core::fmt;

use super::cper::Severity;
use super::event::{ErrorEvent, Origin};
use crate::addr::{PAGE_SIZE, Pa, PaRange, Vmid};
use crate::devmem::{DevMem, RegionId};
use crate::platform::cmdline::number;

#[cfg(test)]
mod tests;

/// Rules that a filter can have.
pub const MAX_RULES: usize = 16;

/// What a rule does to an error that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is acted on.
    Pass,
    /// It is not.
    Drop,
}

/// One rule. A condition that is `None` holds for every error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// Whose memory, or whose access.
    pub vm: Option<Vmid>,
    /// In what region, by its number.
    pub region: Option<u16>,
    /// Where.
    pub range: Option<PaRange>,
    /// How it came: an index of [`Origin::NAMES`].
    pub origin: Option<usize>,
    /// How bad it is.
    pub severity: Option<Severity>,
}

/// Why a text is no rule, or a rule was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterError {
    /// A condition without `=`, or of a key that nobody knows.
    UnknownKey,
    /// A value that the key does not have.
    BadValue,
    /// No VM is called so.
    NoSuchVm,
    /// A key is there twice.
    Twice,
    /// [`MAX_RULES`].
    Full,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::UnknownKey => "unknown-key",
            Self::BadValue => "bad-value",
            Self::NoSuchVm => "no-such-vm",
            Self::Twice => "key-twice",
            Self::Full => "filter-full",
        })
    }
}

impl core::error::Error for FilterError {}

impl Rule {
    /// Reads a rule. `vm` knows VMs by name.
    ///
    /// # Errors
    /// All of [`FilterError`] but `Full`.
    pub fn parse(text: &str, vm: impl Fn(&str) -> Option<Vmid>) -> Result<Self, FilterError> {
        let (action, conditions) = match text.split_once(':') {
            Some(("drop", rest)) => (Action::Drop, rest),
            Some(("pass", rest)) => (Action::Pass, rest),
            Some(_) => return Err(FilterError::UnknownKey),
            None => (Action::Drop, text),
        };
        let mut rule = Self {
            action,
            vm: None,
            region: None,
            range: None,
            origin: None,
            severity: None,
        };
        for condition in conditions.split(',').filter(|text| !text.is_empty()) {
            rule.add(condition, &vm)?;
        }
        Ok(rule)
    }

    fn add(
        &mut self,
        condition: &str,
        vm: impl Fn(&str) -> Option<Vmid>,
    ) -> Result<(), FilterError> {
        let (key, value) = condition.split_once('=').ok_or(FilterError::UnknownKey)?;
        let bad = FilterError::BadValue;
        match key {
            "vm" => set(&mut self.vm, vm(value).ok_or(FilterError::NoSuchVm)?),
            "region" => set(&mut self.region, value.parse().map_err(|_| bad)?),
            "pa" => set(&mut self.range, range(value).ok_or(bad)?),
            "via" => set(&mut self.origin, position(value).ok_or(bad)?),
            "severity" => set(&mut self.severity, severity(value).ok_or(bad)?),
            _ => Err(FilterError::UnknownKey),
        }
    }

    /// Whether the rule speaks of `event`, as far as `page` goes.
    #[inline(never)]
    fn matches(&self, event: &ErrorEvent, page: Pa, devmem: &DevMem<'_>) -> bool {
        let maps = |vm| devmem.mappings_of(page).any(|mapped| mapped.vm == vm);
        let inside = |range: PaRange| {
            PaRange::new(page.page(), PAGE_SIZE).is_some_and(|page| page.overlaps(range))
        };
        let region = || devmem.find(page).map(|region| region.id().get());
        self.vm
            .is_none_or(|vm| event.consumer_vm() == Some(vm) || maps(vm))
            && self.region.is_none_or(|id| region() == Some(id))
            && self.range.is_none_or(inside)
            && self
                .origin
                .is_none_or(|origin| origin == event.origin.index())
            && self
                .severity
                .is_none_or(|severity| severity == event.severity)
    }
}

fn set<T>(place: &mut Option<T>, value: T) -> Result<(), FilterError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(FilterError::Twice),
    }
}

fn range(value: &str) -> Option<PaRange> {
    let (start, size) = value
        .split_once('+')
        .map_or((value, None), |(start, size)| (start, Some(size)));
    let size = size.map_or(Some(PAGE_SIZE), number)?;
    PaRange::new(Pa::new(number(start)?), size)
}

fn position(name: &str) -> Option<usize> {
    Origin::NAMES.iter().position(|known| *known == name)
}

fn severity(name: &str) -> Option<Severity> {
    Some(match name {
        "corrected" => Severity::Corrected,
        "recoverable" => Severity::Recoverable,
        "fatal" => Severity::Fatal,
        _ => return None,
    })
}

/// The rules, in the order in which they were added.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The free places are behind those that are taken.
    rules: [Option<Rule>; MAX_RULES],
}

impl Filter {
    /// One that lets everything pass.
    pub const fn new() -> Self {
        Self {
            rules: [None; MAX_RULES],
        }
    }

    /// Adds a rule behind the others. Returns its number, for as long as no other goes.
    ///
    /// # Errors
    /// [`FilterError::Full`].
    pub fn add(&mut self, rule: Rule) -> Result<usize, FilterError> {
        let free = self.rules.iter().position(Option::is_none);
        let free = free.ok_or(FilterError::Full)?;
        let place = self.rules.get_mut(free).ok_or(FilterError::Full)?;
        *place = Some(rule);
        Ok(free)
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.rules = [None; MAX_RULES];
    }

    /// Takes the rules away that name `region`, which is no more: they would take up room for good.
    /// Returns how many they were.
    pub fn forget_region(&mut self, region: RegionId) -> usize {
        let before = self.rules().count();
        let stays = |rule: &Rule| rule.region != Some(region.get());
        // The others move up: the order is what decides.
        let mut kept = [None; MAX_RULES];
        let rest = self.rules.iter().flatten().copied().filter(stays);
        for (place, rule) in kept.iter_mut().zip(rest) {
            *place = Some(rule);
        }
        self.rules = kept;
        before - self.rules().count()
    }

    /// The rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map_while(Option::as_ref)
    }

    /// The number of the rule that keeps `event` from being acted on at `page`, if one does.
    #[inline]
    pub fn drops(&self, event: &ErrorEvent, page: Pa, devmem: &DevMem<'_>) -> Option<usize> {
        let mut rules = self.rules().enumerate();
        let (number, rule) = rules.find(|(_, rule)| rule.matches(event, page, devmem))?;
        (rule.action == Action::Drop).then_some(number)
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::new()
    }
}
