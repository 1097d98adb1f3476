use super::*;
use crate::dns::answer::tests::{HEALTHY, clashing, crowd, netmap, zone_of};
use crate::dns::forward::Forwarded;
use crate::dns::names::{Outcome, handle};
use crate::dns::zone::WhenNoneUsable;
use crate::records::netmap::Netmap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

fn zone(netmap: &Netmap) -> Zone {
    zone_of(netmap, &[3], WhenNoneUsable::All)
}

fn query(name: &str, record_type: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(
        Name::from_ascii(name).expect("a literal"),
        record_type,
    ));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload)
            .set_version(0)
            .set_dnssec_ok(true);
        message.set_edns(edns);
    }
    message.to_vec().expect("a small message")
}

/// The outcome of the fast path, and the replies of the fast path and of the full path.
fn both(zone: &Zone, bytes: &[u8], entropy: u64) -> (FastPath, Option<Message>, Option<Message>) {
    let mut short = Vec::new();
    let plain = answer(zone, bytes, Transport::Udp, entropy, &mut short);
    let parsed = |bytes: &[u8]| Message::from_vec(bytes).expect("a reply that parses");
    let long = match handle(zone, bytes, Transport::Udp, entropy) {
        Outcome::Reply(reply) => Some(parsed(&reply)),
        Outcome::Forward(_) | Outcome::Silence(_) => None,
    };
    let short = (plain == FastPath::Replied).then(|| parsed(&short));
    (plain, short, long)
}

#[test]
fn a_plain_question_gets_the_same_answer_on_the_fast_path() {
    for (netmap, names) in [
        (netmap(HEALTHY), 3),
        (crowd(60), 3),
        (crowd(200), 3),
        (clashing(), 3),
        (Netmap::default(), 0),
    ] {
        let zone = zone(&netmap);
        let mut replied = 0;
        for name in [
            "web.svc.mesh.",
            "WEB.svc.MESH.",
            "nearest.web.svc.mesh.",
            "db.shop.svc.mesh.",
            "n2-80.web.svc.mesh.",
            "web.svc.n2.node.mesh.",
            "n2.node.mesh.",
            "ns.mesh.",
            "mesh.",
            "svc.mesh.",
            "gone.svc.mesh.",
            "never.svc.mesh.",
            "n9.node.mesh.",
            "_web._tcp.web.svc.mesh.",
        ] {
            for record_type in [RecordType::A, RecordType::AAAA] {
                for payload in [None, Some(0), Some(1232), Some(65_535)] {
                    for entropy in 0..4 {
                        let bytes = query(name, record_type, payload);
                        let (_, short, long) = both(&zone, &bytes, entropy);
                        if let Some(short) = short {
                            replied += 1;
                            assert_eq!(Some(short), long, "{name} {record_type}");
                        }
                    }
                }
            }
        }
        assert_eq!(replied > 0, names > 0);
    }
}

