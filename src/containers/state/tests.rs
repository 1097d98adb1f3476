//! Sequences of events as engines send them, on a virtual clock.

use std::time::Duration;

use super::*;
use crate::containers::inspect::{Endpoint, EngineHealth, EngineNetwork, Image, Published};
use crate::containers::labels::{Facts, Labels};
use crate::records::kinds::Protocol;

/// A node with an engine, and a clock.
struct World {
    containers: Containers,
    now: Instant,
}

fn id(n: u32) -> ContainerId {
    ContainerId::parse(&format!("{n:064x}")).expect("hexadecimal")
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

fn service(text: &str) -> ServiceName {
    ServiceName::parse(text).expect("a literal")
}

fn context() -> NodeContext {
    NodeContext {
        node: label("n1"),
        addresses: vec!["10.210.1.1".parse().expect("a literal")],
        block: Block {
            v4: "10.210.1.0/24".parse().expect("a literal"),
            v6: "fd00:1:2:1::/64".parse().expect("a literal"),
        },
        rules: Rules::default(),
        network: None,
    }
}

/// A running container with `mesh.service=web` on a bridge, and `more` labels.
fn web(n: u32, more: &[(&str, &str)]) -> Inspected {
    let mut labels = Labels::from([("mesh.service".to_owned(), "web".to_owned())]);
    labels.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let endpoint = Endpoint {
        v4: Some(Ipv4Addr::from(0xac12_0000 + n + 2)),
        v6: None,
        network: "net".into(),
    };
    Inspected {
        id: id(n),
        name: format!("shop_web_{n}"),
        image: Image {
            id: "sha256:1".into(),
            labels: Some(Labels::new()),
        },
        labels,
        run: "first".into(),
        status: Status::Running,
        pid: Some(1000 + n),
        health: None,
        facts: Facts {
            exposed: BTreeSet::from([(Protocol::Tcp, 80.try_into().expect("not zero"))]),
            has_healthcheck: false,
        },
        stop_signal: SIGTERM,
        network: Network::Attached(BTreeMap::from([("shop_default".into(), endpoint)])),
        published: Vec::new(),
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut containers = Containers::new(context(), BTreeMap::new(), now);
        containers.handle_networks(vec![network("net", "bridge", false)]);
        Self { containers, now }
    }

    fn wait(&mut self, seconds: u64) -> bool {
        self.now += Duration::from_secs(seconds);
        self.containers.handle_time(self.now)
    }

    fn inspected(&mut self, inspected: &Inspected) {
        self.containers.handle_inspected(inspected, self.now);
    }

    fn happened(&mut self, n: u32, action: Action) {
        self.containers.handle_event(&id(n), action, self.now);
    }

    /// Starts a container and makes it ready.
    fn up(&mut self, n: u32) {
        self.happened(n, Action::Start);
        self.inspected(&web(n, &[]));
        self.containers.handle_probe(&id(n), true);
    }

    fn offers(&self) -> BTreeMap<ServiceName, Offer> {
        self.containers
            .offers(&BTreeSet::new(), &self.applied(), self.now)
    }

    /// The mappings of a kernel that has applied all of them.
    fn applied(&self) -> AppliedMappings {
        let (v4, v6) = (self.containers.mappings(), mappings_v6(&self.containers));
        let v4 = v4.into_iter();
        let v4 = v4.map(|(address, m)| (address.into(), m.container.into()));
        let v6 = v6.into_iter();
        let v6 = v6.map(|(address, m)| (address.into(), m.container.into()));
        AppliedMappings::Mapped(v4.chain(v6).collect())
    }

    /// The published instances of a service, with their health.
    fn published(&self, name: &str) -> Vec<(String, Health)> {
        let offers = self.offers();
        let offer = offers.get(&service(name)).cloned().unwrap_or_default();
        let instances = offer.instances.iter();
        instances.map(|i| (i.id.to_string(), i.health)).collect()
    }

    fn mapped(&self) -> Vec<String> {
        let mappings = self.containers.mappings();
        mappings
            .iter()
            .map(|(address, mapping)| format!("{address} {}", mapping.container))
            .collect()
    }

    fn problems(&self) -> Vec<String> {
        let problems = self.containers.problems(self.now);
        problems
            .iter()
            .map(|p| format!("{}: {}", p.what, p.why))
            .collect()
    }
}

#[test]
fn labels_without_effect_are_problems_with_a_bound_and_end_with_their_container() {
    let mut world = World::new();
    world.inspected(&web(1, &[("mesh.wieght", "5")]));
    let mut misspelt = web(2, &[("mesh.servce", "db")]);
    misspelt.labels.remove("mesh.service");
    world.inspected(&misspelt);
    assert_eq!(
        world.problems(),
        [
            "a label of the container shop_web_1 has no effect: meshd knows no label mesh.wieght (the most similar one that it knows is mesh.weight)",
            "the container shop_web_2 has labels of meshd and is not exposed: meshd knows no label mesh.servce (the most similar one that it knows is mesh.service)",
        ]
    );
    for n in 3..=20 {
        let mut other = misspelt.clone();
        other.id = id(n);
        world.inspected(&other);
    }
    let problems = world.problems();
    assert_eq!(problems.len(), unused::MAX_NAMED + 1);
    assert!(
        problems.concat().contains("12 more containers"),
        "{problems:?}"
    );
    // The container is replaced by one with the right label, and the others end.
    world.inspected(&web(2, &[]));
    world.happened(3, Action::Die);
    world
        .containers
        .handle_listed(&BTreeSet::from([id(1), id(2)]), world.now);
    assert_eq!(world.problems().len(), 1);
}

#[test]
fn the_end_of_the_delay_before_publication_is_reported_once() {
    let mut world = World::new();
    world.happened(1, Action::Start);
    world.inspected(&web(1, &[]));
    assert!(!world.wait(1));
    assert!(world.wait(1), "it is published as starting");
    assert!(!world.wait(0) && !world.wait(1) && !world.wait(1));
    let mut again = web(1, &[]);
    again.run = "second".into();
    world.happened(1, Action::Die);
    world.inspected(&again);
    assert!(world.wait(5) && !world.wait(1));
}

fn network(id: &str, driver: &str, internal: bool) -> EngineNetwork {
    EngineNetwork {
        id: id.into(),
        name: id.into(),
        driver: driver.into(),
        internal,
        bridge: Some("br-net".into()),
        ..EngineNetwork::default()
    }
}

fn healthy(id: &str) -> (String, Health) {
    (id.to_owned(), Health::Healthy)
}

#[test]
fn a_container_is_mapped_from_the_start_and_published_when_its_port_accepts() {
    let mut world = World::new();
    world.happened(1, Action::Start);
    world.inspected(&web(1, &[]));
    assert_eq!(world.mapped(), ["10.210.1.2 172.18.0.3"]);
    assert_eq!(world.published("web"), []);
    let probes = world.containers.probes();
    assert_eq!(probes[0].1.to_string(), "172.18.0.3:80");
    world.containers.handle_probe(&id(1), false);
    assert_eq!(world.published("web"), []);
    world.containers.handle_probe(&id(1), true);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
    world.containers.handle_probe(&id(1), false);
    assert_eq!(
        world.published("web"),
        [("n1-shop-web-1".into(), Health::Unhealthy)]
    );
}

#[test]
fn a_slow_start_is_published_as_starting_and_later_a_problem() {
    let mut world = World::new();
    world.inspected(&web(1, &[]));
    assert!(world.wait(2));
    assert_eq!(
        world.published("web"),
        [("n1-shop-web-1".into(), Health::Starting)]
    );
    assert_eq!(world.problems(), Vec::<String>::new());
    world.wait(30);
    assert!(
        world.problems()[0].contains("port 80"),
        "{:?}",
        world.problems()
    );
}

#[test]
fn the_result_of_a_healthcheck_counts_and_starting_is_no_result() {
    let mut world = World::new();
    let mut checked = web(1, &[]);
    checked.facts.has_healthcheck = true;
    checked.health = Some(EngineHealth::Starting);
    world.inspected(&checked);
    assert_eq!(world.containers.probes(), []);
    assert_eq!(world.published("web"), []);
    world.happened(1, Action::Health(EngineHealth::Healthy));
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
    world.happened(1, Action::Health(EngineHealth::Unhealthy));
    assert_eq!(world.published("web")[0].1, Health::Unhealthy);
}

#[test]
fn compose_v2_replaces_a_container() {
    let mut world = World::new();
    world.up(1);
    // create <hash>_web-1, kill, die, stop, destroy, rename, start.
    world.happened(1, Action::Kill(15));
    assert_eq!(
        world.published("web"),
        [("n1-shop-web-1".into(), Health::Draining)]
    );
    assert_eq!(world.mapped(), ["10.210.1.2 172.18.0.3"]);
    // A description between the signal and the end still shows it as running.
    world.inspected(&web(1, &[]));
    assert_eq!(world.published("web")[0].1, Health::Draining);
    world.wait(2);
    world.happened(1, Action::Die);
    assert_eq!((world.mapped(), world.published("web")), (vec![], vec![]));
    world.inspected(&web(1, &[]));
    assert_eq!(
        world.mapped(),
        Vec::<String>::new(),
        "a run that ended does not come back"
    );
    world.happened(1, Action::Destroy);
    world.happened(2, Action::Changed);
    world.happened(2, Action::Start);
    world.inspected(&Inspected {
        name: "shop_web_1".into(),
        ..web(2, &[])
    });
    world.containers.handle_probe(&id(2), true);
    assert_eq!(
        world.mapped(),
        ["10.210.1.3 172.18.0.4"],
        "the old address rests"
    );
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
}

#[test]
fn compose_v1_replaces_a_container() {
    let mut world = World::new();
    world.up(1);
    // kill, die, stop, rename, create, start, destroy: the old one goes last.
    for action in [Action::Kill(15), Action::Die, Action::Changed] {
        world.happened(1, action);
    }
    world.up(2);
    world.happened(1, Action::Destroy);
    assert_eq!(world.mapped(), ["10.210.1.3 172.18.0.4"]);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-2")]);
}

/// A running container with the name `name`.
fn called(n: u32, name: &str) -> Inspected {
    Inspected {
        name: name.into(),
        ..web(n, &[])
    }
}

#[test]
fn a_container_that_replaces_another_gets_its_name_despite_temporary_names() {
    // Compose v1 renames the old container, creates and starts the new one, and removes the old one. The event of the
    // old one may arrive last.
    let mut world = World::new();
    world.inspected(&called(1, "shop_web_1"));
    world.containers.handle_probe(&id(1), true);
    for action in [Action::Kill(15), Action::Die, Action::Changed] {
        world.happened(1, action);
    }
    world.inspected(&called(2, "shop_web_1"));
    world.containers.handle_probe(&id(2), true);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);

    // A new container is started beside the old one. It is described under its first name, and again when it is
    // renamed.
    let mut world = World::new();
    world.inspected(&called(1, "shop-web-1"));
    world.containers.handle_probe(&id(1), true);
    world.inspected(&called(2, "1e7d88581144_shop-web-1"));
    world.containers.handle_probe(&id(2), true);
    let names = |world: &World| -> Vec<String> {
        let published = world.published("web").into_iter();
        published.map(|(name, _)| name).collect()
    };
    assert_eq!(
        names(&world),
        ["n1-shop-web-1", "n1-1e7d88581144-shop-web-1"]
    );
    // The rename is known before the end of the old one.
    world.inspected(&called(2, "shop-web-1"));
    assert_eq!(names(&world), ["n1-shop-web-1", "n1-000000000000"]);
    world.happened(1, Action::Die);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
    assert_eq!(
        world.containers.rows(&BTreeSet::new())[0].name,
        "shop-web-1"
    );
    let mapped: Vec<Mapping> = world.containers.mappings().into_values().collect();
    assert_eq!(mapped[0].name, "shop-web-1");
}

