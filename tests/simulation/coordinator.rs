//! A coordinator in the simulation: the product's hub and store, and around them the exchange of a control stream as
//! `coordinator::control` has it, without its sockets, tasks, rate limits and table of sessions.

use std::collections::BTreeMap;

use meshd::coordinator::hub::{
    Cursor, Hub, Proof, PublishRefused, Screened, Standing, StreamStart,
};
use meshd::model::PublicKey;
use meshd::model::time::Now;
use meshd::protocol::control::{
    FromCoordinator, FromNode, MAX_RECORDS, PROTOCOL, Refusal, RefusedRecord, proof_message,
};
use meshd::records::Envelope;
use meshd::records::envelope::{Purpose, Signature};
use meshd::records::ledger::Refused;

use super::network::{At, StreamId};
use super::queue::Run;
use super::random::Random;
use super::store::Disk;
use super::truth::Life;

/// What a coordinator wants its shell to do.
#[derive(Debug)]
pub(crate) enum Output {
    Send(StreamId, FromCoordinator),
    /// Send a refusal and close the stream.
    Refuse(StreamId, Refusal, String),
    /// The coordinator has acknowledged these records.
    Acknowledged(Vec<Envelope>),
}

/// A stream of a coordinator.
#[derive(Debug)]
enum Served {
    /// The stream is open, and the node has sent nothing.
    Silent,
    Challenged {
        hello: Hello,
        nonce: String,
    },
    Open(OpenStream),
}

#[derive(Debug)]
struct Hello {
    node: PublicKey,
    store: Option<String>,
    revision: u64,
}

#[derive(Debug)]
struct OpenStream {
    node: PublicKey,
    store: String,
    cursor: Cursor,
    /// Set while the node is not a member.
    stranger: Option<Stranger>,
    /// The revision in the mark that was sent last.
    marked: Option<u64>,
    has_returned_mark: bool,
}

#[derive(Debug)]
struct Stranger {
    since: At,
    memberships: u32,
    later: Option<String>,
}

/// The limits of a stranger, as `coordinator::control::stranger` has them.
const STRANGER_SECONDS: u64 = 30;
const STRANGER_MEMBERSHIPS: u32 = 8;
/// The records that are verified and written in one step.
const STEP: usize = 64;
/// A stream from which nothing was received for so long is closed.
const SILENCE_SECONDS: u64 = 30;

pub(crate) struct Site {
    pub(crate) run: Run,
    /// None while the program does not run.
    pub(crate) hub: Option<Hub>,
    pub(crate) disk: Disk,
    /// How many seconds its clock is ahead.
    pub(crate) skew: i64,
    streams: BTreeMap<StreamId, (Served, At)>,
    /// Whether a push is in the event queue.
    pub(crate) is_push_due: bool,
    /// The revision of the last push.
    pub(crate) pushed: Option<u64>,
    /// Set while an attacker controls the coordinator.
    pub(crate) is_stolen: bool,
}

impl Site {
    pub(crate) fn new(disk: Disk) -> Self {
        Self {
            run: 0,
            hub: None,
            disk,
            skew: 0,
            streams: BTreeMap::new(),
            is_push_due: false,
            pushed: None,
            is_stolen: false,
        }
    }

    /// Whether it runs and is not stolen.
    pub(crate) fn is_honest(&self) -> bool {
        self.hub.is_some() && !self.is_stolen
    }

    pub(crate) fn life(&self) -> Life {
        self.disk.life()
    }

    /// The program ends. Its streams are gone.
    pub(crate) fn stop(&mut self) {
        self.run += 1;
        self.hub = None;
        self.streams.clear();
        self.is_push_due = false;
        self.pushed = None;
    }

    pub(crate) fn handle_stream_opened(&mut self, stream: StreamId, at: At) {
        self.streams.insert(stream, (Served::Silent, at));
    }

    /// The stream is over.
    pub(crate) fn handle_stream_closed(&mut self, stream: StreamId, now: Now) {
        let Some((Served::Open(open), _)) = self.streams.remove(&stream) else {
            return;
        };
        if let Some(hub) = &self.hub {
            hub.set_connected(open.node, false, now);
        }
    }

    /// The streams from which nothing was received for a long time.
    pub(crate) fn silent_streams(&self, at: At) -> Vec<StreamId> {
        let silent = self
            .streams
            .iter()
            .filter(|(_, (_, heard))| at.saturating_sub(*heard).as_secs() > SILENCE_SECONDS);
        silent.map(|(stream, _)| *stream).collect()
    }

