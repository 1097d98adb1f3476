//! Docker's API of a node, for callers of the mesh: the docker command line of another node creates containers by a template, and gets
//! nothing beyond it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::hosts::Hosts;

/// The node whose engine runs the containers, and the node of the caller.
const ENGINE: usize = 0;
const CALLER: usize = 1;
/// The port of the API.
const PORT: u16 = 7447;
/// The limits of the template below: 64 MiB, half a processor, 64 processes.
const MEMORY: u64 = 64 << 20;
const NANO_CPUS: u64 = 500_000_000;
const PIDS: u64 = 64;
const CONFIG: &str = r#"
[api]
enabled = true

[[spawn]]
name = "job"
from = ["runner"]
images = ["box:latest"]
command = true
environment = true
volumes = ["scratch"]
memory = "64m"
cpus = 0.5
pids = 64
max = 32
memory_total = "4g"
rate = "1000/s"
ttl = "1h"
network = "own"
labels = ["job"]
"#;

/// Where the clients of Docker on the caller's node have their configuration.
const CLIENT_CONFIG: &str = "/run/docker-config";

struct Spawning {
    hosts: Hosts,
    address: SocketAddr,
    token: String,
}

impl Spawning {
    /// Two nodes that reach each other, of which the first serves Docker's API to the second. None where this is not possible.
    fn start() -> Option<Self> {
        if std::env::var("MESHD_LAB_ENGINE").is_ok_and(|engine| engine == "podman") {
            meshd::testbed::skip_test("the client of Podman does not speak to Docker's API");
            return None;
        }
        let mut hosts = Hosts::start(2)?;
        hosts.configure(ENGINE, CONFIG);
        for n in [ENGINE, CALLER] {
            hosts.join(n);
        }
        hosts.wait_for_peers();
        let address = SocketAddr::from((hosts.node(ENGINE), PORT));
        let create = [
            "api-token",
            "create",
            "--name",
            "ci",
            "--scope",
            "spawn:job",
        ];
        let token = hosts.meshctl(&hosts.outside, &create);
        let token = token.trim().to_owned();
        let header = format!("Bearer {token}");
        let config = json!({"HttpHeaders": {"Authorization": header}});
        let folder = hosts.nodes[CALLER].host().path(CLIENT_CONFIG);
        std::fs::create_dir_all(&folder).expect("its own file system");
        let file = folder.join("config.json");
        std::fs::write(file, config.to_string()).expect("its own file system");
        let spawning = Self {
            hosts,
            address,
            token,
        };
        spawning.hosts.wait_until("the node serves the API", || {
            spawning.request("GET", "/_ping", "").0 == 200
        });
        Some(spawning)
    }

