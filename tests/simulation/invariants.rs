//! The invariants of a mesh. They hold after each event or at each settled point, whatever the faults.

use std::collections::BTreeMap;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use meshd::coordinator::hub::{Screened, Standing};
use meshd::dns::answer::{Verdict, answer};
use meshd::model::PublicKey;
use meshd::records::kinds::{Record, RecordKey, Service};
use meshd::records::ledger::Refused;
use meshd::records::netmap::Netmap;
use meshd::records::{Envelope, Ledger};

use super::machine::{Stage, Up};
use super::truth::rightful_signer;
use super::world::World;

// After each event.
impl World {
    /// Nobody accepts what was not signed by its owner, and no token admits more nodes than it may.
    pub(crate) fn check_changes(&mut self, node: usize, keys: &[RecordKey]) -> Result<(), String> {
        let Some(up) = self.machines[node].up() else {
            return Ok(());
        };
        let ledger = up.replica.ledger();
        let changed = keys.iter().filter_map(|key| ledger.entry(key));
        let changed: Vec<Envelope> = changed.map(|entry| entry.envelope.clone()).collect();
        if keys
            .iter()
            .any(|key| matches!(key, RecordKey::Membership(_)))
        {
            check_uses(ledger).map_err(|why| format!("n{node}: {why}"))?;
        }
        for envelope in &changed {
            self.check_signer(envelope)
                .map_err(|why| format!("n{node} accepted {why}"))?;
        }
        Ok(())
    }

    fn check_signer(&mut self, envelope: &Envelope) -> Result<(), String> {
        if self.truth.is_rightful(envelope) {
            return Ok(());
        }
        let what = envelope
            .key()
            .map_or("a text".to_owned(), |key| key.to_string());
        if !self.truth.was_signed(envelope) {
            return Err(format!("{what}, which its signer never made"));
        }
        let mesh = self.administrator.mesh.public();
        if rightful_signer(envelope, &mesh) == Some(envelope.signer) {
            self.truth.note_rightful(envelope);
            return Ok(());
        }
        Err(format!(
            "{what}, which is signed by {}",
            envelope.signer.short()
        ))
    }

    /// No address belongs to two nodes, and no name that has a live instance is unknown.
    pub(crate) fn check_names(&self, node: usize, keys: &[RecordKey]) -> Result<(), String> {
        let Some(up) = self.machines[node].up() else {
            return Ok(());
        };
        if keys.iter().any(|key| matches!(key, RecordKey::Node(_))) {
            check_blocks(&up.netmap).map_err(|why| format!("n{node}: {why}"))?;
        }
        for key in keys {
            let RecordKey::Service(id) = key else {
                continue;
            };
            if let Some(service) = up.replica.ledger().service(&id.to_string()) {
                check_service(up, service).map_err(|why| format!("n{node}: {why}"))?;
            }
        }
        Ok(())
    }
}

// At settled points.
impl World {
    pub(crate) fn check_everything(&mut self) -> Result<(), String> {
        for node in 0..self.machines.len() {
            let Some(up) = self.machines[node].up() else {
                continue;
            };
            let held = up.replica.ledger().envelopes().chain(&up.smuggled);
            let held: Vec<Envelope> = held.cloned().collect();
            check_everything_at(up).map_err(|why| format!("n{node}: {why}"))?;
            for envelope in &held {
                self.check_signer(envelope)
                    .map_err(|why| format!("n{node} holds {why}"))?;
            }
        }
        for site in 0..self.sites.len() {
            let Some(hub) = &self.sites[site].hub else {
                continue;
            };
            let (held, _) = hub.snapshot();
            for envelope in &held {
                self.check_signer(envelope)
                    .map_err(|why| format!("c{site} holds {why}"))?;
            }
            self.check_acknowledged(site)?;
        }
        let (restores, losses) = (self.sites[0].disk.restores(), self.truth.losses);
        if restores > losses {
            return Err(format!(
                "a store was taken for a backup {restores} times, and lost records {losses} times"
            ));
        }
        self.check_admissions()
    }

