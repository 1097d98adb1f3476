//! Looks a name up as this node's DNS does, and explains the answer.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

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

/// Replies with the answer of this node's DNS, and the reasons for it.
pub(in crate::node) fn resolve(node: &JoinedNode, resolve: Resolve, reply: Reply<Resolved>) {
    let bad = |text: String| ApiError::new(ErrorCode::BadRequest, text);
    let shown: String = resolve.name.chars().take(260).collect();
    let Ok(mut name) = Name::from_ascii(&resolve.name) else {
        return drop(reply.send(Err(bad(format!("`{shown}` is not a domain name: a label has at most 63 bytes, a name at most 253, and there is one dot between two labels")))));
    };
    name.set_fqdn(true);
    let Ok(record_type) = resolve
        .record_type
        .to_ascii_uppercase()
        .parse::<RecordType>()
    else {
        return drop(reply.send(Err(bad(format!(
            "`{}` is not a record type; use one such as A, AAAA, SRV, TXT or PTR",
            resolve.record_type.chars().take(20).collect::<String>()
        )))));
    };
    let zone = node.names.zone().load_full();
    let entropy = crate::os::random::u64().unwrap_or_default();
    match answer(&zone, &name, record_type, entropy) {
        Verdict::Answer(found) => {
            let why = if is_special(&name) {
                vec!["a special-use name (RFC 6761): this node answers it itself, and forwards it to no upstream resolver".into()]
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
        answers: answers.iter().map(presented).collect(),
        why,
    }
}

/// A record in the form of a zone file. The strings of a TXT record are quoted one by one (RFC 1035 section 5.1): where one ends
/// has a meaning, and the library prints them without a separator.
fn presented(record: &Record) -> String {
    let RData::TXT(txt) = &record.data else {
        return record.to_string();
    };
    let strings: Vec<String> = txt.txt_data.iter().map(|string| quoted(string)).collect();
    format!(
        "{} {} {} TXT {}",
        record.name,
        record.ttl,
        record.dns_class,
        strings.join(" ")
    )
}

/// A character string in quotes. Quotes and backslashes have a backslash before them, and bytes that cannot be printed are decimal
/// numbers (RFC 1035 section 5.1).
fn quoted(string: &[u8]) -> String {
    let mut text = String::from("\"");
    for byte in string {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            b' '..=b'~' => text.push(char::from(*byte)),
            other => text.push_str(&format!("\\{other:03}")),
        }
    }
    text.push('"');
    text
}

/// Returns a line for each instance of the name, then the lines about the whole answer.
fn why_so(zone: &Zone, name: &Name, found: &Answer) -> Vec<String> {
    let mut why: Vec<String> = explain(zone, name)
        .into_iter()
        .map(|(i, part)| {
            let standing = match i.standing {
                Standing::Usable => "usable",
                Standing::Unreachable => "this node cannot reach its node",
                Standing::Unhealthy => "its node reports that it is unhealthy",
                Standing::Starting => "its first check has not ended",
                Standing::Draining => "it is draining",
            };
            let part = match part {
                Part::Answered => "answered",
                Part::InTurn => "answered in turn, since one answer does not hold all instances",
                Part::Farther => "left out: others are nearer",
                Part::Unusable => "left out",
            };
            let distance = match i.group {
                0 => "on this node".to_owned(),
                u8::MAX => "unknown distance".to_owned(),
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
        (ResponseCode::NXDomain, ..) => why.push("the mesh has no such name".into()),
        (_, Some(record), _) => why.push(format!("the answer may be cached for {} s", record.ttl)),
        (_, None, Some(soa)) => {
            why.push(format!(
                "there is no such record; this answer may be cached for {} s",
                soa.ttl
            ));
        }
        _ => {}
    }
    why
}

/// Explains which records were removed from the answer of an upstream resolver.
fn why_stripped(stripped: Stripped) -> Vec<String> {
    let mut why = Vec::new();
    if stripped.addresses > 0 {
        why.push(format!(
            "left out: {} record(s) with addresses of the mesh, to which names outside the mesh must not lead",
            stripped.addresses
        ));
    }
    if stripped.aliases > 0 {
        why.push(format!(
            "left out: {} alias(es) to a name of the mesh, which are not followed: the owner of the public name could direct a \
             browser to a service of the mesh (DNS rebinding); use the name of the mesh itself",
            stripped.aliases
        ));
    }
    why
}

fn why_from(source: Source) -> String {
    let seconds = |age: Duration| age.as_secs();
    match source {
        Source::Nobody => "not a name of the mesh: no upstream resolver answered".to_owned(),
        Source::Upstream(from) => format!("not a name of the mesh: {from} answered just now"),
        Source::Cache { from, age } => format!(
            "not a name of the mesh: {from} answered {} s ago",
            seconds(age)
        ),
        Source::Stale { from, age } => format!(
            "not a name of the mesh: {from} answered {} s ago, and no upstream resolver answers now",
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

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::TXT;

    use super::*;

    #[test]
    fn each_string_of_a_txt_record_has_its_own_quotes() {
        let name = Name::from_ascii("n1-80.web.svc.mesh.").expect("a literal");
        let strings = vec!["health=healthy".to_owned(), "a \"b\" \\c".to_owned()];
        let record = Record::from_rdata(name.clone(), 5, RData::TXT(TXT::new(strings)));
        assert_eq!(
            presented(&record),
            r#"n1-80.web.svc.mesh. 5 IN TXT "health=healthy" "a \"b\" \\c""#
        );
        let bytes = TXT::from_bytes(vec![b"tab\t\xff"]);
        let record = Record::from_rdata(name, 5, RData::TXT(bytes));
        assert_eq!(
            presented(&record),
            r#"n1-80.web.svc.mesh. 5 IN TXT "tab\009\255""#
        );
    }
}
