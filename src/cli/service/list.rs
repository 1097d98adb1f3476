//! `meshctl service list`.

use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::protocol::local::{InstanceRow, ServiceList};

/// The headings. The last one is left out while no instance has host names.
const HEADINGS: [&str; 7] = [
    "SERVICE", "INSTANCE", "NODE", "ADDRESS", "STATE", "SOURCE", "PUBLIC",
];

pub(in crate::cli) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let list: ServiceList = globals.daemon().get("/v1/services").await?;
    if json {
        return table::json(&list);
    }
    let (headings, rows) = rows(&list);
    table::table(headings, &rows);
    Ok(0)
}

/// The headings of the table, and its rows.
fn rows(list: &ServiceList) -> (&'static [&'static str], Vec<Vec<String>>) {
    let mut instances = list.services.iter().flat_map(|service| &service.instances);
    let is_public = instances.any(|instance| !instance.public.is_empty());
    let [without_public @ .., _] = &HEADINGS;
    let headings: &'static [&'static str] = if is_public { &HEADINGS } else { without_public };
    let mut rows = Vec::new();
    for service in &list.services {
        let name = match &service.project {
            Some(project) => format!("{}.{project}", service.name),
            None => service.name.to_string(),
        };
        for instance in &service.instances {
            let mut row = row(&name, instance);
            row.truncate(headings.len());
            rows.push(row);
        }
    }
    (headings, rows)
}

fn row(name: &str, instance: &InstanceRow) -> Vec<String> {
    let reach = if instance.reachable {
        ""
    } else {
        ", unreachable"
    };
    let hosts: Vec<&str> = instance.public.iter().map(|host| host.as_str()).collect();
    vec![
        name.to_owned(),
        instance.id.to_string(),
        instance.node.to_string(),
        format!(
            "{}:{}/{}",
            instance.address,
            instance.port,
            instance.protocol.as_str()
        ),
        format!("{}{reach}", instance.health.as_str()),
        instance.source.as_str().to_owned(),
        hosts.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PublicHost;
    use crate::protocol::local::{SCHEMA, ServiceRow};
    use crate::records::kinds::{Health, Protocol, Source};
    use crate::testbed::records::label;

    fn list(public: &[&str]) -> ServiceList {
        let address = "10.210.1.2".parse().expect("a literal");
        let hosts = public.iter().map(|host| PublicHost::parse(host));
        let instance = InstanceRow {
            id: label("n1-web"),
            node: label("n1"),
            address,
            addresses: vec![address],
            port: 80,
            protocol: Protocol::Tcp,
            port_name: None,
            health: Health::Healthy,
            reachable: false,
            source: Source::Docker,
            public: hosts.collect::<Result<_, _>>().expect("literals"),
        };
        ServiceList {
            schema: SCHEMA,
            services: vec![ServiceRow {
                name: label("web"),
                project: Some(label("shop")),
                instances: vec![instance],
            }],
        }
    }

    #[test]
    fn host_names_have_a_column_if_an_instance_has_one() {
        let common = [
            "web.shop",
            "n1-web",
            "n1",
            "10.210.1.2:80/tcp",
            "healthy, unreachable",
            "docker",
        ];
        let (headings, found) = rows(&list(&[]));
        assert_eq!(headings.last(), Some(&"SOURCE"));
        assert_eq!(found, [common]);
        let (headings, found) = rows(&list(&["a.example", "*.b.example"]));
        assert_eq!(headings, HEADINGS);
        let hosts = ["a.example, *.b.example"];
        assert_eq!(found, [[&common[..], &hosts[..]].concat()]);
    }
}
