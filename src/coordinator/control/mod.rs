//! One node's control stream, from its first message to its end. The exchange is in [`crate::protocol::control`].
//!
//! A stream is one task. It is woken by what the node sends and by new revisions, and asks the hub for the records after its
//! cursor. The coordinator queues nothing for a stream, so a slow reader holds only its own connection and one part of the
//! records that it has yet to receive.
//!
//! What a node may send depends on its standing. Until it has proved its identity, its messages have to be small ([`frames`]).
//! Until it is a member, it may send the records that prove its membership ([`unverified`]). A member may send as much as its
//! allowance permits ([`allowance`]).
//!
//! | file | what it does |
//! |---|---|
//! | `upgrade`, `opening` | from the HTTP request to the `welcome` |
//! | `session` | the table of sessions: one stream for each node |
//! | `conversation`, `intake` | an open stream, and the records that it brings |
//! | `frames`, `messages`, `allowance`, `unverified` | limits and messages |
//! | `served`, `end` | what streams share, and how they end |

mod allowance;
mod conversation;
mod end;
mod frames;
mod intake;
mod messages;
mod opening;
mod served;
mod session;
mod unverified;
mod upgrade;

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use tokio::time::{timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use self::conversation::Conversation;
use self::end::End;
use self::frames::Bound;
use self::messages::{next, send, send_frame};
use self::opening::open;
use self::served::MESSAGE_TIMEOUT;
pub(super) use self::served::Served;
use self::upgrade::Socket;
use super::hub::Hub;
use super::slots::Slot;
use crate::model::PublicKey;
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::os::unix_server::failure;
use crate::protocol::control::{FromCoordinator, Refusal};

/// The maximum size of a message in the opening, in bytes. A `hello` and a `proof` are far smaller.
const MAX_OPENING: usize = 16 * 1024;
/// How long a refused node may take to receive the refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Turns a request into a stream.
pub(super) async fn upgrade(
    State(served): State<Served>,
    Extension(slot): Extension<Slot>,
    mut request: Request,
) -> Response {
    let (response, upgraded) = match upgrade::accept(&mut request) {
        Ok(accepted) => accepted,
        Err(refused) => return failure(refused),
    };
    Tasks::current().spawn_child("control stream", async move {
        let Ok(Ok(upgraded)) = timeout_at(slot.deadline(), upgraded).await else {
            return;
        };
        let bound = Bound {
            message: MAX_OPENING,
            time: MESSAGE_TIMEOUT,
            large: None,
        };
        let socket = upgrade::socket(upgraded, bound).await;
        run(served, slot, socket).await;
    });
    response
}

async fn run(served: Served, slot: Slot, mut socket: Socket) {
    let ended = tokio::select! {
        ended = serve(&served, &slot, &mut socket) => ended,
        () = slot.revoked() => Err(End::Gone),
    };
    let Err(end) = ended;
    let (reason, message, proof) = match end {
        End::Gone => return,
        End::Refuse(reason, message) => (reason, message, None),
        End::DuplicateIdentity(proof) => (
            Refusal::Clone,
            session::DUPLICATE_IDENTITY.to_owned(),
            proof,
        ),
    };
    let refuse = FromCoordinator::Refuse {
        reason,
        message,
        proof,
    };
    let refusal = async {
        send(&mut socket, &refuse).await?;
        send_frame(&mut socket, Message::Close(None)).await?;
        // The node closes in turn; a connection cut before could take the message along.
        while next(&mut socket).await.is_ok() {}
        Ok::<(), End>(())
    };
    let _ = timeout(REFUSAL_TIMEOUT, refusal).await;
}

/// Serves a connection from its first message to its end.
async fn serve(served: &Served, slot: &Slot, socket: &mut Socket) -> Result<Infallible, End> {
    let opened = timeout_at(slot.deadline(), open(served, slot, socket));
    let stream = opened.await.map_err(|_| End::Gone)??;
    let node = stream.node;
    let mut lost = stream.session.lost();
    let connected = Connected::new(&served.hub, node);
    let conversation = Conversation::new(served, slot, socket, stream);
    let ended = tokio::select! {
        ended = conversation.run() => ended,
        // The stream also ends while it waits for a node that does not read.
        _ = lost.wait_for(|lost| *lost) => Err(End::Gone),
    };
    drop(connected);
    ended
}

/// Counts the node as connected in the hub until this value is dropped.
struct Connected<'a> {
    hub: &'a Hub,
    node: PublicKey,
}

impl<'a> Connected<'a> {
    fn new(hub: &'a Hub, node: PublicKey) -> Self {
        hub.set_connected(node, true, clock::now());
        Self { hub, node }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.hub.set_connected(self.node, false, clock::now());
    }
}
