//! The problems of a node, with remedies.

use std::collections::BTreeMap;
use std::time::Instant;

use super::peers::{narrow_paths, unreached};
use crate::model::text::listed;
use crate::model::{PublicKey, ServiceName};
use crate::node::disk::audit_problem;
use crate::node::joined::JoinedNode;
use crate::node::replica::Replica;
use crate::protocol::local::Problem;
use crate::records::netmap::Netmap;

/// The maximum number of contested services that get a problem of their own, and of nodes that such a problem names.
const MAX_CONTESTED: usize = 8;
/// The maximum number of services without a right that a problem names.
const MAX_UNLAWFUL: usize = 8;

/// What a problem is about, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum ProblemKind {
    /// The node was removed, or the machine is a copy of another node.
    Membership,
    /// The control stream.
    Coordinator,
    /// The tunnel device and the machine's network.
    Device,
    Dns,
    Disk,
    /// Records that are not published, or not accepted.
    Records,
    /// Services, containers and the firewall that leads to them.
    Services,
    /// Policies that this node does not understand, and services that they do not permit.
    Policy,
    /// Peers that are not reached, and narrow paths.
    Peers,
    /// A join that nobody waits for.
    Join,
}

impl ProblemKind {
    pub(in crate::node) const ALL: [Self; 10] = [
        Self::Membership,
        Self::Coordinator,
        Self::Device,
        Self::Dns,
        Self::Disk,
        Self::Records,
        Self::Services,
        Self::Policy,
        Self::Peers,
        Self::Join,
    ];

    /// The value of the label.
    pub(in crate::node) fn as_str(self) -> &'static str {
        match self {
            Self::Membership => "membership",
            Self::Coordinator => "coordinator",
            Self::Device => "device",
            Self::Dns => "dns",
            Self::Disk => "disk",
            Self::Records => "records",
            Self::Services => "services",
            Self::Policy => "policy",
            Self::Peers => "peers",
            Self::Join => "join",
        }
    }
}

/// Problems, and what each one is about.
#[derive(Debug, Default)]
struct Found(Vec<(ProblemKind, Problem)>);

impl Found {
    fn extend(&mut self, kind: ProblemKind, problems: impl IntoIterator<Item = Problem>) {
        let problems = problems.into_iter().map(|problem| (kind, problem));
        self.0.extend(problems);
    }
}

/// What each problem of a node is about.
pub(in crate::node) fn problem_counts(
    node: &JoinedNode,
    damaged_services: Option<&str>,
) -> Vec<ProblemKind> {
    let flagged = node.names.zone().load().flagged();
    let found = found(node, damaged_services, flagged).0;
    found.into_iter().map(|(kind, _)| kind).collect()
}

pub(super) fn problems(
    node: &JoinedNode,
    damaged_services: Option<&str>,
    flagged: usize,
) -> Vec<Problem> {
    let found = found(node, damaged_services, flagged).0;
    found.into_iter().map(|(_, problem)| problem).collect()
}

