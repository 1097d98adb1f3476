//! Random numbers of the operating system.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "all other parts get randomness from here"
    )
)]

pub use getrandom::Error as RandomError;

use crate::model::PublicKey;

/// Fills `bytes` with random ones.
///
/// # Errors
/// The system has no random numbers, which happens only early during its start.
pub fn fill(bytes: &mut [u8]) -> Result<(), RandomError> {
    getrandom::fill(bytes)
}

/// 32 random bytes in hexadecimal, by which a challenge differs from all others.
///
/// # Errors
/// As [`fill`].
pub fn nonce() -> Result<String, RandomError> {
    let mut nonce = [0; 32];
    fill(&mut nonce)?;
    // Keys have the same text form.
    Ok(PublicKey(nonce).to_string())
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
