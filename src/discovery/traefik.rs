//! Sites as the dynamic configuration of Traefik 3, which its HTTP provider polls.

use serde_json::{Map, Value, json};

use super::sites::Site;
use crate::model::PublicHost;

/// Writes the configuration. Routers have no entry points and no TLS of their own: they get those that the static configuration of
/// Traefik has for all.
#[must_use]
pub fn configuration(sites: &[Site]) -> Value {
    // Traefik refuses an empty list of routers or of services.
    if sites.is_empty() {
        return json!({});
    }
    let (mut routers, mut services) = (Map::new(), Map::new());
    for site in sites {
        let name = name(&site.host);
        let servers = site.servers.iter();
        let servers: Vec<Value> = servers
            .map(|server| json!({ "url": format!("http://{server}") }))
            .collect();
        routers.insert(name.clone(), router(&site.host, &name));
        services.insert(name, json!({ "loadBalancer": { "servers": servers } }));
    }
    json!({ "http": { "routers": routers, "services": services } })
}

fn router(host: &PublicHost, service: &str) -> Value {
    match host.wildcard_domain() {
        None => json!({ "rule": format!("Host(`{host}`)"), "service": service }),
        // By default a longer rule comes first, so that a wildcard would come before the host names that it covers.
        Some(domain) => json!({
            "rule": format!("HostRegexp(`^[^.]+\\.{}$`)", domain.replace('.', "\\.")),
            "service": service,
            "priority": 1,
        }),
    }
}

/// A name without dots, which have a meaning in names of Traefik. Each host name has another one: no label of a host name has an
/// underscore, and only the asterisk becomes an empty label.
fn name(host: &PublicHost) -> String {
    let host = host.as_str().replace('.', "_").replace('*', "");
    format!("mesh_{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_a_router_and_a_service_with_its_servers() {
        let sites = [
            Site::sample("shop.example.com", &["10.210.1.7:8080", "[fd00::8]:80"]),
            Site::sample("*.example.com", &["10.210.2.9:80"]),
        ];
        assert_eq!(
            configuration(&sites),
            json!({
                "http": {
                    "routers": {
                        "mesh_shop_example_com": {
                            "rule": "Host(`shop.example.com`)",
                            "service": "mesh_shop_example_com",
                        },
                        "mesh__example_com": {
                            "rule": "HostRegexp(`^[^.]+\\.example\\.com$`)",
                            "service": "mesh__example_com",
                            "priority": 1,
                        },
                    },
                    "services": {
                        "mesh_shop_example_com": {
                            "loadBalancer": {
                                "servers": [
                                    { "url": "http://10.210.1.7:8080" },
                                    { "url": "http://[fd00::8]:80" },
                                ],
                            },
                        },
                        "mesh__example_com": {
                            "loadBalancer": { "servers": [{ "url": "http://10.210.2.9:80" }] },
                        },
                    },
                },
            })
        );
    }

    #[test]
    fn without_sites_the_configuration_is_empty() {
        assert_eq!(configuration(&[]), json!({}));
    }
}
