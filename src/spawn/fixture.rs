//! A template for the tests of this folder.

use std::time::Duration;

use super::image::ImagePattern;
use super::template::{LabelRule, Limits, Network, Permitted, Quota, SpawnRate, Template, User};
use crate::testbed::records::label;

/// A template that permits all that a caller may choose.
pub(super) fn template() -> Template {
    let images = ["alpine:3.20", "registry.example.com/acme/ci@sha256:*"];
    let labels = ["mesh.service=job", "mesh.port", "org.testcontainers.*"];
    Template {
        name: label("job"),
        from: vec![],
        images: images
            .map(|image| ImagePattern::parse(image).expect("a literal"))
            .to_vec(),
        may: Permitted {
            command: true,
            environment: true,
            scratch: true,
            labels: labels
                .map(|rule| LabelRule::parse(rule).expect("a literal"))
                .to_vec(),
        },
        limits: Limits {
            memory: 256 << 20,
            nano_cpus: 500_000_000,
            pids: 64,
        },
        quota: Quota {
            max: 3,
            memory_total: 512 << 20,
            rate: SpawnRate {
                count: 5,
                period: Duration::from_secs(60),
            },
            ttl: Duration::from_secs(3600),
        },
        network: Network::Own,
        user: Some(User {
            uid: 1000,
            gid: Some(1000),
        }),
    }
}

/// The template that permits nothing but its image.
pub(super) fn strict() -> Template {
    Template {
        may: Permitted::default(),
        network: Network::None,
        user: None,
        ..template()
    }
}