#[test]
fn the_names_of_instances_contain_the_present_name_of_the_node() {
    let mut world = World::new();
    world.up(1);
    world.containers.handle_node_name(label("edge"));
    assert_eq!(world.published("web"), [healthy("edge-shop-web-1")]);
}

#[test]
fn the_stop_signal_counts_before_the_container_is_known() {
    let mut world = World::new();
    world.happened(1, Action::Start);
    world.happened(1, Action::Kill(15));
    world.inspected(&web(1, &[]));
    world.containers.handle_probe(&id(1), true);
    assert_eq!(
        world.published("web"),
        [("n1-shop-web-1".into(), Health::Draining)]
    );
}

#[test]
fn other_signals_are_ignored_unless_they_are_the_stop_signal() {
    let mut world = World::new();
    world.up(1);
    for signal in [1, 10, 28] {
        world.happened(1, Action::Kill(signal));
    }
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
    let mut quits = web(2, &[]);
    quits.stop_signal = 3;
    world.inspected(&quits);
    world.containers.handle_probe(&id(2), true);
    world.happened(2, Action::Kill(3));
    world.happened(1, Action::Kill(9));
    let health: Vec<Health> = world.published("web").iter().map(|i| i.1).collect();
    assert_eq!(health, [Health::Draining, Health::Draining]);
}

