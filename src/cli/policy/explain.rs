//! `meshctl policy explain`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Args;
use clap_complete::ArgValueCandidates;
use serde::Serialize;

use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, names, table};
use crate::model::{Label, Protocol, ServiceName};
use crate::policy::{Asked, Selector, Subject, Verdict, explain, selects};
use crate::protocol::api::ErrorCode;

/// The maximum number of different explanations for one pair of names, which may have many instances.
const MAX_EXPLAINED: usize = 16;

/// The arguments of `meshctl policy explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl policy explain shop/web db:5432
  meshctl policy explain node:web-1 dns:53/udp
  meshctl policy explain tag:ops 10.210.3.7:metrics
  meshctl policy explain web-1 db:icmp

A name is that of a service, or of a node if no service has it. The exit status is 2 if the policy denies it.")]
pub(in crate::cli) struct ExplainArguments {
    /// Who sends: NAME, PROJECT/NAME, node:NAME, guest:NAME, tag:TAG or an address
    #[arg(value_name = "A", value_parser = parse_end, add = ArgValueCandidates::new(names::members))]
    from: End,
    /// Who receives, and the port: a number or a name, with /udp behind it if it is UDP, or icmp
    #[arg(value_name = "B:PORT", value_parser = parse_target)]
    to: Target,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// One side of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Address(IpAddr),
    Selector(Selector),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    end: End,
    port: AskedPort,
    /// The port as it was written.
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum AskedPort {
    Is(Asked),
    Named(Label),
}

/// `meshctl policy explain --json`.
#[derive(Debug, Serialize)]
struct Explained {
    schema: u32,
    /// Whether every source reaches every destination.
    allowed: bool,
    reasons: Vec<Reason>,
}

/// What the policy says about sources and destinations that are alike.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Reason {
    /// One of the sources, and one of the destinations.
    from: String,
    to: String,
    asked: String,
    allowed: bool,
    /// The line of the rule in the policy. It is null if no rule is near.
    line: Option<usize>,
    why: String,
}

fn parse_end(text: &str) -> Result<End, String> {
    if let Ok(address) = text.parse() {
        return Ok(End::Address(address));
    }
    match Selector::parse(text) {
        Ok(Selector::SameProject) => {
            Err("it stands for the project of the other side; give a name, such as shop/web".into())
        }
        Ok(selector) => Ok(End::Selector(selector)),
        Err(error) => Err(format!("{error}; an example is shop/web")),
    }
}

fn parse_target(text: &str) -> Result<Target, String> {
    let example =
        "write the port after a colon, such as db:5432, dns:53/udp, db:metrics or db:icmp";
    let (end, port) = text.rsplit_once(':').ok_or(example)?;
    let end = end.trim_start_matches('[').trim_end_matches(']');
    Ok(Target {
        end: parse_end(end)?,
        port: parse_port(port).ok_or(example)?,
        text: port.to_owned(),
    })
}

fn parse_port(text: &str) -> Option<AskedPort> {
    let (number, protocol) = match text.split_once('/') {
        None if text == "icmp" => return Some(AskedPort::Is(Asked::Icmp)),
        None => (text, Protocol::Tcp),
        Some((number, "tcp")) => (number, Protocol::Tcp),
        Some((number, "udp")) => (number, Protocol::Udp),
        Some(_) => return None,
    };
    if number.bytes().all(|b| b.is_ascii_digit()) {
        let port: std::num::NonZeroU16 = number.parse().ok()?;
        return Some(AskedPort::Is(Asked::Port(protocol, port.get())));
    }
    let name = Label::parse(text).ok()?;
    Some(AskedPort::Named(name))
}

