//! Sets of ports, and the requests of packets to their destinations.

use std::fmt;
use std::ops::RangeInclusive;

use crate::model::Protocol;

/// The request of a packet to its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Asked {
    /// A port of TCP or UDP.
    Port(Protocol, u16),
    /// An ICMP echo request.
    Icmp,
    /// Another protocol, a fragment, or a packet with IPv6 extension headers: such a packet has no port that could be checked.
    Other,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{port}/{}", protocol.as_str()),
            Self::Icmp => f.write_str("icmp"),
            Self::Other => f.write_str("other"),
        }
    }
}

/// A set of requests, such as all requests that a source may send to a destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortSet {
    tcp: Ranges,
    udp: Ranges,
    icmp: bool,
    other: bool,
}

/// Inclusive ranges in ascending order, with at least one number between each two of them.
type Ranges = Vec<(u16, u16)>;

impl PortSet {
    /// The set without anything in it.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The set of every port and protocol.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            tcp: vec![(0, u16::MAX)],
            udp: vec![(0, u16::MAX)],
            icmp: true,
            other: true,
        }
    }

    /// The ports from the first to the last of `range`.
    #[must_use]
    pub fn of_range(protocol: Protocol, range: RangeInclusive<u16>) -> Self {
        let mut set = Self::default();
        if !range.is_empty() {
            *set.ranges_mut(protocol) = vec![(*range.start(), *range.end())];
        }
        set
    }

    /// The set with `asked` alone.
    #[must_use]
    pub fn of(asked: Asked) -> Self {
        match asked {
            Asked::Port(protocol, port) => Self::of_range(protocol, port..=port),
            Asked::Icmp => Self {
                icmp: true,
                ..Self::default()
            },
            Asked::Other => Self {
                other: true,
                ..Self::default()
            },
        }
    }

    /// Whether `asked` is in the set.
    #[must_use]
    pub fn contains(&self, asked: Asked) -> bool {
        match asked {
            Asked::Port(protocol, port) => {
                let ranges = self.slice(protocol);
                let after = ranges.partition_point(|(first, _)| *first <= port);
                let last = after.checked_sub(1).and_then(|at| ranges.get(at));
                last.is_some_and(|(_, last)| port <= *last)
            }
            Asked::Icmp => self.icmp,
            Asked::Other => self.other,
        }
    }

    /// The ports of one protocol, as ranges in ascending order that do not touch.
    pub fn ranges(&self, protocol: Protocol) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        let ranges = self.slice(protocol).iter();
        ranges.map(|(first, last)| *first..=*last)
    }

    /// Something in the set, if anything is.
    #[must_use]
    pub fn first(&self) -> Option<Asked> {
        let port = |protocol| {
            let first = self.slice(protocol).first();
            first.map(|(first, _)| Asked::Port(protocol, *first))
        };
        port(Protocol::Tcp)
            .or_else(|| port(Protocol::Udp))
            .or_else(|| self.icmp.then_some(Asked::Icmp))
            .or_else(|| self.other.then_some(Asked::Other))
    }

    /// The set with its ports of TCP and UDP only.
    #[must_use]
    pub fn numbered(&self) -> Self {
        Self {
            icmp: false,
            other: false,
            ..self.clone()
        }
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty() && !self.icmp && !self.other
    }

    /// Whether every port and protocol is in the set.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::everything()
    }

    /// Adds everything that is in `more`.
    pub fn add(&mut self, more: &Self) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if !more.slice(protocol).is_empty() {
                let joined = union(self.slice(protocol), more.slice(protocol));
                *self.ranges_mut(protocol) = joined;
            }
        }
        self.icmp |= more.icmp;
        self.other |= more.other;
    }

    /// Everything in this set that is not in `less`.
    #[must_use]
    pub fn without(&self, less: &Self) -> Self {
        Self {
            tcp: difference(&self.tcp, &less.tcp),
            udp: difference(&self.udp, &less.udp),
            icmp: self.icmp && !less.icmp,
            other: self.other && !less.other,
        }
    }

    /// The ranges of a protocol.
    fn slice(&self, protocol: Protocol) -> &[(u16, u16)] {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    fn ranges_mut(&mut self, protocol: Protocol) -> &mut Ranges {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }
}

impl Extend<Asked> for PortSet {
    fn extend<T: IntoIterator<Item = Asked>>(&mut self, more: T) {
        // Adding them one by one would sort the ranges for each, and members decide how many ports there are.
        let mut added = Self::default();
        for asked in more {
            match asked {
                Asked::Port(protocol, port) => added.ranges_mut(protocol).push((port, port)),
                Asked::Icmp => added.icmp = true,
                Asked::Other => added.other = true,
            }
        }
        self.add(&added);
    }
}

