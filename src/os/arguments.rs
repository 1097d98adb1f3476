//! Parsers for values of the command line. Each error is a sentence that says what is allowed, with an example: the parsers
//! of the standard library give no such sentence. [`super::usage`] adds the command, the option and the value.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::interface::is_plain_interface;
use crate::model::server_address::ServerAddressError;
use crate::model::time;
use crate::model::{Label, ServerAddress, ServiceName};
use crate::protocol::url::CoordinatorUrl;

/// Parses a port that is not 0.
///
/// # Errors
/// It is not a port.
pub fn port(text: &str) -> Result<u16, String> {
    let port = digits(text).filter(|port| *port > 0);
    port.ok_or_else(|| "a port is a number from 1 to 65535, such as 5432".to_owned())
}

/// Returns a parser of numbers from `min` to `max`. The message has `example`.
pub fn number<N: Into<u64> + TryFrom<u64> + Copy>(
    min: N,
    max: N,
    example: N,
) -> impl Fn(&str) -> Result<N, String> + Clone {
    let [min, max, example]: [u64; 3] = [min, max, example].map(Into::into);
    move |text| {
        let number: Option<u64> = digits(text).filter(|number| (min..=max).contains(number));
        let number = number.and_then(|number| N::try_from(number).ok());
        number.ok_or_else(|| format!("it is a number from {min} to {max}, such as {example}"))
    }
}

/// Returns a parser of durations. `min`, `max` and `examples` are as people write them, such as `1m`.
pub fn duration(
    min: &'static str,
    max: &'static str,
    examples: &'static str,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let limit = |text| time::duration(text).unwrap_or_default();
        let duration = time::duration(text).filter(|d| (limit(min)..=limit(max)).contains(d));
        duration.ok_or_else(|| {
            format!("it is a number with a unit, from {min} to {max}, such as {examples}")
        })
    }
}

/// Parses an IP address or a host name.
///
/// # Errors
/// It is neither.
pub fn server_address(text: &str) -> Result<ServerAddress, String> {
    text.parse()
        .map_err(|error: ServerAddressError| error.to_string())
}

/// Parses an IP address with a port.
///
/// # Errors
/// It is not an address and a port.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "it is an IP address and a port, such as 0.0.0.0:7443 or [::]:7443".to_owned())
}

/// Parses the URL of a coordinator.
///
/// # Errors
/// It is not such a URL.
pub fn coordinator_url(text: &str) -> Result<CoordinatorUrl, String> {
    text.parse().map_err(|_| {
        "it is https://HOST:PORT, where HOST is a name or an address at which nodes reach this coordinator, such as https://coord.example.com:7443"
            .to_owned()
    })
}

/// Parses one label, such as the name of a node or a tag.
///
/// # Errors
/// It is not a label.
pub fn label(text: &str) -> Result<Label, String> {
    Label::parse(text).map_err(|error| format!("{error}; an example is web-1"))
}

/// Parses the name of a service: `web`, or `web.project`.
///
/// # Errors
/// It is not such a name.
pub fn service(text: &str) -> Result<ServiceName, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let allowed = "it is web, or web.shop for a service of the Compose project shop";
    // People copy the whole name from elsewhere.
    if let Some((name, _)) = name.split_once(".svc.") {
        return Err(format!(
            "write the name without `.svc.` and the domain: {name}"
        ));
    }
    ServiceName::parse(text).map_err(|error| format!("{error}; {allowed}"))
}

/// Parses a path that is not empty.
///
/// # Errors
/// It is empty.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("it is the path of a file".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// Parses the name of a network interface.
///
/// # Errors
/// It is not such a name.
pub fn interface(text: &str) -> Result<String, String> {
    if is_plain_interface(text) {
        return Ok(text.to_owned());
    }
    Err(
        "it is a name of at most 15 letters, digits, hyphens, dots and underscores, such as wg0"
            .to_owned(),
    )
}

/// Parses the path of an HTTP request.
///
/// # Errors
/// It is not such a path.
pub fn http_path(text: &str) -> Result<String, String> {
    let is_path = text.starts_with('/')
        && text.is_ascii()
        && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_path {
        return Ok(text.to_owned());
    }
    Err("it is a path that begins with `/` and has no spaces, such as /healthz".to_owned())
}

/// Parses digits and nothing else: no sign, no spaces.
fn digits<N: std::str::FromStr>(text: &str) -> Option<N> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_limits_and_no_sign() {
        let uses = number(1u32, 100_000, 3);
        assert_eq!(uses("3"), Ok(3));
        for wrong in [
            "",
            "0",
            "100001",
            "-1",
            "+1",
            " 1",
            "1e3",
            "99999999999999999999999",
        ] {
            let error = uses(wrong).expect_err(wrong);
            assert_eq!(error, "it is a number from 1 to 100000, such as 3");
            assert!(port(wrong).is_err() || wrong == "100001", "{wrong}");
        }
        assert_eq!(port("65535"), Ok(65_535));
        assert!(port("65536").is_err());
    }

    #[test]
    fn durations_have_a_unit_and_limits() {
        let ttl = duration("1s", "3650d", "30m, 1h or 7d");
        assert_eq!(ttl("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(ttl("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in [
            "",
            "1",
            "h",
            "1w",
            "-1h",
            "0h",
            "99999999999999999999d",
            "3651d",
        ] {
            let error = ttl(wrong).expect_err(wrong);
            assert!(
                error.ends_with("from 1s to 3650d, such as 30m, 1h or 7d"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_whole_domain_name_is_no_name_of_a_service() {
        assert_eq!(
            service("web.shop").map(|name| name.to_string()),
            Ok("web.shop".into())
        );
        assert_eq!(
            service("db.svc.mesh"),
            Err("write the name without `.svc.` and the domain: db".into())
        );
        assert!(service("a_b").is_err_and(|error| error.contains("web.shop")));
    }

    #[test]
    fn the_path_of_a_request_fits_into_its_first_line() {
        assert_eq!(http_path("/healthz?x=1"), Ok("/healthz?x=1".into()));
        for wrong in ["", "healthz", "/a b", "/a\r\nb", "/\u{e4}"] {
            assert!(http_path(wrong).is_err(), "{wrong:?}");
        }
    }
}
