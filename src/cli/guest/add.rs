//! `meshctl guest add`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::config::{GuestConfig, qr_code};
use super::{door, remove};
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, mesh_key, table};
use crate::model::time::{UnixSeconds, next_version};
use crate::model::{Label, MeshAddresses, PublicKey, SigningKey, WireGuardKey};
use crate::os::{arguments, clock, random};
use crate::protocol::admin::{MeshState, Submit, Submitted};
use crate::protocol::api::ErrorCode;
use crate::records::kinds::{Door, Guest, MAX_GUEST_TAGS};
use crate::records::ledger::guests;
use crate::records::netmap::{GuestAt, Member};
use crate::records::{Envelope, Ledger};

/// How long the door may take to lease addresses to the guest.
const LEASE_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval at which the records are read until it did.
const LEASE_INTERVAL: Duration = Duration::from_millis(300);

/// Options of the new guest.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl guest add anna --door web-1 --qr               a code for the camera of a phone
  meshctl guest add anna --door web-1 > anna.conf        a file for `wg-quick up ./anna.conf`
  meshctl guest add ci --door web-1 --tag ci --ttl 30d

The configuration has the private key of the guest, which is stored nowhere else: it is for one device. With --public-key the private
key never leaves the device. All that the guest sends passes through its door, which can read and change it.")]
pub(in crate::cli) struct AddArguments {
    /// The name of the guest: NAME.guest.mesh
    #[arg(value_name = "NAME", value_parser = arguments::label)]
    name: Label,
    /// The node through which it reaches the mesh
    #[arg(long, value_name = "NODE", value_parser = arguments::label)]
    door: Label,
    /// The public key of the device, as `wg pubkey` and the apps show it [default: a new key is made]
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    public_key: Option<WireGuardKey>,
    /// A tag that the policy selects; may be given several times
    #[arg(long = "tag", value_name = "T", value_parser = arguments::label)]
    tags: Vec<Label>,
    /// How long it is let in: 12h, 30d [default: until it is removed]
    #[arg(long, value_name = "TIME", value_parser = arguments::duration("1s", "3650d", "12h or 30d"), allow_hyphen_values = true)]
    ttl: Option<Duration>,
    /// The address at which it reaches the door [default: a public address of the door]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = arguments::socket_address)]
    endpoint: Option<SocketAddr>,
    /// Print a QR code in place of the text
    #[arg(long, conflicts_with_all = ["json", "public_key"])]
    qr: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// `meshctl guest add --json`.
#[derive(Serialize)]
struct AddedGuest<'a> {
    schema: u32,
    name: &'a Label,
    /// The public half of the key of its tunnel.
    key: WireGuardKey,
    door: &'a Label,
    address_v4: std::net::Ipv4Addr,
    address_v6: std::net::Ipv6Addr,
    /// Where the guest reaches its door.
    endpoint: SocketAddr,
    /// The time from which the door does not let it in. It is null if it stays until it is removed.
    expires_at: Option<UnixSeconds>,
    /// The configuration, which has secrets in it.
    config: &'a str,
}

fn parse_key(text: &str) -> Result<WireGuardKey, String> {
    let key: Option<WireGuardKey> = text.parse().ok();
    // With a point of small order, everybody would know the keys of the session.
    let own = StaticSecret::from([1; 32]);
    let is_usable = |key: &WireGuardKey| {
        let theirs = x25519_dalek::PublicKey::from(key.0);
        own.diffie_hellman(&theirs).was_contributory()
    };
    key.filter(is_usable).ok_or_else(|| {
        "it is a public key of WireGuard, 44 characters as `wg pubkey` prints them, such as xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
            .to_owned()
    })
}

