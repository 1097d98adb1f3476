//! Reads the body with which Docker's programs create a container (`POST /containers/create`).
//!
//! Each field is one of three kinds. The caller may choose some of them, within its template. Some may have the value that the template
//! forces in any case. All others must ask for nothing, also those that later versions of Docker will have. Nothing of the body reaches
//! the engine: [`super::body`] writes another one from the result.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{Fields, Value};
use super::image::ImageName;
use super::owner::Granted;
use super::refused::Refused;
use super::template::{Network, Template};
use super::wanted::{Attach, Names, Process, Terminal, Wanted};

/// The fields of the body, for messages.
const NAMES: Names = Names {
    command: "Cmd",
    entry_point: "Entrypoint",
    environment: "Env",
    working_dir: "WorkingDir",
    labels: "Labels",
    volumes: "Volumes",
};
/// Why other fields are refused.
const NOT_OURS: &str = "no template permits this field; leave it out";
/// The words for the network that a container gets without being asked.
const ANY_NETWORK: [&str; 2] = ["default", "bridge"];
/// The longest grace that a caller may set for the stop signal, in seconds.
const MAX_STOP_TIMEOUT: f64 = 600.0;

/// Reads a body for a caller that may use the templates `granted`. The template is the first one that permits the image.
///
/// # Errors
/// The body cannot be read, no template permits the image, or a field asks for more than the template permits.
pub fn read(body: &[u8], granted: &[Granted]) -> Result<(Granted, Wanted), Refused> {
    let mut fields = Fields::parse(body)?;
    let image = fields.text("Image")?.unwrap_or_default();
    let image = ImageName::parse(&image)?;
    let granted = by_image(&image, granted)?;
    let wanted = read_fields(fields, image, &granted.template)?;
    wanted.check(&granted.template, &NAMES)?;
    Ok((granted.clone(), wanted))
}

/// The first template that permits an image.
///
/// # Errors
/// None does.
pub fn by_image<'a>(image: &ImageName, granted: &'a [Granted]) -> Result<&'a Granted, Refused> {
    let found = granted
        .iter()
        .find(|granted| granted.template.permits_image(image));
    found.ok_or_else(|| {
        let images = granted.iter().flat_map(|granted| &granted.template.images);
        let images = images.map(ToString::to_string).collect();
        Refused::OtherImage(image.shown(), images)
    })
}

fn read_fields(
    mut fields: Fields,
    image: ImageName,
    template: &Template,
) -> Result<Wanted, Refused> {
    let mut wanted = Wanted::of(image);
    wanted.process = process(&mut fields)?;
    wanted.terminal = Terminal {
        attach: Attach {
            stdin: fields.flag("AttachStdin")?,
            stdout: fields.flag("AttachStdout")?,
            stderr: fields.flag("AttachStderr")?,
        },
        tty: fields.flag("Tty")?,
        open_stdin: fields.flag("OpenStdin")?,
        stdin_once: fields.flag("StdinOnce")?,
    };
    wanted.labels = labels(&mut fields)?;
    wanted.volumes = keys(&mut fields, "Volumes")?;
    wanted.exposed = keys(&mut fields, "ExposedPorts")?;
    wanted.host_name = fields.text("Hostname")?;
    forced_user(&mut fields, template)?;
    let has_none = fields.flag("NetworkDisabled")?;
    only_neutral(fields.object("Healthcheck")?)?;
    let mut host = fields.object("HostConfig")?;
    wanted.is_isolated = network_mode(&mut host, template)? || has_none;
    wanted.auto_remove = host.flag("AutoRemove")?;
    wanted.process.init = host.flag("Init")?;
    forced_limits(&mut host, template)?;
    forced_security(&mut host)?;
    host_defaults(&mut host)?;
    only_neutral(host)?;
    networking(&mut fields)?;
    only_neutral(fields)?;
    Ok(wanted)
}

fn process(fields: &mut Fields) -> Result<Process, Refused> {
    let timeout = fields.number("StopTimeout")?;
    let is_whole =
        |seconds: &f64| (0.0..=MAX_STOP_TIMEOUT).contains(seconds) && seconds.fract() == 0.0;
    if !timeout.as_ref().is_none_or(is_whole) {
        let right = format!("write whole seconds, {MAX_STOP_TIMEOUT} at most");
        return Err(fields.refuse("StopTimeout", right));
    }
    Ok(Process {
        command: fields.words("Cmd")?,
        entry_point: fields.words("Entrypoint")?,
        environment: fields.texts("Env")?.unwrap_or_default(),
        working_dir: fields.text("WorkingDir")?,
        init: false,
        stop_signal: fields.text("StopSignal")?,
        stop_timeout: timeout.map(|seconds| seconds as u32),
    })
}

fn labels(fields: &mut Fields) -> Result<BTreeMap<String, String>, Refused> {
    let mut labels = BTreeMap::new();
    for (name, value) in fields.map("Labels")? {
        let Value::Text(value) = value else {
            return Err(fields.refuse(&format!("Labels.{name}"), "write a text"));
        };
        labels.insert(name, value);
    }
    Ok(labels)
}

