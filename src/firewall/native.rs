//! The route to a bridge whose containers have mesh addresses. The containers treat the whole mesh as their local
//! network, so the bridge answers their ARP requests for all addresses of the mesh.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::Native;
use super::error::KernelError;
use crate::model::interface::is_plain_interface;

/// The kernel's default, in hundredths of a second.
const PROXY_DELAY: &str = "80";
/// The step that sets proxy ARP, as errors name it.
pub(super) const PROXY_ARP: &str = "proxy_arp";

/// Adds the route and turns on proxy ARP. It does not matter which of the two is there already.
pub(super) async fn add_route(
    handle: &Handle,
    native: &Native,
    node: Ipv4Addr,
) -> Result<(), KernelError> {
    let index = index(handle, &native.bridge).await?;
    set_proxy_arp(native, true)?;
    let route = handle.route().add(route(native, index, Some(node)));
    let added = route.replace().execute().await;
    added.map_err(|error| KernelError::Failed("add a route", error.to_string()))
}

/// Removes the route and turns proxy ARP off.
pub(super) async fn remove_route(handle: &Handle, native: &Native) -> Result<(), KernelError> {
    let index = index(handle, &native.bridge).await?;
    set_proxy_arp(native, false)?;
    let removed = handle
        .route()
        .del(route(native, index, None))
        .execute()
        .await;
    removed.map_err(|error| KernelError::Failed("remove a route", error.to_string()))
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

async fn index(handle: &Handle, bridge: &str) -> Result<u32, KernelError> {
    let mut links = handle.link().get().match_name(bridge.to_owned()).execute();
    let link: Result<Option<LinkMessage>, rtnetlink::Error> = links.try_next().await;
    match link {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(KernelError::Failed(
            "find the bridge",
            "it does not exist".into(),
        )),
        Err(error) => Err(KernelError::Failed("find the bridge", error.to_string())),
    }
}

/// Sets whether the bridge answers ARP requests for all addresses to which a route leads elsewhere (`proxy_arp`). It
/// answers without the kernel's delay, which is for links where the owner of an address may answer as well.
fn set_proxy_arp(native: &Native, on: bool) -> Result<(), KernelError> {
    if !is_plain_interface(&native.bridge) {
        return Err(KernelError::Failed(
            PROXY_ARP,
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
    for (path, [off, on_value]) in settings {
        let written = std::fs::write(path, if on { on_value } else { off });
        written.map_err(|error| KernelError::Failed(PROXY_ARP, error.to_string()))?;
    }
    Ok(())
}
