//! The coordinator keeps the block that it leased to a node at its join for that node.

use crate::kit::{Coordinator, Member, record};

fn node_at(member: &Member, block: &meshd::model::address::Block) -> meshd::records::Envelope {
    let key = member.identity.wireguard_key();
    record::node(member.id(), key, block).signed_by(member.key())
}

#[tokio::test]
async fn no_member_takes_the_block_of_a_node_that_has_joined_and_said_nothing_yet() {
    let coordinator = Coordinator::start();
    let thief = coordinator.join("thief").await;
    let mut stream = thief.stream(&coordinator).await;
    let own = node_at(&thief, &thief.block);
    // The thief claims the block before and after it has published its own record.
    let joiner = coordinator.join("joiner").await;
    for records in [
        vec![node_at(&thief, &joiner.block)],
        vec![own],
        vec![node_at(&thief, &joiner.block)],
    ] {
        let is_own = records[0].payload.contains(&thief.block.v4.to_string());
        let answer = stream.publish(records).await;
        assert_eq!(answer.accepted(), u32::from(is_own), "{answer:?}");
    }
    let record = node_at(&joiner, &joiner.block);
    let mut stream = joiner.stream(&coordinator).await;
    assert_eq!(stream.publish(vec![record]).await.accepted(), 1);
}

#[tokio::test]
async fn no_member_waits_at_the_block_that_the_next_node_will_have() {
    let coordinator = Coordinator::start();
    let thief = coordinator.join("thief").await;
    let mut stream = thief.stream(&coordinator).await;
    for index in 2..6 {
        let block = coordinator.addresses().block(index).expect("in the plan");
        let answer = stream.publish(vec![node_at(&thief, &block)]).await;
        assert_eq!(answer.accepted(), 0, "{answer:?}");
        assert!(
            answer
                .refused()
                .iter()
                .any(|why| why.contains("not leased")),
            "{answer:?}"
        );
    }
    let joiner = coordinator.join("joiner").await;
    let record = node_at(&joiner, &joiner.block);
    let mut stream = joiner.stream(&coordinator).await;
    assert_eq!(stream.publish(vec![record]).await.accepted(), 1);
}
