//! Proves that a shared datastore is the same storage here as on the other servers.
//!
//! Held against one server that has proven it already: what each of the two writes,
//! the other has to see, and a lock that one holds must exist for the other. What is
//! written is new each time and travels between the servers themselves; the store
//! only says who has proven what. The first to be proven is the datastore's maker.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use basin_model::datastore::{Datastore as Record, Sharing};
use basin_model::host::{Host, HostStatus};
use basin_model::keys::Kind;
use basin_model::task::Problem;
use basin_model::{DatastoreId, HostId, Name};
use basin_storage::{DirDatastore, Proof};
use basin_store::records;

use super::Datastores;
use crate::NodeError;
use crate::problem::{Explain, node_error, problem};

/// More than another server looks for what was written.
const ANSWERS_WITHIN: Duration = Duration::from_secs(40);
/// Storage that was found to be another is not looked at all the time.
const MEND_PAUSE: Duration = Duration::from_secs(30);

/// How a check ended.
enum Verdict {
    Proven,
    /// Nobody answered who could tell.
    Silent(String),
    Refuted(Problem),
}

impl Datastores {
    /// Checks a shared datastore that has not been proven since it was opened.
    pub async fn check(&self, record: &Record, place: &Arc<DirDatastore>) {
        let id = record.id;
        let Sharing::Shared { maker } = record.sharing else { return };
        let pausing = self.pauses().get(&id).is_some_and(|until| Instant::now() < *until);
        if self.seen.borrow().proven.contains(&id) || pausing {
            return;
        }
        let verdict = match self.hold_against(id, maker, place).await {
            Ok(verdict) => verdict,
            // The store or the file system: nothing is known, so nothing is refuted.
            Err(problem) => Verdict::Silent(problem.detail),
        };
        // Closed or opened anew meanwhile: that one is checked in its turn.
        if !self.all().get(&id).is_some_and(|open| Arc::ptr_eq(&open.place, place)) {
            return;
        }
        match verdict {
            Verdict::Proven => self.proven(id),
            Verdict::Silent(_) if self.seen.borrow().before.contains(&id) => self.proven(id),
            Verdict::Silent(why) => {
                let advice = "see that those servers run and can be reached from here";
                self.failed(id, problem("datastore-unproven", why, advice));
            }
            Verdict::Refuted(problem) => {
                let name = &record.meta.name;
                tracing::warn!(datastore = %name, why = problem.detail, "not the same storage");
                self.pauses().insert(id, Instant::now() + MEND_PAUSE);
                self.seen.send_modify(|seen| {
                    seen.before.remove(&id);
                    seen.problems.insert(id, problem);
                });
            }
        }
    }

    fn pauses(&self) -> MutexGuard<'_, BTreeMap<DatastoreId, Instant>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proven(&self, id: DatastoreId) {
        self.seen.send_modify(|seen| {
            seen.problems.remove(&id);
            seen.before.remove(&id);
            seen.proven.insert(id);
        });
    }

    async fn hold_against(
        &self,
        id: DatastoreId,
        maker: HostId,
        place: &DirDatastore,
    ) -> Result<Verdict, Problem> {
        let store = &*self.store;
        let listed = records::list::<HostStatus>(store, &Kind::HostStatus.prefix()).await;
        let (statuses, _) = listed.map_err(|e| e.problem())?;
        let listed = records::list::<Host>(store, &Kind::Host.prefix()).await;
        let (hosts, _) = listed.map_err(|e| e.problem())?;
        let name = |id: HostId| -> Option<&Name> {
            hosts.iter().find(|h| h.value.id == id).map(|h| &h.value.meta.name)
        };
        let statuses = statuses.iter().map(|s| &s.value);
        let others: Vec<HostId> = statuses
            .filter(|s| s.host != self.host && s.shared_datastores.contains(&id))
            .map(|s| s.host)
            .filter(|host| name(*host).is_some())
            .collect();
        let mut silent = Vec::new();
        for host in others {
            let name = name(host).map(Name::to_string).unwrap_or_default();
            let compared = |mut problem: Problem| {
                problem.detail = format!("compared with server {name}: {}", problem.detail);
                Ok(Verdict::Refuted(problem))
            };
            let Some(node) = self.peers.get(host) else {
                silent.push(name);
                continue;
            };
            let proof = place.prove().await.map_err(|e| e.problem())?;
            let asked = node.witness_datastore(id, self.host, proof);
            let answer = match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(e)) if e.0.code == "datastore-not-shared" => return compared(e.0),
                Ok(Err(_)) | Err(_) => {
                    silent.push(name);
                    continue;
                }
            };
            return match place.confirm(host, proof, answer).await {
                Ok(()) => Ok(Verdict::Proven),
                Err(e) => compared(e.problem()),
            };
        }
        if !silent.is_empty() {
            return Ok(Verdict::Silent(format!(
                "it cannot be checked that this is the same storage as on {}, which did not answer",
                silent.join(", ")
            )));
        }
        // Nobody has it. The maker begins; where that server is no more, the first.
        let first = hosts.iter().map(|h| h.value.id).min();
        let begins = if name(maker).is_some() { Some(maker) } else { first };
        if begins.is_none_or(|host| host == self.host) {
            return Ok(Verdict::Proven);
        }
        let maker = begins.and_then(name).map(Name::to_string).unwrap_or_default();
        Ok(Verdict::Silent(format!(
            "it cannot be checked that this is the same storage as on {maker}, \
             which does not reach it itself"
        )))
    }

    /// Looks for what another server wrote, and answers; for a server that has
    /// proven the datastore itself.
    pub async fn witness(
        &self,
        id: DatastoreId,
        from: HostId,
        proof: Proof,
    ) -> Result<Proof, NodeError> {
        let place = self.usable(id).map_err(|e| node_error(&e))?;
        place.witness(from, proof).await.map_err(|e| node_error(&e))
    }
}
