//! Calls of the local API and of the API over the network that change something.

use std::net::IpAddr;

use crate::model::PublicKey;
use crate::os::audit::{Event, LocalCall, Text, Transition, What, Who};
use crate::os::log::TRANSITION;
use crate::protocol::api::ApiError;

/// A process of this machine called the local API, or a program with an API token called the API over the network.
#[derive(Debug)]
pub(in crate::node) struct LocalChange<'a> {
    pub by: &'a Who,
    pub call: LocalCall,
    /// The name of the service or of the node that the call names, if it names one. It is never a token.
    pub of: Option<&'a str>,
    pub result: Result<(), &'a ApiError>,
}

impl Transition for LocalChange<'_> {
    fn log(&self) {
        if let Who::ApiCaller { address, token, .. } = self.by {
            return self.log_api(*address, token.as_ref());
        }
        let (uid, pid) = match self.by {
            Who::Local { uid, pid } => (Some(*uid), *pid),
            _ => (None, None),
        };
        let call = self.call.as_str();
        let name = self.of;
        match self.result {
            Ok(()) => {
                tracing::info!(target: TRANSITION, call, name, uid, pid, "changed by a local caller")
            }
            Err(error) => {
                let reason = &error.message;
                tracing::info!(target: TRANSITION, call, name, uid, pid, reason, "a change by a local caller failed");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let what = What::LocalCall {
            call: self.call,
            name: self.of.map(Text::from),
        };
        Some(Event::of_result(
            self.by.clone(),
            what,
            &self.result.map_err(|error| &error.message),
        ))
    }
}

impl LocalChange<'_> {
    fn log_api(&self, address: IpAddr, token: Option<&PublicKey>) {
        let (call, name) = (self.call.as_str(), self.of);
        let token = token.map(PublicKey::short);
        match self.result {
            Ok(()) => {
                tracing::info!(target: TRANSITION, call, name, %address, token, "changed with an API token");
            }
            Err(error) => {
                let reason = &error.message;
                tracing::info!(target: TRANSITION, call, name, %address, token, reason, "a change with an API token failed");
            }
        }
    }
}
