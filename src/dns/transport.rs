//! How a query reaches this resolver, and how long messages may be.

/// How a query was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In one datagram. The reply is truncated if the client does not accept so many bytes.
    Udp,
    /// Over a stream. The reply is never truncated.
    Tcp,
}

/// The most bytes of a UDP reply, even if the client accepts more: a datagram of this size passes every path unfragmented
/// (RFC 9715).
pub const MAX_UDP: u16 = 1232;
/// The most bytes of a UDP reply to a client without EDNS (RFC 1035 section 4.2.1).
pub(super) const PLAIN_UDP: u16 = 512;
/// The most bytes of a query.
pub const MAX_QUERY: usize = 4096;
/// The EDNS option for extended errors (RFC 8914 section 2), and the error code Prohibited with its text (section 4.19).
pub(super) const EXTENDED_ERROR: u16 = 15;
pub(super) const PROHIBITED: u16 = 18;
pub(super) const PROHIBITED_TEXT: &str = "other nodes are answered names of the mesh only";
