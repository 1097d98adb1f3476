//! Collects what the local API returns about this node: status, problems, peers, services, lookups and changes to the machine.

mod api;
mod checkup;
mod denied;
mod netcheck;
mod peers;
mod policy;
mod problems;
mod resolve;
mod rows;
mod services;
mod status;
mod system;
mod why;

pub(super) use api::api_facts;
pub(super) use checkup::{checkup, ping};
pub(super) use denied::{denied, read_denials};
pub(super) use netcheck::netcheck;
pub(super) use peers::{not_ready, others};
pub(super) use policy::policy_facts;
pub(super) use problems::{ProblemKind, problem_counts};
pub(super) use resolve::resolve;
pub(super) use rows::paths_between;
pub(super) use services::{containers, own_instances, services, sites, targets};
pub(super) use status::{bare_status, routes, status};
pub(super) use system::system;
pub(super) use why::why;
