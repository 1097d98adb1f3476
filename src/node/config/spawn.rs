//! The templates from which callers spawn containers.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::file::{NetworkWord, SpawnSection, VolumeWord};
use crate::model::Label;
use crate::model::text::printable;
use crate::model::time::milliseconds;
use crate::os::config_file::Findings;
use crate::policy::{Selector, Wild};
use crate::spawn::ImagePattern;
use crate::spawn::template::{
    LabelRule, Limits, Network, Permitted, Quota, SpawnRate, Template, User, bytes,
};

/// The maximum number of templates, and of entries in their lists.
const MAX_TEMPLATES: usize = 64;
const MAX_LIST: usize = 32;
/// The least memory of a container, which is that of Docker, and the largest.
const MIN_MEMORY: u64 = 6 << 20;
const MAX_MEMORY: u64 = 16 << 40;
/// The maximum numbers of processors and of processes of a container, and of containers.
const MAX_CPUS: f64 = 1024.0;
const MAX_PIDS: u32 = 32_768;
const MAX_CONTAINERS: u32 = 1000;
/// The longest time for which a container exists.
const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);
/// The limits of a template that sets none.
const DEFAULT_MEMORY: u64 = 512 << 20;
const DEFAULT_CPUS: f64 = 1.0;
const DEFAULT_PIDS: u32 = 256;
const DEFAULT_MAX: u32 = 4;
const DEFAULT_RATE: SpawnRate = SpawnRate {
    count: 30,
    period: Duration::from_secs(60),
};
const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// Makes the templates of what is written, and adds everything that is wrong to `wrong`. `has_engine` says whether meshd uses an engine.
pub(super) fn templates(
    sections: Vec<SpawnSection>,
    has_engine: bool,
    wrong: &mut Findings<'_>,
) -> Vec<Arc<Template>> {
    let mut templates: Vec<Arc<Template>> = Vec::new();
    for (number, section) in sections.into_iter().enumerate() {
        let shown = printable(&section.name, 70);
        let mut reader = Reader::default();
        if number >= MAX_TEMPLATES {
            reader.add("name", format!("{MAX_TEMPLATES} templates are the most"));
        }
        if !has_engine {
            let text = "meshd uses no container engine because of `enabled = false` in [docker]; remove one of the two";
            reader.add("name", text);
        }
        if let Some(template) = template(&section, &mut reader) {
            match templates.iter().any(|other| other.name == template.name) {
                true => reader.add("name", "another template has this name"),
                false => templates.push(Arc::new(template)),
            }
        }
        for (key, error) in reader.faults {
            let place = format!("spawn.{number}.{key}");
            wrong.add_at(&place, format!("[[spawn]] {shown}: {key}: {error}"));
        }
        if number >= MAX_TEMPLATES {
            break;
        }
    }
    templates
}

/// Collects what is wrong in a section.
#[derive(Default)]
struct Reader {
    faults: Vec<(&'static str, String)>,
}

impl Reader {
    fn add(&mut self, key: &'static str, error: impl Display) {
        self.faults.push((key, error.to_string()));
    }

    fn value<T, E: Display>(&mut self, key: &'static str, read: Result<T, E>) -> Option<T> {
        read.map_err(|error| self.add(key, error)).ok()
    }

    /// Reads the entries of a list.
    fn list<T, E: Display>(
        &mut self,
        key: &'static str,
        texts: &[String],
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        if texts.len() > MAX_LIST {
            self.add(key, format!("{MAX_LIST} entries are the most"));
        }
        let texts = texts.iter().take(MAX_LIST);
        texts
            .filter_map(|text| self.value(key, read(text)))
            .collect()
    }

    /// Reads a number that has bounds, or takes the default.
    fn bounded<T: PartialOrd + Display>(
        &mut self,
        key: &'static str,
        value: Option<T>,
        default: T,
        (least, most): (T, T),
    ) -> T {
        let Some(value) = value else { return default };
        let possible = least..=most;
        if possible.contains(&value) {
            return value;
        }
        let (least, most) = (possible.start(), possible.end());
        self.add(key, format!("{least} to {most} are possible"));
        default
    }