    pub(crate) fn open_streams(&self) -> Vec<StreamId> {
        self.streams.keys().copied().collect()
    }

    /// The node has sent a sign of life.
    pub(crate) fn handle_ping(&mut self, stream: StreamId, at: At) {
        if let Some((_, heard)) = self.streams.get_mut(&stream) {
            *heard = at;
        }
    }

    pub(crate) fn handle_message(
        &mut self,
        stream: StreamId,
        message: FromNode,
        (at, now): (At, Now),
        random: &mut Random,
    ) -> Vec<Output> {
        self.handle_ping(stream, at);
        let mut output = Vec::new();
        let Some((served, _)) = self.streams.get_mut(&stream) else {
            return output;
        };
        let Some(hub) = &self.hub else {
            return output;
        };
        match (served, message) {
            (
                served @ Served::Silent,
                FromNode::Hello {
                    node,
                    store,
                    revision,
                    ..
                },
            ) => {
                let nonce = PublicKey(random.bytes()).to_string();
                let challenge = FromCoordinator::Challenge {
                    nonce: nonce.clone(),
                };
                let hello = Hello {
                    node,
                    store,
                    revision,
                };
                *served = Served::Challenged { hello, nonce };
                output.push(Output::Send(stream, challenge));
            }
            (Served::Challenged { hello, nonce }, FromNode::Proof { signature }) => {
                let message = proof_message(nonce, &hub.pin());
                if signature.holds(&hello.node, Purpose::Control, &message) {
                    self.open(stream, (at, now), random, &mut output);
                } else {
                    let why = "the node does not prove that it holds its identity key";
                    output.push(Output::Refuse(stream, Refusal::Proof, why.into()));
                }
            }
            (Served::Open(open), message) => {
                handle_of_node(hub, stream, open, message, now, &mut output);
            }
            _ => {
                let why = "a message out of turn".into();
                output.push(Output::Refuse(stream, Refusal::Protocol, why));
            }
        }
        output
    }

    /// The node has proved its identity.
    fn open(
        &mut self,
        stream: StreamId,
        (at, now): (At, Now),
        random: &mut Random,
        output: &mut Vec<Output>,
    ) {
        let Some((Served::Challenged { hello, .. }, _)) = self.streams.remove(&stream) else {
            return;
        };
        let Some(hub) = &self.hub else {
            return;
        };
        let node = hello.node;
        let standing = hub.standing(&node);
        if !hub.has_mesh() {
            let why = "the coordinator has no mesh".into();
            return output.push(Output::Refuse(stream, Refusal::Busy, why));
        }
        if standing == Standing::Revoked {
            return output.push(removed(stream));
        }
        // The table of sessions gives the session to the newest stream of a node, if the older one does not answer. Two machines
        // with the keys of one node are not simulated.
        let older = self
            .streams
            .iter()
            .find_map(|(id, (served, _))| match served {
                Served::Open(open) if open.node == node => Some(*id),
                _ => None,
            });
        if let Some(older) = older {
            self.streams.remove(&older);
            hub.set_connected(node, false, now);
            output.push(Output::Refuse(
                older,
                Refusal::Busy,
                "the node opened another stream".into(),
            ));
        }
        let is_member = standing == Standing::Member;
        let position = if is_member {
            hub.stream_start(hello.store.as_deref(), hello.revision)
        } else {
            hub.stream_start(None, 0)
        };
        if hello.store.as_deref() == Some(position.store.as_str()) {
            hub.handle_fully_offered(&node);
        }
        let store = position.store.clone();
        let cursor = if position.snapshot {
            Cursor::start()
        } else {
            Cursor::at(hello.revision)
        };
        let shown = if is_member {
            position
        } else {
            let store = format!("{:016x}", random.next());
            StreamStart {
                store,
                revision: 0,
                snapshot: true,
            }
        };
        let mut open = OpenStream {
            node,
            store,
            cursor,
            stranger: (!is_member).then_some(Stranger {
                since: at,
                memberships: 0,
                later: None,
            }),
            marked: None,
            has_returned_mark: false,
        };
        hub.set_connected(node, true, now);
        output.push(Output::Send(stream, welcome(shown)));
        send_mark(hub, stream, &mut open, output);
        self.streams.insert(stream, (Served::Open(open), at));
    }

