//! Creates links and addresses from inside a namespace.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use super::TestbedError;
use crate::os::tasks::Tasks;

/// Runs `work` with a netlink handle of this thread's network namespace.
pub(super) fn with_netlink<T>(
    work: impl AsyncFnOnce(Handle) -> Result<T, TestbedError>,
) -> Result<T, TestbedError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| TestbedError::Io("start a runtime", e))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| TestbedError::Io("open netlink", e))?;
        let connection = Tasks::current().spawn_child("testbed netlink", connection);
        let _connection = connection.abort_on_drop();
        work(handle).await
    })
}

async fn index(handle: &Handle, name: &str) -> Result<u32, TestbedError> {
    let fault = |e| TestbedError::Netlink("find an interface", e);
    let link = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await
        .map_err(fault)?;
    link.map(|link| link.header.index)
        .ok_or_else(|| TestbedError::Io("find an interface", std::io::ErrorKind::NotFound.into()))
}

pub(super) fn create_bridge(name: &str) -> Result<(), TestbedError> {
    with_netlink(async |handle| {
        let bridge = LinkBridge::new(name).up().build();
        handle
            .link()
            .add(bridge)
            .execute()
            .await
            .map_err(|e| TestbedError::Netlink("make a bridge", e))
    })
}

/// Creates a virtual cable from `bridge` in this namespace to `eth0` in the namespace of process `pid`.
pub(super) fn plug(bridge: &str, port: &str, pid: u32) -> Result<(), TestbedError> {
    with_netlink(async |handle| {
        let far = format!("{port}p");
        let fault = |e| TestbedError::Netlink("make a cable", e);
        handle
            .link()
            .add(LinkVeth::new(port, &far).build())
            .execute()
            .await
            .map_err(fault)?;
        let bridge = index(&handle, bridge).await?;
        let (near, far_index) = (index(&handle, port).await?, index(&handle, &far).await?);
        handle
            .link()
            .set(
                LinkUnspec::new_with_index(near)
                    .controller(bridge)
                    .up()
                    .build(),
            )
            .execute()
            .await
            .map_err(fault)?;
        let moved = LinkUnspec::new_with_index(far_index)
            .name("eth0".to_owned())
            .setns_by_pid(pid)
            .build();
        handle.link().set(moved).execute().await.map_err(fault)
    })
}

/// Brings up `lo`, and `eth0` with `addresses`.
pub(super) fn bring_up(addresses: &[(IpAddr, u8)]) -> Result<(), TestbedError> {
    with_netlink(async |handle| {
        let fault = |e| TestbedError::Netlink("bring an interface up", e);
        let eth0 = index(&handle, "eth0").await?;
        for link in [index(&handle, "lo").await?, eth0] {
            handle
                .link()
                .set(LinkUnspec::new_with_index(link).up().build())
                .execute()
                .await
                .map_err(fault)?;
        }
        for (address, length) in addresses {
            match add_address(&handle, eth0, *address, *length).await {
                Err(TestbedError::Netlink(_, error))
                    if address.is_ipv6() && is_without_ipv6(&error) => {}
                added => added?,
            }
        }
        Ok(())
    })
}

/// Whether the error is that this machine has no IPv6.
fn is_without_ipv6(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(error) = error else {
        return false;
    };
    matches!(
        error.raw_code().saturating_neg(),
        libc::EACCES | libc::EAFNOSUPPORT | libc::EOPNOTSUPP
    )
}

async fn add_address(
    handle: &Handle,
    link: u32,
    address: IpAddr,
    length: u8,
) -> Result<(), TestbedError> {
    let mut request = handle.address().add(link, address, length);
    // No other host can have this address, so duplicate address detection would only be a delay.
    if address.is_ipv6() {
        request.message_mut().header.flags |=
            rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
    }
    request
        .execute()
        .await
        .map_err(|e| TestbedError::Netlink("add an address", e))
}

/// Adds an address to `eth0`.
pub(super) fn add(address: IpAddr, length: u8) -> Result<(), TestbedError> {
    with_netlink(async |handle| {
        let eth0 = index(&handle, "eth0").await?;
        add_address(&handle, eth0, address, length).await
    })
}

/// Sets an interface up or down.
pub(super) fn set_up(name: &str, up: bool) -> Result<(), TestbedError> {
    with_netlink(async |handle| {
        let link = LinkUnspec::new_with_index(index(&handle, name).await?);
        let link = if up { link.up() } else { link.down() };
        handle
            .link()
            .set(link.build())
            .execute()
            .await
            .map_err(|e| TestbedError::Netlink("set an interface", e))
    })
}
