//! Attackers: members that claim what belongs to others, holders of a token, and coordinators that were stolen.

use std::collections::{BTreeMap, BTreeSet};

use meshd::model::key::KeyProof;
use meshd::model::time::{UnixSeconds, next_version};
use meshd::model::{PublicKey, SigningKey};
use meshd::node::replica::Opening;
use meshd::protocol::control::{FromCoordinator, FromNode, PROTOCOL, Refusal};
use meshd::protocol::join::{JoinRequest, JoinResponse};
use meshd::records::Envelope;
use meshd::records::fingerprint::Fingerprint;
use meshd::records::kinds::{Departure, Membership, Name, Node, Record, Service};

use super::administrator::addresses;
use super::machine::wireguard_public;
use super::network::{Message, StreamId};
use super::nodes::label;
use super::plan::Fault;
use super::world::World;

/// What the attackers have.
#[derive(Debug, Default)]
pub(crate) struct Attackers {
    /// Identities that they made, and that joined no honest coordinator.
    pub(crate) identities: Vec<SigningKey>,
    /// Records that they made, for stolen coordinators to spread.
    made: Vec<Envelope>,
    /// The streams of stolen coordinators that are open, and the revision that each has named last.
    streams: BTreeMap<StreamId, u64>,
    /// The highest sequence number of their own messages.
    sequence: u64,
}

impl World {
    pub(crate) fn attack(&mut self, fault: Fault) {
        match fault {
            Fault::StealCoordinator => {
                let site = self.random.index(self.sites.len());
                if self.sites[site].is_honest() {
                    self.note(|| format!("c{site} is stolen"));
                    self.sites[site].is_stolen = true;
                    for stream in self.sites[site].open_streams() {
                        self.attackers.streams.insert(stream, 1);
                    }
                }
            }
            Fault::ReturnCoordinator => {
                self.return_sites();
            }
            _ => self.attack_as_member(fault),
        }
    }

    fn attack_as_member(&mut self, fault: Fault) {
        let hostile: Vec<usize> = (0..self.machines.len())
            .filter(|n| self.machines[*n].is_hostile && self.machines[*n].up().is_some())
            .collect();
        let Some(attacker) = self.random.pick(&hostile).copied() else {
            return;
        };
        let victims: Vec<usize> = (0..self.machines.len())
            .filter(|n| !self.machines[*n].is_hostile && self.machines[*n].block().is_some())
            .collect();
        let Some(victim) = self.random.pick(&victims).copied() else {
            return;
        };
        self.note(|| format!("n{attacker} attacks n{victim}: {fault:?}"));
        let records = self.make_records(fault, attacker, victim);
        self.attackers.made.extend(records.iter().cloned());
        self.attackers.sequence += 1;
        let sequence = (1 << 40) + self.attackers.sequence;
        let Some(up) = self.machines[attacker].up() else {
            return;
        };
        let peers: Vec<PublicKey> = up.reached.iter().copied().collect();
        if let Some(stream) = up.uplink.stream().filter(|_| up.uplink.is_open()) {
            for records in records.chunks(200) {
                let records = records.to_vec();
                let publish = FromNode::Publish { sequence, records };
                self.send(stream, 0, Message::ToCoordinator(publish));
            }
        }
        if let Some(peer) = self.random.pick(&peers).copied() {
            let opening = Opening {
                news: records,
                asks: Vec::new(),
            };
            self.dial_peer(attacker, peer, opening, false);
        }
    }

    fn make_records(&mut self, fault: Fault, attacker: usize, victim: usize) -> Vec<Envelope> {
        match fault {
            Fault::ClaimBlock => vec![self.claim_block(attacker, victim)],
            Fault::ClaimKey => vec![self.claim_key(attacker, victim)],
            Fault::ClaimName => {
                let key = self.machines[attacker].key.clone();
                let record = Record::Name(Name {
                    id: key.public(),
                    version: next_version(0, self.wall(0)),
                    name: self.machines[victim].name.clone(),
                });
                vec![self.truth.sign(&record, &key)]
            }
            Fault::ClaimIdentity => self.claim_identity(attacker, victim),
            Fault::BackDate => self.back_date(attacker),
            Fault::ForgeRecords => (0..4).filter_map(|_| self.forge(attacker)).collect(),
            Fault::Flood => self.flood(attacker),
            _ => {
                let count = self.truth.history.len();
                let picked = (0..40)
                    .map(|_| self.random.index(count))
                    .collect::<Vec<_>>();
                picked
                    .into_iter()
                    .filter_map(|index| self.truth.history.get(index).cloned())
                    .collect()
            }
        }
    }

