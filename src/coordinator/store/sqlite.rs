//! A store in a SQLite file. It uses a write-ahead log and synchronous=FULL, so that acknowledged writes survive a loss of power.

use std::path::Path;

use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior, params,
};

use super::{Admission, Admitted, Contents, Effect, LeaseStart, Store, StoreError, Stored, Write};
use crate::model::{Label, PublicKey};
use crate::os::random;
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

pub(super) const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    kind TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL UNIQUE, envelope TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE issued (token TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE admissions (token TEXT NOT NULL, node TEXT NOT NULL, PRIMARY KEY (token, node)) WITHOUT ROWID;
CREATE TABLE names (node TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX nodes_by_name ON names (name);
CREATE TABLE leases (node TEXT PRIMARY KEY, block INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE released (block INTEGER PRIMARY KEY, turn INTEGER NOT NULL);
";
/// The first files of this schema lack this table. Earlier programs ignore it.
const CREATE_DEPARTURES: &str = "CREATE TABLE IF NOT EXISTS farewells (node TEXT PRIMARY KEY, envelope TEXT NOT NULL) WITHOUT ROWID";

/// A store in a SQLite file.
#[derive(Debug)]
pub struct Sqlite(Connection);

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl Sqlite {
    /// Opens the file, or makes a new one.
    ///
    /// # Errors
    /// The file cannot be opened, or a later version made it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::prepare(Connection::open(path)?)
    }

    /// A SQLite store in memory.
    ///
    /// # Errors
    /// SQLite has no memory.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, StoreError> {
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(StoreError::Failed(format!(
                "it was written by a later version (schema {version}); upgrade mesh-coordinator"
            )));
        }
        if version == 0 {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            let id = new_id()?;
            transaction.execute(
                "INSERT INTO meta VALUES ('store_id', ?1), ('revision', '0')",
                [id],
            )?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        connection.execute(CREATE_DEPARTURES, [])?;
        Ok(Self(connection))
    }

    fn begin(&mut self) -> Result<Transaction<'_>, StoreError> {
        Ok(self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)?)
    }
}

/// A random name for a store.
pub(super) fn new_id() -> Result<String, StoreError> {
    let mut id = [0u8; 16];
    random::fill(&mut id).map_err(|e| StoreError::Failed(e.to_string()))?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn meta(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    Ok(connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()?)
}

/// SQLite's integers are signed. A revision never exceeds their range.
fn to_sql(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn from_sql(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn revision(connection: &Connection) -> Result<u64, StoreError> {
    Ok(meta(connection, "revision")?
        .and_then(|text| text.parse().ok())
        .unwrap_or(0))
}

/// Stores one record. Returns its revision.
fn write(
    transaction: &Transaction<'_>,
    key: &RecordKey,
    envelope: &Envelope,
) -> Result<u64, StoreError> {
    let next = revision(transaction)? + 1;
    let text = serde_json::to_string(envelope).map_err(|e| StoreError::Failed(e.to_string()))?;
    transaction
        .prepare_cached(
            "INSERT INTO records VALUES (?1, ?2, ?3, ?4) ON CONFLICT (kind, id) DO UPDATE SET revision = ?3, envelope = ?4",
        )?
        .execute(params![key.kind(), key.id(), to_sql(next), text])?;
    transaction
        .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'revision'")?
        .execute([next.to_string()])?;
    Ok(next)
}

fn settle(transaction: &Transaction<'_>, effect: &Effect) -> Result<(), StoreError> {
    match effect {
        Effect::None => {}
        Effect::Issued(token) => {
            transaction.execute(
                "INSERT OR IGNORE INTO issued VALUES (?1)",
                [token.to_string()],
            )?;
        }
        Effect::Spent { node, token } => spend(transaction, token, node)?,
        Effect::Admitted { node, token, name } => {
            spend(transaction, token, node)?;
            rename(transaction, node, name)?;
        }
        Effect::Leased { node, block } => {
            rest(transaction, node, Some(*block))?;
            // Another node may have been leased the block and never used it.
            transaction.execute(
                "DELETE FROM leases WHERE block = ?2 AND node <> ?1",
                params![node.to_string(), block],
            )?;
            lease(transaction, node, *block)?;
        }
        Effect::Released(nodes) => {
            for node in nodes {
                release(transaction, node)?;
            }
        }
    }
    Ok(())
}

/// Frees the name and the block of a removed node, and deletes its stored departure.
fn release(transaction: &Transaction<'_>, node: &PublicKey) -> Result<(), StoreError> {
    rest(transaction, node, None)?;
    let node = node.to_string();
    transaction.execute("DELETE FROM leases WHERE node = ?1", [&node])?;
    transaction.execute("DELETE FROM names WHERE node = ?1", [&node])?;
    transaction.execute("DELETE FROM farewells WHERE node = ?1", [&node])?;
    Ok(())
}

fn delete(transaction: &Transaction<'_>, records: &[RecordKey]) -> Result<(), StoreError> {
    for key in records {
        transaction
            .prepare_cached("DELETE FROM records WHERE kind = ?1 AND id = ?2")?
            .execute(params![key.kind(), key.id()])?;
    }
    Ok(())
}

/// Gives a store that has lost records a new name, so that nodes offer all records that they hold. The store no longer claims to
/// know all uses of its tokens, and it leases blocks far above those that it knows, since others may be leased already.
pub(super) fn mark_restored(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    let highest: u32 = transaction.query_row(
        "SELECT COALESCE(MAX(block), 0) FROM (SELECT block FROM leases UNION SELECT block FROM released)",
        [],
        |row| row.get(0),
    )?;
    let leases = LeaseStart::beyond(highest)?;
    transaction.execute("DELETE FROM issued", [])?;
    for (key, value) in [
        ("store_id", new_id()?),
        ("restored", "1".to_owned()),
        ("leases_above", leases.above.to_string()),
        ("leases_turn", leases.turn.to_string()),
    ] {
        transaction.execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", [key, &value])?;
    }
    Ok(())
}

fn spend(
    transaction: &Transaction<'_>,
    token: &PublicKey,
    node: &PublicKey,
) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT OR IGNORE INTO admissions VALUES (?1, ?2)",
        [token.to_string(), node.to_string()],
    )?;
    Ok(())
}

fn rename(transaction: &Transaction<'_>, node: &PublicKey, name: &Label) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT OR REPLACE INTO names VALUES (?1, ?2)",
        [&node.to_string(), name.as_str()],
    )?;
    Ok(())
}

