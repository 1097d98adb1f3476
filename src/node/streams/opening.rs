//! The exchange by which a node proves to a relay who it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::openings::Openings;
use crate::model::{NodeAddress, PublicKey, SigningKey};
use crate::os::random;
use crate::protocol::control::Refusal;
use crate::protocol::stream::{FromNode, FromRelay, MAX_OPENING, PROTOCOL, proof_message};
use crate::records::envelope::{Purpose, Signature};

/// How long the opening of a stream may take, from the first byte on.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// The node's part. `relay` is the identity key of the relay.
///
/// # Errors
/// The relay refuses or does not speak this protocol, for this reason.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    key: &SigningKey,
    relay: &PublicKey,
) -> Result<(), String> {
    let hello = FromNode::Hello {
        protocol: PROTOCOL,
        node: key.public(),
    };
    send(socket, &hello).await?;
    let nonce = match receive(socket).await? {
        FromRelay::Challenge { nonce } => nonce,
        other => return Err(refused(other)),
    };
    let message = proof_message(&nonce, relay);
    let signature = Signature::make(key, Purpose::Relay, &message);
    send(socket, &FromNode::Proof { signature }).await?;
    match receive(socket).await? {
        FromRelay::Welcome { .. } => Ok(()),
        other => Err(refused(other)),
    }
}

fn refused(message: FromRelay) -> String {
    match message {
        FromRelay::Refuse { message, .. } => format!("the relay refuses: {message}"),
        _ => "the program that answers there is not a relay of this mesh".to_owned(),
    }
}

/// The members whose streams are taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Members {
    pub(super) addresses: Arc<BTreeMap<PublicKey, NodeAddress>>,
    /// Whether this node relays.
    pub(super) is_relaying: bool,
}

/// Decides whose streams are taken.
#[derive(Clone)]
pub(super) struct Admission {
    /// The identity key of this node.
    pub(super) own: PublicKey,
    pub(super) members: watch::Receiver<Members>,
    pub(super) openings: Arc<Openings>,
}

impl Admission {
    /// Waits until `node` is not a member any more, or until the node of this program does not relay.
    pub(super) async fn revoked(&self, node: &PublicKey, address: NodeAddress) {
        let mut members = self.members.clone();
        let is_revoked = |members: &Members| {
            !members.is_relaying || members.addresses.get(node) != Some(&address)
        };
        // An error means that this node stops.
        let _ = members.wait_for(is_revoked).await;
    }
}

/// The relay's part. Returns the member that has proved its identity.
///
/// # Errors
/// The node was refused, for this reason.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    admission: &Admission,
) -> Result<(PublicKey, NodeAddress), String> {
    let accepted = prove(socket, admission).await;
    if let Err((reason, message)) = &accepted {
        let refuse = FromRelay::Refuse {
            reason: *reason,
            message: message.clone(),
        };
        let _ = send(socket, &refuse).await;
    }
    accepted.map_err(|(_, message)| message)
}

async fn prove<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    admission: &Admission,
) -> Result<(PublicKey, NodeAddress), (Refusal, String)> {
    let refuse = |reason, message: &str| Err((reason, message.to_owned()));
    let broken = |why| (Refusal::Protocol, why);
    let FromNode::Hello { protocol, node } = receive(socket).await.map_err(broken)? else {
        return refuse(Refusal::Protocol, "the first message must be `hello`");
    };
    if protocol < PROTOCOL {
        return refuse(
            Refusal::Version,
            "the node speaks an older protocol; upgrade it",
        );
    }
    let Ok(nonce) = random::nonce() else {
        return refuse(
            Refusal::Busy,
            "the relay has no randomness; try again later",
        );
    };
    let challenge = FromRelay::Challenge {
        nonce: nonce.clone(),
    };
    send(socket, &challenge).await.map_err(broken)?;
    let FromNode::Proof { signature } = receive(socket).await.map_err(broken)? else {
        return refuse(Refusal::Protocol, "the second message must be `proof`");
    };
    let message = proof_message(&nonce, &admission.own);
    if !signature.holds(&node, Purpose::Relay, &message) {
        return refuse(
            Refusal::Proof,
            "the node does not prove its identity to this relay; the URL may lead to another one",
        );
    }
    // Only a node that has proved its identity learns whether it is a member.
    let address = {
        let members = admission.members.borrow();
        if !members.is_relaying {
            return refuse(Refusal::Busy, "this node does not relay");
        }
        members.addresses.get(&node).copied()
    };
    let Some(address) = address else {
        return refuse(Refusal::NotAMember, "the node is not a member of this mesh");
    };
    if !admission.openings.admit(node, Instant::now()) {
        return refuse(
            Refusal::Busy,
            "the node opens its stream too often; try again in a minute",
        );
    }
    let welcome = FromRelay::Welcome { protocol: PROTOCOL };
    send(socket, &welcome).await.map_err(broken)?;
    Ok((node, address))
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    message: &impl Serialize,
) -> Result<(), String> {
    let text = serde_json::to_string(message).map_err(|error| error.to_string())?;
    let sent = socket.send(Message::Text(text.into())).await;
    sent.map_err(|error| error.to_string())
}

async fn receive<T: DeserializeOwned, S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
) -> Result<T, String> {
    loop {
        let message = socket.next().await;
        let message = message.ok_or("the other end closed the stream")?;
        match message.map_err(|error| error.to_string())? {
            Message::Text(text) if text.len() <= MAX_OPENING => {
                return serde_json::from_str(&text).map_err(|error| error.to_string());
            }
            Message::Ping(_) | Message::Pong(_) => {}
            _ => return Err("the other end does not speak this protocol".to_owned()),
        }
    }
}
