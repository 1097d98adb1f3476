//! Which way the kernel sends packets to the mesh's addresses, and what is wrong with it. Pure.
//!
//! A route of another program inside the mesh prefix, in any table that a rule leads to, takes packets away from the
//! tunnel, while the tunnel itself works. So the kernel is asked for the way of each peer's address, as for a packet of a
//! program: what it answers holds for all tables and rules.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::MAIN_TABLE;
use super::survey::{Route, RouteKind};
use crate::protocol::local::Problem;

/// Addresses named in one problem at most.
const MAX_NAMED: usize = 5;
/// Problems at most.
const MAX_PROBLEMS: usize = 8;
/// The tables that the kernel's own rules lead to: `local`, `main`, `default`.
const OWN_TABLES: [u32; 3] = [255, MAIN_TABLE, 253];

/// An address that the kernel is asked about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// The node, if the address is that of one.
    pub node: Option<String>,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{node} ({})", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// What the kernel answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The route that it takes.
    Route(Route),
    /// It has none: the text of its error.
    Refused(String),
}

/// A rule that says which table is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Rules are asked in this order.
    pub priority: u32,
    /// The destinations that it is for; all, if there is none.
    pub to: Option<IpNet>,
    /// The table it leads to; none: it discards.
    pub table: Option<u32>,
}

/// What takes packets away from the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Route(Route, Option<u32>),
    Rule(u32),
    Unknown(String),
}

/// What is wrong with the ways to `asked`, for a tunnel device called `own`; `rules` and `routes` are all of the machine.
/// One problem for each cause.
#[must_use]
pub(super) fn problems(
    own: &str,
    asked: &[(Target, Way)],
    rules: &[Rule],
    routes: &[Route],
) -> Vec<Problem> {
    let mut causes: BTreeMap<Cause, Vec<&Target>> = BTreeMap::new();
    for (target, way) in asked.iter().filter(|(_, way)| !is_right(own, way)) {
        let cause = match way {
            Way::Route(route) => Cause::Route(route.clone(), leading(route.table, target, rules)),
            Way::Refused(why) => {
                refusing(target, rules, routes).unwrap_or_else(|| Cause::Unknown(why.clone()))
            }
        };
        causes.entry(cause).or_default().push(target);
    }
    causes
        .iter()
        .take(MAX_PROBLEMS)
        .map(|(cause, targets)| problem(own, cause, targets))
        .collect()
}

/// Whether packets that go this way go into the tunnel.
#[must_use]
pub(super) fn is_right(own: &str, way: &Way) -> bool {
    matches!(way, Way::Route(route) if route.kind == RouteKind::Unicast && route.interface.as_deref() == Some(own))
}

/// The rule that leads to `table`, unless that is one of the kernel's own.
fn leading(table: u32, target: &Target, rules: &[Rule]) -> Option<u32> {
    let leads = |rule: &&Rule| rule.table == Some(table) && rule.is_for(target.address);
    let first = || rules.iter().filter(leads).map(|rule| rule.priority).min();
    (!OWN_TABLES.contains(&table)).then(first).flatten()
}

/// What makes the kernel refuse packets to `target`: the first rule that discards them, or the closest route that does.
fn refusing(target: &Target, rules: &[Rule], routes: &[Route]) -> Option<Cause> {
    let discards = |rule: &&Rule| rule.table.is_none() && rule.is_for(target.address);
    let rule = rules.iter().filter(discards).map(|r| r.priority).min();
    let route = routes
        .iter()
        .filter(|r| r.kind == RouteKind::Discard && r.net.contains(&target.address))
        .max_by_key(|r| r.net.prefix_len())
        .map(|r| Cause::Route(r.clone(), leading(r.table, target, rules)));
    route.or(rule.map(Cause::Rule))
}

impl Rule {
    fn is_for(&self, address: IpAddr) -> bool {
        self.to.is_none_or(|net| net.contains(&address))
    }
}

