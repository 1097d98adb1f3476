//! `meshctl guest list` and `meshctl guest show`.

use serde::Serialize;

use super::row::{DoorRow, GuestRow, rows};
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, table};
use crate::model::Label;
use crate::model::text::listed;
use crate::model::time::UnixSeconds;
use crate::os::clock;
use crate::protocol::admin::NodeList;
use crate::protocol::api::ErrorCode;

/// `meshctl guest list --json`.
#[derive(Debug, Serialize)]
struct GuestList {
    /// The version of this document: 1.
    schema: u32,
    /// The guests in the order of their names.
    guests: Vec<GuestRow>,
}

/// `meshctl guest show --json`.
#[derive(Debug, Serialize)]
struct ShownGuest {
    /// The version of this document: 1.
    schema: u32,
    #[serde(flatten)]
    guest: GuestRow,
}

pub(super) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let now = UnixSeconds::from_system(clock::wall());
    let list = GuestList {
        schema: 1,
        guests: read(globals, now).await?,
    };
    if json {
        return table::json(&list);
    }
    let rows: Vec<Vec<String>> = list.guests.iter().map(|row| cells(row, now)).collect();
    table::table(
        &["NAME", "STATE", "DOOR", "ADDRESS", "EXPIRES", "TAGS"],
        &rows,
    );
    if rows.is_empty() {
        eprintln!("there are no guests; `meshctl guest add` adds one");
    }
    Ok(0)
}

pub(super) async fn show(name: &Label, json: bool, globals: &Globals) -> Result<u8, CliError> {
    let now = UnixSeconds::from_system(clock::wall());
    let rows = read(globals, now).await?;
    let guest = rows.into_iter().find(|row| row.name == *name);
    let guest = guest.ok_or_else(|| unknown("show", name))?;
    if json {
        return table::json(&ShownGuest { schema: 1, guest });
    }
    for line in lines(&guest, now) {
        table::line(&line);
    }
    Ok(0)
}

/// Reads the guests from the coordinator.
async fn read(globals: &Globals, now: UnixSeconds) -> Result<Vec<GuestRow>, CliError> {
    let live = Live::read(globals).await?;
    let list: NodeList = globals.coordinator().get("/v1/nodes").await?;
    let connected = list.nodes.iter().filter(|node| node.connected);
    let connected = connected.map(|node| node.id).collect();
    Ok(rows(live.ledger(), &live.netmap(None), &connected, now))
}

/// The error about a name that no guest has.
pub(super) fn unknown(command: &str, name: &Label) -> CliError {
    let text = format!("guest {command}: there is no guest {name}; `meshctl guest list` shows all");
    CliError::new(ErrorCode::NotFound, text)
}

fn cells(row: &GuestRow, now: UnixSeconds) -> Vec<String> {
    let doors = row.doors.iter();
    let addresses = doors.clone().filter_map(|door| door.address_v4);
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    let tags: Vec<&str> = row.tags.iter().map(Label::as_str).collect();
    vec![
        row.name.to_string(),
        row.state.as_str().to_owned(),
        doors.map(name_of).collect::<Vec<_>>().join(","),
        addresses.join(","),
        expiry(row, now),
        tags.join(","),
    ]
}

fn name_of(door: &DoorRow) -> String {
    let node = door.node.as_ref();
    node.map_or_else(|| "(removed)".to_owned(), Label::to_string)
}

fn expiry(row: &GuestRow, now: UnixSeconds) -> String {
    match row.expires_at {
        None => "never".to_owned(),
        Some(at) if at <= now => "expired".to_owned(),
        Some(at) => format!("in {}", table::age(at.0 - now.0)),
    }
}

fn lines(row: &GuestRow, now: UnixSeconds) -> Vec<String> {
    let mut lines = vec![
        format!("{}: {}", row.name, row.state.as_str()),
        format!("  key      {}", row.key),
        format!("  expires  {}", expiry(row, now)),
    ];
    if !row.tags.is_empty() {
        lines.push(format!("  tags     {}", listed(&row.tags, usize::MAX)));
    }
    for door in &row.doors {
        let at = match (door.address_v4, door.address_v6) {
            (Some(v4), Some(v6)) => format!("{v4}, {v6}"),
            _ => "no addresses yet".to_owned(),
        };
        lines.push(format!("  door     {} ({at})", name_of(door)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::row::GuestState;
    use super::*;
    use crate::model::WireGuardKey;
    use crate::testbed::records::label;

    fn anna() -> GuestRow {
        GuestRow {
            name: label("anna"),
            key: WireGuardKey([1; 32]),
            tags: vec![label("ops")],
            doors: vec![DoorRow {
                node: Some(label("web-1")),
                address_v4: Some([10, 210, 1, 254].into()),
                address_v6: Some("fd00:1:2:1::fe".parse().expect("a literal")),
            }],
            expires_at: Some(UnixSeconds(400)),
            state: GuestState::Here,
        }
    }

    #[test]
    fn a_guest_is_listed_with_its_door_and_its_address() {
        assert_eq!(
            cells(&anna(), UnixSeconds(100)),
            ["anna", "here", "web-1", "10.210.1.254", "in 5 min", "ops"]
        );
    }

    #[test]
    fn a_guest_is_shown_with_its_key_and_a_door_that_was_removed_is_named_as_such() {
        let mut guest = anna();
        guest.doors.push(DoorRow {
            node: None,
            address_v4: None,
            address_v6: None,
        });
        assert_eq!(
            lines(&guest, UnixSeconds(400)),
            [
                "anna: here",
                "  key      AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
                "  expires  expired",
                "  tags     ops",
                "  door     web-1 (10.210.1.254, fd00:1:2:1::fe)",
                "  door     (removed) (no addresses yet)",
            ]
        );
    }
}
