//! Checks which route the kernel uses for packets to the mesh's addresses, and explains what diverts them. Pure.
//!
//! A route of another program inside the mesh prefix, in any table that a rule selects, diverts packets from the tunnel
//! although the tunnel itself works. So the route to each peer's address is looked up as for a packet of a program: the
//! result takes all tables and rules into account.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::MAIN_TABLE;
use super::survey::{Route, RouteKind};
use crate::model::text::listed;
use crate::protocol::local::Problem;

/// The maximum number of addresses that one problem names.
const MAX_NAMED: usize = 5;
/// The maximum number of problems.
const MAX_PROBLEMS: usize = 8;
/// The tables to which the kernel's own rules lead: `local`, `main`, `default`.
const OWN_TABLES: [u32; 3] = [255, MAIN_TABLE, 253];

/// An address to look up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// The node that has the address, if there is one.
    pub node: Option<String>,
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

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The kernel uses this route.
    Route(Route),
    /// The kernel has no route. This is the text of its error.
    Failed(String),
}

/// A policy routing rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The priority. The kernel evaluates the rules in this order.
    pub priority: u32,
    /// The destinations that the rule matches. None means all.
    pub to: Option<IpNet>,
    /// The table that the rule selects. None means that the rule discards the packet.
    pub table: Option<u32>,
}

/// What diverts packets from the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Route(Route, Option<u32>),
    Rule(u32),
    Unknown(String),
}

