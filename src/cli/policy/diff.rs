//! `meshctl policy diff`.

use std::path::Path;

use serde::Serialize;

use super::explain::{selector_of, shown};
use super::file;
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, table};
use crate::model::text::listed;
use crate::policy::{Change, PortSet, Subject, diff};
use crate::records::netmap::{Netmap, Unlawful};
use crate::records::subjects::subjects;

/// The maximum number of sources, and of destinations, that a line for people names.
const MAX_NAMED: usize = 4;

/// `meshctl policy diff --json`.
#[derive(Debug, Serialize)]
struct Differences {
    schema: u32,
    /// What the file allows and the policy in force does not.
    added: Vec<Reach>,
    /// What the policy in force allows and the file does not.
    removed: Vec<Reach>,
    /// The names that nodes may serve by the file, and not now.
    served: Vec<Serve>,
    /// The names that nodes may serve now, and not by the file.
    unserved: Vec<Serve>,
}

/// Sources that reach ports of destinations: each of the ones each of the others.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Reach {
    from: Vec<String>,
    to: Vec<String>,
    /// As a policy has them, such as `80, 443, 53/udp`.
    ports: String,
}

/// A node that offers a name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Serve {
    node: String,
    service: String,
}

pub(super) async fn run(path: &Path, json: bool, globals: &Globals) -> Result<u8, CliError> {
    let new = file::read("diff", path)?;
    let live = Live::read(globals).await?;
    let old = live.policy("diff")?;
    let (before, after) = (live.netmap(old.as_ref()), live.netmap(Some(&new)));
    // A service that its node may not serve by the file is no destination of rules.
    let subjects = subjects(&after);
    let changes = diff(old.as_ref(), Some(&new), &subjects);
    let differences = Differences {
        schema: 1,
        added: reaches(&changes, &subjects, |change| &change.added),
        removed: reaches(&changes, &subjects, |change| &change.removed),
        served: left_out(&before, &after),
        unserved: left_out(&after, &before),
    };
    if json {
        return table::json(&differences);
    }
    let lines = lines(&differences);
    for line in &lines {
        table::line(line);
    }
    if lines.is_empty() {
        eprintln!("{} allows exactly what is allowed now", path.display());
    }
    Ok(0)
}

fn reaches(
    changes: &[Change],
    subjects: &[Subject],
    ports: impl Fn(&Change) -> &PortSet,
) -> Vec<Reach> {
    let names = |places: &[usize]| -> Vec<String> {
        let subjects = places.iter().filter_map(|place| subjects.get(*place));
        let mut names: Vec<String> = subjects.map(shown).collect();
        names.sort();
        names
    };
    let changes = changes.iter().filter(|change| !ports(change).is_empty());
    let mut reaches: Vec<Reach> = changes
        .map(|change| Reach {
            from: names(&change.from),
            to: names(&change.to),
            ports: ports(change).to_string(),
        })
        .collect();
    reaches.sort();
    reaches
}

/// The services that `without` leaves out for lack of the right to serve them, and `with` does not.
fn left_out(without: &Netmap, with: &Netmap) -> Vec<Serve> {
    let only = without.unlawful.iter();
    let only = only.filter(|(id, _)| !with.unlawful.contains_key(*id));
    let serve = |unlawful: &Unlawful| {
        let member = without.members.get(&unlawful.node);
        Serve {
            node: member.map_or_else(|| unlawful.node.short(), |m| m.name.to_string()),
            service: selector_of(&unlawful.service),
        }
    };
    let mut serves: Vec<Serve> = only.map(|(_, unlawful)| serve(unlawful)).collect();
    serves.sort();
    serves
}

fn lines(differences: &Differences) -> Vec<String> {
    let reach = |sign: char, reach: &Reach| {
        let (from, to) = (&reach.from, &reach.to);
        let (from, to) = (listed(from, MAX_NAMED), listed(to, MAX_NAMED));
        format!("{sign} {from} -> {to}   {}", reach.ports)
    };
    let serve =
        |sign: char, serve: &Serve| format!("{sign} node:{} serves {}", serve.node, serve.service);
    let added = differences.added.iter().map(|r| reach('+', r));
    let removed = differences.removed.iter().map(|r| reach('-', r));
    let served = differences.served.iter().map(|s| serve('+', s));
    let unserved = differences.unserved.iter().map(|s| serve('-', s));
    served.chain(unserved).chain(added).chain(removed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_and_removed_is_one_line_each() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let differences = Differences {
            schema: 1,
            added: vec![Reach {
                from: names(&["a", "b", "c", "d", "e"]),
                to: names(&["db (10.210.1.64 on db-1)"]),
                ports: "5432".into(),
            }],
            removed: vec![Reach {
                from: names(&["a"]),
                to: names(&["b"]),
                ports: "everything".into(),
            }],
            served: vec![],
            unserved: vec![Serve {
                node: "web-1".into(),
                service: "shop/db".into(),
            }],
        };
        assert_eq!(
            lines(&differences),
            [
                "- node:web-1 serves shop/db",
                "+ a, b, c, d, 1 more -> db (10.210.1.64 on db-1)   5432",
                "- a -> b   everything",
            ]
        );
    }
}
