//! SQLite: WAL, synchronous=FULL, so that what was acknowledged outlives a loss of power.

use std::path::Path;

use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior, params,
};

use super::{Admission, Admitted, Contents, Store, StoreError};
use crate::model::record::RecordKey;
use crate::model::{Label, PublicKey};
use crate::wire::Envelope;

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    kind TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL UNIQUE, envelope TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE admissions (token TEXT NOT NULL, node TEXT NOT NULL, PRIMARY KEY (token, node)) WITHOUT ROWID;
CREATE TABLE leases (node TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, block INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE released (block INTEGER PRIMARY KEY, turn INTEGER NOT NULL);
";

/// Records in a file.
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
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// It cannot be opened, or was made by a later version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::prepare(Connection::open(path)?)
    }

    /// One in memory.
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
        connection.pragma_update(None, "foreign_keys", true)?;
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
            let mut id = [0u8; 16];
            getrandom::fill(&mut id).map_err(|e| StoreError::Failed(e.to_string()))?;
            let id: String = id.iter().map(|octet| format!("{octet:02x}")).collect();
            transaction.execute(
                "INSERT INTO meta VALUES ('store_id', ?1), ('revision', '0')",
                [id],
            )?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        Ok(Self(connection))
    }

    fn begin(&mut self) -> Result<Transaction<'_>, StoreError> {
        Ok(self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)?)
    }
}

fn meta(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    Ok(connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()?)
}

/// SQLite's integers are signed; a revision never gets that high.
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

fn write(
    transaction: &Transaction<'_>,
    key: &RecordKey,
    envelope: &Envelope,
) -> Result<u64, StoreError> {
    let next = revision(transaction)? + 1;
    let text = serde_json::to_string(envelope).map_err(|e| StoreError::Failed(e.to_string()))?;
    transaction.execute(
        "INSERT INTO records VALUES (?1, ?2, ?3, ?4) ON CONFLICT (kind, id) DO UPDATE SET revision = ?3, envelope = ?4",
        params![key.kind, key.id, to_sql(next), text],
    )?;
    transaction.execute(
        "UPDATE meta SET value = ?1 WHERE key = 'revision'",
        [next.to_string()],
    )?;
    Ok(next)
}

