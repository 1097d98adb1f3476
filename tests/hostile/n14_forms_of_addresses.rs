//! Rules on addresses in services and endpoints hold for every form in which an address can be written.

use std::net::{IpAddr, SocketAddr};

use meshd::records::{Envelope, Ledger};
use serde_json::{Value, json};

use crate::kit::{Coordinator, Member, record};
use crate::small_mesh::{SmallMesh, assert_taken};

/// The IPv6 addresses that contain the IPv4 address `text`.
fn forms(text: &str) -> Vec<String> {
    let [a, b, c, d] = text.parse::<std::net::Ipv4Addr>().expect("one").octets();
    vec![
        format!("::ffff:{text}"),
        format!("::{text}"),
        format!("64:ff9b::{text}"),
        format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1"),
    ]
}

/// Addresses that a member must not make other nodes send to, in all their forms: addresses of another node, of the DNS service, of
/// the link, of the host itself, and multicast addresses.
fn forbidden(victim: &Member) -> Vec<String> {
    let of_ipv4 = [
        victim.block.node_v4().to_string(),
        "10.210.0.53".to_owned(),
        "169.254.169.254".to_owned(),
        "127.0.0.1".to_owned(),
        "224.0.0.1".to_owned(),
    ];
    let forms = of_ipv4.iter().flat_map(|text| forms(text));
    let of_ipv6 = [
        victim.block.node_v6().to_string(),
        "fe80::1".to_owned(),
        "::1".to_owned(),
        "ff02::1".to_owned(),
    ];
    forms.chain(of_ipv4.clone()).chain(of_ipv6).collect()
}

/// An instance with `address` and with the member's own address.
fn instance(member: &Member, address: &str) -> Value {
    let own = member.block.node_v4();
    let mut instance = record::instance("web-1", own, 80);
    instance["addresses"] = json!([address, own]);
    instance
}

fn service(member: &Member, n: usize, address: &str) -> Envelope {
    let instances = [instance(member, address)];
    let service = record::service(member.id(), &format!("s{n}"), &instances);
    service.signed_by(member.key())
}

fn endpoints(member: &Member, endpoints: &[SocketAddr]) -> Envelope {
    let node = member.node().with("endpoints", endpoints);
    node.signed_by(member.key())
}

/// All addresses of the services of `member`.
fn served(ledger: &Ledger, member: &Member) -> Vec<IpAddr> {
    let netmap = ledger.netmap();
    let services = netmap.services.values().filter(|s| s.node == member.id());
    let instances = services.flat_map(|service| &service.instances);
    instances.flat_map(|i| i.addresses.clone()).collect()
}

fn endpoints_of(ledger: &Ledger, member: &Member) -> Vec<SocketAddr> {
    ledger.netmap().members[&member.id()].endpoints.clone()
}

#[test]
fn a_service_leads_only_to_addresses_of_its_nodes_block_in_their_one_form() {
    let mut mesh = SmallMesh::new(2);
    let [thief, victim] = [mesh.members[0].clone(), mesh.members[1].clone()];
    let mut addresses = forbidden(&victim);
    // The thief's own address in another form is refused as well, since rules on IPv4 addresses do not match it.
    addresses.extend(forms(&thief.block.node_v4().to_string()));
    for (n, address) in addresses.iter().enumerate() {
        let _ = mesh.ledger.apply(service(&thief, n, address));
        let own: IpAddr = thief.block.node_v4().into();
        let served = served(&mesh.ledger, &thief);
        assert!(served.iter().all(|a| *a == own), "{address}: {served:?}");
    }
    // An IPv6 address of the node's own block is accepted.
    let v6 = thief.block.node_v6();
    assert_taken(mesh.ledger.apply(service(&thief, 999, &v6.to_string())));
    assert!(served(&mesh.ledger, &thief).contains(&v6.into()));
}

#[test]
fn no_endpoint_makes_nodes_send_to_the_mesh_to_themselves_or_to_their_own_link() {
    let mut mesh = SmallMesh::new(2);
    let [thief, victim] = [mesh.members[0].clone(), mesh.members[1].clone()];
    let honest: SocketAddr = "198.51.100.7:51820".parse().expect("a literal");
    let mut addresses = forbidden(&victim);
    addresses.extend(forms("192.168.1.1"));
    addresses.push("::ffff:198.51.100.7".to_owned());
    for address in addresses {
        let forbidden = SocketAddr::new(address.parse().expect("an address"), 51820);
        let before = endpoints_of(&mesh.ledger, &thief);
        let taken = mesh.ledger.apply(endpoints(&thief, &[forbidden, honest]));
        let expected = if taken.is_ok() { vec![honest] } else { before };
        assert_eq!(endpoints_of(&mesh.ledger, &thief), expected, "{address}");
    }
    let right: Vec<SocketAddr> = ["198.51.100.7:51820", "[2001:db8::7]:51820"]
        .iter()
        .map(|text| text.parse().expect("a literal"))
        .collect();
    assert_taken(mesh.ledger.apply(endpoints(&thief, &right)));
    assert_eq!(endpoints_of(&mesh.ledger, &thief), right);
}

#[tokio::test]
async fn records_of_a_member_give_other_nodes_no_address_in_a_second_form() {
    let coordinator = Coordinator::start();
    let thief = coordinator.join("thief").await;
    let victim = coordinator.join("victim").await;
    let text = victim.block.node_v4().to_string();
    let mut stream = thief.stream(&coordinator).await;
    let own = thief.node().signed_by(thief.key());
    assert_eq!(stream.publish(vec![own]).await.accepted(), 1);
    let mut records: Vec<Envelope> = forms(&text)
        .iter()
        .enumerate()
        .map(|(n, form)| service(&thief, n, form))
        .collect();
    let link_local = "[fe80::1]:51820".parse().expect("a literal");
    let mapped = "[::ffff:198.51.100.7]:51820".parse().expect("a literal");
    records.push(endpoints(&thief, &[link_local, mapped]));
    let last = thief.service("last").signed_by(thief.key());
    records.push(last.clone());
    stream.publish(records).await;

    let mut stream = victim.stream(&coordinator).await;
    stream.await_record(&last).await.expect("it is held");
    let mut ledger = Ledger::new(coordinator.mesh_key().public());
    for record in &stream.received {
        ledger.apply(record.clone()).expect("held by a coordinator");
    }
    let own: IpAddr = thief.block.node_v4().into();
    let served = served(&ledger, &thief);
    assert!(!served.is_empty() && served.iter().all(|a| *a == own));
    assert_eq!(endpoints_of(&ledger, &thief), []);
}
