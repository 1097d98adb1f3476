//! No member keeps a new node out, and `meshctl join` reports whether the coordinator accepted the new node's record.

use std::net::Ipv4Addr;
use std::time::Duration;

use meshd::model::address::Block;
use meshd::protocol::JoinToken;
use meshd::records::kinds::{Membership, Record};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::kit::{Stream, WAIT_TIMEOUT, record};
use crate::mesh::Mesh;
use crate::node_kit::{Intruder, beside_the_coordinator};

/// The port of a proxy that makes connections to the coordinator slow.
const SLOW_PORT: u16 = 7555;
/// How long the proxy delays each connection. The thief, who does not use the proxy, is faster.
const SLOWNESS: Duration = Duration::from_millis(300);

/// Forwards connections to the coordinator, each after [`SLOWNESS`].
async fn be_slow(mut stop: watch::Receiver<bool>) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, SLOW_PORT))
        .await
        .expect("a free port");
    loop {
        let mut near = tokio::select! {
            accepted = listener.accept() => accepted.expect("a connection").0,
            _ = stop.changed() => return,
        };
        tokio::spawn(async move {
            tokio::time::sleep(SLOWNESS).await;
            if let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, 7443)).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

/// A thief publishes the record that `claim` makes of the membership of node 1 and of the block after the thief's own. It
/// does so as soon as node 1 is admitted, before node 1 has published its own record. Then either node 1 is reached, or its join
/// fails and gives the reason. When the thief is removed, node 1 is reached in both cases, without a restart.
fn join_under(claim: impl Fn(&Intruder, &Membership, Block) -> record::Draft + Sync) {
    let Some(mesh) = Mesh::start(2) else { return };
    assert_eq!(mesh.on(0, &["join", &mesh.token(&[])]).code, 0);
    let thief = Intruder::join(&mesh, "thief");
    let own = record::node(
        thief.identity.id(),
        thief.identity.wireguard_key(),
        &thief.block,
    );
    assert_eq!(
        thief.publish(&mesh, vec![own.signed_by(thief.identity.key())]),
        1
    );
    let mut token = JoinToken::parse(&mesh.token(&[])).expect("just made");
    let slow = format!("https://{}:{SLOW_PORT}", mesh.coordinator_host.v4());
    token.urls = vec![slow.parse().expect("a URL")];

    std::thread::scope(|scope| {
        let (mesh, thief, claim) = (&mesh, &thief, &claim);
        let (stop, stopped) = watch::channel(false);
        scope.spawn(move || beside_the_coordinator(mesh, async || be_slow(stopped).await));
        let (watches, is_watched) = std::sync::mpsc::channel();
        let attacking = scope.spawn(move || {
            beside_the_coordinator(mesh, async || {
                let mut stream = Stream::open(&thief.at, thief.identity.key(), &Default::default())
                    .await
                    .expect("a member is welcome");
                let _ = watches.send(());
                let joiner =
                    tokio::time::timeout(WAIT_TIMEOUT, membership_of_n2(&mut stream)).await;
                let joiner = joiner.expect("node 1 is admitted");
                let claim = claim(thief, &joiner, next_block(thief));
                stream
                    .publish(vec![claim.signed_by(thief.identity.key())])
                    .await
                    .accepted()
            })
        });
        is_watched.recv().expect("the thief has a stream");
        let joined = mesh.on(1, &["join", &token.to_string()]);
        let accepted = attacking.join().expect("no panic");
        eprintln!("claims accepted: {accepted}; {joined:?}");
        if joined.code == 0 {
            let address = mesh.addresses(1).0.to_string();
            mesh.wait_until("the new node is reached", || mesh.pings(0, &address));
        } else {
            assert!(
                joined.stderr.contains("no other node reaches it yet"),
                "{joined:?}"
            );
            assert!(mesh.has_problem(1, &["where this node is reached"]));
        }
        assert_eq!(mesh.admin(&["node", "remove", "thief"]).code, 0);
        mesh.wait_until("the nodes reach each other without the thief", || {
            mesh.reaches(0) == 1 && mesh.reaches(1) == 1
        });
        let address = mesh.addresses(1).0.to_string();
        mesh.wait_until("the new node is reached", || mesh.pings(0, &address));
        let _ = stop.send(true);
    });
}

/// Waits for the membership of node 1.
async fn membership_of_n2(stream: &mut Stream) -> Membership {
    loop {
        for envelope in &stream.received {
            if let Ok((_, Record::Membership(membership))) = Record::parse(&envelope.payload)
                && membership.name.as_str() == "n2"
            {
                return membership;
            }
        }
        stream.hear().await.expect("the stream goes on");
    }
}

/// The block after the thief's own. The coordinator leases blocks in order.
fn next_block(thief: &Intruder) -> Block {
    let prefix_v6 = ipnet::Ipv6Net::new(thief.block.v6.network(), 48);
    let plan = record::plan(prefix_v6.expect("a length").trunc());
    let own = plan.index_of(&thief.block).expect("in the plan");
    plan.block(own + 1).expect("in the plan")
}

#[test]
fn a_member_that_claims_the_joiners_tunnel_key_keeps_it_out_for_no_moment() {
    join_under(|thief, joiner, _| {
        record::node(thief.identity.id(), joiner.wireguard_key, &thief.block)
    });
}

#[test]
fn a_member_that_claims_the_joiners_block_keeps_it_out_for_no_longer_than_it_is_there() {
    join_under(|thief, _, block| {
        record::node(thief.identity.id(), thief.identity.wireguard_key(), &block)
    });
}

#[test]
fn a_join_ends_when_the_coordinator_has_the_record_of_the_node() {
    let Some(mesh) = Mesh::start(1) else { return };
    let watcher = Intruder::join(&mesh, "watcher");
    assert_eq!(mesh.on(0, &["join", &mesh.token(&[])]).code, 0);
    // The coordinator has the record when `join` returns, so nothing is awaited here.
    let id = mesh.status(0).node.expect("it has joined").id;
    let received = beside_the_coordinator(&mesh, async || {
        let mut stream = Stream::open(&watcher.at, watcher.identity.key(), &Default::default())
            .await
            .expect("a member is welcome");
        while stream.revision == 0 {
            stream.hear().await.expect("the stream goes on");
        }
        stream.received
    });
    let key = record::node(id, watcher.identity.wireguard_key(), &watcher.block).key();
    let mut keys = received.iter().filter_map(meshd::records::Envelope::key);
    assert!(keys.any(|held| held == key), "the snapshot has the record");
}
