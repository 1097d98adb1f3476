//! A machine whose disk was copied: two have the same keys.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::model::SigningKey;
use meshd::protocol::control::{FromCoordinator, FromNode, Refusal, copy_message};
use meshd::records::envelope::{Purpose, Signature};
use tokio_tungstenite::tungstenite::Message;

use crate::mesh::Mesh;
use crate::stand_in::{Socket, frame, stand_in};

/// The messages that a hostile coordinator received, and its actions.
#[derive(Default)]
struct Ruse {
    refusals: usize,
}

/// Asks the node to sign against itself, then says that it is a copy, with all the proofs that can be had.
async fn claim_a_copy(mut socket: Socket, ruse: Arc<Mutex<Ruse>>) -> Option<()> {
    let Message::Text(text) = socket.next().await?.ok()? else {
        return None;
    };
    let Ok(FromNode::Hello {
        instance: Some(instance),
        ..
    }) = serde_json::from_str(&text)
    else {
        return None;
    };
    let round = {
        let mut ruse = ruse.lock().expect("no panic");
        ruse.refusals += 1;
        ruse.refusals
    };
    let stranger = SigningKey::from_seed(&[66; 32]);
    let proof = match round % 3 {
        0 => None,
        1 => Some(Signature::make(
            &stranger,
            Purpose::DuplicateProof,
            &copy_message(&instance),
        )),
        // A node signs this for any coordinator: the answer to a challenge that equals its own instance number.
        _ => {
            let nonce = instance.clone();
            socket
                .send(frame(&FromCoordinator::Challenge { nonce }))
                .await
                .ok()?;
            let Message::Text(text) = socket.next().await?.ok()? else {
                return None;
            };
            match serde_json::from_str(&text) {
                Ok(FromNode::Proof { signature }) => Some(signature),
                _ => None,
            }
        }
    };
    let refuse = FromCoordinator::Refuse {
        reason: Refusal::Clone,
        message: "this one is a copy".into(),
        proof,
    };
    socket.send(frame(&refuse)).await.ok()
}

#[test]
fn no_coordinator_can_cut_a_node_off_with_a_copy_that_is_not_there() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    let address = mesh.addresses(0).0.to_string();
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(0);
    let ruse = Arc::new(Mutex::new(Ruse::default()));
    let heard = Arc::clone(&ruse);
    stand_in(&mesh, move |socket| {
        claim_a_copy(socket, Arc::clone(&heard))
    });

    mesh.start_node(0);
    mesh.wait_until("the node was told often that it is a copy", || {
        ruse.lock().expect("no panic").refusals >= 9
    });
    assert!(mesh.pings(1, &address));
    assert_eq!(mesh.reaches(0), 1);
    let problems = mesh.status(0).problems;
    assert!(
        !problems.iter().any(|p| p.what.contains("copy of another")),
        "{problems:?}"
    );
}

#[test]
fn a_copy_of_a_machine_is_refused_and_told_why_and_the_original_goes_on() {
    let Some(mut mesh) = Mesh::start(3) else {
        return;
    };
    for n in 0..2 {
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    let address = mesh.addresses(0).0.to_string();
    mesh.wait_until("the tunnel works", || mesh.pings(1, &address));

    // Its state is copied to another machine.
    mesh.kill_node(2);
    let (from, to) = (
        mesh.nodes[0].host.path("/run/state"),
        mesh.nodes[2].host.path("/run"),
    );
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &to])
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    mesh.start_node(2);
    mesh.wait_until("the copy is told", || {
        mesh.status(2)
            .problems
            .iter()
            .any(|p| p.what.contains("copy of another node") && p.fix.contains("meshctl leave"))
    });

    // The original is connected, and reached at its address.
    assert!(mesh.status(0).coordinator.is_some_and(|c| c.connected));
    mesh.wait_until("the original is reached", || mesh.pings(1, &address));
    let added = mesh.on(0, &["service", "add", "web", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    std::thread::sleep(Duration::from_secs(2));
    assert!(mesh.pings(1, &address));

    // It restarts, and has its place again though the copy is still there.
    mesh.kill_node(0);
    mesh.start_node(0);
    mesh.wait_until("the original is connected again", || {
        mesh.status(0).coordinator.is_some_and(|c| c.connected)
    });
    assert!(mesh.status(2).coordinator.is_some_and(|c| !c.connected));
    mesh.wait_until("the original is reached", || mesh.pings(1, &address));
}
