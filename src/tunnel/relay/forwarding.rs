//! Decides about frames to a relay.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::frame::Header;
use super::reasons::RelayDrop;
use super::tag::{Tag, Tags};
use crate::model::rate::{Bucket, Rate};

/// How long a destination may be silent on its own paths. A member with a session sends at least every 25 s.
const HEARD_WITHIN: Duration = Duration::from_secs(180);
/// How long frames by a former path of a member are accepted: packets that were under way when it moved. Nothing is sent by such a path.
const FORMER_FOR: Duration = Duration::from_secs(10);
/// The maximum number of paths of one member, present and former.
const MAX_PATHS: usize = 24;
/// The maximum number of members at one endpoint. There is more than one only if a member forges the source of its packets.
const MAX_AT_ENDPOINT: usize = 4;
/// How much of a second's amount a member may send at once.
const BURST: f64 = 0.1;
/// The least number of bytes that a member may send at once: the largest run of segments that the kernel merges.
const MIN_BURST: f64 = 65_536.0;

/// How much a relay forwards for each member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimit {
    /// The number of bits that a member may have forwarded each second.
    pub bits_per_second: u64,
}

impl RelayLimit {
    fn rate(self) -> Rate {
        let per_second = self.bits_per_second as f64 / 8.0;
        Rate {
            per_second,
            burst: (per_second * BURST).max(MIN_BURST),
        }
    }
}

/// The members for which this node relays, and how much each one may still send.
#[derive(Debug)]
pub struct Relay {
    tags: Tags,
    /// None if this node does not relay.
    limit: Option<RelayLimit>,
    members: HashMap<Ipv4Addr, Member>,
    /// The members by the endpoints from which they send.
    sources: HashMap<SocketAddr, Vec<MemberAt>>,
    load: Load,
}

/// A member that may send frames.
#[derive(Debug)]
struct Member {
    bucket: Bucket,
    paths: Vec<MemberPath>,
    /// The number of its open streams.
    streams: usize,
}

/// A path on which a member reaches this node.
#[derive(Debug, Clone, Copy)]
struct MemberPath {
    endpoint: SocketAddr,
    /// Since when the path is a former one.
    former_since: Option<Instant>,
}

/// Where a frame came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// By UDP from this endpoint. The tag of the frame shows which member sent it.
    Endpoint(SocketAddr),
    /// By the stream of this member, which proved its identity.
    Stream(Ipv4Addr),
}

impl From<SocketAddr> for Source {
    fn from(endpoint: SocketAddr) -> Self {
        Self::Endpoint(endpoint)
    }
}

/// A member at an endpoint.
#[derive(Debug, Clone, Copy)]
struct MemberAt {
    member: Ipv4Addr,
    /// The tags that are valid in `epoch`. They are kept because each frame is compared with them.
    valid: [Tag; 2],
    epoch: u64,
}

/// A member that is reached by a path of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination<P> {
    /// The path to send to it.
    pub path: P,
    /// When an authentic packet of the member last arrived on a path that leads through no other relay.
    pub heard: Option<Instant>,
}

/// What to do with the frames of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward<P> {
    /// The path to send them on.
    pub to: P,
    /// The header to replace theirs with.
    pub header: Header,
}

impl Relay {
    /// A relay that knows no member yet. `seed` is secret, random and used for nothing else. Without a limit it forwards nothing.
    #[must_use]
    pub fn new(seed: [u8; 32], limit: Option<RelayLimit>, now: Instant) -> Self {
        Self {
            tags: Tags::new(seed, now),
            limit,
            members: HashMap::new(),
            sources: HashMap::new(),
            load: Load::new(now),
        }
    }

    /// Sets how much each member may send. Without a limit this node forwards nothing.
    pub fn set_limit(&mut self, limit: Option<RelayLimit>, now: Instant) {
        if self.limit == limit {
            return;
        }
        self.limit = limit;
        if let Some(limit) = limit {
            for member in self.members.values_mut() {
                member.bucket = Bucket::full(limit.rate(), now);
            }
        }
    }

