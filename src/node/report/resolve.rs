//! What DNS answers to a question, and why.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};

use crate::dns::answer::{Answer, Verdict, answer, is_special};
use crate::dns::explain::{Part, explain};
use crate::dns::forward::{Source, Stripped};
use crate::dns::query::Question;
use crate::dns::zone::{Standing, Zone};
use crate::node::api::Reply;
use crate::node::joined::JoinedNode;
use crate::os::tasks::Tasks;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{Resolve, Resolved, SCHEMA};

/// What DNS answers, and why.
pub(in crate::node) fn resolve(node: &JoinedNode, resolve: Resolve, reply: Reply<Resolved>) {
    let bad = |text: String| ApiError::new(ErrorCode::BadRequest, text);
    let shown: String = resolve.name.chars().take(260).collect();
    let Ok(mut name) = Name::from_ascii(&resolve.name) else {
        return drop(reply.send(Err(bad(format!("`{shown}` is no domain name: labels have at most 63 octets, names 253, with one dot between labels")))));
    };
    name.set_fqdn(true);
    let Ok(record_type) = resolve
        .record_type
        .to_ascii_uppercase()
        .parse::<RecordType>()
    else {
        return drop(reply.send(Err(bad(format!(
            "`{}` is no record type; A, AAAA, SRV, TXT and PTR are some",
            resolve.record_type.chars().take(20).collect::<String>()
        )))));
    };
    let zone = node.names.zone().load_full();
    let entropy = crate::os::random::u64().unwrap_or_default();
    match answer(&zone, &name, record_type, entropy) {
        Verdict::Answer(found) => {
            let why = if is_special(&name) {
                vec!["a name for special use (RFC 6761): answered here, and asked of no upstream resolver".into()]
            } else {
                why_so(&zone, &name, &found)
            };
            let _ = reply.send(Ok(resolved(shown, found.code, &found.answers, why)));
        }
        Verdict::Forward => {
            let upstream = Arc::clone(&node.resolver.upstream);
            Tasks::current().spawn_child("resolve", async move {
                let mut found = upstream.ask(&Question::new(name, record_type)).await;
                let mut why = vec![why_from(found.source)];
                why.extend(why_stripped(found.strip(&zone)));
                let _ = reply.send(Ok(resolved(shown, found.code, &found.answers, why)));
            });
        }
    }
}

fn resolved(name: String, code: ResponseCode, answers: &[Record], why: Vec<String>) -> Resolved {
    Resolved {
        schema: SCHEMA,
        name,
        response_code: code_text(code),
        answers: answers.iter().map(ToString::to_string).collect(),
        why,
    }
}

/// One line for each instance that the name has, and one for each thing that holds for all.
fn why_so(zone: &Zone, name: &Name, found: &Answer) -> Vec<String> {
    let mut why: Vec<String> = explain(zone, name)
        .into_iter()
        .map(|(i, part)| {
            let standing = match i.standing {
                Standing::Usable => "usable",
                Standing::Unreachable => "this node cannot reach its node",
                Standing::Unhealthy => "its node says it is unhealthy",
                Standing::Starting => "its first check is not through",
                Standing::Draining => "it is draining",
            };
            let part = match part {
                Part::Answered => "answered",
                Part::InTurn => "answered in turn, since there are more than go into one answer",
                Part::Farther => "left out: others are nearer",
                Part::Unusable => "left out",
            };
            let distance = match i.group {
                0 => "on this node".to_owned(),
                u8::MAX => "distance not known".to_owned(),
                group => format!("distance group {group}"),
            };
            format!(
                "{} on {}: {part}: {standing} (health {}, {distance})",
                i.name,
                i.node,
                i.health.as_str()
            )
        })
        .collect();
    if found.flagged {
        why.push(
            "no instance is usable, so those that are only unhealthy or unreachable are answered"
                .into(),
        );
    }
    match (found.code, found.answers.first(), found.authority.first()) {
        (ResponseCode::NXDomain, ..) => why.push("no such name is known in the mesh".into()),
        (_, Some(record), _) => why.push(format!("may be kept for {} s", record.ttl)),
        (_, None, Some(soa)) => {
            why.push(format!("that there is none may be kept for {} s", soa.ttl));
        }
        _ => {}
    }
    why
}

/// What was left out of an answer from outside.
fn why_stripped(stripped: Stripped) -> Vec<String> {
    let mut why = Vec::new();
    if stripped.addresses > 0 {
        why.push(format!(
            "left out: {} record(s) with addresses of the mesh, into which nobody outside may point",
            stripped.addresses
        ));
    }
    if stripped.aliases > 0 {
        why.push(format!(
            "left out: {} alias(es) to a name of the mesh, which are not followed: whoever owns the public name could lead a \
             browser to a service of the mesh (DNS rebinding); use the name of the mesh itself",
            stripped.aliases
        ));
    }
    why
}

fn why_from(source: Source) -> String {
    let seconds = |age: Duration| age.as_secs();
    match source {
        Source::Nobody => {
            "not a name of the mesh: no upstream resolver gave an answer to it".to_owned()
        }
        Source::Upstream(from) => format!("not a name of the mesh: {from} said so just now"),
        Source::Cache { from, age } => format!(
            "not a name of the mesh: {from} said so {} s ago",
            seconds(age)
        ),
        Source::Stale { from, age } => format!(
            "not a name of the mesh: {from} said so {} s ago, and no upstream resolver answers now",
            seconds(age)
        ),
    }
}

fn code_text(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        other => other.to_str().to_ascii_uppercase(),
    }
}