fn found(node: &JoinedNode, damaged_services: Option<&str>, flagged: usize) -> Found {
    let mut problems = Found::default();
    // This problem is the first, because it causes most of the others.
    if node.replica.is_removed() {
        problems.extend(ProblemKind::Membership, [problem(
            "this node was removed from the mesh",
            "the administrator removed it, so no peer accepts its packets, and its names no longer resolve"
                .into(),
            "run `meshctl leave`; if the removal was a mistake, run `meshctl join` with a new token afterwards",
        )]);
    }
    problems.extend(ProblemKind::Policy, node.device.policy.problem());
    problems.extend(ProblemKind::Policy, node.device.policy.untried());
    let unlawful = unlawful(&node.netmap, &node.id());
    problems.extend(ProblemKind::Policy, unlawful);
    problems.extend(ProblemKind::Services, node.workloads.external_bridges());
    problems.extend(ProblemKind::Device, node.device.problems());
    let name_of = |id: &PublicKey| {
        let member = node.netmap.members.get(id);
        member.map_or_else(|| id.short(), |member| member.name.to_string())
    };
    let streams = node.device.streams.problems(name_of);
    problems.extend(ProblemKind::Device, streams);
    problems.extend(ProblemKind::Dns, node.resolver.refused());
    problems.extend(ProblemKind::Disk, node.disk.unwritten());
    problems.extend(ProblemKind::Disk, audit_problem(&node.disk.audit));
    problems.extend(ProblemKind::Records, node.own_records.problems());
    let now = Instant::now();
    problems.extend(ProblemKind::Records, node.replica.problems(now));
    let services = node.workloads.problems(&node.identity.block);
    problems.extend(ProblemKind::Services, services);
    if let Some((kind, problem)) = link_problem(&node.replica) {
        problems.extend(kind, [problem]);
    }
    problems.extend(ProblemKind::Disk, node.disk.lost());
    if let Some(why) = damaged_services {
        problems.extend(
            ProblemKind::Disk,
            [problem(
                "the services that were added with `meshctl service add` were lost",
                why.into(),
                "add them again with `meshctl service add`",
            )],
        );
    }
    if flagged > 0 {
        problems.extend(ProblemKind::Services, [problem(
            "some names are answered with instances that are not usable",
            format!("{flagged} name(s) have no instance that is healthy and reachable"),
            "look at `meshctl service list` for the instances that are unhealthy or not reachable",
        )]);
    }
    problems.extend(ProblemKind::Dns, node.resolver.problems());
    problems.extend(ProblemKind::Services, contested(&node.netmap));
    problems.extend(ProblemKind::Peers, narrow_paths(node));
    problems.extend(ProblemKind::Peers, unreached(node));
    problems
}

/// What is wrong with the connection to the coordinator.
fn link_problem(replica: &Replica) -> Option<(ProblemKind, Problem)> {
    if replica.is_removed() {
        // The removal is the first problem, so the others about the coordinator are left out.
        return None;
    }
    let link = replica.link();
    if link.is_duplicate() {
        let duplicate = problem(
            "this machine is a copy of another node, which continues; this machine does not connect to the mesh",
            "another machine with the same keys is connected to the coordinator".into(),
            "run `meshctl leave` on this machine, then `meshctl join` with a new token",
        );
        return Some((ProblemKind::Membership, duplicate));
    }
    if link.is_connected() {
        return None;
    }
    let away = problem(
        "the coordinator is not connected; names and tunnels continue to work, and changes arrive only from the peers that this node reaches",
        link.failure().unwrap_or("no connection yet").into(),
        "start mesh-coordinator, or check that this host can reach it",
    );
    Some((ProblemKind::Coordinator, away))
}

fn problem(what: &str, why: String, fix: &str) -> Problem {
    Problem {
        what: what.into(),
        why,
        fix: fix.into(),
    }
}

/// The problems of services whose nodes may not serve them: one for this node, `own`, and one for each other node.
pub(super) fn unlawful(netmap: &Netmap, own: &PublicKey) -> Vec<Problem> {
    // Under a policy that this node does not understand nobody may serve a name. That is one problem, and not one for each node.
    if netmap.rules.policy().is_none() {
        return Vec::new();
    }
    let mut by_node: BTreeMap<PublicKey, Vec<&ServiceName>> = BTreeMap::new();
    for unlawful in netmap.unlawful.values() {
        let services = by_node.entry(unlawful.node).or_default();
        services.push(&unlawful.service);
    }
    let mut problems = Vec::new();
    if let Some(services) = by_node.remove(own) {
        problems.push(Problem {
            what: format!("this node may not serve {}", listed(services, MAX_UNLAWFUL)),
            why: "no rule [[serve]] of the policy permits it, so no node answers with its instances, and no packet reaches them as that service"
                .into(),
            fix: "give this node a tag that the rule names, by joining it with another token; permit it with `meshctl policy apply`; or end the service"
                .into(),
        });
    }
    let more = by_node.len().saturating_sub(MAX_UNLAWFUL);
    for (node, services) in by_node.into_iter().take(MAX_UNLAWFUL) {
        let name = netmap.members.get(&node).map(|member| &member.name);
        let name = name.map_or_else(|| node.short(), ToString::to_string);
        problems.push(Problem {
            what: format!(
                "the node {name} offers {}, which it may not serve",
                listed(services, MAX_UNLAWFUL)
            ),
            why: "no rule [[serve]] of the policy permits it; its instances are left out of all answers".into(),
            fix: "if it is to serve that, permit it with `meshctl policy apply`; otherwise end the service there, or remove the node"
                .into(),
        });
    }
    problems.extend((more > 0).then(|| Problem {
        what: format!("{more} more nodes offer services that they may not serve"),
        why: "no rule [[serve]] of the policy permits it; their instances are left out of all answers".into(),
        fix: "correct the others first".into(),
    }));
    problems
}

