//! `meshctl guest add`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::config::{GuestConfig, qr_code};
use super::door::{self, Chosen};
use super::remove;
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, mesh_key, table};
use crate::model::text::listed;
use crate::model::time::{UnixSeconds, next_version};
use crate::model::{Label, MeshAddresses, PublicKey, SigningKey, WireGuardKey};
use crate::os::{arguments, clock, random};
use crate::protocol::admin::{MeshState, Submit, Submitted};
use crate::protocol::api::ErrorCode;
use crate::records::kinds::{Door, Guest, MAX_DOORS, MAX_GUEST_TAGS};
use crate::records::ledger::guests;
use crate::records::netmap::GuestAt;
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
  meshctl guest add bert --door web-1 --door db-1 --qr   one code for each door: switch to the other one if a door is down

The configuration has the private key of the guest, which is stored nowhere else: it is for one device. With --public-key the private
key never leaves the device. All that the guest sends passes through its door, which can read and change it.")]
pub(in crate::cli) struct AddArguments {
    /// The name of the guest: NAME.guest.mesh
    #[arg(value_name = "NAME", value_parser = arguments::label)]
    name: Label,
    /// The node through which it reaches the mesh; may be given several times, for one configuration each
    #[arg(long = "door", value_name = "NODE", required = true, value_parser = arguments::label)]
    doors: Vec<Label>,
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
    /// Refused: a door passes nothing on to the internet
    #[arg(long, hide = true)]
    all_traffic: bool,
}

/// `meshctl guest add --json`.
#[derive(Serialize)]
struct AddedGuest<'a> {
    schema: u32,
    name: &'a Label,
    /// The public half of the key of its tunnel.
    key: WireGuardKey,
    /// The time from which no door lets it in. It is null if it stays until it is removed.
    expires_at: Option<UnixSeconds>,
    /// One for each door, in the order of the command line.
    configurations: Vec<Configuration<'a>>,
}

/// The configuration for one door.
#[derive(Serialize)]
struct Configuration<'a> {
    door: &'a Label,
    address_v4: Ipv4Addr,
    address_v6: Ipv6Addr,
    /// Where the guest reaches its door.
    endpoint: SocketAddr,
    /// The text, which has secrets in it.
    config: Zeroizing<String>,
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
    check_use(&arguments)?;
    let state: MeshState = globals.coordinator().get("/v1/mesh").await?;
    let (held, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    let live = Live::of_mesh(held, globals).await?;
    let netmap = live.netmap(None);
    let mesh = netmap.mesh.as_ref().ok_or_else(mesh_key::no_mesh)?;
    let doors = door::choose(&arguments.doors, arguments.endpoint, &netmap, live.ledger())?;
    let (id, private_key) = match arguments.public_key {
        Some(public) => (public, None),
        None => {
            let private = new_private_key()?;
            (public_half(&private), Some(private))
        }
    };
    check(&arguments, id, live.ledger())?;
    let preshared_key = random_bytes()?;
    let ids: Vec<PublicKey> = doors.iter().map(|door| door.member.id).collect();
    let guest = record(&arguments, id, &ids, &preshared_key)?;
    submit(&guest, &key, globals).await?;
    let leased = match wait_for_leases(&guest, &doors, held, globals).await {
        Ok(leased) => leased,
        Err(why) => return Err(take_back(&guest, &key, globals, why).await),
    };
    let configurations = doors.iter().zip(leased).map(|(door, at)| Configuration {
        door: &door.member.name,
        address_v4: at.v4,
        address_v6: at.v6,
        endpoint: door.endpoint,
        config: GuestConfig {
            private_key: private_key.clone(),
            preshared_key: preshared_key.clone(),
            addresses: (at.v4, at.v6),
            dns: mesh.addresses.dns_v4(),
            door: door.key,
            prefixes: prefixes(&mesh.addresses),
            endpoint: door.endpoint,
        }
        .text(),
    });
    print(&arguments, &guest, configurations.collect())
}

