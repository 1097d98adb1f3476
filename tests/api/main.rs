//! The coordinator's HTTPS API, as nodes and others on the network find it.

mod audit;
mod coordinator;
mod fixtures;
mod hostile;
mod joins;
mod kills;
mod page;
mod policy_checks;
mod strangers;
mod tokens;
mod versions;