/// The problems that the results `lookups` show for a tunnel device called `own`: one for each cause. `rules` and
/// `routes` are all rules and routes of the machine.
#[must_use]
pub(super) fn problems(
    own: &str,
    lookups: &[(Target, Lookup)],
    rules: &[Rule],
    routes: &[Route],
) -> Vec<Problem> {
    let mut causes: BTreeMap<Cause, Vec<&Target>> = BTreeMap::new();
    for (target, lookup) in lookups
        .iter()
        .filter(|(_, lookup)| !goes_into_tunnel(own, lookup))
    {
        let cause = match lookup {
            Lookup::Route(route) => {
                Cause::Route(route.clone(), leading(route.table, target, rules))
            }
            Lookup::Failed(why) => {
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

/// Whether the result is a route into the tunnel device.
#[must_use]
pub(super) fn goes_into_tunnel(own: &str, lookup: &Lookup) -> bool {
    matches!(lookup, Lookup::Route(route) if route.kind == RouteKind::Unicast && route.interface.as_deref() == Some(own))
}

/// The priority of the rule that selects `table`, unless the table is one of the kernel's own.
fn leading(table: u32, target: &Target, rules: &[Rule]) -> Option<u32> {
    let leads = |rule: &&Rule| rule.table == Some(table) && rule.is_for(target.address);
    let first = || rules.iter().filter(leads).map(|rule| rule.priority).min();
    (!OWN_TABLES.contains(&table)).then(first).flatten()
}

/// What makes the lookup of `target` fail: the route with the longest prefix that discards, or the first rule that
/// discards.
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
    let named = listed(targets, MAX_NAMED);
    let (why, fix) = match cause {
        Cause::Route(route, None) => (
            format!("{} matches them first", described(route)),
            removal(route),
        ),
        Cause::Route(route, Some(priority)) => (
            format!(
                "the rule with priority {priority} selects {}, which matches them first",
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
            format!("the kernel has no route for them: {why}"),
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
            named
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
        "remove that route (`{ip}route del {}{by}{table}`), or configure the program that made it to use a network outside of the mesh's prefix",
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

/// The beginning of a command for addresses of this family.
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

    /// The rules that every machine has.
    fn usual() -> Vec<Rule> {
        vec![
            rule(0, None, Some(255)),
            rule(32_766, None, Some(254)),
            rule(32_767, None, Some(253)),
        ]
    }

    fn ours() -> Lookup {
        Lookup::Route(route(254, RouteKind::Unicast, "10.210.0.0/16", "mesh0"))
    }

    #[test]
    fn routes_into_the_tunnel_are_no_problem() {
        let lookups = [(target("n2", "10.210.2.1"), ours())];
        assert_eq!(problems("mesh0", &lookups, &usual(), &[]), []);
    }

    #[test]
    fn a_route_of_another_program_is_named_once_with_all_addresses_that_it_diverts() {
        let diverting = route(254, RouteKind::Unicast, "10.210.2.0/23", "eth1");
        let mut lookups = vec![(target("n9", "10.210.9.1"), ours())];
        for n in 0..7 {
            let address = format!("10.210.2.{n}");
            lookups.push((
                target(&format!("n{n}"), &address),
                Lookup::Route(diverting.clone()),
            ));
        }
        let found = problems("mesh0", &lookups, &usual(), &[]);
        let [one] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(
            one.what,
            "packets of programs on this machine do not go into mesh0: to n0 (10.210.2.0), n1 (10.210.2.1), n2 (10.210.2.2), n3 (10.210.2.3), n4 (10.210.2.4), 2 more"
        );
        assert_eq!(
            one.why,
            "the route 10.210.2.0/23 dev eth1 in table main matches them first"
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
        let diverting = Lookup::Route(route(100, RouteKind::Unicast, "0.0.0.0/0", "wg9"));
        let lookups = [(target("n2", "10.210.2.1"), diverting)];
        let found = problems("mesh0", &lookups, &rules, &[]);
        assert_eq!(
            found[0].why,
            "the rule with priority 100 selects the route default dev wg9 in table 100, which matches them first"
        );
        assert!(
            found[0]
                .fix
                .contains("`ip route del 0.0.0.0/0 dev wg9 table 100`")
        );
        assert!(found[0].fix.contains("`ip rule del priority 100`"));
    }

    #[test]
    fn the_cause_of_a_failed_lookup_is_found() {
        let lookups = [(
            target("n2", "fd00::2"),
            Lookup::Failed("Invalid argument".into()),
        )];
        let hole = route(254, RouteKind::Discard, "fd00::/64", "");
        let wide = route(254, RouteKind::Discard, "fd00::/16", "");
        let found = problems("mesh0", &lookups, &usual(), &[wide, hole]);
        assert!(
            found[0].why.contains("the route fd00::/64 in table main"),
            "{found:?}"
        );
        assert!(
            found[0].fix.contains("`ip -6 route del fd00::/64`"),
            "{found:?}"
        );

        let rules = [vec![rule(7, None, None)], usual()].concat();
        let found = problems("mesh0", &lookups, &rules, &[]);
        assert_eq!(found[0].why, "the rule with priority 7 discards them");
        assert!(
            found[0].fix.contains("`ip -6 rule del priority 7`"),
            "{found:?}"
        );

        let found = problems("mesh0", &lookups, &usual(), &[]);
        assert!(found[0].why.contains("Invalid argument"), "{found:?}");
        assert!(found[0].fix.contains("ip route get fd00::2"), "{found:?}");
    }

    #[test]
    fn an_address_of_a_peer_that_this_machine_has_is_named() {
        let local = Lookup::Route(route(255, RouteKind::Local, "10.210.2.1/32", "eth1"));
        let lookups = [(target("n2", "10.210.2.1"), local)];
        let found = problems("mesh0", &lookups, &usual(), &[]);
        assert_eq!(
            found[0].why,
            "the address 10.210.2.1 dev eth1 of this machine matches them first"
        );
        assert!(
            found[0]
                .fix
                .contains("`ip address del 10.210.2.1 dev eth1`"),
            "{found:?}"
        );
    }

    #[test]
    fn the_number_of_problems_is_limited() {
        let lookups: Vec<(Target, Lookup)> = (0..100)
            .map(|n| {
                let net = format!("10.210.{n}.0/24");
                let lookup = Lookup::Route(route(254, RouteKind::Unicast, &net, "eth1"));
                (target("", &format!("10.210.{n}.1")), lookup)
            })
            .collect();
        assert_eq!(
            problems("mesh0", &lookups, &usual(), &[]).len(),
            MAX_PROBLEMS
        );
    }
}
