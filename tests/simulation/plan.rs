//! What happens in a simulation, chosen by its seed: how many machines there are, and which faults hit them when.
//!
//! Each seed enables some families of faults and leaves the others out, so that seeds differ in kind and not only in order.

use std::time::Duration;

use super::network::At;
use super::random::Random;

/// One thing that happens to a mesh. The machines that it hits are chosen when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    // What people do.
    Join,
    Leave,
    Remove,
    NewToken,
    RevokeToken,
    Rename,
    RotateKey,
    ChangeServices,
    // What goes wrong in the network.
    BreakStream,
    /// All streams of one coordinator break.
    BreakCoordinator,
    CutNodes,
    CutCoordinator,
    Split,
    HealNetwork,
    // What goes wrong on machines.
    CrashNode,
    CrashCoordinator,
    JumpClock,
    JumpCoordinatorClock,
    FillDisk,
    FillCoordinatorDisk,
    /// The disk of the store acknowledges writes that a crash loses.
    CacheWrites,
    BackUpNode,
    RestoreNode,
    BackUpStore,
    /// The store is put back with `mesh-coordinator restore`.
    RestoreStore,
    /// The file of the store is replaced by an older copy, and nobody tells the coordinator.
    RewindStore,
    // What attackers do.
    StealCoordinator,
    ReturnCoordinator,
    ClaimBlock,
    ClaimKey,
    ClaimName,
    ClaimIdentity,
    BackDate,
    ForgeRecords,
    Flood,
    Replay,
}

/// The families that a seed may enable, and how often a fault of one happens compared to those of others.
const FAMILIES: &[(u64, &[Fault])] = &[
    (3, &[Fault::Join]),
    (1, &[Fault::Leave]),
    (1, &[Fault::Remove]),
    (1, &[Fault::NewToken, Fault::RevokeToken]),
    (1, &[Fault::Rename, Fault::RotateKey]),
    (4, &[Fault::ChangeServices]),
    (2, &[Fault::BreakStream, Fault::BreakCoordinator]),
    (
        2,
        &[
            Fault::CutNodes,
            Fault::CutCoordinator,
            Fault::Split,
            Fault::HealNetwork,
        ],
    ),
    (2, &[Fault::CrashNode]),
    (2, &[Fault::CrashCoordinator]),
    (1, &[Fault::CacheWrites, Fault::CrashCoordinator]),
    (1, &[Fault::JumpClock, Fault::JumpCoordinatorClock]),
    (1, &[Fault::FillDisk, Fault::FillCoordinatorDisk]),
    (1, &[Fault::BackUpNode, Fault::RestoreNode]),
    (1, &[Fault::BackUpStore, Fault::RestoreStore]),
    (1, &[Fault::BackUpStore, Fault::RewindStore]),
    (1, &[Fault::StealCoordinator, Fault::ReturnCoordinator]),
    (
        2,
        &[
            Fault::ClaimBlock,
            Fault::ClaimKey,
            Fault::ClaimName,
            Fault::ClaimIdentity,
            Fault::BackDate,
            Fault::ForgeRecords,
            Fault::Flood,
            Fault::Replay,
        ],
    ),
];

/// The shape of one simulation.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The number of nodes that join at the beginning.
    pub(crate) nodes: usize,
    /// The number of coordinators. Several share one store.
    pub(crate) coordinators: usize,
    /// How many of the nodes belong to an attacker.
    pub(crate) hostile: usize,
    /// The longest delay of a message.
    pub(crate) slowest: Duration,
    /// Within this time after the beginning all nodes have tried to join.
    pub(crate) joined: At,
    /// When the last fault is over.
    pub(crate) calm: At,
    pub(crate) faults: Vec<(At, Fault)>,
}

/// The size of most meshes, in nodes.
const SMALL: (u64, u64) = (2, 8);

impl Plan {
    pub(crate) fn of(seed: u64, random: &mut Random) -> Self {
        let nodes = match seed {
            // A few meshes are large. Their simulation takes as long as that of hundreds of small ones.
            _ if seed % 5000 == 4977 => 200,
            _ if seed % 100 == 33 => 30,
            _ if seed % 10 == 5 => random.range(9, 12) as usize,
            _ => random.range(SMALL.0, SMALL.1) as usize,
        };
        let is_large = nodes > 12;
        let joined = Duration::from_millis(if is_large { 30_000 } else { 8_000 });
        let coordinators = if random.percent(30) {
            random.range(2, 3) as usize
        } else {
            1
        };
        // Some faults matter only after minutes, such as the absence of an ephemeral node.
        let length = match random.below(if is_large { 10 } else { 40 }) {
            0..28 => 60,
            28..36 => 120,
            36..39 => 400,
            _ => 900,
        };
        let calm = joined + Duration::from_secs(length);
        let families: Vec<_> = FAMILIES.iter().filter(|_| random.percent(45)).collect();
        let weight = families.iter().map(|(weight, _)| weight).sum();
        let count = random.range(2, if is_large { 12 } else { 24 });
        let mut faults = Vec::new();
        for _ in 0..count {
            let mut ticket = random.below(weight);
            let family = families.iter().find(|(weight, _)| {
                let hit = ticket < *weight;
                ticket = ticket.saturating_sub(*weight);
                hit
            });
            let Some(fault) = family.and_then(|(_, family)| random.pick(family)) else {
                continue;
            };
            let at = joined + Duration::from_millis(random.below(length * 1000));
            faults.push((at, *fault));
        }
        faults.sort_by_key(|(at, _)| *at);
        let attacks = faults.iter().any(|(_, fault)| fault.is_attack());
        let hostile = if attacks {
            random.range(1, 1 + nodes as u64 / 4) as usize
        } else {
            0
        };
        Self {
            nodes,
            coordinators,
            hostile: hostile.min(nodes.saturating_sub(1)),
            slowest: Duration::from_millis([2, 20, 200, 1500][random.index(4)]),
            joined,
            calm,
            faults,
        }
    }

    pub(crate) fn has(&self, is_meant: impl Fn(Fault) -> bool) -> bool {
        self.faults.iter().any(|(_, fault)| is_meant(*fault))
    }
}

impl Fault {
    /// Whether an attacker does it who has a member of the mesh.
    pub(crate) fn is_attack(self) -> bool {
        matches!(
            self,
            Self::StealCoordinator
                | Self::ClaimBlock
                | Self::ClaimKey
                | Self::ClaimName
                | Self::ClaimIdentity
                | Self::BackDate
                | Self::ForgeRecords
                | Self::Flood
                | Self::Replay
        )
    }
}
