//! Everything that is not the mesh's: asked of the host's own resolvers, kept for as long as they say.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use tokio::sync::Semaphore;

use super::message::Forwarded;

/// How long one upstream may take.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the client waits at most: containers' own resolvers give up after 4 s.
const OVERALL: Duration = Duration::from_millis(3500);
/// Answers kept at most.
const CACHE: u64 = 8192;
/// Questions under way at most.
const UNDER_WAY: usize = 1024;

/// The resolvers everything else is asked of.
pub struct Upstream {
    resolver: ArcSwapOption<TokioResolver>,
    slots: Semaphore,
}

impl Upstream {
    /// None yet: every question fails until [`Upstream::set`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            resolver: ArcSwapOption::empty(),
            slots: Semaphore::new(UNDER_WAY),
        }
    }

    /// Asks `servers` from now on, in turn; never those in `own`, which would be this node itself.
    pub fn set(&self, servers: &[SocketAddr], own: &BTreeSet<IpAddr>) {
        let configs: Vec<NameServerConfig> = servers
            .iter()
            .filter(|s| !own.contains(&s.ip()))
            .map(server_config)
            .collect();
        if configs.is_empty() {
            return self.resolver.store(None);
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), configs);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = TIMEOUT;
        options.attempts = 2;
        options.cache_size = CACHE;
        options.edns0 = true;
        // The name is asked as it is: search lists are the client's business, the hosts file its libc's.
        options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
        options.preserve_intermediates = true;
        match builder.build() {
            Ok(resolver) => self.resolver.store(Some(std::sync::Arc::new(resolver))),
            Err(error) => tracing::warn!(%error, "the upstream resolvers cannot be used"),
        }
    }

    /// Asks. A failure is an answer too: SERVFAIL.
    pub async fn ask(&self, name: Name, record_type: RecordType) -> Forwarded {
        let failed = || Forwarded {
            code: ResponseCode::ServFail,
            ..Forwarded::default()
        };
        let (Some(resolver), Ok(_slot)) = (self.resolver.load_full(), self.slots.try_acquire())
        else {
            return failed();
        };
        let mut name = name;
        name.set_fqdn(true);
        match tokio::time::timeout(OVERALL, resolver.lookup(name, record_type)).await {
            Ok(Ok(lookup)) => Forwarded {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                authority: Vec::new(),
            },
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => negative(none),
            Ok(Err(error)) => {
                tracing::debug!(%error, "an upstream failed");
                failed()
            }
            Err(_) => failed(),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("configured", &self.resolver.load().is_some())
            .finish_non_exhaustive()
    }
}

fn server_config(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.to_vec())
}

fn negative(none: NoRecords) -> Forwarded {
    let authority = none
        .soa
        .map(|soa| {
            Record::from_rdata(
                soa.name.clone(),
                none.negative_ttl.unwrap_or(soa.ttl),
                soa.data.clone(),
            )
            .into_record_of_rdata()
        })
        .into_iter()
        .collect();
    Forwarded {
        code: none.response_code,
        answers: Vec::new(),
        authority,
    }
}
