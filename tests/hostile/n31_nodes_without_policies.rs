//! A node of a version without policies does not keep to the policy. `meshctl policy apply` names it, the other nodes hold its packets to
//! the policy, and it carries the record of the policy from one node to another, although it does not know what the record means.
//!
//! In the first test, the third node has no meshd but a plain WireGuard device with its keys, which checks nothing, and the test speaks
//! for it. The second test needs the programs of a version without policies:
//!
//! ```text
//! MESHD_EARLIER=directory cargo nextest run --features etcd --test hostile --run-ignored only -E 'test(version_without_policies)'
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use meshd::model::PublicKey;
use meshd::protocol::gossip::PeerMessage;
use meshd::protocol::local::{DeniedDirection, DeniedList};
use meshd::records::Envelope;
use meshd::records::digest::Digest;
use meshd::records::kinds::{Node, Record};
use meshd::testbed::Running;

use crate::kit::{Hello, PeerLink, Stream};
use crate::mesh::{Ended, Mesh, programs, write};
use crate::node_kit::{beside_the_coordinator, put_plain_device, stolen_keys};

/// The node without policies.
const OLD: usize = 2;
/// The other ones.
const OTHERS: [usize; 2] = [0, 1];
/// The port that the first policy opens on all nodes, and that of the second policy.
const FIRST: u16 = 5301;
const SECOND: u16 = 5302;
/// How long a test waits for a datagram that may have been denied.
const SILENCE: Duration = Duration::from_millis(500);
/// The number of denied datagrams of a flood.
const FLOOD: u64 = 10_000;

/// Applies the policy by which all nodes reach each other at this port over UDP, and not at all otherwise.
fn apply(mesh: &Mesh, port: u16, options: &[&str]) -> Ended {
    let text = format!(
        "language = 1\ndefault = \"deny\"\n[[allow]]\nfrom = [\"*\"]\nto = [\"node:*:{port}/udp\"]\n"
    );
    let file = write(&mesh.coordinator_host, "/run/policy.toml", &text);
    mesh.admin(&[&["policy", "apply", &file], options].concat())
}

