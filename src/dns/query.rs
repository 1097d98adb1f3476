//! A question, as it is put to the zone or to the upstreams.

use hickory_proto::rr::{Name, RecordType};

/// A question of class IN, with the flags that change its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, in the case in which the client wrote it.
    pub name: Name,
    /// The record type, or a query type such as ANY.
    pub record_type: RecordType,
    /// The DO flag: the client wants signatures (RFC 3225).
    pub dnssec_ok: bool,
    /// The CD flag: the client wants the records even if their signatures are wrong (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
    /// The AD flag: the client understands the AD flag of the reply (RFC 6840 section 5.7).
    pub authentic: bool,
}

impl Question {
    /// Makes a question without any flag, as a simple client does.
    #[must_use]
    pub fn new(name: Name, record_type: RecordType) -> Self {
        Self {
            name,
            record_type,
            dnssec_ok: false,
            checking_disabled: false,
            authentic: false,
        }
    }
}