impl FromIterator<Asked> for PortSet {
    fn from_iter<T: IntoIterator<Item = Asked>>(all: T) -> Self {
        let mut set = Self::default();
        set.extend(all);
        set
    }
}

/// Ports are written as in a policy: `80, 443, 53/udp, icmp, other`. The largest set is `everything`, and the empty one is `nothing`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("everything");
        }
        let mut parts = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ending = match protocol {
                Protocol::Tcp => "",
                Protocol::Udp => "/udp",
            };
            parts.extend(self.slice(protocol).iter().map(|(first, last)| {
                if first == last {
                    format!("{first}{ending}")
                } else {
                    format!("{first}-{last}{ending}")
                }
            }));
        }
        parts.extend(self.icmp.then(|| "icmp".to_owned()));
        parts.extend(self.other.then(|| "other".to_owned()));
        if parts.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&parts.join(", "))
    }
}

fn union(a: &[(u16, u16)], b: &[(u16, u16)]) -> Ranges {
    let mut all: Ranges = a.iter().chain(b).copied().collect();
    all.sort_unstable();
    let mut joined: Ranges = Vec::with_capacity(all.len());
    for (first, last) in all {
        match joined.last_mut() {
            // Ranges that touch become one, so that equal sets have equal ranges.
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

fn difference(a: &[(u16, u16)], b: &[(u16, u16)]) -> Ranges {
    let mut rest = Vec::new();
    for (first, last) in a {
        // The first number that is not decided yet; none after the last port.
        let mut from = Some(*first);
        // A member can declare thousands of ports, so the ranges of `b` that end before this one are not looked at one by one.
        let before = b.partition_point(|(_, cut_last)| cut_last < first);
        for (cut_first, cut_last) in b.iter().skip(before) {
            let Some(start) = from else { break };
            if *cut_first > *last {
                break;
            }
            if *cut_first > start {
                rest.push((start, cut_first - 1));
            }
            from = cut_last.checked_add(1).filter(|next| next <= last);
        }
        rest.extend(from.map(|start| (start, *last)));
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ports() -> impl Strategy<Value = PortSet> {
        let edges = prop_oneof![0..20u16, 65_530..=u16::MAX];
        let range = (edges.clone(), edges, any::<bool>()).prop_map(|(a, b, udp)| {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            PortSet::of_range(protocol, a.min(b)..=a.max(b))
        });
        (prop::collection::vec(range, 0..5), any::<[bool; 2]>()).prop_map(|(all, [icmp, other])| {
            let mut set = PortSet::nothing();
            all.iter().for_each(|range| set.add(range));
            set.extend(icmp.then_some(Asked::Icmp));
            set.extend(other.then_some(Asked::Other));
            set
        })
    }

    fn everything_asked() -> impl Iterator<Item = Asked> {
        let ports = (0..25).chain(65_525..=u16::MAX);
        let both = |port| [Protocol::Tcp, Protocol::Udp].map(|p| Asked::Port(p, port));
        ports.flat_map(both).chain([Asked::Icmp, Asked::Other])
    }

    proptest! {
        #[test]
        fn sums_and_differences_have_what_each_port_says(a in ports(), b in ports()) {
            let mut sum = a.clone();
            sum.add(&b);
            let rest = a.without(&b);
            for asked in everything_asked() {
                let (in_a, in_b) = (a.contains(asked), b.contains(asked));
                prop_assert_eq!(sum.contains(asked), in_a || in_b, "{} of {} and {}", asked, a, b);
                prop_assert_eq!(rest.contains(asked), in_a && !in_b, "{} of {} without {}", asked, a, b);
            }
        }

        #[test]
        fn equal_sets_are_equal_values(a in ports(), b in ports()) {
            let mut one = a.clone();
            one.add(&b);
            let mut other = b.without(&a);
            other.add(&a);
            prop_assert_eq!(one, other);
        }
    }

    #[test]
    fn a_set_is_printed_as_a_policy_has_it() {
        let mut set: PortSet = [443, 80, 81]
            .map(|p| Asked::Port(Protocol::Tcp, p))
            .into_iter()
            .collect();
        assert_eq!(set.to_string(), "80-81, 443");
        set.extend([Asked::Port(Protocol::Udp, 53), Asked::Icmp]);
        assert_eq!(set.to_string(), "80-81, 443, 53/udp, icmp");
        assert_eq!(PortSet::nothing().to_string(), "nothing");
        assert_eq!(PortSet::everything().to_string(), "everything");
    }
}
