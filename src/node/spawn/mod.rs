//! Spawned containers: a shell around [`crate::spawn`], which decides. It asks the engine, writes the ledger and notes the events.
//!
//! | file | what it does |
//! |---|---|
//! | `spawner` | creates, finds, starts and removes containers for callers |
//! | `changes` | how many starts and stops of a container run at once |
//! | `keeper` | the task that removes what has expired, and what no entry of the ledger has |
//! | `face` | the calls `/v1/spawn` of the API over the network; `node/docker_face` has those of Docker |
//! | `failed` | why a call fails |

mod changes;
mod face;
mod failed;
mod keeper;
mod spawner;

pub(super) use self::face::router;
pub(super) use self::failed::Failed;
pub(super) use self::keeper::keep;
pub(super) use self::spawner::{Call, Spawner, StateChange};
