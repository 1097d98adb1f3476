//! The attacks of one member on a peer, through the tunnel.

use std::net::SocketAddr;
use std::time::Duration;

use meshd::protocol::gossip::PORT;

use crate::container::{flood, name_outside};
use crate::kit::{Identity, PeerLink, record};
use crate::setting::Ground;
use crate::usage::give_way;

/// The greatest number of connections that are held open.
const HELD: usize = 4096;

/// The keys of the attacking peer.
fn keys(ground: &Ground) -> Identity {
    Identity::stolen_from(&ground.setting.others().path("/run/state"))
}

/// The mesh address and id of the attacked node.
fn node(ground: &Ground) -> (std::net::IpAddr, meshd::model::PublicKey) {
    let (v4, _) = ground.setting.mesh.addresses(0);
    let id = Identity::stolen_from(&ground.setting.node().path("/run/state")).id();
    (v4.into(), id)
}

/// Opens one conversation after the other. In each it proves its key and sends records of an unknown kind and forged ones.
pub(crate) fn records(ground: &Ground) -> String {
    let (thief, (address, id)) = (keys(ground), node(ground));
    let host = ground.setting.others();
    let (mut conversations, mut sent, mut cut) = (0u64, 0u64, 0u64);
    while !ground.is_over() {
        let talk = || -> std::io::Result<u64> {
            let mut link = PeerLink::connect(host, address)?;
            link.greet(thief.key(), id)?;
            let records = record::many_unknown("weather", 256, thief.key());
            link.send_records(records)?;
            let forged = record::unknown("rain", 1).forged(Identity::of(3).key(), thief.id());
            link.send_records(vec![forged; 256])?;
            while link.hear().is_ok() {}
            Ok(512)
        };
        conversations += 1;
        match talk() {
            Ok(records) => sent += records,
            Err(_) => cut += 1,
        }
    }
    format!("{conversations} conversations, {cut} cut off, {sent} records sent")
}

pub(crate) fn connections(ground: &Ground) -> String {
    let (address, _) = node(ground);
    let to = SocketAddr::new(address, PORT);
    let run = || {
        give_way();
        let (mut held, mut opened, mut refused) = (Vec::new(), 0u64, 0u64);
        while !ground.is_over() {
            match std::net::TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
                Ok(stream) => {
                    opened += 1;
                    if held.len() < HELD {
                        held.push(stream);
                    }
                }
                Err(_) => refused += 1,
            }
        }
        format!("{opened} opened, {refused} refused")
    };
    ground.setting.others().inside(run).expect("a namespace")
}

pub(crate) fn names_outside(ground: &Ground) -> String {
    let (address, _) = node(ground);
    flood(ground, SocketAddr::new(address, 53), name_outside)
}
