//! A coordinator killed at any moment: what it acknowledged is there.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshd::model::PublicKey;
use meshd::node::control::join::join;
use meshd::protocol::JoinToken;
use meshd::protocol::admin::{NodeList, TokenList};
use meshd::records::kinds::Record;

use crate::coordinator::Coordinator;
use crate::joins::request;

/// Nodes that join at once, each again and again.
const WRITERS: usize = 4;
/// A mesh with room for all of them.
pub(crate) const ROOM: &str = "[mesh]\nprefix_v4 = \"10.0.0.0/8\"\n";

/// Joins until the coordinator is gone; notes what it acknowledged.
pub(crate) async fn write(
    token: JoinToken,
    name: String,
    acknowledged: Arc<Mutex<Vec<(PublicKey, String)>>>,
) {
    for n in 0.. {
        let request = request(&token, &format!("{name}-{n}"));
        let Ok((_, Record::Membership(member))) = Record::parse(&request.membership.payload) else {
            panic!("just made");
        };
        let Ok(answer) = join(&token.urls, token.pin, &request).await else {
            return;
        };
        acknowledged
            .lock()
            .expect("no panic")
            .push((member.id, answer.block.v4.to_string()));
    }
}

async fn kill_under_writes(rounds: usize) {
    let mut coordinator = Coordinator::start_with(ROOM);
    let token = coordinator.admin(&["token", "create", "--uses", "100000"]);
    let token = JoinToken::parse(token.trim()).expect("a token");
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for round in 0..rounds {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let (token, acknowledged) = (token.clone(), Arc::clone(&acknowledged));
                tokio::spawn(write(token, format!("n{round}-{n}"), acknowledged))
            })
            .collect();
        let pause = getrandom::u32().expect("the system has randomness") % 120_000;
        tokio::time::sleep(Duration::from_micros(pause.into())).await;
        coordinator.kill();
        for writer in writers {
            writer.await.expect("no panic");
        }
        coordinator.restart();
    }

    let nodes: NodeList =
        serde_json::from_str(&coordinator.admin(&["node", "list", "--json"])).expect("a list");
    let there: HashSet<PublicKey> = nodes.nodes.iter().map(|node| node.id).collect();
    let acknowledged = acknowledged.lock().expect("no panic");
    assert!(
        acknowledged.len() >= rounds,
        "{} in {rounds} rounds",
        acknowledged.len()
    );
    for (id, _) in acknowledged.iter() {
        assert!(there.contains(id), "{id:?} was acknowledged and is gone");
    }
    let blocks: BTreeSet<&String> = acknowledged.iter().map(|(_, block)| block).collect();
    assert_eq!(blocks.len(), acknowledged.len(), "a block was given twice");
    let tokens: TokenList =
        serde_json::from_str(&coordinator.admin(&["token", "list", "--json"])).expect("a list");
    let used = tokens
        .tokens
        .iter()
        .map(|token| token.used as usize)
        .sum::<usize>();
    assert_eq!(used, there.len(), "each member spent one use");
    eprintln!(
        "killed {rounds} times under {} acknowledged joins: all are there, and {} whose answer was cut off",
        acknowledged.len(),
        there.len() - acknowledged.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_coordinator_acknowledged_is_there() {
    kill_under_writes(25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; the short form runs always"]
async fn what_a_coordinator_killed_500_times_acknowledged_is_there() {
    kill_under_writes(500).await;
}
