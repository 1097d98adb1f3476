//! The test kit of the resolver, for tests and fuzzing: it passes any bytes through the whole path of a query and
//! checks the result.
//!
//! The first byte of an input tells what the rest is: a query over UDP or TCP from a client or from a source that may not ask, or
//! the response of an upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use super::access::Allowed;
use super::batch_context::{Outcome, QueryContext};
use super::fast_path::{self, FastPath};
use super::forward::Upstream;
use super::forward::exchange::{Form, Received, read};
use super::forward::{Forwarded, Source};
use super::full_path::{begin, clipped};
use super::job::{Job, Reply};
use super::names::{Outcome as FullOutcome, Pending, handle};
use super::query::Question;
use super::resolver::Resolver;
use super::transport::{MAX_UDP, PLAIN_UDP, Transport};
use super::zone::{MAX_ADDRESSES, WhenNoneUsable, Zone, ZoneInput};
use crate::model::address::MeshAddresses;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, WireGuardKey};
use crate::records::kinds::{Health, Instance, MESH_ID, Mesh, Port, Protocol, Service};
use crate::records::netmap::{AtRouter, Member, Netmap};
use crate::records::service_address::ServiceAddresses;

/// The query came over TCP, not UDP.
const TCP: u8 = 1;
/// The rest is the response of an upstream, and not a query.
const UPSTREAM: u8 = 2;
/// The query is from a source that may not ask, in one of eight inputs.
const STRANGER: u8 = 0x1c;
/// The bits of the first byte from this one on select the order of answers and the answer of the upstreams.
const ENTROPY: u32 = 5;
/// The name for which upstreams are asked.
const ASKED: &str = "www.example.org.";

/// A resolver with a mesh that has one of each kind of name.
pub struct QueryFuzz {
    zone: Arc<Zone>,
    resolver: Arc<Resolver>,
}

impl QueryFuzz {
    /// Makes a resolver that is the same at each call.
    ///
    /// # Panics
    /// It does not panic, because its names and addresses are literals.
    #[must_use]
    pub fn new() -> Self {
        let netmap = netmap().expect("names and addresses written here");
        let zone = Arc::new(Zone::build(&ZoneInput {
            netmap: &netmap,
            own: id(1),
            unreachable: &BTreeSet::from([id(3)]),
            groups: &BTreeMap::from([(id(2), 4)]),
            when_none_usable: WhenNoneUsable::All,
            lingering: &BTreeSet::from(["gone.svc".to_owned()]),
            balanced: &BTreeSet::from([VIP]),
            held: &ServiceAddresses::default(),
            serial: 7,
            most_addresses: MAX_ADDRESSES,
        }));
        // There are many networks, so that none of them exceeds its share.
        let network = |n| {
            Some(IpNet::from(
                ipnet::Ipv4Net::new([10, 210, n, 0].into(), 24).ok()?,
            ))
        };
        let resolver = Arc::new(Resolver::new(
            Arc::new(ArcSwap::new(Arc::clone(&zone))),
            Arc::new(ArcSwap::from_pointee(Allowed::new(
                (0..=255).filter_map(network).collect(),
            ))),
            Arc::new(Upstream::new()),
        ));
        Self { zone, resolver }
    }

    /// Processes `input`.
    ///
    /// # Errors
    /// Returns the condition that does not hold.
    pub fn run(&self, input: &[u8]) -> Result<(), String> {
        let Some((how, bytes)) = input.split_first() else {
            return Ok(());
        };
        match how & UPSTREAM {
            0 => self.query(*how, bytes),
            _ => self.reply_of_upstream(*how, bytes),
        }
    }