    /// Sends each stream what it has not received, and ends the streams of nodes that are out.
    pub(crate) fn push(&mut self) -> Vec<Output> {
        let mut output = Vec::new();
        let Some(hub) = &self.hub else {
            return output;
        };
        for (stream, (served, _)) in &mut self.streams {
            let Served::Open(open) = served else {
                continue;
            };
            if !check_standing(hub, *stream, open, &mut output) || open.stranger.is_some() {
                continue;
            }
            while let Some(part) = hub.read_part(&mut open.cursor) {
                let changes = FromCoordinator::Changes {
                    revision: part.revision,
                    records: part.records,
                };
                output.push(Output::Send(*stream, changes));
            }
        }
        output
    }

    /// What a coordinator does with each ping.
    pub(crate) fn beat(&mut self, (at, now): (At, Now)) -> Vec<Output> {
        let mut output = Vec::new();
        let Some(hub) = &self.hub else {
            return output;
        };
        for (stream, (served, _)) in &mut self.streams {
            let Served::Open(open) = served else {
                continue;
            };
            send_mark(hub, *stream, open, &mut output);
            if let Some(stranger) = &open.stranger
                && at.saturating_sub(stranger.since).as_secs() >= STRANGER_SECONDS
            {
                output.push(stranger.refusal(*stream));
            }
        }
        // The next beat tries again what fails now.
        let _ = hub.announce_present();
        let _ = hub.dismiss_absent(now);
        output
    }
}

fn removed(stream: StreamId) -> Output {
    Output::Refuse(
        stream,
        Refusal::Revoked,
        "this node was removed from the mesh".into(),
    )
}

fn welcome(position: StreamStart) -> FromCoordinator {
    FromCoordinator::Welcome {
        protocol: PROTOCOL,
        store: position.store,
        revision: position.revision,
        snapshot: position.snapshot,
    }
}

fn send_mark(hub: &Hub, stream: StreamId, open: &mut OpenStream, output: &mut Vec<Output>) {
    let revision = hub.revision();
    if open.marked == Some(revision) {
        return;
    }
    if let Some(mark) = hub.mark_of(&open.node) {
        open.marked = Some(revision);
        output.push(Output::Send(stream, FromCoordinator::Mark { mark }));
        if let Some((revision, fingerprint)) = hub.summary() {
            let summary = FromCoordinator::Summary {
                revision,
                fingerprint,
            };
            output.push(Output::Send(stream, summary));
        }
    }
}

/// Returns false if the stream ends.
fn check_standing(
    hub: &Hub,
    stream: StreamId,
    open: &mut OpenStream,
    output: &mut Vec<Output>,
) -> bool {
    if !hub.is_on(&open.store) {
        let why = "the coordinator's store was restored from a backup".into();
        output.push(Output::Refuse(stream, Refusal::Busy, why));
        return false;
    }
    match hub.standing(&open.node) {
        Standing::Revoked => {
            output.push(removed(stream));
            return false;
        }
        Standing::Member if open.stranger.take().is_some() => {
            let position = StreamStart {
                store: open.store.clone(),
                revision: hub.revision(),
                snapshot: true,
            };
            output.push(Output::Send(stream, welcome(position)));
            send_mark(hub, stream, open, output);
        }
        _ => {}
    }
    true
}

fn handle_of_node(
    hub: &Hub,
    stream: StreamId,
    open: &mut OpenStream,
    message: FromNode,
    now: Now,
    output: &mut Vec<Output>,
) {
    match message {
        FromNode::Publish { sequence, records } => {
            publish(hub, stream, open, (sequence, records), now, output);
        }
        FromNode::Farewell { departure } if open.stranger.is_none() => {
            // The node offers its departure again with its next stream.
            let _ = hub.store_departure(&open.node, &departure, now);
        }
        FromNode::Told => {
            hub.handle_fully_offered(&open.node);
            if let Some(stranger) = &open.stranger
                && stranger.later.is_some()
                && hub.standing(&open.node) != Standing::Member
            {
                output.push(stranger.refusal(stream));
            }
        }
        FromNode::Mark { mark } => {
            let is_first = !std::mem::replace(&mut open.has_returned_mark, true);
            if is_first && hub.handle_mark(&open.node, &mark) {
                let _ = hub.examine_loss(&open.node, &mark, now);
            }
        }
        _ => {}
    }
}

impl Stranger {
    fn refusal(&self, stream: StreamId) -> Output {
        match &self.later {
            Some(why) => Output::Refuse(stream, Refusal::Busy, why.clone()),
            None => {
                let why = "this node is no member of the coordinator's mesh".into();
                Output::Refuse(stream, Refusal::NotAMember, why)
            }
        }
    }

