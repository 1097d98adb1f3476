//! `meshctl service list`.

use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::protocol::local::ServiceList;

pub(in crate::cli) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let list: ServiceList = globals.daemon().get("/v1/services").await?;
    if json {
        return table::json(&list);
    }
    let rows: Vec<Vec<String>> = list
        .services
        .iter()
        .flat_map(|service| {
            let name = match &service.project {
                Some(project) => format!("{}.{project}", service.name),
                None => service.name.to_string(),
            };
            service.instances.iter().map(move |i| {
                let reach = if i.reachable { "" } else { ", unreachable" };
                vec![
                    name.clone(),
                    i.id.to_string(),
                    i.node.to_string(),
                    format!("{}:{}/{}", i.address, i.port, i.protocol.as_str()),
                    format!("{}{reach}", i.health.as_str()),
                    i.source.as_str().to_owned(),
                ]
            })
        })
        .collect();
    table::table(
        &["SERVICE", "INSTANCE", "NODE", "ADDRESS", "STATE", "SOURCE"],
        &rows,
    );
    Ok(0)
}
