//! The paths between all nodes, from the reports of the nodes.

use std::time::Instant;

use crate::node::joined::{JoinedNode, own_row};
use crate::page::paths::PathsBetween;

/// The paths of this node, and those that other nodes have reported lately.
pub(in crate::node) fn paths_between(node: &JoinedNode) -> PathsBetween {
    let now = Instant::now();
    let members = &node.netmap.members;
    let own = members.get(&node.id());
    let own = own.map(|own| (own.block.node_v4(), own_row(node, now)));
    let told = node.device.asked.rows.told(now).filter_map(|(id, paths)| {
        let member = members.get(id)?;
        Some((member.block.node_v4(), paths.to_vec()))
    });
    let names = members.values();
    let names = names.map(|member| (member.block.node_v4(), member.name.clone()));
    PathsBetween {
        names: names.collect(),
        rows: told.chain(own).collect(),
    }
}
