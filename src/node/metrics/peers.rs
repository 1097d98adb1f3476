//! The metrics of each peer.

use std::time::UNIX_EPOCH;

use super::{MAX_NAMED, unix_seconds};
use crate::model::time::Now;
use crate::node::joined::JoinedNode;
use crate::node::report;
use crate::os::metrics::{Kind, MetricsPage, Value};
use crate::path::watch::Reach;

/// A peer. What is not known yet is absent.
#[derive(Debug, Clone, Default, PartialEq)]
struct PeerSample {
    name: String,
    is_reachable: Option<bool>,
    last_received: Option<f64>,
    last_handshake: Option<f64>,
    round_trip: Option<f64>,
    received: u64,
    sent: u64,
    path_mtu: u16,
}

/// Adds the metrics of the peers of `node`. Returns the number of peers that are left out.
pub(super) fn add(page: &mut MetricsPage, node: &JoinedNode, now: Now) -> usize {
    let others = report::others(node);
    let left_out = others.len().saturating_sub(MAX_NAMED);
    let samples = others.into_iter().take(MAX_NAMED).map(|member| {
        let status = node.device.tunnel.peer(&member.wireguard_key.0);
        let status = status.as_ref();
        let handshake = status.and_then(|status| status.last_handshake);
        let handshake = handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let heard = node.paths.watch().heard(&member.id);
        let round_trip = node.paths.distances().round_trip(&member.id);
        PeerSample {
            name: member.name.to_string(),
            is_reachable: node.paths.reach().get(&member.id).and_then(is_reachable),
            last_received: heard.map(|at| unix_seconds(at, now)),
            last_handshake: handshake.map(|since| since.as_secs() as f64),
            round_trip: round_trip.map(|took| took.as_micros() as f64 / 1e6),
            received: status.map_or(0, |status| status.rx_bytes),
            sent: status.map_or(0, |status| status.tx_bytes),
            path_mtu: node.paths.limit(&member.id),
        }
    });
    let samples: Vec<PeerSample> = samples.collect();
    write(page, &samples);
    left_out
}

/// A peer whose probes are not answered, but not for long enough, is neither reachable nor unreachable.
fn is_reachable(reach: &Reach) -> Option<bool> {
    match reach {
        Reach::Reachable => Some(true),
        Reach::Unreachable => Some(false),
        Reach::Unknown => None,
    }
}

fn write(page: &mut MetricsPage, samples: &[PeerSample]) {
    type Column<'a> = (&'a str, Kind, &'a str, fn(&PeerSample) -> Option<Value>);
    let columns: [Column<'_>; 7] = [
        (
            "peer_reachable",
            Kind::Gauge,
            "Whether the peer answers. It has no value while that is not known.",
            |peer| peer.is_reachable.map(Value::from),
        ),
        (
            "peer_last_received_timestamp_seconds",
            Kind::Gauge,
            "When an authentic packet of the peer was last received.",
            |peer| peer.last_received.map(Value::from),
        ),
        (
            "peer_last_handshake_timestamp_seconds",
            Kind::Gauge,
            "When a handshake with the peer was last completed.",
            |peer| peer.last_handshake.map(Value::from),
        ),
        (
            "peer_round_trip_seconds",
            Kind::Gauge,
            "The round trip time to the peer inside the tunnel.",
            |peer| peer.round_trip.map(Value::from),
        ),
        (
            "peer_received_bytes_total",
            Kind::Counter,
            "Bytes received from the peer.",
            |peer| Some(peer.received.into()),
        ),
        (
            "peer_sent_bytes_total",
            Kind::Counter,
            "Bytes sent to the peer.",
            |peer| Some(peer.sent.into()),
        ),
        (
            "peer_path_mtu_bytes",
            Kind::Gauge,
            "The largest packet inside the tunnel that the path to the peer carries, as far as it is known.",
            |peer| Some(peer.path_mtu.into()),
        ),
    ];
    for (name, kind, help, value_of) in columns {
        let mut family = page.family(name, kind, help);
        for peer in samples {
            if let Some(value) = value_of(peer) {
                family.sample(&[("peer", peer.name.as_str())], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_sample_for_each_value_that_is_known() {
        let web = PeerSample {
            name: "web-1".to_owned(),
            is_reachable: Some(true),
            last_received: Some(1_800_000_000.25),
            last_handshake: Some(1_800_000_000.0),
            round_trip: Some(0.0005),
            received: 12,
            sent: 34,
            path_mtu: 1420,
        };
        let new = PeerSample {
            name: "db-1".to_owned(),
            path_mtu: 1280,
            ..PeerSample::default()
        };
        let mut page = MetricsPage::new("");
        write(&mut page, &[web, new]);
        let text = page.into_text();
        let samples: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "peer_reachable{peer=\"web-1\"} 1",
                "peer_last_received_timestamp_seconds{peer=\"web-1\"} 1800000000.25",
                "peer_last_handshake_timestamp_seconds{peer=\"web-1\"} 1800000000",
                "peer_round_trip_seconds{peer=\"web-1\"} 0.0005",
                "peer_received_bytes_total{peer=\"web-1\"} 12",
                "peer_received_bytes_total{peer=\"db-1\"} 0",
                "peer_sent_bytes_total{peer=\"web-1\"} 34",
                "peer_sent_bytes_total{peer=\"db-1\"} 0",
                "peer_path_mtu_bytes{peer=\"web-1\"} 1420",
                "peer_path_mtu_bytes{peer=\"db-1\"} 1280",
            ]
        );
    }

    #[test]
    fn a_peer_that_is_not_heard_yet_is_neither_reachable_nor_unreachable() {
        let values = [Reach::Reachable, Reach::Unreachable, Reach::Unknown];
        let values = values.map(|reach| is_reachable(&reach));
        assert_eq!(values, [Some(true), Some(false), None]);
    }
}
