//! The reasons for which a relay forwards no frame.

use crate::model::reasons::reasons;

reasons! {
    /// The reason for which a relay dropped a frame.
    RelayDrop {
        /// The header is incomplete or of an unknown version, or no WireGuard message follows it.
        Malformed = "malformed",
        /// This node does not relay.
        NotOffered = "not_offered",
        /// The endpoint that the frame came from is no path of a member.
        UnknownSource = "unknown_source",
        /// The tag is not the one that this node gave to the member for its endpoint, or is too old.
        BadTag = "bad_tag",
        /// No member has the address of the destination.
        UnknownDestination = "unknown_destination",
        /// The destination is the sender itself.
        ToSender = "to_sender",
        /// The destination was not heard for some time on a path of its own: a relay does not forward to another relay.
        NotHeard = "not_heard",
        /// The sender exceeds the limit that each member has.
        Limit = "limit",
    }
}