    fn may_prove(&mut self, hub: &Hub, node: &PublicKey, record: &Envelope) -> bool {
        match hub.proof(node, record) {
            Proof::None => false,
            Proof::MeshKey => true,
            Proof::Membership => {
                self.memberships += 1;
                self.memberships <= STRANGER_MEMBERSHIPS
            }
        }
    }
}

#[derive(Debug, Default)]
struct Answer {
    accepted: u32,
    refused: Vec<String>,
    records: Vec<RefusedRecord>,
    is_later: Option<String>,
    is_forged: bool,
    /// Set if the store could not be written.
    failed: Option<String>,
}

impl Answer {
    fn refuse(&mut self, why: &PublishRefused, record: Option<&Envelope>) {
        if matches!(why, PublishRefused::NotYet(_)) {
            self.is_later.get_or_insert_with(|| why.to_string());
        }
        self.is_forged |= matches!(
            why,
            PublishRefused::Ledger(Refused::Signature | Refused::TooLong(_))
        );
        self.refused.push(why.to_string());
        let key = record.and_then(Envelope::key);
        self.records
            .extend(key.and_then(|key| RefusedRecord::new(key, why.to_string(), why.reason())));
    }

    /// Leaves out the records that need no verification, as `coordinator::control::intake` does.
    fn screen(&mut self, hub: &Hub, records: Vec<Envelope>) -> Vec<Envelope> {
        let mut unverified = Vec::new();
        for record in records {
            match hub.screen(&record) {
                Screened::Held => {}
                Screened::Refused(why) => self.refuse(&why.into(), Some(&record)),
                Screened::Unverified => unverified.push(record),
            }
        }
        unverified
    }

    fn take_in(&mut self, hub: &Hub, node: &PublicKey, records: Vec<Envelope>, now: Now) {
        for step in self.screen(hub, records).chunks(STEP) {
            if self.failed.is_some() || self.is_forged {
                return;
            }
            match hub.publish(node, step.to_vec(), now) {
                Ok(published) => {
                    self.accepted += published.accepted;
                    for (key, why) in &published.refused {
                        let named = step.iter().find(|r| key.is_some() && r.key() == *key);
                        self.refuse(why, named);
                    }
                }
                Err(error) => self.failed = Some(error.message),
            }
        }
    }
}

fn publish(
    hub: &Hub,
    stream: StreamId,
    open: &mut OpenStream,
    (sequence, records): (u64, Vec<Envelope>),
    now: Now,
    output: &mut Vec<Output>,
) {
    if records.len() > MAX_RECORDS {
        let why = format!("a message carries at most {MAX_RECORDS} records");
        return output.push(Output::Refuse(stream, Refusal::Protocol, why));
    }
    let mut answer = Answer::default();
    let offered = records.clone();
    match &mut open.stranger {
        None => answer.take_in(hub, &open.node, records, now),
        Some(stranger) => {
            let (proofs, rest) = records
                .into_iter()
                .partition(|record| stranger.may_prove(hub, &open.node, record));
            answer.take_in(hub, &open.node, proofs, now);
            if hub.standing(&open.node) == Standing::Member {
                answer.take_in(hub, &open.node, rest, now);
            } else {
                let not_a_member = PublishRefused::Ledger(Refused::NotAMember);
                rest.iter()
                    .for_each(|record| answer.refuse(&not_a_member, Some(record)));
            }
            stranger.later = answer.is_later.take().or(stranger.later.take());
        }
    }
    if answer.is_forged {
        let why = "a record's signature does not hold".into();
        return output.push(Output::Refuse(stream, Refusal::Protocol, why));
    }
    let published = match answer.failed {
        None => {
            let is_held = |record: &Envelope| hub.screen(record) == Screened::Held;
            let held = offered.into_iter().filter(is_held).collect();
            output.push(Output::Acknowledged(held));
            FromCoordinator::Published {
                sequence,
                accepted: answer.accepted,
                refused: answer.refused,
                refused_records: answer.records,
                failed: false,
            }
        }
        Some(why) => FromCoordinator::Published {
            sequence,
            accepted: 0,
            refused: vec![why],
            refused_records: Vec::new(),
            failed: true,
        },
    };
    output.push(Output::Send(stream, published));
}

/// The proof that a node sends for a challenge.
pub(crate) fn prove(
    nonce: &str,
    pin: &meshd::protocol::token::SpkiPin,
    key: &meshd::model::SigningKey,
) -> FromNode {
    let message = proof_message(nonce, pin);
    FromNode::Proof {
        signature: Signature::make(key, Purpose::Control, &message),
    }
}
