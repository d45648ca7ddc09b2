//! Follows, for as long as the daemon runs, where the cluster's etcd is: makes of this
//! server's member what etcd's list of members says, and notes where the others are,
//! so that the next start finds them.

use std::sync::Arc;
use std::time::Duration;

use basin_model::task::Problem;
use basin_store::EtcdStore;
use basin_store::etcd::{Member, endpoints_of};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::config::cluster_tls;
use super::{ClusterConfig, ClusterDir, StoreConfig};
use crate::etcd::{EtcdMember, Resident, Voters, voters};
use crate::pki::Credentials;

/// The list is asked for so often. Who is added to it waits for this.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// This server's member, if it has one, and where all are. Only for etcd that Basin runs.
pub struct Follower {
    pub dir: ClusterDir,
    pub config: ClusterConfig,
    pub store: Arc<EtcdStore>,
    pub credentials: Credentials,
    pub resident: Resident,
    /// Who has a vote, as often as that is asked for.
    pub voters: watch::Sender<Voters>,
    /// What keeps the member from running, for the server's conditions.
    pub trouble: watch::Sender<Option<Problem>>,
    pub stop: CancellationToken,
}

impl Follower {
    /// Until stopped. The member's process goes on after that.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut renewed = self.credentials.changes();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tended = Ok(self.resident.member().await);
        loop {
            self.report(&tended);
            tokio::select! {
                Ok(()) = renewed.changed() => self.connect(),
                () = news(&tended, &self.trouble) => {}
                _ = look.tick() => if let Some(new) = self.tend().await {
                    tended = new;
                },
            }
        }
    }

    /// `None`: nobody can say what is to be, so everything stays as it is.
    async fn tend(&mut self) -> Option<Result<Option<EtcdMember>, Problem>> {
        let nearest = self.config.own_endpoint();
        let members = match self.store.follow_members(&nearest).await {
            Ok(members) => members,
            Err(error) => {
                tracing::debug!(%error, "etcd's members are not seen");
                return None;
            }
        };
        self.note(&members, &nearest);
        self.voters.send_replace(voters(&members));
        Some(self.resident.tend(&members).await)
    }

    fn note(&mut self, members: &[Member], nearest: &str) {
        let StoreConfig::Own { endpoints } = &mut self.config.store else { return };
        let now = endpoints_of(members, nearest);
        if now.is_empty() || now == *endpoints {
            return;
        }
        *endpoints = now;
        if let Err(error) = self.dir.store(&self.config) {
            tracing::warn!(%error, "cannot note where etcd's members are");
        }
    }

    /// With the certificate of now.
    fn connect(&self) {
        let material = self.credentials.material();
        let options = self.config.etcd_options(&material);
        let tls = cluster_tls(&material);
        if let Err(error) = self.store.set_endpoints(&options.endpoints, Some(&tls)) {
            tracing::warn!(%error, "etcd's members cannot be used");
        }
    }

    fn report(&self, tended: &Result<Option<EtcdMember>, Problem>) {
        let problem = match tended {
            Err(problem) => Some(problem.clone()),
            Ok(member) => member.as_ref().and_then(|m| m.state().borrow().problem.clone()),
        };
        self.trouble.send_if_modified(|old| {
            let new = *old != problem;
            old.clone_from(&problem);
            new
        });
    }
}

/// Returns when there is news of the member's process.
async fn news(tended: &Result<Option<EtcdMember>, Problem>, told: &watch::Sender<Option<Problem>>) {
    let told = told.borrow().clone();
    if let Ok(Some(member)) = tended
        && member.state().wait_for(|state| state.problem != told).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