#[test]
fn the_fast_path_and_the_full_path_write_the_same_bytes() {
    let names = [
        "web.svc.mesh.",
        "nearest.web.svc.mesh.",
        "db.shop.svc.mesh.",
        "n2-80.web.svc.mesh.",
        "web.svc.n2.node.mesh.",
        "n2.node.mesh.",
        "ns.mesh.",
        "mesh.",
        "svc.mesh.",
        "never.svc.mesh.",
        "n9.node.mesh.",
    ];
    let mut compared = 0;
    for netmap in [netmap(HEALTHY), crowd(60), clashing()] {
        let zone = zone(&netmap);
        for (name, record_type) in names
            .iter()
            .flat_map(|name| [(name, RecordType::A), (name, RecordType::AAAA)])
        {
            for payload in [None, Some(0), Some(1232), Some(65_535)] {
                let query = query(name, record_type, payload);
                for (transport, entropy) in
                    (0..20).flat_map(|n| [(Transport::Udp, n), (Transport::Tcp, n)])
                {
                    let mut fast = Vec::new();
                    if answer(&zone, &query, transport, entropy, &mut fast) != FastPath::Replied {
                        continue;
                    }
                    let Outcome::Reply(full) = handle(&zone, &query, transport, entropy) else {
                        panic!("{name} {record_type} is not answered in full");
                    };
                    assert_eq!(fast, full, "{name} {record_type} {payload:?} {transport:?}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 5_000, "{compared}");
}

#[test]
fn the_fast_path_leaves_other_queries_to_the_full_path() {
    let zone = zone(&netmap(HEALTHY));
    let plain = |bytes: &[u8]| both(&zone, bytes, 1).0;
    let of = |name, record_type| plain(&query(name, record_type, None));
    assert_eq!(
        of("web.svc.mesh.", RecordType::SRV),
        FastPath::NeedsFullParse
    );
    assert_eq!(
        of("1.1.210.10.in-addr.arpa.", RecordType::PTR),
        FastPath::NeedsFullParse
    );
    assert_eq!(of("example.org.", RecordType::A), FastPath::Forward);
    assert_eq!(of("notmesh.", RecordType::A), FastPath::Forward);
    assert_eq!(of("localhost.", RecordType::A), FastPath::NeedsFullParse);
    let mut unasked = query("example.org.", RecordType::A, None);
    unasked[2] &= !1;
    assert_eq!(
        plain(&unasked),
        FastPath::NeedsFullParse,
        "no recursion is desired"
    );
    let whole = query("web.svc.mesh.", RecordType::A, Some(1232));
    assert_eq!(plain(&whole), FastPath::Replied);
    for length in 0..whole.len() {
        assert_eq!(
            plain(&whole[..length]),
            FastPath::NeedsFullParse,
            "{length}"
        );
    }
    let longer = [&whole[..], &[0]].concat();
    assert_eq!(plain(&longer), FastPath::NeedsFullParse);
}

#[test]
fn a_failure_repeats_the_question_and_claims_nothing() {
    let bytes = query("Example.org.", RecordType::A, Some(1232));
    let mut reply = Vec::new();
    fail(&bytes, &mut reply);
    let reply = Message::from_vec(&reply).expect("a reply that parses");
    let query = Message::from_vec(&bytes).expect("as it was made");
    let Outcome::Forward(pending) = handle(&zone(&netmap(HEALTHY)), &bytes, Transport::Udp, 1)
    else {
        panic!("a name of elsewhere");
    };
    let long = Message::from_vec(&pending.finish(Forwarded::failure())).expect("it parses");
    assert_eq!(reply.queries, query.queries);
    assert_eq!(reply, long);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn of_mutated_queries_both_ways_say_the_same(
        flips in prop::collection::vec((0usize..64, any::<u8>()), 0..4),
        name in "(web|n2-80\\.web|never|gone|nearest\\.web)\\.svc\\.mesh\\.",
        aaaa in any::<bool>(),
        payload in prop::option::of(any::<u16>()),
        entropy in any::<u64>(),
    ) {
        let zone = zone(&netmap(HEALTHY));
        let record_type = if aaaa { RecordType::AAAA } else { RecordType::A };
        let mut bytes = query(&name, record_type, payload);
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        let (plain, short, long) = both(&zone, &bytes, entropy);
        match plain {
            FastPath::Replied => prop_assert_eq!(short, long),
            FastPath::Forward | FastPath::NeedsFullParse => {}
        }
    }
}

#[test]
fn a_name_with_many_instances_is_left_to_the_full_path() {
    let mut reply = Vec::new();
    for (instances, plain) in [
        (FEW_INSTANCES, FastPath::Replied),
        (FEW_INSTANCES + 1, FastPath::NeedsFullParse),
    ] {
        let zone = zone(&crowd(instances as u8));
        let query = query("web.svc.mesh.", RecordType::A, None);
        let most = FEW_INSTANCES;
        let got = answer_within(most, &zone, &query, Transport::Udp, 1, &mut reply);
        assert_eq!(got, plain, "{instances} instances");
        assert_eq!(walked(&zone, &query), instances);
        let services = self::query("web.svc.mesh.", RecordType::SRV, None);
        assert_eq!(walked(&zone, &services), 2 * instances, "each has a port");
    }
}

#[test]
fn the_short_refusal_is_the_same_as_in_full() {
    let zone = zone(&netmap(HEALTHY));
    for payload in [None, Some(512), Some(4096)] {
        let query = query("www.example.org.", RecordType::A, payload);
        let Outcome::Forward(pending) = handle(&zone, &query, Transport::Udp, 1) else {
            panic!("a name of elsewhere");
        };
        let mut short = Vec::new();
        refuse(&query, &mut short);
        let [short, full] = [short, pending.refuse()].map(|bytes| Message::from_vec(&bytes).ok());
        assert!(short.is_some() && short == full, "{payload:?}");
    }
}
