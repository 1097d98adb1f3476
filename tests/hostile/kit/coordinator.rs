//! A real coordinator process on loopback, with the mesh key and the commands of its administrator.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meshd::model::address::MeshAddresses;
use meshd::model::{PublicKey, SigningKey};
use meshd::node::control::join::{JoinError, join};
use meshd::protocol::JoinToken;
use meshd::protocol::admin::{MeshState, NodeList, Submit, Submitted, TokenList};
use meshd::protocol::api::ApiError;
use meshd::protocol::join::{JoinRequest, JoinResponse};
use meshd::protocol::token::SpkiPin;
use meshd::protocol::url::CoordinatorUrl;
use meshd::records::Envelope;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{self, Draft};
use super::{Identity, Member, WAIT_TIMEOUT, identity};

/// Something that has the address of a coordinator and the pin of its TLS key.
pub(crate) trait At {
    fn at(&self) -> (SocketAddr, SpkiPin);
}

impl At for Coordinator {
    fn at(&self) -> (SocketAddr, SpkiPin) {
        (self.address(), self.pin())
    }
}

impl At for (SocketAddr, SpkiPin) {
    fn at(&self) -> (SocketAddr, SpkiPin) {
        *self
    }
}

/// A running coordinator process. Dropping the value kills the process.
pub(crate) struct Coordinator {
    process: Child,
    directory: tempfile::TempDir,
    port: u16,
    mesh_key: SigningKey,
    /// `None` until the coordinator has a mesh.
    state: Option<MeshState>,
}

/// A copy of a coordinator's state directory, made while the coordinator was stopped.
pub(crate) struct Snapshot(tempfile::TempDir);

impl Coordinator {
    /// Starts a coordinator and makes a mesh on it.
    pub(crate) fn start() -> Self {
        let mut coordinator = Self::prepare();
        coordinator.launch();
        coordinator.init();
        coordinator
    }

    /// Starts a coordinator on a copy of the state directory `state`. `mesh_key` is the key of the mesh in it.
    pub(crate) fn start_on(state: &Path, mesh_key: SigningKey) -> Self {
        let mut coordinator = Self::prepare();
        copy(state, &coordinator.state_directory());
        coordinator.mesh_key = mesh_key;
        coordinator.write_mesh_key();
        coordinator.launch();
        coordinator.state = Some(coordinator.mesh_state());
        coordinator
    }

