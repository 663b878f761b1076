//! What an operation works on, as traits: the registers of a vCPU, and bytes of memory by the guest's addresses.

/// The registers of the vCPU that made the access.
pub trait GuestRegisters {
    /// General register `number`; 31 is XZR.
    fn register(&self, number: u8) -> u64;
    /// Sets general register `number`; nothing happens for 31.
    fn set_register(&mut self, number: u8, value: u64);
    /// The stack pointer in use.
    fn stack_pointer(&self) -> u64;
    /// Sets it.
    fn set_stack_pointer(&mut self, value: u64);
    /// SIMD&FP register `number`.
    fn vector(&self, number: u8) -> u128;
    /// Sets it. What an SVE register has above it becomes zero.
    fn set_vector(&mut self, number: u8, value: u128);
    /// The address of the instruction.
    fn pc(&self) -> u64;
    /// Bytes that DC ZVA zeroes: a power of two, at most 2,048.
    fn zero_block(&self) -> u64;
}

/// Why an access was not made to its end. What it was to write may be written in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The memory of the byte at this address is poisoned.
    Poisoned(u64),
    /// Others were at the same place all the time: it is to be made again.
    Contended,
    /// The memory refuses accesses of this kind.
    Unsupported,
}

/// The memory that an [`Extent`](super::extent::Extent) names, by the guest's addresses.
///
/// An access of `size` (1, 2, 4, 8 or 16) bytes that lies in one page is one access of the CPU.
pub trait Memory {
    /// Reads.
    ///
    /// # Errors
    /// [`Stop`].
    fn load(&mut self, at: u64, size: u8) -> Result<u128, Stop>;
    /// Writes `value`, which has no more bits than there is room for.
    ///
    /// # Errors
    /// [`Stop`].
    fn store(&mut self, at: u64, size: u8, value: u128) -> Result<(), Stop>;
    /// Writes `new` if `expected` is there, in one step for all observers. Returns what was there. The bytes
    /// lie in 16 that are aligned.
    ///
    /// # Errors
    /// [`Stop`].
    fn exchange(&mut self, at: u64, size: u8, expected: u128, new: u128) -> Result<u128, Stop>;
    /// Writes zeros.
    ///
    /// # Errors
    /// [`Stop`].
    fn zero(&mut self, at: u64, length: u64) -> Result<(), Stop>;
    /// What comes before this is seen by all observers before what comes after it.
    fn fence(&mut self);
}