#[test]
fn podman_sends_no_event_before_the_end() {
    let mut world = World::new();
    world.up(1);
    world.happened(1, Action::Die);
    world.happened(1, Action::Destroy);
    assert_eq!((world.mapped(), world.published("web")), (vec![], vec![]));
}

#[test]
fn a_restarted_container_keeps_its_address_and_is_probed_again() {
    let mut world = World::new();
    world.up(1);
    for action in [Action::Kill(15), Action::Die, Action::Start] {
        world.happened(1, action);
    }
    world.wait(300);
    let again = Inspected {
        run: "second".into(),
        ..web(1, &[])
    };
    world.inspected(&again);
    assert_eq!(world.mapped(), ["10.210.1.2 172.18.0.3"]);
    assert_eq!(world.published("web"), []);
    world.containers.handle_probe(&id(1), true);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
}

#[test]
fn a_drain_ends_after_its_time_though_the_process_lives_on() {
    let mut world = World::new();
    world.inspected(&web(1, &[("mesh.drain", "3s")]));
    world.containers.handle_probe(&id(1), true);
    world.happened(1, Action::Kill(15));
    assert!(!world.wait(2));
    assert_eq!(world.mapped().len(), 1);
    assert!(world.wait(1));
    assert_eq!(world.mapped(), Vec::<String>::new());
    world.inspected(&web(1, &[("mesh.drain", "3s")]));
    assert_eq!(world.mapped(), Vec::<String>::new());
}

