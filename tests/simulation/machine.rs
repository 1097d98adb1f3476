//! A node in the simulation: the product's replica, its disk, and what people want it to serve.

use std::collections::{BTreeMap, BTreeSet};

use meshd::dns::Zone;
use meshd::model::address::Block;
use meshd::model::time::Now;
use meshd::model::{Label, PublicKey, SigningKey, WireGuardKey};
use meshd::node::gossip::exchange::Exchange;
use meshd::node::replica::{
    InStep, NewcomerLists, Newcomers, Own, Part, Position, RecordsWrite, Replica, Start,
    WriteOutcome, WriteRequest,
};
use meshd::protocol::join::JoinRequest;
use meshd::protocol::url::CoordinatorUrl;
use meshd::records::netmap::Netmap;
use meshd::records::{Envelope, Ledger};

use super::network::{At, Side, StreamId};
use super::queue::Run;
use super::uplink::Uplink;

/// The files of a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    /// The block that the coordinator leased to the node. None until it has joined.
    pub(crate) block: Option<Block>,
    /// The lines of `records.jsonl`.
    pub(crate) records: Vec<Envelope>,
    position: Position,
    in_step: InStep,
    newcomers: NewcomerLists,
    /// The secret of the WireGuard key, and the key.
    wireguard: Option<([u8; 32], WireGuardKey)>,
}

/// How much of a write reached the disk before a crash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Torn {
    /// The parts that are whole, in the order in which they are written.
    pub(crate) parts: usize,
    /// The lines of the next part, if that appends records.
    pub(crate) lines: usize,
}

impl Files {
    /// Carries out a write of the replica. A full disk refuses all of it.
    pub(crate) fn write(&mut self, request: &WriteRequest, is_full: bool) -> WriteOutcome {
        let mut outcome = WriteOutcome::default();
        let result = || {
            if is_full {
                Err("the disk is full".to_owned())
            } else {
                Ok(())
            }
        };
        if let Some(records) = &request.records {
            outcome.results.push((Part::Records, result()));
            if is_full {
                outcome.record_lines = self.records.len();
                return outcome;
            }
            self.write_records(records);
        }
        if let Some(lists) = &request.newcomers {
            outcome.results.push((Part::Newcomers, result()));
            if !is_full {
                self.newcomers = lists.clone();
            }
        }
        if let Some(position) = &request.position
            && !(is_full && request.newcomers.is_some())
        {
            outcome.results.push((Part::Position, result()));
            if !is_full {
                self.position = position.clone();
            }
        }
        if let Some(in_step) = &request.in_step {
            outcome.results.push((Part::Newcomers, result()));
            if !is_full {
                self.in_step = in_step.clone();
            }
        }
        outcome.record_lines = self.records.len();
        outcome
    }

    fn write_records(&mut self, records: &RecordsWrite) {
        match records {
            RecordsWrite::Append(records) => self.records.extend(records.iter().cloned()),
            RecordsWrite::All(records) => self.records.clone_from(records),
        }
    }

    /// The machine lost power during a write.
    pub(crate) fn tear(&mut self, request: WriteRequest, torn: Torn) {
        let WriteRequest {
            records,
            newcomers,
            position,
            in_step,
        } = request;
        let mut whole = torn.parts;
        let mut is_whole = |is_asked: bool| {
            let is_whole = is_asked && whole > 0;
            whole = whole.saturating_sub(usize::from(is_asked));
            is_whole
        };
        let all = is_whole(records.is_some());
        match records {
            Some(records) if all => self.write_records(&records),
            // What is appended may be there in part; a file that is replaced is the old or the new one.
            Some(RecordsWrite::Append(mut records)) => {
                records.truncate(torn.lines);
                self.records.extend(records);
                return;
            }
            Some(RecordsWrite::All(_)) => return,
            None => {}
        }
        if is_whole(newcomers.is_some()) {
            self.newcomers = newcomers.unwrap_or_default();
        }
        if is_whole(position.is_some()) {
            self.position = position.unwrap_or_default();
        }
        if is_whole(in_step.is_some()) {
            self.in_step = in_step.unwrap_or_default();
        }
    }

