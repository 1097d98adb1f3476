//! The messages that programs exchange: join token, join, control stream, gossip between nodes, paths
//! between nodes, streams to relays, administration, local API.

pub mod admin;
pub mod api;
pub mod api_token;
pub mod call;
pub mod control;
pub mod gossip;
pub mod join;
pub mod local;
pub mod path_messages;
pub mod policy_check;
pub mod service_list;
pub mod spawn;
pub mod stream;
pub mod stun;
pub mod token;
pub mod url;
pub mod web;

pub use token::JoinToken;
