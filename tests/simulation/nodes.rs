//! The shell of a node: carries out what its replica asks for, and brings the netmap, the zone and the node's own records in step
//! with its ledger, as `node::joined` does it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshd::dns::{Replaced, WhenNoneUsable, Zone, ZoneInput};
use meshd::model::key::KeyProof;
use meshd::model::time::{UnixSeconds, next_version};
use meshd::model::{Label, PublicKey};
use meshd::node::gossip::exchange::{Exchange, Step};
use meshd::node::replica::{Changes, Effect, LedgerReply, LedgerRequest, Opening, StreamEvent};
use meshd::protocol::api::{ApiError, ErrorCode};
use meshd::protocol::control::FromCoordinator;
use meshd::protocol::gossip::PeerMessage;
use meshd::protocol::join::{JoinRequest, JoinResponse};
use meshd::protocol::url::CoordinatorUrl;
use meshd::records::kinds::{
    Health, Instance, Membership, Name, Node, Port, Protocol, Record, RecordKey, Service, Source,
};
use meshd::records::service_address::ServiceAddresses;

use super::machine::{Machine, Stage, Talk, Up};
use super::network::{Message, Place, Purpose, Side, StreamId};
use super::queue::Event;
use super::store::Sabotage;
use super::uplink::{Received, Uplink};
use super::world::World;

/// How long a conversation of two nodes may take.
const TALK_LIMIT: Duration = Duration::from_secs(20);
/// A node compares its records with those that it wants to publish about this often, besides after each change.
const RECONCILE_SECONDS: u64 = 10;
/// How long it takes to find out that a peer does not answer.
const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// The URL of a coordinator.
pub(crate) fn url_of(site: usize) -> CoordinatorUrl {
    let url = format!("https://c{site}.example:7443");
    url.parse().expect("it has a scheme, a host and a port")
}

fn site_of(url: &CoordinatorUrl) -> Option<usize> {
    url.host()
        .strip_prefix('c')?
        .split('.')
        .next()?
        .parse()
        .ok()
}

pub(crate) fn label(text: &str) -> Label {
    Label::parse(text).expect("it is made of lower case letters and digits")
}

// Joining.
impl World {
    pub(crate) fn add_machine(&mut self, is_hostile: bool) -> usize {
        let number = self.machines.len();
        let key = meshd::model::SigningKey::from_seed(&self.random.bytes());
        let token = self.administrator.token_for(is_hostile, &mut self.random);
        let mut machine = Machine {
            key,
            name: label(&format!("n{number}")),
            token,
            stage: Stage::New,
            run: 0,
            files: super::machine::Files::default(),
            backup: None,
            is_disk_full: false,
            skew: 0,
            has_left: false,
            is_deceived: false,
            is_hostile,
            offers: BTreeMap::new(),
            noted: None,
        };
        machine.files.set_wireguard(self.random.bytes());
        // Some nodes want a name that another one has.
        if number > 0 && self.random.percent(10) {
            machine.name = label(&format!("n{}", self.random.index(number)));
        }
        self.machines.push(machine);
        for _ in 0..self.random.below(3) {
            self.change_services(number);
        }
        number
    }

    /// Makes the request of a node to be admitted. The node stores it before it sends it, and sends the same again.
    fn join_request(&mut self, node: usize) -> JoinRequest {
        let machine = &self.machines[node];
        let token = self.administrator.tokens[machine.token].key.clone();
        let membership = Membership {
            id: machine.id(),
            version: 1,
            token: token.public(),
            name: machine.name.clone(),
            wireguard_key: machine.files.wireguard_key(),
            tags: Vec::new(),
            issued_at: UnixSeconds::from_system(self.wall(machine.skew)),
            proof: None,
        };
        let membership = membership.proven_by(&machine.key);
        let envelope = self.truth.sign(&Record::Membership(membership), &token);
        JoinRequest::make(envelope, &self.machines[node].key)
    }

    pub(crate) fn try_to_join(&mut self, node: usize) {
        let request = match &self.machines[node].stage {
            Stage::New => self.join_request(node),
            Stage::Joining(request) => request.clone(),
            _ => return,
        };
        let site = self.random.index(self.sites.len());
        let from = Place::Node(node);
        let stream = self.connect(from, Place::Coordinator(site), Purpose::Join);
        if let Some(stream) = stream {
            self.send(stream, 0, Message::Join(request.clone()));
        }
        let machine = &mut self.machines[node];
        machine.stage = Stage::Joining(request);
        let again = Duration::from_millis(4000 + self.random.below(4000));
        let event = Event::Join(node, self.machines[node].run);
        self.queue.add(self.now + again, event);
    }