    /// Loads what is on disk, as a start of the program does.
    pub(crate) fn start(
        &self,
        mesh: PublicKey,
        key: &SigningKey,
        urls: Vec<CoordinatorUrl>,
        now: Now,
    ) -> Option<(Replica, Position)> {
        let mut ledger = Ledger::new(mesh);
        for envelope in &self.records {
            // A record that a later one made void is refused, as at any start.
            let _ = ledger.apply(envelope.clone());
        }
        let start = Start {
            own: Own {
                key: key.clone(),
                block: self.block?,
                urls,
            },
            ledger,
            position: self.position.clone(),
            newcomers: Newcomers::new(self.in_step.clone(), self.newcomers.clone(), now.monotonic),
            record_lines: self.records.len(),
            records_whole: true,
        };
        Some((Replica::new(start, now), self.position.clone()))
    }

    /// The first files of a node that has just joined.
    pub(crate) fn join(&mut self, block: Block, records: Vec<Envelope>) {
        self.block = Some(block);
        self.records = records;
        self.position = Position::default();
        self.in_step = InStep::default();
        self.newcomers = NewcomerLists::default();
    }

    pub(crate) fn set_wireguard(&mut self, secret: [u8; 32]) {
        self.wireguard = Some((secret, wireguard_public(&secret)));
    }

    pub(crate) fn wireguard(&self) -> [u8; 32] {
        self.wireguard.map_or([0; 32], |(secret, _)| secret)
    }

    pub(crate) fn wireguard_key(&self) -> WireGuardKey {
        self.wireguard.map_or(WireGuardKey([0; 32]), |(_, key)| key)
    }
}

pub(crate) fn wireguard_public(secret: &[u8; 32]) -> WireGuardKey {
    let secret = x25519_dalek::StaticSecret::from(*secret);
    WireGuardKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

/// What a node serves under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) project: Option<Label>,
    pub(crate) instances: u8,
    pub(crate) is_healthy: bool,
}

/// A conversation with a peer.
pub(crate) struct Talk {
    pub(crate) exchange: Exchange,
    pub(crate) peer: PublicKey,
    pub(crate) side: Side,
    /// Whether the replica began it.
    pub(crate) is_reported: bool,
}

/// A program that runs.
pub(crate) struct Up {
    pub(crate) replica: Replica,
    pub(crate) uplink: Uplink,
    pub(crate) instance: String,
    pub(crate) writing: Option<WriteRequest>,
    pub(crate) netmap: Netmap,
    pub(crate) zone: Zone,
    pub(crate) serial: u32,
    pub(crate) talks: BTreeMap<StreamId, Talk>,
    /// The peers that the tunnel reaches.
    pub(crate) reached: BTreeSet<PublicKey>,
    /// When the timer in the event queue goes off.
    pub(crate) timer: Option<At>,
    /// Records that a sabotaged ledger accepted.
    pub(crate) smuggled: Vec<Envelope>,
}

pub(crate) enum Stage {
    /// It has not begun to join.
    New,
    /// It asks a coordinator to admit it.
    Joining(JoinRequest),
    Up(Box<Up>),
    /// Its program does not run.
    Down,
    /// It left, or it could not join.
    Gone,
}

pub(crate) struct Machine {
    pub(crate) key: SigningKey,
    pub(crate) name: Label,
    /// The index of its token among those of the administrator.
    pub(crate) token: usize,
    pub(crate) stage: Stage,
    pub(crate) run: Run,
    pub(crate) files: Files,
    pub(crate) backup: Option<Files>,
    pub(crate) is_disk_full: bool,
    /// How many seconds its clock is ahead.
    pub(crate) skew: i64,
    /// Whether a person had it leave the mesh.
    pub(crate) has_left: bool,
    /// Whether a stolen coordinator admitted it.
    pub(crate) is_deceived: bool,
    /// Whether an attacker has it.
    pub(crate) is_hostile: bool,
    pub(crate) offers: BTreeMap<Label, Offer>,
    /// The last line of the log about something that it tries again and again.
    pub(crate) noted: Option<String>,
}

impl Machine {
    pub(crate) fn id(&self) -> PublicKey {
        self.key.public()
    }

    pub(crate) fn up(&self) -> Option<&Up> {
        match &self.stage {
            Stage::Up(up) => Some(up),
            _ => None,
        }
    }

    pub(crate) fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.stage {
            Stage::Up(up) => Some(up),
            _ => None,
        }
    }

    /// The block of its record, which is that of its files.
    pub(crate) fn block(&self) -> Option<Block> {
        self.files.block
    }
}
