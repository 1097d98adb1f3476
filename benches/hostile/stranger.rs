//! The attacks of one stranger, which reaches the coordinator's port from one address and has no token.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::future::join_all;
use meshd::model::SigningKey;
use meshd::protocol::JoinToken;
use meshd::protocol::join::JoinRequest;
use tokio::time::{sleep, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use crate::kit::raw::{Raw, TEXT, tcp, tls};
use crate::kit::{Hello, Identity, Stream, frame_header, record};
use crate::setting::Ground;

/// How many connections are opened at the same time.
const AT_ONCE: usize = 64;
/// The greatest number of connections.
const MAX_CONNECTIONS: usize = 8_000;
/// The greatest number of bytes that are sent in unfinished messages. It protects the machine on which the benchmark runs.
const MAX_SENT: u64 = 1 << 30;
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Opens connections. Half of them send nothing after the TLS handshake, and half are WebSockets that send pings.
pub(crate) fn connections(ground: &Ground) -> String {
    let (open, refused) = (Cell::new(0u64), Cell::new(0u64));
    let shown = ground.run(async move || {
        let work = (0..AT_ONCE).map(async |n| {
            let (mut silent, mut streams) = (Vec::new(), Vec::new());
            while !ground.is_over() && silent.len() + streams.len() < MAX_CONNECTIONS / AT_ONCE {
                let opened = if n % 2 == 0 {
                    let opened = async {
                        tls(tcp(ANY, ground.setting.target.0).await.ok()?)
                            .await
                            .ok()
                    };
                    let opened = timeout_at(ground.deadline(), opened).await.ok().flatten();
                    opened.map(|connection| silent.push(connection))
                } else {
                    let opened = Stream::silent(&ground.setting.target);
                    let opened = timeout_at(ground.deadline(), opened).await.ok().flatten();
                    opened.map(|stream| streams.push(stream))
                };
                match opened {
                    Some(()) => open.set(open.get() + 1),
                    None => {
                        refused.set(refused.get() + 1);
                        sleep(Duration::from_millis(5)).await;
                    }
                }
            }
            while !ground.is_over() {
                for stream in &mut streams {
                    let _ = stream.send(Message::Ping(Default::default())).await;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
        let _ = timeout_at(ground.deadline(), join_all(work)).await;
        (open.get(), refused.get())
    });
    format!("{} opened, {} refused", shown.0, shown.1)
}

/// Sends all but the last part of messages of 4 MiB.
pub(crate) fn unfinished(ground: &Ground) -> String {
    let (opened, sent) = ground.run(async || {
        let (opened, sent) = (Cell::new(0u64), Cell::new(0u64));
        let bytes = vec![b' '; 64 * 1024];
        let work = (0..AT_ONCE).map(async |_| {
            let mut held = Vec::new();
            while !ground.is_over() && sent.get() < MAX_SENT {
                let Ok(stream) = tcp(ANY, ground.setting.target.0).await else {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let Ok(tls) = tls(stream).await else {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let Some(mut raw) = Raw::upgrade(tls).await else {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                };
                opened.set(opened.get() + 1);
                let length = 4 * 1024 * 1024;
                let _ = raw.write(&frame_header(TEXT, true, length)).await;
                for _ in 1..64 {
                    if raw.write(&bytes).await.is_err() {
                        break;
                    }
                    sent.set(sent.get() + bytes.len() as u64);
                }
                held.push(raw);
            }
            tokio::time::sleep_until(ground.deadline()).await;
        });
        let _ = timeout_at(ground.deadline(), join_all(work)).await;
        (opened.get(), sent.get())
    });
    format!("{opened} streams, {} MiB sent", sent >> 20)
}

/// Opens streams, each with its own key, and publishes records that the coordinator refuses.
pub(crate) fn unknown_keys(ground: &Ground) -> String {
    let (welcome, refused) = ground.run(async || {
        let (welcome, refused) = (Cell::new(0u64), Cell::new(0u64));
        let work = (0..AT_ONCE).map(async |_| {
            while !ground.is_over() {
                let identity = Identity::new();
                let opened =
                    Stream::open(&ground.setting.target, identity.key(), &Hello::default()).await;
                let Ok(mut stream) = opened else {
                    refused.set(refused.get() + 1);
                    sleep(Duration::from_millis(5)).await;
                    continue;
                };
                welcome.set(welcome.get() + 1);
                loop {
                    let records = record::many_unknown("weather", 256, identity.key());
                    if stream.publish(records).await.has_ended() || ground.is_over() {
                        break;
                    }
                }
            }
        });
        let _ = timeout_at(ground.deadline(), join_all(work)).await;
        (welcome.get(), refused.get())
    });
    format!("{welcome} streams, {refused} refused")
}

pub(crate) fn joins(ground: &Ground) -> String {
    let asked = ground.run(async || {
        let asked = Cell::new(0u64);
        let token = JoinToken {
            key: SigningKey::from_seed(&[77; 32]),
            ..ground.setting.token.clone()
        };
        let work = (0..AT_ONCE).map(async |_| {
            while !ground.is_over() {
                let identity = Identity::new();
                let membership = record::membership(token.key.public(), &identity, "thief");
                let membership = membership.signed_by(&token.key);
                let request = JoinRequest::make(membership, identity.key());
                let answer =
                    meshd::node::control::join::join(&token.urls, token.pin, &request).await;
                assert!(answer.is_err(), "a forged token admits nobody");
                asked.set(asked.get() + 1);
            }
        });
        let _ = timeout_at(ground.deadline(), join_all(work)).await;
        asked.get()
    });
    format!("{asked} asked")
}