/// Takes an object whose keys alone have a meaning.
fn keys(fields: &mut Fields, name: &str) -> Result<BTreeSet<String>, Refused> {
    let map = fields.map(name)?;
    let asking = map.iter().find(|(_, value)| !value.is_neutral());
    match asking {
        Some((key, _)) => Err(fields.refuse(&format!("{name}.{key}"), "write {} as its value")),
        None => Ok(map.into_keys().collect()),
    }
}

fn forced_user(fields: &mut Fields, template: &Template) -> Result<(), Refused> {
    let Some(user) = fields.text("User")? else {
        return Ok(());
    };
    match template.user {
        Some(forced) if forced.to_string() == user => Ok(()),
        Some(forced) => Err(fields.refuse("User", format!("the template says {forced}"))),
        None => Err(fields.refuse("User", "the image decides; leave it out")),
    }
}

/// Whether the caller wants no network.
fn network_mode(host: &mut Fields, template: &Template) -> Result<bool, Refused> {
    let mode = host.text("NetworkMode")?;
    match mode.as_deref() {
        None => Ok(false),
        Some("none") => Ok(true),
        Some(mode) if ANY_NETWORK.contains(&mode) => Ok(false),
        Some(_) => {
            let right = match template.network {
                Network::Own => {
                    "the container gets a network of its own; leave it out, or write none"
                }
                Network::None => "the template has no network; leave it out, or write none",
            };
            Err(host.refuse("NetworkMode", right))
        }
    }
}

/// The limits may be given if they are those of the template.
fn forced_limits(host: &mut Fields, template: &Template) -> Result<(), Refused> {
    let limits = template.limits;
    let forced = [
        ("Memory", limits.memory as f64),
        ("MemorySwap", limits.memory as f64),
        ("NanoCpus", limits.nano_cpus as f64),
        ("PidsLimit", f64::from(limits.pids)),
    ];
    for (name, value) in forced {
        let number = host.number(name)?;
        if number.is_some_and(|number| number != value) {
            return Err(host.refuse(name, format!("the template says {value}; leave it out")));
        }
    }
    Ok(())
}

/// The settings that make a container weaker may be given if they are those of each spawned container.
fn forced_security(host: &mut Fields) -> Result<(), Refused> {
    let all = |words: &[String]| words.iter().all(|word| word.eq_ignore_ascii_case("ALL"));
    let no_new = |words: &[String]| {
        let is_it = |word: &String| {
            matches!(
                word.as_str(),
                "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true"
            )
        };
        words.iter().all(is_it)
    };
    if host.texts("CapDrop")?.is_some_and(|words| !all(&words)) {
        return Err(host.refuse("CapDrop", "all capabilities are dropped; leave it out"));
    }
    if host
        .texts("SecurityOpt")?
        .is_some_and(|words| !no_new(&words))
    {
        return Err(host.refuse("SecurityOpt", "only no-new-privileges is possible"));
    }
    for name in ["IpcMode", "CgroupnsMode"] {
        if host.text(name)?.is_some_and(|mode| mode != "private") {
            return Err(host.refuse(name, "it is private; leave it out"));
        }
    }
    Ok(())
}

/// The fields with which Docker's programs write that they want nothing special.
fn host_defaults(host: &mut Fields) -> Result<(), Refused> {
    let mut restart = host.object("RestartPolicy")?;
    if restart.text("Name")?.is_some_and(|name| name != "no") {
        return Err(restart.refuse("Name", "a spawned container is not restarted; write no"));
    }
    only_neutral(restart)?;
    only_neutral(host.object("LogConfig")?)?;
    if host
        .text("Isolation")?
        .is_some_and(|mode| mode != "default")
    {
        return Err(host.refuse("Isolation", NOT_OURS));
    }
    // Docker's command line sends -1, which leaves it to the machine.
    if host.number("MemorySwappiness")?.is_some_and(|n| n != -1.0) {
        return Err(host.refuse("MemorySwappiness", NOT_OURS));
    }
    // The size of the caller's terminal asks for nothing that its template could refuse. It is left out.
    let size = host.take("ConsoleSize");
    let is_number = |value: &Value| matches!(value, Value::Number(_));
    match size {
        None => Ok(()),
        Some(Value::List(sizes)) if sizes.len() == 2 && sizes.iter().all(is_number) => Ok(()),
        Some(_) => Err(host.refuse("ConsoleSize", "write two numbers")),
    }
}

/// The settings of networks. The only ones are those of the network that a container gets without being asked, and they ask for nothing.
fn networking(fields: &mut Fields) -> Result<(), Refused> {
    let mut networking = fields.object("NetworkingConfig")?;
    let mut endpoints = networking.object("EndpointsConfig")?;
    for name in endpoints.names() {
        if !ANY_NETWORK.contains(&name.as_str()) && name != "none" {
            let right = "the container gets a network of its own; leave it out";
            return Err(endpoints.refuse(&name, right));
        }
        only_neutral(endpoints.object(&name)?)?;
    }
    only_neutral(networking)
}

fn only_neutral(fields: Fields) -> Result<(), Refused> {
    fields.finish(NOT_OURS)
}

#[cfg(test)]
mod tests;
