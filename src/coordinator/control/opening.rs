//! The opening of a control stream: the node proves its identity, claims its session and learns where the stream begins.

use tokio::sync::watch;

use super::end::{End, removed};
use super::messages::{receive, send};
use super::served::Served;
use super::session::NodeSession;
use super::unverified::{self, Unverified};
use super::upgrade::Socket;
use crate::coordinator::hub::{Cursor, Hub, Standing, StreamStart};
use crate::coordinator::slots::Slot;
use crate::model::PublicKey;
use crate::os::clock;
use crate::os::random;
use crate::protocol::control::{
    FromCoordinator, FromNode, Refusal, agree, disagreement, proof_message,
};
use crate::records::envelope::Purpose;

/// The stream of a node that has proved its identity.
pub(super) struct Stream {
    pub node: PublicKey,
    /// The version of the protocol that both sides use.
    pub protocol: u32,
    pub session: NodeSession,
    /// The name that the store had when the stream was opened.
    pub store: String,
    pub cursor: Cursor,
    /// Wakes the stream at each new revision.
    pub revisions: watch::Receiver<u64>,
    /// Set while the node is not a member.
    pub unverified: Option<Unverified>,
}

/// The contents of a node's `hello`, after the node has proved its identity.
struct Greeting {
    protocol: u32,
    node: PublicKey,
    store: Option<String>,
    revision: u64,
    instance: String,
}

pub(super) async fn open(served: &Served, slot: &Slot, socket: &mut Socket) -> Result<Stream, End> {
    let hub = &served.hub;
    let greeting = greet(hub, socket).await?;
    let node = greeting.node;
    if !hub.has_mesh() {
        // A coordinator without a mesh would refuse the node's records, and the node would not offer them again.
        return Err(End::Refuse(
            Refusal::Busy,
            "the coordinator has no mesh; run `meshctl init` on it, with the mesh's key if there was one".to_owned(),
        ));
    }
    let standing = hub.standing(&node);
    match standing {
        Standing::Revoked => return Err(removed()),
        Standing::NotMember if !slot.handle_unverified() => return Err(unverified::too_many()),
        Standing::NotMember => {}
        Standing::Member => handle_member(served, slot, node)?,
    }
    let session = served.sessions.claim(node, &greeting.instance).await?;
    // From this point on the stream misses no revision: the position includes the earlier ones, and later ones wake the loop.
    let revisions = hub.follow();
    let is_member = standing == Standing::Member;
    let start = if is_member {
        hub.stream_start(greeting.store.as_deref(), greeting.revision)
    } else {
        hub.stream_start(None, 0)
    };
    if greeting.store.as_deref() == Some(start.store.as_str()) {
        hub.handle_fully_offered(&node);
    }
    let store = start.store.clone();
    let cursor = if start.snapshot {
        Cursor::start()
    } else {
        Cursor::at(greeting.revision)
    };
    // Only members receive the store's name and revision.
    let (shown, bound) = if is_member {
        (start, Served::bound_of_member())
    } else {
        (unverified::stream_start(), served.bound_of_unverified())
    };
    socket.get_mut().set_bound(bound);
    send(socket, &welcome(greeting.protocol, shown)).await?;
    if is_member {
        let address = slot.address();
        send(socket, &FromCoordinator::Seen { address }).await?;
    }
    Ok(Stream {
        node,
        protocol: greeting.protocol,
        session,
        store,
        cursor,
        revisions,
        unverified: (!is_member).then(Unverified::new),
    })
}

/// Runs the exchange up to the proof of the identity.
async fn greet(hub: &Hub, socket: &mut Socket) -> Result<Greeting, End> {
    let refuse = |reason, message: &str| Err(End::Refuse(reason, message.to_owned()));
    let FromNode::Hello {
        protocol,
        oldest,
        node,
        store,
        revision,
        instance,
        ..
    } = receive(socket).await?
    else {
        return refuse(Refusal::Protocol, "the first message must be `hello`");
    };
    let oldest = oldest.unwrap_or(protocol);
    let Some(protocol) = agree(oldest, protocol) else {
        return Err(End::Refuse(
            Refusal::Version,
            disagreement(oldest, protocol),
        ));
    };
    let Ok(nonce) = random::nonce() else {
        return refuse(
            Refusal::Busy,
            "the coordinator has no randomness; try again later",
        );
    };
    let challenge = FromCoordinator::Challenge {
        nonce: nonce.clone(),
    };
    send(socket, &challenge).await?;
    let FromNode::Proof { signature } = receive(socket).await? else {
        return refuse(Refusal::Protocol, "the second message must be `proof`");
    };
    if !signature.holds(&node, Purpose::Control, &proof_message(&nonce, &hub.pin())) {
        return refuse(
            Refusal::Proof,
            "the node does not prove that it holds its identity key",
        );
    }
    Ok(Greeting {
        protocol,
        node,
        store,
        revision,
        instance: instance.unwrap_or_default(),
    })
}

/// Charges a member for a new stream, and counts its connection as a member's.
pub(super) fn handle_member(served: &Served, slot: &Slot, node: PublicKey) -> Result<(), End> {
    if !served.allowances.open(node, clock::now().monotonic) {
        return Err(End::Refuse(
            Refusal::Busy,
            "this node opens streams too often; try again".to_owned(),
        ));
    }
    slot.handle_member();
    Ok(())
}

pub(super) fn welcome(protocol: u32, start: StreamStart) -> FromCoordinator {
    FromCoordinator::Welcome {
        protocol,
        store: start.store,
        revision: start.revision,
        snapshot: start.snapshot,
    }
}
