//! The services of the configuration.

use crate::model::address::is_never_remote;
use crate::model::time::milliseconds;
use crate::model::{Label, ServerAddress};
use crate::protocol::local::{Check, CheckProbe};
use crate::records::kinds::{Protocol, parse_allowed, parse_public};
use crate::services::registry::{InstanceKey, RegisteredInstance};

use super::file::{CheckSection, ServiceSection};

/// The domain of a mesh, unless its operator chose another one.
const DEFAULT_DOMAIN: &str = "mesh";

/// Returns the service that a section describes, or why it describes none.
pub(super) fn service(section: ServiceSection) -> Result<RegisteredInstance, String> {
    let key = InstanceKey {
        name: Label::parse(&section.name).map_err(|e| e.to_string())?,
        port: section
            .port
            .try_into()
            .map_err(|_| "port: 1 to 65535 are possible".to_owned())?,
        protocol: section.protocol.unwrap_or(Protocol::Tcp),
    };
    let address = section.address.as_deref().map(address).transpose()?;
    let port_name = section.port_name.as_deref().map(Label::parse);
    let port_name = port_name
        .transpose()
        .map_err(|e| format!("port_name: {e}"))?;
    let check = section.check.map(check).transpose()?;
    if check.is_some() && key.protocol == Protocol::Udp {
        return Err("check: checks are for TCP services".into());
    }
    let allow = section.allow.as_deref().map(parse_allowed);
    let allow = allow.transpose().map_err(|e| format!("allow: {e}"))?;
    let public = section.public.as_deref().map(parse_public);
    let public = public.transpose().map_err(|e| format!("public: {e}"))?;
    if public.is_some() && key.protocol == Protocol::Udp {
        return Err("public: host names are for web servers, which have a TCP port".into());
    }
    Ok(RegisteredInstance {
        key,
        address,
        check,
        weight: section.weight,
        priority: section.priority,
        port_name,
        allow: allow.unwrap_or_default(),
        public: public.unwrap_or_default(),
    })
}

fn address(text: &str) -> Result<ServerAddress, String> {
    let address = text.parse::<ServerAddress>();
    let address = address.map_err(|error| format!("address: {error}"))?;
    if address.ip().is_some_and(is_never_remote) {
        return Err("address: give one that other nodes can reach".into());
    }
    // The domain of this mesh is in its records, against which the name is checked later.
    if address
        .name()
        .is_some_and(|name| name.is_under(DEFAULT_DOMAIN))
    {
        return Err(format!(
            "address: {address} is a name of the mesh; omit the address, or add the service on the node that has it"
        ));
    }
    Ok(address)
}

fn check(section: CheckSection) -> Result<Check, String> {
    let probe = match (section.tcp, section.http) {
        (true, None) => CheckProbe::Tcp,
        (false, Some(path))
            if path.starts_with('/') && path.is_ascii() && !path.contains(char::is_whitespace) =>
        {
            CheckProbe::Http(path)
        }
        (false, Some(_)) => return Err("check.http: write a path that begins with `/`".into()),
        _ => return Err("check: write { tcp = true } or { http = \"/path\" }".into()),
    };
    let mut check = Check::new(probe);
    check.rise = section.rise.map_or(check.rise, |n| n.get().into());
    check.fall = section.fall.map_or(check.fall, |n| n.get().into());
    if let Some(text) = section.status {
        if check.probe == CheckProbe::Tcp {
            return Err("check.status: only { http = \"/path\" } has one".into());
        }
        check.status = Check::parse_status(&text).ok_or_else(|| {
            format!("check.status: `{text}` is no status from 100 to 599, nor a range such as \"200-299\"")
        })?;
    }
    for (name, text, max, target) in [
        (
            "interval",
            section.interval,
            3_600_000,
            &mut check.interval_ms,
        ),
        ("timeout", section.timeout, 60_000, &mut check.timeout_ms),
    ] {
        if let Some(text) = text {
            let wrong = || {
                format!(
                    "check.{name}: `{text}` is no duration from 100ms to {}s, such as \"5s\"",
                    max / 1000
                )
            };
            *target = milliseconds(&text)
                .filter(|ms| (100..=max).contains(ms))
                .ok_or_else(wrong)?;
        }
    }
    Ok(check)
}
