use super::*;
use crate::path::candidates::Exclude;

fn load(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("writable");
    let path = file.path().to_str().expect("a plain path").to_owned();
    Config::load(&Arguments::try_parse_from(["meshd", "--config", &path]).expect("valid arguments"))
}

const EXAMPLE: &str = include_str!("../../../config/meshd.toml");

#[test]
fn the_example_copied_as_it_is_changes_nothing() {
    let example = load(EXAMPLE).expect("the example is valid");
    let without_file = load("").expect("no key is required");
    assert_eq!(format!("{example:?}"), format!("{without_file:?}"));
}

#[test]
fn the_keys_of_the_example_are_valid_and_have_their_defaults_but_for_examples() {
    let mut example =
        load(&crate::os::config_file::uncommented(EXAMPLE)).expect("every key is valid");
    let default = load("").expect("no key is required");
    assert_eq!(example.name.take(), Label::parse("web-1").ok());
    assert_eq!(
        (example.tunnel.mtu.take(), example.tunnel.workers.take()),
        (Some(1420), Some(2))
    );
    assert!(example.token_file.take().is_some());
    assert_eq!(example.services.drain(..).count(), 1);
    assert_eq!(example.api.templates.drain(..).count(), 1);
    // The key names one socket, and the default is the first that exists of two.
    let docker = example.docker.as_mut().expect("it is on");
    assert_eq!(docker.sockets, [PathBuf::from(DOCKER_SOCKETS[0])]);
    docker.sockets = DOCKER_SOCKETS.map(PathBuf::from).to_vec();
    assert_eq!(format!("{example:?}"), format!("{default:?}"));
}

