//! The files in the state directory of a node (0700):
//!
//! | file | content | if it is damaged |
//! |---|---|---|
//! | `identity.json` | the node's keys, name and addresses | meshd does not start, since nothing can replace it |
//! | `pending.json` | keys and certificate of a join under way | the join starts again |
//! | `departing-ID.json` | a departure that no coordinator has acknowledged | the name stays taken until it is removed |
//! | `records.jsonl` | every verified record, one envelope a line | damaged lines are left out, and the records are requested again |
//! | `position.json` | the position in the changes of the coordinator's store | all records are requested again |
//! | `in_step.json` | when the node was last in step with a coordinator | memberships of any date are accepted once |
//! | `newcomers.json` | memberships that are held back, and those that were accepted on trust | the former are received again, and this node vouches for no member |
//! | `instances.json` | the addresses of containers | containers get new addresses |
//! | `service-addresses.json` | which service has which service address here | services may get other addresses |
//! | `calls.json` | the time of the last call of each member | who passed on a call of the last hour may deliver it once more |
//! | `policy.json` | the record of the policy in force | the policy among the records is in force, if this version understands it |
//! | `spawned.json` | the containers that callers spawned, and whose they are | these containers are removed |
//! | `services.json` | services added with `meshctl service add`, drains | meshd reports that; the file is kept as `services.json.damaged` |
//!
//! A `services.json` that cannot be read stays where it is. Before a change replaces it, it is also kept as `services.json.unread`.

pub(in crate::node) mod calls;
pub mod departing;
pub(in crate::node) mod policy;
pub mod records;
pub(in crate::node) mod spawned;
pub(in crate::node) mod writer;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::replica::{InStep, NewcomerLists, Newcomers, Position};
use crate::containers::ContainerId;
use crate::model::address::Block;
use crate::model::time::UnixSeconds;
use crate::model::{KeyProof, Label, PublicKey, SigningKey, WireGuardKey};
use crate::os::audit::Audit;
use crate::os::file;
use crate::os::file::FileError;
use crate::os::random;
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;
use crate::records::Envelope;
use crate::records::service_address::ServiceAddresses;

const IN_STEP: &str = "in_step.json";
const NEWCOMERS: &str = "newcomers.json";
const POLICY: &str = "policy.json";
const CALLS: &str = "calls.json";
const SPAWNED: &str = "spawned.json";
/// The maximum size of a state file in bytes. It does not apply to the file of records.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The state directory, and the log of events that lies in it.
#[derive(Debug, Clone)]
pub struct StateDir {
    directory: PathBuf,
    /// The log of events. It records nothing until it is opened.
    pub(in crate::node) audit: Audit,
}

/// State that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or a file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file of the identity is damaged. It can be restored only from a backup.
    #[error(
        "the node's identity in {path} is damaged ({why}); restore that file from a backup, or move {dir} away, remove the node with `meshctl node remove` and join again"
    )]
    Identity {
        /// The file.
        path: PathBuf,
        /// The state directory.
        dir: PathBuf,
        /// Why it cannot be used.
        why: String,
    },
}

/// Why the services that were added by command are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServicesFault {
    /// Their file cannot be read. It stays where it is, and may be readable at the next start.
    Unread(String),
    /// Their file is damaged. It is kept under another name.
    Damaged(String),
}

/// The secret keys of a node. `Debug` shows public halves only.
#[derive(Clone)]
pub struct Keys {
    /// Signs the node's records.
    pub identity: SigningKey,
    /// The tunnel's key.
    pub wireguard: x25519_dalek::StaticSecret,
}

impl Keys {
    /// Generates random keys.
    ///
    /// # Errors
    /// The system returns no random bytes.
    pub fn generate() -> Result<Self, random::RandomError> {
        let mut seeds = Zeroizing::new([0u8; 64]);
        random::fill(seeds.as_mut_slice())?;
        let (identity, wireguard) = seeds.split_at(32);
        let half =
            |bytes: &[u8]| Zeroizing::new(<[u8; 32]>::try_from(bytes).expect("half of 64 bytes"));
        Ok(Self {
            identity: SigningKey::from_seed(&half(identity)),
            wireguard: x25519_dalek::StaticSecret::from(*half(wireguard)),
        })
    }

