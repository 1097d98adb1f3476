//! The problems of a node, with remedies.

use std::time::Instant;

use super::peers::{narrow_paths, unreached};
use super::policy::policy_problems;
use crate::discovery::sites::{MAX_HOSTS_OF_NODE, Sites};
use crate::model::PublicKey;
use crate::model::text::listed;
use crate::node::disk::audit_problem;
use crate::node::joined::JoinedNode;
use crate::node::replica::Replica;
use crate::node::state::ServicesFault;
use crate::protocol::local::Problem;
use crate::records::netmap::Netmap;

/// The maximum number of contested services that get a problem of their own, and of nodes that such a problem names.
const MAX_CONTESTED: usize = 8;
/// The maximum number of disputed host names that get a problem of their own, and of services and nodes that such a problem names.
const MAX_DISPUTED: usize = 8;

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
    /// Policies that a node does not understand, and what they do not permit or cannot protect.
    Policy,
    /// Peers that are not reached, and narrow paths.
    Peers,
    /// A join that nobody waits for.
    Join,
    /// Guests that this node does not let in.
    Guests,
}

impl ProblemKind {
    pub(in crate::node) const ALL: [Self; 11] = [
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
        Self::Guests,
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
            Self::Guests => "guests",
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
    services_fault: Option<&ServicesFault>,
) -> Vec<ProblemKind> {
    let flagged = node.names.zone().load().flagged();
    let found = found(node, services_fault, flagged).0;
    found.into_iter().map(|(kind, _)| kind).collect()
}

pub(super) fn problems(
    node: &JoinedNode,
    services_fault: Option<&ServicesFault>,
    flagged: usize,
) -> Vec<Problem> {
    let found = found(node, services_fault, flagged).0;
    found.into_iter().map(|(_, problem)| problem).collect()
}

fn found(node: &JoinedNode, services_fault: Option<&ServicesFault>, flagged: usize) -> Found {
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
    problems.extend(ProblemKind::Policy, policy_problems(node));
    let routing = &node.device.routing;
    let routes = routing.problems(&node.netmap, &node.identity.name);
    problems.extend(ProblemKind::Policy, routes);
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
    problems.extend(ProblemKind::Disk, services_fault.map(unknown_services));
    if flagged > 0 {
        problems.extend(ProblemKind::Services, [problem(
            "some names are answered with instances that are not usable",
            format!("{flagged} name(s) have no instance that is healthy and reachable"),
            "look at `meshctl service list` for the instances that are unhealthy or not reachable",
        )]);
    }
    problems.extend(ProblemKind::Dns, node.resolver.problems());
    problems.extend(ProblemKind::Services, contested_names(&node.netmap));
    problems.extend(ProblemKind::Peers, narrow_paths(node));
    problems.extend(ProblemKind::Peers, unreached(node));
    problems.extend(ProblemKind::Guests, node.device.guests.problems());
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

/// The problem of services that were added by command and are not known.
fn unknown_services(fault: &ServicesFault) -> Problem {
    match fault {
        ServicesFault::Damaged(why) => problem(
            "the services that were added with `meshctl service add` were lost",
            why.clone(),
            "add them again with `meshctl service add`",
        ),
        ServicesFault::Unread(why) => problem(
            "the services that were added with `meshctl service add` cannot be read",
            why.clone(),
            "correct that and restart meshd, before you change these services",
        ),
    }
}

fn problem(what: &str, why: String, fix: &str) -> Problem {
    Problem {
        what: what.into(),
        why,
        fix: fix.into(),
    }
}

/// The problems of names that several nodes or services want: names of services, and host names.
fn contested_names(netmap: &Netmap) -> impl Iterator<Item = Problem> {
    let contested = contested(netmap);
    contested.into_iter().chain(disputed(netmap))
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

/// The problems of the host names of `mesh.public`: several services ask for one, or a node has too many.
fn disputed(netmap: &Netmap) -> Vec<Problem> {
    let Sites {
        disputed, crowded, ..
    } = Sites::of(netmap, |_| true);
    let crowded = (!crowded.is_empty()).then(|| Problem {
        what: format!(
            "some host names of {} are left out",
            listed(&crowded, MAX_DISPUTED)
        ),
        why: format!("the instances of a node have {MAX_HOSTS_OF_NODE} host names at most"),
        fix:
            "use a wildcard in the label mesh.public, or run some of the containers on another node"
                .into(),
    });
    let more = disputed.len().saturating_sub(MAX_DISPUTED);
    let more = (more > 0).then(|| Problem {
        what: format!("{more} more host names are asked for by several services"),
        why: "each one leads to the service of the node that joined first".into(),
        fix: "correct the others first".into(),
    });
    let named = disputed.iter().take(MAX_DISPUTED);
    let problems = named.map(|disputed| {
        let others = listed(&disputed.others, MAX_DISPUTED);
        Problem {
            what: format!(
                "the host name {} is asked for by several services: {} and {others}",
                disputed.host, disputed.kept
            ),
            why: format!(
                "a host name belongs to one service; it leads to {}, whose node joined first, and not to {others} on {}",
                disputed.kept,
                listed(&disputed.nodes, MAX_DISPUTED)
            ),
            fix: "remove the host name from the label mesh.public of the service that must not have it, or from its settings".into(),
        }
    });
    problems.chain(more).chain(crowded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PublicHost;
    use crate::model::time::UnixSeconds;
    use crate::testbed::records as build;

    #[test]
    fn a_host_name_of_two_services_is_a_problem_that_names_both() {
        let host = PublicHost::parse("shop.example.com").expect("a literal");
        let mut netmap = Netmap::default();
        for (n, name) in [(1u8, "web"), (2, "api"), (3, "web")] {
            let (id, block) = (build::id(n), build::block(n.into()));
            let mut member = build::member(&id, &format!("n{n}"), block);
            member.issued_at = UnixSeconds(n.into());
            netmap.members.insert(member.id, member);
            let mut instance = build::instance("i", vec![block.node_v4().into()]);
            instance.public = vec![host.clone()];
            let service = build::service(&id, name, vec![instance]);
            netmap.replace(&service.id, Some(&service));
        }
        let problems = disputed(&netmap);
        let [problem] = problems.as_slice() else {
            panic!("{problems:?}");
        };
        assert_eq!(
            problem.what,
            "the host name shop.example.com is asked for by several services: web and api"
        );
        assert_eq!(
            problem.why,
            "a host name belongs to one service; it leads to web, whose node joined first, and not to api on n2"
        );
    }
}
