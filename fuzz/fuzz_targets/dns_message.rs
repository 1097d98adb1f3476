//! DNS queries: a reply is never larger than the transport allows, and never answers a reply.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::dns::Zone;
use meshd::dns::message::{MAX_UDP, Outcome, Transport, handle};

fuzz_target!(|octets: &[u8]| {
    let zone = Zone::default();
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Outcome::Reply(reply) = handle(&zone, octets, transport, 7) {
            assert!(octets.get(2).is_some_and(|flags| flags & 0x80 == 0));
            assert!(transport == Transport::Tcp || reply.len() <= usize::from(MAX_UDP));
        }
    }
});
