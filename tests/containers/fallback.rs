//! A machine whose kernel cannot map addresses.

use crate::hosts::Hosts;

#[test]
fn without_nft_a_published_port_on_the_nodes_address_is_answered() {
    let Some(mut hosts) = Hosts::start(2) else {
        return;
    };
    // This host's own view of the machine's files.
    hosts.exec(1, &["sh", "-c", "rm $(command -v nft)"]);
    for n in [0, 1] {
        hosts.join(n);
    }
    hosts.wait_for_peers();
    let labels = ["--label", "mesh.service=web", "--label", "mesh.port=7777"];
    let published = [&labels[..], &["-p", "8081:7777"]].concat();
    hosts.run(1, "published", "bridge", &published);
    hosts.serve(1, "unpublished", "bridge", "hidden");
    assert_eq!(hosts.wait_for(0, "web", 1), [hosts.node(1)]);
    let ports: Vec<u16> = hosts
        .instances(0, "web")
        .iter()
        .map(|row| row.port)
        .collect();
    assert_eq!(ports, [8081]);
    let server = "web.svc.mesh:8081";
    let asked = hosts.exec(0, &hosts.words("", &["ask", "tcp", server]));
    assert_eq!(asked, hosts.node(0).to_string());
    assert_eq!(hosts.instances(0, "hidden").len(), 0);
    let problems = hosts.status(1).problems;
    let said = problems
        .iter()
        .find(|p| p.what.contains("no mesh addresses"));
    let said = said.unwrap_or_else(|| panic!("{problems:?}"));
    assert!(
        said.why.contains("nft") && said.fix.contains("install nftables"),
        "{said:?}"
    );
}