    /// Honest coordinators admit no more nodes with a token than it may, unless their store lost what it knew.
    fn check_admissions(&self) -> Result<(), String> {
        for (token, admitted) in self.truth.admitted() {
            let mut known = self.administrator.tokens.iter();
            let uses = known
                .find(|t| t.key.public() == *token)
                .map_or(0, |t| t.uses);
            if admitted > uses as usize {
                let token = token.short();
                return Err(format!(
                    "the token {token} admitted {admitted} nodes, and may {uses}"
                ));
            }
        }
        Ok(())
    }

    /// What an honest coordinator acknowledged is in its store, or was replaced or made void by a later record.
    pub(crate) fn check_acknowledged(&self, site: usize) -> Result<(), String> {
        let Some(hub) = self.sites[site]
            .hub
            .as_ref()
            .filter(|_| self.sites[site].is_honest())
        else {
            return Ok(());
        };
        // Another coordinator may have written since the last event.
        hub.handle_news(self.clock(self.sites[site].skew));
        for envelope in self.truth.acknowledged(self.sites[site].life()) {
            let is_there = match hub.screen(envelope) {
                Screened::Held => true,
                Screened::Refused(why) => {
                    matches!(why, Refused::Stale { .. } | Refused::NodeRevoked)
                }
                Screened::Unverified => self.is_void(hub, envelope),
            };
            if !is_there {
                let what = envelope
                    .key()
                    .map_or_else(String::new, |key| key.to_string());
                return Err(format!("c{site} lost {what}, which it acknowledged"));
            }
        }
        Ok(())
    }

    /// Whether a record lost its force by a later one: its node is out, or its token was revoked.
    fn is_void(&self, hub: &meshd::coordinator::hub::Hub, envelope: &Envelope) -> bool {
        let owner = match Record::parse(&envelope.payload) {
            Ok((_, Record::Membership(membership))) => membership.id,
            _ => envelope.signer,
        };
        let is_attackers = self
            .attackers
            .identities
            .iter()
            .any(|key| key.public() == owner);
        let machine = self.find(&owner).map(|machine| &self.machines[machine]);
        hub.standing(&owner) != Standing::Member
            && machine.is_none_or(|m| self.administrator.has_ended(&owner, m.token))
            || is_attackers
            || machine.is_some_and(|machine| machine.is_hostile)
    }

    /// Why the honest nodes do not agree yet.
    pub(crate) fn find_difference(&self) -> Option<String> {
        if !self.is_clean || !self.administrator.unsent.is_empty() {
            return Some("the administrator is not done".into());
        }
        let mut first: Option<(usize, &Up)> = None;
        for (node, machine) in self.machines.iter().enumerate() {
            let id = machine.id();
            let is_out = self.administrator.has_ended(&id, machine.token);
            if machine.is_hostile || machine.is_deceived || machine.has_left || is_out {
                continue;
            }
            let up = match &machine.stage {
                Stage::Gone => continue,
                Stage::New | Stage::Joining(..) => return Some(format!("n{node} still joins")),
                Stage::Down => return Some(format!("n{node} is down")),
                Stage::Up(up) => up,
            };
            if up.replica.is_removed() && self.administrator.is_ephemeral(machine.token) {
                continue;
            }
            if !up.replica.link().is_connected() {
                return Some(format!("n{node} is not connected"));
            }
            let own = up.netmap.members.get(&id);
            if own.is_none_or(|own| {
                Some(own.block) != machine.block()
                    || own.wireguard_key != machine.files.wireguard_key()
            }) {
                return Some(format!("n{node} is not in its own netmap as it is"));
            }
            match first {
                None => first = Some((node, up)),
                Some((other, agreed)) => {
                    if let Some(what) = difference(&agreed.netmap, &up.netmap) {
                        return Some(format!("n{other} and n{node} differ: {what}"));
                    }
                }
            }
        }
        let (node, up) = first?;
        for (site, program) in self.sites.iter().enumerate() {
            let Some(hub) = &program.hub else {
                return Some(format!("c{site} is down"));
            };
            let mut ledger = Ledger::new(self.administrator.mesh.public());
            for envelope in hub.snapshot().0 {
                // What does not verify is missing in the netmap.
                let _ = ledger.apply(envelope);
            }
            if let Some(what) = difference(&up.netmap, &ledger.netmap()) {
                return Some(format!("n{node} and c{site} differ: {what}"));
            }
        }
        None
    }
}

