//! The database file: its layout, reading it whole, writing a delta.
//!
//! All of it fits in memory many times over (records are small and few, and fast
//! data never comes here), so reads never touch the file; it is there to be
//! durable. `history` keeps the changes that a watch may still ask for after a
//! restart.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, params};

use crate::state::{Delta, Lease, Moment, State, Stored};
use crate::store::{Change, Entry, LeaseId, Revision, StoreError};

/// `BASN`, in SQLite's `application_id`.
const APPLICATION_ID: i64 = 0x4241_534e;
/// In SQLite's `user_version`. Raise it with a step in [`Db::prepare`].
const LAYOUT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE entry (
        key TEXT PRIMARY KEY, value BLOB NOT NULL,
        created INTEGER NOT NULL, modified INTEGER NOT NULL, lease INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
    -- One row a change. Without a value: the key was deleted.
    CREATE TABLE history (
        revision INTEGER NOT NULL, n INTEGER NOT NULL, key TEXT NOT NULL,
        value BLOB, created INTEGER NOT NULL, PRIMARY KEY (revision, n)
    );
";

/// The file, open and held against every other process.
pub(super) struct Db {
    connection: Connection,
    path: PathBuf,
    /// The lock goes with the descriptor, also when the process is killed.
    _lock: File,
}

impl Db {
    pub fn open(path: &Path) -> Result<Db, StoreError> {
        let lock = lock(path)?;
        create(path)?;
        let connection = Connection::open(path).map_err(|e| explain(path, &e))?;
        let mut db = Db { connection, path: path.to_owned(), _lock: lock };
        db.prepare().map_err(|e| match e {
            Prepare::Sql(e) => explain(path, &e),
            Prepare::Foreign(why) => unusable(path, &why),
        })?;
        Ok(db)
    }

    fn prepare(&mut self) -> Result<(), Prepare> {
        let db = &mut self.connection;
        db.busy_timeout(Duration::from_secs(5))?;
        let version: i64 = db.pragma_query_value(None, "user_version", |r| r.get(0))?;
        let application: i64 = db.pragma_query_value(None, "application_id", |r| r.get(0))?;
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
        let empty = tables == 0 && version == 0 && application == 0;
        if !empty && application != APPLICATION_ID {
            return Err(Prepare::Foreign("it is a database of another program".to_owned()));
        }
        if version > LAYOUT {
            return Err(Prepare::Foreign(format!(
                "it was written by a newer Basin (layout {version}, this version knows up to \
                 {LAYOUT}): upgrade this server"
            )));
        }
        // In WAL mode with an exclusive lock there is no shared memory file, and
        // no other program can change the database behind the state in memory.
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        if empty {
            let tx = db.transaction()?;
            tx.execute_batch(TABLES)?;
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", LAYOUT)?;
            tx.commit()?;
        }
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
        if verdict == "ok" { Ok(()) } else { Err(Prepare::Foreign(damaged(&verdict))) }
    }

    /// Everything in the file. Leases go on from their whole ttl.
    pub fn load(&self, now: Duration) -> Result<State, StoreError> {
        self.read_state(now).map_err(|e| explain(&self.path, &e))
    }

    fn read_state(&self, now: Duration) -> rusqlite::Result<State> {
        let db = &self.connection;
        let mut state = State::default();
        let mut rows = db.prepare("SELECT key, value FROM meta")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let value: i64 = row.get(1)?;
            match row.get::<_, String>(0)?.as_str() {
                "revision" => state.revision = revision(value),
                "compacted" => state.compacted = revision(value),
                "last_lease" => state.last_lease = value,
                _ => (),
            }
        }
        let mut rows = db.prepare("SELECT key, value, created, modified, lease FROM entry")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let entry = Entry {
                key: row.get(0)?,
                value: row.get::<_, Vec<u8>>(1)?.into(),
                created: revision(row.get(2)?),
                modified: revision(row.get(3)?),
            };
            let lease = row.get::<_, Option<i64>>(4)?.map(LeaseId);
            state.entries.insert(entry.key.clone(), Stored { entry, lease });
        }
        let mut rows = db.prepare("SELECT id, ttl_ms FROM lease")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let ttl = Duration::from_millis(row.get::<_, i64>(1)?.unsigned_abs());
            let lease = Lease { ttl, deadline: now.saturating_add(ttl) };
            state.leases.insert(LeaseId(row.get(0)?), lease);
        }
        self.read_history(&mut state)?;
        Ok(state)
    }

    fn read_history(&self, state: &mut State) -> rusqlite::Result<()> {
        let mut rows = self.connection.prepare(
            "SELECT revision, key, value, created FROM history
             WHERE revision > ? ORDER BY revision, n",
        )?;
        let mut rows = rows.query([state.compacted.0 as i64])?;
        let mut moment = Moment { revision: Revision(0), changes: Vec::new() };
        while let Some(row) = rows.next()? {
            let modified = revision(row.get(0)?);
            if modified != moment.revision {
                let next = Moment { revision: modified, changes: Vec::new() };
                let done = std::mem::replace(&mut moment, next);
                if !done.changes.is_empty() {
                    state.remember(done);
                }
            }
            let key: String = row.get(1)?;
            let created = revision(row.get(3)?);
            moment.changes.push(match row.get::<_, Option<Vec<u8>>>(2)? {
                None => Change::Delete { key, revision: modified },
                // The latest value is shared with the entry.
                Some(value) => Change::Put(match state.get(&key) {
                    Some(entry) if entry.modified == modified => entry,
                    _ => Entry { key, value: Bytes::from(value), created, modified },
                }),
            });
        }
        if !moment.changes.is_empty() {
            state.remember(moment);
        }
        Ok(())
    }

    /// Makes the delta durable, or changes nothing. Forgets history up to
    /// `compacted` by the way.
    pub fn write(&mut self, delta: &Delta, compacted: Revision) -> Result<(), StoreError> {
        let mut result = self.try_write(delta, compacted);
        // What failed in the middle is rolled back when the transaction is
        // dropped; where even that failed, the connection is still inside it.
        if result.is_err() && !self.connection.is_autocommit() {
            result = result.and(self.connection.execute_batch("ROLLBACK"));
        }
        result.map_err(|e| explain(&self.path, &e))
    }

    fn try_write(&mut self, delta: &Delta, compacted: Revision) -> rusqlite::Result<()> {
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        let tx = self.connection.transaction()?;
        {
            let mut put =
                tx.prepare_cached("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?)")?;
            let mut delete = tx.prepare_cached("DELETE FROM entry WHERE key = ?")?;
            for (key, stored) in &delta.entries {
                let Some(Stored { entry, lease }) = stored else {
                    delete.execute([key])?;
                    continue;
                };
                let (created, modified) = (entry.created.0 as i64, entry.modified.0 as i64);
                let value: &[u8] = &entry.value;
                put.execute(params![key, value, created, modified, lease.map(|l| l.0)])?;
            }
            let mut grant = tx.prepare_cached("INSERT INTO lease VALUES (?, ?)")?;
            let mut end = tx.prepare_cached("DELETE FROM lease WHERE id = ?")?;
            for (id, lease) in &delta.leases {
                let ttl = lease.map(|l| i64::try_from(l.ttl.as_millis()).unwrap_or(i64::MAX));
                match ttl {
                    Some(ttl) if delta.granted(*id) => grant.execute([id.0, ttl])?,
                    Some(_) => 0,
                    None => end.execute([id.0])?,
                };
            }
            let mut note = tx.prepare_cached("INSERT INTO history VALUES (?, ?, ?, ?, ?)")?;
            for moment in &delta.moments {
                for (n, change) in moment.changes.iter().enumerate() {
                    let (value, created) = match change {
                        Change::Put(e) => (Some(&e.value[..]), e.created.0 as i64),
                        Change::Delete { .. } => (None, 0),
                    };
                    let revision = moment.revision.0 as i64;
                    note.execute(params![revision, n as i64, change.key(), value, created])?;
                }
            }
            let mut forget = tx.prepare_cached("DELETE FROM history WHERE revision <= ?")?;
            forget.execute([compacted.0 as i64])?;
            let mut meta = tx.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?, ?)")?;
            meta.execute(params!["revision", delta.revision.0 as i64])?;
            meta.execute(params!["compacted", compacted.0 as i64])?;
            meta.execute(params!["last_lease", delta.last_lease])?;
        }
        tx.commit()
    }
}