    /// Whether this node relays.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.limit.is_some()
    }

    /// The tag to give to `member`, which was seen at `endpoint`. None if this node does not relay.
    #[must_use]
    pub fn tag(&self, member: Ipv4Addr, endpoint: SocketAddr, now: Instant) -> Option<Tag> {
        self.limit?;
        Some(self.tags.tag(member, endpoint, now))
    }

    /// How much of the limit of one member all members use together: 0 is nothing, 255 is all or more.
    #[must_use]
    pub fn load(&self, now: Instant) -> u8 {
        let Some(limit) = self.limit else {
            return 0;
        };
        let share = self.load.bytes_per_second(now) / limit.rate().per_second.max(1.0);
        (share.min(1.0) * 255.0) as u8
    }

    /// The present direct paths of `member` are those to `endpoints`. Its other paths become former ones. A member without paths is
    /// forgotten when its former paths are too old.
    pub fn handle_paths(&mut self, member: Ipv4Addr, endpoints: &[SocketAddr], now: Instant) {
        if !self.members.contains_key(&member) && endpoints.is_empty() {
            return;
        }
        let state = self.member_mut(member, now);
        for path in &mut state.paths {
            let is_present = endpoints.contains(&path.endpoint);
            path.former_since = (!is_present).then(|| path.former_since.unwrap_or(now));
        }
        for endpoint in endpoints.iter().take(MAX_PATHS) {
            if !state.paths.iter().any(|path| path.endpoint == *endpoint) {
                state.paths.push(MemberPath {
                    endpoint: *endpoint,
                    former_since: None,
                });
            }
        }
        for endpoint in endpoints.iter().take(MAX_PATHS) {
            self.add_source(*endpoint, member, now);
        }
        self.forget(member, now);
    }

    /// `member` has opened a stream.
    pub fn handle_stream_opened(&mut self, member: Ipv4Addr, now: Instant) {
        self.member_mut(member, now).streams += 1;
    }

    /// A stream of `member` is closed.
    pub fn handle_stream_closed(&mut self, member: Ipv4Addr, now: Instant) {
        if let Some(state) = self.members.get_mut(&member) {
            state.streams = state.streams.saturating_sub(1);
        }
        self.forget(member, now);
    }

    /// Forgets former paths that are too old. Called when the paths of a member have changed; frames from such paths are not
    /// forwarded in any case.
    pub fn handle_timeout(&mut self, now: Instant) {
        let members = self.members.iter();
        let has_former = |member: &Member| member.paths.iter().any(|p| p.former_since.is_some());
        let members = members.filter(|(_, member)| has_former(member));
        let members: Vec<Ipv4Addr> = members.map(|(address, _)| *address).collect();
        for member in members {
            self.forget(member, now);
        }
    }

    /// Decides about a run of frames with one header that came from `from`, and whose messages have `bytes` in all. `destination`
    /// looks up a member by its mesh address, and may ask whether an endpoint is that of a present path of this member. This neither
    /// allocates nor waits.
    ///
    /// # Errors
    /// The frames are to be dropped, for this reason.
    pub fn decide<P>(
        &mut self,
        header: Header,
        from: impl Into<Source>,
        bytes: usize,
        destination: impl FnOnce(Ipv4Addr, &dyn Fn(SocketAddr) -> bool) -> Option<Destination<P>>,
        now: Instant,
    ) -> Result<Forward<P>, RelayDrop> {
        if self.limit.is_none() {
            return Err(RelayDrop::NotOffered);
        }
        let source = match from.into() {
            Source::Endpoint(from) => self.source(from, header.tag, now)?,
            Source::Stream(member) => member,
        };
        if header.label == source {
            return Err(RelayDrop::ToSender);
        }
        // A member that was never heard by a path of its own may not understand frames, and one whose paths have all failed is not
        // reached: what is sent by a path that failed could spoil the next punch at the router of the member.
        let member = self.members.get(&header.label);
        let member = member.filter(|member| member.is_reached());
        let member = member.ok_or(RelayDrop::UnknownDestination)?;
        let found = destination(header.label, &|endpoint| member.is_at(endpoint));
        let found = found.ok_or(RelayDrop::UnknownDestination)?;
        let silence = found.heard.map(|at| now.saturating_duration_since(at));
        if silence.is_none_or(|silence| silence > HEARD_WITHIN) {
            return Err(RelayDrop::NotHeard);
        }
        let member = self.members.get_mut(&source);
        let member = member.ok_or(RelayDrop::UnknownSource)?;
        if !member.bucket.take_all(bytes as f64, now) {
            return Err(RelayDrop::Limit);
        }
        self.load.add(bytes, now);
        Ok(Forward {
            to: found.path,
            header: Header {
                label: source,
                tag: None,
            },
        })
    }

    /// The member that sends from `from` and has this tag.
    fn source(
        &mut self,
        from: SocketAddr,
        tag: Option<Tag>,
        now: Instant,
    ) -> Result<Ipv4Addr, RelayDrop> {
        let epoch = self.tags.epoch(now);
        let sources = self.sources.get_mut(&from);
        let sources = sources.ok_or(RelayDrop::UnknownSource)?;
        let mut reason = RelayDrop::UnknownSource;
        for source in sources {
            let member = self.members.get(&source.member);
            if !member.is_some_and(|member| member.sends_from(from, now)) {
                continue;
            }
            if source.epoch != epoch {
                source.valid = self.tags.valid(epoch, source.member, from);
                source.epoch = epoch;
            }
            // A tag is no secret key: whoever can measure the comparison has to guess within 2^32 all the same.
            if tag.is_some_and(|tag| source.valid.contains(&tag)) {
                return Ok(source.member);
            }
            reason = RelayDrop::BadTag;
        }
        Err(reason)
    }

    /// What is known of `member`, which is added if nothing is.
    fn member_mut(&mut self, member: Ipv4Addr, now: Instant) -> &mut Member {
        let rate = self.limit.map_or(NOTHING, RelayLimit::rate);
        self.members.entry(member).or_insert_with(|| Member {
            bucket: Bucket::full(rate, now),
            paths: Vec::new(),
            streams: 0,
        })
    }

    /// `member` may send from `endpoint`. It may have been displaced there by members that forged their source.
    fn add_source(&mut self, endpoint: SocketAddr, member: Ipv4Addr, now: Instant) {
        let sources = self.sources.get(&endpoint);
        if sources.is_some_and(|sources| sources.iter().any(|source| source.member == member)) {
            return;
        }
        let epoch = self.tags.epoch(now);
        let source = MemberAt {
            member,
            valid: self.tags.valid(epoch, member, endpoint),
            epoch,
        };
        let sources = self.sources.entry(endpoint).or_default();
        if sources.len() >= MAX_AT_ENDPOINT {
            sources.remove(0);
        }
        sources.push(source);
    }

    fn remove_source(&mut self, endpoint: SocketAddr, member: Ipv4Addr) {
        if let Some(sources) = self.sources.get_mut(&endpoint) {
            sources.retain(|source| source.member != member);
            if sources.is_empty() {
                self.sources.remove(&endpoint);
            }
        }
    }

    /// Forgets the former paths of `member` that are too old or too many, and the member itself if it has no path left.
    fn forget(&mut self, member: Ipv4Addr, now: Instant) {
        let Some(state) = self.members.get_mut(&member) else {
            return;
        };
        let mut gone = Vec::new();
        state.paths.retain(|path| {
            let stays = path.is_usable(now);
            if !stays {
                gone.push(path.endpoint);
            }
            stays
        });
        while state.paths.len() > MAX_PATHS {
            let former = state.paths.iter().position(|p| p.former_since.is_some());
            gone.push(state.paths.remove(former.unwrap_or(0)).endpoint);
        }
        if state.paths.is_empty() && state.streams == 0 {
            self.members.remove(&member);
        }
        for endpoint in gone {
            self.remove_source(endpoint, member);
        }
    }
}

