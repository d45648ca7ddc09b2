//! The application: everything the API can do, as functions that know no HTTP.
//!
//! A request becomes a draft (`intake`, pure) on a snapshot of the inventory; the
//! draft is committed on the condition that nothing it was decided from has
//! changed, and decided anew when something has.

pub mod auth;
pub mod baseline;
pub mod bootstrap;
mod certificates;
pub mod cluster;
pub mod datastores;
pub mod drains;
pub mod holds;
pub mod hosts;
pub mod images;
pub mod inventory;
pub mod moves;
pub mod networks;
pub mod nodes;
pub mod problems;
pub mod tasks;
pub mod token;
pub mod tokens;
pub mod vm_disks;
pub mod vm_migrate;
pub mod vm_power;
pub mod vms;
pub mod vnis;
pub mod volumes;

use std::sync::Arc;
use std::time::Duration;

use basin_model::keys;
use basin_model::task::{Problem, Task};
use basin_store::records::{self, CommitError, TxnBuilder, Versioned};
use basin_store::{Compare, Revision, Store, StoreError};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::cluster::leader::Leadership;
use crate::cluster::seat::{Seat, Seatless};
use crate::cluster::voters::Leaving;
use crate::intake::Mint;
use crate::workflow::{StartError, Workflow, Workflows};
use inventory::{Inventory, Snapshot};
use nodes::Nodes;
pub use volumes::space_check;

/// How often a draft is made anew when others change the same things.
const ATTEMPTS: usize = 50;

/// A watch of the store tells what was written at once, if it tells anything.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// What workflow steps work with.
pub struct Services {
    pub store: Arc<dyn Store>,
    pub inventory: Inventory,
    pub nodes: Nodes,
}

/// The application. One a daemon.
pub struct App {
    pub services: Arc<Services>,
    pub workflows: Workflows<Services>,
    pub leadership: Leadership,
    pub seat: Arc<dyn Seat>,
    pub leaving: Leaving,
}

impl App {
    /// That of a single server.
    pub fn new(services: Arc<Services>, workflows: Workflows<Services>) -> App {
        let (leadership, leaving) = (Leadership::alone(), Leaving::default());
        App { services, workflows, leadership, seat: Arc::new(Seatless), leaving }
    }

    /// That of a server of several.
    pub fn led(self, leadership: Leadership) -> App {
        App { leadership, ..self }
    }

    /// That of a daemon.
    pub fn seated(self, seat: Arc<dyn Seat>) -> App {
        App { seat, ..self }
    }

    pub fn store(&self) -> &dyn Store {
        &*self.services.store
    }

    pub fn inventory(&self) -> &Inventory {
        &self.services.inventory
    }

    pub fn nodes(&self) -> &Nodes {
        &self.services.nodes
    }

    /// Decides on a snapshot and commits; decides anew if something moved on.
    /// Returns once the inventory has the change.
    pub async fn commit<T>(
        &self,
        mut decide: impl FnMut(&Snapshot, &mut Mint<'_>) -> Result<(T, TxnBuilder), Problem> + Send,
    ) -> Result<T, Problem> {
        for _ in 0..ATTEMPTS {
            let (value, txn) = self.decide(&mut decide)?;
            match txn.commit(self.store()).await {
                Ok(revision) => {
                    self.shown(revision).await;
                    return Ok(value);
                }
                Err(CommitError::Refused(condition)) => self.catch_up(&condition).await?,
                Err(CommitError::Store(e)) => return Err(store_problem(&e)),
            }
        }
        Err(contended())
    }

    /// Decides on a snapshot and starts the workflow that does it; the draft's
    /// reservations and the task come into being in one transaction, and only while
    /// this server leads: it is the leader that drives workflows.
    pub async fn start<W: Workflow<Services = Services>>(
        &self,
        mut decide: impl FnMut(&Snapshot, &mut Mint<'_>) -> Result<(W, TxnBuilder), Problem> + Send,
    ) -> Result<Task, Problem> {
        for _ in 0..ATTEMPTS {
            let (workflow, txn) = self.decide(&mut decide)?;
            let guard = self.leadership.guard().map_err(|_| problems::no_leader())?;
            match self.workflows.start(workflow, txn.and(guard)).await {
                Ok(task) => {
                    self.see(&keys::task(task.id)).await?;
                    return Ok(task);
                }
                Err(StartError::Refused(condition)) if condition.key() == keys::leader() => {
                    return Err(problems::no_leader());
                }
                Err(StartError::Refused(condition)) => self.catch_up(&condition).await?,
                Err(StartError::Store(e)) => return Err(store_problem(&e)),
                Err(e @ StartError::Unknown(_)) => return Err(problems::store_unavailable(e)),
            }
        }
        Err(contended())
    }

    fn decide<T>(
        &self,
        decide: &mut impl FnMut(&Snapshot, &mut Mint<'_>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let mut uuid = Uuid::now_v7;
        decide(&self.inventory().read(), &mut Mint::new(Timestamp::now(), &mut uuid))
    }

    /// Waits for the inventory to have what was just written to the key.
    async fn see(&self, key: &str) -> Result<(), Problem> {
        let entry = self.store().get(key).await.map_err(|e| store_problem(&e))?;
        if let Some(entry) = entry {
            self.shown(entry.modified).await;
        }
        Ok(())
    }

    /// Waits for the inventory to have the revision; not for ever, for the store may be
    /// lost in this very moment. What was written is written.
    async fn shown(&self, revision: Revision) {
        let seen = self.inventory().at_least(revision);
        if tokio::time::timeout(SHOWN_WITHIN, seen).await.is_err() {
            tracing::warn!(revision = revision.0, "what was written is not seen yet");
        }
    }

    /// After a refusal: waits for the inventory to have what refused it. A key
    /// that the inventory does not show (a lock) is somebody's for a moment.
    async fn catch_up(&self, condition: &Compare) -> Result<(), Problem> {
        let entry = self.store().get(condition.key()).await.map_err(|e| store_problem(&e))?;
        let seen = self.inventory().read().revision;
        match entry {
            Some(entry) if entry.modified > seen => self.shown(entry.modified).await,
            _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
        Ok(())
    }
}

/// Changes one record, whatever else happens to it meanwhile.
pub async fn update<T, F>(store: &dyn Store, key: &str, change: F) -> Result<Versioned<T>, Problem>
where
    T: Serialize + DeserializeOwned + Send,
    F: FnMut(T) -> Result<T, Problem> + Send,
{
    records::update(store, key, change).await.map_err(|e| match e {
        records::UpdateError::Absent(key) => problems::not_found("record", &key),
        records::UpdateError::Refused(problem) => problem,
        records::UpdateError::Store(e) => store_problem(&e),
    })
}

/// Refuses when the record is no longer the one the caller read.
pub fn unchanged<T: crate::intake::resolve::Named>(
    record: &Versioned<T>,
    expected: Option<Revision>,
) -> Result<(), Problem> {
    match expected {
        Some(revision) if revision != record.revision => {
            Err(problems::changed(T::KIND, &record.value.meta().name, record.revision.0))
        }
        _ => Ok(()),
    }
}

/// What a failure of the store means to whoever asked.
pub fn store_problem(e: &StoreError) -> Problem {
    problems::store_unavailable(e)
}

fn contended() -> Problem {
    Problem {
        code: "busy".to_owned(),
        detail: "Something that this needs is being changed by others all the time.".to_owned(),
        advice: "See 'basin task list' for what is under way, and try again when it is done."
            .to_owned(),
    }
}
