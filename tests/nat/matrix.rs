//! Who reaches whom, for each pair of kinds of routers.

use std::fmt::Write as _;

use meshd::protocol::local::{PeerState, PeerStatus};
use meshd::testbed::Nat;

use crate::lab::{Lab, is_reached};

/// A column of the matrix: where the other node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Behind(Nat),
    /// It has a public address, and nothing drops what is sent to it.
    Public,
}

impl Place {
    fn as_str(self) -> &'static str {
        match self {
            Self::Behind(nat) => nat.as_str(),
            Self::Public => "public",
        }
    }
}

/// What one end of a pair may see of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Direct,
    Relayed,
    OverTls,
    Nothing,
}

impl Cell {
    fn of(peer: &PeerStatus) -> Self {
        match peer.state {
            PeerState::Direct => Self::Direct,
            PeerState::Relay => Self::Relayed,
            PeerState::Stream => Self::OverTls,
            PeerState::Connecting | PeerState::Idle | PeerState::Unreachable => Self::Nothing,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::OverTls => "stream",
            Self::Nothing => "-",
        }
    }
}

/// The matrix as text: a row for each kind, with `cell` in each column.
fn render(kinds: &[Nat], places: &[Place], cell: impl Fn(Nat, Place) -> String) -> String {
    let mut text = format!("{:<12}", "");
    for place in places {
        let _ = write!(text, " {:<12}", place.as_str());
    }
    for kind in kinds {
        let _ = write!(text, "\n{:<12}", kind.as_str());
        for place in places {
            let _ = write!(text, " {:<12}", cell(*kind, *place));
        }
    }
    text
}

/// The nodes of a matrix: for each kind one in the rows and one in the columns, so that a kind also meets itself.
struct Matrix {
    lab: Lab,
    rows: Vec<(Nat, usize)>,
    columns: Vec<(Place, usize)>,
}

impl Matrix {
    fn new(rows: &[Nat], columns: &[Nat]) -> Option<Self> {
        let mut lab = Lab::new()?;
        let public = lab.relay("public");
        let mut start = |nat: &Nat, end: &str| {
            let name = format!("{}-{end}", nat.as_str());
            (*nat, lab.behind(*nat, &name))
        };
        let rows: Vec<(Nat, usize)> = rows.iter().map(|nat| start(nat, "a")).collect();
        let columns = columns.iter().map(|nat| start(nat, "b"));
        let columns = columns.map(|(nat, n)| (Place::Behind(nat), n));
        let columns: Vec<(Place, usize)> = columns.chain([(Place::Public, public)]).collect();
        lab.join_all();
        Some(Self { lab, rows, columns })
    }

    fn pairs(&self) -> impl Iterator<Item = ((Nat, usize), (Place, usize))> {
        let rows = self.rows.iter();
        rows.flat_map(|row| self.columns.iter().map(move |column| (*row, *column)))
    }

    /// Waits until both ends of each pair reach each other: directly, by a relay, or over TLS where UDP does not pass.
    fn wait(&self) {
        self.lab.wait_until("each cell is reached", || {
            let statuses = Statuses::of(&self.lab);
            self.pairs().all(|((_, row), (_, column))| {
                is_reached(statuses.peer(row, column)) && is_reached(statuses.peer(column, row))
            })
        });
    }

