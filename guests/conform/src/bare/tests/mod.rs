//! The tests, by group. Each finds a machine whose interrupts are idle (`gic::reset`).

mod distributor;
mod events;
mod exceptions;
mod id;
mod interface;
mod psci;
mod redistributor;
mod sgi;
mod spi;
mod state;
mod timers;

use super::test::Test;

/// All of them, in the order in which they run.
pub(super) static ALL: &[&[Test]] = &[
    distributor::TESTS,
    redistributor::TESTS,
    sgi::TESTS,
    interface::TESTS,
    spi::TESTS,
    timers::TESTS,
    psci::TESTS,
    id::TESTS,
    state::TESTS,
    events::TESTS,
    exceptions::TESTS,
];
