//! When a coordinator refuses a node's own record, the node shows a problem with the coordinator's reason and publishes the record
//! again.

use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::protocol::control::{FromCoordinator, FromNode, RefusedReason, RefusedRecord};
use tokio_tungstenite::tungstenite::Message;

use crate::mesh::Mesh;
use crate::stand_in::{Socket, frame, greet, stand_in};

const WORDS: &str = "the moon is full";

/// How the coordinator treats node records.
#[derive(Default)]
struct Mood {
    refuses: bool,
    /// Whether it names the records that it refuses. Coordinators of earlier versions do not.
    names: bool,
    refused: usize,
    accepted: usize,
}

async fn serve(mut socket: Socket, mood: Arc<Mutex<Mood>>) -> Option<()> {
    greet(&mut socket).await?;
    loop {
        let Message::Text(text) = socket.next().await?.ok()? else {
            continue;
        };
        let Ok(FromNode::Publish { sequence, records }) = serde_json::from_str(&text) else {
            continue;
        };
        let keys: Vec<_> = records.iter().filter_map(|record| record.key()).collect();
        let nodes = keys.iter().filter(|key| key.kind() == "node");
        let (refused, refused_records) = {
            let mut mood = mood.lock().expect("no panic");
            if mood.refuses {
                mood.refused += nodes.clone().count();
                let named = nodes.clone().filter_map(|key| {
                    RefusedRecord::new(key.clone(), WORDS.into(), RefusedReason::Other)
                });
                let named: Vec<_> = named.filter(|_| mood.names).collect();
                (nodes.map(|_| WORDS.to_owned()).collect(), named)
            } else {
                mood.accepted += nodes.count();
                (vec![], vec![])
            }
        };
        let published = FromCoordinator::Published {
            sequence,
            accepted: 0,
            refused,
            refused_records,
            failed: false,
        };
        socket.send(frame(&published)).await.ok()?;
    }
}

#[test]
fn a_record_that_the_coordinator_refuses_is_a_problem_in_its_words_and_is_offered_until_it_is_accepted()
 {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    mesh.coordinator.take().expect("it runs").kill();
    let mood = Arc::new(Mutex::new(Mood {
        names: true,
        ..Mood::default()
    }));
    let serving = Arc::clone(&mood);
    stand_in(&mesh, move |socket| serve(socket, Arc::clone(&serving)));
    for names in [true, false] {
        *mood.lock().expect("no panic") = Mood {
            refuses: true,
            names,
            ..Mood::default()
        };
        // A node publishes all its own records when its stream opens.
        mesh.kill_node(0);
        mesh.start_node(0);
        let is_quoted = |mesh: &Mesh| {
            let problems = mesh.status(0).problems;
            problems
                .iter()
                .any(|p| p.what.contains("where this node is reached") && p.why.contains(WORDS))
        };
        mesh.wait_until("the refusal is a problem", || is_quoted(&mesh));
        mesh.wait_until("the node offers the record again", || {
            mood.lock().expect("no panic").refused >= 2
        });
        assert!(is_quoted(&mesh));
        mood.lock().expect("no panic").refuses = false;
        mesh.wait_until("the record is accepted and the problem is gone", || {
            mood.lock().expect("no panic").accepted > 0 && !is_quoted(&mesh)
        });
    }
}
