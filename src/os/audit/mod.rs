//! The audit log: one line for each event that somebody has to answer for later, chained so that a change of it is found.
//!
//! | file | what it is |
//! |---|---|
//! | [`event`] | the events of both daemons |
//! | [`line`], [`digest`] | the lines, and the chain through them |
//! | [`pace`] | bounds events that outside causes can repeat without end |
//! | [`recorder`] | what is appended, and when a new file begins |
//! | [`files`] | the files on disk |
//! | [`recording`] | the handle of a daemon, and the thread that writes |
//! | [`verify`] | names each line that was deleted, moved or changed |
//! | [`reading`] | reads the files, also while a daemon writes them |
//!
//! A daemon acknowledges an action after its event is on disk. So a daemon that is killed has no acknowledged action without an
//! event. An action that was not acknowledged may have been carried out all the same, with or without an event.

pub mod digest;
pub mod event;
pub mod files;
pub mod line;
pub mod pace;
pub mod reading;
pub mod recorder;
pub mod recording;
pub mod verify;

pub use digest::LineDigest;
pub use event::{Event, LocalCall, Outcome, Text, Transition, What, Who};
pub use recording::{Audit, append};