#[test]
fn who_may_reach_a_service_is_a_list_of_selectors() {
    let service = |allow: &str| {
        let text = format!("[[service]]\nname = \"db\"\nport = 80\n{allow}\n");
        let config = load(&text).map_err(|error| error.to_string())?;
        let service = config.services.into_iter().next().expect("there is one");
        Ok::<_, String>(service.allow)
    };
    assert_eq!(service(""), Ok(vec![]));
    let two = vec!["shop/api".to_owned(), "tag:ops".to_owned()];
    assert_eq!(service(r#"allow = ["shop/api", "tag:ops"]"#), Ok(two));
    for (wrong, why) in [
        ("allow = []", "allow: it names nobody"),
        (
            r#"allow = ["tags:ops"]"#,
            "allow: `tags:` begins no selector",
        ),
    ] {
        let error = service(wrong).expect_err("it is wrong");
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_host_names_of_a_service_are_a_list_without_schemes_and_ports() {
    let service = |public: &str| {
        let text = format!("[[service]]\nname = \"web\"\nport = 80\n{public}\n");
        let config = load(&text).map_err(|error| error.to_string())?;
        let service = config.services.into_iter().next().expect("there is one");
        let hosts = service.public.iter().map(ToString::to_string);
        Ok::<_, String>(hosts.collect::<Vec<_>>())
    };
    assert_eq!(service(""), Ok(vec![]));
    let two = vec!["shop.example.com".to_owned(), "*.example.com".to_owned()];
    assert_eq!(
        service(r#"public = ["Shop.example.com", "*.example.com"]"#),
        Ok(two)
    );
    for (wrong, why) in [
        ("public = []", "public: it has no host name"),
        (
            r#"public = ["shop.example.com:443"]"#,
            "write the host name alone",
        ),
        (
            "protocol = \"udp\"\npublic = [\"a.example\"]",
            "public: host names are for web servers",
        ),
    ] {
        let error = service(wrong).expect_err("it is wrong");
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_address_of_a_service_is_one_that_others_can_have_in_whatever_form() {
    let service = |address: &str| {
        load(&format!(
            "[[service]]\nname = \"web\"\nport = 80\naddress = \"{address}\"\n"
        ))
    };
    for refused in ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
        assert!(service(refused).is_err(), "{refused}");
    }
    let mapped = service("::ffff:10.210.1.1").expect("an address of the mesh");
    let expected = "10.210.1.1".parse().ok();
    let address = |config: &Config| config.services.first().and_then(|s| s.address.clone());
    assert_eq!(address(&mapped), expected);
    let named = service("DB.example.net").expect("a host name");
    assert_eq!(address(&named), "db.example.net".parse().ok());
    for (refused, part) in [
        ("db", "write the whole host name"),
        ("db.svc.mesh", "a name of the mesh"),
        ("10.0.0", "not a whole IP address"),
    ] {
        let error = service(refused).expect_err(refused).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_api_is_served_over_the_network_only_where_asked_for() {
    let is_on_network = |text: &str| load(text).expect("it is valid").api.is_on_network;
    assert!(!is_on_network(""));
    assert!(!is_on_network("[api]\nenabled = false\n"));
    assert!(is_on_network("[api]\nenabled = true\n"));
}

#[test]
fn the_page_is_served_only_where_asked_for_and_where_tokens_are_encrypted() {
    let page = |text: &str| load(text).map(|config| (config.api.page, config.api.needs_tokens()));
    let here = "127.0.0.1:7448".parse().expect("a literal");
    for (text, expected) in [
        ("", (PagePlace::Nowhere, false)),
        (
            "[web]\nlisten = \"127.0.0.1:7448\"\n",
            (PagePlace::Nowhere, false),
        ),
        (
            "[api]\nenabled = true\n[web]\nenabled = true\n",
            (PagePlace::WithApi, true),
        ),
        (
            "[web]\nenabled = true\nlisten = \"127.0.0.1:7448\"\n",
            (PagePlace::At(here), true),
        ),
    ] {
        assert_eq!(page(text).expect("it is valid"), expected, "{text}");
    }
    for (text, why) in [
        ("[web]\nenabled = true\n", "set [api] enabled = true"),
        (
            "[web]\nenabled = true\nlisten = \"0.0.0.0:80\"\n",
            "nothing encrypts API tokens",
        ),
        (
            "[web]\nlisten = \"7448\"\n",
            "is not an address with a port",
        ),
    ] {
        let error = page(text).expect_err("it is wrong").to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn containers_get_mesh_addresses_of_their_own_only_where_asked_for() {
    let network = |text: &str| {
        let config = load(text).expect("it is valid");
        config.docker.expect("it is on").network
    };
    assert!(!network(""));
    assert!(!network("[docker]\naddressing = \"nat\"\n"));
    assert!(network("[docker]\naddressing = \"network\"\n"));
}

#[test]
fn containers_accept_connections_on_declared_ports_unless_all_are_asked_for() {
    let ports = |text: &str| {
        let config = load(text).expect("it is valid");
        config.docker.expect("it is on").rules.ports
    };
    assert_eq!(ports(""), OpenPorts::Declared);
    assert_eq!(
        ports("[docker]\nports = \"declared\"\n"),
        OpenPorts::Declared
    );
    assert_eq!(ports("[docker]\nports = \"all\"\n"), OpenPorts::All);
    assert!(load("[docker]\nports = \"some\"\n").is_err());
}

#[test]
fn everything_wrong_is_said_at_once() {
    let error = load(
        "name = \"a.b\"\nmtu = 3\n[[service]]\nname = \"web\"\nport = 0\n[[service]]\nname = \"x\"\nport = 1\ncheck = { http = \"no\" }\n",
    )
    .expect_err("wrong four times")
    .to_string();
    for part in ["a.b", "mtu", "web: port", "x: check.http"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_value_that_cannot_be_used_is_named_with_its_line() {
    for (text, line) in [
        (
            "# x\ninterface = \"mesh/0\"\n",
            "line 2: `interface`: `mesh/0` cannot be",
        ),
        (
            "interface = \"default\"\n",
            "line 1: `interface`: `default` cannot be",
        ),
        (
            "mtu = 1400\n[tunnel]\nworkers = 0\n",
            "line 3: `tunnel.workers`: ",
        ),
        (
            "[[service]]\nname = \"a\"\nport = 1\n[[service]]\nname = \"b\"\nport = 0\n",
            "line 6: [[service]] b: port: ",
        ),
        (
            "[[service]]\nname = \"a\"\nport = 1\ncheck = { http = \"x\" }\n",
            "line 4: [[service]] a: check.http: ",
        ),
    ] {
        let error = load(text).expect_err("wrong").to_string();
        assert!(error.contains(line), "{error}");
    }
    load("interface = \"wg.0\"\n").expect("the kernel takes it");
}

#[test]
fn an_unknown_key_in_a_section_is_named() {
    let error = load("[dns]\nenabled = true\nlisen = []\n")
        .expect_err("unknown")
        .to_string();
    assert!(
        error.contains("line 3: unknown key `dns.lisen`; the nearest known key is `listen`"),
        "{error}"
    );
}

#[test]
fn names_are_not_sent_to_a_resolver_that_is_off() {
    for key in [
        "manage_resolv_conf = true",
        "split_dns = \"systemd-resolved\"",
    ] {
        let error = load(&format!("[dns]\nenabled = false\n{key}\n"))
            .expect_err("a contradiction")
            .to_string();
        assert!(error.contains(key), "{error}");
        load(&format!("[dns]\n{key}\n")).expect("with the resolver it is fine");
    }
}

#[test]
fn the_same_service_twice_is_refused() {
    let twice = "[[service]]\nname = \"web\"\nport = 80\n".repeat(2);
    assert!(
        load(&twice)
            .expect_err("twice")
            .to_string()
            .contains("twice")
    );
}

#[test]
fn the_networks_that_are_offered_are_read_and_what_is_wrong_is_named_with_its_place() {
    let offer = |text: &str| load(&format!("[route]\nadvertise = [{text}]\n"));
    let offered = offer("\"192.168.1.0/24\", \"10.9.0.0/16\"").expect("it is valid");
    let offered: Vec<String> = offered
        .path
        .routes
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(offered, ["192.168.1.0/24", "10.9.0.0/16"]);
    for (wrong, part) in [
        ("\"192.168.1.7/24\"", "write 192.168.1.0/24"),
        (
            "\"192.168.1.0/24\", \"0.0.0.0/0\"",
            "entry 2: 0.0.0.0/0 is every address",
        ),
        ("\"fd00::/8\"", "IPv4 only"),
        ("\"127.0.0.0/8\"", "loopback"),
        ("\"lan\"", "is no network"),
    ] {
        let error = offer(wrong).expect_err(wrong).to_string();
        assert!(error.contains(part), "{wrong}: {error}");
    }
}

#[test]
fn the_addresses_of_this_node_are_set_and_excluded_as_they_are_written() {
    let path = |text: &str| load(&format!("[path]\n{text}\n")).map(|config| config.path);
    let set = path(
        "advertise = [\"203.0.113.7:51820\", \"[2001:db8::7]:1\", \"home.example.com:2\"]\nstun = [\"stun.example.com:3478\"]\nexclude = [\"eth2\", \"10.9.0.0/16\", \"192.0.2.1\"]",
    );
    let prefix = |text: &str| Exclude::Prefix(text.parse().expect("a literal"));
    let expected = PathSettings {
        maps_port: true,
        advertise: vec![
            NamedAddress::Address("203.0.113.7:51820".parse().expect("a literal")),
            NamedAddress::Address("[2001:db8::7]:1".parse().expect("a literal")),
            NamedAddress::Name("home.example.com".into(), 2),
        ],
        stun: vec![NamedAddress::Name("stun.example.com".into(), 3478)],
        exclude: vec![
            Exclude::Interface("eth2".into()),
            prefix("10.9.0.0/16"),
            prefix("192.0.2.1/32"),
        ],
        routes: Vec::new(),
    };
    assert_eq!(set.expect("it is valid"), expected);
    for (wrong, part) in [
        ("port_mapping = true", "\"auto\" or false"),
        ("port_mapping = \"yes\"", "it is \"auto\", true or false"),
        (
            "stun = [\"stun.example.com\"]",
            "such as \"203.0.113.7:3478\"",
        ),
        ("stun = [\"127.0.0.1:3478\"]", "no other machine"),
        ("advertise = [\"203.0.113.7\"]", "a port are needed"),
        (
            "advertise = [\"1.1.1.1:1\", \"127.0.0.1:1\"]",
            "entry 2: no other machine",
        ),
        (
            "advertise = [\"203.0.113:51820\"]",
            "neither an address nor a name",
        ),
        (
            "advertise = [\"home.example.com:0\"]",
            "a port of 1 to 65535",
        ),
        (
            "advertise = [\"home_.example.com:1\"]",
            "neither an address nor a name",
        ),
        ("exclude = [\"a/b\"]", "path.exclude"),
    ] {
        let error = path(wrong).expect_err("wrong").to_string();
        assert!(
            error.contains(part) && error.contains("line 2"),
            "{part} in {error}"
        );
    }
    let many = ["\"203.0.113.7:51820\""; 9].join(", ");
    assert!(path(&format!("advertise = [{many}]")).is_err());
}

#[test]
fn the_limit_of_a_relay_has_the_units_of_tc() {
    let relay = |text: &str| load(&format!("[relay]\n{text}\n")).map(|config| config.relay);
    let bits = |text: &str| {
        let settings = relay(&format!("limit = \"{text}\"")).expect("it is valid");
        settings.limit.bits_per_second
    };
    assert_eq!(bits("64kbit"), 64_000);
    assert_eq!(bits("1000000bit"), 1_000_000);
    assert_eq!(bits("2gbit"), 2_000_000_000);
    for wrong in [
        "",
        "200",
        "mbit",
        "200 mbit",
        "-1mbit",
        "1.5mbit",
        "1tbit",
        "99999999999gbit",
        "63kbit",
    ] {
        let error = relay(&format!("limit = \"{wrong}\"")).expect_err("wrong");
        assert!(
            error.to_string().contains("line 2: `relay.limit`"),
            "{error}"
        );
    }
    let default = relay("").expect("it is valid");
    assert_eq!((default.is_used, default.is_offered), (true, None));
    let set = relay("use = false\noffer = true").expect("it is valid");
    assert_eq!((set.is_used, set.is_offered), (false, Some(true)));
}

#[test]
fn metrics_are_served_with_peers_and_services_unless_they_are_switched_off() {
    let metrics = |text: &str| load(text).expect("it is valid").metrics;
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
    let expected = MetricsSettings {
        listen: Some(default),
        per_peer: true,
        per_service: true,
        discovery: false,
    };
    assert_eq!(metrics(""), expected);
    assert_eq!(metrics("[metrics]\nlisten = \"\"\n").listen, None);
    let without_peers = metrics("[metrics]\nper_peer = false\n");
    assert!(!without_peers.per_peer && without_peers.per_service);
    assert!(metrics("[metrics]\ndiscovery = true\n").discovery);
    let error = load("[metrics]\nlisten = \"9560\"\n").expect_err("no address");
    for part in ["line 2", "metrics.listen", "`9560`", "127.0.0.1:9560"] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
}

#[test]
fn streams_are_taken_over_tls_or_behind_a_proxy_whose_url_is_known() {
    let relay = |text: &str| load(&format!("[relay]\n{text}\n")).map(|config| config.relay);
    let own = relay("listen = \"0.0.0.0:443\"").expect("it is valid");
    let listen = own.listen.expect("it is set");
    assert_eq!(
        (listen.address.to_string().as_str(), listen.has_tls),
        ("0.0.0.0:443", true)
    );
    let behind = "listen = \"http://127.0.0.1:8443\"\npublic_url = \"wss://a.example/x\"";
    let behind = relay(behind).expect("it is valid");
    assert!(behind.listen.is_some_and(|listen| !listen.has_tls));
    let url = behind.public_url.map(|url| url.to_string());
    assert_eq!(url.as_deref(), Some("wss://a.example/x"));
    let empty = relay("listen = \"\"\npublic_url = \"\"\nproxy = \"\"").expect("it is valid");
    assert_eq!(empty, relay("").expect("it is valid"));
    let proxy = relay("proxy = \"http://u:p@proxy:1\"")
        .expect("it is valid")
        .proxy;
    assert_eq!(
        proxy.map(|proxy| proxy.to_string()).as_deref(),
        Some("http://proxy:1")
    );
    for (wrong, key) in [
        ("listen = \"443\"", "listen"),
        ("listen = \"0.0.0.0:0\"", "listen"),
        ("listen = \"https://0.0.0.0:443\"", "listen"),
        ("listen = \"http://127.0.0.1:8443\"", "listen"),
        ("listen = \"0.0.0.0:443\"\noffer = false", "listen"),
        ("public_url = \"wss://a.example\"", "public_url"),
        (
            "listen = \"0.0.0.0:443\"\npublic_url = \"https://a.example\"",
            "public_url",
        ),
        ("proxy = \"socks5://proxy:1\"", "proxy"),
    ] {
        let error = relay(wrong).expect_err(wrong).to_string();
        assert!(error.contains(&format!("`relay.{key}`")), "{error}");
    }
}

fn template(more: &str) -> Result<Template, String> {
    let text = format!("[[spawn]]\nname = \"job\"\nimages = [\"alpine:3.20\"]\n{more}\n");
    let config = load(&text).map_err(|error| error.to_string())?;
    let template = config.api.templates.into_iter().next();
    Ok(template.expect("there is one").as_ref().clone())
}

#[test]
fn a_template_without_more_than_its_image_has_bounds_and_permits_nothing() {
    let template = template("").expect("it is valid");
    assert_eq!(template.limits.memory, 512 << 20);
    assert_eq!(
        (template.limits.nano_cpus, template.limits.pids),
        (1_000_000_000, 256)
    );
    assert_eq!(
        (template.quota.max, template.quota.memory_total),
        (4, 2 << 30)
    );
    assert_eq!(template.quota.rate.to_string(), "30/min");
    assert_eq!(template.quota.ttl.as_secs(), 3600);
    assert_eq!(template.may, crate::spawn::template::Permitted::default());
    assert!(template.from.is_empty() && template.user.is_none());
}

#[test]
fn each_setting_of_a_template_is_read() {
    let template = template(
        r#"from = ["ci/runner", "tag:ci"]
command = true
environment = true
volumes = ["scratch"]
memory = "1g"
cpus = 2
pids = 512
max = 8
memory_total = "6g"
rate = "100/h"
ttl = "30m"
network = "own"
user = "1000:1000"
labels = ["mesh.service=job", "mesh.port"]"#,
    );
    let template = template.expect("it is valid");
    let from: Vec<String> = template.from.iter().map(ToString::to_string).collect();
    assert_eq!(from, ["ci/runner", "tag:ci"]);
    assert!(template.may.command && template.may.environment && template.may.scratch);
    assert_eq!(
        (template.limits.memory, template.limits.nano_cpus),
        (1 << 30, 2_000_000_000)
    );
    assert_eq!((template.limits.pids, template.quota.max), (512, 8));
    assert_eq!(template.quota.memory_total, 6 << 30);
    assert_eq!(template.quota.ttl.as_secs(), 1800);
    assert_eq!(
        template.user.map(|user| user.to_string()).as_deref(),
        Some("1000:1000")
    );
    assert_eq!(template.may.labels.len(), 2);
}

#[test]
fn a_setting_of_a_template_without_a_meaning_is_an_error_that_says_what_to_write() {
    for (wrong, why) in [
        (
            r#"from = ["*"]"#,
            "from: `*` names nobody in particular; write a service such as ci/runner",
        ),
        (
            r#"from = ["node:*"]"#,
            "from: `node:*` names nobody in particular",
        ),
        (
            r#"from = ["guest:phone"]"#,
            "from: `guest:phone` has no service of the mesh, so it needs an API token",
        ),
        (
            r#"from = ["route:office"]"#,
            "from: `route:office` has no service of the mesh",
        ),
        (
            r#"from = ["runner.ci"]"#,
            "a service of a project is written `project/name`",
        ),
        (
            r#"memory = "1""#,
            "memory: `1` is no size; write a number with k, m, g or t",
        ),
        (r#"memory = "1m""#, "memory: 6m to 16t are possible"),
        ("cpus = 0", "cpus: 0.01 to 1024 are possible"),
        ("cpus = nan", "cpus: 0.01 to 1024 are possible"),
        ("pids = 0", "pids: 1 to 32768 are possible"),
        ("max = 1001", "max: 1 to 1000 are possible"),
        (
            r#"memory_total = "256m""#,
            "memory_total: it is less than `memory`",
        ),
        (
            r#"rate = "30""#,
            "rate: `30` is no rate; write 1 to 1000 in a period",
        ),
        (r#"ttl = "31d""#, "ttl: `31d` is no time from 1s to 30d"),
        (r#"user = "root""#, "user: `root` is no user; write numbers"),
        (
            r#"labels = ["com.docker.compose.project"]"#,
            "no caller may set them",
        ),
        (
            "network = \"none\"\nlabels = [\"mesh.service\"]",
            "labels: a container without a network",
        ),
        (r#"network = "host""#, "`host` is none of its values"),
        (r#"volumes = ["/"]"#, "`/` is none of its values"),
        ("privileged = true", "privileged"),
    ] {
        let error = template(wrong).expect_err(wrong);
        assert!(error.contains(why), "{wrong}: {error}");
    }
    let error = |text: &str| load(text).expect_err(text).to_string();
    let none = error("[[spawn]]\nname = \"job\"\nimages = []\n");
    assert!(none.contains("images: write at least one"), "{none}");
    let open = error("[[spawn]]\nname = \"job\"\nimages = [\"alpine\"]\n");
    assert!(
        open.contains("does not say which version is permitted"),
        "{open}"
    );
    let one = "[[spawn]]\nname = \"job\"\nimages = [\"a:1\"]\n";
    let twice = error(&one.repeat(2));
    assert!(
        twice.contains("line 5: [[spawn]] job: name: another template"),
        "{twice}"
    );
    let without = error(&format!("[docker]\nenabled = false\n{one}"));
    assert!(
        without.contains("meshd uses no container engine"),
        "{without}"
    );
}
