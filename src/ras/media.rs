//! What can be done to a page of memory that no guest is using: heal it, look whether it is in order,
//! clear it, copy it. All of it may meet poison, and says so instead of taking the machine down.

use crate::addr::Pa;
use core::fmt;

/// Why a page could not be read or written to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaError {
    /// It is poisoned: Cordon has consumed the poison, and a record of that may have been left.
    Poisoned,
    /// Cordon cannot reach it.
    Unreachable,
}

impl fmt::Display for MediaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Poisoned => "poisoned",
            Self::Unreachable => "unreachable",
        })
    }
}

/// What the platform did when it was asked to heal a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Healing {
    /// It says that the page is in order now, with its contents.
    Done,
    /// It has no such service.
    NoService,
    /// It refused.
    Refused,
}

/// Pages by their PA, aligned. Each call is for one page, whole. What is read is what memory has, and no cache has anything
/// of the page afterwards: guests may have it as memory that is not cached.
pub trait Media {
    /// Asks the platform to heal a page.
    fn heal(&self, page: Pa) -> Healing;

    /// Reads a page.
    ///
    /// # Errors
    /// [`MediaError`].
    fn verify(&self, page: Pa) -> Result<(), MediaError>;

    /// Writes zeros to a page, as wide as the CPU can: on many kinds of memory that takes poison away.
    ///
    /// # Errors
    /// [`MediaError`]: part of it may be written.
    fn clear(&self, page: Pa) -> Result<(), MediaError>;

    /// Copies a page.
    ///
    /// # Errors
    /// [`MediaError`]: part of it may be written.
    fn copy(&self, from: Pa, to: Pa) -> Result<(), MediaError>;
}
