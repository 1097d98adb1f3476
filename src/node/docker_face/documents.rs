//! The documents that the face of Docker's API answers with. Pure.
//!
//! Each is written anew from the fields that are listed here, so that nothing of the host that a later engine adds to its answers reaches
//! a caller.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::routes::{NEWEST_MINOR, OLDEST_MINOR};
use crate::containers::control::{
    Config, ContainerEvent, Described, ExecDescribed, ImageFound, Labelled, NetworkEnd, State,
};

/// A container as its caller knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// The name that the caller gave it, or one that is as good.
    pub(super) name: String,
    /// The image that the caller asked for.
    pub(super) image: String,
}

/// The names of an image that the caller may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<String>,
}

/// The newest version of Docker's API that is spoken, as texts have it.
pub(super) fn newest_version() -> String {
    format!("1.{NEWEST_MINOR}")
}

/// The program that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) version: &'static str,
    /// The architecture of the machine, as Rust names it.
    pub(super) architecture: &'static str,
}

impl Program {
    /// The name of the architecture in Docker.
    fn docker_architecture(self) -> &'static str {
        match self.architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }
}

/// The answer to `GET /version`.
pub(super) fn version(program: Program) -> Value {
    let api = newest_version();
    let oldest = format!("1.{OLDEST_MINOR}");
    json!({
        "Platform": {"Name": "meshd"},
        "Components": [{"Name": "Engine", "Version": program.version, "Details": {"ApiVersion": api, "MinAPIVersion": oldest}}],
        "Version": program.version,
        "ApiVersion": api,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": program.docker_architecture(),
        "KernelVersion": "",
        "BuildTime": "",
    })
}

/// The answer to `GET /info`. It says nothing about the host: its numbers are those of the caller's containers.
pub(super) fn info(program: Program, containers: usize, running: usize) -> Value {
    json!({
        "ID": "meshd",
        "Name": "meshd",
        "ServerVersion": program.version,
        "Containers": containers,
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": containers.saturating_sub(running),
        "Images": 0,
        "Driver": "",
        "DriverStatus": [],
        "Plugins": {"Volume": [], "Network": [], "Authorization": [], "Log": []},
        "OperatingSystem": "meshd",
        "OSType": "linux",
        "Architecture": program.architecture,
        "NCPU": 0,
        "MemTotal": 0,
        "IndexServerAddress": "",
        "RegistryConfig": {"InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": []},
        "Swarm": {"LocalNodeState": "inactive"},
        "Runtimes": {},
        "DefaultRuntime": "",
        "SecurityOptions": ["name=no-new-privileges"],
        "Labels": [],
        "Warnings": [],
    })
}

/// The description of a container.
pub(super) fn container(described: &Described, shown: &Shown) -> Value {
    let config = &described.config;
    let mut words = config.entrypoint.iter().chain(&config.cmd);
    let program = words.next().cloned().unwrap_or_default();
    let arguments: Vec<&String> = words.collect();
    json!({
        "Id": described.id,
        "Name": format!("/{}", shown.name),
        "Created": described.created,
        "Path": program,
        "Args": arguments,
        "Image": described.image_id,
        "State": state_of(&described.state),
        "RestartCount": 0,
        "Driver": "",
        "Platform": "linux",
        "HostConfig": {
            "NetworkMode": "default",
            "Privileged": false,
            "Binds": null,
            "LogConfig": {"Type": "json-file", "Config": {}},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        },
        "Mounts": [],
        "Config": config_of(config, shown),
        "NetworkSettings": network_settings(&described.network.networks),
    })
}

fn state_of(state: &State) -> Value {
    json!({
        "Status": state.status,
        "Running": state.running,
        "Paused": false,
        "Restarting": false,
        "Dead": false,
        "OOMKilled": state.oom_killed,
        "Pid": 0,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started_at,
        "FinishedAt": state.finished_at,
    })
}

fn config_of(config: &Config, shown: &Shown) -> Value {
    json!({
        "Hostname": config.hostname,
        "Domainname": "",
        "User": config.user,
        "AttachStdin": config.attach_stdin,
        "AttachStdout": config.attach_stdout,
        "AttachStderr": config.attach_stderr,
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": config.stdin_once,
        "Env": config.env,
        "Cmd": config.cmd,
        "Entrypoint": config.entrypoint,
        "Image": shown.image,
        "WorkingDir": config.working_dir,
        "Volumes": null,
        "OnBuild": null,
        "Labels": config.labels,
    })
}

fn network_settings(networks: &BTreeMap<String, NetworkEnd>) -> Value {
    let end = |end: &NetworkEnd| {
        json!({
            "IPAddress": end.address,
            "IPPrefixLen": end.prefix,
            "Gateway": end.gateway,
            "MacAddress": end.mac,
            "Aliases": null,
            "Links": null,
        })
    };
    let ends: Map<String, Value> = networks
        .iter()
        .map(|(name, network)| (name.clone(), end(network)))
        .collect();
    let first = networks.values().next().cloned().unwrap_or_default();
    json!({
        "IPAddress": first.address,
        "IPPrefixLen": first.prefix,
        "Gateway": first.gateway,
        "MacAddress": first.mac,
        "Ports": {},
        "Networks": ends,
    })
}

