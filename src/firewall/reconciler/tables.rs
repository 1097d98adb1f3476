//! Reads and writes the tables, and collects the packets that their rules noted.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::{MAX_WRITES, READ_INTERVAL, Work};
use crate::firewall::error::KernelError;
use crate::firewall::kernel::Kernel;
use crate::firewall::noted;
use crate::firewall::ruleset::{TABLE, notes};

impl<K: Kernel> Work<K> {
    /// Whether rules of the tables note packets.
    pub(super) fn notes_packets(&self) -> bool {
        self.applied
            .tables
            .values()
            .any(|(script, _)| notes(script))
    }

    /// The next request for the packets that the rules noted, once a comparison is due for it. While no rule notes packets, requests are
    /// answered without one.
    pub(super) async fn requested(
        notes_packets: bool,
        compared: Option<Instant>,
        reads: &mut mpsc::Receiver<oneshot::Sender<()>>,
    ) -> Option<oneshot::Sender<()>> {
        if notes_packets {
            sleep(Self::read_rest(compared, Instant::now())).await;
            return reads.recv().await;
        }
        loop {
            let _ = reads.recv().await?.send(());
        }
    }

    /// How long a request for the packets that the rules noted waits, if the last comparison ended at `compared`.
    pub(super) fn read_rest(compared: Option<Instant>, now: Instant) -> Duration {
        let next = compared.map(|at| at + READ_INTERVAL);
        next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// Writes one table if its script is new, or if the kernel lists it differently than after the last write. A table that is replaced
    /// loses what its rules noted, so that is read before.
    pub(super) async fn table(
        &mut self,
        family: &'static str,
        script: String,
    ) -> Result<(), KernelError> {
        let old = self.applied.tables.get(family);
        let is_read = old.is_some_and(|(old, _)| *old == script || notes(old));
        let now = if is_read {
            self.listing(family).await
        } else {
            Ok(None)
        };
        if let Some((old, Some(shown))) = self.applied.tables.get(family)
            && *old == script
        {
            if now?.as_ref() == Some(shown) {
                return Ok(());
            }
            if self.pace.handle_put_back(Instant::now()) {
                tracing::warn!(family, "restored a table that another program changed");
            }
        }
        let shown = self.write(family, &script).await?;
        self.applied.tables.insert(family, (script, shown));
        Ok(())
    }

    /// Writes one table, and returns how the kernel lists it. None if other programs write so often that they may have changed the table
    /// before it was listed, because the changed table must not be taken for the wanted one.
    async fn write(
        &mut self,
        family: &'static str,
        script: &str,
    ) -> Result<Option<String>, KernelError> {
        for _ in 0..MAX_WRITES {
            let before = self.kernel.generation();
            self.kernel.nft(script).await?;
            self.readings.forget(family);
            let shown = self.kernel.table(family, TABLE).await?;
            let is_ours = |before: u32| self.kernel.generation() == Some(before.wrapping_add(1));
            if before.is_none_or(is_ours) {
                return Ok(shown.map(|text| noted::split(&text).0));
            }
        }
        Ok(None)
    }

    /// How the kernel lists one table, without what its rules noted. That is added to the denials. The addresses in it belong to the
    /// containers of the state that was applied last.
    async fn listing(&mut self, family: &'static str) -> Result<Option<String>, KernelError> {
        let Some(text) = self.kernel.table(family, TABLE).await? else {
            return Ok(None);
        };
        let (text, found) = noted::split(&text);
        let fresh = self.readings.read(family, found);
        if let Some((state, valid)) = &self.applied.state
            && !fresh.is_empty()
        {
            let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
            noted::add(&mut denials, fresh, state, &valid.containers());
        }
        Ok(Some(text))
    }
}
