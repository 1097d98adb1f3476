//! The text of a policy. Each error is one line with a place in the text. For a policy that is understood, the table that is compiled from
//! it and its plain reading have the same verdicts about each pair of a small mesh. To explain it, to run
//! its tests and to compare it with another policy never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::model::{Label, Protocol, ServiceName};
use meshd::policy::{
    Asked, NodeFacts, Offered, OfferedPort, Policy, Selector, Subject, Table, Verdict, diff,
    explain, interpret, run_tests,
};

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

fn subject(number: u8, services: &[&str], tag: &str, is_node: bool) -> Subject {
    let port = |name, protocol, port| OfferedPort {
        name: Some(label(name)),
        protocol,
        port,
    };
    let offered = |service: &&str| Offered {
        service: ServiceName::parse(service).expect("a literal"),
        ports: vec![
            port("http", Protocol::Tcp, 80),
            port("metrics", Protocol::Udp, 9100),
        ],
        allow: match number {
            1 => vec![Selector::parse("tag:ops").expect("a literal")],
            _ => Vec::new(),
        },
    };
    Subject {
        addresses: vec![[10, 210, 0, number].into()],
        node: label(if number < 4 { "n1" } else { "n2" }),
        tags: vec![label(tag)],
        services: services.iter().map(offered).collect(),
        is_node,
        guest: None,
        network: None,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let policy = match Policy::check(text) {
        Ok(policy) => policy,
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
                assert!(error.line <= text.split('\n').count(), "{error}");
            }
            return;
        }
    };
    let subjects = [
        subject(1, &["db", "db.shop"], "shop", false),
        subject(2, &["web.shop"], "ops", false),
        subject(3, &[], "ops", true),
        subject(4, &["a", "b.blog"], "t", true),
    ];
    let table = Table::compile(Some(&policy), &subjects);
    for from in &subjects {
        for to in &subjects {
            let classes = [from, to].map(|subject| table.class(subject.addresses[0]));
            for asked in [
                Asked::Port(Protocol::Tcp, 80),
                Asked::Port(Protocol::Udp, 9100),
                Asked::Port(Protocol::Tcp, 22),
                Asked::Icmp,
                Asked::Other,
            ] {
                let plain = interpret(Some(&policy), from, to, asked);
                let compiled = table.allows(classes[0], classes[1], asked);
                assert_eq!(
                    compiled,
                    plain == Verdict::Allow,
                    "{asked} from {from} to {to}"
                );
                assert_eq!(explain(Some(&policy), from, to, asked).verdict, plain);
            }
        }
    }
    let node = NodeFacts {
        name: &subjects[0].node,
        tags: &subjects[0].tags,
    };
    let _ = policy.may_serve(&subjects[0].services[0].service, &node);
    let _ = policy.may_offer_relay(&node);
    drop(run_tests(&policy, &subjects));
    drop(diff(None, Some(&policy), &subjects));
    assert!(diff(Some(&policy), Some(&policy), &subjects).is_empty());
});