    fn handle_joined(&mut self, node: usize, answer: Result<JoinResponse, ApiError>) {
        if !matches!(self.machines[node].stage, Stage::Joining(..)) {
            return self.handle_lease(node, answer);
        }
        match answer {
            Ok(response) => {
                self.note(|| format!("n{node} is admitted with block {}", response.block.v4));
                let is_deceived = !self.truth.has_admitted(&self.machines[node].id());
                let machine = &mut self.machines[node];
                machine.is_deceived = is_deceived;
                machine.files.join(response.block, response.records);
                machine.run += 1;
                self.start(node);
            }
            Err(error) => {
                self.note_once(node, format!("n{node} is not admitted: {}", error.message));
                let suggested = error
                    .suggestion
                    .as_deref()
                    .and_then(|s| Label::parse(s).ok());
                if let Some(name) = suggested {
                    // A person tries the name that the coordinator suggests.
                    self.machines[node].name = name;
                    self.machines[node].stage = Stage::New;
                } else if error.code == ErrorCode::Forbidden {
                    self.machines[node].stage = Stage::Gone;
                } else if error.code == ErrorCode::Configuration {
                    // A person sets the clock right and begins again.
                    self.machines[node].skew = 0;
                    self.machines[node].stage = Stage::New;
                } else if error.message.contains("meshctl token create") && !self.may_come_back() {
                    // The coordinator waits for its members, because one of them may know that the token was used. No member is
                    // left, so a person makes a new token, as the message recommends.
                    self.machines[node].token = self.administrator.new_token(&mut self.random);
                    self.machines[node].stage = Stage::New;
                    self.publish_tokens();
                }
            }
        }
    }

    /// A coordinator answered which block is leased to a node.
    fn handle_lease(&mut self, node: usize, answer: Result<JoinResponse, ApiError>) {
        if let Err(error) = &answer
            && matches!(
                error.code,
                ErrorCode::Forbidden | ErrorCode::Conflict | ErrorCode::Configuration
            )
            && self.is_late()
            && !self.machines[node].has_left
        {
            // The coordinator lost the join. Its token has no use left since, another node has the name, or the join is too old.
            // The node's membership is then worth no more than that of a stranger, so a person has it leave, as
            // docs/threat-model.md says.
            self.note(|| format!("n{node} is not admitted again: {}", error.message));
            return self.leave(node);
        }
        let (Ok(response), Some(up)) = (answer, self.machines[node].up_mut()) else {
            return;
        };
        if let Some(block) = up.replica.handle_leased(Ok(response.block)) {
            self.note(|| format!("n{node} moves to block {}", block.v4));
            self.machines[node].files.block = Some(block);
            self.stop_node(node);
            self.start(node);
        } else {
            self.drain(node);
        }
    }

    /// Whether an honest node that has joined is left, which can offer a coordinator what its store lost. While there are faults,
    /// people assume that such a node may come back.
    fn may_come_back(&self) -> bool {
        let has_joined =
            |m: &Machine| !matches!(m.stage, Stage::New | Stage::Joining(..) | Stage::Gone);
        !self.is_calm
            || self.machines.iter().any(|machine| {
                let is_out = self.administrator.has_ended(&machine.id(), machine.token);
                has_joined(machine) && !is_out && !machine.has_left && !machine.is_hostile
            })
    }

    /// The program of a node starts with what is on its disk.
    pub(crate) fn start(&mut self, node: usize) {
        let mesh = self.administrator.mesh.public();
        let urls = (0..self.sites.len()).map(url_of).collect::<Vec<_>>();
        let machine = &self.machines[node];
        let now = self.clock(machine.skew);
        let started = machine.files.start(mesh, &machine.key, urls.clone(), now);
        let Some((replica, position)) = started else {
            // It was stopped before it had joined.
            self.machines[node].stage = Stage::New;
            return self.try_to_join(node);
        };
        self.note(|| format!("n{node} starts with {} records", replica.ledger().len()));
        let up = Up {
            replica,
            uplink: Uplink::new(urls, position),
            instance: format!("{:016x}", self.random.next()),
            writing: None,
            netmap: Default::default(),
            zone: Zone::default(),
            serial: 0,
            talks: BTreeMap::new(),
            reached: BTreeSet::new(),
            timer: None,
            smuggled: Vec::new(),
        };
        let machine = &mut self.machines[node];
        machine.stage = Stage::Up(Box::new(up));
        let run = machine.run;
        self.queue.add(self.now, Event::Dial(node, run));
        self.queue.add(self.now, Event::Settle(node, run));
        self.rebuild(node);
        self.publish_own(node);
        self.drain(node);
    }