#[cfg(test)]
impl Relay {
    /// The number of members and of endpoints, and the largest number of members at one endpoint.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        let most = self.sources.values().map(Vec::len).max();
        (
            self.members.len(),
            self.sources.len(),
            most.unwrap_or_default(),
        )
    }
}

/// The rate while this node does not relay.
const NOTHING: Rate = Rate {
    per_second: 0.0,
    burst: 0.0,
};

impl Member {
    fn is_reached(&self) -> bool {
        self.streams > 0 || self.paths.iter().any(MemberPath::is_present)
    }

    fn is_at(&self, endpoint: SocketAddr) -> bool {
        let mut paths = self.paths.iter().filter(|path| path.is_present());
        paths.any(|path| path.endpoint == endpoint)
    }

    fn sends_from(&self, endpoint: SocketAddr, now: Instant) -> bool {
        let mut paths = self.paths.iter();
        paths.any(|path| path.endpoint == endpoint && path.is_usable(now))
    }
}

impl MemberPath {
    fn is_present(&self) -> bool {
        self.former_since.is_none()
    }

    /// Whether frames of the member are accepted that come by it.
    fn is_usable(&self, now: Instant) -> bool {
        let since = self
            .former_since
            .map(|at| now.saturating_duration_since(at));
        since.is_none_or(|since| since <= FORMER_FOR)
    }
}

/// Counts the bytes of the present second and of the one before.
#[derive(Debug)]
struct Load {
    second: Instant,
    present: u64,
    before: u64,
}

impl Load {
    fn new(now: Instant) -> Self {
        Self {
            second: now,
            present: 0,
            before: 0,
        }
    }

    fn add(&mut self, bytes: usize, now: Instant) {
        let since = now.saturating_duration_since(self.second);
        if since >= Duration::from_secs(1) {
            let is_next = since < Duration::from_secs(2);
            self.before = if is_next { self.present } else { 0 };
            self.present = 0;
            self.second = now;
        }
        self.present = self.present.saturating_add(bytes as u64);
    }

    fn bytes_per_second(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.second);
        match since.as_secs() {
            0 => self.present.max(self.before) as f64,
            1 => self.present as f64,
            _ => 0.0,
        }
    }
}