    /// The key of the tunnel towards guests. It follows from the identity and never changes, since the configuration of a guest has its
    /// public half.
    #[must_use]
    pub fn guest(&self) -> x25519_dalek::StaticSecret {
        let seed = self.identity.seed();
        let secret = Sha256::new()
            .chain_update(b"meshd guest key v1\0")
            .chain_update(seed.as_slice())
            .finalize();
        x25519_dalek::StaticSecret::from(<[u8; 32]>::from(secret))
    }

    /// The public half of the key of the tunnel towards guests.
    #[must_use]
    pub fn guest_public(&self) -> WireGuardKey {
        WireGuardKey(x25519_dalek::PublicKey::from(&self.guest()).to_bytes())
    }

    /// The public half of the tunnel's key.
    #[must_use]
    pub fn wireguard_public(&self) -> WireGuardKey {
        WireGuardKey(x25519_dalek::PublicKey::from(&self.wireguard).to_bytes())
    }

    /// The proof that the node holds the private key of the tunnel. None if the system returns no random bytes.
    #[must_use]
    pub fn prove_wireguard(&self) -> Option<KeyProof> {
        let mut random = Zeroizing::new([0; 32]);
        random::fill(random.as_mut_slice()).ok()?;
        let secret = Zeroizing::new(self.wireguard.to_bytes());
        Some(KeyProof::make(&secret, &self.identity.public(), &random))
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("identity", &self.identity.public())
            .field("wireguard", &self.wireguard_public())
            .finish()
    }
}

/// The former key of the tunnel, which is accepted for a while after it was replaced.
#[derive(Clone)]
pub struct Previous {
    /// The key.
    pub wireguard: x25519_dalek::StaticSecret,
    /// The time until which it is accepted.
    pub until: UnixSeconds,
}

impl std::fmt::Debug for Previous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Previous")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// The identity of a node and of its mesh: everything that a start without a coordinator needs.
#[derive(Debug, Clone)]
pub struct Identity {
    pub keys: Keys,
    pub name: Label,
    /// The key that verifies all records of the mesh, directly or through other keys.
    pub mesh_key: PublicKey,
    /// The address block of the node.
    pub block: Block,
    /// The URLs of the coordinators.
    pub urls: Vec<CoordinatorUrl>,
    /// The pin of the coordinators' TLS key.
    pub pin: SpkiPin,
    /// Set for a while after the tunnel's key was changed.
    pub previous: Option<Previous>,
}

impl Identity {
    /// The addresses of the node.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.block.node_addresses()
    }
}

/// A join that was begun. It is stored so that a further attempt sends the same request.
#[derive(Debug, Clone)]
pub struct Pending {
    pub keys: Keys,
    /// The public key of the token.
    pub token: PublicKey,
    /// The membership certificate, signed with the token's key.
    pub membership: Envelope,
    /// Whether a coordinator may have received the request, and so may have admitted the node.
    pub asked: bool,
    /// The coordinators, with which the join is completed after a restart. Absent in a file of an earlier version.
    pub way: Option<Way>,
}

/// The facts that are necessary to reach the coordinators of a mesh and to verify their answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The key that verifies all records of the mesh, directly or through other keys.
    pub mesh_key: PublicKey,
    /// The URLs of the coordinators.
    pub urls: Vec<CoordinatorUrl>,
    /// The pin of the coordinators' TLS key.
    pub pin: SpkiPin,
}

/// Keys in the format of a file.
#[derive(Serialize, Deserialize)]
struct StoredKeys {
    identity_seed: Zeroizing<String>,
    wireguard_secret: Zeroizing<String>,
    identity: PublicKey,
    wireguard: WireGuardKey,
}

impl StoredKeys {
    fn new(keys: &Keys) -> Self {
        // Hexadecimal through the types that write keys: a seed has the same form.
        let hex = |bytes: [u8; 32]| Zeroizing::new(PublicKey(bytes).to_string());
        Self {
            identity_seed: hex(*keys.identity.seed()),
            wireguard_secret: hex(keys.wireguard.to_bytes()),
            identity: keys.identity.public(),
            wireguard: keys.wireguard_public(),
        }
    }

