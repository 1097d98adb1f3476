//! `meshctl service add`.

use std::net::IpAddr;

use clap::{Args, ValueEnum};

use super::parse_name;
use crate::cli::Globals;
use crate::cli::exit::CliError;
use crate::model::Label;
use crate::protocol::local::{AddService, Check, CheckProbe, ServiceChanged};
use crate::records::kinds::Protocol;

/// The arguments of `meshctl service add`.
#[derive(Debug, Args)]
pub(in crate::cli) struct AddArguments {
    /// The name of the service: NAME.svc.mesh
    #[arg(value_parser = parse_name)]
    name: Label,
    /// The port it listens on
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The transport protocol
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    protocol: Transport,
    /// The address it listens on, one of this node's mesh addresses [default: both of them]
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Publish it only while its port accepts TCP connections
    #[arg(long, conflicts_with = "check_http")]
    check_tcp: bool,
    /// Publish it only while an HTTP GET of PATH succeeds
    #[arg(long, value_name = "PATH", value_parser = parse_path)]
    check_http: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

fn parse_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("a path begins with `/`, such as /healthz".into())
    }
}

pub(in crate::cli) async fn run(
    arguments: AddArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    let probe = match arguments.check_http {
        Some(path) => Some(CheckProbe::Http(path)),
        None => arguments.check_tcp.then_some(CheckProbe::Tcp),
    };
    let add = AddService {
        name: arguments.name.to_string(),
        port: arguments.port,
        protocol: if arguments.protocol == Transport::Udp {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        address: arguments.address,
        check: probe.map(Check::new),
    };
    let changed: ServiceChanged = globals.daemon().post("/v1/services", &add).await?;
    Ok(super::report(&changed, "is registered"))
}
