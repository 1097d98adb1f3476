//! Answers of every length and every lie of a router, against the library that reads them. A router is a socket at a loopback
//! address of its own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

use super::*;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::path::mapping::{Reserved, Site};
use crate::testbed::records::plan;

const OUTER: [u8; 4] = [203, 0, 113, 7];
const INNER: u16 = 51820;

/// A socket of the program that answers at 127.0.9.`last`.
async fn socket(last: u8) -> Arc<UdpSocket> {
    let address = Ipv4Addr::new(127, 0, 9, last);
    let socket = UdpSocket::bind((address, crab_nat::GATEWAY_PORT)).await;
    Arc::new(socket.expect("a loopback address"))
}

/// A router at 127.0.9.`last` that answers each datagram with those that `answers` makes of it.
async fn router(
    last: u8,
    answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static,
) -> (Request, AbortOnDrop) {
    let socket = socket(last).await;
    answering(last, Arc::clone(&socket), socket, answers)
}

/// The same, but the answers leave from the socket `from`.
fn answering(
    last: u8,
    socket: Arc<UdpSocket>,
    from: Arc<UdpSocket>,
    answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static,
) -> (Request, AbortOnDrop) {
    let serve = async move {
        let mut buffer = [0; 2048];
        while let Ok((length, to)) = socket.recv_from(&mut buffer).await {
            for answer in answers(&buffer[..length]) {
                let _ = from.send_to(&answer, to).await;
            }
        }
    };
    let task = Tasks::current().spawn_child("router", serve);
    let request = request_to(Ipv4Addr::new(127, 0, 9, last));
    (request, task.abort_on_drop())
}

fn request_to(gateway: Ipv4Addr) -> Request {
    Request {
        number: 1,
        site: Site {
            gateway: gateway.into(),
            interface: 1,
            own: Ipv4Addr::LOCALHOST.into(),
            port: INNER,
        },
        port: 50_000,
        order: Protocol::ALL,
    }
}

/// What a router with NAT-PMP alone answers (RFC 6886 sections 3.2 and 3.3).
fn nat_pmp(asked: &[u8], outer: [u8; 4], inner: u16, external: u16, lifetime: u32) -> Vec<u8> {
    match asked {
        [0, 0] => [&[0, 128, 0, 0, 0, 0, 0, 1][..], &outer].concat(),
        [0, 1, ..] => [
            &[0, 129, 0, 0, 0, 0, 0, 1][..],
            &inner.to_be_bytes(),
            &external.to_be_bytes(),
            &lifetime.to_be_bytes(),
        ]
        .concat(),
        // The version is not supported (section 3.5): this is how PCP finds out.
        _ => vec![0, 128, 0, 1, 0, 0, 0, 1],
    }
}

async fn asked(request: &Request) -> Result<Granted, Refusal> {
    ask(request, &plan()).await.map(|lease| lease.granted())
}

#[tokio::test]
async fn a_port_is_mapped_by_nat_pmp() {
    let (request, _router) =
        router(1, |asked| vec![nat_pmp(asked, OUTER, INNER, 50_001, 3600)]).await;
    let expected = Granted {
        protocol: Protocol::NatPmp,
        external: (OUTER, 50_001).into(),
        lifetime: Duration::from_secs(3600),
    };
    assert_eq!(asked(&request).await, Ok(expected));
}

#[tokio::test]
async fn an_answer_about_another_inner_port_is_refused() {
    let (request, _router) = router(2, |asked| vec![nat_pmp(asked, OUTER, 1, 50_001, 3600)]).await;
    let refusal = asked(&request).await.expect_err("it is a lie");
    assert!(
        matches!(&refusal, Refusal::Denied(Protocol::NatPmp, why) if why.contains("internal port")),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn a_private_outer_address_is_found_before_a_port_is_mapped() {
    let is_asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_asked);
    let (request, _router) = router(3, move |asked| {
        let maps = asked.first() == Some(&0) && asked.get(1) == Some(&1);
        seen.fetch_or(maps, Ordering::Relaxed);
        vec![nat_pmp(asked, [192, 168, 178, 2], INNER, 50_001, 3600)]
    })
    .await;
    let outer = IpAddr::from([192, 168, 178, 2]);
    let why = Refusal::Outer(Protocol::NatPmp, outer, Reserved::Private);
    assert_eq!(asked(&request).await, Err(why));
    assert!(!is_asked.load(Ordering::Relaxed));
}

#[tokio::test]
async fn of_two_answers_the_first_one_counts() {
    let (request, _router) = router(4, |asked| {
        let first = nat_pmp(asked, OUTER, INNER, 50_001, 3600);
        let second = nat_pmp(asked, [203, 0, 113, 9], INNER, 50_009, 60);
        vec![first, second]
    })
    .await;
    let granted = asked(&request).await.expect("a mapping");
    assert_eq!(granted.external, (OUTER, 50_001).into());
}

#[tokio::test]
async fn an_answer_of_somebody_else_than_the_router_is_not_received() {
    // The router is silent, and another program sends to every port that asks.
    let (router, stranger) = (socket(5).await, socket(105).await);
    let (request, _router) = answering(5, router, stranger, |asked| {
        vec![nat_pmp(asked, OUTER, INNER, 50_001, 3600)]
    });
    let gateway = request.site.gateway;
    assert_eq!(asked(&request).await, Err(Refusal::Silent(gateway)));
}

#[tokio::test]
async fn answers_of_every_length_end_in_a_mapping_or_a_reason() {
    for length in 0..=70_usize {
        let (request, router) = router(6, move |asked| {
            let mut answer = nat_pmp(asked, OUTER, INNER, 50_001, 3600);
            answer.resize(length, 0);
            vec![answer]
        })
        .await;
        let found = ask_nat_pmp(&request).await;
        let is_whole = length >= 12;
        assert_eq!(found.is_ok(), is_whole, "{length}");
        let pcp = ask_pcp(&request).await;
        assert!(pcp.is_err(), "{length}");
        drop(router);
        tokio::task::yield_now().await;
    }
}