/// The lowest block never leased; else the one that has been free for longest.
fn free_block(transaction: &Transaction<'_>, blocks: u32) -> Result<Option<u32>, StoreError> {
    let mut taken = transaction
        .prepare("SELECT block FROM leases UNION SELECT block FROM released ORDER BY 1")?;
    let mut candidate = 1u32;
    for block in taken.query_map([], |row| row.get::<_, u32>(0))? {
        let block = block?;
        if block > candidate {
            break;
        }
        candidate = candidate.max(block + 1);
    }
    if candidate < blocks {
        return Ok(Some(candidate));
    }
    let oldest = "SELECT block FROM released WHERE block NOT IN (SELECT block FROM leases) AND block < ?1 ORDER BY turn LIMIT 1";
    Ok(transaction
        .query_row(oldest, [blocks], |row| row.get(0))
        .optional()?)
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Contents, StoreError> {
        let connection = &self.0;
        let failed = || StoreError::Failed("its file is damaged; restore it from a backup".into());
        let mut records = Vec::new();
        let mut statement =
            connection.prepare("SELECT revision, envelope FROM records ORDER BY revision")?;
        for row in statement.query_map([], |row| {
            Ok((from_sql(row.get(0)?), row.get::<_, String>(1)?))
        })? {
            let (revision, text) = row?;
            match serde_json::from_str(&text) {
                Ok(envelope) => records.push((revision, envelope)),
                Err(error) => {
                    tracing::warn!(revision, %error, "a record in the store cannot be read; its node will send it again")
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
        })
    }

    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT OR REPLACE INTO meta VALUES ('mesh_key', ?1)",
            [key.to_string()],
        )?;
        Ok(())
    }

    fn put(&mut self, records: &[(RecordKey, Envelope)]) -> Result<u64, StoreError> {
        let transaction = self.begin()?;
        let mut last = revision(&transaction)?;
        for (key, envelope) in records {
            last = write(&transaction, key, envelope)?;
        }
        transaction.commit()?;
        Ok(last)
    }

    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        let transaction = self.begin()?;
        let (token, node) = (admission.token.to_string(), admission.node.to_string());
        let before: bool = transaction.query_row(
            "SELECT EXISTS (SELECT 1 FROM admissions WHERE token = ?1 AND node = ?2)",
            [&token, &node],
            |row| row.get(0),
        )?;
        if !before {
            let used: u32 = transaction.query_row(
                "SELECT COUNT(*) FROM admissions WHERE token = ?1",
                [&token],
                |row| row.get(0),
            )?;
            if used >= admission.uses {
                return Err(StoreError::TokenSpent(admission.uses));
            }
            transaction.execute("INSERT INTO admissions VALUES (?1, ?2)", [&token, &node])?;
        }
        let holder: Option<String> = transaction
            .query_row(
                "SELECT node FROM leases WHERE name = ?1",
                [admission.name.as_str()],
                |row| row.get(0),
            )
            .optional()?;
        if holder.is_some_and(|holder| holder != node) {
            return Err(StoreError::NameTaken(admission.name.clone()));
        }
        let leased: Option<u32> = transaction
            .query_row("SELECT block FROM leases WHERE node = ?1", [&node], |row| {
                row.get(0)
            })
            .optional()?;
        let block = match leased {
            Some(block) => block,
            None => free_block(&transaction, admission.blocks)?
                .ok_or(StoreError::NoBlock(admission.blocks - 1))?,
        };
        transaction.execute(
            "INSERT INTO leases VALUES (?1, ?2, ?3) ON CONFLICT (node) DO UPDATE SET name = ?2",
            params![node, admission.name.as_str(), block],
        )?;
        let revision = write(&transaction, &admission.key, &admission.envelope)?;
        transaction.commit()?;
        Ok(Admitted { block, revision })
    }

    fn note_lease(
        &mut self,
        node: &PublicKey,
        name: &Label,
        token: &PublicKey,
        block: u32,
    ) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        transaction.execute(
            "INSERT OR IGNORE INTO admissions VALUES (?1, ?2)",
            [token.to_string(), node.to_string()],
        )?;
        transaction.execute(
            "INSERT OR IGNORE INTO leases VALUES (?1, ?2, ?3)",
            params![node.to_string(), name.as_str(), block],
        )?;
        Ok(transaction.commit()?)
    }

    fn release(&mut self, node: &PublicKey) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        let turn = revision(&transaction)?;
        transaction.execute(
            "INSERT OR REPLACE INTO released SELECT block, ?2 FROM leases WHERE node = ?1",
            params![node.to_string(), to_sql(turn)],
        )?;
        transaction.execute("DELETE FROM leases WHERE node = ?1", [node.to_string()])?;
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;

    fn admission(node: u8, name: &str, uses: u32, blocks: u32) -> Admission {
        Admission {
            node: PublicKey([node; 32]),
            name: Label::parse(name).expect("a literal"),
            token: PublicKey([0xaa; 32]),
            uses,
            blocks,
            key: RecordKey {
                kind: "membership".into(),
                id: PublicKey([node; 32]).to_string(),
            },
            envelope: Envelope::seal_payload("{}".into(), &SigningKey::from_seed(&[1; 32])),
        }
    }

    fn store() -> Sqlite {
        Sqlite::in_memory().expect("memory")
    }

    #[test]
    fn a_token_admits_as_many_as_it_may_and_the_same_node_again() {
        let mut store = store();
        let first = store.admit(&admission(1, "a", 1, 256)).expect("unspent");
        assert_eq!(first.block, 1);
        assert_eq!(
            store
                .admit(&admission(1, "a", 1, 256))
                .expect("the same node")
                .block,
            1
        );
        assert!(matches!(
            store.admit(&admission(2, "b", 1, 256)),
            Err(StoreError::TokenSpent(1))
        ));
    }

    #[test]
    fn a_refused_admission_spends_nothing() {
        let mut store = store();
        store.admit(&admission(1, "a", 2, 256)).expect("unspent");
        assert!(matches!(
            store.admit(&admission(2, "a", 2, 256)),
            Err(StoreError::NameTaken(_))
        ));
        assert_eq!(
            store
                .admit(&admission(2, "b", 2, 256))
                .expect("still one use")
                .block,
            2
        );
    }

    #[test]
    fn blocks_are_leased_once_and_the_longest_free_comes_first_again() {
        let mut store = store();
        for node in 1..=3 {
            assert_eq!(
                store
                    .admit(&admission(node, &format!("n{node}"), 9, 4))
                    .expect("room")
                    .block,
                u32::from(node)
            );
        }
        assert!(matches!(
            store.admit(&admission(4, "n4", 9, 4)),
            Err(StoreError::NoBlock(3))
        ));
        store.release(&PublicKey([2; 32])).expect("writable");
        store.put(&[]).expect("writable");
        assert_eq!(
            store
                .admit(&admission(4, "n4", 9, 4))
                .expect("one is free")
                .block,
            2
        );
    }

    #[test]
    fn what_was_stored_is_there_again_in_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("records.db");
        let mut store = Sqlite::open(&path).expect("writable");
        let before = store.load().expect("readable");
        store.set_mesh_key(&PublicKey([7; 32])).expect("writable");
        store.admit(&admission(1, "a", 1, 256)).expect("unspent");
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
}
