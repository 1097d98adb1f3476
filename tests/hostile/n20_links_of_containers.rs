//! `meshctl doctor` resolves the links of a container's resolv.conf inside the container, wherever they lead, and no file of a
//! container makes it wait.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use meshd::testbed::Host;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::mesh::world;

/// Only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// The server in a file of the host. It must not be in the report about a container.
const OF_HOST: &str = "192.0.2.66";
/// The server in a container's file. Nobody answers at this address, since the hosts of these tests have no route to it.
const OF_CONTAINER: &str = "192.0.2.1";

/// A thread that looks like a container's process from outside: it has its own mount namespace, another root directory and a
/// /proc in it. The thread ends when the value is dropped.
struct Container {
    thread: i32,
    _end: Sender<()>,
}

impl Container {
    fn start(host: &Host, root: &Path) -> Self {
        let (end, ended) = channel::<()>();
        let (tell, told) = channel();
        let (network, root) = (host.pid(), root.to_owned());
        // The thread waits until the sender is dropped, so it is neither scoped nor joined.
        std::thread::spawn(move || {
            enter(network, &root).expect("root may make containers");
            tell.send(nix::unistd::gettid().as_raw())
                .expect("a receiver");
            let _ = ended.recv();
        });
        let thread = told.recv_timeout(WAIT_TIMEOUT).expect("it starts");
        Self { thread, _end: end }
    }
}

/// Makes this thread look like a container's process, with the network namespace of the process `network`.
fn enter(network: u32, root: &Path) -> std::io::Result<()> {
    let file = std::fs::File::open(format!("/proc/{network}/ns/net"))?;
    nix::sched::setns(file, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let proc = root.join("proc");
    std::fs::create_dir(&proc)?;
    mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), none)?;
    nix::unistd::chroot(root)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// Runs `meshctl doctor` with one container and returns the container's row of the report. `make` fills the container's root: its
/// arguments are the paths of the root and of the resolv.conf in it.
fn examined(host: &Host, make: impl FnOnce(&Path, &Path)) -> Value {
    let root = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(root.path().join("etc")).expect("writable");
    make(root.path(), &root.path().join("etc/resolv.conf"));
    let container = Container::start(host, root.path());
    let checkup = json!({
        "schema": 1, "name": "n1.node.mesh", "expected": "10.210.1.1", "dns": "10.210.0.53",
        "split_dns": "none",
        "containers": [{"name": "evil", "network": "bridge", "pid": container.thread, "kind": "default"}],
    });
    let daemon = Daemon::answering(vec![(200, checkup.to_string())]);
    let begun = Instant::now();
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshctl"))
        .expect("a namespace");
    let output = command
        .args(["doctor", "--json"])
        .env("MESHD_SOCKET", daemon.socket())
        .output()
        .expect("it is built");
    assert!(
        begun.elapsed() < WAIT_TIMEOUT,
        "doctor waits for a container"
    );
    assert_eq!(daemon.asked(), ["GET /v1/checkup"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let rows = report["places"].as_array().expect("a list");
    let row = rows.iter().find(|row| row["place"] == "container evil");
    row.expect("the container is examined").clone()
}

/// The servers that doctor found in a container's resolv.conf.
fn servers(row: &Value) -> Vec<&str> {
    let servers = row["servers"].as_array().expect("a list");
    let addresses = servers.iter().map(|server| server["address"].as_str());
    addresses
        .map(|address| address.expect("an address"))
        .collect()
}

#[test]
fn links_of_a_container_lead_to_its_own_files_and_to_nothing_that_waits_or_acts() {
    let Some(world) = world() else { return };
    let host = world.host("n1").expect("a namespace");
    // This is a file of the host. Doctor must not report anything from it.
    let secret = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(secret.path(), format!("nameserver {OF_HOST}\n")).expect("writable");
    let outside = secret.path().strip_prefix("/").expect("an absolute path");

    // A link to a file of the container is followed, even if it is absolute and leads to another link.
    let row = examined(&host, |root, conf| {
        std::fs::create_dir(root.join("run")).expect("writable");
        let text = format!("nameserver {OF_CONTAINER}\n");
        std::fs::write(root.join("run/made.conf"), text).expect("writable");
        symlink("/run/made.conf", root.join("run/next.conf")).expect("writable");
        symlink("/run/next.conf", conf).expect("writable");
    });
    assert_eq!(servers(&row), [OF_CONTAINER], "{row}");

    let up = Path::new("../../../../../..");
    let magic = ["proc/self/root", "proc/1/root", "proc/self/cwd"];
    let mut links = vec![secret.path().to_owned(), up.join(outside)];
    links.extend(magic.map(|link| Path::new("/").join(link).join(outside)));
    // This link has more steps.
    links.push(
        Path::new("/proc/self/root/proc/1/root")
            .join(up)
            .join(outside),
    );
    for link in links {
        let row = examined(&host, |root, conf| {
            symlink(&link, root.join("first")).expect("writable");
            symlink("/first", conf).expect("writable");
        });
        assert_eq!(servers(&row), [""; 0], "{}: {row}", link.display());
        assert_eq!(row["ok"], json!(false), "{row}");
        assert!(!row.to_string().contains(OF_HOST), "{row}");
    }

    // A directory on the path is a link to one of the host.
    let row = examined(&host, |root, _| {
        std::fs::remove_dir(root.join("etc")).expect("empty");
        symlink("/proc/1/root/etc", root.join("etc")).expect("writable");
    });
    assert_eq!(servers(&row), [""; 0], "{row}");

    // Reading these files would wait, connect to a program, or never end.
    let pipe: fn(&Path, &Path) = |root, conf| {
        nix::unistd::mkfifo(&root.join("pipe"), Mode::S_IRWXU).expect("writable");
        symlink("/pipe", conf).expect("writable");
    };
    let socket: fn(&Path, &Path) = |_, conf| {
        std::os::unix::net::UnixListener::bind(conf).expect("a free path");
    };
    let directory: fn(&Path, &Path) = |_, conf| std::fs::create_dir(conf).expect("writable");
    let circle: fn(&Path, &Path) = |_, conf| symlink("/etc/resolv.conf", conf).expect("writable");
    let endless: fn(&Path, &Path) = |_, conf| {
        // The file is sparse, and far larger than what doctor reads.
        let file = std::fs::File::create(conf).expect("writable");
        file.set_len(1 << 40).expect("sparse");
    };
    for make in [pipe, socket, directory, circle, endless] {
        let row = examined(&host, make);
        assert_eq!(servers(&row), [""; 0], "{row}");
        assert_eq!(row["ok"], json!(false), "{row}");
    }
}