    /// Returns the keys. The file also has the public halves, so that a flipped bit is noticed.
    fn open(&self) -> Result<Keys, String> {
        let bytes = |text: &str| {
            text.parse::<PublicKey>()
                .map(|k| Zeroizing::new(k.0))
                .map_err(|e| e.to_string())
        };
        let keys = Keys {
            identity: SigningKey::from_seed(&*bytes(&self.identity_seed)?),
            wireguard: x25519_dalek::StaticSecret::from(*bytes(&self.wireguard_secret)?),
        };
        if keys.identity.public() != self.identity || keys.wireguard_public() != self.wireguard {
            return Err("the public and the secret keys do not match".into());
        }
        Ok(keys)
    }
}

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    keys: StoredKeys,
    name: Label,
    mesh_key: PublicKey,
    block: Block,
    urls: Vec<CoordinatorUrl>,
    pin: SpkiPin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<StoredPrevious>,
}

#[derive(Serialize, Deserialize)]
struct StoredPrevious {
    wireguard_secret: Zeroizing<String>,
    until: UnixSeconds,
}

impl StoredPrevious {
    fn new(previous: &Previous) -> Self {
        Self {
            wireguard_secret: Zeroizing::new(PublicKey(previous.wireguard.to_bytes()).to_string()),
            until: previous.until,
        }
    }

    /// Returns the key, or none if it is damaged: the key is needed for a short time only, so that is no error.
    fn open(&self) -> Option<Previous> {
        let bytes = self.wireguard_secret.parse::<PublicKey>().ok()?;
        Some(Previous {
            wireguard: x25519_dalek::StaticSecret::from(bytes.0),
            until: self.until,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct StoredPending {
    keys: StoredKeys,
    token: PublicKey,
    membership: Envelope,
    #[serde(default)]
    asked: bool,
    #[serde(default)]
    way: Option<Way>,
}

impl StateDir {
    /// Opens the directory, and creates it if it is missing.
    ///
    /// # Errors
    /// The directory cannot be created, belongs to another user, or can be read by other users.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        file::private_dir(path)?;
        Ok(Self {
            directory: path.to_owned(),
            audit: Audit::none(),
        })
    }

    /// The path of the file `name` in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The node's identity, if it has joined.
    ///
    /// # Errors
    /// The file exists and cannot be used.
    pub fn identity(&self) -> Result<Option<Identity>, StateError> {
        let damaged = |why: String| StateError::Identity {
            path: self.path("identity.json"),
            dir: self.directory.clone(),
            why,
        };
        let Some(text) = self.read("identity.json")? else {
            return Ok(None);
        };
        let stored: StoredIdentity =
            serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(Identity {
            keys: stored.keys.open().map_err(damaged)?,
            name: stored.name,
            mesh_key: stored.mesh_key,
            block: stored.block,
            urls: stored.urls,
            pin: stored.pin,
            previous: stored.previous.and_then(|previous| previous.open()),
        }))
    }

    /// Writes the identity.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), StateError> {
        self.write(
            "identity.json",
            &StoredIdentity {
                keys: StoredKeys::new(&identity.keys),
                name: identity.name.clone(),
                mesh_key: identity.mesh_key,
                block: identity.block,
                urls: identity.urls.clone(),
                pin: identity.pin,
                previous: identity.previous.as_ref().map(StoredPrevious::new),
            },
        )
    }

    /// The join under way. None if there is no file, or a damaged one.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn pending(&self) -> Result<Option<Pending>, StateError> {
        let Some(stored) = self.read_or_nothing::<StoredPending>("pending.json")? else {
            return Ok(None);
        };
        Ok(stored.keys.open().ok().map(|keys| Pending {
            keys,
            token: stored.token,
            membership: stored.membership,
            asked: stored.asked,
            way: stored.way,
        }))
    }