pub(in crate::cli) async fn run(
    arguments: ExplainArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    let live = Live::read(globals).await?;
    let policy = live.policy("explain")?;
    let subjects = live.subjects(policy.as_ref());
    let from = arguments.from.of(&subjects);
    let to = arguments.to.end.of(&subjects);
    for (end, found) in [(&arguments.from, &from), (&arguments.to.end, &to)] {
        if found.is_empty() {
            return Err(unknown(end));
        }
    }
    let mut reasons: BTreeMap<(bool, Option<usize>, String), Reason> = BTreeMap::new();
    for to in &to {
        for asked in arguments.to.asked_of(to) {
            for from in &from {
                let said = explain(policy.as_ref(), from, to, asked);
                let allowed = said.verdict == Verdict::Allow;
                let key = (allowed, said.line, said.to_string());
                reasons.entry(key).or_insert_with(|| Reason {
                    from: shown(from),
                    to: shown(to),
                    asked: asked.to_string(),
                    allowed,
                    line: said.line,
                    why: said.to_string(),
                });
            }
        }
    }
    if reasons.is_empty() {
        let text = format!(
            "policy explain: {} has no port with the name {}; `meshctl service list --json` shows the names",
            arguments.to.end, arguments.to.text
        );
        return Err(CliError::new(ErrorCode::NotFound, text));
    }
    let allowed = reasons.values().all(|reason| reason.allowed);
    let reasons: Vec<Reason> = reasons.into_values().take(MAX_EXPLAINED).collect();
    if arguments.json {
        table::json(&Explained {
            schema: 1,
            allowed,
            reasons,
        })?;
    } else {
        for reason in &reasons {
            table::line(&line(reason));
        }
    }
    Ok(if allowed { 0 } else { 2 })
}

impl End {
    /// The subjects that are meant. A name that no service has may be that of a node.
    fn of<'a>(&self, subjects: &'a [Subject]) -> Vec<&'a Subject> {
        let matching = |is: &dyn Fn(&Subject) -> bool| -> Vec<&'a Subject> {
            subjects.iter().filter(|subject| is(subject)).collect()
        };
        match self {
            Self::Address(address) => {
                let found = matching(&|s| s.addresses.contains(address));
                // The longest prefix that has an address counts.
                let networks = subjects
                    .iter()
                    .filter_map(|s| Some((s, s.network.as_ref()?)));
                let networks = networks.filter(|(_, network)| network.prefix.contains(address));
                let network = networks.max_by_key(|(_, network)| network.prefix.prefix_len());
                match network {
                    Some((subject, _)) if found.is_empty() => vec![subject],
                    _ => found,
                }
            }
            Self::Selector(
                selector @ (Selector::Any | Selector::Guest(_) | Selector::Route(_)),
            ) => matching(&|s| selects(selector, s)),
            Self::Selector(Selector::Node(name)) => matching(&|s| s.is_node && name.is(&s.node)),
            Self::Selector(Selector::Tag(tag)) => matching(&|s| s.tags.iter().any(|t| tag.is(t))),
            Self::Selector(selector) => {
                let offers = |name: &ServiceName| selector.names(name);
                let found = matching(&|s| s.services.iter().any(|o| offers(&o.service)));
                match selector {
                    Selector::Service(name) if found.is_empty() => {
                        matching(&|s| s.is_node && s.node == *name)
                    }
                    _ => found,
                }
            }
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Selector(selector) => selector.fmt(f),
        }
    }
}

impl Target {
    /// What the question asks of `subject`. A port by its name may be several numbers, or none.
    fn asked_of(&self, subject: &Subject) -> Vec<Asked> {
        let name = match &self.port {
            AskedPort::Is(asked) => return vec![*asked],
            AskedPort::Named(name) => name,
        };
        let ports = subject.services.iter().flat_map(|offered| &offered.ports);
        let named = ports.filter(|port| port.name.as_ref() == Some(name));
        let mut asked: Vec<Asked> = named.map(|p| Asked::Port(p.protocol, p.port)).collect();
        asked.sort_unstable();
        asked.dedup();
        asked
    }
}

/// A subject for people: its services, and where it is.
pub(super) fn shown(subject: &Subject) -> String {
    let place = match subject.addresses.first() {
        Some(address) => format!("{} on {}", address, subject.node),
        None => subject.node.to_string(),
    };
    let services: Vec<String> = subject
        .services
        .iter()
        .map(|offered| selector_of(&offered.service))
        .collect();
    if let Some(network) = &subject.network {
        let gateways: Vec<String> = network.gateways.iter().map(ToString::to_string).collect();
        return format!("{} (behind {})", network.prefix, gateways.join(", "));
    }
    if let Some(guest) = &subject.guest {
        return format!("guest:{guest} ({place})");
    }
    match (subject.is_node, services.is_empty()) {
        (true, _) => format!("node:{} ({place})", subject.node),
        (false, true) => place,
        (false, false) => format!("{} ({place})", services.join(" ")),
    }
}

/// The name of a service as rules have it.
pub(super) fn selector_of(service: &ServiceName) -> String {
    match &service.project {
        Some(project) => format!("{project}/{}", service.name),
        None => service.name.to_string(),
    }
}

