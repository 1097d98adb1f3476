//! The policy of the mesh as the page shows it, and its problems, with remedies.

use std::collections::BTreeMap;

use super::denied::denied;
use crate::model::text::listed;
use crate::model::{Label, PublicKey, ServiceName};
use crate::node::joined::JoinedNode;
use crate::page::policy::PolicyFacts;
use crate::policy::MAX_KINDS;
use crate::protocol::local::Problem;
use crate::records::netmap::{Netmap, Rules};
use crate::records::subjects::{subjects, without_policies};

/// The maximum number of services without a right that a problem names.
const MAX_UNLAWFUL: usize = 8;
/// The maximum number of nodes that a problem names.
const MAX_NODES: usize = 8;

/// What the page shows of the policy.
pub(in crate::node) fn policy_facts(node: &JoinedNode) -> PolicyFacts {
    let policy = &node.device.policy;
    PolicyFacts {
        version: policy.version(),
        rules: policy.rules().clone(),
        is_trying: policy.is_trying(),
        subjects: subjects(&node.netmap),
        denied: Some(denied(node)),
    }
}

/// The problems of the policy, as this node keeps to it.
pub(super) fn policy_problems(node: &JoinedNode) -> Vec<Problem> {
    let policy = &node.device.policy;
    let mut problems: Vec<Problem> = policy.problem().into_iter().collect();
    problems.extend(policy.untried());
    problems.extend(unlawful(&node.netmap, &node.id()));
    let without = without_policies(node.replica.ledger());
    problems.extend(unprotected(&node.netmap.rules, &without));
    problems.extend(beyond(policy.table().beyond()));
    problems
}

/// The problem of members whose version of meshd knows no policies. `apply` refuses while there is one, but one can join later.
fn unprotected(rules: &Rules, without: &[Label]) -> Option<Problem> {
    if *rules == Rules::Open || without.is_empty() {
        return None;
    }
    let (nodes, one) = (listed(without, MAX_NODES), without.len() == 1);
    Some(Problem {
        what: if one {
            format!("the node {nodes} does not keep to the policy")
        } else {
            format!("the nodes {nodes} do not keep to the policy")
        },
        why: "the version of meshd there knows no policies: every member reaches all that is exposed there, and names resolve there to instances that may not serve them; all other nodes check what comes from there"
            .into(),
        fix: "install the version of meshd that this node has there; until then, stop services there that not every member may reach, or remove the node with `meshctl node remove`"
            .into(),
    })
}

/// The problem of nodes with more instances than rules can tell apart. `beyond` has the number of those that have no class.
fn beyond(beyond: &BTreeMap<Label, usize>) -> Option<Problem> {
    if beyond.is_empty() {
        return None;
    }
    let nodes = beyond.iter();
    let nodes = nodes.map(|(node, count)| format!("{node} ({count})"));
    Some(Problem {
        what: format!(
            "nothing reaches some instances, and they reach nothing, because they are too many for the policy: {}",
            listed(nodes, MAX_NODES)
        ),
        why: format!(
            "each node may have {MAX_KINDS} kinds of instances that differ in their names, ports or `mesh.allow`, and the mesh 65,534"
        ),
        fix: "end services on these nodes, or give instances that are alike the same names and ports; if nobody started so many there, remove the node with `meshctl node remove`"
            .into(),
    })
}

/// The problems of services whose nodes may not serve them: one for this node, `own`, and one for each other node.
fn unlawful(netmap: &Netmap, own: &PublicKey) -> Vec<Problem> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::Policy;
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

    #[test]
    fn a_node_of_a_version_without_policies_is_a_problem_as_soon_as_there_is_a_policy() {
        let rules = netmap().rules;
        let old = [build::label("old-1"), build::label("old-2")];
        assert_eq!(unprotected(&rules, &[]), None);
        assert_eq!(unprotected(&Rules::Open, &old), None);
        let what = |without| unprotected(&rules, without).map(|problem| problem.what);
        assert_eq!(
            what(&old[..1]).as_deref(),
            Some("the node old-1 does not keep to the policy")
        );
        assert_eq!(
            what(&old).as_deref(),
            Some("the nodes old-1, old-2 do not keep to the policy")
        );
    }

    #[test]
    fn a_node_with_too_many_kinds_of_instances_is_named_with_their_number() {
        assert_eq!(beyond(&BTreeMap::new()), None);
        let found = beyond(&BTreeMap::from([(build::label("n1"), 7)]));
        let what = found.expect("it is a problem").what;
        assert!(what.ends_with(": n1 (7)"), "{what}");
    }
}