    fn query(&self, how: u8, query: &[u8]) -> Result<(), String> {
        let transport = match how & TCP {
            0 => Transport::Udp,
            _ => Transport::Tcp,
        };
        let stranger = how & STRANGER == STRANGER;
        let mut reply = Vec::new();
        let client: IpAddr = match stranger {
            true => Ipv4Addr::new(192, 0, 2, 1).into(),
            // There are so many clients that none of them exceeds its rate.
            false => Ipv4Addr::from(0x0ad2_0000 | (spread(query) & 0xffff)).into(),
        };
        let outcome =
            QueryContext::new(&self.resolver).answer(query, client, transport, &mut reply);
        holds(
            !stranger || matches!(outcome, Outcome::Silent),
            "a stranger is answered",
        )?;
        let due = !stranger && query.len() >= 12 && query.get(2).is_some_and(|f| f & 0x80 == 0);
        match outcome {
            Outcome::Replied => check(query, &reply, transport),
            Outcome::Silent => {
                holds(reply.is_empty(), "silence, and a reply")?;
                holds(!due, "no reply to a query")
            }
            Outcome::Busy => holds(reply.is_empty(), "no place, and a reply"),
            Outcome::FullPath(place) => {
                holds(reply.is_empty(), "a reply, and another one to come")?;
                let (sender, replies) = std::sync::mpsc::channel();
                let job = Job {
                    query: clipped(query),
                    source: SocketAddr::new(client, 4711),
                    transport,
                    place,
                    deliver: Box::new(move |reply: Reply| drop(sender.send(reply.message))),
                };
                match begin(Arc::clone(&self.resolver), job) {
                    Some(_) => self.forwarded(how, query, transport),
                    None => match replies.try_recv() {
                        Ok(reply) => check(query, &reply, transport),
                        Err(_) => holds(!due, "no reply to a query"),
                    },
                }
            }
        }?;
        self.same_both_ways(how, query, transport)
    }

    /// Checks the reply to a forwarded query, with one of several answers of the upstreams.
    fn forwarded(&self, how: u8, query: &[u8], transport: Transport) -> Result<(), String> {
        let FullOutcome::Forward(pending) = handle(&self.zone, query, transport, 0) else {
            return Err("forwarded by one way only".into());
        };
        let said = match how >> ENTROPY {
            0 => Forwarded::failure(),
            1 => Forwarded {
                code: ResponseCode::NXDomain,
                ..Forwarded::default()
            },
            n => long_answer(&pending, 1 << n),
        };
        check(query, &pending.finish(said), transport)
    }

    /// Checks that the fast path and the full path give the same answer.
    fn same_both_ways(&self, how: u8, query: &[u8], transport: Transport) -> Result<(), String> {
        let entropy = u64::from(how >> ENTROPY);
        let mut short = Vec::new();
        match fast_path::answer(&self.zone, query, transport, entropy, &mut short) {
            FastPath::NeedsFullParse => Ok(()),
            FastPath::Forward => {
                fast_path::fail(query, &mut short);
                check(query, &short, transport)?;
                fast_path::refuse(query, &mut short);
                check(query, &short, transport)?;
                match handle(&self.zone, query, transport, entropy) {
                    FullOutcome::Forward(pending) => {
                        let full = pending.refuse();
                        let (short, full) = (Message::from_vec(&short), Message::from_vec(&full));
                        holds(short.ok() == full.ok(), "two ways, two refusals")
                    }
                    // Queries of this type are not forwarded.
                    FullOutcome::Reply(_) => Ok(()),
                    FullOutcome::Silence(_) => Err("a refusal, and silence".into()),
                }
            }
            FastPath::Replied => match handle(&self.zone, query, transport, entropy) {
                FullOutcome::Reply(full) => {
                    let (short, full) = (Message::from_vec(&short), Message::from_vec(&full));
                    holds(short.ok() == full.ok(), "two ways, two answers")
                }
                FullOutcome::Forward(_) | FullOutcome::Silence(_) => {
                    Err("answered by one way only".into())
                }
            },
        }
    }