    fn prepare() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("loopback")
            .port();
        let text = "[metrics]\nlisten = \"127.0.0.1:0\"\n";
        std::fs::write(directory.path().join("coordinator.toml"), text).expect("writable");
        // This process takes the place of the coordinator's until that one is started.
        let process = Command::new("true").spawn().expect("a program");
        let coordinator = Self {
            process,
            directory,
            port,
            mesh_key: SigningKey::from_seed(&identity::random()),
            state: None,
        };
        coordinator.write_mesh_key();
        coordinator
    }

    fn write_mesh_key(&self) {
        let path = self.directory.path().join("mesh.key");
        write_mesh_key(&path, &self.mesh_key);
    }

    fn init(&mut self) {
        let before = self.mesh_state();
        let addresses = MeshAddresses {
            prefix_v6: meshd::model::address::unique_local_prefix(&self.mesh_key.public()),
            ..before.configured_addresses
        };
        let urls: Vec<String> = before.urls.iter().map(ToString::to_string).collect();
        let mesh = record::mesh(&addresses).with("coordinators", urls);
        let submit = Submit {
            mesh_key: Some(self.mesh_key.public()),
            records: vec![mesh.signed_by(&self.mesh_key)],
        };
        let submitted: Result<Submitted, ApiError> = self.post("/v1/mesh", &submit);
        submitted.expect("a new mesh");
        self.state = Some(self.mesh_state());
    }

    fn launch(&mut self) {
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket());
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("writable");
        self.process = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"))
            .arg("--config")
            .arg(self.directory.path().join("coordinator.toml"))
            .arg("--state-dir")
            .arg(self.state_directory())
            .arg("--admin-socket")
            .arg(self.socket())
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.port))
            .arg("--public-url")
            .arg(format!("https://127.0.0.1:{}", self.port))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("it is built");
        let end = Instant::now() + WAIT_TIMEOUT;
        while UnixStream::connect(self.socket()).is_err() {
            assert!(
                Instant::now() < end,
                "the coordinator does not start: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the process, so that it writes nothing more, as at a loss of power.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Kills the coordinator and starts it again on its state directory.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Kills the coordinator, copies its state directory and starts it again.
    pub(crate) fn snapshot(&mut self) -> Snapshot {
        self.kill();
        let copied = tempfile::tempdir().expect("a temporary directory");
        copy(&self.state_directory(), copied.path());
        self.launch();
        Snapshot(copied)
    }

    /// Kills the coordinator, puts the state directory of the snapshot in the place of its own, and starts it, as when a virtual
    /// machine is put back to a snapshot.
    pub(crate) fn go_back(&mut self, snapshot: &Snapshot) {
        self.kill();
        std::fs::remove_dir_all(self.state_directory()).expect("its own directory");
        copy(snapshot.0.path(), &self.state_directory());
        self.launch();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) fn url(&self) -> CoordinatorUrl {
        let url = format!("https://127.0.0.1:{}", self.port);
        url.parse().expect("a URL")
    }

    pub(crate) fn pin(&self) -> SpkiPin {
        self.state.as_ref().expect("it has a mesh").pin
    }

    pub(crate) fn addresses(&self) -> MeshAddresses {
        let state = self.state.as_ref().expect("it has a mesh");
        state.mesh.as_ref().expect("it has a mesh").addresses
    }

    /// The mesh key, which only the administrator has.
    pub(crate) fn mesh_key(&self) -> &SigningKey {
        &self.mesh_key
    }

    pub(crate) fn state_directory(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// All that the coordinator has logged since its first start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The resident memory of the process in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a process has memory") * 1024
    }

    /// Runs `meshctl` of this version as the administrator.
    pub(crate) fn admin(&self, words: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(words)
            .env("MESH_ADMIN_SOCKET", self.socket())
            .env("MESH_KEY", self.directory.path().join("mesh.key"))
            .output()
            .expect("it is built")
    }

    /// Submits records as the administrator does. The coordinator accepts all of them or none.
    pub(crate) fn submit(&self, records: Vec<Envelope>) -> Result<u64, ApiError> {
        let submit = Submit {
            mesh_key: None,
            records,
        };
        self.post::<Submitted>("/v1/records", &submit)
            .map(|submitted| submitted.revision)
    }

    pub(crate) fn mesh_state(&self) -> MeshState {
        self.get("/v1/mesh").expect("a state")
    }

    pub(crate) fn nodes(&self) -> NodeList {
        self.get("/v1/nodes").expect("a list")
    }

    pub(crate) fn tokens(&self) -> TokenList {
        self.get("/v1/tokens").expect("a list")
    }

    pub(crate) fn has_node(&self, node: &PublicKey) -> bool {
        self.nodes().nodes.iter().any(|row| row.id == *node)
    }

    /// Makes a token for one node that is valid for an hour.
    pub(crate) fn token(&self) -> JoinToken {
        self.token_with(|draft| draft)
    }

    /// Makes a token for `uses` nodes.
    pub(crate) fn token_for(&self, uses: u32) -> JoinToken {
        self.token_with(|draft| draft.with("uses", uses))
    }

    /// Makes a token whose certificate `change` alters before the mesh key signs it.
    pub(crate) fn token_with(&self, change: impl FnOnce(Draft) -> Draft) -> JoinToken {
        let key = SigningKey::from_seed(&identity::random());
        let draft = change(record::token(key.public()));
        self.submit(vec![draft.signed_by(&self.mesh_key)])
            .expect("a token signed by the mesh key");
        self.word(key)
    }

    /// The join token of a token key, whether or not the coordinator holds its certificate.
    pub(crate) fn word(&self, key: SigningKey) -> JoinToken {
        JoinToken {
            urls: vec![self.url()],
            pin: self.pin(),
            mesh_key: self.mesh_key.public(),
            key,
        }
    }

    /// Revokes a node, as `meshctl node remove` does.
    pub(crate) fn remove_node(&self, node: PublicKey) {
        let revocation = record::revocation_of_node(node).signed_by(&self.mesh_key);
        self.submit(vec![revocation]).expect("a revocation");
    }

    /// Joins a new member with a token of its own, as an honest node does.
    pub(crate) async fn join(&self, name: &str) -> Member {
        let token = self.token();
        let joined = self.join_as(&Identity::new(), &token, name).await;
        joined.expect("an unspent token")
    }

    /// Joins with the keys of `identity` and with `token`.
    pub(crate) async fn join_as(
        &self,
        identity: &Identity,
        token: &JoinToken,
        name: &str,
    ) -> Result<Member, JoinError> {
        let draft = record::membership(token.key.public(), identity, name);
        self.join_with(identity, token, &draft).await
    }

    /// Joins with the membership `membership`, which the token's key signs as it is.
    pub(crate) async fn join_with(
        &self,
        identity: &Identity,
        token: &JoinToken,
        membership: &Draft,
    ) -> Result<Member, JoinError> {
        let membership = membership.signed_by(&token.key);
        let answer = self.join_by(identity, membership.clone()).await?;
        let value: serde_json::Value =
            serde_json::from_str(&membership.payload).expect("a membership");
        Ok(Member {
            identity: identity.clone(),
            name: value["name"].as_str().unwrap_or_default().to_owned(),
            token: token.clone(),
            membership,
            block: answer.block,
        })
    }

    /// Sends any envelope as the membership of a join.
    pub(crate) async fn join_by(
        &self,
        identity: &Identity,
        membership: Envelope,
    ) -> Result<JoinResponse, JoinError> {
        let request = JoinRequest::make(membership, identity.key());
        join(&[self.url()], self.pin(), &request).await
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        get(&self.socket(), path)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        post(&self.socket(), path, body)
    }
}

/// Sends a GET request to a coordinator's admin socket.
pub(crate) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ApiError> {
    ask(socket, &format!("GET {path} HTTP/1.1\r\n"), b"")
}

pub(crate) fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ApiError> {
    let body = serde_json::to_vec(body).expect("plain data");
    ask(socket, &format!("POST {path} HTTP/1.1\r\n"), &body)
}

/// Sends one request to an admin socket and parses the answer.
fn ask<T: DeserializeOwned>(socket: &Path, line: &str, body: &[u8]) -> Result<T, ApiError> {
    let mut socket = UnixStream::connect(socket).expect("it runs");
    socket
        .set_read_timeout(Some(WAIT_TIMEOUT))
        .expect("a socket");
    let head = format!(
        "{line}Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket
        .write_all(&[head.as_bytes(), body].concat())
        .expect("it reads");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("an answer");
    let text = String::from_utf8(answer).expect("JSON");
    let (head, body) = text.split_once("\r\n\r\n").expect("HTTP");
    if head.starts_with("HTTP/1.1 2") {
        return Ok(serde_json::from_str(body).expect("a document"));
    }
    Err(serde_json::from_str(body).expect("an error"))
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes the file from which `meshctl` reads the mesh key.
pub(crate) fn write_mesh_key(path: &Path, key: &SigningKey) {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .expect("writable");
    writeln!(file, "{}", PublicKey(*key.seed())).expect("writable");
}

/// Copies the files of a directory. Only their owner can read the copies.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for file in std::fs::read_dir(from).expect("a directory").flatten() {
        if file.file_type().is_ok_and(|kind| kind.is_file()) {
            let copy = to.join(file.file_name());
            std::fs::copy(file.path(), &copy).expect("writable");
            std::fs::set_permissions(copy, Permissions::from_mode(0o600)).expect("its owner");
        }
    }
    std::fs::set_permissions(to, Permissions::from_mode(0o700)).expect("its owner");
}