    /// The program of a node ends at once.
    pub(crate) fn stop_node(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        machine.run += 1;
        machine.stage = Stage::Down;
        for (stream, side) in self.network.streams_of(Place::Node(node)) {
            self.close(stream, side);
        }
    }
}

// The control stream.
impl World {
    pub(crate) fn dial(&mut self, node: usize) {
        let Stage::Up(up) = &self.machines[node].stage else {
            return;
        };
        if up.uplink.stream().is_some() {
            return;
        }
        let Some(url) = up.uplink.pick(&mut self.random) else {
            return;
        };
        let site = site_of(&url).filter(|site| *site < self.sites.len());
        let place = site.map(Place::Coordinator);
        let stream = place.and_then(|to| self.connect(Place::Node(node), to, Purpose::Control));
        let id = self.machines[node].id();
        let now = self.now;
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        let (Some(stream), Some(site)) = (stream, site) else {
            let (event, wait) = up.uplink.handle_unreachable(url, &mut self.random);
            return self.handle_closed(node, event, wait);
        };
        let instance = up.instance.clone();
        let hello = up.uplink.handle_dialled(stream, url, id, (now, &instance));
        self.sites[site].handle_stream_opened(stream, now);
        self.send(stream, 0, Message::ToCoordinator(hello));
    }

    fn handle_closed(&mut self, node: usize, event: StreamEvent, wait: Duration) {
        let run = self.machines[node].run;
        self.queue.add(self.now + wait, Event::Dial(node, run));
        self.feed(node, event);
    }

    /// Gives an event of the control stream to the replica.
    fn feed(&mut self, node: usize, event: StreamEvent) {
        let now = self.clock(self.machines[node].skew);
        if let Some(up) = self.machines[node].up_mut() {
            up.replica.handle_stream(event, now);
        }
        self.drain(node);
    }

    fn carry_out_received(&mut self, node: usize, received: Received) {
        let Received {
            send,
            event,
            closed,
        } = received;
        let stream = self.machines[node].up().and_then(|up| up.uplink.stream());
        if let Some(stream) = stream {
            for message in send {
                self.send(stream, 0, Message::ToCoordinator(message));
            }
        }
        if let Some((stream, _)) = closed {
            self.close(stream, 0);
        }
        match (event, closed) {
            (Some(event), Some((_, wait))) => {
                if let StreamEvent::Closed { why, .. } = &event {
                    self.note_once(node, format!("n{node} lost its coordinator: {why}"));
                }
                self.handle_closed(node, event, wait);
            }
            (Some(event), None) => self.feed(node, event),
            (None, _) => {}
        }
    }

    pub(crate) fn receive_at_node(
        &mut self,
        node: usize,
        stream: StreamId,
        purpose: Purpose,
        message: Message,
    ) {
        let key = self.machines[node].key.clone();
        match (purpose, message) {
            (Purpose::Join, Message::Joined(answer)) => {
                self.close(stream, 0);
                self.handle_joined(node, *answer);
            }
            (Purpose::Control, Message::ToNode(message)) => {
                let now = self.now;
                self.smuggle(node, &message);
                let Some(up) = self.machines[node].up_mut() else {
                    return;
                };
                let world = (now, &mut self.random);
                let received = up.uplink.handle_message(stream, message, &key, world);
                self.carry_out_received(node, received);
            }
            (Purpose::Control, Message::Ping) => {
                let now = self.now;
                let Some(up) = self.machines[node].up_mut() else {
                    return;
                };
                if let Some(event) = up.uplink.handle_ping(stream, now) {
                    self.feed(node, event);
                }
            }
            (Purpose::Gossip, Message::Peer(message)) => self.handle_talk(node, stream, message),
            _ => {}
        }
    }

