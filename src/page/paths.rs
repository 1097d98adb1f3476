//! The view of the paths between all nodes. Each node sends its own row.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use maud::{Markup, html};

use super::nodes::{rank, shown};
use super::table::{Filter, MAX_ROWS, Tone, heading, left_out, mark, round_trip, table, text};
use crate::model::Label;
use crate::model::text::listed;
use crate::protocol::path_messages::RowPath;

/// The maximum number of nodes of a matrix. A larger one does not fit a screen, and nobody reads it.
const MAX_MATRIX: usize = 12;
/// The maximum number of nodes that one sentence names.
const MAX_NAMED: usize = 10;

/// What the view is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathsBetween {
    /// The names of all nodes, by their mesh addresses.
    pub names: BTreeMap<Ipv4Addr, Label>,
    /// The paths from each node that sent them.
    pub rows: BTreeMap<Ipv4Addr, Vec<RowPath>>,
}

/// A path between two nodes.
struct Between<'a> {
    from: &'a Label,
    to: &'a Label,
    path: RowPath,
}

/// The paths between all nodes, the worst ones first. A small mesh has a matrix too.
#[must_use]
pub fn view(facts: &PathsBetween, filter: &Filter) -> Markup {
    let mut paths: Vec<Between> = facts.paths().collect();
    paths.retain(|path| filter.passes(&words_of(path)));
    paths.sort_by(|a, b| {
        let worse_first = rank_of(&a.path).cmp(&rank_of(&b.path));
        let slower_first = b.path.rtt_us.cmp(&a.path.rtt_us);
        let names = || (a.from, a.to).cmp(&(b.from, b.to));
        worse_first.then(slower_first).then_with(names)
    });
    let rows: Vec<Vec<Markup>> = paths.iter().take(MAX_ROWS).map(row).collect();
    let silent = facts.names.iter();
    let silent = silent.filter(|(address, _)| !facts.rows.contains_key(*address));
    let silent = listed(silent.map(|(_, name)| name), MAX_NAMED);
    html! {
        (heading("Paths between all nodes"))
        p {
            "Each node measures its own paths, and sends the results while somebody looks at this view. "
            (facts.rows.len()) " of " (facts.names.len()) " nodes sent theirs in the last minute."
        }
        @if !silent.is_empty() {
            p class="warning" {
                "Nothing was received from " (text(&silent))
                ". A node is asked within some seconds if this node reaches it. An earlier version of meshd sends nothing."
            }
        }
        @if facts.names.len() <= MAX_MATRIX { (matrix(facts)) }
        (table("The paths, the worst ones first", &["From", "To", "Path", "Round trip"], &rows))
        (left_out(paths.len()))
    }
}

/// The round trips from each node to each other one.
fn matrix(facts: &PathsBetween) -> Markup {
    let names = facts.names.values().map(Label::as_str);
    let columns: Vec<&str> = std::iter::once("From").chain(names).collect();
    let rows = facts.names.iter().map(|(from, name)| -> Vec<Markup> {
        let sent = facts.rows.get(from);
        let cells = facts.names.keys().map(|to| {
            let path = sent.and_then(|paths| paths.iter().find(|path| path.to == *to));
            match path {
                Some(path) => cell(path),
                None if from == to => html! { "itself" },
                None => html! { "–" },
            }
        });
        std::iter::once(text(name)).chain(cells).collect()
    });
    let rows: Vec<Vec<Markup>> = rows.collect();
    table("The round trip and the kind of each path", &columns, &rows)
}

fn cell(path: &RowPath) -> Markup {
    let (tone, word) = shown_of(path);
    html! { (round_trip(milliseconds(path))) " " (mark(tone, word)) }
}

fn row(between: &Between) -> Vec<Markup> {
    let (tone, word) = shown_of(&between.path);
    vec![
        text(between.from),
        text(between.to),
        mark(tone, word),
        html! { (round_trip(milliseconds(&between.path))) },
    ]
}

