//! The calls of [`Store`] for etcd. Most are one transaction, or read the view.

use std::collections::HashSet;
use std::time::Instant;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tokio::sync::watch;

use super::keys::{self, Key};
use super::{
    CONTENTION_TIMEOUT, Etcd, MAX_OPERATIONS, MAX_PAUSE, MAX_RECORD_BYTES, MAX_RECORDS,
    PRESENCE_TTL, WATCH_TIMEOUT, link,
};
use crate::coordinator::store::{
    Admission, Admitted, Bounds, Contents, News, Store, StoreError, Write,
};
use crate::model::PublicKey;
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

impl Store for Etcd {
    fn load(&mut self) -> Result<Contents, StoreError> {
        self.run(|shared| async move { shared.list().await })?;
        match self.shared.view().take_news() {
            Some(News::Everything(contents)) => Ok(contents),
            _ => Err(StoreError::Failed("it cannot be listed".into())),
        }
    }

    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError> {
        if self.shared.view().mesh_key() == Some(*key) {
            return Ok(());
        }
        self.write(|txn| {
            txn.set_mesh_key(key);
            Ok(())
        })
    }

    fn put(&mut self, writes: &[Write]) -> Result<u64, StoreError> {
        if writes.is_empty() {
            self.put_text(keys::PROBE, String::new())?;
            return Ok(self.shared.view().head.revision);
        }
        self.write(|txn| {
            for write in writes {
                txn.write(write)?;
            }
            Ok(txn.revision)
        })
    }

    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        self.write(|txn| txn.admit(admission))
    }

    fn is_issued_here(&mut self, token: &PublicKey) -> Result<bool, StoreError> {
        Ok(self.shared.view().decisions.issued.contains(token))
    }

    fn may_have_admitted(
        &mut self,
        token: &PublicKey,
        node: &PublicKey,
    ) -> Result<bool, StoreError> {
        let view = self.shared.view();
        let decisions = &view.decisions;
        let admitted = decisions.uses.get(token);
        Ok(!decisions.issued.contains(token) || admitted.is_some_and(|nodes| nodes.contains(node)))
    }

    fn store_departure(
        &mut self,
        node: &PublicKey,
        departure: &Envelope,
    ) -> Result<(), StoreError> {
        let text =
            serde_json::to_string(departure).map_err(|e| StoreError::Failed(e.to_string()))?;
        self.put_text(&keys::departure(node), text)
    }

    fn departure(&mut self, node: &PublicKey) -> Result<Option<Envelope>, StoreError> {
        let key = self.shared.link.key(&keys::departure(node));
        let held = self.run(|shared| async move { shared.link.read(key).await })?;
        Ok(held.and_then(|(text, _)| serde_json::from_slice(&text).ok()))
    }

    fn set_refilled(&mut self) -> Result<(), StoreError> {
        let key = self.shared.link.key(&Key::Restored.text());
        self.run(|shared| async move {
            let delete = shared.link.call(|client| {
                let key = key.clone();
                async move { client.kv_client().delete(key, None).await }
            });
            delete.await.map(drop)
        })
    }

    fn set_restored(&mut self) -> Result<(), StoreError> {
        self.run(|shared| async move {
            let listed = shared.read().await?;
            shared.mark_restored(&listed).await?;
            shared.list().await
        })
    }

    fn may_lease(&mut self, node: &PublicKey, block: u32) -> Result<bool, StoreError> {
        let view = self.shared.view();
        let decisions = &view.decisions;
        Ok(match decisions.blocks.get(node) {
            Some(held) => *held == block,
            None => !decisions.holders.contains_key(&block),
        })
    }

    fn may_have_leased(&mut self, block: u32) -> Result<bool, StoreError> {
        let view = self.shared.view();
        let decisions = &view.decisions;
        Ok(decisions.lease_start.is_some() && !decisions.holders.contains_key(&block))
    }

    fn forget(&mut self, records: &[RecordKey]) -> Result<(), StoreError> {
        for part in records.chunks(MAX_OPERATIONS - 1) {
            self.write(|txn| {
                part.iter().for_each(|key| txn.forget(key));
                Ok(())
            })?;
        }
        Ok(())
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            records: MAX_RECORDS,
            bytes: MAX_RECORD_BYTES,
        }
    }

    fn news(&mut self) -> Result<Option<News>, StoreError> {
        Ok(self.shared.view().take_news())
    }

    fn another_attempt(&mut self, attempt: u32) -> bool {
        let now = Instant::now();
        if attempt == 0 {
            self.contended = Some(now);
        }
        std::thread::sleep(link::jitter(MAX_PAUSE));
        self.contended
            .is_some_and(|since| since.elapsed() < CONTENTION_TIMEOUT)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let head = self.shared.link.key(&Key::Head.text());
        self.run(|shared| async move {
            let at = shared.link.read(head).await?.map_or(0, |(_, at)| at);
            if !shared.wait_for(at, WATCH_TIMEOUT).await {
                shared.missed_events.notify_one();
                shared.list().await?;
            }
            Ok(())
        })
    }

    fn followed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.shared.revision.subscribe())
    }

    fn set_present(&mut self, nodes: &[PublicKey]) -> Result<(), StoreError> {
        if nodes.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = nodes
            .iter()
            .map(|node| self.shared.link.key(&format!("{}{node}", keys::PRESENT)))
            .collect();
        let seconds = i64::try_from(PRESENCE_TTL.as_secs()).unwrap_or(i64::MAX);
        self.run(|shared| async move {
            let lease = shared
                .link
                .call(|mut client| async move { client.lease_grant(seconds, None).await })
                .await?
                .id();
            for part in keys.chunks(MAX_OPERATIONS) {
                let put = |key: &String| {
                    TxnOp::put(key.clone(), "", Some(PutOptions::new().with_lease(lease)))
                };
                let puts: Vec<TxnOp> = part.iter().map(put).collect();
                shared.link.transact(Txn::new().and_then(puts)).await?;
            }
            Ok(())
        })
    }

    fn present(&mut self) -> Result<HashSet<PublicKey>, StoreError> {
        let prefix = self.shared.link.key(keys::PRESENT);
        self.run(|shared| async move {
            let found = shared
                .link
                .call(|client| {
                    let prefix = prefix.clone();
                    async move {
                        let options = GetOptions::new().with_prefix().with_keys_only();
                        client.kv_client().get(prefix, Some(options)).await
                    }
                })
                .await?;
            Ok(found
                .kvs()
                .iter()
                .filter_map(|kv| {
                    let key = std::str::from_utf8(kv.key()).ok()?;
                    key.strip_prefix(&prefix)?.parse().ok()
                })
                .collect())
        })
    }

    fn note_pin(&mut self, pin: &str) -> Result<String, StoreError> {
        let (key, pin) = (self.shared.link.key(keys::PIN), pin.to_owned());
        self.run(|shared| async move {
            let txn = Txn::new()
                .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key.clone(), pin.clone(), None)]);
            shared.link.transact(txn).await?;
            let held = shared.link.read(key).await?;
            Ok(held.map_or(pin, |(held, _)| String::from_utf8_lossy(&held).into_owned()))
        })
    }
}