    /// A stream of this node is over.
    pub(crate) fn handle_end_at_node(&mut self, node: usize, stream: StreamId, purpose: Purpose) {
        match purpose {
            Purpose::Join => {}
            Purpose::Gossip => self.end_talk(node, stream, false),
            Purpose::Control => {
                let now = self.now;
                let Some(up) = self.machines[node].up_mut() else {
                    return;
                };
                if up.uplink.stream() == Some(stream) {
                    let why = "the coordinator closed the stream".to_owned();
                    let received = up.uplink.close(now, why, None, &mut self.random);
                    self.carry_out_received(node, received);
                }
            }
        }
    }
}

// The replica.
impl World {
    /// Carries out all that the replica asks for, and handles all that changed.
    pub(crate) fn drain(&mut self, node: usize) {
        // A replica that always wants something more is a defect.
        for _ in 0..10_000 {
            let Some(up) = self.machines[node].up_mut() else {
                return;
            };
            if let Some(effect) = up.replica.poll_effect() {
                self.carry_out(node, effect);
                continue;
            }
            let changes = up.replica.take_changes();
            if changes.is_empty() {
                return self.set_timer(node);
            }
            self.settle(node, &changes);
        }
        self.violate(format!("n{node}: the replica does not come to rest"));
    }

    fn set_timer(&mut self, node: usize) {
        let Some(up) = self.machines[node].up() else {
            return;
        };
        let due = up
            .replica
            .poll_timeout()
            .map(|due| self.at(due).max(self.now));
        let now = self.now;
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        if let Some(due) = due
            && up.timer.is_none_or(|timer| due < timer || timer < now)
        {
            // A timer that is due already must not hold the clock still.
            let due = due.max(now + Duration::from_millis(1));
            up.timer = Some(due);
            let event = Event::Timer(node, self.machines[node].run);
            self.queue.add(due, event);
        }
    }

    pub(crate) fn handle_timer(&mut self, node: usize) {
        let now = self.clock(self.machines[node].skew);
        if let Some(up) = self.machines[node].up_mut() {
            up.timer = None;
            up.replica.handle_time(now);
        }
        self.drain(node);
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        let now = self.now;
        let id = self.machines[node].id();
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        match effect {
            Effect::Send(message) => {
                if up.uplink.is_open()
                    && let Some(stream) = up.uplink.stream()
                {
                    self.note_signed_in(&id, &message);
                    self.send(stream, 0, Message::ToCoordinator(message));
                }
            }
            Effect::SetPosition(position) => up.uplink.set_position(position),
            Effect::SetUrls(urls) => up.uplink.set_urls(urls),
            Effect::Reopen => {
                let why = "this node requests all records again".to_owned();
                let received = up.uplink.close(now, why, None, &mut self.random);
                self.carry_out_received(node, received);
            }
            Effect::Write(request) => {
                up.writing = Some(request);
                let slow = if self.random.percent(5) { 2000 } else { 20 };
                let delay = Duration::from_millis(1 + self.random.below(slow));
                let event = Event::Written(node, self.machines[node].run);
                self.queue.add(now + delay, event);
            }
            Effect::Dial { peer, opening } => self.dial_peer(node, peer, opening, true),
            Effect::AskLease { urls, request } => {
                let site = urls.first().and_then(site_of).unwrap_or(0) % self.sites.len();
                let to = Place::Coordinator(site);
                if let Some(stream) = self.connect(Place::Node(node), to, Purpose::Join) {
                    self.send(stream, 0, Message::Join(request));
                }
            }
            Effect::Answered { .. } | Effect::Unanswered => {}
        }
    }

    pub(crate) fn handle_written(&mut self, node: usize) {
        let now = self.clock(self.machines[node].skew);
        let machine = &mut self.machines[node];
        let is_full = machine.is_disk_full;
        let Stage::Up(up) = &mut machine.stage else {
            return;
        };
        if let Some(request) = up.writing.take() {
            let outcome = machine.files.write(&request, is_full);
            up.replica.handle_written(&outcome, now);
        }
        self.drain(node);
    }

