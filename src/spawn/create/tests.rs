use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::model::PublicKey;
use crate::model::time::Now;
use crate::spawn::body;
use crate::spawn::fixture::{strict, template};
use crate::spawn::ledger::{Entry, Ledger, Order, SpawnId};
use crate::spawn::owner::Owner;

fn granted(template: Template) -> Vec<Granted> {
    vec![Granted {
        template: Arc::new(template),
        owner: Owner::Token(PublicKey([7; 32])),
    }]
}

fn read_as(template: Template, body: &Json) -> Result<Wanted, Refused> {
    let wanted = read(body.to_string().as_bytes(), &granted(template));
    wanted.map(|(_, wanted)| wanted)
}

/// The body that Docker's command line sends for `docker run -it --rm alpine:3.20 sh`, but for the fields of blkio, which are like these.
fn of_command_line() -> Json {
    let text = r#"{
        "Hostname": "", "Domainname": "", "User": "",
        "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
        "Tty": true, "OpenStdin": true, "StdinOnce": true,
        "Env": null, "Cmd": ["sh"], "Image": "alpine:3.20", "Volumes": {}, "WorkingDir": "",
        "Entrypoint": null, "OnBuild": null, "Labels": {},
        "HostConfig": {
            "Binds": null, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}},
            "NetworkMode": "default", "PortBindings": {},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": true,
            "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [40, 120],
            "CapAdd": null, "CapDrop": null, "CgroupnsMode": "", "Dns": [], "DnsOptions": [],
            "DnsSearch": [], "ExtraHosts": null, "GroupAdd": null, "IpcMode": "", "Cgroup": "",
            "Links": null, "OomScoreAdj": 0, "PidMode": "", "Privileged": false,
            "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "",
            "UsernsMode": "", "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0,
            "NanoCpus": 0, "CgroupParent": "", "CpuPeriod": 0, "CpuQuota": 0, "CpusetCpus": "",
            "Devices": [], "DeviceCgroupRules": null, "DeviceRequests": null,
            "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1,
            "OomKillDisable": false, "PidsLimit": 0, "Ulimits": [], "MaskedPaths": null,
            "ReadonlyPaths": null
        },
        "NetworkingConfig": {"EndpointsConfig": {"default": {
            "IPAMConfig": null, "Links": null, "Aliases": null, "MacAddress": "",
            "DriverOpts": null, "GwPriority": 0, "NetworkID": "", "EndpointID": "", "Gateway": "",
            "IPAddress": "", "IPPrefixLen": 0, "DNSNames": null
        }}}
    }"#;
    serde_json::from_str(text).expect("a literal")
}

/// The body above with another value at a path.
fn with(path: &str, value: Json) -> Json {
    let mut body = of_command_line();
    let mut at = &mut body;
    for key in path.split('/') {
        at = &mut at[key];
    }
    *at = value;
    body
}

#[test]
fn the_body_of_dockers_command_line_is_read_and_its_defaults_ask_for_nothing() {
    let wanted = read_as(template(), &of_command_line()).expect("it is permitted");
    let image = ImageName::parse("alpine:3.20").expect("a literal");
    let mut expected = Wanted::of(image);
    expected.process.command = Some(vec!["sh".to_owned()]);
    expected.terminal = Terminal {
        attach: Attach {
            stdin: true,
            stdout: true,
            stderr: true,
        },
        tty: true,
        open_stdin: true,
        stdin_once: true,
    };
    expected.auto_remove = true;
    assert_eq!(wanted, expected);
    let bare = json!({"Image": "alpine:3.20"});
    assert!(read_as(strict(), &bare).is_ok());
}