/// The first thing in which two netmaps differ.
fn difference(one: &Netmap, other: &Netmap) -> Option<String> {
    if one == other {
        return None;
    }
    let ids = one.members.keys().chain(other.members.keys());
    for id in ids {
        let (a, b) = (one.members.get(id), other.members.get(id));
        if a != b {
            let show = |m: Option<&meshd::records::netmap::Member>| {
                m.map_or("absent".into(), |m| {
                    format!("{} {} {}", m.name, m.block.v4, m.wireguard_key)
                })
            };
            return Some(format!("member {}: {} / {}", id.short(), show(a), show(b)));
        }
    }
    let ids = one.services.keys().chain(other.services.keys());
    for id in ids {
        if one.services.get(id) != other.services.get(id) {
            return Some(format!("service {id}"));
        }
    }
    Some("the mesh record".into())
}

fn check_everything_at(up: &Up) -> Result<(), String> {
    check_uses(up.replica.ledger())?;
    check_blocks(&up.netmap)?;
    let ledger = up.replica.ledger();
    if ledger.netmap() != up.netmap {
        return Err("the netmap that was brought in step differs from that of the ledger".into());
    }
    for service in ledger.services() {
        check_service(up, service)?;
    }
    for member in up.netmap.members.values() {
        check_name(up, &format!("{}.node.mesh.", member.name))?;
    }
    Ok(())
}

/// No block belongs to two members.
fn check_blocks(netmap: &Netmap) -> Result<(), String> {
    let mut members: Vec<_> = netmap.members.values().collect();
    members.sort_by_key(|member| member.block.v4.network());
    let neighbours = members
        .windows(2)
        .find(|pair| pair[0].block.overlaps(&pair[1].block));
    if let Some([one, other]) = neighbours {
        return Err(format!(
            "{} belongs to {} and {}",
            one.block.v4, one.name, other.name
        ));
    }
    members.sort_by_key(|member| member.block.v6.network());
    let neighbours = members
        .windows(2)
        .find(|pair| pair[0].block.overlaps(&pair[1].block));
    if let Some([one, other]) = neighbours {
        return Err(format!(
            "{} belongs to {} and {}",
            one.block.v6, one.name, other.name
        ));
    }
    Ok(())
}

/// A ledger holds no more memberships of a token than the token admits.
fn check_uses(ledger: &Ledger) -> Result<(), String> {
    let mut used: BTreeMap<PublicKey, u32> = BTreeMap::new();
    for membership in ledger.memberships() {
        *used.entry(membership.token).or_default() += 1;
    }
    for (token, used) in used {
        let uses = ledger.token(&token).map_or(0, |token| token.uses);
        if used > uses {
            return Err(format!(
                "the token {} has {used} members, and may have {uses}",
                token.short()
            ));
        }
    }
    Ok(())
}

/// A service that has an instance is known by its name.
fn check_service(up: &Up, service: &Service) -> Result<(), String> {
    let ledger = up.replica.ledger();
    let is_in = ledger.membership(&service.node).is_some() && !ledger.is_revoked(&service.node);
    let Some(node) = ledger.node(&service.node).filter(|_| is_in) else {
        return Ok(());
    };
    let mut addresses = service.instances.iter().flat_map(|i| &i.addresses);
    if !addresses.any(|address| node.block.contains(*address)) {
        return Ok(());
    }
    check_name(up, &format!("{}.svc.mesh.", service.service_name()))
}

fn check_name(up: &Up, name: &str) -> Result<(), String> {
    let parsed = Name::from_ascii(name).map_err(|error| error.to_string())?;
    match answer(&up.zone, &parsed, RecordType::A, 0) {
        Verdict::Answer(answer) if answer.code == ResponseCode::NXDomain => Err(format!(
            "{name} has a live instance and is answered NXDOMAIN"
        )),
        Verdict::Answer(_) => Ok(()),
        Verdict::Forward => Err(format!("{name} is forwarded to an upstream")),
    }
}
