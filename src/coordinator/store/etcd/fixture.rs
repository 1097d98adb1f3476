//! Runs a real etcd for tests.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::EtcdSettings;
use super::link::{Link, end_of};
use crate::testbed::{skip_part_of_test, skip_test};

/// An etcd cluster of one member. Dropping it ends the member.
pub(crate) struct EtcdFixture {
    process: Child,
    /// The ports for clients and for members.
    ports: [u16; 2],
    directory: tempfile::TempDir,
    secured: bool,
}

/// The user of a secured member, which may access the prefix, and its password.
const USER: &str = "mesh";
const PASSWORD: &str = "correct horse battery staple";
/// The files of a secured member's certificates and keys, in its directory.
const FILES: [&str; 6] = [
    "ca.crt",
    "server.crt",
    "server.key",
    "client.crt",
    "client.key",
    "password",
];

impl EtcdFixture {
    /// Starts an empty cluster. None if etcd is not installed.
    pub(crate) fn start() -> Option<Self> {
        Self::start_as(false).or_else(skip)
    }

    /// Starts an empty cluster for a test with other parts, which run without etcd.
    pub(crate) fn start_for_part() -> Option<Self> {
        Self::start_as(false).or_else(|| {
            skip_part_of_test("the store etcd: etcd is not installed");
            None
        })
    }

    /// Starts a cluster that accepts only TLS, with certificates on both sides, and only one user within the prefix.
    /// That user's authentication is valid for five seconds.
    pub(crate) fn start_secured() -> Option<Self> {
        let fixture = Self::start_as(true).or_else(skip)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a thread");
        runtime
            .block_on(fixture.set_users())
            .expect("etcd takes users");
        Some(fixture)
    }

    fn start_as(secured: bool) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let ports = [(); 2].map(|()| {
            TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .expect("loopback")
                .port()
        });
        if secured {
            write_files(directory.path());
        }
        let process = spawn(directory.path(), ports, secured)?;
        let fixture = Self {
            process,
            ports,
            directory,
            secured,
        };
        fixture.wait();
        Some(fixture)
    }

    /// Stores a copy of the cluster's data, as a snapshot does.
    pub(crate) fn save(&mut self) {
        self.copy("data", "saved");
    }

    /// Restores the copy.
    pub(crate) fn restore(&mut self) {
        self.copy("saved", "data");
    }

    fn copy(&mut self, from: &str, to: &str) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let [from, to] = [from, to].map(|name| self.directory.path().join(name));
        let _ = std::fs::remove_dir_all(&to);
        let copied = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(copied.expect("cp is there").success());
        let spawned = spawn(self.directory.path(), self.ports, self.secured);
        self.process = spawned.expect("it ran before");
        self.wait();
    }

    fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", self.ports[0])).is_err() {
            assert!(Instant::now() < end, "etcd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The pid of the member.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The settings of a connection to the cluster.
    pub(crate) fn settings(&self) -> EtcdSettings {
        let plain = EtcdSettings {
            endpoints: vec![url(self.secured, self.ports[0])],
            prefix: "/meshd/".into(),
            ..EtcdSettings::default()
        };
        if !self.secured {
            return plain;
        }
        let [ca, _, _, certificate, key, password] =
            FILES.map(|name| Some(self.directory.path().join(name)));
        EtcdSettings {
            user: Some(USER.into()),
            password_file: password,
            ca_file: ca,
            certificate_file: certificate,
            key_file: key,
            ..plain
        }
    }

    async fn set_users(&self) -> Result<(), etcd_client::Error> {
        use etcd_client::{Client, Permission};

        let anonymous = EtcdSettings {
            user: None,
            ..self.settings()
        };
        let link = Link::new(&anonymous).expect("its files are there");
        let mut client: Client = link.client().await?.1;
        client.role_add("root").await?;
        client.user_add("root", "root", None).await?;
        client.user_grant_role("root", "root").await?;
        let (role, within) = ("meshd", end_of(&anonymous.prefix));
        client.role_add(role).await?;
        let all = Permission::read_write(anonymous.prefix).with_range_end(within);
        client.role_grant_permission(role, all).await?;
        client.user_add(USER, PASSWORD, None).await?;
        client.user_grant_role(USER, role).await?;
        client.auth_enable().await?;
        Ok(())
    }
}

fn skip() -> Option<EtcdFixture> {
    skip_test("etcd is not installed");
    None
}

/// Starts etcd with the data in `directory`. None if it is not installed.
fn spawn(directory: &Path, ports: [u16; 2], secured: bool) -> Option<Child> {
    let peer = format!("http://127.0.0.1:{}", ports[1]);
    let client = url(secured, ports[0]);
    let mut command = Command::new("etcd");
    if secured {
        let [ca, certificate, key, ..] = FILES.map(|name| directory.join(name));
        command.arg("--client-cert-auth");
        command.arg("--trusted-ca-file").arg(ca);
        command.arg("--cert-file").arg(certificate);
        command.arg("--key-file").arg(key);
        command.args(["--auth-token-ttl", "5"]);
    }
    let spawned = command
        .arg("--data-dir")
        .arg(directory.join("data"))
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
    spawned.ok()
}

fn url(secured: bool, port: u16) -> String {
    let scheme = if secured { "https" } else { "http" };
    format!("{scheme}://127.0.0.1:{port}")
}

/// Writes the certificates of an authority of its own, their keys, and the password.
fn write_files(directory: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    let key = || KeyPair::generate().expect("a key");
    let named = |common: &str, names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, common);
        params
    };
    let ca_key = key();
    let mut ca = named("authority", &[]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::new(ca, ca_key);
    let signed = |common, names| {
        let key = key();
        let certificate = named(common, names).signed_by(&key, &issuer);
        [
            certificate.expect("a certificate").pem(),
            key.serialize_pem(),
        ]
    };
    let [server, server_key] = signed("server", &["127.0.0.1"]);
    // Without a password, etcd uses the certificate's common name as the user. No user has this name.
    let [client, client_key] = signed("coordinator", &["coordinator"]);
    let texts = [
        ca_certificate.pem(),
        server,
        server_key,
        client,
        client_key,
        format!("{PASSWORD}\n"),
    ];
    for (name, text) in FILES.into_iter().zip(texts) {
        let path = directory.join(name);
        crate::os::file::write_atomic(&path, text.as_bytes(), 0o600).expect("writable");
    }
}

impl Drop for EtcdFixture {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