fn line(reason: &Reason) -> String {
    let verdict = if reason.allowed { "allowed" } else { "denied" };
    let line = reason
        .line
        .map_or_else(String::new, |line| format!("line {line}: "));
    format!(
        "{verdict}  {} -> {} {}   {line}{}",
        reason.from, reason.to, reason.asked, reason.why
    )
}

fn unknown(end: &End) -> CliError {
    let text = format!(
        "policy explain: nothing in the mesh is {end}; `meshctl service list` and `meshctl node list` show the names"
    );
    CliError::new(ErrorCode::NotFound, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Offered, OfferedPort};
    use crate::testbed::records::label;

    fn subject(address: &str, service: Option<&str>) -> Subject {
        let metrics = OfferedPort {
            name: Some(label("metrics")),
            protocol: Protocol::Tcp,
            port: 9187,
        };
        let offered = service.map(|service| Offered {
            service: ServiceName::parse(service).expect("a literal"),
            ports: vec![metrics],
            allow: vec![],
        });
        Subject {
            addresses: vec![address.parse().expect("a literal")],
            node: label("web-1"),
            tags: vec![label("shop")],
            is_node: offered.is_none(),
            guest: None,
            network: None,
            services: offered.into_iter().collect(),
        }
    }

    fn found(end: &str, subjects: &[Subject]) -> Vec<String> {
        let end = parse_end(end).expect("an end");
        end.of(subjects).into_iter().map(shown).collect()
    }

    #[test]
    fn an_end_is_a_service_a_node_a_tag_or_an_address() {
        let subjects = [
            subject("10.210.1.1", None),
            subject("10.210.1.64", Some("db")),
            subject("10.210.1.65", Some("db.shop")),
        ];
        let node = "node:web-1 (10.210.1.1 on web-1)";
        let db = "db (10.210.1.64 on web-1)";
        let in_shop = "shop/db (10.210.1.65 on web-1)";
        assert_eq!(found("db", &subjects), [db]);
        assert_eq!(found("shop/db", &subjects), [in_shop]);
        assert_eq!(found("project:shop", &subjects), [in_shop]);
        assert_eq!(found("node:web-1", &subjects), [node]);
        assert_eq!(found("web-1", &subjects), [node]);
        assert_eq!(found("10.210.1.65", &subjects), [in_shop]);
        assert_eq!(found("tag:shop", &subjects), [node, db, in_shop]);
        assert_eq!(found("nobody", &subjects), [""; 0]);
        assert!(parse_end("same-project").is_err() && parse_end("db.shop").is_err());
    }

    #[test]
    fn a_guest_is_an_end_by_its_name_and_by_its_tags() {
        let guest = Subject {
            is_node: false,
            guest: Some(label("anna")),
            ..subject("10.210.1.254", None)
        };
        let subjects = [subject("10.210.1.1", None), guest];
        let anna = "guest:anna (10.210.1.254 on web-1)";
        let node = "node:web-1 (10.210.1.1 on web-1)";
        assert_eq!(found("guest:anna", &subjects), [anna]);
        assert_eq!(found("guest:*", &subjects), [anna]);
        assert_eq!(found("guest:bert", &subjects), [""; 0]);
        assert_eq!(found("tag:shop", &subjects), [node, anna]);
        assert_eq!(found("node:web-1", &subjects), [node]);
    }

    #[test]
    fn a_target_has_a_port_by_number_or_name() {
        let port = |text: &str| parse_target(text).map(|target| target.port);
        let tcp = |port| Ok(AskedPort::Is(Asked::Port(Protocol::Tcp, port)));
        assert_eq!(port("db:5432"), tcp(5432));
        assert_eq!(port("node:web-1:22/tcp"), tcp(22));
        assert_eq!(port("[fd00::1]:22"), tcp(22));
        let udp = AskedPort::Is(Asked::Port(Protocol::Udp, 53));
        assert_eq!(port("shop/dns:53/udp"), Ok(udp));
        assert_eq!(port("db:icmp"), Ok(AskedPort::Is(Asked::Icmp)));
        assert_eq!(port("db:metrics"), Ok(AskedPort::Named(label("metrics"))));
        for wrong in [
            "db",
            "db:",
            "db:0",
            "db:65536",
            "db:80/sctp",
            ":80",
            "a_b:80",
        ] {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
        let target = parse_target("db:metrics").expect("a target");
        let asked = target.asked_of(&subject("10.210.1.64", Some("db")));
        assert_eq!(asked, [Asked::Port(Protocol::Tcp, 9187)]);
        assert_eq!(target.asked_of(&subject("10.210.1.1", None)), []);
    }
}