    /// What a node does from time to time: it gives up on silent streams, and learns which peers it reaches.
    pub(crate) fn handle_tick(&mut self, node: usize) {
        let now = self.now;
        let run = self.machines[node].run;
        let pause = if self.machines.len() > 20 { 5 } else { 1 };
        self.queue
            .add(now + Duration::from_secs(pause), Event::Settle(node, run));
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        if let Some(stream) = up.uplink.poll_ping(now) {
            self.send(stream, 0, Message::Ping);
        }
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        if let Some(why) = up.uplink.is_given_up(now) {
            let received = up.uplink.close(now, why.to_owned(), None, &mut self.random);
            self.carry_out_received(node, received);
        }
        self.follow_reach(node);
        if now.as_secs() % RECONCILE_SECONDS < pause {
            self.publish_own(node);
        }
        self.drain(node);
    }

    fn follow_reach(&mut self, node: usize) {
        let now = self.clock(self.machines[node].skew);
        let Some(up) = self.machines[node].up() else {
            return;
        };
        let peers: Vec<PublicKey> = up.netmap.members.keys().copied().collect();
        let reached: BTreeSet<PublicKey> = peers
            .into_iter()
            .filter(|peer| self.is_reached(node, peer))
            .collect();
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        let before = std::mem::replace(&mut up.reached, reached);
        let changed: Vec<PublicKey> = before.symmetric_difference(&up.reached).copied().collect();
        for peer in &changed {
            let reachable = up.reached.contains(peer);
            up.replica.handle_reach(peer, reachable, now);
        }
        if !changed.is_empty() {
            self.rebuild(node);
        }
    }

    /// Whether the tunnel between two nodes passes packets: both run, know each other's keys, and the path is not cut.
    fn is_reached(&self, node: usize, peer: &PublicKey) -> bool {
        let Some(other) = self.find(peer).filter(|other| *other != node) else {
            return false;
        };
        let (one, two) = (&self.machines[node], &self.machines[other]);
        let knows = |from: &Machine, to: &Machine| {
            let member = from.up().and_then(|up| up.netmap.members.get(&to.id()));
            member.is_some_and(|m| {
                Some(m.block) == to.block() && m.wireguard_key == to.files.wireguard_key()
            })
        };
        knows(one, two)
            && knows(two, one)
            && !self.network.is_cut(Place::Node(node), Place::Node(other))
    }
}

// Conversations with peers.
impl World {
    /// Begins a conversation with a peer. If the replica asked for it, the replica is told how it ends.
    pub(crate) fn dial_peer(
        &mut self,
        node: usize,
        peer: PublicKey,
        opening: Opening,
        is_reported: bool,
    ) {
        let other = self.find(&peer).filter(|_| self.is_reached(node, &peer));
        let stream = other.and_then(|other| {
            let (from, to) = (Place::Node(node), Place::Node(other));
            self.connect(from, to, Purpose::Gossip)
        });
        let (Some(stream), Some(other)) = (stream, other) else {
            if is_reported {
                let event = Event::Unreached(node, self.machines[node].run, peer);
                self.queue.add(self.now + DIAL_LIMIT, event);
            }
            return;
        };
        let nonce = |world: &mut Self| PublicKey(world.random.bytes()).to_string();
        let (one, two) = (nonce(self), nonce(self));
        let (own, key) = (self.machines[node].id(), self.machines[node].key.clone());
        let dialling = Exchange::dial(key, peer, one, opening);
        let answering = Exchange::answer(self.machines[other].key.clone(), own, two);
        let steps = dialling.begin();
        self.add_talk(node, stream, dialling, (peer, 0, is_reported));
        self.add_talk(other, stream, answering, (own, 1, false));
        for side in [0, 1] {
            self.queue
                .add(self.now + TALK_LIMIT, Event::Hangup(stream, side));
        }
        self.take_steps(node, stream, steps);
    }

    fn add_talk(
        &mut self,
        node: usize,
        stream: StreamId,
        exchange: Exchange,
        (peer, side, is_reported): (PublicKey, Side, bool),
    ) {
        if let Some(up) = self.machines[node].up_mut() {
            let talk = Talk {
                exchange,
                peer,
                side,
                is_reported,
            };
            up.talks.insert(stream, talk);
        }
    }

    pub(crate) fn handle_unreached(&mut self, node: usize, peer: PublicKey) {
        let now = self.clock(self.machines[node].skew);
        if let Some(up) = self.machines[node].up_mut() {
            up.replica.handle_conversation_ended(&peer, false, now);
        }
        self.drain(node);
    }