/// Checks what does not depend on the mesh.
fn check_use(arguments: &AddArguments) -> Result<(), CliError> {
    let refuse = |text: &str| Err(CliError::new(ErrorCode::BadRequest, text));
    if arguments.all_traffic {
        return refuse(
            "guest add: a guest reaches the mesh and nothing else: a door passes nothing on to the internet; leave --all-traffic out, and use another VPN for that",
        );
    }
    if arguments.doors.len() > 1 && !arguments.qr && !arguments.json {
        return refuse(
            "guest add: with several doors there is one configuration for each, and a file is for one; add --qr for a code each, or --json for one document with all of them",
        );
    }
    Ok(())
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

/// The record of the guest, with the preshared key sealed to each of its doors.
fn record(
    arguments: &AddArguments,
    id: WireGuardKey,
    doors: &[PublicKey],
    preshared_key: &[u8; 32],
) -> Result<Guest, CliError> {
    let now = clock::wall();
    let at = UnixSeconds::from_system(now);
    let seal = |door: &PublicKey| {
        let random = random_bytes()?;
        Door::seal(*door, &id, preshared_key, &random).ok_or_else(|| {
            CliError::failed(format!(
                "guest add: the identity {} of a door is no key; name another node with --door",
                door.short()
            ))
        })
    };
    Ok(Guest {
        id,
        version: next_version(0, now),
        name: arguments.name.clone(),
        tags: arguments.tags.clone(),
        doors: doors.iter().map(seal).collect::<Result<_, CliError>>()?,
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

/// Waits until the record of each door has the addresses of the guest. Returns them in the order of the doors.
async fn wait_for_leases(
    guest: &Guest,
    doors: &[Chosen<'_>],
    mesh_key: PublicKey,
    globals: &Globals,
) -> Result<Vec<GuestAt>, CliError> {
    let mut missing = None;
    let wait = async {
        loop {
            let live = Live::of_mesh(mesh_key, globals).await?;
            match leases(guest, &live.netmap(None).guests) {
                Ok(all) => return Ok::<_, CliError>(all),
                Err(door) => missing = Some(door),
            }
            tokio::time::sleep(LEASE_INTERVAL).await;
        }
    };
    let ended = tokio::time::timeout(LEASE_TIMEOUT, wait).await;
    ended.unwrap_or_else(|_| {
        let door = doors.iter().find(|door| Some(door.member.id) == missing);
        let door = door.or(doors.first());
        Err(no_lease(
            door.map_or("the door", |d| d.member.name.as_str()),
        ))
    })
}

/// The addresses that each door leased to the guest, in the order of its doors; or a door that leased none.
fn leases(guest: &Guest, all: &[GuestAt]) -> Result<Vec<GuestAt>, PublicKey> {
    let lease = |door: &Door| {
        let mut all = all.iter();
        let at = all.find(|at| at.key == guest.id && at.door == door.node);
        at.cloned().ok_or(door.node)
    };
    guest.doors.iter().map(lease).collect()
}

/// Removes a guest whose configuration nobody gets, because of `why`. Returns the error with what became of the guest.
async fn take_back(guest: &Guest, key: &SigningKey, globals: &Globals, why: CliError) -> CliError {
    let CliError { code, message } = why;
    let name = &guest.name;
    let left = match remove::submit(guest.id, key, globals).await {
        Ok(()) => format!("{name} was not added"),
        Err(error) => format!(
            "{name} was added all the same, and could not be removed ({}): remove it with `meshctl guest remove {name}`",
            error.message
        ),
    };
    let message = format!("{message}; {left}");
    CliError { code, message }
}

fn no_lease(door: &str) -> CliError {
    let text = format!(
        "guest add: {door} gave the guest no address within {} s; look whether it is connected with `meshctl node list`, and at its problems with `meshctl status` there",
        LEASE_TIMEOUT.as_secs()
    );
    CliError::new(ErrorCode::Unreachable, text)
}

fn print(
    arguments: &AddArguments,
    guest: &Guest,
    configurations: Vec<Configuration<'_>>,
) -> Result<u8, CliError> {
    let (name, doors) = (&guest.name, listed(&arguments.doors, MAX_DOORS));
    eprintln!(
        "{name} is a guest behind {doors}, which it has to trust: all that {name} sends passes there, and can be read and changed there"
    );
    if arguments.public_key.is_none() {
        eprintln!(
            "the private key is in what follows and stored nowhere: use it on one device, and do not keep a copy"
        );
    } else {
        eprintln!("put the private key of the device where the configuration says so");
    }
    if arguments.json {
        return table::json(&AddedGuest {
            schema: 1,
            name,
            key: guest.id,
            expires_at: guest.expires_at,
            configurations,
        });
    }
    for Configuration { door, config, .. } in &configurations {
        if arguments.qr {
            eprintln!("through {door}:");
            let code = qr_code(config).map_err(CliError::failed)?;
            table::line(&code);
        } else {
            table::raw(config.as_bytes());
        }
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
            doors: vec![label("web-1")],
            public_key: None,
            tags: vec![],
            ttl: None,
            endpoint: None,
            qr: false,
            json: false,
            all_traffic: false,
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
            let guest = record(&arguments(name), id, &[node], &[1; 32]).expect("random numbers");
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
            record(&arguments, id, &[door], &[1; 32]).expect("random numbers")
        };
        assert_eq!(made(None).expires_at, None);
        let expires = made(Some(Duration::from_secs(3600))).expires_at;
        assert!(expires > Some(UnixSeconds::from_system(clock::wall())));
        assert_eq!(
            made(None).preshared(&build::key(10)).as_deref(),
            Some(&[1; 32])
        );
    }

    #[test]
    fn a_guest_of_two_doors_has_addresses_at_both_before_its_configurations_are_printed() {
        let (id, doors) = (public_half(&[9; 32]), [build::id(10), build::id(11)]);
        let guest = record(&arguments("anna"), id, &doors, &[1; 32]).expect("random numbers");
        for door in [10, 11] {
            let opened = guest.preshared(&build::key(door));
            assert_eq!(opened.as_deref(), Some(&[1; 32]), "{door}");
        }
        let at = |door: PublicKey, host: u8| GuestAt {
            name: label("anna"),
            key: id,
            tags: vec![],
            door,
            v4: [10, 210, host, 254].into(),
            v6: "fd00::fe".parse().expect("a literal"),
            heard: false,
        };
        let [first, second] = [at(doors[0], 1), at(doors[1], 2)];
        assert_eq!(leases(&guest, &[]), Err(doors[0]));
        let one = std::slice::from_ref(&first);
        assert_eq!(leases(&guest, one), Err(doors[1]));
        let both = [second.clone(), first.clone()];
        assert_eq!(leases(&guest, &both), Ok(vec![first, second]));
    }

    #[test]
    fn several_doors_and_all_traffic_are_refused_where_they_make_no_configuration() {
        let said = |arguments: &AddArguments| check_use(arguments).map_err(|e| e.message);
        let two = || AddArguments {
            doors: vec![label("web-1"), label("web-2")],
            ..arguments("anna")
        };
        assert_eq!(said(&arguments("anna")), Ok(()));
        let text = said(&two()).expect_err("a file is for one");
        assert!(text.contains("--qr") && text.contains("--json"), "{text}");
        let qr = AddArguments { qr: true, ..two() };
        assert_eq!(said(&qr), Ok(()));
        let all = AddArguments {
            all_traffic: true,
            ..arguments("anna")
        };
        let text = said(&all).expect_err("there is no way out");
        assert!(text.contains("leave --all-traffic out"), "{text}");
    }
}