#[test]
fn a_container_that_is_not_listed_was_removed() {
    let mut world = World::new();
    world.up(1);
    world.up(2);
    world
        .containers
        .handle_listed(&BTreeSet::from([id(2)]), world.now);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-2")]);
    assert_eq!(world.containers.leases.stored().len(), 1);
}

#[test]
fn an_address_that_the_engine_assigned_again_belongs_to_the_new_container() {
    let mut world = World::new();
    world.up(1);
    let Network::Attached(same) = web(1, &[]).network else {
        panic!("on a bridge")
    };
    let next = Inspected {
        network: Network::Attached(same),
        ..web(2, &[])
    };
    world.inspected(&next);
    assert_eq!(world.mapped(), ["10.210.1.3 172.18.0.3"]);
}

#[test]
fn of_300_containers_on_a_slash_24_those_past_the_last_address_are_refused_by_name() {
    let mut world = World::new();
    for n in 0..300 {
        world.up(n);
    }
    assert_eq!(world.mapped().len(), 253);
    assert_eq!(world.published("web").len(), 253);
    let problems = world.problems();
    assert_eq!(problems.len(), 47);
    assert!(
        problems
            .iter()
            .any(|p| p.contains("shop_web_253") && p.contains("all 253"))
    );
    // When other containers were removed and their addresses may be leased again, the next description succeeds.
    for n in 0..10 {
        world.happened(n, Action::Die);
        world.happened(n, Action::Destroy);
    }
    world.wait(60);
    world.inspected(&web(253, &[]));
    assert_eq!(world.mapped().len(), 244);
    assert_eq!(world.problems().len(), 46);
}

#[test]
fn addresses_survive_a_restart_of_meshd() {
    let mut world = World::new();
    for n in [3, 1, 2] {
        world.up(n);
    }
    let before = world.mapped();
    let kept = world.containers.leases.stored();
    world.containers = Containers::new(context(), kept, world.now);
    world
        .containers
        .handle_listed(&BTreeSet::from([id(1), id(2), id(3)]), world.now);
    for n in [1, 2, 3] {
        world.up(n);
    }
    assert_eq!(world.mapped(), before);
}

#[test]
fn containers_that_cannot_be_reached_are_named_and_the_rest_works() {
    let mut world = World::new();
    world.containers.handle_networks(vec![
        network("net", "bridge", false),
        network("inside", "bridge", true),
        network("mac", "macvlan", false),
    ]);
    let on = |n: u32, network: Network| Inspected {
        network,
        ..web(n, &[])
    };
    let attached = |ids: &[&str]| {
        let endpoint = |network: &&str| Endpoint {
            v4: Some("172.30.0.9".parse().expect("a literal")),
            v6: None,
            network: (*network).to_owned(),
        };
        Network::Attached(ids.iter().map(|i| ((*i).to_owned(), endpoint(i))).collect())
    };
    world.inspected(&on(1, attached(&["inside"])));
    world.inspected(&on(2, attached(&["mac"])));
    world.inspected(&on(3, Network::Isolated));
    world.inspected(&on(4, Network::Shared));
    world.inspected(&on(5, attached(&[])));
    world.inspected(&web(6, &[("mesh.network", "elsewhere")]));
    world.inspected(&web(7, &[("mesh.port", "0")]));
    let mut unknown = web(8, &[]);
    unknown.image.labels = None;
    world.inspected(&unknown);
    world
        .containers
        .handle_unreadable(&id(9), "its answer is too long".into(), world.now);
    assert_eq!(world.mapped(), Vec::<String>::new());
    let problems = world.problems().join("\n");
    for part in [
        "`inside` is internal",
        "driver `macvlan`",
        "network_mode: none",
        "network of another container",
        "no address on any network",
        "`elsewhere`",
        "mesh.port is `0`",
        "image cannot be inspected",
        "too long",
    ] {
        assert!(problems.contains(part), "{part} in\n{problems}");
    }
    assert_eq!(problems.lines().count(), 9);
    world.inspected(&on(1, attached(&["inside", "net"])));
    assert_eq!(world.mapped(), ["10.210.1.2 172.30.0.9"]);
    world.up(10);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-10")]);
}

