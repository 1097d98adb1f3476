//! Containers, images and commands as the engine describes them to the program that started them. Pure.
//!
//! [`super::api`] reads what meshd needs of all containers, whoever started them. These types have more of a container that meshd
//! started itself. As there, every field may be missing or null; only the ids have to be there.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::inspect::ContainerId;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Described {
    pub id: ContainerId,
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub created: String,
    #[serde(default, deserialize_with = "or_default", rename = "Image")]
    pub image_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub state: State,
    #[serde(default, deserialize_with = "or_default")]
    pub config: Config,
    #[serde(default, deserialize_with = "or_default", rename = "NetworkSettings")]
    pub network: NetworkSettings,
}

/// Whether a container runs, and how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct State {
    #[serde(deserialize_with = "or_default")]
    pub status: String,
    pub running: bool,
    pub exit_code: i64,
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    #[serde(deserialize_with = "or_default")]
    pub error: String,
    #[serde(deserialize_with = "or_default")]
    pub started_at: String,
    #[serde(deserialize_with = "or_default")]
    pub finished_at: String,
}

/// What a container runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub hostname: String,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
}

/// The networks of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkSettings {
    #[serde(deserialize_with = "or_default")]
    pub networks: BTreeMap<String, NetworkEnd>,
}

/// The end of a container in one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkEnd {
    #[serde(rename = "IPAddress", deserialize_with = "or_default")]
    pub address: String,
    #[serde(rename = "IPPrefixLen")]
    pub prefix: i64,
    #[serde(deserialize_with = "or_default")]
    pub gateway: String,
    #[serde(rename = "MacAddress", deserialize_with = "or_default")]
    pub mac: String,
}

/// A container in a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Labelled {
    pub id: ContainerId,
    #[serde(default, deserialize_with = "first", rename = "Names")]
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default", rename = "ImageID")]
    pub image_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub command: String,
    /// Seconds since 1970.
    #[serde(default, deserialize_with = "or_default")]
    pub created: i64,
    /// One word, such as `running`.
    #[serde(default, deserialize_with = "or_default")]
    pub state: String,
    /// For people, such as `Up 2 minutes`.
    #[serde(default, deserialize_with = "or_default")]
    pub status: String,
}

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageFound {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    #[serde(default, deserialize_with = "or_default", rename = "RepoTags")]
    pub tags: Vec<String>,
    /// Each is a repository, `@sha256:` and the digest of the manifest.
    #[serde(default, deserialize_with = "or_default", rename = "RepoDigests")]
    pub digests: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub size: u64,
    /// Seconds since 1970. The description of a single image has a text instead, which is read as 0.
    #[serde(default, deserialize_with = "whole_number")]
    pub created: i64,
}

/// A command in a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExecDescribed {
    #[serde(rename = "ContainerID")]
    pub container: ContainerId,
    #[serde(default, deserialize_with = "or_default")]
    pub running: bool,
    /// None while it runs.
    #[serde(default)]
    pub exit_code: Option<i64>,
    #[serde(default, deserialize_with = "or_default", rename = "ProcessConfig")]
    pub process: ExecProcess,
}

/// The process of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExecProcess {
    pub tty: bool,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: String,
    #[serde(deserialize_with = "or_default")]
    pub arguments: Vec<String>,
}

/// An event of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    pub id: ContainerId,
    /// Such as `start`, or `exec_start: ls`.
    pub action: String,
    pub exit_code: Option<String>,
    pub signal: Option<String>,
    /// Nanoseconds since 1970.
    pub time: i64,
}

/// The id of a command in a container: up to 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecId(ContainerId);

