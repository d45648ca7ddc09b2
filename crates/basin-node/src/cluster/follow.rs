//! Follows, for as long as the daemon runs, where the cluster's etcd is: runs a member
//! on this server while the store says so, and notes where the others are, so that
//! the next start finds them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use basin_model::HostId;
use basin_model::cluster::StoreMember;
use basin_model::keys::Kind;
use basin_model::task::Problem;
use basin_qemu::qemu::cgroup::MachineCgroup;
use basin_store::EtcdStore;
use basin_store::records::{RecordEvent, watch_records};
use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::cluster_tls;
use super::{Beginning, ClusterConfig, ClusterDir, StoreConfig, no_member};
use crate::etcd::{self, EtcdMember, MemberState};
use crate::pki::Credentials;

/// A watch that ended begins again after this time.
const PAUSE: Duration = Duration::from_secs(1);

/// This server's member, if it has one, and where all are.
pub struct Follower {
    pub dir: ClusterDir,
    pub host: HostId,
    pub config: ClusterConfig,
    pub store: Arc<EtcdStore>,
    pub credentials: Credentials,
    pub cgroup: Option<MachineCgroup>,
    pub member: Option<EtcdMember>,
    /// What keeps the member from running, for the server's conditions.
    pub trouble: watch::Sender<Option<Problem>>,
    pub stop: CancellationToken,
}

impl Follower {
    /// Until stopped. The member's process goes on after that.
    pub async fn run(mut self) {
        let mut renewed = self.credentials.changes();
        let mut members: BTreeMap<String, StoreMember> = BTreeMap::new();
        let stop = self.stop.clone();
        while !stop.is_cancelled() {
            let mut events =
                watch_records::<StoreMember>(self.store.clone(), Kind::StoreMember.prefix());
            loop {
                let state = self.member_state();
                tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.next() => match event {
                        Some(Ok(RecordEvent::Resync { records, .. })) => {
                            members = records.into_iter().map(|r| (r.key, r.value)).collect();
                            self.apply(&members).await;
                        }
                        Some(Ok(RecordEvent::Put(record))) => {
                            members.insert(record.key, record.value);
                            self.apply(&members).await;
                        }
                        Some(Ok(RecordEvent::Deleted { key, .. })) => {
                            members.remove(&key);
                            self.apply(&members).await;
                        }
                        Some(Err(error)) => tracing::debug!(%error, "etcd's members are not seen"),
                        None => break,
                    },
                    Ok(()) = renewed.changed() => self.connect(),
                    () = state => self.report(),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Returns when there is news of the member's process.
    fn member_state(&self) -> impl Future<Output = ()> + use<> {
        let state: Option<watch::Receiver<MemberState>> = self.member.as_ref().map(|m| m.state());
        let told = self.trouble.borrow().clone();
        async move {
            let Some(mut state) = state else { return std::future::pending().await };
            let _ = state.wait_for(|state| state.problem != told).await;
        }
    }

    fn report(&self) {
        let problem = self.member.as_ref().and_then(|m| m.state().borrow().problem.clone());
        self.trouble.send_if_modified(|old| {
            let new = *old != problem;
            old.clone_from(&problem);
            new
        });
    }

    async fn apply(&mut self, members: &BTreeMap<String, StoreMember>) {
        // A store without any is one that is being made, or somebody else's.
        if members.is_empty() {
            return;
        }
        let StoreConfig::Own { member, .. } = &self.config.store else { return };
        let own = members.values().find(|m| m.host == self.host);
        // A new member begins with nothing: what an earlier one left would keep it from
        // ever coming up.
        if own.is_some() && member.is_none() {
            let left = no_member(self.host, &self.config, &self.dir);
            if let Err(problem) = etcd::clear(&left).await {
                tracing::error!("{}: {}", problem.detail, problem.advice);
            }
        }
        let StoreConfig::Own { endpoints, member } = &mut self.config.store else { return };
        let before = (endpoints.clone(), member.clone());
        *endpoints = members.values().map(|m| m.client_url.clone()).collect();
        match (own, &member) {
            (Some(own), None) => *member = Some(Beginning::Join { others: own.others.clone() }),
            (None, Some(_)) => *member = None,
            _ => {}
        }
        if before != (endpoints.clone(), member.clone())
            && let Err(error) = self.dir.store(&self.config)
        {
            tracing::warn!(%error, "cannot note where etcd's members are");
        }
        match (own.is_some(), self.member.take()) {
            (true, Some(member)) => self.member = Some(member),
            (true, None) => self.member = self.start().await,
            (false, Some(member)) => {
                tracing::info!("this server no longer has a member of etcd");
                if let Err(problem) = member.remove().await {
                    tracing::warn!("{}: {}", problem.detail, problem.advice);
                }
            }
            (false, None) => {}
        }
        self.connect();
        self.report();
    }

    async fn start(&self) -> Option<EtcdMember> {
        let config = self.config.member(self.host, &self.dir)?;
        tracing::info!("this server gets a member of etcd");
        Some(EtcdMember::start(config, self.cgroup.clone(), &self.stop).await)
    }

    fn connect(&self) {
        let StoreConfig::Own { .. } = self.config.store else { return };
        let material = self.credentials.material();
        let options = self.config.etcd_options(&material);
        if let Err(error) =
            self.store.set_endpoints(&options.endpoints, Some(&cluster_tls(&material)))
        {
            tracing::warn!(%error, "etcd's members cannot be used");
        }
    }
}