    /// Writes the join under way.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub fn set_pending(&self, pending: &Pending) -> Result<(), StateError> {
        let keys = StoredKeys::new(&pending.keys);
        self.write(
            "pending.json",
            &StoredPending {
                keys,
                token: pending.token,
                membership: pending.membership.clone(),
                asked: pending.asked,
                way: pending.way.clone(),
            },
        )
    }

    /// Deletes the join under way.
    pub fn clear_pending(&self) {
        let _ = std::fs::remove_file(self.path("pending.json"));
    }

    /// The position in the coordinator's changes. It is the beginning if the file is missing or damaged.
    #[must_use]
    pub fn position(&self) -> Position {
        self.read_or_nothing("position.json")
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Writes the position in the coordinator's changes.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub fn set_position(&self, position: &Position) -> Result<(), StateError> {
        self.write("position.json", position)
    }

    /// Reads the state that decides about new memberships. With `is_new` the node has just joined or has lost records.
    /// Then it accepts memberships of any date once. If the list of those that were accepted on trust cannot be read or is
    /// damaged, all `members` count as such.
    pub(in crate::node) fn newcomers(
        &self,
        is_new: bool,
        members: impl Iterator<Item = PublicKey>,
        now: Instant,
    ) -> Newcomers {
        if is_new {
            let _ = std::fs::remove_file(self.path(IN_STEP));
        }
        let in_step = self.read_or_nothing(IN_STEP).ok().flatten();
        let in_step = in_step.unwrap_or_default();
        let parse = |text: &[u8]| serde_json::from_slice(text).map_err(|e| e.to_string());
        let lists = match self.read(NEWCOMERS) {
            Ok(None) => return Newcomers::new(in_step, NewcomerLists::default(), now),
            Ok(Some(text)) => parse(&text),
            Err(error) => Err(error.to_string()),
        };
        match lists {
            Ok(lists) => Newcomers::new(in_step, lists, now),
            Err(error) => {
                tracing::warn!(path = %self.path(NEWCOMERS).display(), %error, "this node vouches for no member, since it cannot read which ones it accepted on trust");
                Newcomers::with_unknown_lists(in_step, members.collect())
            }
        }
    }

    /// Writes when the node was last in step with a coordinator.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub(in crate::node) fn set_in_step(&self, in_step: &InStep) -> Result<(), StateError> {
        self.write(IN_STEP, in_step)
    }

    /// Writes which memberships are held back, and which were accepted on trust.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub(in crate::node) fn set_newcomers(&self, lists: &NewcomerLists) -> Result<(), StateError> {
        self.write(NEWCOMERS, lists)
    }

    /// The services that were added with `meshctl service add`, and the reason if their file cannot be used.
    #[must_use]
    pub fn services<T: DeserializeOwned + Default>(&self) -> (T, Option<ServicesFault>) {
        let damage = match self.read("services.json") {
            Ok(None) => return (T::default(), None),
            Ok(Some(text)) => match serde_json::from_slice(&text) {
                Ok(services) => return (services, None),
                Err(error) => error.to_string(),
            },
            Err(error) => {
                let link = self.path("services.json.unread");
                let kept = keep_unread(&self.path("services.json"), &link);
                let fault = ServicesFault::Unread(format!("{error}; {kept}"));
                return (T::default(), Some(fault));
            }
        };
        let aside = self.path("services.json.damaged");
        let kept = match std::fs::rename(self.path("services.json"), &aside) {
            Ok(()) => format!("the file is kept as {}", aside.display()),
            Err(error) => format!(
                "copy the file now, since the next change of these services replaces it: it cannot be renamed to {}: {error}",
                aside.display()
            ),
        };
        let fault = ServicesFault::Damaged(format!("{damage}; {kept}"));
        (T::default(), Some(fault))
    }

    /// Writes the services that were added with `meshctl service add`.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub fn set_services<T: Serialize>(&self, services: &T) -> Result<(), StateError> {
        self.write("services.json", services)
    }

    /// The addresses of containers. Empty if the file is missing or damaged.
    #[must_use]
    pub fn leases(&self) -> BTreeMap<ContainerId, Ipv4Addr> {
        self.read_or_nothing("instances.json")
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Writes the addresses of containers.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub fn set_leases(&self, leases: &BTreeMap<ContainerId, Ipv4Addr>) -> Result<(), StateError> {
        self.write("instances.json", leases)
    }

    /// Which service has which service address on this node. It is empty if the file is missing or damaged.
    #[must_use]
    pub fn service_addresses(&self) -> ServiceAddresses {
        self.read_or_nothing("service-addresses.json")
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Writes which service has which service address.
    ///
    /// # Errors
    /// The file cannot be written. The old file is kept then.
    pub fn set_service_addresses(&self, addresses: &ServiceAddresses) -> Result<(), StateError> {
        self.write("service-addresses.json", addresses)
    }

    /// Deletes the files of the node in its mesh. Departures that wait for a coordinator are kept.
    pub fn clear(&self) {
        for name in [
            "identity.json",
            "pending.json",
            "records.jsonl",
            "position.json",
            IN_STEP,
            NEWCOMERS,
            "services.json",
            "instances.json",
            "service-addresses.json",
            CALLS,
            POLICY,
        ] {
            let _ = std::fs::remove_file(self.path(name));
        }
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        match file::read_private(&self.path(name), MAX_FILE) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn read_or_nothing<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        Ok(self
            .read(name)?
            .and_then(|text| serde_json::from_slice(&text).ok()))
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let text = Zeroizing::new(
            serde_json::to_vec_pretty(value).expect("state is plain data with text keys"),
        );
        Ok(file::write_atomic(&self.path(name), &text, 0o600)?)
    }
}

/// Gives a file that cannot be read a second name, which stays when a change replaces the file. Returns what has become of it.
fn keep_unread(path: &Path, link: &Path) -> String {
    let _ = std::fs::remove_file(link);
    match std::fs::hard_link(path, link) {
        Ok(()) => format!(
            "the file stays there until the next change of these services replaces it, and it is also kept as {}",
            link.display()
        ),
        Err(error) => format!(
            "copy the file now, since the next change of these services replaces it: it cannot be linked to {}: {error}",
            link.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_know_whom_it_accepted_on_trust_vouches_for_nobody() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        let member = PublicKey([1; 32]);
        let read = || dir.newcomers(false, [member].into_iter(), Instant::now());
        assert!(read().vouches_for(&member), "it accepted nobody on trust");
        let damages: [&dyn Fn(&Path); 2] = [
            &|path| file::write_atomic(path, b"{\"on_trust\":[", 0o600).expect("ours"),
            &|path| {
                std::fs::remove_file(path).expect("ours");
                std::fs::create_dir(path).expect("ours");
            },
        ];
        for damage in damages {
            damage(&dir.path(NEWCOMERS));
            let newcomers = read();
            assert!(!newcomers.vouches_for(&member));
            assert!(!newcomers.is_written(), "the file is replaced");
        }
    }

    #[test]
    fn damaged_services_are_kept_aside_unless_the_file_cannot_be_renamed() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        let (path, aside) = (dir.path("services.json"), dir.path("services.json.damaged"));
        let read = || {
            file::write_atomic(&path, b"{", 0o600).expect("ours");
            let (services, fault) = dir.services::<BTreeMap<String, String>>();
            assert!(services.is_empty());
            match fault {
                Some(ServicesFault::Damaged(why)) => why,
                other => panic!("{other:?}"),
            }
        };
        assert!(read().contains("the file is kept as"));
        assert!(!path.exists() && aside.exists());
        std::fs::remove_file(&aside).expect("ours");
        std::fs::create_dir(&aside).expect("ours");
        assert!(read().contains("copy the file now"));
        assert!(path.exists(), "it is where it was");
    }

    #[test]
    fn services_that_cannot_be_read_stay_where_they_are_and_a_change_does_not_lose_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        let (path, kept) = (dir.path("services.json"), dir.path("services.json.unread"));
        let known = BTreeMap::from([("web".to_owned(), "80".to_owned())]);
        dir.set_services(&known).expect("ours");
        let set = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, mode).expect("ours");
        };
        let unread = || {
            let (services, fault) = dir.services::<BTreeMap<String, String>>();
            assert!(services.is_empty());
            match fault {
                Some(ServicesFault::Unread(why)) => why,
                other => panic!("{other:?}"),
            }
        };
        // A secret file that others can read is not read.
        set(0o640);
        for _ in 0..2 {
            assert!(unread().contains("services.json.unread"));
        }
        set(0o600);
        assert_eq!(dir.services::<BTreeMap<String, String>>(), (known, None));
        set(0o640);
        unread();
        let none = BTreeMap::<String, String>::new();
        dir.set_services(&none).expect("ours");
        assert_eq!(dir.services::<BTreeMap<String, String>>(), (none, None));
        let kept = std::fs::read_to_string(&kept).expect("it is kept");
        assert!(kept.contains("web"), "{kept}");
    }
}