fn lease(transaction: &Transaction<'_>, node: &PublicKey, block: u32) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT INTO leases VALUES (?1, ?2) ON CONFLICT (node) DO UPDATE SET block = ?2",
        params![node.to_string(), block],
    )?;
    Ok(())
}

/// Adds the node's block, unless it is `keeps`, to those that are free again.
fn rest(
    transaction: &Transaction<'_>,
    node: &PublicKey,
    keeps: Option<u32>,
) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT OR REPLACE INTO released SELECT block, ?2 FROM leases WHERE node = ?1 AND block IS NOT ?3",
        params![node.to_string(), to_sql(revision(transaction)?), keeps],
    )?;
    Ok(())
}

fn has_admitted(
    connection: &Connection,
    token: &PublicKey,
    node: &PublicKey,
) -> Result<bool, StoreError> {
    Ok(connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM admissions WHERE token = ?1 AND node = ?2)",
        [token.to_string(), node.to_string()],
        |row| row.get(0),
    )?)
}

/// The revision of the record, if exactly this envelope is stored.
fn stored_as(
    connection: &Connection,
    key: &RecordKey,
    envelope: &Envelope,
) -> Result<Option<u64>, StoreError> {
    let stored: Option<(i64, String)> = connection
        .query_row(
            "SELECT revision, envelope FROM records WHERE kind = ?1 AND id = ?2",
            params![key.kind(), key.id()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    Ok(stored
        .filter(|(_, text)| serde_json::from_str::<Envelope>(text).is_ok_and(|e| e == *envelope))
        .map(|(revision, _)| from_sql(revision)))
}

/// The lowest block never leased, from where leases begin; else the one that has been free for longest.
fn free_block(transaction: &Transaction<'_>, blocks: u32) -> Result<Option<u32>, StoreError> {
    let mut statement = transaction
        .prepare("SELECT block FROM leases UNION SELECT block FROM released ORDER BY 1")?;
    let taken: Vec<u32> = statement
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for start in [lease_start(transaction, blocks)?, 1] {
        let mut candidate = start;
        for block in taken.iter().skip_while(|block| **block < start) {
            if *block > candidate {
                break;
            }
            candidate = block.saturating_add(1);
        }
        if candidate < blocks {
            return Ok(Some(candidate));
        }
    }
    let oldest = "SELECT block FROM released WHERE block NOT IN (SELECT block FROM leases) AND block < ?1 ORDER BY turn, block LIMIT 1";
    Ok(transaction
        .query_row(oldest, [blocks], |row| row.get(0))
        .optional()?)
}

/// Where leases begin.
fn lease_start(connection: &Connection, blocks: u32) -> Result<u32, StoreError> {
    let number = |key| -> Result<Option<u32>, StoreError> {
        Ok(meta(connection, key)?.and_then(|text| text.parse().ok()))
    };
    let (Some(above), Some(turn)) = (number("leases_above")?, number("leases_turn")?) else {
        return Ok(1);
    };
    Ok(LeaseStart { above, turn }.block(blocks))
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Contents, StoreError> {
        let connection = &self.0;
        let failed = || StoreError::Failed("its file is damaged; restore it from a backup".into());
        let mut records = Vec::new();
        let mut statement = connection
            .prepare("SELECT revision, kind, id, envelope FROM records ORDER BY revision")?;
        for row in statement.query_map([], |row| {
            let (kind, id): (String, String) = (row.get(1)?, row.get(2)?);
            let key = RecordKey::parse(&kind, &id);
            Ok((from_sql(row.get(0)?), key, row.get::<_, String>(3)?))
        })? {
            let (revision, key, text) = row?;
            match serde_json::from_str(&text) {
                Ok(envelope) => records.push(Stored {
                    revision,
                    key,
                    envelope,
                }),
                Err(error) => {
                    tracing::warn!(revision, %key, %error, "a record in the store cannot be read; its node will send it again");
                }
            }
        }
        let mesh_key = meta(connection, "mesh_key")?
            .map(|text| text.parse().map_err(|_| failed()))
            .transpose()?;
        Ok(Contents {
            id: meta(connection, "store_id")?.ok_or_else(failed)?,
            mesh_key,
            records,
            revision: revision(connection)?,
            restored: meta(connection, "restored")?.is_some(),
        })
    }

    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT OR REPLACE INTO meta VALUES ('mesh_key', ?1)",
            [key.to_string()],
        )?;
        Ok(())
    }

    fn put(&mut self, writes: &[Write]) -> Result<u64, StoreError> {
        let transaction = self.begin()?;
        let mut last = revision(&transaction)?;
        if writes.is_empty() {
            // Written as it was: a disk that is full says so here.
            transaction.execute(
                "UPDATE meta SET value = ?1 WHERE key = 'revision'",
                [last.to_string()],
            )?;
        }
        for item in writes {
            last = write(&transaction, &item.key, &item.envelope)?;
            delete(&transaction, &item.gone)?;
            settle(&transaction, &item.effect)?;
        }
        transaction.commit()?;
        Ok(last)
    }

    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        let transaction = self.begin()?;
        let (token, node) = (&admission.token, &admission.node);
        if !has_admitted(&transaction, token, node)? {
            let used: u32 = transaction.query_row(
                "SELECT COUNT(*) FROM admissions WHERE token = ?1",
                [token.to_string()],
                |row| row.get(0),
            )?;
            if used >= admission.uses {
                return Err(StoreError::TokenSpent(admission.uses));
            }
            spend(&transaction, token, node)?;
        }
        let taken: bool = transaction.query_row(
            "SELECT EXISTS (SELECT 1 FROM names WHERE name = ?1 AND node <> ?2)",
            [admission.name.as_str(), &node.to_string()],
            |row| row.get(0),
        )?;
        if taken {
            return Err(StoreError::NameTaken(admission.name.clone()));
        }
        rename(&transaction, node, &admission.name)?;
        let leased: Option<u32> = transaction
            .query_row(
                "SELECT block FROM leases WHERE node = ?1",
                [node.to_string()],
                |row| row.get(0),
            )
            .optional()?;
        let block = match leased {
            Some(block) => block,
            None => {
                let block = free_block(&transaction, admission.blocks)?
                    .ok_or(StoreError::NoBlock(admission.blocks.saturating_sub(1)))?;
                lease(&transaction, node, block)?;
                block
            }
        };
        let revision = match stored_as(&transaction, &admission.key, &admission.envelope)? {
            Some(revision) => revision,
            None => write(&transaction, &admission.key, &admission.envelope)?,
        };
        transaction.commit()?;
        Ok(Admitted { block, revision })
    }

    fn may_have_admitted(
        &mut self,
        token: &PublicKey,
        node: &PublicKey,
    ) -> Result<bool, StoreError> {
        Ok(!self.is_issued_here(token)? || has_admitted(&self.0, token, node)?)
    }

    fn is_issued_here(&mut self, token: &PublicKey) -> Result<bool, StoreError> {
        Ok(self.0.query_row(
            "SELECT EXISTS (SELECT 1 FROM issued WHERE token = ?1)",
            [token.to_string()],
            |row| row.get(0),
        )?)
    }

    fn store_departure(
        &mut self,
        node: &PublicKey,
        departure: &Envelope,
    ) -> Result<(), StoreError> {
        let text =
            serde_json::to_string(departure).map_err(|e| StoreError::Failed(e.to_string()))?;
        self.0.execute(
            "INSERT OR REPLACE INTO farewells VALUES (?1, ?2)",
            [node.to_string(), text],
        )?;
        Ok(())
    }

    fn departure(&mut self, node: &PublicKey) -> Result<Option<Envelope>, StoreError> {
        let text: Option<String> = self
            .0
            .query_row(
                "SELECT envelope FROM farewells WHERE node = ?1",
                [node.to_string()],
                |row| row.get(0),
            )
            .optional()?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    fn set_refilled(&mut self) -> Result<(), StoreError> {
        self.0
            .execute("DELETE FROM meta WHERE key = 'restored'", [])?;
        Ok(())
    }

    fn set_restored(&mut self) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        mark_restored(&transaction)?;
        Ok(transaction.commit()?)
    }

    fn may_lease(&mut self, node: &PublicKey, block: u32) -> Result<bool, StoreError> {
        Ok(self.0.query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM leases WHERE (node = ?1) <> (block = ?2))",
            params![node.to_string(), block],
            |row| row.get(0),
        )?)
    }

    fn may_have_leased(&mut self, block: u32) -> Result<bool, StoreError> {
        Ok(self.0.query_row(
            "SELECT EXISTS (SELECT 1 FROM meta WHERE key = 'leases_above') AND NOT EXISTS (SELECT 1 FROM leases WHERE block = ?1)",
            [block],
            |row| row.get(0),
        )?)
    }

    fn forget(&mut self, records: &[RecordKey]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        delete(&transaction, records)?;
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
impl Sqlite {
    /// Makes the disk full: the file grows no more. 0 makes room again.
    pub(crate) fn set_full(&mut self, full: bool) {
        let pages: i64 = if full { 1 } else { 1 << 30 };
        let _: i64 = self
            .0
            .pragma_update_and_check(None, "max_page_count", pages, |row| row.get(0))
            .expect("a pragma");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;

    fn membership() -> Admission {
        Admission {
            node: PublicKey([1; 32]),
            name: Label::parse("a").expect("a literal"),
            token: PublicKey([2; 32]),
            uses: 1,
            blocks: 256,
            key: RecordKey::parse("membership", &PublicKey([1; 32]).to_string()),
            envelope: Envelope::seal_payload("{}".into(), &SigningKey::from_seed(&[1; 32])),
        }
    }

    #[test]
    fn what_was_stored_is_there_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("records.db");
        let mut store = Sqlite::open(&path).expect("writable");
        let before = store.load().expect("readable");
        store.set_mesh_key(&PublicKey([7; 32])).expect("writable");
        store.admit(&membership()).expect("unspent");
        drop(store);
        let after = Sqlite::open(&path)
            .expect("writable")
            .load()
            .expect("readable");
        assert_eq!(
            (after.id, after.revision, after.mesh_key),
            (before.id, 1, Some(PublicKey([7; 32])))
        );
        assert_eq!(after.records.len(), 1);
    }

    #[test]
    fn a_full_disk_is_told_as_such_and_nothing_is_half_done() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = Sqlite::open(&dir.path().join("records.db")).expect("writable");
        store.set_full(true);
        let large = Envelope::seal_payload("x".repeat(60_000), &SigningKey::from_seed(&[1; 32]));
        let admission = Admission {
            envelope: large,
            ..membership()
        };
        assert!(matches!(store.admit(&admission), Err(StoreError::Full)));
        assert_eq!(store.load().expect("still readable").revision, 0);
        store.set_full(false);
        assert_eq!(store.admit(&admission).expect("room again").block, 1);
    }

    #[test]
    fn a_file_of_a_later_version_or_of_something_else_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("records.db");
        drop(Sqlite::open(&path).expect("writable"));
        let connection = Connection::open(&path).expect("ours");
        connection
            .pragma_update(None, "user_version", 99)
            .expect("ours");
        drop(connection);
        let error = Sqlite::open(&path).map(drop).expect_err("later");
        assert!(error.to_string().contains("schema 99"), "{error}");
        let other = dir.path().join("other.db");
        std::fs::write(
            &other,
            "this is no database, and long enough to be looked at".repeat(100),
        )
        .expect("ours");
        assert!(Sqlite::open(&other).is_err());
    }
}