    fn node_record(&mut self, of: usize) -> Node {
        let machine = &self.machines[of];
        let id = machine.id();
        let random = self.random.bytes();
        let machine = &self.machines[of];
        let first = addresses(&self.administrator.mesh.public()).block(1);
        Node {
            id,
            version: next_version(0, self.wall(machine.skew)),
            wireguard_key: machine.files.wireguard_key(),
            key_proof: Some(KeyProof::make(&machine.files.wireguard(), &id, &random)),
            block: machine.block().or(first).expect("there is a block 1"),
            endpoints: Vec::new(),
            without_ipv6: false,
            services_from: 0,
            program_version: None,
            speaks: vec![],
            relays: vec![],
            observed: vec![],
            mapped: vec![],
            stream: None,
            guest_key: None,
            guests: vec![],
            routes: vec![],
        }
    }

    fn claim_block(&mut self, attacker: usize, victim: usize) -> Envelope {
        let mut node = self.node_record(attacker);
        if let Some(block) = self.machines[victim].block() {
            node.block = block;
        }
        let key = self.machines[attacker].key.clone();
        self.truth.sign(&Record::Node(node), &key)
    }

    fn claim_key(&mut self, attacker: usize, victim: usize) -> Envelope {
        let mut node = self.node_record(attacker);
        node.wireguard_key = self.machines[victim].files.wireguard_key();
        if self.random.percent(50) {
            node.key_proof = None;
        }
        let key = self.machines[attacker].key.clone();
        self.truth.sign(&Record::Node(node), &key)
    }

    /// Records about the victim that the attacker signs.
    fn claim_identity(&mut self, attacker: usize, victim: usize) -> Vec<Envelope> {
        let key = self.machines[attacker].key.clone();
        let token = self.administrator.tokens[self.machines[attacker].token]
            .key
            .clone();
        let id = self.machines[victim].id();
        let mut node = self.node_record(victim);
        node.version += 1000;
        node.wireguard_key = self.machines[attacker].files.wireguard_key();
        let name = label("s0");
        let service = Service {
            id: Service::id_of(&id, None, &name),
            version: next_version(0, self.wall(0)) + 1000,
            node: id,
            name,
            project: None,
            service_address: None,
            instances: Vec::new(),
        };
        let membership = Membership {
            id,
            version: 2,
            token: token.public(),
            name: label("stolen"),
            wireguard_key: node.wireguard_key,
            tags: Vec::new(),
            issued_at: UnixSeconds::from_system(self.wall(0)),
            proof: None,
        };
        vec![
            self.truth.sign(&Record::Node(node), &key),
            self.truth.sign(&Record::Service(service), &key),
            self.truth.sign(&Record::Departure(Departure::of(id)), &key),
            self.truth.sign(&Record::Membership(membership), &token),
        ]
    }

    /// A membership that is dated back, and the record of its node.
    fn back_date(&mut self, attacker: usize) -> Vec<Envelope> {
        let token = self.administrator.tokens[self.machines[attacker].token]
            .key
            .clone();
        let identity = SigningKey::from_seed(&self.random.bytes());
        let secret = self.random.bytes();
        let id = identity.public();
        let age = [100, 3000, 20_000][self.random.index(3)];
        let wall = UnixSeconds::from_system(self.wall(0));
        let number = self.attackers.identities.len();
        let membership = Membership {
            id,
            version: 1,
            token: token.public(),
            name: label(&format!("e{number}")),
            wireguard_key: wireguard_public(&secret),
            tags: Vec::new(),
            issued_at: UnixSeconds(wall.0.saturating_sub(age)),
            proof: None,
        };
        let mut node = self.node_record(attacker);
        let plan = addresses(&self.administrator.mesh.public());
        let block = plan.block(250 - (number as u32 % 40));
        node.id = id;
        node.wireguard_key = membership.wireguard_key;
        node.key_proof = Some(KeyProof::make(&secret, &id, &secret));
        node.block = block.unwrap_or(node.block);
        let envelopes = vec![
            self.truth.sign(&Record::Membership(membership), &token),
            self.truth.sign(&Record::Node(node), &identity),
        ];
        self.attackers.identities.push(identity);
        envelopes
    }

    /// A record whose signature does not hold, or whose signer has no right to it.
    fn forge(&mut self, attacker: usize) -> Option<Envelope> {
        let index = self.random.index(self.truth.history.len());
        let mut envelope = self.truth.history.get(index)?.clone();
        match self.random.below(3) {
            0 => {
                // Another version, with the signature of the old one.
                envelope.payload = envelope
                    .payload
                    .replacen("\"version\":", "\"version\":9", 1);
                Some(envelope)
            }
            1 => {
                envelope.signer = self.machines[attacker].id();
                Some(envelope)
            }
            _ => {
                let key = self.machines[attacker].key.clone();
                let payload = envelope
                    .payload
                    .replacen("\"version\":", "\"version\":9", 1);
                Some(self.truth.sign_payload(payload, &key))
            }
        }
    }

