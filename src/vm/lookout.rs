//! Memory errors that nobody has consumed: firmware's scrubber found them, or a write left them behind.
//! They come by an interrupt or are looked for, and are contained before anybody can touch them; a
//! guest that does so afterwards meets the hole and is told. And those that Cordon itself has consumed
//! without being able to say where.

use super::hypervisor::{Hypervisor, Platform};
use crate::ras::cper::Severity;
use crate::ras::esr::SError;
use crate::ras::event::{Consumer, Origin, Stage};
use crate::ras::pipeline::Occasion;
use crate::ras::triage::{self, Interrupted, Verdict};

impl<P: Platform> Hypervisor<P> {
    /// Takes and contains what firmware has reported of such errors, on physical CPU number `cpu`. True
    /// if firmware says that one of them is beyond containment: then nobody can go on.
    #[must_use]
    // Kept apart from its caller, which every interrupt goes through: what it needs of registers would be saved each time.
    #[inline(never)]
    pub fn look_for_errors(&self, cpu: usize) -> bool {
        let collected = self.ras.collect_unconsumed(cpu, self);
        if collected.fatal {
            let source = collected.fatal_source.unwrap_or_default();
            let occasion = Occasion {
                origin: Origin::Ghes(source),
                cpu,
                consumer: None,
            };
            let seq = self.ras.next_sequence();
            let event = occasion.event(seq, Severity::Fatal, None);
            self.ras.announcer.announce(&event, Stage::Fatal);
            log::error!(target: "ras", "event=fatal seq={seq} why=firmware-says-fatal source={source}");
        }
        self.offline_due(cpu);
        collected.fatal
    }

    /// An SError of Cordon's own, on physical CPU number `cpu`. True if nobody can go on: all but those that
    /// have done no harm.
    #[must_use]
    pub fn own_serror(&self, error: SError, cpu: usize) -> bool {
        let occasion = Occasion {
            origin: Origin::SError,
            cpu,
            consumer: Some(Consumer::Hypervisor),
        };
        let collected = self.ras.collect(&occasion, self);
        let verdict = triage::serror(&error, Interrupted::Hypervisor, self.triage).verdict;
        let goes_on = matches!(verdict, Verdict::Log | Verdict::Restart) && !collected.fatal;
        let seq = self.ras.next_sequence();
        let iss = error.iss;
        if goes_on {
            log::warn!(target: "ras", "event=own-serror seq={seq} cpu={cpu} iss={iss:#x}");
        } else {
            let event = occasion.event(seq, Severity::Fatal, None);
            self.ras.announcer.announce(&event, Stage::Fatal);
            log::error!(target: "ras", "event=fatal seq={seq} why=hypervisor-serror iss={iss:#x}");
        }
        !goes_on
    }
}
