//! A disk behind a virtio transport: a pattern is written to it and read back, past the page cache.
//!
//! Word n of the pattern of a seed is known on the other side of the disk as well
//! (docs/protocols.md, "The Linux guest's console").

use crate::report::report;
use crate::{modules, system};
use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, open};
use std::fs::File;
use std::io::{Read, Write};
use std::time::Instant;

const DEVICE: &str = "vda";
/// What /proc/interrupts calls it.
const INTERRUPT: &str = "virtio0";
/// Bytes that are written and read.
const BYTES: usize = 4 << 20;
/// Bytes of one request.
const CHUNK: usize = 64 << 10;

/// Memory that a request past the page cache can be about.
#[repr(C, align(4096))]
struct Buffer([u8; CHUNK]);

impl Buffer {
    /// Piece number `piece` of the pattern of `seed`.
    fn of_pattern(seed: u64, piece: usize) -> Box<Self> {
        let mut buffer = Box::new(Self([0; CHUNK]));
        let first = (piece * CHUNK / 8) as u64;
        for (at, bytes) in (first..).zip(buffer.0.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word(seed, at).to_le_bytes());
        }
        buffer
    }
}

/// Word number `at` of the pattern that `seed` stands for.
const fn word(seed: u64, at: u64) -> u64 {
    seed.wrapping_shl(32) ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Writes the pattern of a seed, has the disk flush it, and reads it back.
pub(crate) fn write(seed: &str) -> Result<()> {
    let (seed, begun) = (parse(seed)?, Instant::now());
    let mut disk = disk(OFlags::RDWR)?;
    for piece in 0..BYTES / CHUNK {
        disk.write_all(&Buffer::of_pattern(seed, piece).0)?;
    }
    disk.sync_all().context("flush")?;
    drop(disk);
    check("disk-write", seed, begun)
}

/// Reads, and compares with the pattern of a seed.
pub(crate) fn read(seed: &str) -> Result<()> {
    check("disk-read", parse(seed)?, Instant::now())
}

fn check(event: &str, seed: u64, begun: Instant) -> Result<()> {
    system::drop_caches()?;
    let mut disk = disk(OFlags::RDONLY)?;
    let (mut read, mut wrong) = (Buffer::of_pattern(0, 0), 0);
    for piece in 0..BYTES / CHUNK {
        disk.read_exact(&mut read.0)?;
        let right = Buffer::of_pattern(seed, piece);
        let pairs = read.0.iter().zip(&right.0);
        wrong += pairs.filter(|(a, b)| a != b).count();
    }
    report(&format!(
        "event={event} seed={seed} bytes={BYTES} wrong={wrong} interrupts={} ms={}",
        system::interrupts(INTERRUPT)?,
        begun.elapsed().as_millis()
    ));
    Ok(())
}

fn disk(mode: OFlags) -> Result<File> {
    modules::load(modules::VIRTIO_BLOCK)?;
    let path = modules::wait_for(DEVICE)?;
    let flags = mode | OFlags::DIRECT | OFlags::CLOEXEC;
    let disk = open(&path, flags, Mode::empty()).context(DEVICE)?;
    Ok(disk.into())
}

fn parse(seed: &str) -> Result<u64> {
    let seed = seed.trim().parse().context("bad-number")?;
    ensure!(seed != 0, "bad-number");
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_follow_each_other() {
        let pieces = [0, 1].map(|piece| Buffer::of_pattern(7, piece));
        assert_eq!(pieces[0].0.as_ptr().addr() % 4096, 0);
        assert_eq!(pieces[0].0[..8], word(7, 0).to_le_bytes());
        assert_eq!(
            pieces[1].0[8..16],
            word(7, CHUNK as u64 / 8 + 1).to_le_bytes()
        );
        assert_ne!(pieces[0].0, pieces[1].0);
    }
}