    /// Sends a request from the caller's node. Returns the status and the body; 0 if there is no answer.
    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let caller = self.hosts.nodes[CALLER].host();
        let sent = caller.inside(|| send(self.address, &self.token, method, path, body));
        let answer = sent.expect("a namespace").unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (status.unwrap_or_default(), body.to_owned())
    }

    /// The docker command line on the caller's node, with the API of the first one as its engine.
    fn client(&self, words: &[&str]) -> Command {
        let host = self.hosts.nodes[CALLER].host();
        let mut command = host.command("env").expect("a host");
        command.arg(format!("DOCKER_HOST=tcp://{}", self.address));
        command.arg(format!("DOCKER_CONFIG={CLIENT_CONFIG}"));
        command.arg("docker").args(words);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn output(&self, words: &[&str], input: &str) -> Output {
        let mut child = self.client(words).spawn().expect("a program");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A command that reads nothing may have ended already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("a program")
    }

    /// Runs the docker command line on the caller's node, and it must succeed.
    fn docker(&self, words: &[&str]) -> String {
        let output = self.output(words, "");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// Runs the docker command line on the caller's node, and it must fail. Returns what it says.
    fn refused(&self, words: &[&str]) -> String {
        let output = self.output(words, "");
        assert!(!output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Prepares a command in a container at the engine itself. Returns its id.
    fn prepare(&self, id: &str) -> String {
        let socket = self.hosts.nodes[ENGINE].host().path("/run/docker.sock");
        let mut stream = UnixStream::connect(socket).expect("the engine listens");
        let body = r#"{"Cmd":["id"],"AttachStdout":true}"#;
        let length = body.len();
        write!(
            stream,
            "POST /containers/{id}/exec HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("the engine reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let created: Value = serde_json::from_str(body).expect("a document");
        created["Id"].as_str().expect("an id").to_owned()
    }

    /// What the engine itself says about a container.
    fn inspect(&self, id: &str) -> Value {
        let text = self.hosts.docker(ENGINE, &["inspect", id]);
        let list: Vec<Value> = serde_json::from_str(&text).expect("a list");
        list.into_iter().next().expect("one container")
    }
}

/// Sends one request, and reads to the end of the connection.
fn send(
    address: SocketAddr,
    token: &str,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<String> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(120)))?;
    let length = body.len();
    write!(
        tcp,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn the_docker_command_line_runs_follows_enters_and_removes_its_containers() {
    let Some(spawning) = Spawning::start() else {
        return;
    };
    let docker = |words: &[&str]| spawning.docker(words);
    let version = docker(&["version", "--format", "{{.Server.Version}}"]);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));

    // In the foreground: the output, the input and the exit code pass.
    let output = docker(&["run", "--rm", "box", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(output, "out");
    let echoed = spawning.output(&["run", "--rm", "-i", "box", "cat"], "in\n");
    assert_eq!(
        String::from_utf8_lossy(&echoed.stdout),
        "in\n",
        "{echoed:?}"
    );
    let failed = spawning.output(&["run", "--rm", "box", "sh", "-c", "exit 7"], "");
    assert_eq!(failed.status.code(), Some(7), "{failed:?}");

    // In the background.
    let start = [
        "run", "-d", "--name", "web", "--label", "job=1", "-e", "A=b", "box",
    ];
    let program = ["sh", "-c", "echo $A; exec sleep 600"];
    let id = docker(&[&start[..], &program].concat());
    let listed = docker(&["ps", "--format", "{{.Names}} {{.Image}}"]);
    assert!(listed.starts_with("web box"), "{listed}");
    assert_eq!(
        docker(&["ps", "-q", "--no-trunc", "--filter", "label=job=1"]),
        id
    );
    assert_eq!(docker(&["ps", "-q", "--filter", "label=job=2"]), "");
    let status = [
        "inspect",
        "-f",
        "{{.State.Status}} {{.Name}} {{.Config.Image}}",
        "web",
    ];
    let status = docker(&status);
    assert!(status.starts_with("running /web box"), "{status}");
    spawning
        .hosts
        .wait_until("its output is there", || docker(&["logs", "web"]) == "b");
    assert_eq!(docker(&["exec", "web", "sh", "-c", "echo there"]), "there");
    let given = spawning.output(&["exec", "-i", "web", "cat"], "in\n");
    assert_eq!(String::from_utf8_lossy(&given.stdout), "in\n", "{given:?}");
    let code = spawning.output(&["exec", "web", "sh", "-c", "exit 3"], "");
    assert_eq!(code.status.code(), Some(3), "{code:?}");
    let archive = docker(&["cp", "web:/etc/passwd", "-"]);
    assert!(archive.contains("root:x:0:0"), "{archive}");

    // The template holds.
    assert_template(&spawning.inspect(&id));

    // It ends, and what waits for it learns that.
    let mut waiting = spawning.client(&["wait", "web"]);
    let waiting = waiting.spawn().expect("a program");
    assert!(spawning.refused(&["rm", "web"]).contains("with force"));
    docker(&["kill", "web"]);
    let waited = waiting.wait_with_output().expect("a program");
    assert_eq!(String::from_utf8_lossy(&waited.stdout), "137\n");
    assert_eq!(docker(&["logs", "--follow", "web"]), "b");
    let events = [
        "events",
        "--since",
        "1",
        "--until",
        "0s",
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ];
    // An event of the present second is listed in the next one.
    spawning.hosts.wait_until("its events are listed", || {
        let listed = docker(&events);
        listed.contains("start web") && listed.contains("die web")
    });
    docker(&["rm", "web"]);
    assert_eq!(docker(&["ps", "-aq"]), "");

    // Images are those of the template.
    assert_eq!(
        docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]),
        "box:latest"
    );
    docker(&["pull", "box:latest"]);
    let refused = spawning.refused(&["pull", "alpine:3.20"]);
    assert!(refused.contains("alpine:3.20"), "{refused}");
}

/// The interpreter for which the packages of the system are. Another one may come first in PATH.
const INTERPRETER: &str = "/usr/bin/python3";

/// What a program with Docker's library for Python does, with the address of the API as its argument. The library takes the token from the
/// configuration of the docker command line.
const PYTHON: &str = r#"
import sys
import docker

client = docker.DockerClient(base_url=sys.argv[1], version="auto")
assert client.containers.run("box", ["sh", "-c", "echo out"], remove=True) == b"out\n"
try:
    client.containers.run("box", ["sh", "-c", "exit 7"], remove=True)
    raise SystemExit("the exit code is lost")
except docker.errors.ContainerError as error:
    assert error.exit_status == 7, error
job = client.containers.run("box", ["sh", "-c", "echo $A; exec sleep 600"], name="job", environment={"A": "b"}, labels={"job": "1"}, detach=True)
assert [found.name for found in client.containers.list(filters={"label": "job=1"})] == ["job"]
assert next(job.logs(stream=True)) == b"b\n"
code, output = job.exec_run(["sh", "-c", "echo there; exit 3"])
assert (code, output) == (3, b"there\n"), (code, output)
archive, stat = job.get_archive("/etc/passwd")
assert stat["name"] == "passwd" and b"root:x:0:0" in b"".join(archive)
assert client.images.pull("box", "latest").tags == ["box:latest"]
try:
    client.containers.run("box", ["true"], privileged=True)
    raise SystemExit("it is privileged")
except docker.errors.APIError as error:
    assert error.status_code == 403 and "HostConfig.Privileged" in error.explanation, error
job.kill()
assert job.wait()["StatusCode"] == 137
job.remove()
assert client.containers.list(all=True) == []
"#;

#[test]
fn the_library_for_python_runs_follows_enters_and_removes_its_containers() {
    let has_library = Command::new(INTERPRETER)
        .args(["-c", "import docker"])
        .output();
    if !has_library.is_ok_and(|output| output.status.success()) {
        meshd::testbed::skip_test("python3-docker is not installed");
        return;
    }
    let Some(spawning) = Spawning::start() else {
        return;
    };
    let host = spawning.hosts.nodes[CALLER].host();
    let mut python = host.command("env").expect("a host");
    python.arg(format!("DOCKER_CONFIG={CLIENT_CONFIG}"));
    python.args([INTERPRETER, "-c", PYTHON]);
    python.arg(format!("tcp://{}", spawning.address));
    let output = python.output().expect("a program");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_service_of_the_template_needs_no_token_and_nobody_else_gets_in_without_one() {
    let Some(spawning) = Spawning::start() else {
        return;
    };
    let hosts = &spawning.hosts;
    hosts.serve(CALLER, "runner", "bridge", "runner");
    hosts.serve(CALLER, "other", "bridge", "other");
    for service in ["runner", "other"] {
        hosts.wait_for(ENGINE, service, 1);
    }
    let url = |path: &str| format!("http://{}{path}", spawning.address);
    let get = |container: &str, path: &str| {
        let words = ["docker", "exec", container, "wget", "-qO-", &url(path)];
        hosts.nodes[CALLER].exec(&words)
    };
    hosts.wait_until("the service is a caller", || {
        get("runner", "/v1.43/containers/json").is_ok_and(|list| list.trim() == "[]")
    });
    let header = "Content-Type: application/json";
    let body = r#"{"Image":"box","Cmd":["true"]}"#;
    let create = url("/v1.43/containers/create?name=job");
    let words = [
        "exec",
        "runner",
        "wget",
        "-qO-",
        "--header",
        header,
        "--post-data",
        body,
        &create,
    ];
    let created = hosts.docker(CALLER, &words);
    let created: Value = serde_json::from_str(&created).expect("a document");
    let id = created["Id"].as_str().expect("an id");
    assert_template(&spawning.inspect(id));
    let list = get("runner", "/containers/json?all=1").expect("an answer");
    assert!(list.contains(id), "{list}");

    // What belongs to the service does not exist for the holder of a token, and others have no access.
    assert_eq!(spawning.docker(&["ps", "-aq"]), "");
    let (status, answer) = spawning.request("GET", &format!("/containers/{id}/json"), "");
    assert_eq!(status, 404, "{answer}");
    assert!(get("other", "/v1.43/containers/json").is_err());
    let host = hosts.nodes[CALLER].host();
    let bare = host.inside(|| send(spawning.address, "none", "GET", "/_ping", ""));
    let bare = bare.expect("a namespace").expect("an answer");
    assert!(bare.starts_with("HTTP/1.1 401 "), "{bare}");
}

#[test]
fn containers_of_others_do_not_exist_and_other_calls_are_refused_with_their_paths() {
    let Some(spawning) = Spawning::start() else {
        return;
    };
    let start = ["run", "-d", "--name", "foreign", "box", "sleep", "600"];
    let id = spawning.hosts.docker(ENGINE, &start);
    for name in ["foreign", id.as_str(), &id[..12]] {
        for (method, path) in [
            ("GET", format!("/containers/{name}/json")),
            ("GET", format!("/containers/{name}/logs?stdout=1")),
            ("GET", format!("/containers/{name}/archive?path=/etc")),
            ("POST", format!("/containers/{name}/start")),
            ("POST", format!("/containers/{name}/stop?t=0")),
            ("POST", format!("/containers/{name}/kill")),
            ("POST", format!("/containers/{name}/wait")),
            (
                "POST",
                format!("/containers/{name}/attach?stdin=1&stream=1"),
            ),
            ("POST", format!("/containers/{name}/exec")),
            ("DELETE", format!("/containers/{name}?force=1")),
        ] {
            let body = r#"{"Cmd":["id"],"AttachStdout":true}"#;
            let body = if path.ends_with("/exec") { body } else { "" };
            let (status, answer) = spawning.request(method, &path, body);
            assert_eq!(status, 404, "{method} {path}: {answer}");
        }
    }
    // A command that somebody else prepared in it.
    let exec = spawning.prepare(&id);
    let start = format!("/exec/{exec}/start");
    assert_eq!(spawning.request("POST", &start, "{}").0, 404);
    assert_eq!(
        spawning.request("GET", &format!("/exec/{exec}/json"), "").0,
        404
    );
    assert_eq!(spawning.docker(&["ps", "-aq"]), "");
    assert_eq!(spawning.inspect(&id)["State"]["Running"], true);

    let others: &[(&[&str], &str)] = &[
        (&["network", "ls"], "GET /networks"),
        (&["network", "create", "x"], "POST /networks/create"),
        (&["volume", "create", "x"], "POST /volumes/create"),
        (&["system", "df"], "GET /system/df"),
        (&["plugin", "ls"], "GET /plugins"),
        (&["swarm", "init"], "POST /swarm/init"),
        (&["rmi", "box"], "DELETE /images/box"),
        (&["commit", "foreign", "x"], "POST /commit"),
        (
            &["rename", "foreign", "x"],
            "POST /containers/foreign/rename",
        ),
        (
            &["update", "--memory", "1g", "foreign"],
            "POST /containers/foreign/update",
        ),
        (&["export", "foreign"], "GET /containers/foreign/export"),
    ];
    for &(words, call) in others {
        let text = spawning.refused(words);
        let expected = format!("meshd does not permit {call}");
        assert!(text.contains(&expected), "{words:?}: {text}");
    }
    let (status, answer) = spawning.request("GET", "/v1.99/version", "");
    assert_eq!(status, 400, "{answer}");
    let (status, answer) = spawning.request("GET", "/docker/v1.43/version", "");
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn options_beyond_the_template_are_refused_and_each_names_its_field() {
    let Some(spawning) = Spawning::start() else {
        return;
    };
    let beyond: &[(&[&str], &str)] = &[
        (&["-v", "/:/host"], "HostConfig.Binds"),
        (
            &["--mount", "type=bind,src=/etc,dst=/x"],
            "HostConfig.Mounts",
        ),
        (&["--volumes-from", "foreign"], "HostConfig.VolumesFrom"),
        (&["--privileged"], "HostConfig.Privileged"),
        (&["--net", "host"], "HostConfig.NetworkMode"),
        (&["--net", "container:foreign"], "HostConfig.NetworkMode"),
        (&["--pid", "host"], "HostConfig.PidMode"),
        (&["--ipc", "host"], "HostConfig.IpcMode"),
        (&["--uts", "host"], "HostConfig.UTSMode"),
        (&["--userns", "host"], "HostConfig.UsernsMode"),
        (&["--cgroupns", "host"], "HostConfig.CgroupnsMode"),
        (&["--cap-add", "SYS_ADMIN"], "HostConfig.CapAdd"),
        (&["--device", "/dev/null"], "HostConfig.Devices"),
        (
            &["--device-cgroup-rule", "c 1:3 rwm"],
            "HostConfig.DeviceCgroupRules",
        ),
        (&["--gpus", "all"], "HostConfig.DeviceRequests"),
        (
            &["--security-opt", "apparmor=unconfined"],
            "HostConfig.SecurityOpt",
        ),
        (&["--sysctl", "net.ipv4.ip_forward=1"], "HostConfig.Sysctls"),
        (&["--runtime", "io.example.v1"], "HostConfig.Runtime"),
        (&["--cgroup-parent", "/x"], "HostConfig.CgroupParent"),
        (&["--group-add", "0"], "HostConfig.GroupAdd"),
        (&["--oom-score-adj", "-500"], "HostConfig.OomScoreAdj"),
        (&["--memory", "8g"], "HostConfig.Memory"),
        (&["--cpus", "64"], "HostConfig.NanoCpus"),
        (&["--pids-limit", "9999"], "HostConfig.PidsLimit"),
        (&["--ulimit", "nofile=99999"], "HostConfig.Ulimits"),
        (&["--shm-size", "1g"], "HostConfig.ShmSize"),
        (&["--restart", "always"], "HostConfig.RestartPolicy"),
        (&["--log-driver", "syslog"], "HostConfig.LogConfig"),
        (&["-p", "80:80"], "HostConfig.PortBindings"),
        (&["-P"], "HostConfig.PublishAllPorts"),
        (&["--add-host", "a:10.0.0.1"], "HostConfig.ExtraHosts"),
        (&["--dns", "10.0.0.1"], "HostConfig.Dns"),
        (&["--link", "foreign"], "HostConfig.Links"),
        (&["-u", "0:0"], "User"),
        (&["--label", "mesh.service=db"], "Labels"),
    ];
    for &(options, field) in beyond {
        let words = [&["create"][..], options, &["box", "true"]].concat();
        let text = spawning.refused(&words);
        assert!(text.contains(field), "{options:?}: {text}");
    }
    assert_eq!(spawning.hosts.docker(ENGINE, &["ps", "-aq"]), "");
}

/// The number of bodies that are generated: 500, or as many as `MESHD_SPAWN_CASES` says.
fn cases() -> u64 {
    let text = std::env::var("MESHD_SPAWN_CASES").unwrap_or_default();
    text.parse().unwrap_or(500)
}

#[test]
fn no_generated_body_creates_a_container_beyond_the_template() {
    let Some(spawning) = Spawning::start() else {
        return;
    };
    // While the caller has a container, its network stays. Otherwise the engine would make and remove one for each body.
    let kept = spawning.docker(&["create", "box", "true"]);
    let (mut created, mut refused) = (0, 0);
    for seed in 0..cases() {
        let body = Bodies::new(seed).body();
        let (status, answer) = loop {
            let answer = spawning.request("POST", "/v1.43/containers/create", &body);
            // The caller has to wait if it is too fast.
            if answer.0 != 429 {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        if status == 201 {
            created += 1;
            let answer: Value = serde_json::from_str(&answer).expect("a document");
            let id = answer["Id"].as_str().expect("an id");
            println!("seed {seed}: {body}");
            assert_template(&spawning.inspect(id));
            let path = format!("/containers/{id}?force=1");
            while spawning.request("DELETE", &path, "").0 == 429 {
                std::thread::sleep(Duration::from_millis(200));
            }
        } else {
            refused += 1;
            let is_refusal = (400..500).contains(&status);
            assert!(is_refusal, "seed {seed}: {status} {answer} to {body}");
        }
    }
    println!("{created} bodies created a container within the template, {refused} were refused");
    // Both kinds of bodies are among those that are generated.
    assert!(created > 0 && refused > 0);
    let left = spawning
        .hosts
        .docker(ENGINE, &["ps", "--all", "--quiet", "--no-trunc"]);
    assert_eq!(left, kept);
}

/// Checks what the engine says about a container: it has the rights of the template, and no others.
fn assert_template(inspected: &Value) {
    let host = &inspected["HostConfig"];
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(is_set) => !is_set,
        Value::Number(number) => number.as_f64() == Some(0.0),
    };
    for field in [
        "Binds",
        "Mounts",
        "VolumesFrom",
        "VolumeDriver",
        "Privileged",
        "CapAdd",
        "PidMode",
        "UTSMode",
        "UsernsMode",
        "Cgroup",
        "CgroupParent",
        "Devices",
        "DeviceCgroupRules",
        "DeviceRequests",
        "Sysctls",
        "GroupAdd",
        "Links",
        "ExtraHosts",
        "Dns",
        "DnsOptions",
        "DnsSearch",
        "OomScoreAdj",
        "OomKillDisable",
        "PublishAllPorts",
        "PortBindings",
        "Ulimits",
        "Tmpfs",
        "StorageOpt",
        "CpuRealtimePeriod",
        "CpuRealtimeRuntime",
        "CpusetCpus",
        "CpusetMems",
        "BlkioDeviceReadBps",
        "BlkioDeviceWriteBps",
    ] {
        assert!(empty(&host[field]), "{field}: {}", host[field]);
    }
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|text| Some(text.as_str()?.to_owned()))
            .collect()
    };
    assert_eq!(texts(&host["CapDrop"]), ["ALL"]);
    let security = texts(&host["SecurityOpt"]);
    assert!(
        security
            .iter()
            .any(|text| text.starts_with("no-new-privileges")),
        "{security:?}"
    );
    assert!(
        security
            .iter()
            .all(|text| text.starts_with("no-new-privileges")),
        "{security:?}"
    );
    assert_eq!(host["IpcMode"], "private");
    assert_eq!(host["CgroupnsMode"], "private");
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(host["Runtime"], "runc");
    let network = host["NetworkMode"].as_str().unwrap_or_default();
    assert!(
        network == "none" || network.starts_with("meshd-spawn-"),
        "{network}"
    );
    assert_eq!(host["Memory"], MEMORY);
    assert_eq!(host["NanoCpus"], NANO_CPUS);
    assert_eq!(host["PidsLimit"], PIDS);
    for path in ["MaskedPaths", "ReadonlyPaths"] {
        assert!(!empty(&host[path]), "{path} are those of the engine");
    }
    for mount in inspected["Mounts"].as_array().into_iter().flatten() {
        // A volume without a name of its own has 64 hexadecimal digits, and is new.
        assert_eq!(mount["Type"], "volume", "{mount}");
        let name = mount["Name"].as_str().unwrap_or_default();
        let is_own = name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit());
        assert!(is_own, "{mount}");
    }
    let config = &inspected["Config"];
    assert!(empty(&config["User"]), "{}", config["User"]);
    let labels = config["Labels"].as_object().cloned().unwrap_or_default();
    let is_permitted = |name: &String| name == "job" || name.starts_with("meshd.");
    assert!(labels.keys().all(is_permitted), "{labels:?}");
    let name = inspected["Name"].as_str().unwrap_or_default();
    assert!(name.starts_with("/meshd-job-"), "{name}");
}

/// Makes bodies: one that is permitted, with some changes to it. Numbers follow from a seed (xorshift).
struct Bodies(u64);

impl Bodies {
    fn new(seed: u64) -> Self {
        let mut bodies = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            bodies.below(2);
        }
        bodies
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % end
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn body(&mut self) -> String {
        let mut body = json!({
            "Image": "box",
            "Cmd": ["true"],
            "HostConfig": {"NetworkMode": "default", "RestartPolicy": {"Name": "no"}},
        });
        for _ in 0..self.below(4) {
            let (path, values) = *self.one(CHANGES);
            let value: Value = serde_json::from_str(self.one::<&str>(values)).expect("JSON");
            let path = self.spelled(path);
            set(&mut body, &path, value);
        }
        let mut text = body.to_string();
        match self.below(8) {
            // A key that is there twice: programs differ in which one they take.
            0 => {
                let twice = *self.one(&[
                    r#"{"HostConfig":{"Privileged":true},"#,
                    r#"{"Image":"other","#,
                    r#"{"HostConfig":{"Binds":["/:/host"]},"#,
                ]);
                text.replace_range(..1, twice);
            }
            1 => {
                let twice = r#","HostConfig":{"PidMode":"host"}}"#;
                text.replace_range(text.len() - 1.., twice);
            }
            _ => {}
        }
        text
    }

    /// A path in the engine's spelling, or in another one that its parser takes as well.
    fn spelled(&mut self, path: &str) -> String {
        match self.below(6) {
            0 => path.to_ascii_lowercase(),
            1 => path.to_ascii_uppercase(),
            2 => path.replace('s', "\u{17f}"),
            3 => path.replace('k', "\u{212a}"),
            _ => path.to_owned(),
        }
    }
}

/// Sets a value in a document; objects on the way are made.
fn set(document: &mut Value, path: &str, value: Value) {
    let mut at = document;
    for key in path.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[key];
    }
    *at = value;
}

/// Paths in the body, each with values of which some ask for more than the template permits and some do not.
const CHANGES: &[(&str, &[&str])] = &[
    (
        "HostConfig.Binds",
        &[
            r#"["/:/host"]"#,
            r#"["/etc:/x:ro"]"#,
            "[]",
            "null",
            r#""/:/host""#,
        ],
    ),
    (
        "HostConfig.Mounts",
        &[
            r#"[{"Type":"bind","Source":"/","Target":"/x"}]"#,
            r#"[{"Type":"volume","Source":"x","Target":"/x"}]"#,
            "[]",
        ],
    ),
    ("HostConfig.VolumesFrom", &[r#"["foreign"]"#, "[]"]),
    (
        "HostConfig.Privileged",
        &["true", "false", "1", r#""true""#, "null"],
    ),
    (
        "HostConfig.CapAdd",
        &[
            r#"["ALL"]"#,
            r#"["SYS_ADMIN"]"#,
            r#"["NET_RAW"]"#,
            "[]",
            "null",
            r#"[""]"#,
        ],
    ),
    ("HostConfig.CapDrop", &["[]", r#"["ALL"]"#, r#"["CHOWN"]"#]),
    (
        "HostConfig.NetworkMode",
        &[
            r#""host""#,
            r#""bridge""#,
            r#""none""#,
            r#""container:foreign""#,
            r#""mesh""#,
            r#""""#,
            r#""Host""#,
        ],
    ),
    (
        "HostConfig.PidMode",
        &[r#""host""#, r#""container:foreign""#, r#""""#],
    ),
    (
        "HostConfig.IpcMode",
        &[r#""host""#, r#""shareable""#, r#""private""#, r#""""#],
    ),
    ("HostConfig.UTSMode", &[r#""host""#, r#""""#]),
    ("HostConfig.UsernsMode", &[r#""host""#, r#""""#]),
    ("HostConfig.CgroupnsMode", &[r#""host""#, r#""private""#]),
    ("HostConfig.Cgroup", &[r#""container:foreign""#, r#""""#]),
    (
        "HostConfig.CgroupParent",
        &[r#""/""#, r#""/system.slice""#, r#""""#],
    ),
    (
        "HostConfig.Devices",
        &[
            r#"[{"PathOnHost":"/dev/mem","PathInContainer":"/dev/mem","CgroupPermissions":"rwm"}]"#,
            "[]",
            "[{}]",
        ],
    ),
    (
        "HostConfig.DeviceCgroupRules",
        &[r#"["a *:* rwm"]"#, "null"],
    ),
    (
        "HostConfig.DeviceRequests",
        &[r#"[{"Count":-1,"Capabilities":[["gpu"]]}]"#, "[]"],
    ),
    (
        "HostConfig.SecurityOpt",
        &[
            r#"["seccomp=unconfined"]"#,
            r#"["apparmor=unconfined"]"#,
            r#"["no-new-privileges"]"#,
            r#"["no-new-privileges:false"]"#,
            r#"["systempaths=unconfined"]"#,
            "[]",
        ],
    ),
    (
        "HostConfig.Sysctls",
        &[
            r#"{"net.ipv4.ip_forward":"1"}"#,
            r#"{"kernel.msgmax":"1"}"#,
            "{}",
        ],
    ),
    (
        "HostConfig.Runtime",
        &[r#""io.containerd.runc.v2""#, r#""""#, r#""runc""#],
    ),
    ("HostConfig.GroupAdd", &[r#"["0"]"#, "[]"]),
    ("HostConfig.Links", &[r#"["foreign:x"]"#, "null"]),
    ("HostConfig.ExtraHosts", &[r#"["a:10.0.0.1"]"#, "null"]),
    ("HostConfig.Dns", &[r#"["10.0.0.1"]"#, "[]"]),
    ("HostConfig.OomScoreAdj", &["-1000", "0"]),
    ("HostConfig.OomKillDisable", &["true", "false"]),
    ("HostConfig.Memory", &["0", "67108864", "68719476736", "-1"]),
    ("HostConfig.MemorySwap", &["-1", "0", "67108864"]),
    ("HostConfig.NanoCpus", &["0", "500000000", "64000000000"]),
    ("HostConfig.CpuQuota", &["-1", "0", "1000000"]),
    ("HostConfig.CpusetCpus", &[r#""0-63""#, r#""""#]),
    ("HostConfig.PidsLimit", &["-1", "0", "64", "99999"]),
    (
        "HostConfig.Ulimits",
        &[r#"[{"Name":"nofile","Soft":1048576,"Hard":1048576}]"#, "[]"],
    ),
    ("HostConfig.ShmSize", &["1073741824", "0"]),
    ("HostConfig.Tmpfs", &[r#"{"/x":"exec,size=10g"}"#, "{}"]),
    ("HostConfig.StorageOpt", &[r#"{"size":"100G"}"#, "{}"]),
    ("HostConfig.PublishAllPorts", &["true", "false"]),
    (
        "HostConfig.PortBindings",
        &[
            r#"{"80/tcp":[{"HostPort":"80"}]}"#,
            "{}",
            r#"{"80/tcp":[]}"#,
        ],
    ),
    (
        "HostConfig.RestartPolicy",
        &[
            r#"{"Name":"always"}"#,
            r#"{"Name":"no","MaximumRetryCount":0}"#,
            r#"{"Name":""}"#,
        ],
    ),
    (
        "HostConfig.LogConfig",
        &[
            r#"{"Type":"syslog","Config":{"syslog-address":"udp://10.0.0.1"}}"#,
            r#"{"Type":"","Config":{}}"#,
        ],
    ),
    ("HostConfig.MaskedPaths", &["[]", "null", r#"["/x"]"#]),
    ("HostConfig.ReadonlyPaths", &["[]", "null"]),
    ("HostConfig.VolumeDriver", &[r#""x""#, r#""""#]),
    ("HostConfig.AutoRemove", &["true", "false"]),
    ("HostConfig.Init", &["true", "false", "null"]),
    (
        "HostConfig.Annotations",
        &[r#"{"run.oci.keep_original_groups":"1"}"#, "{}"],
    ),
    (
        "HostConfig.Later",
        &["true", "false", r#"{"a":{"b":[]}}"#, r#"{"a":{"b":[1]}}"#],
    ),
    (
        "NetworkingConfig.EndpointsConfig",
        &[
            r#"{"host":{}}"#,
            r#"{"mesh":{}}"#,
            r#"{"default":{}}"#,
            r#"{"default":{"Links":["foreign"]}}"#,
            "{}",
            r#"{"bridge":{"DriverOpts":{"a":"b"}}}"#,
        ],
    ),
    ("User", &[r#""0""#, r#""root""#, r#""""#]),
    (
        "Labels",
        &[
            r#"{"mesh.service":"db"}"#,
            r#"{"meshd.spawn":"x"}"#,
            r#"{"job":"1"}"#,
            "{}",
            r#"{"com.docker.compose.project":"x"}"#,
        ],
    ),
    (
        "Volumes",
        &[
            r#"{"/cache":{}}"#,
            r#"{"/:/host":{}}"#,
            r#"{"/proc":{}}"#,
            r#"{"/cache":{"a":1}}"#,
            "{}",
        ],
    ),
    (
        "ExposedPorts",
        &[r#"{"80/tcp":{}}"#, r#"{"80/tcp":{"a":1}}"#],
    ),
    (
        "Image",
        &[
            r#""alpine""#,
            r#""box:latest""#,
            r#""docker.io/library/box""#,
            r#""box@sha256:1""#,
            r#""""#,
            "null",
            "7",
        ],
    ),
    ("Entrypoint", &[r#"["sh"]"#, r#""sh""#, "null", "[7]"]),
    ("Env", &[r#"["A=b"]"#, "[]", r#"["=x"]"#, "[7]"]),
    ("Healthcheck", &[r#"{"Test":["CMD","true"]}"#, "null", "{}"]),
    ("WorkingDir", &[r#""/tmp""#, r#""../x""#]),
    ("Hostname", &[r#""job""#, r#""a b""#]),
    ("Domainname", &[r#""x""#, r#""""#]),
    ("MacAddress", &[r#""02:42:ac:11:00:02""#, r#""""#]),
    ("NetworkDisabled", &["true", "false"]),
    ("Shell", &[r#"["x"]"#, "null"]),
    ("HostConfig", &["null", "{}", "[]", r#""x""#]),
];
