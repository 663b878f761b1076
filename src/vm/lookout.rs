//! Memory errors that nobody has consumed: firmware's scrubber found them, or a write left them behind.
//! They come by an interrupt or are looked for, and are contained before anybody can touch them; a
//! guest that does so afterwards meets the hole and is told.

use super::hypervisor::{Hypervisor, Platform};
use crate::ras::cper::Severity;
use crate::ras::event::{Origin, Stage};
use crate::ras::pipeline::Occasion;

impl<P: Platform> Hypervisor<P> {
    /// Takes and contains what firmware has reported of such errors, on physical CPU number `cpu`. True
    /// if firmware says that one of them is beyond containment: then nobody can go on.
    #[must_use]
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
        collected.fatal
    }
}
