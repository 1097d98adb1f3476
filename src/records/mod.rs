//! Signed records: their keys and kinds, the envelope that carries a record, the ledger that verifies all records, and the values that
//! are computed from a ledger.
//!
//! This part is pure: it reads no clock, socket, file or random source.

pub mod api_revocation;
pub mod batch;
pub mod digest;
pub mod envelope;
pub mod fingerprint;
mod hash;
pub mod key;
pub mod kinds;
pub mod ledger;
pub mod netmap;
pub mod service_address;
pub mod subjects;

pub use envelope::Envelope;
pub use key::RecordKey;
pub use ledger::Ledger;
