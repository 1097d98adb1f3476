//! meshctl as scripts and people meet it: its words, its streams, its exit status. The daemon is a stand-in that
//! gives prepared answers.

mod bugreport;
mod daemon;
mod each;
mod failures;
mod node_commands;
mod program;
mod rollout;
mod terminal;
mod values;
mod wrong_uses;