/// The problems of services that are served by nodes without a common tag. One of the nodes may serve by mistake or be
/// hostile.
pub(super) fn contested(netmap: &Netmap) -> Vec<Problem> {
    let contested = netmap.contested();
    let named = contested.iter().take(MAX_CONTESTED);
    let more = contested.len().saturating_sub(MAX_CONTESTED);
    let more = (more > 0).then(|| Problem {
        what: format!("{more} more services are served by nodes that have no tag in common"),
        why: "clients of these services are sent to all of their nodes alike".into(),
        fix: "see `meshctl service list` for the nodes that serve them".into(),
    });
    let problems = named.map(|contested| {
        Problem {
            what: format!(
                "the service {} is served by nodes that have no tag in common: {}",
                contested.service,
                listed(&contested.nodes, MAX_CONTESTED)
            ),
            why: "clients of the service are sent to all of these nodes alike, although their tags do not show that they belong together"
                .into(),
            fix: "end the service on the nodes that must not serve it, or join its nodes with tokens that have a tag in common"
                .into(),
        }
    });
    problems.chain(more).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::Policy;
    use crate::records::netmap::Rules;
    use crate::testbed::records as build;

    /// The nodes n1 to n3 offer `db` and `web`, and only n1 may serve `db`.
    fn netmap() -> Netmap {
        let text = "language = 1\n[[serve]]\nnames = [\"db\"]\nby = [\"node:n1\"]\n";
        let policy = Policy::parse(text).expect("a policy");
        let mut netmap = Netmap {
            rules: Rules::Policy(Arc::new(policy)),
            ..Netmap::default()
        };
        for n in 1..=3u8 {
            let block = build::block(n.into());
            let member = build::member(&build::id(n), &format!("n{n}"), block);
            netmap.members.insert(member.id, member);
            for name in ["db", "web"] {
                let instance = build::instance("i", vec![block.node_v4().into()]);
                let service = build::service(&build::id(n), name, vec![instance]);
                netmap.replace(&service.id, Some(&service));
            }
        }
        netmap
    }

    #[test]
    fn a_service_without_the_right_to_its_name_is_a_problem_at_both_ends() {
        let what = |own: u8| -> Vec<String> {
            let problems = unlawful(&netmap(), &build::id(own));
            let mut what: Vec<String> = problems.into_iter().map(|p| p.what).collect();
            what.sort();
            what
        };
        let of = |node: &str| format!("the node {node} offers db, which it may not serve");
        assert_eq!(what(1), [of("n2"), of("n3")]);
        assert_eq!(what(2), [of("n3"), "this node may not serve db".to_owned()]);
    }

    #[test]
    fn under_a_policy_that_is_not_understood_the_services_are_no_problems_of_their_own() {
        let netmap = Netmap {
            rules: Rules::Closed,
            ..netmap()
        };
        assert_eq!(unlawful(&netmap, &build::id(1)), []);
    }
}
