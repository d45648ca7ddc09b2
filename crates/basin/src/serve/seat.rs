//! How this server becomes one of a cluster: what is to be is written down whole, and
//! the daemon puts itself together anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use basin_controller::app::problems;
use basin_controller::cluster::seat::{Seat, StoreContact};
use basin_model::task::Problem;
use basin_node::cluster::attempt::{self, Failed};
use basin_node::cluster::found::{self, Found};
use basin_node::cluster::join::{self, Join};
use basin_node::cluster::{ClusterDir, StoreConfig};
use basin_node::pki::Credentials;
use basin_store::etcd::EtcdAdmin;
use basin_store::{EtcdStore, StoreError};
use tokio::sync::Notify;
use uuid::Uuid;

use super::cluster::Member;

/// Whoever asked hears that it has begun before the daemon goes.
pub const ANSWER_FIRST: Duration = Duration::from_millis(200);

pub struct DaemonSeat {
    state_dir: PathBuf,
    api_port: Option<u16>,
    again: Arc<Notify>,
    store: Option<Arc<EtcdStore>>,
    credentials: Option<Credentials>,
    started: Instant,
    busy: AtomicBool,
}

impl DaemonSeat {
    pub fn new(
        state_dir: &Path,
        api_port: Option<u16>,
        again: Arc<Notify>,
        member: Option<&Member>,
    ) -> DaemonSeat {
        DaemonSeat {
            state_dir: state_dir.to_owned(),
            api_port,
            again,
            store: member.map(|m| m.store.clone()),
            credentials: member.map(|m| m.credentials.clone()),
            started: Instant::now(),
            busy: AtomicBool::new(false),
        }
    }

    /// One attempt at a time.
    fn begin(&self) -> Result<Busy<'_>, Problem> {
        if self.busy.swap(true, Ordering::SeqCst) {
            return Err(Problem {
                code: "busy".to_owned(),
                detail: "This server is about to become one of a cluster already.".to_owned(),
                advice: "Wait a moment, and look at 'basin cluster show'.".to_owned(),
            });
        }
        Ok(Busy(&self.busy))
    }

    fn restart(&self, busy: Busy<'_>) {
        // Until then nothing else may begin.
        std::mem::forget(busy);
        let again = self.again.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ANSWER_FIRST).await;
            again.notify_one();
        });
    }
}

/// An attempt under way; over when dropped.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

#[async_trait]
impl Seat for DaemonSeat {
    async fn found(&self, found: Found) -> Result<Uuid, Problem> {
        let busy = self.begin()?;
        let (next, attempt) = (ClusterDir::next(&self.state_dir), Uuid::now_v7());
        if found.external.is_none() {
            found::etcd_is_there()?;
        }
        found::prepare(&next, &found, attempt)?;
        self.restart(busy);
        Ok(attempt)
    }

    async fn join(&self, join: Join) -> Result<Uuid, Problem> {
        let busy = self.begin()?;
        let (next, attempt) = (ClusterDir::next(&self.state_dir), Uuid::now_v7());
        join::join(&next, &join, attempt).await?;
        self.restart(busy);
        Ok(attempt)
    }

    fn failed(&self) -> Option<Failed> {
        attempt::last_failed(&self.state_dir)
    }

    fn contact(&self) -> Option<StoreContact> {
        let store = self.store.as_ref()?;
        let contact = store.contact().borrow().clone();
        let age = contact.answered.unwrap_or(self.started).elapsed();
        Some(StoreContact { asks: store.endpoint(), age, lost: contact.lost })
    }

    async fn backup(&self) -> Result<std::fs::File, Problem> {
        let current = ClusterDir::current(&self.state_dir);
        let config = current.load().map_err(|e| unmade(&e))?;
        let (Some(config), Some(credentials)) = (config, &self.credentials) else {
            return Err(problems::no_cluster());
        };
        if let StoreConfig::External(_) = config.store {
            return Err(problems::invalid(
                "the state is in an etcd that Basin does not run: back that up by its own means \
                 ('etcdctl snapshot save')",
            ));
        }
        let options = config.etcd_options(&credentials.material());
        let path = current.path().join(format!("backup-{}", Uuid::now_v7()));
        let mut saved = Err(StoreError::Unavailable("it has no members".to_owned()));
        // One that has just come may not have all yet, and says so.
        for member in options.endpoints {
            saved = match EtcdAdmin::new(&[member], options.tls.as_ref()) {
                Ok(admin) => admin.snapshot(&path).await,
                Err(error) => Err(error),
            };
            if saved.is_ok() {
                break;
            }
        }
        let file = std::fs::File::open(&path);
        // Whoever has it open has it; nobody else is to find it.
        let _ = std::fs::remove_file(&path);
        saved.map_err(problems::store_unavailable)?;
        file.map_err(|e| unmade(&e))
    }

    fn api_port(&self) -> Option<u16> {
        self.api_port
    }
}

fn unmade(why: &dyn std::fmt::Display) -> Problem {
    Problem {
        code: "state-unwritable".to_owned(),
        detail: format!("The backup cannot be made: {why}."),
        advice: "Check the state directory's file system.".to_owned(),
    }
}
