//! Signed records: their kinds, the envelope that carries one, the ledger that verifies all of them, and what is computed
//! from the ledger.
//!
//! Everything here is a value. Nothing reads a clock, a socket, a file or a random source.

pub mod batch;
pub mod digest;
pub mod envelope;
pub mod key;
pub mod kinds;
pub mod ledger;
pub mod netmap;
pub mod service_address;

pub use envelope::Envelope;
pub use key::RecordKey;
pub use ledger::Ledger;