    /// Checks the processing of `bytes` as the response of an upstream.
    fn reply_of_upstream(&self, how: u8, bytes: &[u8]) -> Result<(), String> {
        let name = Name::from_ascii(ASKED).map_err(|e| e.to_string())?;
        let asked = Question::new(name, RecordType::A);
        let form = Form {
            mixed: true,
            edns: how >> ENTROPY != 0,
        };
        let stream = how & TCP != 0;
        let Ok(response) = Message::from_vec(bytes) else {
            return Ok(());
        };
        let Received::Answer(mut answer) = read(&asked, form, response, stream) else {
            return Ok(());
        };
        let cut = bytes.get(2).is_none_or(|flags| flags & 2 != 0);
        holds(stream || !cut, "what is cut counts as an answer")?;
        answer.strip(&self.zone);
        holds(
            !answer.strip(&self.zone).is_any(),
            "something that points into the mesh is left",
        )?;
        let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(asked.name, asked.record_type));
        let query = query.to_vec().map_err(|e| e.to_string())?;
        for transport in [Transport::Udp, Transport::Tcp] {
            let FullOutcome::Forward(pending) = handle(&self.zone, &query, transport, 0) else {
                return Err("a name of elsewhere is not forwarded".into());
            };
            let from = Source::Upstream(SocketAddr::from(([192, 0, 2, 53], 53)));
            let answer = answer.clone().aged(|ttl| ttl / 2, from);
            check(&query, &pending.finish(answer), transport)?;
        }
        Ok(())
    }
}

impl Default for QueryFuzz {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for QueryFuzz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryFuzz").finish_non_exhaustive()
    }
}

/// Checks whether `reply` is a valid reply to `query`.
fn check(query: &[u8], reply: &[u8], transport: Transport) -> Result<(), String> {
    let message = Message::from_vec(reply).map_err(|error| format!("no message: {error}"))?;
    let asked = Message::from_vec(query).ok();
    holds(
        query.get(2).is_some_and(|f| f & 0x80 == 0),
        "a reply to a reply",
    )?;
    holds(
        message.metadata.message_type == MessageType::Response,
        "no reply",
    )?;
    holds(reply.get(..2) == query.get(..2), "another number")?;
    let kind = |bytes: &[u8]| bytes.get(2).map(|flags| flags & 0x79);
    holds(kind(reply) == kind(query), "another kind of message, or RD")?;
    let code = message.metadata.response_code;
    match (message.queries.as_slice(), &asked) {
        ([], _) => holds(
            matches!(
                code,
                ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::ServFail
            ),
            "no question, and no reason for it",
        )?,
        ([ours], Some(asked)) => match asked.queries.as_slice() {
            [theirs] => holds(
                ours == theirs && ours.name().eq_case(theirs.name()),
                "another question",
            )?,
            _ => return Err("a question of many or none".into()),
        },
        // The query has malformed options, which are ignored.
        ([_], None) => {}
        _ => return Err("more than one question".into()),
    }
    let edns = asked.as_ref().and_then(|asked| asked.edns.as_ref());
    if transport == Transport::Udp {
        let room = edns.map_or(PLAIN_UDP, |edns| edns.max_payload());
        // The OPT record of a query that cannot be parsed may still be valid.
        let room = match &asked {
            Some(_) => room.clamp(PLAIN_UDP, MAX_UDP),
            None => MAX_UDP,
        };
        holds(reply.len() <= room.into(), "longer than the client takes")?;
    } else {
        holds(!message.metadata.truncation, "cut, over a stream")?;
    }
    let bare = message.queries.is_empty();
    holds(
        bare || asked.is_none() || message.edns.is_some() == edns.is_some(),
        "EDNS of one side only",
    )
}

fn holds(condition: bool, otherwise: &str) -> Result<(), String> {
    condition.then_some(()).ok_or_else(|| otherwise.to_owned())
}

/// Returns an answer with this many addresses.
fn long_answer(pending: &Pending, records: u8) -> Forwarded {
    let name = &pending.question.name;
    let answers = (0..records).map(|n| {
        let data = RData::A(Ipv4Addr::new(192, 0, 2, n).into());
        Record::from_rdata(name.clone(), 60, data)
    });
    Forwarded {
        answers: answers.collect(),
        ..Forwarded::default()
    }
}

