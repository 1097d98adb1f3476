//! Random numbers of the operating system.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "all other parts get randomness from here"
    )
)]

pub use getrandom::Error as RandomError;

/// Fills `bytes` with random ones.
///
/// # Errors
/// The system has no random numbers, which happens only early during its start.
pub fn fill(bytes: &mut [u8]) -> Result<(), RandomError> {
    getrandom::fill(bytes)
}

/// A random number.
///
/// # Errors
/// As [`fill`].
pub fn u32() -> Result<u32, RandomError> {
    getrandom::u32()
}

/// A random number.
///
/// # Errors
/// As [`fill`].
pub fn u64() -> Result<u64, RandomError> {
    getrandom::u64()
}
