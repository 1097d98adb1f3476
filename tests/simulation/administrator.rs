//! The administrator: holds the mesh key, makes tokens, revokes them and removes nodes. The administrator works on the machine of
//! a coordinator, as `meshctl` does.

use std::collections::BTreeSet;
use std::time::Duration;

use meshd::coordinator::MarkKey;
use meshd::coordinator::hub::{Hub, Setup};
use meshd::model::address::{MeshAddresses, unique_local_prefix};
use meshd::model::time::UnixSeconds;
use meshd::model::{PublicKey, SigningKey};
use meshd::protocol::admin::Submit;
use meshd::records::Envelope;
use meshd::records::kinds::{MESH_ID, Mesh, Record, Revocation, RevokedKind, Token};

use super::nodes::{label, url_of};
use super::queue::Event;
use super::random::Random;
use super::uplink::PIN;
use super::world::World;

#[derive(Debug)]
pub(crate) struct TokenState {
    pub(crate) key: SigningKey,
    pub(crate) uses: u32,
    /// How many nodes are to use it.
    taken: u32,
    is_ephemeral: bool,
    /// Whether attackers have it.
    pub(crate) is_hostile: bool,
    /// The nodes that stay, if it was revoked.
    pub(crate) revoked: Option<BTreeSet<PublicKey>>,
}

pub(crate) struct Administrator {
    pub(crate) mesh: SigningKey,
    pub(crate) tokens: Vec<TokenState>,
    /// The nodes that the administrator removed.
    pub(crate) removed: BTreeSet<PublicKey>,
    /// The tokens whose certificates were made.
    published: BTreeSet<PublicKey>,
    /// Records that no coordinator has accepted yet.
    pub(crate) unsent: Vec<Envelope>,
    is_begun: bool,
}

impl Administrator {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self {
            mesh: SigningKey::from_seed(&seed),
            tokens: Vec::new(),
            removed: BTreeSet::new(),
            published: BTreeSet::new(),
            unsent: Vec::new(),
            is_begun: false,
        }
    }

    /// The token that the next node joins with. Attackers have a token of their own.
    pub(crate) fn token_for(&mut self, is_hostile: bool, random: &mut Random) -> usize {
        let is_free = |token: &TokenState| {
            token.is_hostile == is_hostile && token.revoked.is_none() && token.taken < token.uses
        };
        // Sometimes a node tries a token that is spent.
        let is_late = random.percent(3);
        let found = self
            .tokens
            .iter()
            .position(|token| is_free(token) || is_late && token.is_hostile == is_hostile);
        let index = found.unwrap_or_else(|| self.make_token(is_hostile, random));
        self.tokens[index].taken += 1;
        index
    }

    fn make_token(&mut self, is_hostile: bool, random: &mut Random) -> usize {
        self.tokens.push(TokenState {
            key: SigningKey::from_seed(&random.bytes()),
            uses: random.range(1, 8) as u32,
            taken: 0,
            is_ephemeral: random.percent(10),
            is_hostile,
            revoked: None,
        });
        self.tokens.len() - 1
    }

    /// Makes a token for a node that is not hostile.
    pub(crate) fn new_token(&mut self, random: &mut Random) -> usize {
        let index = self.make_token(false, random);
        self.tokens[index].taken += 1;
        index
    }

    /// Whether the administrator ended the membership of a node that joined with this token.
    pub(crate) fn has_ended(&self, node: &PublicKey, token: usize) -> bool {
        let token = &self.tokens[token];
        self.removed.contains(node)
            || token
                .revoked
                .as_ref()
                .is_some_and(|stays| !stays.contains(node))
    }

    pub(crate) fn is_ephemeral(&self, token: usize) -> bool {
        self.tokens[token].is_ephemeral
    }
}

/// The address plan of all simulated meshes.
pub(crate) fn addresses(mesh: &PublicKey) -> MeshAddresses {
    MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("it is a prefix"),
        prefix_v6: unique_local_prefix(mesh),
        node_block_v4: 24,
        node_block_v6: 64,
    }
}

impl World {
    pub(crate) fn open_site(&mut self, site: usize) {
        let plan = addresses(&self.administrator.mesh.public());
        let setup = Setup {
            urls: vec![url_of(site)],
            pin: PIN,
            marks: MarkKey::derive(b"the TLS key of all coordinators"),
            domain: label("mesh"),
            prefix_v4: plan.prefix_v4,
            prefix_v6: plan.prefix_v6,
            audit: meshd::os::audit::Audit::none(),
            node_block_v4: plan.node_block_v4,
        };
        let now = self.clock(self.sites[site].skew);
        let run = self.sites[site].run;
        match Hub::open(self.sites[site].disk.open(), setup, now) {
            Ok(hub) => {
                self.note(|| format!("c{site} starts at revision {}", hub.revision()));
                self.sites[site].hub = Some(hub);
            }
            Err(error) => {
                self.note(|| format!("c{site} does not start: {error}"));
                let again = self.now + Duration::from_secs(2);
                return self.queue.add(again, Event::Open(site, run));
            }
        }
        self.queue
            .add(self.now + Duration::from_secs(10), Event::Beat(site, run));
        if !self.administrator.is_begun {
            self.administrator.is_begun = true;
            let mesh = Mesh {
                id: MESH_ID.into(),
                version: 1,
                domain: label("mesh"),
                addresses: addresses(&self.administrator.mesh.public()),
                coordinators: Vec::new(),
            };
            self.administer(Record::Mesh(mesh));
            self.publish_tokens();
        }
        self.submit_all();
        if let Err(why) = self.check_acknowledged(site) {
            self.violate(why);
        }
    }

