//! The metrics of a node.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use meshd::testbed::Host;

/// The page of metrics that the node on a host serves.
pub(crate) fn scrape(host: &Host) -> String {
    let page = host.inside(read);
    page.expect("a namespace").expect("the node serves metrics")
}

fn read() -> std::io::Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], 9560));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