/// What a container could be given beyond its template, with the field that the refusal has to name.
const HOSTILE: [(&str, &str); 60] = [
    ("HostConfig/Privileged", "true"),
    ("HostConfig/Binds", r#"["/:/host"]"#),
    ("HostConfig/Binds", r#"["/var/run/docker.sock:/s"]"#),
    ("HostConfig/Binds", r#"[""]"#),
    (
        "HostConfig/Mounts",
        r#"[{"Type":"bind","Source":"/","Target":"/host"}]"#,
    ),
    (
        "HostConfig/Mounts",
        r#"[{"Type":"volume","Source":"other","Target":"/x"}]"#,
    ),
    ("HostConfig/VolumesFrom", r#"["db"]"#),
    ("HostConfig/VolumeDriver", r#""local""#),
    ("HostConfig/Tmpfs", r#"{"/tmp":"exec"}"#),
    (
        "HostConfig/Devices",
        r#"[{"PathOnHost":"/dev/sda","PathInContainer":"/dev/sda","CgroupPermissions":"rwm"}]"#,
    ),
    (
        "HostConfig/DeviceRequests",
        r#"[{"Driver":"nvidia","Count":-1}]"#,
    ),
    ("HostConfig/DeviceCgroupRules", r#"["c *:* rwm"]"#),
    ("HostConfig/CapDrop", r#"["NET_RAW"]"#),
    ("HostConfig/CapDrop", r#"["ALL","CHOWN"]"#),
    ("HostConfig/SecurityOpt", r#"["seccomp=unconfined"]"#),
    ("HostConfig/SecurityOpt", r#"["apparmor=unconfined"]"#),
    ("HostConfig/SecurityOpt", r#"["label=disable"]"#),
    ("HostConfig/SecurityOpt", r#"["systempaths=unconfined"]"#),
    ("HostConfig/SecurityOpt", r#"["no-new-privileges:false"]"#),
    (
        "HostConfig/SecurityOpt",
        r#"["no-new-privileges","seccomp=unconfined"]"#,
    ),
    ("HostConfig/MaskedPaths", r#"["/x"]"#),
    ("HostConfig/ReadonlyPaths", r#"["/x"]"#),
    ("HostConfig/NetworkMode", r#""host""#),
    ("HostConfig/NetworkMode", r#""container:db""#),
    ("HostConfig/NetworkMode", r#""mesh""#),
    ("HostConfig/NetworkMode", r#""ns:/proc/1/ns/net""#),
    ("HostConfig/PidMode", r#""host""#),
    ("HostConfig/PidMode", r#""container:db""#),
    ("HostConfig/IpcMode", r#""host""#),
    ("HostConfig/IpcMode", r#""shareable""#),
    ("HostConfig/UTSMode", r#""host""#),
    ("HostConfig/UsernsMode", r#""host""#),
    ("HostConfig/CgroupnsMode", r#""host""#),
    ("HostConfig/CgroupParent", r#""/system.slice""#),
    ("HostConfig/Cgroup", r#""container:db""#),
    ("HostConfig/Runtime", r#""sysbox""#),
    ("HostConfig/Isolation", r#""process""#),
    ("HostConfig/Sysctls", r#"{"net.ipv4.ip_forward":"1"}"#),
    ("HostConfig/Sysctls", r#"{"kernel.core_pattern":""}"#),
    (
        "HostConfig/PortBindings",
        r#"{"80/tcp":[{"HostPort":"80"}]}"#,
    ),
    ("HostConfig/PortBindings", r#"{"80/tcp":null}"#),
    ("HostConfig/PublishAllPorts", "true"),
    ("HostConfig/Links", r#"["db:db"]"#),
    ("HostConfig/ExtraHosts", r#"["db:10.0.0.1"]"#),
    ("HostConfig/GroupAdd", r#"["docker"]"#),
    (
        "HostConfig/Ulimits",
        r#"[{"Name":"memlock","Soft":-1,"Hard":-1}]"#,
    ),
    ("HostConfig/OomScoreAdj", "-1000"),
    ("HostConfig/OomKillDisable", "true"),
    ("HostConfig/Memory", "1"),
    ("HostConfig/MemorySwap", "-1"),
    ("HostConfig/MemorySwappiness", "100"),
    ("HostConfig/PidsLimit", "-1"),
    ("HostConfig/NanoCpus", "8000000000"),
    ("HostConfig/CpuShares", "1024"),
    ("HostConfig/ShmSize", "1073741824"),
    ("HostConfig/StorageOpt", r#"{"size":"100G"}"#),
    (
        "HostConfig/Annotations",
        r#"{"io.kubernetes.cri.untrusted":"x"}"#,
    ),
    ("HostConfig/LogConfig/Type", r#""syslog""#),
    (
        "HostConfig/LogConfig/Config",
        r#"{"syslog-address":"tcp://x"}"#,
    ),
    ("HostConfig/RestartPolicy/Name", r#""always""#),
];

/// The same, outside of `HostConfig`.
const HOSTILE_OUTSIDE: [(&str, &str); 16] = [
    ("User", r#""0""#),
    ("User", r#""root""#),
    ("Domainname", r#""x""#),
    ("MacAddress", r#""02:42:ac:11:00:02""#),
    ("OnBuild", r#"["RUN x"]"#),
    ("Shell", r#"["sh"]"#),
    ("Healthcheck/Test", r#"["CMD-SHELL","x"]"#),
    ("Labels/com.docker.compose.project", r#""shop""#),
    ("Labels/meshd.spawn", r#""x""#),
    ("Labels/mesh.service", r#""db""#),
    ("Volumes/~1proc", "{}"),
    ("NetworkingConfig/EndpointsConfig/mesh", "{}"),
    ("NetworkingConfig/EndpointsConfig/host", "null"),
    (
        "NetworkingConfig/EndpointsConfig/default/Aliases",
        r#"["db"]"#,
    ),
    (
        "NetworkingConfig/EndpointsConfig/default/IPAMConfig",
        r#"{"IPv4Address":"10.0.0.1"}"#,
    ),
    (
        "NetworkingConfig/EndpointsConfig/default/DriverOpts",
        r#"{"a":"b"}"#,
    ),
];

#[test]
fn each_wish_beyond_the_template_is_refused_with_the_name_of_its_field() {
    for (path, value) in HOSTILE.into_iter().chain(HOSTILE_OUTSIDE) {
        let value: Json = serde_json::from_str(value).expect("a literal");
        let keys: Vec<String> = path.split('/').map(|key| key.replace("~1", "/")).collect();
        let mut body = of_command_line();
        let mut at = &mut body;
        for key in &keys {
            at = &mut at[key.as_str()];
        }
        *at = value;
        let refused = read_as(template(), &body).expect_err(path);
        let named = format!("{}: ", keys.join("."));
        assert!(refused.to_string().starts_with(&named), "{path}: {refused}");
        assert_eq!(refused.code().status(), 403, "{path}");
    }
}

#[test]
fn no_capability_can_be_added() {
    let last = 41;
    let numbered = (0..last).map(|n| format!("CAP_{n}"));
    let named = [
        "ALL",
        "SYS_ADMIN",
        "CAP_SYS_ADMIN",
        "NET_ADMIN",
        "CHOWN",
        "",
    ];
    for capability in numbered.chain(named.map(str::to_owned)) {
        let body = with("HostConfig/CapAdd", json!([capability]));
        let refused = read_as(template(), &body).expect_err("refused");
        assert!(
            refused.to_string().starts_with("HostConfig.CapAdd: "),
            "{refused}"
        );
    }
}

#[test]
fn a_field_of_a_later_version_or_in_another_case_passes_only_with_a_value_that_asks_for_nothing() {
    for place in [
        "",
        "HostConfig/",
        "NetworkingConfig/",
        "HostConfig/LogConfig/",
    ] {
        for name in ["privileged", "BINDS", "HostPath", "Later"] {
            let path = format!("{place}{name}");
            for value in [
                json!(true),
                json!("x"),
                json!(1),
                json!([0]),
                json!({"a": null}),
            ] {
                let refused = read_as(template(), &with(&path, value)).expect_err(&path);
                let field = path.replace('/', ".");
                assert!(refused.to_string().starts_with(&field), "{refused}");
            }
            for value in [
                json!(null),
                json!(false),
                json!(0),
                json!(""),
                json!([]),
                json!({}),
            ] {
                assert!(read_as(template(), &with(&path, value)).is_ok(), "{path}");
            }
        }
    }
}

#[test]
fn what_the_template_forces_may_stand_in_the_body() {
    for (path, value) in [
        ("HostConfig/CapDrop", json!(["ALL"])),
        ("HostConfig/CapDrop", json!(["all"])),
        ("HostConfig/SecurityOpt", json!(["no-new-privileges"])),
        ("HostConfig/SecurityOpt", json!(["no-new-privileges:true"])),
        ("HostConfig/Memory", json!(256 << 20)),
        ("HostConfig/MemorySwap", json!(256 << 20)),
        ("HostConfig/NanoCpus", json!(500_000_000)),
        ("HostConfig/PidsLimit", json!(64)),
        ("HostConfig/IpcMode", json!("private")),
        ("HostConfig/NetworkMode", json!("bridge")),
        ("HostConfig/NetworkMode", json!("none")),
        ("HostConfig/Init", json!(true)),
        ("User", json!("1000:1000")),
        ("StopTimeout", json!(10)),
        ("StopSignal", json!("SIGINT")),
        ("Hostname", json!("job-1")),
        ("Cmd", json!("true")),
        ("Entrypoint", json!([""])),
        (
            "Labels",
            json!({"mesh.service": "job", "org.testcontainers.lang": "java"}),
        ),
        ("Volumes", json!({"/cache": {}})),
        ("ExposedPorts", json!({"80/tcp": {}})),
    ] {
        let wanted = read_as(template(), &with(path, value));
        assert!(wanted.is_ok(), "{path}: {wanted:?}");
    }
}

#[test]
fn a_template_that_permits_nothing_permits_its_image_alone() {
    let image = json!({"Image": "alpine:3.20"});
    for (field, value) in [
        ("Cmd", json!(["sh"])),
        ("Entrypoint", json!(["sh"])),
        ("WorkingDir", json!("/tmp")),
        ("Env", json!(["A=1"])),
        ("Labels", json!({"mesh.service": "job"})),
        ("Volumes", json!({"/cache": {}})),
        ("User", json!("1000:1000")),
    ] {
        let mut body = image.clone();
        body[field] = value;
        let refused = read_as(strict(), &body).expect_err(field);
        assert!(refused.to_string().starts_with(field), "{refused}");
    }
    for other in [
        "alpine",
        "alpine:3.21",
        "evil/alpine:3.20",
        "x.example/alpine:3.20",
    ] {
        let refused = read_as(strict(), &json!({"Image": other})).expect_err(other);
        assert!(matches!(refused, Refused::OtherImage(..)), "{refused}");
    }
    for none in [
        json!({}),
        json!({"Image": ""}),
        json!({"image": "alpine:3.20"}),
    ] {
        assert!(read_as(strict(), &none).is_err(), "{none}");
    }
}

#[test]
fn the_template_is_the_first_one_that_permits_the_image() {
    let mut other = strict();
    other.name = crate::testbed::records::label("other");
    other.images = vec![crate::spawn::ImagePattern::parse("busybox:1").expect("a literal")];
    let both: Vec<Granted> = granted(other)
        .into_iter()
        .chain(granted(template()))
        .collect();
    let name = |image: &str| {
        let body = json!({ "Image": image }).to_string();
        let read = read(body.as_bytes(), &both);
        read.map(|(granted, _)| granted.template.name.to_string())
    };
    assert_eq!(name("alpine:3.20").as_deref(), Ok("job"));
    assert_eq!(name("busybox:1").as_deref(), Ok("other"));
    assert!(name("busybox:2").is_err());
}

fn entry(template: &Template, name: Option<&str>) -> Entry {
    let granted = Granted {
        template: Arc::new(template.clone()),
        owner: Owner::Token(PublicKey([7; 32])),
    };
    let order = Order {
        granted: &granted,
        id: SpawnId::from_bytes([1; 16]),
        name,
        image: "alpine:3.20".to_owned(),
    };
    let now = Now {
        monotonic: Instant::now(),
        wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    };
    let entry = Ledger::default().reserve(order, now);
    entry.expect("an empty ledger has a place")
}

const ID: &str = "sha256:0a";

/// Asserts that the body for the engine is no more than the template permits.
fn assert_within(written: &Json, template: &Template, entry: &Entry) {
    let host = &written["HostConfig"];
    assert_eq!(written["Image"], ID);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["IpcMode"], "private");
    assert_eq!(host["CgroupnsMode"], "private");
    assert_eq!(host["Memory"], json!(template.limits.memory));
    assert_eq!(host["MemorySwap"], json!(template.limits.memory));
    assert_eq!(host["NanoCpus"], json!(template.limits.nano_cpus));
    assert_eq!(host["PidsLimit"], json!(template.limits.pids));
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    for field in [
        "Binds",
        "CapAdd",
        "Devices",
        "DeviceRequests",
        "DeviceCgroupRules",
        "ExtraHosts",
        "GroupAdd",
        "Links",
        "Mounts",
        "Ulimits",
        "VolumesFrom",
    ] {
        assert_eq!(host[field], json!([]), "{field}");
    }
    for field in ["PortBindings", "Sysctls", "Tmpfs"] {
        assert_eq!(host[field], json!({}), "{field}");
    }
    for field in ["CgroupParent", "PidMode", "UTSMode", "UsernsMode"] {
        assert_eq!(host[field], "", "{field}");
    }
    for field in ["Privileged", "PublishAllPorts", "OomKillDisable"] {
        assert_eq!(host[field], false, "{field}");
    }
    let network = host["NetworkMode"].as_str().expect("a text");
    assert!(network == "none" || (template.network == Network::Own && network == entry.network));
    let user = template.user.map(|user| user.to_string());
    assert_eq!(written["User"].as_str(), user.as_deref());
    let labels = written["Labels"].as_object().expect("an object");
    assert_eq!(labels[body::ID_LABEL], json!(entry.id.to_string()));
    for (name, value) in labels.iter().filter(|(name, _)| *name != body::ID_LABEL) {
        let value = value.as_str().expect("a text");
        assert!(template.may.label(name, value), "{name}");
    }
    assert_known(written, &TOP);
    assert_known(host, &HOST);
}

/// The fields of the body for the engine. Another one would have to be looked at first.
const TOP: [&str; 20] = [
    "Image",
    "Env",
    "Labels",
    "Volumes",
    "ExposedPorts",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "NetworkDisabled",
    "HostConfig",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "StopSignal",
    "StopTimeout",
    "Hostname",
    "User",
];
const HOST: [&str; 35] = [
    "AutoRemove",
    "Binds",
    "CapAdd",
    "CapDrop",
    "CgroupParent",
    "CgroupnsMode",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "ExtraHosts",
    "GroupAdd",
    "Init",
    "IpcMode",
    "Links",
    "Memory",
    "MemorySwap",
    "Mounts",
    "NanoCpus",
    "NetworkMode",
    "OomKillDisable",
    "OomScoreAdj",
    "PidMode",
    "PidsLimit",
    "PortBindings",
    "Privileged",
    "PublishAllPorts",
    "ReadonlyRootfs",
    "RestartPolicy",
    "SecurityOpt",
    "Sysctls",
    "Tmpfs",
    "UTSMode",
    "Ulimits",
    "UsernsMode",
    "VolumesFrom",
];

fn assert_known(object: &Json, known: &[&str]) {
    let fields = object.as_object().expect("an object");
    for name in fields.keys().filter(|name| *name != "NetworkingConfig") {
        assert!(known.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn the_name_of_a_container_is_an_alias_in_its_own_network_alone() {
    let template = template();
    let wanted = read_as(template.clone(), &of_command_line()).expect("it is permitted");
    let named = entry(&template, Some("web"));
    let written = body::container(&wanted, &template, &named, ID);
    assert_within(&written, &template, &named);
    let endpoints = json!({named.network.as_str(): {"Aliases": ["web"]}});
    assert_eq!(written["NetworkingConfig"]["EndpointsConfig"], endpoints);
    let network = body::network(&template, &named).expect("it has one");
    assert_eq!(network["Name"], json!(named.network));
    assert_eq!(network["Labels"][body::ID_LABEL], body::OF_NETWORK);

    let isolated = with("HostConfig/NetworkMode", json!("none"));
    let wanted = read_as(template.clone(), &isolated).expect("it is permitted");
    let written = body::container(&wanted, &template, &named, ID);
    assert_eq!(written["HostConfig"]["NetworkMode"], "none");
    assert!(written["NetworkingConfig"].is_null());
    assert_eq!(body::network(&strict(), &named), None);
}

/// Values as callers could send them: good ones, neutral ones and hostile ones.
fn any_value() -> impl Strategy<Value = Json> {
    let texts = [
        "",
        "host",
        "none",
        "default",
        "private",
        "no",
        "/",
        "/cache",
        "sh",
        "1000:1000",
        "0",
        "container:x",
        "A=1",
        "mesh.service",
        "job",
        "SIGKILL",
        "80/tcp",
        "ALL",
        "no-new-privileges",
        "seccomp=unconfined",
        "\u{0}",
        "\u{e4}",
    ];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        (-2i64..3).prop_map(Json::from),
        prop::sample::select(texts.to_vec()).prop_map(Json::from),
        "[ -~]{0,12}".prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map(any_key(), inner, 0..4)
                .prop_map(|fields| Json::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    let known: Vec<String> = TOP
        .iter()
        .chain(&HOST)
        .map(|name| (*name).to_owned())
        .chain(
            HOSTILE
                .iter()
                .map(|(path, _)| path.replace("HostConfig/", "")),
        )
        .chain(HOSTILE_OUTSIDE.iter().map(|(path, _)| (*path).to_owned()))
        .chain(["/cache", "mesh.service", "mesh.port", "80/tcp"].map(str::to_owned))
        .collect();
    prop_oneof![
        8 => prop::sample::select(known),
        1 => "[A-Za-z./]{0,12}",
    ]
}

/// Any object, and the body of the command line with up to five fields that are any value.
fn any_body() -> impl Strategy<Value = Json> {
    let changes = prop::collection::vec((any::<bool>(), any_key(), any_value()), 0..5);
    prop_oneof![
        1 => any_value(),
        6 => changes.prop_map(|changes| {
            let mut body = of_command_line();
            for (is_host, key, value) in changes {
                match is_host {
                    true if body["HostConfig"].is_object() => body["HostConfig"][key] = value,
                    _ => body[key] = value,
                }
            }
            body
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_caller_sends_the_engine_gets_no_more_than_the_template(
        body in any_body(),
        is_strict in any::<bool>(),
    ) {
        let template = if is_strict { strict() } else { template() };
        if let Ok(wanted) = read_as(template.clone(), &body) {
            let entry = entry(&template, None);
            let written = body::container(&wanted, &template, &entry, ID);
            assert_within(&written, &template, &entry);
            if is_strict {
                prop_assert!(written["Cmd"].is_null() && written["Entrypoint"].is_null());
                prop_assert_eq!(&written["Env"], &json!([]));
                prop_assert_eq!(&written["Volumes"], &json!({}));
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&body, &granted(template()));
    }
}
