//! An open control stream: what the node sends is handled, and what the node has not received is sent.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use super::end::{End, removed};
use super::intake::{Intake, Step};
use super::messages::{next, read, send, send_frame};
use super::opening::{Stream, handle_member, welcome};
use super::served::{MESSAGE_TIMEOUT, Served};
use super::session::Order;
use super::unverified::Unverified;
use super::upgrade::Socket;
use crate::coordinator::hub::{Hub, Standing, StreamStart};
use crate::coordinator::slots::Slot;
use crate::model::PublicKey;
use crate::os::clock;
use crate::protocol::call::Call;
use crate::protocol::control::{FromCoordinator, FromNode, PING_SECONDS, Refusal};
use crate::records::Envelope;

/// Changes that are written within this time are sent together.
const COALESCE: Duration = Duration::from_millis(3);

/// An open stream with the state that it needs to be served.
pub(super) struct Conversation<'a> {
    served: &'a Served,
    slot: &'a Slot,
    socket: &'a mut Socket,
    stream: Stream,
    /// The `publish` that is being processed. Nothing is read until it is done.
    intake: Option<Intake>,
    /// Until this time nothing is read, and the intake waits.
    paused: Option<Instant>,
    /// When the node last sent a frame, or when reading resumed after a pause.
    heard: Instant,
    marking: Marking,
}

/// The marks of one stream. The coordinator sends a new mark at the beginning and with pings, and not with each change, since
/// the node writes each mark to its disk.
#[derive(Default)]
struct Marking {
    /// The revision in the mark that was sent last.
    sent: Option<u64>,
    /// Whether the node has returned a mark.
    returned: bool,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        served: &'a Served,
        slot: &'a Slot,
        socket: &'a mut Socket,
        stream: Stream,
    ) -> Self {
        Self {
            served,
            slot,
            socket,
            stream,
            intake: None,
            paused: None,
            heard: Instant::now(),
            marking: Marking::default(),
        }
    }
}

