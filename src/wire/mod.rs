//! What travels: join token, signed envelope and ledger, control stream, join, admin and local APIs.

pub mod admin;
pub mod api;
pub mod config_file;
pub mod control;
pub mod envelope;
pub mod file;
pub mod holdings;
pub mod join;
pub mod ledger;
pub mod local;
pub mod log;
pub mod peers;
pub mod repeats;
pub mod stop;
pub mod token;
pub mod unix_server;
pub mod url;
pub mod usage;
pub mod watchdog;

pub use envelope::Envelope;
pub use ledger::Ledger;
pub use token::JoinToken;