/// Returns the FNV-1a hash, by which different inputs belong to different clients.
fn spread(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 77);

fn id(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn mesh_addresses() -> MeshAddresses {
    let v4 = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 210, 0, 0), 16);
    let v6 = ipnet::Ipv6Net::new_assert([0xfd00, 1, 2, 0, 0, 0, 0, 0].into(), 48);
    MeshAddresses {
        prefix_v4: v4,
        prefix_v6: v6,
        node_block_v4: 24,
        node_block_v6: 64,
    }
}

/// Three nodes; a service on each, one of a project, one with an address of its own, one that is down, one of sixty.
fn netmap() -> Option<Netmap> {
    let addresses = mesh_addresses();
    let mut netmap = Netmap {
        mesh: Some(Mesh {
            id: MESH_ID.into(),
            version: 1,
            domain: label("mesh")?,
            addresses,
            coordinators: vec![],
        }),
        ..Netmap::default()
    };
    for n in 1..=3u8 {
        let block = addresses.block(n.into())?;
        let member = Member {
            id: id(n),
            name: label(&format!("n{n}"))?,
            issued_at: UnixSeconds(n.into()),
            tags: vec![],
            wireguard_key: WireGuardKey([n; 32]),
            block,
            endpoints: vec![],
            without_ipv6: false,
            speaks_paths: false,
            relays: vec![],
            at_router: AtRouter::default(),
            stream: None,
        };
        netmap.members.insert(id(n), member);
        let own = vec![vec![block.node_v4().into(), block.node_v6().into()]];
        let crowd = (0..20).map(|i| IpAddr::from([10, 210, n, 100 + i]));
        for (service, project, vip, health, hosts) in [
            ("web", None, None, Health::Healthy, own.clone()),
            ("db", Some("shop"), None, Health::Healthy, own.clone()),
            ("vip", None, Some(VIP), Health::Healthy, own.clone()),
            ("down", None, None, Health::Unhealthy, own),
            (
                "crowd",
                None,
                None,
                Health::Healthy,
                crowd.map(|a| vec![a]).collect(),
            ),
        ] {
            let project = match project {
                Some(project) => Some(label(project)?),
                None => None,
            };
            let name = label(service)?;
            let hosts = (0..).zip(hosts);
            let instances: Option<Vec<_>> = hosts
                .map(|(i, addresses)| instance(n, i, addresses, health))
                .collect();
            let service = Service {
                id: Service::id_of(&id(n), project.as_ref(), &name),
                version: 1,
                node: id(n),
                name,
                project,
                service_address: vip,
                instances: instances?,
            };
            netmap.services.insert(service.id.clone(), service);
        }
    }
    Some(netmap)
}

fn instance(node: u8, place: u16, addresses: Vec<IpAddr>, health: Health) -> Option<Instance> {
    let port = |number: u16, name: Option<Label>| {
        Some(Port {
            number: number.try_into().ok()?,
            protocol: Protocol::Tcp,
            name,
        })
    };
    Some(Instance {
        id: label(&format!("n{node}-{place}"))?,
        addresses,
        ports: vec![port(80, None)?, port(9187, Some(label("metrics")?))?],
        health,
        weight: 10,
        priority: 0,
        source: crate::records::kinds::Source::Cli,
        allow: vec![],
        public: vec![],
    })
}

fn label(text: &str) -> Option<Label> {
    Label::parse(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Inputs that fuzzing found to go different ways, and whatever once did not hold.
    #[test]
    fn the_corpus_holds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/dns_message");
        let trial = QueryFuzz::new();
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus is kept") {
            let path = entry.expect("readable").path();
            let input = std::fs::read(&path).expect("readable");
            if let Err(what) = trial.run(&input) {
                panic!("{}: {what}: {input:?}", path.display());
            }
            count += 1;
        }
        assert!(count > 100, "{count}");
    }
}
