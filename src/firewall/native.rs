//! The way to a bridge whose containers have mesh addresses: a route to their range, and the bridge answers their questions
//! for the rest of the mesh, all of which they take for neighbours.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::Native;
use super::refused::Refused;
use crate::model::interface::is_plain_interface;

/// The kernel's own, in hundredths of a second.
const PROXY_DELAY: &str = "80";

/// Brings it about, whatever of it is there already.
pub(super) async fn lead(handle: &Handle, native: &Native, node: Ipv4Addr) -> Result<(), Refused> {
    let index = index(handle, &native.bridge).await?;
    answer_for_all(native, true)?;
    let route = handle.route().add(route(native, index, Some(node)));
    let added = route.replace().execute().await;
    added.map_err(|error| Refused::Said("add a route", error.to_string()))
}

/// Takes it away.
pub(super) async fn lead_away(handle: &Handle, native: &Native) -> Result<(), Refused> {
    let index = index(handle, &native.bridge).await?;
    answer_for_all(native, false)?;
    let removed = handle
        .route()
        .del(route(native, index, None))
        .execute()
        .await;
    removed.map_err(|error| Refused::Said("remove a route", error.to_string()))
}

fn route(native: &Native, index: u32, source: Option<Ipv4Addr>) -> RouteMessage {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(native.range.network(), native.range.prefix_len())
        .output_interface(index);
    match source {
        Some(source) => route.pref_source(source).build(),
        None => route.build(),
    }
}

async fn index(handle: &Handle, bridge: &str) -> Result<u32, Refused> {
    let mut links = handle.link().get().match_name(bridge.to_owned()).execute();
    let link: Result<Option<LinkMessage>, rtnetlink::Error> = links.try_next().await;
    match link {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(Refused::Said(
            "look for the bridge",
            "it is not there".into(),
        )),
        Err(error) => Err(Refused::Said("look for the bridge", error.to_string())),
    }
}

/// Has the bridge answer for all addresses that are led elsewhere (`proxy_arp`), or not. At once: the kernel's delay is for
/// links where the owner may answer as well.
fn answer_for_all(native: &Native, on: bool) -> Result<(), Refused> {
    const WHAT: &str = "proxy_arp";
    if !is_plain_interface(&native.bridge) {
        return Err(Refused::Said(
            WHAT,
            "the name of the bridge is not plain".into(),
        ));
    }
    let bridge = &native.bridge;
    let settings = [
        (
            format!("/proc/sys/net/ipv4/conf/{bridge}/proxy_arp"),
            ["0", "1"],
        ),
        (
            format!("/proc/sys/net/ipv4/neigh/{bridge}/proxy_delay"),
            [PROXY_DELAY, "0"],
        ),
    ];
    for (path, [usual, ours]) in settings {
        let written = std::fs::write(path, if on { ours } else { usual });
        written.map_err(|error| Refused::Said(WHAT, error.to_string()))?;
    }
    Ok(())
}