fn words_of(between: &Between) -> String {
    let (_, word) = shown_of(&between.path);
    format!("{} {} {word}", between.from, between.to)
}

fn shown_of(path: &RowPath) -> (Tone, &'static str) {
    path.state.map_or((Tone::Plain, "other"), shown)
}

fn rank_of(path: &RowPath) -> u8 {
    path.state.map_or(u8::MAX, rank)
}

fn milliseconds(path: &RowPath) -> Option<f64> {
    path.rtt_us.map(|us| f64::from(us) / 1000.0)
}

impl PathsBetween {
    /// The paths between nodes that have a name.
    fn paths(&self) -> impl Iterator<Item = Between<'_>> {
        let names = &self.names;
        self.rows.iter().flat_map(move |(from, paths)| {
            let from = names.get(from);
            paths.iter().filter_map(move |path| {
                Some(Between {
                    from: from?,
                    to: names.get(&path.to)?,
                    path: *path,
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::PeerState;
    use crate::testbed::records::label;

    fn address(n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0ad2_0000 + (n << 8))
    }

    fn path(to: u32, state: PeerState, rtt_us: u32) -> RowPath {
        RowPath {
            to: address(to),
            state: Some(state),
            rtt_us: (rtt_us > 0).then_some(rtt_us),
        }
    }

    /// A mesh of `count` nodes. Each one tells that it reaches all others in 0.8 ms.
    fn mesh(count: u32) -> PathsBetween {
        let row = |from: u32| {
            let others = (1..=count).filter(|to| *to != from);
            let paths = others.map(|to| path(to, PeerState::Direct, 800));
            (address(from), paths.collect())
        };
        PathsBetween {
            names: (1..=count)
                .map(|n| (address(n), label(&format!("n{n}"))))
                .collect(),
            rows: (1..=count).map(row).collect(),
        }
    }

    #[test]
    fn a_small_mesh_has_a_matrix_and_the_worst_paths_first() {
        let mut facts = mesh(3);
        let of_two = facts.rows.get_mut(&address(2)).expect("it sent some");
        *of_two = vec![
            path(1, PeerState::Relay, 80_000),
            path(3, PeerState::Unreachable, 0),
        ];
        let page = view(&facts, &Filter::default()).into_string();
        assert!(page.contains("3 of 3 nodes sent theirs"), "{page}");
        let matrix = page.find("The round trip and the kind").expect("a matrix");
        let list = page
            .find("The paths, the worst ones first")
            .expect("a list");
        assert!(matrix < list);
        assert_eq!(page.matches(">itself<").count(), 3, "{page}");
        let list = &page[list..];
        let place = |text: &str| list.find(text).unwrap_or_else(|| panic!("{text}: {list}"));
        assert!(place(">unreachable<") < place(">relayed<"));
        assert!(place(">relayed<") < place(">direct<"));
        assert!(place("80.0 ms") < place("0.8 ms"));
    }

    #[test]
    fn nodes_that_told_nothing_are_named_and_strangers_are_left_out() {
        let mut facts = mesh(3);
        facts.rows.remove(&address(2));
        let of_one = facts.rows.get_mut(&address(1)).expect("it sent some");
        of_one.push(path(99, PeerState::Direct, 1));
        let page = view(&facts, &Filter::default()).into_string();
        assert!(page.contains("2 of 3 nodes sent theirs"), "{page}");
        assert!(page.contains("Nothing was received from n2."), "{page}");
        assert_eq!(facts.paths().count(), 4);
    }

    #[test]
    fn a_large_mesh_has_no_matrix_and_a_filter_finds_each_path() {
        let facts = mesh(200);
        let page = view(&facts, &Filter::default()).into_string();
        assert!(page.len() < 128 * 1024, "{} bytes", page.len());
        assert!(page.contains("of 39800 are shown"), "the rest is mentioned");
        assert!(!page.contains("The round trip and the kind"));
        let page = view(&facts, &Filter::parse("n198 n199")).into_string();
        assert_eq!(page.matches("rowheader").count(), 2, "{page}");
    }
}
