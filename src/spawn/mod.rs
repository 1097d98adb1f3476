//! Spawning: containers that programs start on a node without the engine's socket, from templates that the owner of the node wrote.
//!
//! The engine's socket is root on the machine: whoever creates a container can mount `/` in it. So a caller never reaches the engine. Its
//! request is read to the last field into a [`Wanted`], a field that asks for more than the [`Template`] permits refuses the whole
//! request, and [`body`] writes another request for the engine. Pure: `node/spawn` asks the engine and writes the ledger.
//!
//! | file | what it is |
//! |---|---|
//! | `template`, `image` | what a template permits; names of images |
//! | `owner` | which templates a caller may use, and whose its containers are |
//! | `document` | JSON that is read to the last field |
//! | `create`, `exec` | the bodies of Docker's programs, read strictly |
//! | `request` | the body of meshd's own call |
//! | `wanted` | what a caller may choose, and the checks of its values |
//! | `body` | the documents for the engine |
//! | `ledger` | who owns which container, quotas and expiry |
//! | `refused` | why a call is refused |

pub mod body;
pub mod create;
mod document;
pub mod exec;
#[cfg(test)]
mod fixture;
mod image;
pub mod ledger;
mod owner;
mod refused;
pub mod request;
pub mod template;
mod wanted;

pub use self::document::MAX_BODY;
pub use self::image::{ImageError, ImageName, ImagePattern};
pub use self::ledger::{Entry, Ledger, SpawnId, StoredLedger};
pub use self::owner::{Granted, Owner, granted};
pub use self::refused::{MAX_NAME, Refused};
pub use self::template::Template;
pub use self::wanted::{Attach, Process, Terminal, Wanted, check_name};
