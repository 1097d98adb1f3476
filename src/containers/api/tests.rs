//! Tests with the answers of several versions of engines.

use super::*;

fn id(fill: char) -> ContainerId {
    ContainerId::parse(&fill.to_string().repeat(64)).expect("hexadecimal")
}

#[test]
fn a_description_is_read_with_nulls_and_fields_of_later_versions() {
    let text = serde_json::json!({
        "Id": "a".repeat(64), "Name": "/shop-db-1", "Image": "sha256:1", "Novel": {"x": [1]},
        "State": {"Running": true, "Pid": 42, "StartedAt": "2026-01-01T00:00:00Z", "Health": {"Status": "healthy", "Log": null}},
        "Config": {"Labels": {"mesh.service": "db", "other": "x"}, "ExposedPorts": {"5432/tcp": {}, "x/sctp": {}}, "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["CMD", "true"]}},
        "HostConfig": {"NetworkMode": "shop_default"},
        "NetworkSettings": {"Networks": {"shop_default": {"IPAddress": "172.18.0.2", "NetworkID": "f00"}, "gone": null, "empty": {"IPAddress": ""}}},
    });
    let read = container(text.to_string().as_bytes()).expect("readable");
    assert_eq!(
        (read.name.as_str(), read.pid, read.stop_signal),
        ("shop-db-1", Some(42), 2)
    );
    assert_eq!(read.labels.len(), 1);
    assert_eq!(read.health, Some(EngineHealth::Healthy));
    assert!(read.facts.has_healthcheck && read.facts.exposed.len() == 1);
    let Network::Attached(networks) = read.network else {
        panic!("{:?}", read.network)
    };
    assert_eq!(networks.keys().collect::<Vec<_>>(), ["shop_default"]);
    let bare = format!(
        "{{\"Id\":\"{}\",\"Config\":null,\"NetworkSettings\":{{}}}}",
        "b".repeat(64)
    );
    assert_eq!(
        container(bare.as_bytes()).expect("readable").status,
        Status::Stopped
    );
    assert!(container(b"{\"Id\":\"../images\"}").is_err());
}

#[test]
fn a_field_that_is_null_counts_as_missing_and_refuses_no_answer() {
    let listed = serde_json::json!([
        {"Id": "a".repeat(64), "State": null, "Labels": null},
        {"Id": "b".repeat(64), "State": "running", "Labels": {"mesh.service": null, "other": null}},
    ]);
    let read = list(listed.to_string().as_bytes()).expect("readable");
    let labels = Labels::from([("mesh.service".to_owned(), String::new())]);
    assert_eq!(read, [(id('a'), None), (id('b'), Some(labels))]);

    let described = serde_json::json!({
        "Id": "a".repeat(64), "Name": null, "Image": null,
        "State": {"Running": null, "Paused": null, "Restarting": null, "Pid": null, "StartedAt": null, "Health": {"Status": null}},
        "Config": {"Labels": null, "ExposedPorts": null, "StopSignal": null, "Healthcheck": {"Test": null}},
        "HostConfig": {"NetworkMode": null},
        "NetworkSettings": {"Networks": null, "Ports": {"80/tcp": [
            {"HostIp": null, "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": null},
        ], "81/tcp": null}},
    });
    let read = container(described.to_string().as_bytes()).expect("readable");
    assert_eq!((read.name.as_str(), read.pid), ("", None));
    assert_eq!(read.status, Status::Stopped);
    let ports = read.published.iter().map(|at| at.host_port.get());
    assert_eq!(ports.collect::<Vec<u16>>(), [8080]);

    let listed = serde_json::json!([
        {"Id": null, "Name": null, "Driver": null, "Internal": null, "IPAM": {"Config": [{"Subnet": null}]}},
        {"Id": "y", "Name": "shop", "Driver": "bridge"},
    ]);
    let read = networks(listed.to_string().as_bytes()).expect("readable");
    let names: Vec<&str> = read.iter().map(|network| network.name.as_str()).collect();
    assert_eq!(names, ["", "shop"]);
    assert!(!read[0].internal && read[0].bridge.is_none());

    let nameless = b"{\"Version\":null,\"Components\":[{\"Name\":null}]}";
    assert_eq!(engine(nameless, None).expect("readable").version, "");
    let nothing = b"{\"Type\":null,\"Action\":null,\"Actor\":{\"ID\":null,\"Attributes\":{\"signal\":null,\"container\":null}}}";
    assert_eq!(event(nothing).expect("readable"), Event::Other);
}

#[test]
fn events_of_docker_and_podman_are_read() {
    let of = |kind: &str, action: &str, attributes: &str| {
        let id = "c".repeat(64);
        let line = format!(
            "{{\"Type\":\"{kind}\",\"Action\":\"{action}\",\"Actor\":{{\"ID\":\"{id}\",\"Attributes\":{{{attributes}}}}}}}"
        );
        event(line.as_bytes()).expect("readable")
    };
    let happened = |action| Event::Container(id('c'), action);
    assert_eq!(
        of("container", "kill", "\"signal\":\"15\""),
        happened(Action::Kill(15))
    );
    assert_eq!(
        of("container", "kill", "\"signal\":\"SIGHUP\""),
        happened(Action::Kill(1))
    );
    assert_eq!(of("container", "died", ""), happened(Action::Die));
    assert_eq!(of("container", "rename", ""), happened(Action::Changed));
    assert_eq!(
        of("container", "health_status: healthy", ""),
        happened(Action::Health(EngineHealth::Healthy))
    );
    assert_eq!(
        of("container", "health_status", ""),
        happened(Action::Changed)
    );
    assert_eq!(of("container", "exec_start: true", ""), Event::Other);
    let container = format!("\"container\":\"{}\"", "d".repeat(64));
    assert_eq!(
        of("network", "disconnect", &container),
        Event::Container(id('d'), Action::Changed)
    );
    assert_eq!(of("network", "create", ""), Event::Networks);
    assert_eq!(
        event(b"{\"status\":\"pull\"}").expect("readable"),
        Event::Other
    );
    assert!(event(b"garbage").is_err());
}

#[test]
fn signals_are_numbers_or_names() {
    let read: Vec<_> = [
        "15",
        "SIGTERM",
        "TERM",
        "SIGRTMIN+3",
        "RTMIN",
        "0",
        "65",
        "x",
        "",
    ]
    .iter()
    .map(|text| signal(text))
    .collect();
    assert_eq!(
        read,
        [
            Some(15),
            Some(15),
            Some(15),
            Some(37),
            Some(34),
            None,
            None,
            None,
            None
        ]
    );
}

#[test]
fn networks_of_docker_and_podman_name_their_bridges() {
    let docker = format!(
        "[{{\"Name\":\"shop\",\"Id\":\"{}\",\"Driver\":\"bridge\",\"Internal\":true,\"IPAM\":{{\"Config\":[{{\"Subnet\":\"172.18.0.0/16\"}},{{\"Subnet\":\"fd00::/64\"}}]}},\"Options\":{{}}}},
         {{\"Name\":\"bridge\",\"Id\":\"x\",\"Driver\":\"bridge\",\"Options\":{{\"com.docker.network.bridge.name\":\"docker0\"}}}},
         {{\"Name\":\"odd\",\"Id\":\"x\",\"Driver\":\"bridge\",\"Options\":{{\"com.docker.network.bridge.name\":\"a; drop\"}}}},
         {{\"Name\":\"host\",\"Id\":\"y\",\"Driver\":\"host\",\"Options\":null,\"IPAM\":{{\"Config\":null}}}}]",
        "e".repeat(64)
    );
    let read = networks(docker.as_bytes()).expect("readable");
    let shown: Vec<_> = read
        .iter()
        .map(|n| (n.name.as_str(), n.bridge.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            ("shop", Some("br-eeeeeeeeeeee")),
            ("bridge", Some("docker0")),
            ("odd", None),
            ("host", None)
        ]
    );
    assert!(read[0].internal);
    assert_eq!(
        read[0].subnets,
        ["172.18.0.0/16".parse().expect("a literal")]
    );
    assert_eq!(
        read[0].subnets_v6,
        ["fd00::/64".parse().expect("a literal")]
    );
    let podman = "[{\"name\":\"podman\",\"id\":\"z\",\"driver\":\"bridge\",\"network_interface\":\"podman0\",\"subnets\":[{\"subnet\":\"10.88.0.0/16\"}],\"internal\":false}]";
    let read = networks(podman.as_bytes()).expect("readable");
    assert_eq!(read[0].bridge.as_deref(), Some("podman0"));
    assert_eq!(read[0].subnets.len(), 1);
}

#[test]
fn the_facts_about_the_engine_are_read() {
    let version = b"{\"Version\":\"29.0.1\",\"Components\":[{\"Name\":\"Engine\"}]}";
    let facts = b"{\"FirewallBackend\":{\"Driver\":\"nftables\"},\"SecurityOptions\":[\"name=seccomp,profile=builtin\",\"name=rootless\"]}";
    let read = engine(version, Some(facts)).expect("readable");
    assert_eq!(
        (read.version.as_str(), read.firewall.as_str()),
        ("29.0.1", "nftables")
    );
    assert!(read.rootless && !read.podman);
    let podman = b"{\"Version\":\"5.8.6\",\"Components\":[{\"Name\":\"Podman Engine\"}]}";
    assert!(engine(podman, Some(b"garbage")).expect("readable").podman);
}

#[test]
fn the_ipv6_addresses_and_subnets_of_docker_and_podman_are_read() {
    let of = |endpoint: &str| {
        let text = format!(
            "{{\"Id\":\"aa\",\"NetworkSettings\":{{\"Networks\":{{\"shop\":{endpoint}}}}}}}"
        );
        let read = container(text.as_bytes()).expect("readable");
        let Network::Attached(mut networks) = read.network else {
            panic!("{:?}", read.network)
        };
        let endpoint = networks.remove("shop");
        endpoint.map(|endpoint| (endpoint.v4.is_some(), endpoint.v6))
    };
    let v6: Option<std::net::Ipv6Addr> = "fd00:18::3".parse().ok();
    // Docker 20.10 and 28.5, and Podman, have these fields alike. Only later versions of Docker have networks of IPv6 alone.
    let both = "{\"IPAddress\":\"172.18.0.3\",\"GlobalIPv6Address\":\"fd00:18::3\",\"GlobalIPv6PrefixLen\":64}";
    let v4 = "{\"IPAddress\":\"172.18.0.3\",\"GlobalIPv6Address\":\"\"}";
    let alone = "{\"IPAddress\":\"\",\"GlobalIPv6Address\":\"fd00:18::3\"}";
    let neither = "{\"IPAddress\":null,\"GlobalIPv6Address\":null}";
    assert_eq!(of(both), Some((true, v6)));
    assert_eq!(of(v4), Some((true, None)));
    assert_eq!(of(alone), Some((false, v6)));
    assert_eq!(of(neither), None);

    let subnets = "[{\"Subnet\":\"172.18.0.0/16\"},{\"Subnet\":\"fd00:18::1/64\"}]";
    let docker = |enabled: &str| {
        let text = format!(
            "[{{\"Id\":\"x\",\"Driver\":\"bridge\",{enabled}\"IPAM\":{{\"Config\":{subnets}}}}}]"
        );
        let read = networks(text.as_bytes()).expect("readable");
        let shown = read[0].subnets_v6.iter().map(ToString::to_string);
        shown.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(docker("\"EnableIPv6\":true,"), "fd00:18::/64");
    assert_eq!(docker(""), "fd00:18::/64");
    assert_eq!(docker("\"EnableIPv6\":false,"), "");
    let podman = "[{\"name\":\"p\",\"id\":\"z\",\"driver\":\"bridge\",\"network_interface\":\"podman1\",\"ipv6_enabled\":true,\"subnets\":[{\"subnet\":\"10.89.0.0/24\"},{\"subnet\":\"fd00:89::/64\"}]}]";
    let read = networks(podman.as_bytes()).expect("readable");
    assert_eq!(read[0].subnets_v6[0].to_string(), "fd00:89::/64");
}
