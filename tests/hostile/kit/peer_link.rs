//! The link between nodes (port 7444 inside the tunnel), as a client that sends any message.

use meshd::model::{PublicKey, SigningKey};
use meshd::protocol::gossip::{MAX_FRAME, PORT, PROTOCOL, PeerMessage, proof_message};
use meshd::records::Envelope;
use meshd::records::envelope::{Purpose, Signature};
use meshd::testbed::Host;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use super::{WAIT_TIMEOUT, identity};

/// A connection to a node's port 7444.
pub(crate) struct PeerLink(pub(crate) TcpStream);

impl PeerLink {
    /// Connects from `host` to the node at the mesh address `to` and sends nothing.
    pub(crate) fn connect(host: &Host, to: IpAddr) -> std::io::Result<Self> {
        let address = SocketAddr::new(to, PORT);
        let stream = host
            .inside(|| TcpStream::connect_timeout(&address, WAIT_TIMEOUT))
            .expect("a namespace")?;
        stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
        Ok(Self(stream))
    }

    /// Proves `key` to the node `other`. An error means that the node closes the connection.
    pub(crate) fn greet(&mut self, key: &SigningKey, other: PublicKey) -> std::io::Result<()> {
        self.say(&PeerMessage::Hello {
            protocol: PROTOCOL,
            node: key.public(),
            nonce: PublicKey(identity::random()).to_string(),
        })?;
        let nonce = loop {
            if let PeerMessage::Hello { nonce, .. } = self.hear()? {
                break nonce;
            }
        };
        let message = proof_message(&nonce, &key.public(), &other);
        self.say(&PeerMessage::Proof {
            signature: Signature::make(key, Purpose::Peer, &message),
        })
    }

    pub(crate) fn send_records(&mut self, records: Vec<Envelope>) -> std::io::Result<()> {
        self.say(&PeerMessage::Records { records })
    }

    pub(crate) fn say(&mut self, message: &PeerMessage) -> std::io::Result<()> {
        let text = serde_json::to_vec(message).expect("plain data");
        let length = u32::try_from(text.len()).expect("a small message");
        self.0
            .write_all(&[&length.to_be_bytes(), text.as_slice()].concat())
    }

    pub(crate) fn hear(&mut self) -> std::io::Result<PeerMessage> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        assert!(length <= MAX_FRAME, "{length}");
        let mut text = vec![0; length];
        self.0.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text).expect("a message"))
    }
}