fn problem(own: &str, cause: &Cause, targets: &[&Target]) -> Problem {
    let mut named: Vec<String> = targets
        .iter()
        .take(MAX_NAMED)
        .map(ToString::to_string)
        .collect();
    if let Some(more) = targets
        .len()
        .checked_sub(MAX_NAMED)
        .filter(|more| *more > 0)
    {
        named.push(format!("{more} more"));
    }
    let (why, fix) = match cause {
        Cause::Route(route, None) => (format!("{} takes them", described(route)), removal(route)),
        Cause::Route(route, Some(priority)) => (
            format!(
                "the rule with priority {priority} leads to {}, which takes them",
                described(route)
            ),
            format!(
                "{}; or remove the rule (`{}rule del priority {priority}`)",
                removal(route),
                program(route.net.addr())
            ),
        ),
        Cause::Rule(priority) => (
            format!("the rule with priority {priority} discards them"),
            format!(
                "remove the rule (`{}rule del priority {priority}`)",
                program(targets.first().map_or(IpAddr::from([0; 4]), |t| t.address))
            ),
        ),
        Cause::Unknown(why) => (
            format!("the kernel has no way for them: {why}"),
            format!(
                "look at `ip route get {}`, `ip rule` and `ip route show table all`",
                targets
                    .first()
                    .map_or(String::new(), |t| t.address.to_string())
            ),
        ),
    };
    Problem {
        what: format!(
            "packets of programs on this machine do not go into {own}: to {}",
            named.join(", ")
        ),
        why,
        fix,
    }
}

fn described(route: &Route) -> String {
    let table = table_name(route.table);
    let by = route
        .interface
        .as_ref()
        .map_or_else(String::new, |name| format!(" dev {name}"));
    let net = if route.net.prefix_len() == 0 {
        "default".to_owned()
    } else {
        route.net.to_string()
    };
    match route.kind {
        RouteKind::Local => format!("the address {}{by} of this machine", route.net.addr()),
        RouteKind::Discard => format!("the route {net} in table {table}, which discards,"),
        _ => format!("the route {net}{by} in table {table}"),
    }
}

fn removal(route: &Route) -> String {
    let ip = program(route.net.addr());
    let by = route
        .interface
        .as_ref()
        .map_or_else(String::new, |name| format!(" dev {name}"));
    if route.kind == RouteKind::Local {
        return format!(
            "remove that address (`{ip}address del {}{by}`), or give its interface one outside of the mesh's prefix",
            route.net.addr()
        );
    }
    let table = if route.table == MAIN_TABLE {
        String::new()
    } else {
        format!(" table {}", route.table)
    };
    format!(
        "remove that route (`{ip}route del {}{by}{table}`), or have the program that made it use a network outside of the mesh's prefix",
        route.net
    )
}

fn table_name(table: u32) -> String {
    match table {
        255 => "local".into(),
        MAIN_TABLE => "main".into(),
        253 => "default".into(),
        number => number.to_string(),
    }
}

