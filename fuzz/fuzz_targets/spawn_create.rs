//! Bodies with which callers create containers, and processes in them. Whatever a caller sends, the body for the engine has no more than
//! the template: no capability, no part of the host, and the limits. The first byte selects the template and the kind of the body.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use meshd::model::time::Now;
use meshd::model::{Label, PublicKey};
use meshd::spawn::ledger::Order;
use meshd::spawn::template::{LabelRule, Limits, Network, Permitted, Quota, SpawnRate};
use meshd::spawn::{
    Granted, ImagePattern, Ledger, Owner, SpawnId, Template, body, create, exec, request,
};
use serde_json::{Value, json};

fn template(is_open: bool) -> Template {
    let rule = LabelRule::parse("mesh.port").expect("a literal");
    let open = Permitted {
        command: true,
        environment: true,
        scratch: true,
        labels: vec![rule],
    };
    Template {
        name: Label::parse("job").expect("a literal"),
        from: Vec::new(),
        images: vec![ImagePattern::parse("alpine:3.20").expect("a literal")],
        may: if is_open { open } else { Permitted::default() },
        limits: Limits {
            memory: 64 << 20,
            nano_cpus: 1_000_000_000,
            pids: 64,
        },
        quota: Quota {
            max: 1,
            memory_total: 64 << 20,
            rate: SpawnRate {
                count: 1,
                period: Duration::from_secs(1),
            },
            ttl: Duration::from_secs(60),
        },
        network: if is_open { Network::Own } else { Network::None },
        user: None,
    }
}

fn check(written: &Value, template: &Template, network: &str) {
    let host = &written["HostConfig"];
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["Privileged"], json!(false));
    assert_eq!(host["Memory"], json!(template.limits.memory));
    assert_eq!(host["PidsLimit"], json!(template.limits.pids));
    for empty in ["Binds", "CapAdd", "Devices", "Mounts", "VolumesFrom"] {
        assert_eq!(host[empty], json!([]), "{empty}");
    }
    for empty in ["CgroupParent", "PidMode", "UTSMode", "UsernsMode"] {
        assert_eq!(host[empty], json!(""), "{empty}");
    }
    let mode = host["NetworkMode"].as_str().expect("a text");
    assert!(mode == "none" || (template.network == Network::Own && mode == network));
    for path in written["Volumes"].as_object().expect("an object").keys() {
        assert!(template.may.scratch && path.starts_with('/') && !path.contains(".."));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let template = Arc::new(template(kind & 1 == 1));
    let granted = vec![Granted {
        template: Arc::clone(&template),
        owner: Owner::Token(PublicKey([7; 32])),
    }];
    let (wanted, name) = match (kind >> 1) % 3 {
        0 => match create::read(bytes, &granted) {
            Ok((_, wanted)) => (wanted, None),
            Err(refused) => return assert!(!refused.to_string().is_empty()),
        },
        1 => match request::read(bytes, &granted) {
            Ok(asked) => (asked.wanted, asked.name),
            Err(refused) => return assert!(!refused.to_string().is_empty()),
        },
        _ => {
            if let Ok(wanted) = exec::read(bytes, &template) {
                assert!(template.may.command);
                assert_eq!(wanted.body()["Privileged"], json!(false));
            }
            return;
        }
    };
    let order = Order {
        granted: &granted[0],
        id: SpawnId::from_bytes([1; 16]),
        name: name.as_deref(),
        image: wanted.image.shown(),
    };
    let now = Now {
        monotonic: Instant::now(),
        wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    };
    let entry = Ledger::default().reserve(order, now);
    let entry = entry.expect("an empty ledger has a place");
    let written = body::container(&wanted, &template, &entry, "sha256:0a");
    check(&written, &template, &entry.network);
});
