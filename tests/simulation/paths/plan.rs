//! What a world is, chosen by its seed: where its nodes are, what they send, and what goes wrong when.

use std::time::Duration;

use super::nat::Kind;
use crate::network::At;
use crate::random::Random;

/// The network behind a router, or a host with a public address.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) kind: Kind,
    /// Whether the provider shares its address among its customers: there are two translators in a row.
    pub(crate) has_carrier: bool,
    pub(crate) is_hairpin: bool,
    /// The number of routers of the provider.
    provider: u8,
    /// How long datagrams take to the core of the network.
    pub(crate) delay: Duration,
    /// After so long, the translator forgets a connection.
    pub(crate) timeout: Duration,
}

impl Site {
    /// The number of routers between a host and the core.
    pub(crate) fn depth(&self) -> u8 {
        if self.kind.is_public() {
            0
        } else {
            1 + self.provider
        }
    }
}

/// How often two nodes send packets to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    None,
    Every(Duration),
}

/// Something that goes wrong at a moment, or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing passes between two sites.
    Cut(usize, usize),
    /// Nothing passes from the first to the second.
    CutOneWay(usize, usize),
    /// All cuts end.
    Heal,
    /// A router forgets its translations and gives other ports.
    Rebind(usize),
    /// The program of a node ends without a word.
    Kill(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) sites: Vec<Site>,
    /// The site of each node.
    pub(crate) homes: Vec<usize>,
    /// When each node starts.
    pub(crate) starts: Vec<At>,
    /// Which nodes serve names.
    pub(crate) serves: Vec<bool>,
    /// The traffic of each pair of nodes.
    pub(crate) traffic: Vec<(usize, usize, Traffic)>,
    pub(crate) faults: Vec<(At, Fault)>,
    /// The percentage of datagrams that are lost.
    pub(crate) loss: u64,
    /// A node that lists addresses of somebody else as its own.
    pub(crate) liar: Option<usize>,
    pub(crate) end: At,
}

/// A cut lasts for so many seconds.
const CUT: (u64, u64) = (3, 25);
/// So long after the last fault, each pair has the path that it is to have: a retry comes after a minute at the latest.
const AFTERMATH: Duration = Duration::from_secs(100);

impl Plan {
    pub(crate) fn of(random: &mut Random) -> Self {
        let nodes = random.range(2, 6) as usize;
        let mut sites = Vec::new();
        let mut homes = Vec::new();
        // Most worlds have a relay.
        if random.percent(85) {
            homes.push(sites.len());
            sites.push(site(Kind::Public, random));
        }
        while homes.len() < nodes {
            if random.percent(20) && sites.iter().any(|site: &Site| !site.kind.is_public()) {
                // Beside another node.
                let behind = (0..sites.len()).filter(|n| !sites[*n].kind.is_public());
                let behind: Vec<usize> = behind.collect();
                homes.push(*random.pick(&behind).expect("there is one"));
                continue;
            }
            homes.push(sites.len());
            let kind = kind(random);
            sites.push(site(kind, random));
        }
        let starts = homes
            .iter()
            .map(|_| Duration::from_millis(random.below(4000)));
        let starts: Vec<At> = starts.collect();
        let serves = homes.iter().map(|_| random.percent(40)).collect();
        let mut traffic = Vec::new();
        for one in 0..nodes {
            for other in 0..one {
                let traffic_of = match random.below(10) {
                    0..4 => Traffic::None,
                    4..9 => Traffic::Every(Duration::from_millis(random.range(300, 1000))),
                    _ => Traffic::Every(Duration::from_millis(random.range(20, 100))),
                };
                traffic.push((one, other, traffic_of));
            }
        }
        let has_faults = random.percent(60);
        let faults = if has_faults {
            faults(&sites, &homes, random)
        } else {
            Vec::new()
        };
        let last = faults.iter().map(|(at, _)| *at).max();
        let calm = last.map_or(Duration::from_secs(20), |at| at + AFTERMATH);
        Self {
            loss: if random.percent(20) {
                random.range(1, 3)
            } else {
                0
            },
            liar: random.percent(10).then(|| random.index(nodes)),
            end: calm + Duration::from_millis(random.below(20_000)),
            sites,
            homes,
            starts,
            serves,
            traffic,
            faults,
        }
    }
}

impl Plan {
    /// A relay, and two nodes behind routers of these kinds, which start soon after it. Nothing goes wrong, and no packets are sent.
    pub(crate) fn of_pair(kinds: [Kind; 2], random: &mut Random) -> Self {
        let kinds = [Kind::Public].into_iter().chain(kinds);
        let sites = kinds.map(|kind| Site {
            has_carrier: false,
            ..site(kind, random)
        });
        Self {
            sites: sites.collect(),
            homes: vec![0, 1, 2],
            starts: vec![
                At::ZERO,
                Duration::from_secs(1),
                Duration::from_millis(1300),
            ],
            serves: vec![false; 3],
            traffic: Vec::new(),
            faults: Vec::new(),
            loss: 0,
            liar: None,
            end: Duration::from_secs(60),
        }
    }
}

fn kind(random: &mut Random) -> Kind {
    const KINDS: [Kind; 12] = [
        Kind::Public,
        Kind::Firewall,
        Kind::Cone,
        Kind::AddressRestricted,
        Kind::PortRestricted,
        Kind::PortRestricted,
        Kind::Plain,
        Kind::Plain,
        Kind::PlainOpen,
        Kind::PlainOpen,
        Kind::Symmetric,
        Kind::UdpBlocked,
    ];
    *random.pick(&KINDS).expect("it is not empty")
}

fn site(kind: Kind, random: &mut Random) -> Site {
    let may_share = !kind.is_public();
    let has_carrier = may_share && random.percent(20);
    Site {
        kind,
        has_carrier,
        is_hairpin: may_share && random.percent(50),
        provider: random.range(1, 2) as u8,
        delay: Duration::from_micros(random.range(500, 40_000)),
        timeout: Duration::from_secs([40, 60, 120][random.index(3)]),
    }
}

fn faults(sites: &[Site], homes: &[usize], random: &mut Random) -> Vec<(At, Fault)> {
    let mut faults = Vec::new();
    let mut at = Duration::from_secs(random.range(15, 90));
    for _ in 0..random.range(1, 4) {
        let (one, other) = (random.index(sites.len()), random.index(sites.len()));
        let is_cut = one != other;
        match random.below(10) {
            0..3 if is_cut => faults.push((at, Fault::Cut(one, other))),
            3..6 if is_cut => faults.push((at, Fault::CutOneWay(one, other))),
            6..9 => faults.push((at, Fault::Rebind(one))),
            _ => faults.push((at, Fault::Kill(random.index(homes.len())))),
        }
        let pause = Duration::from_millis(random.range(CUT.0 * 1000, CUT.1 * 1000));
        if let Some((_, Fault::Cut(..) | Fault::CutOneWay(..))) = faults.last() {
            faults.push((at + pause, Fault::Heal));
        }
        at += pause + Duration::from_secs(random.range(1, 40));
    }
    faults
}