#[test]
fn a_container_in_the_hosts_network_is_at_the_nodes_address() {
    let mut world = World::new();
    world.inspected(&Inspected {
        network: Network::Host,
        ..web(1, &[])
    });
    assert_eq!(world.mapped(), Vec::<String>::new());
    assert_eq!(world.containers.probes()[0].1.to_string(), "10.210.1.1:80");
    world.containers.handle_probe(&id(1), true);
    let offers = world.offers();
    let instances = &offers[&service("web")].instances;
    assert_eq!(instances[0].addresses, context().addresses);
}

#[test]
fn a_paused_container_is_not_published_and_is_a_problem() {
    let mut world = World::new();
    world.up(1);
    world.happened(1, Action::Pause);
    assert_eq!((world.published("web"), world.mapped().len()), (vec![], 1));
    assert!(world.problems()[0].contains("paused"));
    world.happened(1, Action::Unpause);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
}

#[test]
fn a_restart_loop_publishes_nothing_and_is_a_problem() {
    let mut world = World::new();
    for run in 0..4 {
        world.happened(1, Action::Start);
        world.inspected(&Inspected {
            run: run.to_string(),
            ..web(1, &[])
        });
        assert_eq!(world.published("web"), []);
        world.now += Duration::from_millis(300);
        world.happened(1, Action::Die);
    }
    assert!(
        world.problems()[0].contains("ended 4 times"),
        "{:?}",
        world.problems()
    );
}

#[test]
fn a_container_that_ends_early_is_a_problem_and_a_stopped_one_is_not() {
    let mut world = World::new();
    world.up(1);
    world.happened(1, Action::Die);
    world.up(2);
    world.happened(2, Action::Kill(15));
    world.happened(2, Action::Die);
    let problems = world.problems();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("shop_web_1") && problems[0].contains("within seconds"));
}

#[test]
fn unmapped_containers_are_not_published_and_without_mappings_published_ports_are_used() {
    let mut world = World::new();
    let mut inspected = web(1, &[]);
    let number = |n: u16| n.try_into().expect("not zero");
    let published = |address: Option<&str>, host_port| Published {
        protocol: Protocol::Tcp,
        port: number(80),
        address: address.map(|a| a.parse().expect("a literal")),
        host_port: number(host_port),
    };
    inspected.published = vec![published(Some("192.0.2.1"), 81), published(None, 8080)];
    world.inspected(&inspected);
    world.inspected(&web(2, &[]));
    for n in [1, 2] {
        world.containers.handle_probe(&id(n), true);
    }
    let offers = |applied| {
        world
            .containers
            .offers(&BTreeSet::new(), &applied, world.now)
    };
    assert_eq!(
        offers(AppliedMappings::Mapped(BTreeMap::new())),
        BTreeMap::new()
    );

    let offers = offers(AppliedMappings::Unavailable);
    let instances = &offers[&service("web")].instances;
    let places: Vec<String> = instances
        .iter()
        .map(|i| format!("{} {}:{}", i.id, i.addresses[0], i.ports[0].number))
        .collect();
    assert_eq!(places, ["n1-shop-web-1 10.210.1.1:8080"]);
}

#[test]
fn drained_services_are_drained_and_their_own_health_is_still_known() {
    let mut world = World::new();
    world.up(1);
    let drained = BTreeSet::from([service("web")]);
    let offers = world
        .containers
        .offers(&drained, &world.applied(), world.now);
    assert_eq!(
        offers[&service("web")].instances[0].health,
        Health::Draining
    );
    let rows = world.containers.rows(&drained);
    assert_eq!(
        (rows[0].state, rows[0].health, rows[0].drained),
        (ContainerState::Ready, Health::Healthy, true)
    );
    assert_eq!(world.mapped().len(), 1);
}

const COMPOSE: [(&str, &str); 2] = [
    ("com.docker.compose.service", "app"),
    ("com.docker.compose.container-number", "1"),
];

#[test]
fn a_compose_container_has_both_names_and_the_service_address_is_of_the_first() {
    let mut world = World::new();
    let labels = [
        &COMPOSE[..],
        &[("com.docker.compose.project", "shop"), ("mesh.vip", "true")],
    ]
    .concat();
    world.inspected(&web(1, &labels));
    world.containers.handle_probe(&id(1), true);
    let offers = world.offers();
    let shown: Vec<_> = offers
        .iter()
        .map(|(n, o)| (n.to_string(), o.service_address))
        .collect();
    assert_eq!(
        shown,
        [
            ("app.shop".into(), false),
            ("web".into(), true),
            ("web.shop".into(), false)
        ]
    );
}