    fn memory(&mut self, key: &'static str, text: Option<&String>, default: u64) -> u64 {
        let Some(text) = text else { return default };
        let size = self.value(key, bytes(text)).unwrap_or(default);
        if (MIN_MEMORY..=MAX_MEMORY).contains(&size) {
            return size;
        }
        self.add(key, "6m to 16t are possible");
        default
    }
}

/// The template of a section. None if its name or its images are missing.
fn template(section: &SpawnSection, reader: &mut Reader) -> Option<Template> {
    let name = reader.value("name", Label::parse(&section.name));
    let images = reader.list("images", &section.images, ImagePattern::parse);
    if section.images.is_empty() {
        reader.add("images", "write at least one, such as [\"alpine:3.20\"]");
    }
    let limits = limits(section, reader);
    let template = Template {
        from: reader.list("from", &section.from, caller),
        images,
        may: permitted(section, reader),
        limits,
        quota: quota(section, limits.memory, reader),
        network: match section.network {
            NetworkWord::Own => Network::Own,
            NetworkWord::None => Network::None,
        },
        user: section
            .user
            .as_ref()
            .and_then(|user| reader.value("user", User::parse(user))),
        // The last one, so that everything else that is wrong is found first.
        name: name?,
    };
    let has_mesh_label = template.may.labels.iter().any(LabelRule::is_of_mesh);
    if has_mesh_label && template.network == Network::None {
        reader.add(
            "labels",
            "a container without a network is no service of the mesh; write network = \"own\", or leave out the labels that begin with mesh.",
        );
    }
    Some(template)
}

/// Reads a selector of callers.
fn caller(text: &str) -> Result<Selector, String> {
    let example = "write a service such as ci/runner, a tag such as tag:ci, or node:NAME for all programs of a node";
    match Selector::parse(text) {
        Ok(
            Selector::Any | Selector::SameProject | Selector::Unknown | Selector::Node(Wild::Any),
        ) => Err(format!("`{text}` names nobody in particular; {example}")),
        Ok(Selector::Guest(_) | Selector::Route(_)) => Err(format!(
            "`{text}` has no service of the mesh, so it needs an API token with the scope of the template; {example}"
        )),
        Ok(selector) => Ok(selector),
        Err(error) => Err(format!("{error}; {example}")),
    }
}

fn limits(section: &SpawnSection, reader: &mut Reader) -> Limits {
    let cpus = reader.bounded("cpus", section.cpus, DEFAULT_CPUS, (0.01, MAX_CPUS));
    Limits {
        memory: reader.memory("memory", section.memory.as_ref(), DEFAULT_MEMORY),
        nano_cpus: (cpus * 1e9).round() as u64,
        pids: reader.bounded("pids", section.pids, DEFAULT_PIDS, (1, MAX_PIDS)),
    }
}

fn permitted(section: &SpawnSection, reader: &mut Reader) -> Permitted {
    Permitted {
        command: section.command,
        environment: section.environment,
        scratch: section.volumes.contains(&VolumeWord::Scratch),
        labels: reader.list("labels", &section.labels, LabelRule::parse),
    }
}

/// The quota of a template whose containers have `memory` bytes each.
fn quota(section: &SpawnSection, memory: u64, reader: &mut Reader) -> Quota {
    let max = reader.bounded("max", section.max, DEFAULT_MAX, (1, MAX_CONTAINERS));
    let all = memory.saturating_mul(u64::from(max));
    let total = section.memory_total.as_ref().map_or(all, |text| {
        reader.value("memory_total", bytes(text)).unwrap_or(all)
    });
    if total < memory {
        let text =
            "it is less than `memory`, so there could be no container; write at least as much";
        reader.add("memory_total", text);
    }
    let rate = section.rate.as_ref();
    let rate = rate.and_then(|text| reader.value("rate", SpawnRate::parse(text)));
    let ttl = section.ttl.as_ref();
    let ttl = ttl.and_then(|text| reader.value("ttl", lifetime(text)));
    Quota {
        max,
        memory_total: total,
        rate: rate.unwrap_or(DEFAULT_RATE),
        ttl: ttl.unwrap_or(DEFAULT_TTL),
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let time = milliseconds(text).map(Duration::from_millis);
    let time = time.filter(|time| (Duration::from_secs(1)..=MAX_TTL).contains(time));
    time.ok_or_else(|| {
        let shown = printable(text, 32);
        format!("`{shown}` is no time from 1s to 30d, such as \"1h\"")
    })
}
