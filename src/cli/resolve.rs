//! `meshctl resolve`.

use std::net::IpAddr;

use clap::Args;
use clap_complete::ArgValueCandidates;
use hickory_proto::rr::{Name, RecordType};

use super::exit::CliError;
use super::{Globals, names, table};
use crate::model::text;
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{Resolve, Resolved, Status};

/// The maximum number of characters of a name that a message repeats. No name in DNS is longer.
const MAX_SHOWN: usize = 253;

/// The arguments of `meshctl resolve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl resolve db.svc.mesh
  meshctl resolve _db._tcp.db.svc.mesh SRV
  meshctl resolve 1.1.210.10.in-addr.arpa PTR

Records are on stdout, the reasons for them on stderr. It exits with 2 if there are no records.")]
pub(super) struct ResolveArguments {
    /// A domain name, such as db.svc.mesh
    #[arg(value_name = "NAME", value_parser = parse_name, add = ArgValueCandidates::new(names::domains))]
    name: String,
    /// A record type: A, AAAA, SRV, TXT, PTR, ...
    #[arg(value_name = "TYPE", default_value = "A", value_parser = parse_type)]
    record_type: String,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// Refuses what is not a name in DNS, and says what to ask for instead.
fn parse_name(name: &str) -> Result<String, String> {
    if name.is_empty() {
        return Err("it is a domain name, such as db.svc.mesh".into());
    }
    if let Some((_, rest)) = name.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        let host = if host.is_empty() { "db.svc.mesh" } else { host };
        return Err(format!(
            "it is a URL; DNS knows names: meshctl resolve {}",
            shown(host)
        ));
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        let mut reverse = Name::from(address);
        reverse.set_fqdn(false);
        return Err(format!(
            "it is an address; its name is found with: meshctl resolve {reverse} PTR"
        ));
    }
    if let Some((host, port)) = name.split_once(':') {
        let is_port = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if is_port {
            return Err(format!(
                "DNS knows names without ports: meshctl resolve {}",
                shown(host)
            ));
        }
    }
    if !name.is_ascii() {
        let ascii = Name::from_utf8(name).map(|name| name.to_ascii());
        return Err(match ascii {
            Ok(ascii) => format!(
                "it has letters outside ASCII, which DNS has in another form: meshctl resolve {ascii}"
            ),
            Err(_) => {
                "it has letters outside ASCII, and no form in DNS; an example is db.svc.mesh".into()
            }
        });
    }
    let parsed = Name::from_ascii(name);
    if parsed.is_err() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(
            "a domain name has labels of at most 63 bytes with one dot between two of them, and at most 253 bytes in all, such as db.svc.mesh"
                .into(),
        );
    }
    Ok(name.to_owned())
}

fn parse_type(text: &str) -> Result<String, String> {
    let known: Result<RecordType, _> = text.to_ascii_uppercase().parse();
    match known {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("it is a record type: A, AAAA, SRV, TXT or PTR, for example".into()),
    }
}

pub(super) async fn run(arguments: ResolveArguments, globals: &Globals) -> Result<u8, CliError> {
    if is_short(&arguments.name) {
        let status: Status = globals.daemon().get("/v1/status").await?;
        let domain = status.node.map(|node| node.domain.to_string());
        refuse_short(&arguments.name, domain.as_deref())?;
    }
    let resolve = Resolve {
        name: arguments.name,
        record_type: arguments.record_type,
    };
    let resolved: Resolved = globals.daemon().post("/v1/resolve", &resolve).await?;
    let code = if resolved.answers.is_empty() { 2 } else { 0 };
    if arguments.json {
        table::json(&resolved)?;
        return Ok(code);
    }
    for line in lines(&resolved.answers) {
        table::line(&line);
    }
    if resolved.answers.is_empty() {
        eprintln!(
            "{}: {} and no records of type {}",
            resolved.name,
            resolved.response_code,
            resolve.record_type.to_uppercase()
        );
    }
    for why in &resolved.why {
        eprintln!("{why}");
    }
    Ok(code)
}