    fn handle_talk(&mut self, node: usize, stream: StreamId, message: PeerMessage) {
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        let Some(talk) = up.talks.get_mut(&stream) else {
            return;
        };
        // A node that departs compares nothing, and hangs up when its departure has arrived.
        if message == PeerMessage::Received && !talk.is_reported {
            return self.end_talk(node, stream, true);
        }
        match talk.exchange.handle_message(message) {
            Ok(steps) => self.take_steps(node, stream, steps),
            Err(broken) => {
                self.note(|| format!("n{node} breaks a conversation off: {broken}"));
                self.end_talk(node, stream, false);
            }
        }
        self.drain(node);
    }

    fn take_steps(&mut self, node: usize, stream: StreamId, steps: Vec<Step>) {
        let now = self.clock(self.machines[node].skew);
        let mut steps: std::collections::VecDeque<Step> = steps.into();
        while let Some(step) = steps.pop_front() {
            let Some(up) = self.machines[node].up_mut() else {
                return;
            };
            let Some(talk) = up.talks.get_mut(&stream) else {
                return;
            };
            let side = talk.side;
            match step {
                Step::Send(message) => self.send(stream, side, Message::Peer(message)),
                Step::Proven | Step::Flush => {}
                Step::Ask(request) => {
                    let is_of_records = matches!(request, LedgerRequest::Apply { .. });
                    let Some(reply) = up.replica.handle_request(request, now) else {
                        return self.end_talk(node, stream, false);
                    };
                    let is_forged =
                        matches!(&reply, LedgerReply::Applied(a) if is_of_records && a.forged);
                    if is_forged {
                        return self.end_talk(node, stream, false);
                    }
                    // The answers to what follows from this one come before the steps that are left.
                    for step in talk.exchange.handle_reply(reply).into_iter().rev() {
                        steps.push_front(step);
                    }
                }
                Step::End => return self.end_talk(node, stream, true),
            }
        }
    }

    fn end_talk(&mut self, node: usize, stream: StreamId, is_good: bool) {
        let now = self.clock(self.machines[node].skew);
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        let Some(talk) = up.talks.remove(&stream) else {
            return;
        };
        if talk.is_reported {
            up.replica
                .handle_conversation_ended(&talk.peer, is_good, now);
        }
        self.close(stream, talk.side);
        self.drain(node);
    }
}

// What follows from the ledger.
impl World {
    /// Brings the netmap and the zone in step with the ledger, and publishes this node's own records again if they are overruled.
    fn settle(&mut self, node: usize, changes: &Changes) {
        if changes.name.is_some() {
            self.note_own_name(node);
        }
        if let Err(why) = self.check_changes(node, &changes.records) {
            return self.violate(why);
        }
        let services: Option<Vec<String>> = changes
            .records
            .iter()
            .map(|key| match key {
                RecordKey::Service(id) => Some(id.to_string()),
                _ => None,
            })
            .collect();
        match services {
            Some(ids) if !ids.is_empty() => self.replace_services(node, &ids),
            _ => self.rebuild(node),
        }
        if changes.own {
            self.publish_own(node);
        }
        if let Err(why) = self.check_names(node, &changes.records) {
            self.violate(why);
        }
    }

    /// The replica signed another name record of its node by itself.
    fn note_own_name(&mut self, node: usize) {
        let machine = &self.machines[node];
        let key = RecordKey::Name(machine.id());
        let entry = machine.up().and_then(|up| up.replica.ledger().entry(&key));
        if let Some(envelope) = entry.map(|entry| entry.envelope.clone()) {
            let name = envelope.payload.clone();
            self.note(|| format!("n{node} gives up a name: {name}"));
            self.truth.note_signed(&envelope);
        }
    }

    /// Accepts what nobody should accept, if that is the sabotage.
    fn smuggle(&mut self, node: usize, message: &FromCoordinator) {
        if self.sabotage == Some(Sabotage::WrongSigner)
            && let FromCoordinator::Changes { records, .. } = message
            && let Some(up) = self.machines[node].up_mut()
        {
            up.smuggled.extend(records.iter().cloned());
        }
    }

