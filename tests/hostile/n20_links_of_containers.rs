//! `meshctl doctor` reads a container's resolv.conf inside the container, wherever its links lead, and never waits for it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use meshd::lab::Host;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::mesh::world;

/// Only a hang takes that long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a container would learn of the host if its link were followed there.
const OF_HOST: &str = "192.0.2.66";
/// Nobody answers there, and nobody can be asked: the hosts of these tests have no way out.
const OF_CONTAINER: &str = "192.0.2.1";

/// A thread in a mount namespace of its own with `root` as its root and a /proc in it: what a container's process looks like
/// from outside. It ends with the value.
struct Container {
    thread: i32,
    _end: Sender<()>,
}

impl Container {
    fn start(host: &Host, root: &Path) -> Self {
        let (end, ended) = channel::<()>();
        let (tell, told) = channel();
        let (network, root) = (host.pid(), root.to_owned());
        // It cannot be joined while it waits, so it is not scoped: it ends when the sender is dropped.
        std::thread::spawn(move || {
            enter(network, &root).expect("root may make containers");
            tell.send(nix::unistd::gettid().as_raw())
                .expect("a receiver");
            let _ = ended.recv();
        });
        let thread = told.recv_timeout(PATIENCE).expect("it starts");
        Self { thread, _end: end }
    }
}

/// Makes this thread a container's process with the network of process `network`.
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

/// What doctor says of a container whose root `make` has filled; it is given the path of the container's resolv.conf too.
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
    assert!(begun.elapsed() < PATIENCE, "doctor waits for a container");
    assert_eq!(daemon.asked(), ["GET /v1/checkup"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let rows = report["places"].as_array().expect("a list");
    let row = rows.iter().find(|row| row["place"] == "container evil");
    row.expect("the container is examined").clone()
}

/// The servers that were asked for a container.
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
    // A file of the host, of which doctor may tell nothing.
    let secret = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(secret.path(), format!("nameserver {OF_HOST}\n")).expect("writable");
    let outside = secret.path().strip_prefix("/").expect("an absolute path");

    // A link that stays inside is followed, also when it is absolute and comes by another one.
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
    // The same with more steps in between.
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

    // A directory on the way that is a link to the host's.
    let row = examined(&host, |root, _| {
        std::fs::remove_dir(root.join("etc")).expect("empty");
        symlink("/proc/1/root/etc", root.join("etc")).expect("writable");
    });
    assert_eq!(servers(&row), [""; 0], "{row}");

    // What would wait, act, or never end.
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
        // Sparse, and far larger than what is read.
        let file = std::fs::File::create(conf).expect("writable");
        file.set_len(1 << 40).expect("sparse");
    };
    for make in [pipe, socket, directory, circle, endless] {
        let row = examined(&host, make);
        assert_eq!(servers(&row), [""; 0], "{row}");
        assert_eq!(row["ok"], json!(false), "{row}");
    }
}