#[test]
fn a_name_in_a_project_belongs_to_the_compose_service_before_a_label() {
    let mut world = World::new();
    let of = |service: &'static str, project: &'static str| {
        [
            ("com.docker.compose.service", service),
            ("com.docker.compose.project", project),
            ("com.docker.compose.container-number", "1"),
        ]
    };
    let up = |world: &mut World, n: u32, labels: &[(&str, &str)]| {
        world.inspected(&web(n, labels));
        world.containers.handle_probe(&id(n), true);
    };
    up(&mut world, 1, &of("app", "shop"));
    assert_eq!(world.published("web.shop"), [healthy("n1-shop-web-1")]);
    // The Compose service with the name `web` has another label.
    let other = [&of("web", "shop")[..], &[("mesh.service", "front")]].concat();
    up(&mut world, 2, &other);
    assert_eq!(world.published("web.shop"), [healthy("n1-shop-web-2")]);
    assert_eq!(world.published("app.shop"), [healthy("n1-shop-web-1")]);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
    let problems = world.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("the container shop_web_1 does not have the name web.shop"));
    world.happened(2, Action::Destroy);
    assert_eq!(world.published("web.shop"), [healthy("n1-shop-web-1")]);
    // Projects whose names give the same label are two projects.
    up(&mut world, 3, &of("x", "my_shop"));
    up(&mut world, 4, &of("y", "my-shop"));
    assert_eq!(world.published("web.my-shop"), []);
    assert_eq!(world.published("y.my-shop"), [healthy("n1-shop-web-4")]);
}

#[test]
fn a_container_of_which_only_the_label_changes_is_not_ambiguous() {
    let mut world = World::new();
    let labels = [&COMPOSE[..], &[("com.docker.compose.project", "shop")]].concat();
    let next = [&labels[..], &[("mesh.service", "next")]].concat();
    for (n, labels) in [(1, labels), (2, next)] {
        world.inspected(&web(n, &labels));
        world.containers.handle_probe(&id(n), true);
    }
    assert_eq!(world.published("app.shop").len(), 2);
    assert_eq!(world.problems(), Vec::<String>::new());
}

#[test]
fn two_projects_whose_names_give_one_label_are_not_mixed() {
    let mut world = World::new();
    for (n, project) in [(1, "my_shop"), (2, "my-shop")] {
        let labels = [&COMPOSE[..], &[("com.docker.compose.project", project)]].concat();
        world.inspected(&web(n, &labels));
        world.containers.handle_probe(&id(n), true);
    }
    assert_eq!(world.published("app.my-shop"), [healthy("n1-shop-web-1")]);
    assert!(
        world.problems()[0].contains("my_shop"),
        "{:?}",
        world.problems()
    );
}

#[test]
fn instances_whose_names_give_one_label_are_distinguished_by_id() {
    let mut world = World::new();
    world.up(1);
    world.inspected(&Inspected {
        name: "shop-web-1".into(),
        ..web(2, &[])
    });
    world.containers.handle_probe(&id(2), true);
    let names: BTreeSet<String> = world.published("web").into_iter().map(|(n, _)| n).collect();
    assert_eq!(
        names,
        BTreeSet::from(["n1-shop-web-1".into(), "n1-000000000000".into()])
    );
}

#[test]
fn a_container_on_the_network_mesh_is_published_at_its_own_address() {
    let mut world = World::new();
    let plan = network::NativePlan {
        prefix: "10.210.0.0/16".parse().expect("a literal"),
        block: "10.210.1.0/24".parse().expect("a literal"),
        node: "10.210.1.1".parse().expect("a literal"),
        mtu: 1420,
    };
    let around = NodeContext {
        network: Some(plan),
        ..context()
    };
    world.containers = Containers::new(around, BTreeMap::new(), world.now);
    let networks = vec![
        network("net", "bridge", false),
        network("native", "bridge", false),
    ];
    world.containers.handle_networks(networks);
    world.containers.handle_native(Some("native".into()));
    let on = |n: u32, address: &str| {
        let mut inspected = web(n, &[]);
        let Network::Attached(endpoints) = &mut inspected.network else {
            panic!("it is on a bridge");
        };
        let endpoint = Endpoint {
            v4: Some(address.parse().expect("a literal")),
            v6: None,
            network: "native".into(),
        };
        endpoints.insert("mesh".into(), endpoint);
        inspected
    };
    world.inspected(&on(1, "10.210.1.2"));
    world.inspected(&web(2, &[]));
    assert_eq!(
        world.mapped(),
        ["10.210.1.2 10.210.1.2", "10.210.1.130 172.18.0.4"]
    );
    world.containers.handle_probe(&id(1), true);
    assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
    // A manually chosen address may be in use by a mapping, or by the node.
    world.inspected(&on(3, "10.210.1.130"));
    let problems = world.problems();
    assert!(problems[0].contains("10.210.1.0/25"), "{problems:?}");
    // If a label says so, the container is reached through another of its networks.
    world.inspected(&web(1, &[("mesh.network", "shop_default")]));
    assert!(
        world.mapped().iter().any(|m| m.ends_with(" 172.18.0.3")),
        "{:?}",
        world.mapped()
    );
    // Without the network all containers are mapped.
    world.containers.handle_native(None);
    world.inspected(&web(4, &[]));
    assert!(
        world.mapped().iter().any(|m| m.ends_with(" 172.18.0.6")),
        "{:?}",
        world.mapped()
    );
}