/// What a node has denied, and under which policy.
fn denied(mesh: &Mesh, n: usize) -> DeniedList {
    let ended = mesh.on(n, &["policy", "denied", "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str(&ended.stdout).expect("a list")
}

/// A socket of the node without policies, and those of the other nodes to which it sends.
struct Sockets {
    old: UdpSocket,
    others: BTreeMap<(usize, u16), UdpSocket>,
    addresses: [Ipv4Addr; 2],
    /// The number in the last datagram.
    sent: u64,
}

impl Sockets {
    fn open(mesh: &Mesh) -> Self {
        let socket = |n: usize, port: u16| {
            let bound = mesh.nodes[n]
                .host
                .inside(|| UdpSocket::bind(("0.0.0.0", port)));
            let socket = bound.expect("a namespace").expect("a free port");
            socket.set_read_timeout(Some(SILENCE)).expect("a socket");
            socket
        };
        let ends = OTHERS.map(|n| [(n, FIRST), (n, SECOND)]);
        let others = ends.into_iter().flatten();
        Self {
            old: socket(OLD, 0),
            others: others
                .map(|(n, port)| ((n, port), socket(n, port)))
                .collect(),
            addresses: OTHERS.map(|n| mesh.addresses(n).0),
            sent: 0,
        }
    }

    fn send(&self, n: usize, port: u16, datagram: &[u8]) {
        // While a device is being made, there may be no route.
        let _ = self.old.send_to(datagram, (self.addresses[n], port));
    }

    /// Whether a datagram of the node without policies arrives.
    fn arrives(&mut self, n: usize, port: u16) -> bool {
        self.sent += 1;
        let datagram = self.sent.to_be_bytes();
        self.send(n, port, &datagram);
        let mut buffer = [0; 64];
        let socket = &self.others[&(n, port)];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if buffer[..length] == datagram {
                return true;
            }
        }
        false
    }

    /// How many datagrams have arrived that were not received yet.
    fn received(&self, n: usize, port: u16) -> usize {
        let socket = &self.others[&(n, port)];
        std::iter::from_fn(|| socket.recv_from(&mut [0; 64]).ok()).count()
    }
}

/// Sends datagrams to the first node at a closed port until that node has denied enough of them.
fn flood(mesh: &Mesh, sockets: &Sockets, old: IpAddr) {
    let asked = format!("{SECOND}/udp");
    mesh.wait_until("a flood came to the check of the receiver", || {
        for _ in 0..500 {
            sockets.send(0, SECOND, b"denied");
        }
        let rows = denied(mesh, 0).denied.into_iter();
        let rows = rows.filter(|row| row.direction == DeniedDirection::Incoming && !row.passed);
        let rows = rows.filter(|row| row.from.address == old && row.asked == asked);
        rows.map(|row| row.count).sum::<u64>() >= FLOOD
    });
}

/// Applies two policies to a mesh whose third node is of a version without policies. The second node does not run when the second policy
/// is applied. When it runs again, the node without policies is the only running node that has that policy. `receive` waits until that node
/// has the policy, or receives the policy in the place of that node. `pass_on` may pass it on in the place of that node.
fn apply_policies_beside_an_old_node(
    mesh: &mut Mesh,
    old: Ipv4Addr,
    receive: impl FnOnce(&Mesh) -> Vec<Envelope>,
    pass_on: impl FnOnce(&Mesh, &mut Sockets, Vec<Envelope>),
) {
    let mut sockets = Sockets::open(mesh);
    mesh.wait_until("everything arrives", || {
        OTHERS.into_iter().all(|n| sockets.arrives(n, SECOND))
    });
    let refused = apply(mesh, FIRST, &[]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("apply: n3 would"), "{refused:?}");
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(mesh.admin(&["policy", "show"]).stdout, "");
    let forced = apply(mesh, FIRST, &["--force"]);
    assert_eq!(forced.code, 0, "{forced:?}");
    assert!(forced.stderr.contains("policies like it: n3"), "{forced:?}");

    // It sends what the policy denies, so only the receiver can enforce it.
    for n in OTHERS {
        mesh.wait_until("the policy is in force", || {
            denied(mesh, n).policy.is_some() && sockets.arrives(n, FIRST)
        });
        assert!(!sockets.arrives(n, SECOND), "{n}");
    }
    sockets.received(0, SECOND);
    flood(mesh, &sockets, old.into());
    assert_eq!(sockets.received(0, SECOND), 0);
    mesh.wait_until("what is allowed arrives", || sockets.arrives(0, FIRST));

    mesh.kill_node(1);
    let forced = apply(mesh, SECOND, &["--force"]);
    assert_eq!(forced.code, 0, "{forced:?}");
    mesh.wait_until("the first node keeps to the second policy", || {
        sockets.arrives(0, SECOND) && !sockets.arrives(0, FIRST)
    });
    let records = receive(mesh);
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(0);
    mesh.start_node(1);
    pass_on(mesh, &mut sockets, records);
    mesh.wait_until("the second node keeps to the second policy", || {
        sockets.arrives(1, SECOND) && !sockets.arrives(1, FIRST)
    });
}

/// Takes the place of the third node as a node of a version without policies: its device checks nothing, and its record does not say that
/// it knows policies.
fn become_old(mesh: &mut Mesh) -> Running {
    let device = put_plain_device(mesh, OLD, &OTHERS);
    let stolen = stolen_keys(mesh, OLD);
    let key = &stolen.keys.identity;
    let at = SocketAddr::new(mesh.coordinator_host.v4().into(), 7443);
    let at = (at, stolen.pin);
    let accepted = beside_the_coordinator(mesh, async || {
        let mut stream = Stream::open(&at, key, &Hello::default())
            .await
            .expect("a member is welcome");
        let present = own_record(&mut stream, key.public()).await;
        let old = Node {
            version: present.version + 1,
            speaks: Vec::new(),
            ..present
        };
        let record = Envelope::seal(&Record::Node(old), key);
        stream.publish(vec![record]).await.accepted()
    });
    assert_eq!(accepted, 1);
    device
}

/// The node record of a member, from the records that the coordinator sends to it.
async fn own_record(stream: &mut Stream, id: PublicKey) -> Node {
    loop {
        let mut received = stream.received.iter().rev();
        let found = received.find_map(|record| match Record::parse(&record.payload) {
            Ok((_, Record::Node(node))) if node.id == id => Some(node),
            _ => None,
        });
        if let Some(node) = found {
            return node;
        }
        stream.hear().await.expect("it goes on");
    }
}

/// A conversation of the third node with another one: it sends `records`, and receives those that were signed by `wanted`.
fn converse(
    mesh: &Mesh,
    other: usize,
    records: Vec<Envelope>,
    wanted: Vec<PublicKey>,
) -> Vec<Envelope> {
    let key = stolen_keys(mesh, OLD).keys.identity;
    let id = stolen_keys(mesh, other).keys.identity.public();
    let to = mesh.addresses(other).0.into();
    let mut link = PeerLink::connect(&mesh.nodes[OLD].host, to).expect("it listens");
    link.greet(&key, id).expect("a member is welcome");
    if !records.is_empty() {
        link.send_records(records).expect("it reads");
    }
    // No ledger has this digest.
    let digest = Digest([0; 16]);
    link.say(&PeerMessage::Summary { digest })
        .expect("it reads");
    let mut want = Some(PeerMessage::Want {
        signers: wanted,
        last: true,
    });
    let mut received = Vec::new();
    loop {
        match link.hear().expect("it goes on") {
            PeerMessage::Signers { last: true, .. } => {
                let want = want.take().expect("it compares once");
                link.say(&want).expect("it reads");
            }
            PeerMessage::Records { records } => received.extend(records),
            PeerMessage::Done => return received,
            _ => {}
        }
    }
}

#[test]
fn a_node_without_policies_is_held_to_the_policy_by_the_others_and_carries_its_record_on() {
    let Some(mut mesh) = Mesh::joined(OLD + 1) else {
        return;
    };
    let old = mesh.addresses(OLD).0;
    let _device = become_old(&mut mesh);
    let receive = |mesh: &Mesh| {
        let mesh_key = stolen_keys(mesh, OLD).mesh_key;
        let mut records = converse(mesh, 0, Vec::new(), vec![mesh_key]);
        records.retain(|record| record.payload.contains(r#""kind":"policy""#));
        assert_eq!(records.len(), 1, "{records:?}");
        records
    };
    let pass_on = |mesh: &Mesh, sockets: &mut Sockets, records: Vec<Envelope>| {
        mesh.wait_until("the second node keeps to the first policy", || {
            sockets.arrives(1, FIRST)
        });
        assert!(!sockets.arrives(1, SECOND), "no record came to it yet");
        converse(mesh, 1, records, Vec::new());
    };
    apply_policies_beside_an_old_node(&mut mesh, old, receive, pass_on);
}

#[test]
#[ignore = "needs the programs of a version without policies, in the directory MESHD_EARLIER"]
fn a_node_of_a_version_without_policies_is_held_to_the_policy_by_the_others_and_carries_its_record_on()
 {
    let earlier = std::env::var_os("MESHD_EARLIER").expect("programs without policies");
    let mut mesh = Mesh::hosts(programs(), OLD + 1).expect("root");
    mesh.start_coordinator();
    assert_eq!(mesh.admin(&["init"]).code, 0);
    for n in [0, 1, OLD] {
        if n == OLD {
            mesh.programs = earlier.clone().into();
        }
        mesh.start_node(n);
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    mesh.programs = programs();
    let old = mesh.addresses(OLD).0;
    let receive = |mesh: &Mesh| {
        let text = format!("node:*:{SECOND}/udp");
        mesh.wait_until("the record is on its disk", || {
            mesh.succeeds(OLD, "grep", &["-rqsF", &text, "/run/state"])
        });
        Vec::new()
    };
    apply_policies_beside_an_old_node(&mut mesh, old, receive, |_, _, _| ());
}
