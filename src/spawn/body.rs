//! Writes the documents for the engine. All of a container that the caller did not choose is written here, from the template and from
//! constants, so a field that is missing in a request has no default of the engine's that is weaker.

use serde_json::{Map, Value, json};

use super::ledger::Entry;
use super::template::{Network, OWN_LABELS, Template};
use super::wanted::Wanted;

/// The label with the id of the entry in the ledger.
pub const ID_LABEL: &str = "meshd.spawn";
/// Its value at networks.
pub const OF_NETWORK: &str = "network";

/// The body with which the engine creates the container of `entry` from the image with the id `image`.
#[must_use]
pub fn container(wanted: &Wanted, template: &Template, entry: &Entry, image: &str) -> Value {
    let (process, terminal) = (&wanted.process, &wanted.terminal);
    let mut body = json!({
        "Image": image,
        "Env": process.environment,
        "Labels": labels(wanted, entry),
        "Volumes": keys(&wanted.volumes),
        "ExposedPorts": keys(&wanted.exposed),
        "AttachStdin": terminal.attach.stdin,
        "AttachStdout": terminal.attach.stdout,
        "AttachStderr": terminal.attach.stderr,
        "Tty": terminal.tty,
        "OpenStdin": terminal.open_stdin,
        "StdinOnce": terminal.stdin_once,
        "NetworkDisabled": false,
        "HostConfig": host(wanted, template, entry),
    });
    let optional = [
        ("Cmd", process.command.as_ref().map(|words| json!(words))),
        (
            "Entrypoint",
            process.entry_point.as_ref().map(|words| json!(words)),
        ),
        (
            "WorkingDir",
            process.working_dir.as_ref().map(|path| json!(path)),
        ),
        (
            "StopSignal",
            process.stop_signal.as_ref().map(|signal| json!(signal)),
        ),
        ("StopTimeout", process.stop_timeout.map(|time| json!(time))),
        (
            "Hostname",
            wanted.host_name.as_ref().map(|name| json!(name)),
        ),
        ("User", template.user.map(|user| json!(user.to_string()))),
        ("NetworkingConfig", networking(wanted, template, entry)),
    ];
    if let Some(fields) = body.as_object_mut() {
        let present = optional
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        fields.extend(present);
    }
    body
}

fn labels(wanted: &Wanted, entry: &Entry) -> Map<String, Value> {
    let permitted = wanted.labels.iter();
    let permitted = permitted.filter(|(name, _)| !name.starts_with(OWN_LABELS));
    let mut labels: Map<String, Value> = permitted
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    labels.insert(ID_LABEL.to_owned(), json!(entry.id.to_string()));
    labels
}

fn host(wanted: &Wanted, template: &Template, entry: &Entry) -> Value {
    let limits = template.limits;
    let network = match wanted.has_network(template) {
        true => entry.network.as_str(),
        false => "none",
    };
    json!({
        "AutoRemove": wanted.auto_remove,
        "Binds": [],
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "CgroupParent": "",
        "CgroupnsMode": "private",
        "DeviceCgroupRules": [],
        "DeviceRequests": [],
        "Devices": [],
        "ExtraHosts": [],
        "GroupAdd": [],
        "Init": wanted.process.init,
        "IpcMode": "private",
        "Links": [],
        "Memory": limits.memory,
        // The same number permits no swap at all.
        "MemorySwap": limits.memory,
        "Mounts": [],
        "NanoCpus": limits.nano_cpus,
        "NetworkMode": network,
        "OomKillDisable": false,
        "OomScoreAdj": 0,
        "PidMode": "",
        "PidsLimit": limits.pids,
        "PortBindings": {},
        "Privileged": false,
        "PublishAllPorts": false,
        "ReadonlyRootfs": false,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "SecurityOpt": ["no-new-privileges"],
        "Sysctls": {},
        "Tmpfs": {},
        "UTSMode": "",
        "Ulimits": [],
        "UsernsMode": "",
        "VolumesFrom": [],
    })
}

/// The name of the container in its network, if the caller gave it one. The engine adds the name of its own.
fn networking(wanted: &Wanted, template: &Template, entry: &Entry) -> Option<Value> {
    let name = entry
        .name
        .as_ref()
        .filter(|_| wanted.has_network(template))?;
    let endpoint = json!({"Aliases": [name]});
    let endpoints = Map::from_iter([(entry.network.clone(), endpoint)]);
    Some(json!({"EndpointsConfig": endpoints}))
}

/// The body with which the engine creates the network of `entry`. None if its template has none.
#[must_use]
pub fn network(template: &Template, entry: &Entry) -> Option<Value> {
    (template.network == Network::Own).then(|| {
        json!({
            "Name": entry.network,
            "Driver": "bridge",
            "Attachable": false,
            "Internal": false,
            "Labels": {ID_LABEL: OF_NETWORK},
        })
    })
}

fn keys<'a>(names: impl IntoIterator<Item = &'a String>) -> Map<String, Value> {
    let names = names.into_iter();
    names.map(|name| (name.clone(), json!({}))).collect()
}
