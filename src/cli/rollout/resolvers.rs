//! Queries the DNS of nodes over the tunnel for the instances of a service. This is the answer that the clients of a node get, and
//! it does not depend on the coordinator.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::model::{Label, ServiceName};
use crate::os::random;

/// The time limit of one reply.
const REPLY_TIMEOUT: Duration = Duration::from_millis(700);
/// The maximum size of a reply, in bytes: most SRV answers fit, and the others are cut off.
const MAX_REPLY: u16 = 4096;
/// An answer with so many records may leave out an instance.
const MANY_RECORDS: usize = 32;

/// What the DNS of a node is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// It sends no new clients to the instances.
    Drained,
    /// It sends new clients to each of the instances.
    Published,
}

/// How far the DNS of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolver {
    /// It answers as expected.
    Reached,
    /// It answers otherwise.
    Behind,
    /// It does not answer.
    Silent,
}

/// Queries the DNS of the node at `node` for `instances`, each with the name of its service.
pub(super) async fn query_node(
    node: Ipv4Addr,
    instances: &BTreeSet<(Label, ServiceName)>,
    domain: &str,
    expect: Expect,
) -> Resolver {
    let server = SocketAddr::new(node.into(), 53);
    for (instance, service) in instances {
        let state = match expect {
            Expect::Drained => query_drained(server, instance, service, domain).await,
            Expect::Published => query_published(server, instance, service, domain).await,
        };
        if state != Resolver::Reached {
            return state;
        }
    }
    Resolver::Reached
}

async fn query_drained(
    server: SocketAddr,
    instance: &Label,
    service: &ServiceName,
    domain: &str,
) -> Resolver {
    let name = format!("{instance}.{service}.svc.{domain}.");
    match query(server, &name, RecordType::TXT).await {
        Some(reply) => drained_in(&reply),
        None => Resolver::Silent,
    }
}

/// The SRV records of a service have the instances that this node reaches. If they cannot have all instances, the health of the
/// single instance is all that the node tells.
async fn query_published(
    server: SocketAddr,
    instance: &Label,
    service: &ServiceName,
    domain: &str,
) -> Resolver {
    let all = query(server, &format!("{service}.svc.{domain}."), RecordType::SRV).await;
    match all.map(|reply| published_in(&reply, instance)) {
        None => return Resolver::Silent,
        Some(Some(state)) => return state,
        Some(None) => {}
    }
    let name = format!("{instance}.{service}.svc.{domain}.");
    match query(server, &name, RecordType::TXT).await {
        Some(reply) => usable_in(&reply),
        None => Resolver::Silent,
    }
}

/// The meaning of a reply with an instance's TXT record, while the instance is drained.
fn drained_in(reply: &Message) -> Resolver {
    let sends_clients = reply.answers.iter().any(|record| {
        let text = record.data.to_string();
        !text.contains("health=draining")
    });
    match reply.metadata.response_code {
        ResponseCode::NoError if sends_clients => Resolver::Behind,
        ResponseCode::NoError | ResponseCode::NXDomain => Resolver::Reached,
        _ => Resolver::Silent,
    }
}

/// The meaning of a reply with an instance's TXT record, while the instance is published.
fn usable_in(reply: &Message) -> Resolver {
    let is_usable = reply.answers.iter().any(|record| {
        let text = record.data.to_string();
        text.contains("health=healthy") || text.contains("health=unknown")
    });
    match reply.metadata.response_code {
        ResponseCode::NoError if is_usable => Resolver::Reached,
        ResponseCode::NoError | ResponseCode::NXDomain => Resolver::Behind,
        _ => Resolver::Silent,
    }
}

/// The meaning of a reply with a service's SRV records. None if the reply may not have all of them.
fn published_in(reply: &Message, instance: &Label) -> Option<Resolver> {
    match reply.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Some(Resolver::Behind),
        _ => return Some(Resolver::Silent),
    }
    let mut targets = reply
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => srv.target.iter().next(),
            _ => None,
        });
    if targets.any(|label| label.eq_ignore_ascii_case(instance.as_str().as_bytes())) {
        return Some(Resolver::Reached);
    }
    let is_whole = !reply.metadata.truncation
        && !reply.answers.is_empty()
        && reply.answers.len() < MANY_RECORDS;
    is_whole.then_some(Resolver::Behind)
}

async fn query(server: SocketAddr, name: &str, record_type: RecordType) -> Option<Message> {
    let id = random::u32().ok()?.to_be_bytes();
    let id = u16::from_be_bytes([id[0], id[1]]);
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).ok()?, record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_REPLY);
    query.set_edns(edns);
    let bytes = query.to_vec().ok()?;
    let exchange = async {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&bytes).await.ok()?;
        let mut buffer = vec![0; usize::from(MAX_REPLY)];
        loop {
            let length = socket.recv(&mut buffer).await.ok()?;
            let reply = buffer.get(..length).and_then(|r| Message::from_vec(r).ok());
            if let Some(reply) = reply.filter(|reply| reply.metadata.id == id) {
                return Some(reply);
            }
        }
    };
    timeout(REPLY_TIMEOUT, exchange).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{SRV, TXT};

    use super::*;

    fn reply(code: ResponseCode, answers: Vec<RData>) -> Message {
        let mut reply = Message::new(1, MessageType::Response, OpCode::Query);
        reply.metadata.response_code = code;
        let name = Name::from_ascii("web.svc.mesh.").expect("a literal");
        let records = answers
            .into_iter()
            .map(|data| Record::from_rdata(name.clone(), 5, data));
        reply.answers = records.collect();
        reply
    }

    fn srv(instance: &str) -> RData {
        let target = Name::from_ascii(format!("{instance}.web.svc.mesh.")).expect("a literal");
        RData::SRV(SRV::new(0, 10, 80, target))
    }

    fn health(text: &str) -> RData {
        RData::TXT(TXT::new(vec![format!("health={text}")]))
    }

    #[test]
    fn a_node_that_names_an_instance_as_usable_still_sends_clients_to_it() {
        let drained = |code, answers| drained_in(&reply(code, answers));
        let no_error = ResponseCode::NoError;
        assert_eq!(
            drained(no_error, vec![health("draining")]),
            Resolver::Reached
        );
        assert_eq!(drained(no_error, vec![health("healthy")]), Resolver::Behind);
        assert_eq!(drained(ResponseCode::NXDomain, vec![]), Resolver::Reached);
        assert_eq!(drained(ResponseCode::Refused, vec![]), Resolver::Silent);
    }

    #[test]
    fn an_instance_is_published_where_the_service_leads_to_it() {
        let web = Label::parse("n1-web").expect("a literal");
        let published = |code, answers| published_in(&reply(code, answers), &web);
        let no_error = ResponseCode::NoError;
        assert_eq!(
            published(no_error, vec![srv("n2-web"), srv("n1-web")]),
            Some(Resolver::Reached)
        );
        assert_eq!(
            published(no_error, vec![srv("n2-web")]),
            Some(Resolver::Behind)
        );
        assert_eq!(
            published(no_error, vec![srv("n2-web"); MANY_RECORDS]),
            None,
            "it may be among those that had no room"
        );
        assert_eq!(published(no_error, vec![]), None);
        assert_eq!(
            published(ResponseCode::NXDomain, vec![]),
            Some(Resolver::Behind)
        );
        let usable = |answers| usable_in(&reply(no_error, answers));
        assert_eq!(usable(vec![health("unknown")]), Resolver::Reached);
        assert_eq!(usable(vec![health("starting")]), Resolver::Behind);
        assert_eq!(usable(vec![]), Resolver::Behind);
    }
}
