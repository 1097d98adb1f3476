//! The server side of the API over the network: the check of each call, and the limits of connections. Nodes and coordinators have
//! their own listeners and handlers, and put [`Guard`] before them.
//!
//! | file | what it is |
//! |---|---|
//! | `guard` | checks each call before its handler runs: `Host`, the token, its scope and its rate |
//! | `limits` | how many calls a token and a source may make |
//! | `places` | how many connections a source and a network may have |
//! | `long` | the mark of an answer that may take long |
//! | `answer` | turns each failure into a problem (RFC 9457) |
//! | `events` | a stream that says when the mesh has another revision |
//! | `refused` | the line in the log and the event of a call that was refused |

mod answer;
mod events;
mod guard;
mod limits;
mod long;
mod places;
mod refused;

pub use self::answer::json;
pub use self::events::events;
pub use self::guard::{Facts, Guard, Knowledge, Source, guarded};
pub use self::long::LongAnswer;
pub use self::places::{ConnectionPlace, Places};
