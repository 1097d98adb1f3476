//! Which values of `Host` a server answers to.
//!
//! A page of another site can make a browser send requests to this server under the name of that site, if its DNS leads there (DNS
//! rebinding). A server that answers only to addresses and to names of its own is not reached in this way.

use std::net::IpAddr;

use crate::model::{Label, authority};

/// Whether `host`, the value of the header, is an address, a name below the domain of the mesh, or one of `names`.
#[must_use]
pub fn is_own<'a>(host: &str, domain: &Label, names: impl IntoIterator<Item = &'a str>) -> bool {
    let Some((host, _)) = authority::split(host) else {
        return false;
    };
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let below = host
        .rsplit_once('.')
        .is_some_and(|(rest, top)| !rest.is_empty() && top.eq_ignore_ascii_case(domain.as_str()));
    let mut names = names.into_iter();
    below
        || host.eq_ignore_ascii_case("localhost")
        || names.any(|name| host.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::records::label;

    #[test]
    fn addresses_and_own_names_are_answered_and_others_are_not() {
        let is_own = |host| is_own(host, &label("mesh"), ["coord.example.com"]);
        for own in [
            "10.210.1.1",
            "10.210.1.1:7447",
            "[fd00::1]:7447",
            "web-1.node.mesh",
            "WEB-1.NODE.MESH.:7447",
            "localhost:7443",
            "coord.example.com:7443",
            "Coord.Example.Com",
        ] {
            assert!(is_own(own), "{own}");
        }
        for other in [
            "",
            ":7447",
            "mesh",
            ".mesh",
            "evil.example",
            "mesh.evil.example",
            "web-1.node.mesh.evil.example",
            "evilmesh",
            "coord.example.com.evil.example",
            "a b.mesh",
            "web-1.node.mesh:0",
            "fd00::1",
            "x@10.210.1.1",
        ] {
            assert!(!is_own(other), "{other}");
        }
    }
}