impl Conversation<'_> {
    pub(super) async fn run(mut self) -> Result<Infallible, End> {
        let hub = Arc::clone(&self.served.hub);
        let mut stop = self.served.stop.clone();
        let mut pings = interval(Duration::from_secs(PING_SECONDS));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.send_mark(&hub).await?;
        loop {
            self.check_standing(&hub).await?;
            let has_more = self.send_part(&hub).await?;
            let waits = self.intake.is_some() || self.paused.is_some();
            let resume = self.paused.unwrap_or_else(Instant::now);
            let end = self.stream.unverified.as_ref().map(Unverified::end);
            tokio::select! {
                message = next(self.socket), if !waits => self.handle_frame(message?).await?,
                () = sleep_until(resume), if waits => self.resume().await?,
                order = self.stream.session.order() => self.handle_order(order).await?,
                changed = self.stream.revisions.changed(), if !has_more => {
                    changed.map_err(|_| End::Gone)?;
                    tokio::time::sleep(COALESCE).await;
                }
                () = std::future::ready(()), if has_more => {}
                _ = pings.tick() => {
                    if !waits && self.heard.elapsed() > MESSAGE_TIMEOUT {
                        return Err(End::Gone);
                    }
                    send_frame(self.socket, Message::Ping(Default::default())).await?;
                    self.send_mark(&hub).await?;
                }
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    return Err(self.stream.unverified.as_ref().map_or(End::Gone, Unverified::refusal));
                }
                _ = stop.changed() => {
                    return Err(End::Refuse(Refusal::Busy, "the coordinator is stopping".to_owned()));
                }
            }
        }
    }

    /// Ends the stream if the node or the store no longer permits it, and begins to serve an unverified node that became a member.
    async fn check_standing(&mut self, hub: &Hub) -> Result<(), End> {
        if !hub.is_on(&self.stream.store) {
            // With its next stream the node offers all records that it holds to the restored store.
            let text = "the coordinator's store was restored from a backup".to_owned();
            return Err(End::Refuse(Refusal::Busy, text));
        }
        let node = self.stream.node;
        match hub.standing(&node) {
            Standing::Revoked => Err(removed()),
            Standing::Member if self.stream.unverified.take().is_some() => {
                handle_member(self.served, self.slot, node)?;
                self.socket.get_mut().set_bound(Served::bound_of_member());
                let start = StreamStart {
                    store: self.stream.store.clone(),
                    revision: hub.revision(),
                    snapshot: true,
                };
                send(self.socket, &welcome(self.stream.protocol, start)).await?;
                self.send_mark(hub).await
            }
            Standing::Member | Standing::NotMember => Ok(()),
        }
    }

    /// Sends a member the next part of the records that it has not received. Returns whether another part may follow.
    async fn send_part(&mut self, hub: &Hub) -> Result<bool, End> {
        if self.stream.unverified.is_some() {
            return Ok(false);
        }
        let Some(part) = hub.read_part(&mut self.stream.cursor) else {
            return Ok(false);
        };
        let changes = FromCoordinator::Changes {
            revision: part.revision,
            records: part.records,
        };
        send(self.socket, &changes).await?;
        Ok(true)
    }

    /// Sends a member a new mark and a summary, if the store's revision has changed since the last one.
    async fn send_mark(&mut self, hub: &Hub) -> Result<(), End> {
        let revision = hub.revision();
        if self.marking.sent == Some(revision) {
            return Ok(());
        }
        if let Some(mark) = hub.mark_of(&self.stream.node) {
            self.marking.sent = Some(revision);
            send(self.socket, &FromCoordinator::Mark { mark }).await?;
            if let Some((revision, fingerprint)) = hub.summary() {
                let summary = FromCoordinator::Summary {
                    revision,
                    fingerprint,
                };
                send(self.socket, &summary).await?;
            }
        }
        Ok(())
    }

    /// Checks the mark that the node returned. Only the first mark of a stream is checked, since that may take a write.
    async fn handle_mark(&mut self, mark: String) {
        let node = self.stream.node;
        if std::mem::replace(&mut self.marking.returned, true)
            || !self.served.hub.handle_mark(&node, &mark)
        {
            return;
        }
        let examined = self
            .served
            .write(move |hub| hub.examine_loss(&node, &mark, clock::now()));
        if let Err(error) = examined.await {
            tracing::warn!(node = node.short(), %error, "a node's mark could not be checked");
        }
    }

    async fn handle_order(&mut self, order: Order) -> Result<(), End> {
        match order {
            Order::None => Ok(()),
            Order::ProveDuplicate(instance) => {
                send_frame(self.socket, Message::Ping(Default::default())).await?;
                send(self.socket, &FromCoordinator::Copy { instance }).await
            }
            Order::PassCall(from, call) => {
                send(self.socket, &FromCoordinator::Call { from, call }).await
            }
        }
    }

    async fn handle_frame(&mut self, frame: Message) -> Result<(), End> {
        self.heard = Instant::now();
        self.stream.session.handle_heard();
        let node = self.stream.node;
        match &mut self.stream.unverified {
            Some(unverified) => unverified.handle_message(frame.len())?,
            None => {
                let allowances = &self.served.allowances;
                let now = clock::now().monotonic;
                let next = allowances.handle_message(node, frame.len(), now);
                self.pause_until(next);
            }
        }
        match read(frame)? {
            Some(FromNode::Publish { sequence, records }) => {
                let unverified = self.stream.unverified.as_mut();
                let hub = &self.served.hub;
                self.intake = Some(Intake::new(hub, node, sequence, records, unverified)?);
                if self.paused.is_none() {
                    self.advance().await?;
                }
            }
            Some(FromNode::Farewell { departure }) if self.stream.unverified.is_none() => {
                self.handle_departure(departure).await;
            }
            Some(FromNode::Call { to, call }) if self.stream.unverified.is_none() => {
                self.pass_call(&to, call);
            }
            Some(FromNode::Told) => self.handle_fully_offered()?,
            Some(FromNode::Mark { mark }) => self.handle_mark(mark).await,
            Some(FromNode::Vouch {
                instance,
                signature,
            }) => {
                let session = &self.stream.session;
                session.handle_duplicate_proof(&instance, signature);
            }
            _ => {}
        }
        Ok(())
    }

    /// Stores the departure that a node has signed in advance.
    async fn handle_departure(&mut self, departure: Envelope) {
        let node = self.stream.node;
        let allowances = &self.served.allowances;
        let next = allowances.charge(node, clock::now().monotonic);
        self.pause_until(next);
        let stored = self
            .served
            .write(move |hub| hub.store_departure(&node, &departure, clock::now()));
        // The node offers its departure again with its next stream, if this one cannot store it.
        if let Err(error) = stored.await {
            tracing::warn!(node = node.short(), %error, "a node's departure could not be stored");
        }
    }

    /// Passes a call on to another member that is connected here, or drops it. The signature is the receiver's to verify.
    fn pass_call(&self, to: &PublicKey, call: Call) {
        let node = self.stream.node;
        let Served {
            hub,
            sessions,
            allowances,
            ..
        } = self.served;
        let is_admitted = *to != node
            && allowances.call(node, clock::now().monotonic)
            && hub.standing(to) == Standing::Member;
        if !is_admitted || !sessions.pass_call(node, to, call) {
            tracing::debug!(
                from = node.short(),
                to = to.short(),
                "a call is not passed on"
            );
        }
    }

    /// Handles that the node has offered all records that it holds.
    fn handle_fully_offered(&mut self) -> Result<(), End> {
        let hub = &self.served.hub;
        hub.handle_fully_offered(&self.stream.node);
        match &self.stream.unverified {
            Some(unverified) if hub.standing(&self.stream.node) != Standing::Member => {
                unverified.handle_fully_offered()
            }
            _ => Ok(()),
        }
    }

    /// Stops reading until `next`, if that is in the future.
    fn pause_until(&mut self, next: std::time::Instant) {
        let next = Instant::from_std(next);
        if next > Instant::now() {
            self.paused = Some(self.paused.map_or(next, |paused| paused.max(next)));
            self.stream.session.set_paused(true);
        }
    }

    /// Continues after a pause.
    async fn resume(&mut self) -> Result<(), End> {
        self.paused = None;
        if self.intake.is_some() {
            self.advance().await?;
        }
        if self.intake.is_none() && self.paused.is_none() {
            self.heard = Instant::now();
            self.socket.get_mut().resume(self.heard);
            self.stream.session.set_paused(false);
        }
        Ok(())
    }

    /// Processes more of a `publish`, and answers it once all its records are processed. The answer is sent before anything that
    /// follows from a changed standing of the node.
    async fn advance(&mut self) -> Result<(), End> {
        while let Some(intake) = &mut self.intake {
            match intake.advance(self.served).await? {
                Step::Again => {
                    if let Some(unverified) = &mut self.stream.unverified
                        && let Some(why) = intake.later()
                    {
                        unverified.handle_later(why);
                    }
                }
                Step::Wait(next) => {
                    self.pause_until(next);
                    // Even if the time has passed already, the loop gets a turn for its other work.
                    self.paused.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Step::Done(answer) => {
                    self.intake = None;
                    send(self.socket, &answer).await?;
                }
            }
        }
        Ok(())
    }
}
