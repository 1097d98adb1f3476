//! `meshctl service add`.

use std::time::Duration;

use clap::{ArgGroup, Args};

use super::Transport;
use crate::cli::Globals;
use crate::cli::exit::CliError;
use crate::model::{Label, PublicHost, ServerAddress};
use crate::os::arguments;
use crate::policy::Selector;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{AddService, Check, CheckProbe, ServiceChange, ServiceChanged};
use crate::records::kinds::Protocol;

/// The arguments of `meshctl service add`. The options are the keys of `[[service]]` in meshd.toml.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("check").args(["check_tcp", "check_http"])), after_help = "\
Examples:
  meshctl service add db --port 5432 --check-tcp
  meshctl service add web --port 8080 --check-http /healthz --interval 2s --fall 3
  meshctl service add dns --port 53 --protocol udp --port-name resolver
  meshctl service add db --port 5432 --address db.example.net --check-tcp
  meshctl service add db --port 5432 --allow shop/api --allow tag:ops
  meshctl service add shop --port 8080 --public shop.example.com

The same name, port and protocol again change the service. It stays after a restart of meshd.")]
pub(in crate::cli) struct AddArguments {
    /// The name of the service: NAME.svc.mesh
    #[arg(value_name = "NAME", value_parser = arguments::label)]
    name: Label,
    /// The port it listens on
    #[arg(long, value_name = "P", value_parser = arguments::port, allow_hyphen_values = true)]
    port: u16,
    /// The transport protocol
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    protocol: Transport,
    /// The address it listens on: one of this node's mesh addresses, or an IPv4 address or host name outside the mesh to which this node
    /// forwards [default: both mesh addresses]
    #[arg(long, value_name = "ADDRESS", value_parser = arguments::server_address)]
    address: Option<ServerAddress>,
    /// The name of the port in SRV queries: _NAME._tcp.db.svc.mesh
    #[arg(long, value_name = "NAME", value_parser = arguments::label)]
    port_name: Option<Label>,
    /// SRV weight: among instances of the same priority, a client chooses in proportion to it [default: 10]
    #[arg(long, value_name = "N", value_parser = arguments::number(0u16, u16::MAX, 10), allow_hyphen_values = true)]
    weight: Option<u16>,
    /// SRV priority: clients use the lowest one that answers [default: 0]
    #[arg(long, value_name = "N", value_parser = arguments::number(0u16, u16::MAX, 0), allow_hyphen_values = true)]
    priority: Option<u16>,
    /// Who may reach it, within the policy, such as shop/api or tag:ops; may be given several times [default: whom the policy allows]
    #[arg(long, value_name = "WHO", value_parser = parse_selector)]
    allow: Vec<String>,
    /// The host name under which an ingress offers it to the world outside the mesh; may be given several times
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    public: Vec<String>,
    #[command(flatten)]
    check: CheckArguments,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// The health check of the service.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health check")]
struct CheckArguments {
    /// Publish it only while its port accepts TCP connections
    #[arg(long)]
    check_tcp: bool,
    /// Publish it only while an HTTP GET of PATH succeeds
    #[arg(long, value_name = "PATH", value_parser = arguments::http_path)]
    check_http: Option<String>,
    /// The time between two tries [default: 5s]
    #[arg(long, value_name = "TIME", requires = "check", value_parser = arguments::duration("100ms", "1h", "5s"), allow_hyphen_values = true)]
    interval: Option<Duration>,
    /// The time after which a try has failed [default: 2s]
    #[arg(long, value_name = "TIME", requires = "check", value_parser = arguments::duration("100ms", "60s", "2s"), allow_hyphen_values = true)]
    timeout: Option<Duration>,
    /// The number of successes in a row after which it is healthy again [default: 1]
    #[arg(long, value_name = "N", requires = "check", value_parser = arguments::number(1u8, u8::MAX, 2), allow_hyphen_values = true)]
    rise: Option<u8>,
    /// The number of failures in a row after which it is unhealthy [default: 2]
    #[arg(long, value_name = "N", requires = "check", value_parser = arguments::number(1u8, u8::MAX, 3), allow_hyphen_values = true)]
    fall: Option<u8>,
    /// The HTTP status, or range of them, that counts as a success [default: 200-399]
    #[arg(long, value_name = "STATUS", requires = "check_http", value_parser = parse_status)]
    status: Option<(u16, u16)>,
}

fn parse_selector(text: &str) -> Result<String, String> {
    let selector = Selector::parse(text);
    let selector = selector.map_err(|error| format!("{error}; an example is shop/api"))?;
    Ok(selector.to_string())
}

fn parse_host(text: &str) -> Result<String, String> {
    let host = PublicHost::parse(text);
    let host = host.map_err(|error| format!("{error}; an example is shop.example.com"))?;
    Ok(host.to_string())
}

fn parse_status(text: &str) -> Result<(u16, u16), String> {
    Check::parse_status(text)
        .ok_or_else(|| "it is a status from 100 to 599, or a range, such as 200-299".to_owned())
}

impl CheckArguments {
    fn into_check(self) -> Option<Check> {
        let probe = match self.check_http {
            Some(path) => Some(CheckProbe::Http(path)),
            None => self.check_tcp.then_some(CheckProbe::Tcp),
        };
        let check = Check::new(probe?);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(Check {
            interval_ms: self.interval.map_or(check.interval_ms, milliseconds),
            timeout_ms: self.timeout.map_or(check.timeout_ms, milliseconds),
            rise: self.rise.map_or(check.rise, u32::from),
            fall: self.fall.map_or(check.fall, u32::from),
            status: self.status.unwrap_or(check.status),
            ..check
        })
    }
}

pub(in crate::cli) async fn run(
    arguments: AddArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    let check = arguments.check.into_check();
    if let Some(check) = check
        .as_ref()
        .filter(|_| arguments.protocol == Transport::Udp)
    {
        let option = match check.probe {
            CheckProbe::Tcp => "--check-tcp",
            CheckProbe::Http(_) => "--check-http",
        };
        return Err(CliError::new(
            ErrorCode::BadRequest,
            format!(
                "service add: {option} and --protocol udp exclude each other: a UDP port accepts no connections, so the service would always be unhealthy; leave {option} out; see `meshctl service add --help`"
            ),
        ));
    }
    let add = AddService {
        name: arguments.name.to_string(),
        port: arguments.port,
        protocol: Protocol::from(arguments.protocol),
        address: arguments.address,
        check,
        port_name: arguments.port_name,
        weight: arguments.weight,
        priority: arguments.priority,
        allow: (!arguments.allow.is_empty()).then_some(arguments.allow),
        public: (!arguments.public.is_empty()).then_some(arguments.public),
    };
    let changed: ServiceChanged = globals.daemon().post("/v1/services", &add).await?;
    let port = format!("port {}/{}", arguments.port, arguments.protocol.as_str());
    let what = match changed.change {
        Some(ServiceChange::New) => format!("{} on {port} is new", changed.name),
        Some(ServiceChange::Changed) => format!("{} on {port} is changed", changed.name),
        Some(ServiceChange::Unchanged) => format!("{} on {port} is as it was", changed.name),
        _ => format!("{} on {port} is registered", changed.name),
    };
    super::report(&changed, &what, arguments.json)
}