/// The records as they are printed. A forwarded name has records of anybody, and the texts in some of them could control the terminal.
fn lines(answers: &[String]) -> impl Iterator<Item = String> {
    let whole = |answer: &String| text::printable(answer, usize::MAX);
    answers.iter().map(whole)
}

/// Whether a name lacks its domain: one label, or `db.svc`.
fn is_short(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !lower.contains('.') || lower.ends_with(".svc") || lower.ends_with(".node")
}

/// A name without a domain is looked up nowhere. `domain` is that of the mesh.
fn refuse_short(name: &str, domain: Option<&str>) -> Result<(), CliError> {
    let Some(domain) = domain.filter(|domain| !name.eq_ignore_ascii_case(domain)) else {
        return Ok(());
    };
    let name = shown(name);
    let text = if name.contains('.') {
        format!(
            "resolve: `{name}` lacks the domain of the mesh; run: meshctl resolve {name}.{domain}"
        )
    } else {
        format!(
            "resolve: `{name}` has no domain; a service is {name}.svc.{domain}, a node is {name}.node.{domain}, and a name at the top of DNS ends with a dot: `{name}.`"
        )
    };
    Err(CliError::new(ErrorCode::BadRequest, text))
}

fn shown(name: &str) -> String {
    text::printable(name, MAX_SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_name_is_refused_with_what_to_ask_for() {
        for (name, expected) in [
            ("", "it is a domain name, such as db.svc.mesh"),
            (
                "http://user@db.svc.mesh:80/x?y",
                "it is a URL; DNS knows names: meshctl resolve db.svc.mesh",
            ),
            (
                "10.210.1.1",
                "it is an address; its name is found with: meshctl resolve 1.1.210.10.in-addr.arpa PTR",
            ),
            (
                "db.svc.mesh:5432",
                "DNS knows names without ports: meshctl resolve db.svc.mesh",
            ),
            (
                "b\u{fc}cher.example",
                "it has letters outside ASCII, which DNS has in another form: meshctl resolve xn--bcher-kva.example",
            ),
        ] {
            assert_eq!(parse_name(name), Err(expected.to_owned()), "{name}");
        }
        for wrong in ["a..b", "a b", "a/b", &"a".repeat(64), "a\u{7}"] {
            assert!(parse_name(wrong).is_err(), "{wrong:?}");
        }
        for right in ["db.svc.mesh", "_db._tcp.db.svc.mesh", "mesh", "com.", "."] {
            assert_eq!(parse_name(right), Ok(right.to_owned()));
        }
    }

    #[test]
    fn a_record_of_somebody_else_controls_no_terminal() {
        let answers = ["x.example 60 IN HINFO \u{1b}[2J\u{202e} linux".to_owned()];
        let shown: Vec<String> = lines(&answers).collect();
        assert_eq!(shown, ["x.example 60 IN HINFO ?[2J? linux"]);
    }

    #[test]
    fn a_name_without_a_domain_gets_the_one_of_the_mesh() {
        let refused = |name| {
            let refused = refuse_short(name, Some("lan"));
            refused.expect_err("it is refused").message
        };
        assert_eq!(
            refused("db"),
            "resolve: `db` has no domain; a service is db.svc.lan, a node is db.node.lan, and a name at the top of DNS ends with a dot: `db.`"
        );
        assert_eq!(
            refused("db.svc"),
            "resolve: `db.svc` lacks the domain of the mesh; run: meshctl resolve db.svc.lan"
        );
        assert!(refuse_short("LAN", Some("lan")).is_ok() && refuse_short("db", None).is_ok());
        assert!(
            is_short("db") && is_short("web.Svc") && !is_short("com.") && !is_short("db.svc.lan")
        );
    }
}