impl ExecId {
    /// Parses an id, which has the form of a container's. The result is safe as one segment of a path.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        ContainerId::parse(text).map(Self)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// Reads one line of the stream of events. None if it is not about a container.
///
/// # Errors
/// The line is no event.
pub(super) fn event(line: &[u8]) -> Result<Option<ContainerEvent>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Raw {
        #[serde(default, deserialize_with = "or_default")]
        r#type: String,
        #[serde(default, deserialize_with = "or_default")]
        action: String,
        #[serde(default, deserialize_with = "or_default")]
        actor: Actor,
        #[serde(default, deserialize_with = "or_default", rename = "timeNano")]
        time: i64,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Actor {
        #[serde(rename = "ID", deserialize_with = "or_default")]
        id: String,
        #[serde(rename = "Attributes", deserialize_with = "or_default")]
        attributes: Attributes,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Attributes {
        exit_code: Option<String>,
        signal: Option<String>,
    }
    let raw: Raw = serde_json::from_slice(line)?;
    let id = ContainerId::parse(&raw.actor.id).filter(|_| raw.r#type == "container");
    let attributes = raw.actor.attributes;
    Ok(id.map(|id| ContainerEvent {
        id,
        action: raw.action,
        exit_code: attributes.exit_code,
        signal: attributes.signal,
        time: raw.time,
    }))
}

/// Reads null as the default.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads the first of the names, without the slash before it.
fn first<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let names: Vec<String> = or_default(deserializer)?;
    let first = names.into_iter().next().unwrap_or_default();
    Ok(first.trim_start_matches('/').to_owned())
}

fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_i64().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> ContainerId {
        ContainerId::parse(&digit.repeat(64)).expect("hexadecimal digits")
    }

    #[test]
    fn a_container_is_read_and_null_and_missing_fields_are_empty() {
        let text = format!(
            r#"{{"Id":"{}","Name":"/x","Image":"sha256:1","State":{{"Status":"exited","ExitCode":3,"OOMKilled":true,"Health":null}},
            "Config":{{"Cmd":null,"Env":["A=b"],"Tty":true,"Labels":null}},"NetworkSettings":{{"Networks":{{"n":{{"IPAddress":"172.18.0.2","IPPrefixLen":16}}}}}},"HostConfig":{{}}}}"#,
            id("a")
        );
        let read: Described = serde_json::from_str(&text).expect("a description");
        assert_eq!((read.id, read.name.as_str()), (id("a"), "/x"));
        assert_eq!((read.state.exit_code, read.state.oom_killed), (3, true));
        assert_eq!(
            (read.config.env.as_slice(), read.config.tty),
            (&["A=b".to_owned()][..], true)
        );
        assert_eq!(read.network.networks["n"].address, "172.18.0.2");
        let bare = format!(r#"{{"Id":"{}","State":null}}"#, id("b"));
        assert!(serde_json::from_str::<Described>(&bare).is_ok());
        for wrong in [r#"{"Id":"x/../y"}"#, r#"{"Name":"/x"}"#, "[]"] {
            assert!(serde_json::from_str::<Described>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_image_of_a_list_and_one_by_itself_are_read() {
        let listed = r#"{"Id":"sha256:1","RepoTags":null,"RepoDigests":["a@sha256:2"],"Size":7,"Created":9}"#;
        let listed: ImageFound = serde_json::from_str(listed).expect("an image");
        assert_eq!((listed.tags.len(), listed.created), (0, 9));
        let single =
            r#"{"Id":"sha256:1","RepoTags":["box:latest"],"Created":"2026-01-01T00:00:00Z"}"#;
        let single: ImageFound = serde_json::from_str(single).expect("an image");
        assert_eq!((single.tags[0].as_str(), single.created), ("box:latest", 0));
    }

    #[test]
    fn events_of_containers_are_read_and_others_are_none() {
        let of = |kind: &str| {
            format!(
                r#"{{"Type":"{kind}","Action":"die","Actor":{{"ID":"{}","Attributes":{{"exitCode":"3","name":"x"}}}},"timeNano":5}}"#,
                id("a")
            )
        };
        let read = event(of("container").as_bytes()).expect("an event");
        let read = read.expect("of a container");
        assert_eq!(
            (read.id, read.action.as_str(), read.time),
            (id("a"), "die", 5)
        );
        assert_eq!(read.exit_code.as_deref(), Some("3"));
        assert_eq!(event(of("network").as_bytes()).expect("an event"), None);
        assert!(event(b"x").is_err());
    }
}
