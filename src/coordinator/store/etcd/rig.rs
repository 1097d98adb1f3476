//! A real etcd for tests.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::EtcdSettings;

/// One member, which ends with the value.
pub(crate) struct Rig {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Rig {
    /// A running one with nothing in it; nothing, if etcd is not installed.
    pub(crate) fn start() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let ports = [(); 2].map(|()| {
            TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .expect("loopback")
                .port()
        });
        let [client, peer] = ports.map(|port| format!("http://127.0.0.1:{port}"));
        let spawned = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.path())
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("default={peer}")])
            .arg("--unsafe-no-fsync")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = spawned else {
            eprintln!("skipped: etcd is not installed");
            return None;
        };
        let rig = Self {
            process,
            port: ports[0],
            _directory: directory,
        };
        let end = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", rig.port)).is_err() {
            assert!(Instant::now() < end, "etcd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(rig)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How to reach it.
    pub(crate) fn settings(&self) -> EtcdSettings {
        EtcdSettings {
            endpoints: vec![format!("http://127.0.0.1:{}", self.port)],
            prefix: "/meshd/".into(),
            ..EtcdSettings::default()
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
