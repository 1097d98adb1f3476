//! A member that calls others by way of a peer, or passes calls on, floods nobody, and nobody follows a call that it made up.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meshd::model::{PublicKey, SigningKey};
use meshd::protocol::call::Call;
use meshd::protocol::path_messages::{self, CallEnd, Message, PathMessage, PeerCall};
use meshd::testbed::Host;

use crate::mesh::Mesh;
use crate::n13_round_trips::take_place_of_second;
use crate::node_kit::stolen_keys;
use crate::scrape::scrape;

/// How many calls of a member a peer passes on at once, and how many each second after that.
const BURST: u64 = 64;
const RATE: u64 = 5;
/// The flood and the waits after it take fewer seconds than this: only a hang takes that long.
const SECONDS: u64 = 60;

/// How many calls by way of peers had this result at a node, by its metrics.
fn count(host: &Host, result: &str) -> u64 {
    let page = scrape(host);
    let start = format!("meshd_calls_total{{result=\"{result}\",way=\"peer\"}} ");
    let mut counts = page.lines().filter_map(|line| line.strip_prefix(&start));
    let count = counts.next().and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("no {start}in {page}"))
}

/// Sends calls to the node at `to` from a machine with a plain WireGuard device. No meshd on it
/// checks what is sent.
fn send(host: &Host, own: Ipv4Addr, to: Ipv4Addr, calls: impl Iterator<Item = PeerCall> + Send) {
    let sent = host.inside(|| {
        let socket = UdpSocket::bind((own, path_messages::PORT)).expect("a free port");
        let mut out = [0; path_messages::MAX_MESSAGE];
        for (n, call) in calls.enumerate() {
            let message = PathMessage {
                nonce: 1,
                message: Message::Call(call),
            };
            let length = message.write(&mut out).expect("there is room");
            let _ = socket.send_to(&out[..length], (to, path_messages::PORT));
            if n % 16 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    sent.expect("a namespace");
}

fn forged(to: &PublicKey, at: u64) -> Call {
    let stranger = SigningKey::from_seed(&[77; 32]);
    let victim = SocketAddr::from(([203, 0, 113, 7], 53));
    Call::sign(&stranger, to, true, vec![victim], at)
}

#[test]
fn a_member_that_floods_or_forges_calls_by_way_of_a_peer_is_passed_on_seldom_and_never_followed() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    let id = |n: usize| stolen_keys(&mesh, n).keys.identity.public();
    let (relay, attacker, other) = (id(0), id(1), id(2));
    let (own, to) = (mesh.addresses(1).0, mesh.addresses(0).0);
    let _device = take_place_of_second(&mut mesh);
    let host = &mesh.nodes[1].host;
    // Until the device has a session, nothing arrives.
    mesh.wait_until("a call is passed on", || {
        let end = CallEnd::To(other);
        let call = forged(&other, 1);
        send(host, own, to, std::iter::once(PeerCall { end, call }));
        count(&mesh.nodes[0].host, "passed_on") > 0
    });
    // No receiver follows these calls. Some are to a key that is no member, to the attacker itself, or to the peer that is to pass them on.
    let flood = (0..3000).map(|at| {
        let to = [other, attacker, relay, PublicKey([9; 32])][at as usize % 4];
        PeerCall {
            end: CallEnd::To(to),
            call: forged(&to, at),
        }
    });
    send(host, own, to, flood);
    mesh.wait_until("the flood has come to the other node", || {
        count(&mesh.nodes[2].host, "refused") > 0
    });
    let passed_on = count(&mesh.nodes[0].host, "passed_on");
    assert!(passed_on <= BURST + RATE * SECONDS, "{passed_on}");
    assert!(count(&mesh.nodes[0].host, "dropped") > 0);
    assert_eq!(count(&mesh.nodes[2].host, "followed"), 0);
    // The attacker claims to pass on calls of others, of itself, of the receiver, and of a key that is no member.
    let claims = (0..3000).map(|at| {
        let from = [other, attacker, relay, PublicKey([9; 32])][at as usize % 4];
        PeerCall {
            end: CallEnd::From(from),
            call: forged(&relay, at),
        }
    });
    send(host, own, to, claims);
    mesh.wait_until("the claims have come", || {
        count(&mesh.nodes[0].host, "refused") > 0
    });
    for result in ["followed", "answered"] {
        assert_eq!(count(&mesh.nodes[0].host, result), 0, "{result}");
    }
    // The first node refuses a call that was signed for another node.
    let key = stolen_keys(&mesh, 1).keys.identity;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = now.expect("a date after 1970").as_millis() as u64;
    let call = Call::sign(&key, &other, true, vec![SocketAddr::from((own, 1))], at);
    let before = count(&mesh.nodes[0].host, "refused");
    mesh.wait_until("the call has come", || {
        let end = CallEnd::From(attacker);
        let call = call.clone();
        send(host, own, to, std::iter::once(PeerCall { end, call }));
        count(&mesh.nodes[0].host, "refused") > before
    });
    assert_eq!(count(&mesh.nodes[0].host, "followed"), 0);
    // The two others still reach each other.
    assert!(mesh.reaches(0) >= 1 && mesh.reaches(2) >= 1);
}
