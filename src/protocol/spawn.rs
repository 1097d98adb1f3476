//! The documents of the calls about spawned containers (`/v1/spawn`).

use serde::{Deserialize, Serialize};

use crate::model::time::UnixSeconds;
use crate::model::{ContainerId, Label};

/// A request to create a container from a template, and to start it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpawnRequest {
    /// The name of the template in meshd.toml.
    pub template: Label,
    /// The image, such as `alpine:3.20`. The template permits it.
    pub image: String,
    /// The words of the command. The default is that of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Variables as `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// A name that none of the caller's containers has. In the network of the container it leads to its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels as `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Paths of folders that are empty at the start and are removed with the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
}

/// A spawned container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnedContainer {
    /// By which the calls name it.
    pub id: String,
    /// The name that the caller gave. It is null if the caller gave none.
    pub name: Option<String>,
    pub template: Label,
    /// The image, as the caller named it.
    pub image: String,
    /// The id that the engine gave it.
    pub container: Option<ContainerId>,
    pub created_at: UnixSeconds,
    /// When the node removes it.
    pub expires_at: UnixSeconds,
}

/// A spawned container with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawned {
    /// The version of this document: 1.
    pub schema: u32,
    #[serde(flatten)]
    pub container: SpawnedContainer,
    /// What the engine says that it does, such as `running` or `exited`; `removed` if it does not exist any more.
    pub state: String,
    /// The exit code of its first process. It is null until this has ended.
    pub exit_code: Option<i64>,
}

/// The containers that a caller spawned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnedList {
    /// The version of this document: 1.
    pub schema: u32,
    pub containers: Vec<SpawnedContainer>,
}