    /// Takes a name out of the zone, if that is the sabotage.
    fn sabotage_zone(&mut self, node: usize) {
        let id = self.machines[node].id();
        let is_meant = self.sabotage == Some(Sabotage::LoseName);
        let Some(up) = self.machines[node].up_mut().filter(|_| is_meant) else {
            return;
        };
        let netmap = up.netmap.clone();
        if netmap.services.len() > 2 {
            up.netmap.services.pop_last();
            let unreachable = unreachable(up, &id);
            let held = ServiceAddresses::default();
            up.zone = Zone::build(&zone_input(up, id, &unreachable, &held));
        }
        up.netmap = netmap;
    }

    /// Computes the netmap and the zone from nothing.
    pub(crate) fn rebuild(&mut self, node: usize) {
        let id = self.machines[node].id();
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        up.netmap = up.replica.ledger().netmap();
        up.serial += 1;
        let unreachable = unreachable(up, &id);
        up.zone = Zone::build(&zone_input(
            up,
            id,
            &unreachable,
            &ServiceAddresses::default(),
        ));
        self.sabotage_zone(node);
    }

    /// Brings single services of the zone in step, as the product does if nothing else changed.
    fn replace_services(&mut self, node: usize, ids: &[String]) {
        let id = self.machines[node].id();
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        let mut before = Vec::new();
        for service in ids.iter().collect::<BTreeSet<_>>() {
            let Some(key) = up.replica.ledger().service(service).map(|s| s.id.clone()) else {
                return self.rebuild(node);
            };
            let replaced = up.replica.ledger().renew(&mut up.netmap, &key);
            before.push((key, replaced));
        }
        up.serial += 1;
        let unreachable = unreachable(up, &id);
        let replaced: Vec<Replaced<'_>> = before
            .iter()
            .map(|(key, before)| Replaced {
                before: before.as_ref(),
                now: up.netmap.services.get(key),
            })
            .collect();
        let held = ServiceAddresses::default();
        let (zone, _) = up
            .zone
            .replace(&zone_input(up, id, &unreachable, &held), &replaced);
        up.zone = zone;
        self.sabotage_zone(node);
    }

    /// Publishes the records of a node that differ from what its ledger holds.
    pub(crate) fn publish_own(&mut self, node: usize) {
        let now = self.clock(self.machines[node].skew);
        let random = self.random.bytes();
        let machine = &self.machines[node];
        let Some(up) = machine.up() else {
            return;
        };
        if up.replica.is_out() {
            return;
        }
        let records = wanted(machine, up, now, &random);
        if records.is_empty() {
            return;
        }
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        let published = up.replica.publish(records, now);
        let ledger = up.replica.ledger();
        let made: Vec<_> = published
            .accepted
            .iter()
            .filter_map(|key| ledger.entry(key))
            .map(|entry| entry.envelope.clone())
            .collect();
        for envelope in &made {
            self.truth.note_signed(envelope);
        }
        if let Some((_, why)) = published.refused.first() {
            self.note_once(
                node,
                format!("n{node} cannot publish a record of its own: {why}"),
            );
        }
    }

    /// Publishes another name of a node.
    pub(crate) fn rename(&mut self, node: usize, name: Label) {
        let now = self.clock(self.machines[node].skew);
        let id = self.machines[node].id();
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        let ledger = up.replica.ledger();
        if up.replica.is_out() || ledger.is_name_of_another(&name, &id) {
            return;
        }
        let held = ledger.wanted_name(&id).map_or(0, |held| held.version);
        let last = up
            .replica
            .acceptance()
            .last_version(&RecordKey::Name(id), held);
        let record = Record::Name(Name {
            id,
            version: next_version(last, now.wall),
            name,
        });
        let published = up.replica.publish(vec![record], now);
        let made = published.accepted.first();
        let made = made.and_then(|key| up.replica.ledger().entry(key));
        if let Some(envelope) = made.map(|entry| entry.envelope.clone()) {
            self.truth.note_signed(&envelope);
        }
        self.drain(node);
    }
}

fn unreachable(up: &Up, own: &PublicKey) -> BTreeSet<PublicKey> {
    let peers = up.netmap.members.keys();
    peers
        .filter(|peer| *peer != own && !up.reached.contains(peer))
        .copied()
        .collect()
}

