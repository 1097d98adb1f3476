//! Looks up the host names of services outside the mesh.
//!
//! This node's own forwarder asks the upstreams. The resolver of the machine may be this node itself, and its cache is not known.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::sync::mpsc;

use crate::dns::Upstream;
use crate::dns::forward::{Forwarded, Source};
use crate::dns::query::Question;
use crate::model::HostName;
use crate::os::tasks::Tasks;
use crate::services::named::{Answered, MAX_NAMES};

/// The maximum number of aliases from a name to its addresses.
const MAX_ALIASES: usize = 16;

/// What a name was answered with, or why it was not.
pub(super) type NameAnswer = (HostName, Result<Answered, String>);

/// The lookups in progress.
pub(super) struct NameLookups {
    answers: mpsc::Sender<NameAnswer>,
    received: Option<mpsc::Receiver<NameAnswer>>,
}

impl NameLookups {
    pub(super) fn new() -> Self {
        let (answers, received) = mpsc::channel(MAX_NAMES);
        Self {
            answers,
            received: Some(received),
        }
    }

    /// What lookups are answered with, at the first call.
    pub(super) fn take_answers(&mut self) -> mpsc::Receiver<NameAnswer> {
        let closed = || mpsc::channel(1).1;
        self.received.take().unwrap_or_else(closed)
    }

    /// Looks up `name`.
    pub(super) fn look_up(&self, upstream: &Arc<Upstream>, name: HostName) {
        let (upstream, answers) = (Arc::clone(upstream), self.answers.clone());
        Tasks::current().spawn_child("lookup of a service outside", async move {
            let answered = match Name::from_ascii(format!("{name}.")) {
                Ok(asked) => {
                    let found = upstream
                        .ask(&Question::new(asked.clone(), RecordType::A))
                        .await;
                    read(&found, &asked)
                }
                Err(error) => Err(error.to_string()),
            };
            // The node has stopped if nobody receives this.
            let _ = answers.send((name, answered)).await;
        });
    }
}

/// The addresses in an answer to the question for `asked`.
fn read(found: &Forwarded, asked: &Name) -> Result<Answered, String> {
    match found.source {
        Source::Upstream(_) | Source::Cache { .. } => {}
        // Of a stale answer nothing new is learned.
        Source::Nobody | Source::Stale { .. } => return Err("no upstream answers".to_owned()),
    }
    if found.code != ResponseCode::NoError {
        return Err(format!("the upstream answers {}", found.code.to_str()));
    }
    let (mut owner, mut ttl) = (asked, u32::MAX);
    for _ in 0..MAX_ALIASES {
        let alias = found.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *owner => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, of_alias)) = alias else {
            break;
        };
        (owner, ttl) = (target, ttl.min(of_alias));
    }
    let mut addresses = BTreeSet::new();
    for record in &found.answers {
        if let RData::A(address) = &record.data
            && record.name == *owner
        {
            addresses.insert(address.0);
            ttl = ttl.min(record.ttl);
        }
    }
    if addresses.is_empty() {
        return Err("the name has no IPv4 address".to_owned());
    }
    Ok(Answered {
        addresses,
        ttl: Duration::from_secs(ttl.into()),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::CNAME;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a literal")
    }

    fn address(owner: &str, last: u8, ttl: u32) -> Record {
        let address = Ipv4Addr::new(10, 0, 0, last);
        Record::from_rdata(name(owner), ttl, RData::A(address.into()))
    }

    fn alias(owner: &str, target: &str, ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn found(answers: Vec<Record>) -> Forwarded {
        let mut found = Forwarded::failure();
        found.code = ResponseCode::NoError;
        found.answers = answers;
        found.source = Source::Upstream(SocketAddr::from(([192, 0, 2, 53], 53)));
        found
    }

    fn read_db(found: &Forwarded) -> Result<Answered, String> {
        read(found, &name("db.example.net."))
    }

    #[test]
    fn the_addresses_at_the_end_of_the_aliases_are_read_with_the_shortest_ttl() {
        let answer = found(vec![
            address("node.cloud.example.", 5, 60),
            alias("a.cloud.example.", "node.cloud.example.", 10),
            alias("DB.example.net.", "a.cloud.example.", 300),
            address("other.example.", 9, 1),
            address("node.cloud.example.", 6, 30),
        ]);
        let expected = Answered {
            addresses: BTreeSet::from([[10, 0, 0, 5].into(), [10, 0, 0, 6].into()]),
            ttl: Duration::from_secs(10),
        };
        assert_eq!(read_db(&answer), Ok(expected));
    }

    #[test]
    fn answers_without_an_address_and_stale_ones_are_failures_with_a_reason() {
        let circle = vec![
            alias("db.example.net.", "a.example.net.", 5),
            alias("a.example.net.", "db.example.net.", 5),
        ];
        let no_address = Err("the name has no IPv4 address".to_owned());
        for answers in [vec![], circle, vec![address("other.example.", 9, 1)]] {
            assert_eq!(read_db(&found(answers)), no_address);
        }
        let good = || found(vec![address("db.example.net.", 5, 60)]);
        assert!(read_db(&good()).is_ok());
        let mut stale = good();
        stale.source = Source::Stale {
            from: SocketAddr::from(([192, 0, 2, 53], 53)),
            age: Duration::from_secs(90),
        };
        assert_eq!(read_db(&stale), Err("no upstream answers".to_owned()));
        let mut no_such_name = found(vec![]);
        no_such_name.code = ResponseCode::NXDomain;
        let said = read_db(&no_such_name).expect_err("there is no such name");
        assert!(said.starts_with("the upstream answers "), "{said}");
        assert_eq!(
            read_db(&Forwarded::failure()),
            Err("no upstream answers".to_owned())
        );
    }
}