    /// Asserts each cell from both ends: the states, and packets through the tunnel. Prints the matrix.
    fn check(&self) {
        let statuses = Statuses::of(&self.lab);
        let found = |kind: Nat, place: Place| {
            let pair = self
                .pairs()
                .find(|(row, column)| row.0 == kind && column.0 == place);
            let ((_, row), (_, column)) = pair.expect("a cell");
            let ends = [statuses.peer(row, column), statuses.peer(column, row)];
            let [there, back] = ends.map(|peer| Cell::of(peer).as_str());
            if there == back {
                there.to_owned()
            } else {
                format!("{there}/{back}")
            }
        };
        let kinds: Vec<Nat> = self.rows.iter().map(|(nat, _)| *nat).collect();
        let places: Vec<Place> = self.columns.iter().map(|(place, _)| *place).collect();
        let matrix = render(&kinds, &places, found);
        let behind = self
            .pairs()
            .filter(|(_, (place, _))| *place != Place::Public);
        let behind: Vec<_> = behind.collect();
        let ends = behind.len() * 2;
        let of = |n: usize, peer: usize| usize::from(!is_reached(statuses.peer(n, peer)));
        let unreached: usize = behind
            .iter()
            .map(|((_, row), (_, column))| of(*row, *column) + of(*column, *row))
            .sum();
        println!("{matrix}\n\n{unreached} of {ends} cells not reachable");
        for ((kind, row), (_, column)) in self.pairs() {
            for (from, to) in [(row, column), (column, row)] {
                let peer = statuses.peer(from, to);
                let names = format!("{} -> {}", self.lab.name(from), self.lab.name(to));
                assert!(is_reached(peer), "{names}: {peer:?}");
            }
            // Others may have opened a stream before UDP answered, and go back to UDP.
            let there = statuses.peer(row, column).state;
            assert!(kind != Nat::UdpBlocked || there == PeerState::Stream);
        }
        self.check_packets();
    }

    /// Asserts that packets pass through the tunnel in both directions.
    fn check_packets(&self) {
        let ways = self
            .pairs()
            .flat_map(|((_, row), (_, column))| [(row, column), (column, row)]);
        let ways: Vec<(usize, usize)> = ways.collect();
        for some in ways.chunks(8) {
            std::thread::scope(|scope| {
                let started = some.iter().map(|(from, to)| {
                    let pings = scope.spawn(move || self.lab.pings(*from, *to));
                    (from, to, pings)
                });
                for (from, to, pings) in started.collect::<Vec<_>>() {
                    let names = (self.lab.name(*from), self.lab.name(*to));
                    assert!(pings.join().expect("no panic"), "{names:?}");
                }
            });
        }
    }
}

/// The status of each node at about the same time.
struct Statuses {
    names: Vec<String>,
    peers: Vec<Vec<PeerStatus>>,
}

impl Statuses {
    fn of(lab: &Lab) -> Self {
        Self {
            names: lab.nodes.iter().map(|node| node.name.clone()).collect(),
            peers: (0..lab.nodes.len()).map(|n| lab.status(n).peers).collect(),
        }
    }

    /// How node `n` sees node `peer`.
    fn peer(&self, n: usize, peer: usize) -> &PeerStatus {
        let mut peers = self.peers[n].iter();
        let found = peers.find(|p| p.name.as_str() == self.names[peer]);
        found.expect("both are members")
    }
}

#[test]
fn each_pair_of_kinds_in_one_mesh_has_the_expected_path_from_both_ends() {
    let Some(matrix) = Matrix::new(&Nat::ALL, &Nat::ALL) else {
        return;
    };
    matrix.wait();
    matrix.check();
}

#[test]
#[ignore = "takes half an hour: run by hand"]
fn each_pair_of_kinds_in_a_mesh_of_its_own_has_the_expected_path() {
    let chosen = std::env::var("MESHD_NAT").ok();
    let is_chosen = |nat: &Nat| {
        let mut kinds = chosen.iter().flat_map(|kinds| kinds.split(','));
        chosen.is_none() || kinds.any(|kind| kind == nat.as_str())
    };
    let kinds: Vec<Nat> = Nat::ALL.into_iter().filter(is_chosen).collect();
    assert!(
        !kinds.is_empty(),
        "MESHD_NAT names no kind of {:?}",
        Nat::ALL.map(Nat::as_str)
    );
    for row in &kinds {
        for column in &kinds {
            let Some(matrix) = Matrix::new(&[*row], &[*column]) else {
                return;
            };
            matrix.wait();
            matrix.check();
        }
    }
}

#[test]
fn a_matrix_is_printed_with_a_row_for_each_kind() {
    let places = [Place::Behind(Nat::Cone), Place::Public];
    let text = render(&[Nat::Plain, Nat::UdpBlocked], &places, |kind, place| {
        let cell = match (kind, place) {
            (Nat::Plain, Place::Public) => Cell::Direct,
            (_, Place::Public) => Cell::Nothing,
            _ => Cell::Relayed,
        };
        cell.as_str().to_owned()
    });
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "             cone         public",
            "plain        relayed      direct",
            "udp-blocked  relayed      -",
        ]
    );
}
