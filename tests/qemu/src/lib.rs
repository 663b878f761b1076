//! The QEMU harness: starts machines, plays scenarios, judges what came out.
