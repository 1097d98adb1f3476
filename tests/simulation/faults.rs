//! Lets the faults of a plan happen, and ends them.

use std::time::Duration;

use meshd::node::replica::Opening;
use meshd::records::Envelope;
use meshd::records::kinds::{Departure, Record};

use super::machine::{Offer, Stage, Torn};
use super::network::{Message, Place};
use super::nodes::label;
use super::plan::Fault;
use super::queue::Event;
use super::world::World;

impl World {
    /// A node that runs and is honest.
    fn honest(&mut self) -> Option<usize> {
        let running: Vec<usize> = (0..self.machines.len())
            .filter(|n| self.machines[*n].up().is_some() && !self.machines[*n].is_hostile)
            .collect();
        self.random.pick(&running).copied()
    }

    fn running_site(&mut self) -> Option<usize> {
        let running: Vec<usize> = (0..self.sites.len())
            .filter(|site| self.sites[*site].hub.is_some())
            .collect();
        self.random.pick(&running).copied()
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Join
            | Fault::Leave
            | Fault::Remove
            | Fault::NewToken
            | Fault::RevokeToken
            | Fault::Rename
            | Fault::RotateKey
            | Fault::ChangeServices => self.let_people_act(fault),
            Fault::BreakStream
            | Fault::BreakCoordinator
            | Fault::CutNodes
            | Fault::CutCoordinator
            | Fault::Split
            | Fault::HealNetwork => self.disturb_network(fault),
            Fault::CrashNode
            | Fault::CrashCoordinator
            | Fault::JumpClock
            | Fault::JumpCoordinatorClock
            | Fault::FillDisk
            | Fault::FillCoordinatorDisk
            | Fault::CacheWrites
            | Fault::BackUpNode
            | Fault::RestoreNode
            | Fault::BackUpStore
            | Fault::RestoreStore
            | Fault::RewindStore => self.disturb_machines(fault),
            _ => self.attack(fault),
        }
    }

    fn let_people_act(&mut self, fault: Fault) {
        match fault {
            Fault::Join => {
                let number = self.add_machine(false);
                self.publish_tokens();
                self.queue.add(self.now, Event::Join(number, 0));
            }
            Fault::NewToken => self.publish_tokens(),
            Fault::RevokeToken => {
                let index = self.random.index(self.administrator.tokens.len());
                self.revoke_token(index);
            }
            _ => {
                let Some(node) = self.honest() else {
                    return;
                };
                match fault {
                    Fault::Leave => self.leave(node),
                    Fault::Remove => {
                        let id = self.machines[node].id();
                        self.remove(id);
                    }
                    Fault::Rename => {
                        let name = format!("r{}", self.random.below(6));
                        self.note(|| format!("n{node} wants the name {name}"));
                        self.rename(node, label(&name));
                    }
                    Fault::RotateKey => {
                        self.note(|| format!("n{node} rotates its WireGuard key"));
                        let secret = self.random.bytes();
                        self.machines[node].files.set_wireguard(secret);
                        self.publish_own(node);
                        self.drain(node);
                    }
                    _ => {
                        self.change_services(node);
                        self.publish_own(node);
                        self.drain(node);
                    }
                }
            }
        }
    }

    /// Adds, changes or withdraws a service of a node.
    pub(crate) fn change_services(&mut self, node: usize) {
        let name = label(&format!("s{}", self.random.below(4)));
        let offer = Offer {
            project: self.random.percent(30).then(|| label("p")),
            instances: self.random.range(1, 3) as u8,
            is_healthy: self.random.percent(75),
        };
        let is_gone = self.random.percent(30);
        self.note(|| {
            let count = if is_gone { 0 } else { offer.instances };
            format!("n{node} serves {name} with {count} instances")
        });
        let offers = &mut self.machines[node].offers;
        // A project is a part of the name of a service, so the service of the other project ends.
        if is_gone {
            offers.remove(&name);
        } else {
            offers.insert(name, offer);
        }
    }

    /// A node departs: its coordinator and its peers receive its departure, and it never comes back.
    pub(crate) fn leave(&mut self, node: usize) {
        let record = Record::Departure(Departure::of(self.machines[node].id()));
        let key = self.machines[node].key.clone();
        let departure = self.truth.sign(&record, &key);
        self.note(|| format!("n{node} leaves"));
        self.machines[node].has_left = true;
        self.say_departure(node, &departure);
        let run = self.machines[node].run;
        self.queue
            .add(self.now + Duration::from_secs(5), Event::Left(node, run));
    }

    fn say_departure(&mut self, node: usize, departure: &Envelope) {
        let Some(up) = self.machines[node].up_mut() else {
            return;
        };
        up.replica.publish_departure(departure.clone());
        let peers: Vec<_> = up.reached.iter().copied().collect();
        self.drain(node);
        for peer in peers {
            let opening = Opening {
                news: vec![departure.clone()],
                asks: Vec::new(),
            };
            self.dial_peer(node, peer, opening, false);
        }
    }

    pub(crate) fn handle_left(&mut self, node: usize) {
        self.stop_node(node);
        self.machines[node].stage = Stage::Gone;
    }

    fn disturb_network(&mut self, fault: Fault) {
        match fault {
            Fault::BreakStream => {
                let all = self.network.all();
                if let Some(stream) = self.random.pick(&all).copied() {
                    self.break_stream(stream);
                }
            }
            Fault::BreakCoordinator => {
                if let Some(site) = self.running_site() {
                    self.note(|| format!("all streams of c{site} break"));
                    for (stream, _) in self.network.streams_of(Place::Coordinator(site)) {
                        self.break_stream(stream);
                    }
                }
            }
            Fault::CutNodes if self.machines.len() > 1 => {
                let one = self.random.index(self.machines.len());
                let other = self.random.index(self.machines.len());
                self.note(|| format!("the path between n{one} and n{other} is cut"));
                self.network.cut(Place::Node(one), Place::Node(other));
            }
            Fault::CutCoordinator => {
                let site = self.random.index(self.sites.len());
                let share = self.random.range(30, 100);
                self.note(|| format!("c{site} is cut off from {share} % of the nodes"));
                for node in 0..self.machines.len() {
                    if self.random.percent(share) {
                        self.network
                            .cut(Place::Node(node), Place::Coordinator(site));
                    }
                }
            }
            Fault::Split => self.split(),
            Fault::HealNetwork => {
                self.note(|| "the network is whole".into());
                self.network.heal();
            }
            _ => {}
        }
    }

    /// Parts the network in two.
    fn split(&mut self) {
        self.note(|| "the network is split".into());
        let sides = |world: &mut Self, count: usize| -> Vec<bool> {
            (0..count).map(|_| world.random.percent(50)).collect()
        };
        let nodes = sides(self, self.machines.len());
        let sites = sides(self, self.sites.len());
        for (one, side) in nodes.iter().enumerate() {
            for (other, _) in nodes.iter().enumerate().filter(|(_, s)| *s != side) {
                self.network.cut(Place::Node(one), Place::Node(other));
            }
            for (site, _) in sites.iter().enumerate().filter(|(_, s)| *s != side) {
                self.network.cut(Place::Node(one), Place::Coordinator(site));
            }
        }
    }

    /// A stream breaks. A part of what is on its way arrives, and each side notices some time later.
    fn break_stream(&mut self, stream: super::network::StreamId) {
        self.network.break_off(stream);
        for side in [0, 1] {
            let kept = self.random.index(self.network.on_the_way(stream, side) + 1);
            self.network.lose(stream, side, kept);
            let after = if self.random.percent(70) { 500 } else { 20_000 };
            let at = self.now + Duration::from_millis(self.random.below(after));
            self.queue.add(at, Event::Hangup(stream, side));
        }
    }

    fn disturb_machines(&mut self, fault: Fault) {
        match fault {
            Fault::CrashNode => {
                if let Some(node) = self.honest() {
                    self.crash_node(node);
                    self.start_later(node);
                }
            }
            Fault::CrashCoordinator => {
                if let Some(site) = self.running_site() {
                    self.note(|| format!("c{site} crashes"));
                    self.crash_site(site);
                }
            }
            Fault::JumpClock => {
                let node = self.random.index(self.machines.len());
                self.machines[node].skew = self.any_skew();
                let skew = self.machines[node].skew;
                self.note(|| format!("the clock of n{node} is {skew} s ahead"));
            }
            Fault::JumpCoordinatorClock => {
                let site = self.random.index(self.sites.len());
                self.sites[site].skew = self.any_skew();
                let skew = self.sites[site].skew;
                self.note(|| format!("the clock of c{site} is {skew} s ahead"));
            }
            Fault::FillDisk => {
                let node = self.random.index(self.machines.len());
                let is_full = !self.machines[node].is_disk_full;
                self.note(|| format!("the disk of n{node} is full: {is_full}"));
                self.machines[node].is_disk_full = is_full;
            }
            Fault::FillCoordinatorDisk => {
                let is_full = self.sites[0].disk.toggle_full();
                self.note(|| format!("the disk of the store is full: {is_full}"));
            }
            // Coordinators that share a store use etcd, which stores each write on most of its disks. A crash of one machine does not
            // lose it.
            Fault::CacheWrites if self.sites.len() == 1 => {
                self.note(|| "the disk of the store caches writes".into());
                self.sites[0].disk.set_cached(true);
            }
            Fault::BackUpNode => {
                if let Some(node) = self.honest() {
                    self.note(|| format!("the files of n{node} are copied"));
                    self.machines[node].backup = Some(self.machines[node].files.clone());
                }
            }
            Fault::RestoreNode => self.restore_node(),
            Fault::BackUpStore => {
                self.note(|| "the store is copied".into());
                self.sites[0].disk.back_up();
            }
            Fault::RestoreStore => self.restore_store(true),
            Fault::RewindStore => self.restore_store(false),
            _ => {}
        }
    }

    fn any_skew(&mut self) -> i64 {
        let by = [5, 300, 4000, 100_000][self.random.index(4)];
        if self.random.percent(50) { by } else { -by }
    }

    pub(crate) fn crash_node(&mut self, node: usize) {
        self.note(|| format!("n{node} crashes"));
        let torn = Torn {
            parts: self.random.index(5),
            lines: self.random.index(4),
        };
        let machine = &mut self.machines[node];
        if let Stage::Up(up) = &mut machine.stage
            && let Some(request) = up.writing.take()
            && !machine.is_disk_full
        {
            machine.files.tear(request, torn);
        }
        machine.run += 1;
        machine.stage = Stage::Down;
        self.lose_streams(Place::Node(node));
    }

    fn start_later(&mut self, node: usize) {
        let after = Duration::from_millis(500 + self.random.below(40_000));
        let event = Event::Start(node, self.machines[node].run);
        self.queue.add(self.now + after, event);
    }

    /// The streams of a machine that crashed are gone. The other side notices at once if only the program ended.
    fn lose_streams(&mut self, place: Place) {
        let is_noticed = self.random.percent(50);
        for (stream, side) in self.network.streams_of(place) {
            let kept = self
                .random
                .index(self.network.on_the_way(stream, 1 - side) + 1);
            self.network.lose(stream, 1 - side, kept);
            if is_noticed {
                self.send(stream, side, Message::End);
            }
            self.network.close(stream, side);
        }
    }

    pub(crate) fn crash_site(&mut self, site: usize) {
        if self.sites[site].disk.crash() {
            self.truth.losses += 1;
            self.note(|| format!("c{site} loses the writes in the cache of its disk"));
        }
        self.sites[site].stop();
        self.lose_streams(Place::Coordinator(site));
        let after = Duration::from_millis(500 + self.random.below(45_000));
        let event = Event::Open(site, self.sites[site].run);
        self.queue.add(self.now + after, event);
    }

    fn restore_node(&mut self) {
        let saved: Vec<usize> = (0..self.machines.len())
            .filter(|node| {
                let machine = &self.machines[*node];
                machine.backup.is_some() && machine.up().is_some()
            })
            .collect();
        let Some(node) = self.random.pick(&saved).copied() else {
            return;
        };
        self.crash_node(node);
        self.note(|| format!("n{node} gets its old files back"));
        if let Some(files) = self.machines[node].backup.clone() {
            self.machines[node].files = files;
        }
        self.start_later(node);
    }

    fn restore_store(&mut self, is_told: bool) {
        if !self.sites[0].disk.restore(is_told) {
            return;
        }
        self.truth.losses += 1;
        self.note(|| format!("the store is put back from its copy; told: {is_told}"));
        for site in 0..self.sites.len() {
            self.crash_site(site);
        }
    }

    /// All faults end. What they did to the records stays.
    pub(crate) fn calm_down(&mut self) {
        self.note(|| "no more faults".into());
        self.is_calm = true;
        self.network.heal();
        self.network.slowest = self.network.slowest.min(Duration::from_millis(100));
        self.sites[0].disk.make_room();
        self.sites[0].disk.set_cached(false);
        for site in 0..self.sites.len() {
            self.sites[site].skew = 0;
        }
        self.return_sites();
        for node in 0..self.machines.len() {
            let machine = &mut self.machines[node];
            machine.skew = 0;
            machine.is_disk_full = false;
        }
        // The attackers' last records have time to spread.
        let pause = if self.plan.has(Fault::is_attack) {
            50
        } else {
            1
        };
        self.queue
            .add(self.now + Duration::from_secs(pause), Event::CleanUp);
    }

    /// The administrator removes the nodes of the attackers, and revokes their tokens.
    pub(crate) fn clean_up(&mut self) {
        let hostile: Vec<_> = self.machines.iter().filter(|m| m.is_hostile).collect();
        let mut ids: Vec<_> = hostile.iter().map(|machine| machine.id()).collect();
        ids.extend(self.attackers.identities.iter().map(|key| key.public()));
        for id in ids {
            self.remove(id);
        }
        for index in 0..self.administrator.tokens.len() {
            if self.administrator.tokens[index].is_hostile {
                self.revoke_token(index);
            }
        }
        for node in 0..self.machines.len() {
            if self.machines[node].is_hostile && self.machines[node].up().is_some() {
                self.stop_node(node);
            }
        }
        self.submit_all();
        self.is_clean = true;
        let more = !self.administrator.unsent.is_empty();
        if more {
            self.queue
                .add(self.now + Duration::from_secs(20), Event::CleanUp);
        }
    }
}
