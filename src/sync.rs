//! The locks of VMs and of the memory errors' pipeline: spin locks, or, in a test with the feature
//! `model`, those of a scheduler that tries out interleavings (`src/vm/tests/races.rs`).

#[cfg(not(all(test, feature = "model")))]
pub use spin::Mutex;

#[cfg(all(test, feature = "model"))]
pub use model::Mutex;

#[cfg(all(test, feature = "model"))]
mod model {
    use shuttle::sync::MutexGuard;

    /// A lock with the interface of a spin lock, at which the scheduler may take the CPU away.
    #[derive(Debug)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A lock that is free.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Takes it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            // A panic anywhere ends the run.
            self.0.lock().unwrap_or_else(|error| error.into_inner())
        }
    }
}
