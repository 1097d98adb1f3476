//! A coordinator and nodes, each on a host of its own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use meshd::testbed::{Host, Running, World};

use crate::control::{ADMIN_SOCKET, SOCKET, meshctl_at, wait_for};

/// The configuration of a node.
const CONFIG: &str = "/run/meshd.toml";

/// A mesh, to which nodes are added.
pub(crate) struct Mesh<'a> {
    world: &'a World,
    /// The directory of the programs.
    programs: PathBuf,
    logs: tempfile::TempDir,
    _coordinator: Running,
    pub(crate) coordinator_host: Host,
}

/// A node of a mesh.
pub(crate) struct Member {
    pub(crate) daemon: Running,
    pub(crate) host: Host,
    /// Its address in the mesh.
    pub(crate) address: Ipv4Addr,
}

impl<'a> Mesh<'a> {
    /// Starts a coordinator of the programs in this directory.
    pub(crate) fn start(world: &'a World, programs: &Path) -> Self {
        let logs = tempfile::tempdir().expect("a temporary directory");
        let host = world.host("coordinator").expect("a host");
        let program = programs.join("mesh-coordinator");
        let mut command = host.command(&program.to_string_lossy()).expect("a host");
        command.args(["--state-dir", "/run/state", "--admin-socket", ADMIN_SOCKET]);
        let started = host.start(&mut command, &logs.path().join("coordinator"));
        let mesh = Self {
            world,
            programs: programs.to_owned(),
            logs,
            _coordinator: started.expect("it is built"),
            coordinator_host: host,
        };
        wait_for(&mesh.coordinator_host, ADMIN_SOCKET);
        mesh.meshctl(&mesh.coordinator_host, &["init"]);
        mesh
    }

    /// Starts a node with this configuration, and lets it join.
    pub(crate) fn add(&self, name: &str, configuration: &str) -> Member {
        let host = self.world.host(name).expect("a host");
        std::fs::write(host.path(CONFIG), configuration).expect("its own file system");
        let program = self.programs.join("meshd");
        let mut command = host.command(&program.to_string_lossy()).expect("a host");
        command.args(["--config", CONFIG, "--state-dir", "/run/state"]);
        command.args(["--socket", SOCKET]);
        let started = host.start(&mut command, &self.logs.path().join(name));
        let daemon = started.expect("it is built");
        wait_for(&host, SOCKET);
        self.meshctl(&host, &["join", &self.token(1)]);
        let status = self.meshctl(&host, &["status", "--json"]);
        // The status of an earlier build may have other fields than this one.
        let status: serde_json::Value = serde_json::from_str(&status).expect("a document");
        let address = status["node"]["address_v4"].as_str();
        let address = address.and_then(|text| text.parse().ok());
        Member {
            daemon,
            host,
            address: address.expect("it has joined"),
        }
    }

    /// A token for so many nodes.
    pub(crate) fn token(&self, uses: usize) -> String {
        let uses = uses.to_string();
        let token = self.meshctl(
            &self.coordinator_host,
            &["token", "create", "--uses", &uses],
        );
        token.trim().to_owned()
    }

    /// Runs the meshctl of these programs on a host; gives what it prints.
    fn meshctl(&self, host: &Host, arguments: &[&str]) -> String {
        let program = self.programs.join("meshctl");
        meshctl_at(&program.to_string_lossy(), host, arguments)
    }
}