/// The container [`web`] with these addresses in its one network.
fn with_addresses(n: u32, v4: Option<&str>, v6: Option<&str>) -> Inspected {
    let endpoint = Endpoint {
        v4: v4.map(|text| text.parse().expect("a literal")),
        v6: v6.map(|text| text.parse().expect("a literal")),
        network: "net".into(),
    };
    Inspected {
        network: Network::Attached(BTreeMap::from([("shop_default".into(), endpoint)])),
        ..web(n, &[])
    }
}

impl World {
    fn mapped_v6(&self) -> Vec<String> {
        let mappings = mappings_v6(&self.containers);
        let mappings = mappings.iter();
        mappings
            .map(|(address, mapping)| format!("{address} {}", mapping.container))
            .collect()
    }

    /// The addresses of the instances of `web`.
    fn addresses(&self, applied: &AppliedMappings) -> Vec<Vec<String>> {
        let offers = self.containers.offers(&BTreeSet::new(), applied, self.now);
        let instances = offers.get(&service("web")).map(|offer| &offer.instances);
        let instances = instances.into_iter().flatten();
        let shown =
            |instance: &Instance| instance.addresses.iter().map(ToString::to_string).collect();
        instances.map(shown).collect()
    }
}

#[test]
fn a_container_with_both_families_has_the_same_number_in_both_parts_of_the_block() {
    let mut world = World::new();
    world.inspected(&with_addresses(1, Some("172.18.0.3"), Some("fd00:18::3")));
    world.inspected(&with_addresses(2, Some("172.18.0.4"), None));
    assert_eq!(
        world.mapped(),
        ["10.210.1.2 172.18.0.3", "10.210.1.3 172.18.0.4"]
    );
    assert_eq!(world.mapped_v6(), ["fd00:1:2:1::2 fd00:18::3"]);
    // IPv4 decides about its health.
    let targets = world.containers.probes();
    let targets: Vec<String> = targets.iter().map(|(_, at)| at.to_string()).collect();
    assert_eq!(targets, ["172.18.0.3:80", "172.18.0.4:80"]);
    for n in [1, 2] {
        world.containers.handle_probe(&id(n), true);
    }
    handle_probe_v6(&mut world.containers, &id(1), true);
    assert_eq!(
        world.addresses(&world.applied()),
        [
            vec!["10.210.1.2".to_owned(), "fd00:1:2:1::2".to_owned()],
            vec!["10.210.1.3".to_owned()]
        ]
    );
    let rows = world.containers.rows(&BTreeSet::new());
    let v6 = rows.iter().map(|row| row.address_v6.is_some());
    assert_eq!(v6.collect::<Vec<_>>(), [true, false]);
}

#[test]
fn an_ipv6_address_beside_an_ipv4_one_is_published_only_if_the_program_listens_there() {
    let mut world = World::new();
    world.inspected(&with_addresses(1, Some("172.18.0.3"), Some("fd00:18::3")));
    world.inspected(&with_addresses(2, Some("172.18.0.4"), None));
    let targets = probes_v6(&world.containers);
    let targets: Vec<String> = targets.iter().map(|(_, at)| at.to_string()).collect();
    assert_eq!(targets, ["[fd00:18::3]:80"]);
    // It says nothing about the health.
    handle_probe_v6(&mut world.containers, &id(1), true);
    assert_eq!(world.addresses(&world.applied()), Vec::<Vec<String>>::new());
    for (listens, count) in [(false, 1), (true, 2), (false, 1)] {
        world.containers.handle_probe(&id(1), true);
        handle_probe_v6(&mut world.containers, &id(1), listens);
        let addresses = world.addresses(&world.applied());
        assert_eq!(addresses[0].len(), count, "{addresses:?}");
        assert_eq!(world.published("web"), [healthy("n1-shop-web-1")]);
    }
    world.happened(1, Action::Kill(15));
    assert!(probes_v6(&world.containers).is_empty());
}

