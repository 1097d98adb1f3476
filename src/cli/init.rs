//! `meshctl init`: creates the mesh key and sends its public half to the coordinator.

use clap::Args;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::exit::CliError;
use super::{Globals, mesh_key, table};
use crate::model::address::{MeshAddresses, unique_local_prefix};
use crate::model::time::next_version;
use crate::model::{Label, PublicKey};
use crate::os::clock;
use crate::protocol::admin::{MeshState, Submit, Submitted};
use crate::protocol::api::ErrorCode;
use crate::records::Envelope;
use crate::records::kinds::{MESH_ID, Mesh, Record};

/// The arguments of `meshctl init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl init                              the key is /etc/meshd/mesh.key
  meshctl init --mesh-key /root/mesh.key    the key is another file

Run it once, where mesh-coordinator runs. Store a copy of the key in another place: with it alone can nodes be admitted
and removed.")]
pub(super) struct InitArguments {
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// `meshctl init --json`.
#[derive(Debug, Serialize)]
struct Initialized {
    schema: u32,
    /// Whether this command made the mesh. It may have existed before.
    created: bool,
    mesh_key: PublicKey,
    domain: Label,
    prefix_v4: Ipv4Net,
    prefix_v6: Ipv6Net,
}

impl Initialized {
    fn of(mesh: &Mesh, key: PublicKey, created: bool) -> Self {
        Self {
            schema: 1,
            created,
            mesh_key: key,
            domain: mesh.domain.clone(),
            prefix_v4: mesh.addresses.prefix_v4,
            prefix_v6: mesh.addresses.prefix_v6,
        }
    }
}

pub(super) async fn run(arguments: &InitArguments, globals: &Globals) -> Result<u8, CliError> {
    let coordinator = globals.coordinator();
    // The coordinator is queried first, so that no key remains that no coordinator knows.
    let state: MeshState = coordinator.get("/v1/mesh").await?;
    let path = &globals.mesh_key;
    let key = if path.exists() {
        mesh_key::read(path)?
    } else if let Some(held) = state.mesh_key {
        let text = format!(
            "this coordinator serves the mesh {} already, and its key is not at {}; name its file with --mesh-key, or restore it from a backup",
            held.short(),
            path.display()
        );
        return Err(CliError::new(ErrorCode::Conflict, text));
    } else {
        mesh_key::create(path)?
    };
    if let Some(mesh) = state.mesh.filter(|_| state.mesh_key == Some(key.public())) {
        eprintln!(
            "the mesh {} exists already; nothing changed",
            key.public().short()
        );
        if arguments.json {
            return table::json(&Initialized::of(&mesh, key.public(), false));
        }
        return Ok(0);
    }
    let mesh = Mesh {
        id: MESH_ID.to_owned(),
        version: next_version(0, clock::wall()),
        domain: state.configured_domain,
        addresses: MeshAddresses {
            prefix_v6: unique_local_prefix(&key.public()),
            ..state.configured_addresses
        },
        coordinators: state.urls.iter().map(ToString::to_string).collect(),
    };
    let submit = Submit {
        mesh_key: Some(key.public()),
        records: vec![Envelope::seal(&Record::Mesh(mesh.clone()), &key)],
    };
    let _: Submitted = coordinator.post("/v1/mesh", &submit).await?;
    eprintln!(
        "created the mesh {} with names under .{} and addresses {} and {}",
        key.public().short(),
        mesh.domain,
        mesh.addresses.prefix_v4,
        mesh.addresses.prefix_v6
    );
    eprintln!(
        "its key is {}: store a copy in another place, and keep it secret",
        path.display()
    );
    eprintln!(
        "next: `meshctl token create`, then `meshctl join -` on each server, which reads the token from stdin"
    );
    if arguments.json {
        return table::json(&Initialized::of(&mesh, key.public(), true));
    }
    Ok(0)
}