pub(in crate::cli) async fn run(
    arguments: AddArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    let state: MeshState = globals.coordinator().get("/v1/mesh").await?;
    let (held, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    let live = Live::of_mesh(held, globals).await?;
    let netmap = live.netmap(None);
    let mesh = netmap.mesh.as_ref().ok_or_else(mesh_key::no_mesh)?;
    let (member, door_key) = door::find(&arguments.door, &netmap, live.ledger())?;
    let endpoint = match arguments.endpoint {
        Some(endpoint) => endpoint,
        None => door::endpoint(member)?,
    };
    let (id, private_key) = match arguments.public_key {
        Some(public) => (public, None),
        None => {
            let private = new_private_key()?;
            (public_half(&private), Some(private))
        }
    };
    check(&arguments, id, live.ledger())?;
    let preshared_key = random_bytes()?;
    let guest = record(&arguments, id, member.id, &preshared_key)?;
    submit(&guest, &key, globals).await?;
    let Some(at) = wait_for_lease(&guest, member.id, held, globals).await? else {
        remove::submit(id, &key, globals).await?;
        return Err(no_lease(member));
    };
    let config = GuestConfig {
        private_key,
        preshared_key,
        addresses: (at.v4, at.v6),
        dns: mesh.addresses.dns_v4(),
        door: door_key,
        prefixes: prefixes(&mesh.addresses),
        endpoint,
    };
    print(&arguments, &guest, &at, &config)
}

fn prefixes(mesh: &MeshAddresses) -> [ipnet::IpNet; 2] {
    [mesh.prefix_v4.into(), mesh.prefix_v6.into()]
}

/// Checks that the name and the key are free.
fn check(arguments: &AddArguments, id: WireGuardKey, ledger: &Ledger) -> Result<(), CliError> {
    let refuse = |text: String| Err(CliError::new(ErrorCode::Conflict, text));
    let name = &arguments.name;
    if arguments.tags.len() > MAX_GUEST_TAGS {
        let text =
            format!("guest add: a guest has at most {MAX_GUEST_TAGS} tags; give fewer of --tag");
        return Err(CliError::new(ErrorCode::BadRequest, text));
    }
    let all = guests::guests(ledger);
    if all.contains_key(name) {
        return refuse(format!(
            "guest add: there is a guest {name} already; take another name, or remove that one with `meshctl guest remove {name}`"
        ));
    }
    if let Some(holder) = all.values().find(|guest| guest.id == id) {
        return refuse(format!(
            "guest add: the guest {} has this key already; a key is for one device, so make another one with `wg genkey`",
            holder.name
        ));
    }
    if guests::is_removed(ledger, &id) || guests::record_of(ledger, &id).is_some() {
        return refuse(
            "guest add: a guest with this key was removed, for good; make another key with `wg genkey`"
                .to_owned(),
        );
    }
    let names = ledger.names();
    let mut nodes = ledger.nodes();
    let node = nodes.find(|node| node.wireguard_key == id || node.guest_key == Some(id));
    if let Some(name) = node.and_then(|node| names.get(&node.id)) {
        return refuse(format!(
            "guest add: this is the key of the node {name}; give the public key of the guest's own device"
        ));
    }
    Ok(())
}

/// The record of the guest.
fn record(
    arguments: &AddArguments,
    id: WireGuardKey,
    door: PublicKey,
    preshared_key: &[u8; 32],
) -> Result<Guest, CliError> {
    let now = clock::wall();
    let at = UnixSeconds::from_system(now);
    let random = random_bytes()?;
    let door = Door::seal(door, &id, preshared_key, &random);
    let door = door.ok_or_else(|| {
        CliError::failed(
            "guest add: the identity of the door is no key; name another node with --door",
        )
    })?;
    Ok(Guest {
        id,
        version: next_version(0, now),
        name: arguments.name.clone(),
        tags: arguments.tags.clone(),
        doors: vec![door],
        preshared_hash: Guest::hash_of(preshared_key),
        expires_at: arguments.ttl.map(|ttl| at.plus(ttl)),
    })
}

async fn submit(guest: &Guest, key: &SigningKey, globals: &Globals) -> Result<(), CliError> {
    let submit = Submit {
        mesh_key: None,
        records: vec![Envelope::seal_payload(guest.payload(), key)],
    };
    let _: Submitted = globals.coordinator().post("/v1/records", &submit).await?;
    Ok(())
}

/// Waits until the record of the door has the addresses of the guest. None if that takes too long.
async fn wait_for_lease(
    guest: &Guest,
    door: PublicKey,
    mesh_key: PublicKey,
    globals: &Globals,
) -> Result<Option<GuestAt>, CliError> {
    let wait = async {
        loop {
            let live = Live::of_mesh(mesh_key, globals).await?;
            let guests = live.netmap(None).guests;
            let mut guests = guests.into_iter();
            if let Some(at) = guests.find(|at| at.key == guest.id && at.door == door) {
                return Ok(at);
            }
            tokio::time::sleep(LEASE_INTERVAL).await;
        }
    };
    match tokio::time::timeout(LEASE_TIMEOUT, wait).await {
        Ok(found) => found.map(Some),
        Err(_) => Ok(None),
    }
}

fn no_lease(door: &Member) -> CliError {
    let text = format!(
        "guest add: {} gave the guest no address within {} s, so the guest was not added; look whether it is connected with `meshctl node list`, and at its problems with `meshctl status` there",
        door.name,
        LEASE_TIMEOUT.as_secs()
    );
    CliError::new(ErrorCode::Unreachable, text)
}

fn print(
    arguments: &AddArguments,
    guest: &Guest,
    at: &GuestAt,
    config: &GuestConfig,
) -> Result<u8, CliError> {
    let text = config.text();
    let (name, door) = (&guest.name, &arguments.door);
    eprintln!(
        "{name} is a guest behind {door}, which it has to trust: all that {name} sends passes through {door}, which can read and change it"
    );
    if config.private_key.is_some() {
        eprintln!(
            "the private key is in this configuration and stored nowhere: use it on one device, and do not keep a copy"
        );
    } else {
        eprintln!("put the private key of the device where the configuration says so");
    }
    if arguments.json {
        return table::json(&AddedGuest {
            schema: 1,
            name,
            key: guest.id,
            door,
            address_v4: at.v4,
            address_v6: at.v6,
            endpoint: config.endpoint,
            expires_at: guest.expires_at,
            config: &text,
        });
    }
    if arguments.qr {
        let code = qr_code(&text).map_err(CliError::failed)?;
        table::line(&code);
    } else {
        table::raw(text.as_bytes());
    }
    Ok(0)
}

fn random_bytes() -> Result<Zeroizing<[u8; 32]>, CliError> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    random::fill(bytes.as_mut_slice()).map_err(CliError::failed)?;
    Ok(bytes)
}