enum Prepare {
    Sql(rusqlite::Error),
    Foreign(String),
}

impl From<rusqlite::Error> for Prepare {
    fn from(e: rusqlite::Error) -> Self {
        Prepare::Sql(e)
    }
}

/// A file beside the database: SQLite's own lock does not tell a second daemon
/// from a program that looks in for a moment.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = PathBuf::from(name);
    let failed = |e: std::io::Error| {
        StoreError::Unavailable(format!("{} cannot be opened: {e}", lock.display()))
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock)
        .map_err(failed)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(unusable(
                    path,
                    "another Basin daemon has it open: stop that one first, or give this one \
                     its own state directory",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
}

/// A daemon that was killed may have been starting a program, which holds what it
/// inherited until it runs.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Makes the file if there is none, for its owner's eyes only (SQLite gives the
/// log beside it the same mode).
fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| {
        StoreError::Unavailable(format!("{} cannot be opened: {e}", path.display()))
    };
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn revision(stored: i64) -> Revision {
    Revision(stored.unsigned_abs())
}

fn unusable(path: &Path, why: &str) -> StoreError {
    StoreError::Unusable(format!("{}: {why}", path.display()))
}

fn damaged(why: &str) -> String {
    format!("the file is damaged ({why}): restore it from a backup, or move it away to start empty")
}

/// What an operator needs to hear about an error of SQLite.
fn explain(path: &Path, error: &rusqlite::Error) -> StoreError {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    match error {
        rusqlite::Error::SqliteFailure(e, _) => match e.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                unusable(path, &damaged(&error.to_string()))
            }
            ErrorCode::DiskFull => StoreError::Unavailable(format!(
                "the disk that holds {} is full: free some space",
                path.display()
            )),
            _ => StoreError::Unavailable(format!("{}: {error}", path.display())),
        },
        // Rows that this version cannot have written.
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) => {
            unusable(path, &damaged(&error.to_string()))
        }
        _ => StoreError::Unavailable(format!("{}: {error}", path.display())),
    }
}