    /// Signs a record with the mesh key, and gives it to a coordinator.
    pub(crate) fn administer(&mut self, record: Record) {
        let mesh = self.administrator.mesh.clone();
        // It is part of the mesh once a coordinator has accepted it.
        let envelope = Envelope::seal(&record, &mesh);
        self.administrator.unsent.push(envelope);
        self.submit_all();
    }

    /// Gives the coordinators the certificates of tokens that are new.
    pub(crate) fn publish_tokens(&mut self) {
        let wall = UnixSeconds::from_system(self.wall(0));
        for index in 0..self.administrator.tokens.len() {
            let token = &self.administrator.tokens[index];
            let id = token.key.public();
            let token = Token {
                id,
                version: 1,
                tags: Vec::new(),
                uses: token.uses,
                created_at: wall,
                expires_at: UnixSeconds(wall.0 + 24 * 3600),
                ephemeral: token.is_ephemeral,
            };
            if self.administrator.published.insert(id) {
                self.administer(Record::Token(token));
            }
        }
    }

    /// Offers an honest coordinator what none has accepted yet.
    pub(crate) fn submit_all(&mut self) {
        let Some(site) = self.sites.iter().position(|site| site.is_honest()) else {
            return;
        };
        let now = self.clock(self.sites[site].skew);
        let Some(hub) = &self.sites[site].hub else {
            return;
        };
        let mut unsent = std::mem::take(&mut self.administrator.unsent);
        let mut lines = Vec::new();
        unsent.retain(|envelope| {
            let submit = Submit {
                mesh_key: Some(self.administrator.mesh.public()),
                records: vec![envelope.clone()],
            };
            match hub.submit(submit, meshd::os::audit::Who::Daemon, now) {
                Ok(_) => {
                    self.truth.note_signed(envelope);
                    self.truth
                        .acknowledge(self.sites[site].disk.life(), envelope);
                    false
                }
                Err(error) => {
                    lines.push(error.message);
                    // A revocation that leaves a new member out is made again.
                    !lines
                        .last()
                        .is_some_and(|line| line.contains("has joined with the token"))
                }
            }
        });
        self.administrator.unsent = unsent;
        for line in lines {
            self.note(|| format!("c{site} refuses a record of the administrator: {line}"));
        }
        self.push_soon(site);
    }

    pub(crate) fn remove(&mut self, id: PublicKey) {
        if !self.administrator.removed.insert(id) {
            return;
        }
        let revocation = Revocation {
            id,
            version: 1,
            revoked: RevokedKind::Node,
            at: UnixSeconds::from_system(self.wall(0)),
            stays: None,
        };
        self.note(|| format!("the administrator removes {}", id.short()));
        self.administer(Record::Revocation(revocation));
    }

    /// Revokes the tokens for which a node reports that they admitted more nodes than they may.
    pub(crate) fn revoke_overspent(&mut self) {
        let honest = self.machines.iter().filter(|m| !m.is_hostile);
        let commands: Vec<String> = honest
            .filter_map(|machine| {
                let now = self.clock(machine.skew).monotonic;
                machine.up().map(|up| up.replica.problems(now))
            })
            .flatten()
            .map(|problem| problem.fix)
            .filter(|fix| fix.contains("meshctl token revoke"))
            .collect();
        for index in 0..self.administrator.tokens.len() {
            let id = self.administrator.tokens[index].key.public().short();
            if commands.iter().any(|command| command.contains(&id)) {
                self.revoke_token(index);
            }
        }
    }

    /// Revokes a token. The nodes stay that an honest coordinator has admitted with it, except for those of attackers.
    pub(crate) fn revoke_token(&mut self, index: usize) {
        let token = &self.administrator.tokens[index];
        let id = token.key.public();
        let site = self.sites.iter().find(|site| site.is_honest());
        let Some(hub) = site.and_then(|site| site.hub.as_ref()) else {
            return;
        };
        if token.revoked.is_some() || hub.size().refilling {
            return;
        }
        let memberships = hub.memberships_by(&id).memberships;
        let ids =
            memberships
                .iter()
                .filter_map(|envelope| match Record::parse(&envelope.payload) {
                    Ok((_, Record::Membership(membership))) => Some(membership.id),
                    _ => None,
                });
        let stays: BTreeSet<PublicKey> = ids.collect();
        let revocation = Revocation {
            id,
            version: 1,
            revoked: RevokedKind::Token,
            at: UnixSeconds::from_system(self.wall(0)),
            stays: Some(stays.iter().copied().collect()),
        };
        self.note(|| {
            format!(
                "the administrator revokes the token {}; {} nodes stay",
                id.short(),
                stays.len()
            )
        });
        self.administrator.tokens[index].revoked = Some(stays);
        self.administer(Record::Revocation(revocation));
    }
}