/// How a command about addresses of this family begins.
fn program(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "ip -6 " } else { "ip " }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(node: &str, address: &str) -> Target {
        Target {
            node: Some(node.to_owned()).filter(|node| !node.is_empty()),
            address: address.parse().expect("a literal"),
        }
    }

    fn route(table: u32, kind: RouteKind, net: &str, interface: &str) -> Route {
        Route {
            table,
            kind,
            net: net.parse().expect("a literal"),
            interface: Some(interface.to_owned()).filter(|name| !name.is_empty()),
        }
    }

    fn rule(priority: u32, to: Option<&str>, table: Option<u32>) -> Rule {
        Rule {
            priority,
            to: to.map(|net| net.parse().expect("a literal")),
            table,
        }
    }

    /// The rules of every machine.
    fn usual() -> Vec<Rule> {
        vec![
            rule(0, None, Some(255)),
            rule(32_766, None, Some(254)),
            rule(32_767, None, Some(253)),
        ]
    }

    fn ours() -> Way {
        Way::Route(route(254, RouteKind::Unicast, "10.210.0.0/16", "mesh0"))
    }

    #[test]
    fn ways_into_the_tunnel_are_no_problem() {
        let asked = [(target("n2", "10.210.2.1"), ours())];
        assert_eq!(problems("mesh0", &asked, &usual(), &[]), []);
    }

    #[test]
    fn a_route_of_somebody_else_is_named_once_with_all_that_it_takes() {
        let taking = route(254, RouteKind::Unicast, "10.210.2.0/23", "eth1");
        let mut asked = vec![(target("n9", "10.210.9.1"), ours())];
        for n in 0..7 {
            let address = format!("10.210.2.{n}");
            asked.push((
                target(&format!("n{n}"), &address),
                Way::Route(taking.clone()),
            ));
        }
        let found = problems("mesh0", &asked, &usual(), &[]);
        let [one] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(
            one.what,
            "packets of programs on this machine do not go into mesh0: to n0 (10.210.2.0), n1 (10.210.2.1), n2 (10.210.2.2), n3 (10.210.2.3), n4 (10.210.2.4), 2 more"
        );
        assert_eq!(
            one.why,
            "the route 10.210.2.0/23 dev eth1 in table main takes them"
        );
        assert!(
            one.fix.contains("`ip route del 10.210.2.0/23 dev eth1`"),
            "{}",
            one.fix
        );
    }

    #[test]
    fn a_rule_that_leads_to_another_table_is_named_with_the_route_there() {
        let rules = [
            vec![
                rule(50, Some("192.0.2.0/24"), Some(100)),
                rule(100, Some("10.210.0.0/16"), Some(100)),
            ],
            usual(),
        ]
        .concat();
        let taking = Way::Route(route(100, RouteKind::Unicast, "0.0.0.0/0", "wg9"));
        let asked = [(target("n2", "10.210.2.1"), taking)];
        let found = problems("mesh0", &asked, &rules, &[]);
        assert_eq!(
            found[0].why,
            "the rule with priority 100 leads to the route default dev wg9 in table 100, which takes them"
        );
        assert!(
            found[0]
                .fix
                .contains("`ip route del 0.0.0.0/0 dev wg9 table 100`")
        );
        assert!(found[0].fix.contains("`ip rule del priority 100`"));
    }

    #[test]
    fn what_makes_the_kernel_refuse_is_found() {
        let asked = [(
            target("n2", "fd00::2"),
            Way::Refused("Invalid argument".into()),
        )];
        let hole = route(254, RouteKind::Discard, "fd00::/64", "");
        let wide = route(254, RouteKind::Discard, "fd00::/16", "");
        let found = problems("mesh0", &asked, &usual(), &[wide, hole]);
        assert!(
            found[0].why.contains("the route fd00::/64 in table main"),
            "{found:?}"
        );
        assert!(
            found[0].fix.contains("`ip -6 route del fd00::/64`"),
            "{found:?}"
        );

        let rules = [vec![rule(7, None, None)], usual()].concat();
        let found = problems("mesh0", &asked, &rules, &[]);
        assert_eq!(found[0].why, "the rule with priority 7 discards them");
        assert!(
            found[0].fix.contains("`ip -6 rule del priority 7`"),
            "{found:?}"
        );

        let found = problems("mesh0", &asked, &usual(), &[]);
        assert!(found[0].why.contains("Invalid argument"), "{found:?}");
        assert!(found[0].fix.contains("ip route get fd00::2"), "{found:?}");
    }

    #[test]
    fn an_address_of_this_machine_in_a_peers_place_is_named() {
        let local = Way::Route(route(255, RouteKind::Local, "10.210.2.1/32", "eth1"));
        let asked = [(target("n2", "10.210.2.1"), local)];
        let found = problems("mesh0", &asked, &usual(), &[]);
        assert_eq!(
            found[0].why,
            "the address 10.210.2.1 dev eth1 of this machine takes them"
        );
        assert!(
            found[0]
                .fix
                .contains("`ip address del 10.210.2.1 dev eth1`"),
            "{found:?}"
        );
    }

    #[test]
    fn there_are_no_more_problems_than_people_read() {
        let asked: Vec<(Target, Way)> = (0..100)
            .map(|n| {
                let net = format!("10.210.{n}.0/24");
                let way = Way::Route(route(254, RouteKind::Unicast, &net, "eth1"));
                (target("", &format!("10.210.{n}.1")), way)
            })
            .collect();
        assert_eq!(problems("mesh0", &asked, &usual(), &[]).len(), MAX_PROBLEMS);
    }
}
