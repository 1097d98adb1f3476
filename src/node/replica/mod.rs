//! The parts that decide which records this node holds, offers and tells its peers.

pub(super) mod acceptance;
pub(super) mod newcomers;
pub(super) mod refusals;
pub(super) mod renewal;
pub(super) mod schedule;