    fn flood(&mut self, attacker: usize) -> Vec<Envelope> {
        let key = self.machines[attacker].key.clone();
        (0..40)
            .map(|number| {
                let kind = if number % 2 == 0 { "weather" } else { "tide" };
                let payload = format!(r#"{{"kind":"{kind}","id":"{number}","version":1}}"#);
                self.truth.sign_payload(payload, &key)
            })
            .collect()
    }
}

// Stolen coordinators.
impl World {
    /// A coordinator that was stolen answers a message of a node.
    pub(crate) fn handle_at_stolen(&mut self, site: usize, stream: StreamId, message: FromNode) {
        self.sites[site].handle_ping(stream, self.now);
        match message {
            FromNode::Hello { .. } => {
                let nonce = PublicKey(self.random.bytes()).to_string();
                self.tell(stream, FromCoordinator::Challenge { nonce });
            }
            FromNode::Proof { .. } => self.welcome_as_stolen(stream),
            FromNode::Publish { sequence, records } => {
                // It claims to have stored the records, and forgets them.
                let published = FromCoordinator::Published {
                    sequence,
                    accepted: u32::try_from(records.len()).unwrap_or(0),
                    refused: Vec::new(),
                    refused_records: Vec::new(),
                    failed: false,
                };
                self.tell(stream, published);
                self.spread(stream);
            }
            _ => {}
        }
    }

    fn tell(&mut self, stream: StreamId, message: FromCoordinator) {
        self.send(stream, 1, Message::ToNode(message));
    }

    fn welcome_as_stolen(&mut self, stream: StreamId) {
        let reason = [Refusal::Clone, Refusal::Revoked, Refusal::Busy][self.random.index(3)];
        if self.random.percent(20) {
            let refuse = FromCoordinator::Refuse {
                reason,
                message: "as the attacker likes".into(),
                proof: None,
            };
            self.tell(stream, refuse);
            return self.close(stream, 1);
        }
        let store = if self.random.percent(50) {
            "store-0"
        } else {
            "another-store"
        };
        let revision = self.random.below(1000);
        self.attackers.streams.insert(stream, revision);
        let welcome = FromCoordinator::Welcome {
            protocol: PROTOCOL,
            store: store.into(),
            revision,
            snapshot: self.random.percent(70),
        };
        self.tell(stream, welcome);
        let mark = "1.store-0.00".into();
        self.tell(stream, FromCoordinator::Mark { mark });
        let summary = FromCoordinator::Summary {
            revision,
            fingerprint: Fingerprint::default(),
        };
        self.tell(stream, summary);
        self.spread(stream);
    }

    /// Sends a node a part of what was ever signed, in any order, old records and forged ones among them. The rest is withheld.
    fn spread(&mut self, stream: StreamId) {
        let Some(revision) = self.attackers.streams.get_mut(&stream) else {
            return;
        };
        *revision += 1;
        let revision = *revision;
        if self.random.percent(40) {
            return;
        }
        let mut records = Vec::new();
        for _ in 0..self.random.below(20) {
            let from = if self.random.percent(60) {
                &self.truth.history
            } else {
                &self.attackers.made
            };
            records.extend(self.random.pick(from).cloned());
        }
        let hostile = self.machines.iter().position(|machine| machine.is_hostile);
        if let Some(attacker) = hostile.filter(|_| self.random.percent(50)) {
            records.extend(self.forge(attacker));
        }
        self.tell(stream, FromCoordinator::Changes { revision, records });
    }

    /// A stolen coordinator admits a node with a block that may belong to another node.
    pub(crate) fn join_at_stolen(&mut self, request: &JoinRequest) -> Option<JoinResponse> {
        let blocks: BTreeSet<_> = self
            .machines
            .iter()
            .filter_map(|m| m.block().map(|b| b.v4))
            .collect();
        let taken = blocks.iter().nth(self.random.index(blocks.len())).copied();
        let plan = addresses(&self.administrator.mesh.public());
        let mut all = (1..plan.block_count()).filter_map(|index| plan.block(index));
        let block = all.find(|block| taken.is_none_or(|taken| block.v4 == taken))?;
        let token = request.membership.signer;
        let is_needed = |envelope: &&Envelope| match Record::parse(&envelope.payload) {
            Ok((_, Record::Mesh(_))) => true,
            Ok((_, Record::Token(found))) => found.id == token,
            _ => false,
        };
        let mut records: Vec<Envelope> = self
            .truth
            .history
            .iter()
            .filter(is_needed)
            .cloned()
            .collect();
        records.push(request.membership.clone());
        Some(JoinResponse {
            block,
            records,
            revision: 1,
        })
    }

    /// The owner gets the stolen coordinators back, and restores their store, so that the nodes offer what it does not have.
    pub(crate) fn return_sites(&mut self) {
        if !self.sites.iter().any(|site| site.is_stolen) {
            return;
        }
        self.note(|| "the coordinators are their owner's again".into());
        self.attackers.streams.clear();
        self.sites[0].disk.mistrust();
        self.truth.losses += 1;
        for site in 0..self.sites.len() {
            self.sites[site].is_stolen = false;
            self.crash_site(site);
        }
    }
}
