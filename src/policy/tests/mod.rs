//! Tests of the whole language: the plain reading, the table, differences, and tests in policies.

mod differential;
mod readings;
mod tables;
mod verdicts;
pub(crate) mod worlds;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::model::{Label, Protocol, ServiceName};

fn label(text: &str) -> Label {
    Label::parse(text).expect("a label")
}

fn selector(text: &str) -> Selector {
    Selector::parse(text).expect("a selector")
}

fn policy(rest: &str) -> Policy {
    Policy::parse(&format!("language = 1\n{rest}")).expect("a policy")
}

/// A policy with one rule, in line 2.
fn rule(from: &str, to: &str) -> Policy {
    policy(&format!(
        "allow = [{{ from = [\"{from}\"], to = [\"{to}\"] }}]"
    ))
}

fn tcp(port: u16) -> Asked {
    Asked::Port(Protocol::Tcp, port)
}

fn udp(port: u16) -> Asked {
    Asked::Port(Protocol::Udp, port)
}

/// The addresses of the subject with this number.
fn addresses(number: u16) -> Vec<IpAddr> {
    let [high, low] = number.to_be_bytes();
    vec![
        Ipv4Addr::new(10, 210, high, low).into(),
        Ipv6Addr::new(0xfd24, 0, 0, 0, 0, 0, 0, number).into(),
    ]
}

fn node(number: u16, name: &str, tags: &[&str]) -> Subject {
    Subject {
        addresses: addresses(number),
        node: label(name),
        tags: tags.iter().map(|tag| label(tag)).collect(),
        services: Vec::new(),
        is_node: true,
        guest: None,
        network: None,
    }
}

/// A guest of the node `n1`.
fn guest(number: u16, name: &str, tags: &[&str]) -> Subject {
    Subject {
        guest: Some(label(name)),
        is_node: false,
        ..node(number, "n1", tags)
    }
}

/// An instance of the service `name.project` or `name`, with ports such as `80`, `53/udp` or `metrics=9100`.
fn instance(number: u16, service: &str, ports: &[&str]) -> Subject {
    Subject {
        services: vec![offered(service, ports, &[])],
        is_node: false,
        ..node(number, "n1", &[])
    }
}

fn offered(service: &str, ports: &[&str], allow: &[&str]) -> Offered {
    let port = |text: &&str| {
        let (name, number) = match text.split_once('=') {
            Some((name, number)) => (Some(label(name)), number),
            None => (None, *text),
        };
        let (number, protocol) = match number.split_once('/') {
            Some((number, _)) => (number, Protocol::Udp),
            None => (number, Protocol::Tcp),
        };
        OfferedPort {
            name,
            protocol,
            port: number.parse().expect("a number"),
        }
    };
    Offered {
        service: ServiceName::parse(service).expect("a name"),
        ports: ports.iter().map(port).collect(),
        allow: allow.iter().map(|text| selector(text)).collect(),
    }
}

fn allows(policy: &Policy, from: &Subject, to: &Subject, asked: Asked) -> bool {
    interpret(Some(policy), from, to, asked) == Verdict::Allow
}