fn zone_input<'a>(
    up: &'a Up,
    own: PublicKey,
    unreachable: &'a BTreeSet<PublicKey>,
    held: &'a ServiceAddresses,
) -> ZoneInput<'a> {
    static NOTHING: (
        BTreeMap<PublicKey, u8>,
        BTreeSet<String>,
        BTreeSet<std::net::Ipv4Addr>,
    ) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    ZoneInput {
        netmap: &up.netmap,
        own,
        unreachable,
        groups: &NOTHING.0,
        when_none_usable: WhenNoneUsable::All,
        lingering: &NOTHING.1,
        balanced: &NOTHING.2,
        held,
        serial: up.serial,
        most_addresses: 8,
    }
}

/// The records that a node has to publish, as `node::own_records` computes them.
fn wanted(
    machine: &Machine,
    up: &Up,
    now: meshd::model::time::Now,
    random: &[u8; 32],
) -> Vec<Record> {
    let id = machine.id();
    let (ledger, acceptance) = (up.replica.ledger(), up.replica.acceptance());
    let overruled = |key: &RecordKey| acceptance.is_overruled(key, now.monotonic);
    let version =
        |key: &RecordKey, held: u64| next_version(acceptance.last_version(key, held), now.wall);
    let Some(block) = machine.files.block.filter(|_| ledger.mesh().is_some()) else {
        return Vec::new();
    };
    let mut records = Vec::new();
    let key = RecordKey::Node(id);
    let held = ledger.node(&id);
    let wireguard_key = machine.files.wireguard_key();
    let is_same = held.is_some_and(|held| {
        held.wireguard_key == wireguard_key && held.block == block && held.key_proof.is_some()
    });
    if !is_same || overruled(&key) {
        records.push(Record::Node(Node {
            id,
            version: version(&key, held.map_or(0, |held| held.version)),
            wireguard_key,
            key_proof: Some(KeyProof::make(&machine.files.wireguard(), &id, random)),
            block,
            endpoints: Vec::new(),
            without_ipv6: false,
            services_from: held.map_or(0, |held| held.services_from),
            program_version: None,
            speaks: vec![],
            relays: vec![],
            observed: vec![],
            mapped: vec![],
            stream: None,
            guest_key: None,
            guests: vec![],
            routes: vec![],
        }));
    }
    let floor = held.map_or(0, |held| held.services_from);
    let mut services: BTreeMap<String, Service> = machine
        .offers
        .iter()
        .map(|(name, offer)| service_of(id, name, offer, block))
        .map(|service| (service.id.to_string(), service))
        .collect();
    for held in ledger.services_of(&id) {
        let gone = Service {
            instances: Vec::new(),
            ..held.clone()
        };
        services.entry(held.id.to_string()).or_insert(gone);
    }
    for service in
        acceptance.foreign_services(&id, &services.keys().cloned().collect(), now.monotonic)
    {
        services.entry(service.id.to_string()).or_insert(service);
    }
    for service in services.into_values() {
        let key = RecordKey::parse("service", &service.id);
        let held = ledger.service(&service.id.to_string());
        let is_same = held.is_some_and(|held| held.instances == service.instances);
        if !is_same || overruled(&key) {
            let last = held
                .map_or(0, |held| held.version)
                .max(floor.saturating_sub(1));
            records.push(Record::Service(Service {
                version: version(&key, last),
                ..service
            }));
        }
    }
    let key = RecordKey::Name(id);
    if overruled(&key) {
        let held = ledger.wanted_name(&id);
        records.push(Record::Name(Name {
            id,
            version: version(&key, held.map_or(0, |held| held.version)),
            name: held.map_or(&machine.name, |held| &held.name).clone(),
        }));
    }
    records
}

fn service_of(
    id: PublicKey,
    name: &Label,
    offer: &super::machine::Offer,
    block: meshd::model::address::Block,
) -> Service {
    let first = u32::from(block.v4.network()) + 2;
    let instance = |number: u8| Instance {
        id: label(&format!("i{number}")),
        addresses: vec![std::net::Ipv4Addr::from(first + u32::from(number)).into()],
        ports: vec![Port {
            number: 80.try_into().expect("it is not zero"),
            protocol: Protocol::Tcp,
            name: None,
        }],
        health: if offer.is_healthy {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        weight: 10,
        priority: 0,
        source: Source::Cli,
        allow: vec![],
        public: vec![],
    };
    Service {
        id: Service::id_of(&id, offer.project.as_ref(), name),
        version: 0,
        node: id,
        name: name.clone(),
        project: offer.project.clone(),
        service_address: None,
        instances: (0..offer.instances).map(instance).collect(),
    }
}