#[test]
fn a_healthcheck_does_not_say_that_the_program_listens_on_ipv6() {
    let mut world = World::new();
    let mut checked = with_addresses(1, Some("172.18.0.3"), Some("fd00:18::3"));
    checked.facts.has_healthcheck = true;
    checked.health = Some(EngineHealth::Healthy);
    world.inspected(&checked);
    assert!(
        world.containers.probes().is_empty(),
        "the engine checks the health"
    );
    assert_eq!(world.addresses(&world.applied()), [["10.210.1.2"]]);
    let targets = probes_v6(&world.containers);
    let targets: Vec<String> = targets.iter().map(|(_, at)| at.to_string()).collect();
    assert_eq!(targets, ["[fd00:18::3]:80"]);
    handle_probe_v6(&mut world.containers, &id(1), true);
    assert_eq!(
        world.addresses(&world.applied()),
        [["10.210.1.2", "fd00:1:2:1::2"]]
    );
    // A container that its owner does not want to be checked has no probe of either family.
    let label = ("mesh.check".to_owned(), "none".to_owned());
    checked.labels.extend([label]);
    world.inspected(&checked);
    assert!(probes_v6(&world.containers).is_empty());
    assert_eq!(
        world.addresses(&world.applied()),
        [["10.210.1.2", "fd00:1:2:1::2"]]
    );
}

#[test]
fn an_ipv6_address_is_published_only_while_the_kernel_maps_it() {
    let mut world = World::new();
    world.inspected(&with_addresses(1, Some("172.18.0.3"), Some("fd00:18::3")));
    world.containers.handle_probe(&id(1), true);
    handle_probe_v6(&mut world.containers, &id(1), true);
    let v4 = ("10.210.1.2", "172.18.0.3");
    let other = ("fd00:1:2:1::2", "fd00:18::9");
    let mapped = |pairs: &[(&str, &str)]| {
        let ip = |text: &str| text.parse::<IpAddr>().expect("a literal");
        AppliedMappings::Mapped(pairs.iter().map(|(a, c)| (ip(a), ip(c))).collect())
    };
    for applied in [mapped(&[v4]), mapped(&[v4, other])] {
        assert_eq!(world.addresses(&applied), [["10.210.1.2"]]);
    }
    assert_eq!(
        world.addresses(&mapped(&[other])),
        Vec::<Vec<String>>::new()
    );
}

#[test]
fn a_container_with_ipv6_alone_is_mapped_probed_and_published_by_it() {
    let mut world = World::new();
    world.inspected(&with_addresses(1, None, Some("fd00:18::3")));
    assert_eq!(world.mapped(), Vec::<String>::new());
    assert_eq!(world.mapped_v6(), ["fd00:1:2:1::2 fd00:18::3"]);
    let targets = world.containers.probes();
    assert_eq!(targets[0].1.to_string(), "[fd00:18::3]:80");
    world.containers.handle_probe(&id(1), true);
    assert_eq!(world.addresses(&world.applied()), [["fd00:1:2:1::2"]]);
    // Its number in the block is its own.
    world.inspected(&with_addresses(2, Some("172.18.0.4"), Some("fd00:18::4")));
    assert_eq!(world.mapped(), ["10.210.1.3 172.18.0.4"]);
}

#[test]
fn the_next_container_at_an_ipv6_address_ends_the_one_before_it() {
    let mut world = World::new();
    world.inspected(&with_addresses(1, None, Some("fd00:18::3")));
    world.inspected(&with_addresses(2, Some("172.18.0.4"), Some("fd00:18::3")));
    assert_eq!(world.mapped_v6(), ["fd00:1:2:1::3 fd00:18::3"]);
}

#[test]
fn each_family_comes_from_the_first_network_that_has_it_unless_a_label_names_one() {
    let mut world = World::new();
    let networks = ["net", "dual"].map(|id| network(id, "bridge", false));
    world.containers.handle_networks(networks.to_vec());
    let mut inspected = web(1, &[]);
    let Network::Attached(endpoints) = &mut inspected.network else {
        panic!("it is on a bridge");
    };
    let endpoint = Endpoint {
        v4: Some("172.19.0.3".parse().expect("a literal")),
        v6: Some("fd00:19::3".parse().expect("a literal")),
        network: "dual".into(),
    };
    endpoints.insert("z_dual".into(), endpoint);
    world.inspected(&inspected);
    assert_eq!(world.mapped(), ["10.210.1.2 172.18.0.3"]);
    assert_eq!(world.mapped_v6(), ["fd00:1:2:1::2 fd00:19::3"]);
    let label = ("mesh.network".to_owned(), "shop_default".to_owned());
    inspected.labels.extend([label]);
    world.inspected(&inspected);
    assert_eq!(world.mapped(), ["10.210.1.2 172.18.0.3"]);
    assert_eq!(world.mapped_v6(), Vec::<String>::new());
}