/// A row of a list of containers.
pub(super) fn row(listed: &Labelled, shown: &Shown) -> Value {
    json!({
        "Id": listed.id,
        "Names": [format!("/{}", shown.name)],
        "Image": shown.image,
        "ImageID": listed.image_id,
        "Command": listed.command,
        "Created": listed.created,
        "State": listed.state,
        "Status": listed.status,
        "Labels": listed.labels,
        "Ports": [],
        "Mounts": [],
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {"Networks": {}},
    })
}

/// The description of a command.
pub(super) fn exec(id: &str, described: &ExecDescribed) -> Value {
    let process = &described.process;
    json!({
        "ID": id,
        "ContainerID": described.container,
        "Running": described.running,
        "ExitCode": described.exit_code,
        "Pid": 0,
        "CanRemove": false,
        "DetachKeys": "",
        "OpenStdin": false,
        "OpenStdout": true,
        "OpenStderr": true,
        "ProcessConfig": {
            "entrypoint": process.entrypoint,
            "arguments": process.arguments,
            "tty": process.tty,
            "privileged": false,
        },
    })
}

/// The description of an image.
pub(super) fn image(program: Program, found: &ImageFound, names: &Names) -> Value {
    json!({
        "Id": found.id,
        "RepoTags": names.tags,
        "RepoDigests": names.digests,
        "Created": "",
        "Size": found.size,
        "Os": "linux",
        "Architecture": program.docker_architecture(),
        "Config": {},
    })
}

/// A row of a list of images.
pub(super) fn image_row(found: &ImageFound, names: &Names) -> Value {
    json!({
        "Id": found.id,
        "ParentId": "",
        "RepoTags": names.tags,
        "RepoDigests": names.digests,
        "Created": found.created,
        "Size": found.size,
        "SharedSize": -1,
        "Containers": -1,
        "Labels": {},
    })
}

/// An event of a container.
pub(super) fn event(event: &ContainerEvent, shown: &Shown) -> Value {
    let mut attributes = json!({"name": shown.name, "image": shown.image});
    for (key, value) in [("exitCode", &event.exit_code), ("signal", &event.signal)] {
        if let Some(value) = value
            && let Some(attributes) = attributes.as_object_mut()
        {
            attributes.insert(key.to_owned(), json!(value));
        }
    }
    json!({
        "Type": "container",
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": attributes},
        "scope": "local",
        "status": event.action,
        "id": event.id,
        "from": shown.image,
        "time": event.time / 1_000_000_000,
        "timeNano": event.time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn shown() -> Shown {
        Shown {
            name: "job".into(),
            image: "alpine:3.20".into(),
        }
    }

    #[test]
    fn the_description_of_a_container_says_nothing_about_the_host() {
        let text = format!(
            r#"{{"Id":"{ID}","Name":"/meshd-ci-0-job","Image":"sha256:1","ResolvConfPath":"/var/lib/secret","LogPath":"/var/lib/secret",
            "GraphDriver":{{"Data":{{"UpperDir":"/var/lib/secret"}}}},"HostConfig":{{"CgroupParent":"secret"}},"Later":"secret",
            "State":{{"Status":"running","Running":true,"Pid":4711}},"Config":{{"Cmd":["-c","x"],"Entrypoint":["sh"],"Tty":true}}}}"#
        );
        let described: Described = serde_json::from_str(&text).expect("a description");
        let document = container(&described, &shown());
        assert!(!document.to_string().contains("secret"), "{document}");
        assert_eq!(document["State"]["Pid"], 0);
        assert_eq!(document["Name"], "/job");
        assert_eq!(document["Config"]["Image"], "alpine:3.20");
        assert_eq!(document["Config"]["Tty"], true);
        assert_eq!(document["Path"], "sh");
        assert_eq!(document["Args"], json!(["-c", "x"]));
    }

    #[test]
    fn an_event_has_the_names_that_the_caller_knows() {
        let happened = ContainerEvent {
            id: crate::model::ContainerId::parse(ID).expect("hexadecimal digits"),
            action: "die".into(),
            exit_code: Some("3".into()),
            signal: None,
            time: 1_800_000_000_000_000_007,
        };
        let document = event(&happened, &shown());
        let attributes = json!({"name": "job", "image": "alpine:3.20", "exitCode": "3"});
        assert_eq!(document["Actor"]["Attributes"], attributes);
        assert_eq!(document["time"], 1_800_000_000);
    }

    #[test]
    fn the_version_is_one_that_every_client_accepts() {
        let program = Program {
            version: "0.1.0",
            architecture: "x86_64",
        };
        let document = version(program);
        assert_eq!(document["ApiVersion"], "1.51");
        assert_eq!(document["MinAPIVersion"], "1.24");
        assert_eq!(document["Arch"], "amd64");
    }
}