/// A new private key in the form that `wg genkey` prints (RFC 7748 section 5).
fn new_private_key() -> Result<Zeroizing<[u8; 32]>, CliError> {
    let mut key = random_bytes()?;
    if let [first, .., last] = &mut key[..] {
        *first &= 0xf8;
        *last = (*last & 0x7f) | 0x40;
    }
    Ok(key)
}

fn public_half(private: &[u8; 32]) -> WireGuardKey {
    let secret = StaticSecret::from(*private);
    WireGuardKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::kinds::Record;
    use crate::testbed::records as build;
    use crate::testbed::records::label;

    fn arguments(name: &str) -> AddArguments {
        AddArguments {
            name: label(name),
            door: label("web-1"),
            public_key: None,
            tags: vec![],
            ttl: None,
            endpoint: None,
            qr: false,
            json: false,
        }
    }

    /// A mesh of the node `web-1`, with the guest `anna` and with a guest that was removed.
    fn ledger() -> (Ledger, [WireGuardKey; 3]) {
        let mut ledger = Ledger::new(build::id(1));
        let (node, token) = (build::id(10), build::id(2));
        for (record, signer) in [
            (Record::Mesh(build::mesh()), 1),
            (Record::Token(build::token(&token)), 1),
            (
                Record::Membership(build::membership(&node, &token, "web-1")),
                2,
            ),
            (Record::Node(build::node(&node, build::block(1))), 10),
        ] {
            ledger.apply(build::sealed(&record, signer)).expect("valid");
        }
        let ids = [7, 8].map(|n| public_half(&[n; 32]));
        for (id, name) in ids.into_iter().zip(["anna", "former"]) {
            let guest = record(&arguments(name), id, node, &[1; 32]).expect("random numbers");
            let envelope = Envelope::seal_payload(guest.payload(), &build::key(1));
            ledger.apply(envelope).expect("valid");
        }
        let removal = Guest::removal_payload(ids[1]);
        let removal = Envelope::seal_payload(removal, &build::key(1));
        ledger.apply(removal).expect("valid");
        (ledger, [ids[0], ids[1], WireGuardKey(node.0)])
    }

    #[test]
    fn a_name_or_a_key_that_is_in_use_is_refused_and_told_by_whom() {
        let (ledger, [anna, former, node]) = ledger();
        let said = |name: &str, id| check(&arguments(name), id, &ledger).map_err(|e| e.message);
        let free = public_half(&[9; 32]);
        assert_eq!(said("bert", free), Ok(()));
        assert_eq!(said("former", free), Ok(()), "the name is free again");
        for (name, id, part) in [
            ("anna", free, "there is a guest anna already"),
            ("bert", anna, "the guest anna has this key already"),
            ("bert", former, "was removed, for good"),
            ("bert", node, "the key of the node web-1"),
        ] {
            let said = said(name, id).expect_err(part);
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn a_public_key_is_one_of_wireguard_and_of_no_small_order() {
        let key = public_half(&[9; 32]);
        assert_eq!(parse_key(&key.to_string()), Ok(key));
        let zero = WireGuardKey([0; 32]).to_string();
        for odd in ["", "anna", &zero, "AQEB", &format!("{key}A")] {
            assert!(parse_key(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_new_private_key_has_the_form_of_wg_genkey() {
        let key = new_private_key().expect("random numbers");
        assert_eq!((key[0] & 7, key[31] & 0xc0), (0, 0x40));
        assert_ne!(key, new_private_key().expect("random numbers"));
    }

    #[test]
    fn a_record_expires_after_its_time_and_without_one_never() {
        let (id, door) = (public_half(&[9; 32]), build::id(10));
        let made = |ttl| {
            let arguments = AddArguments {
                ttl,
                ..arguments("anna")
            };
            record(&arguments, id, door, &[1; 32]).expect("random numbers")
        };
        assert_eq!(made(None).expires_at, None);
        let expires = made(Some(Duration::from_secs(3600))).expires_at;
        assert!(expires > Some(UnixSeconds::from_system(clock::wall())));
        assert_eq!(
            made(None).preshared(&build::key(10)).as_deref(),
            Some(&[1; 32])
        );
    }
}
