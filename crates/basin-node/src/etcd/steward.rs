//! Carries out the plan of who votes: on the server that leads, now and then a step.
//!
//! It only changes etcd's list of members. The servers see from that list what is
//! theirs to do (`resident`), so nobody has to be told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use basin_model::HostId;
use basin_store::StoreError;
use basin_store::etcd::{EtcdStore, Member, MemberStatus, endpoints_of};
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::plan::{Candidate, Rules, Seen, Step, Verdict, next};

/// A server of the cluster, those first that should vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// As text it is the name of its member.
    pub host: HostId,
    /// Of its member, if it has one or had one.
    pub peer_url: String,
    pub silent_since: Option<Timestamp>,
    /// See [`Candidate::willing`].
    pub willing: bool,
}

/// Remembers since when members are down, so it lives as long as the leadership.
pub struct Steward {
    rules: Rules,
    down: BTreeMap<u64, Instant>,
}

/// A member that does not say within this how it is, is down.
const STATUS_WITHIN: Duration = Duration::from_secs(4);

impl Steward {
    pub fn new(rules: Rules) -> Steward {
        Steward { rules, down: BTreeMap::new() }
    }

    /// Looks, decides, and does one thing. Call it again after some seconds, also when
    /// it fails: etcd refuses changes for a while after each one.
    pub async fn step(
        &mut self,
        store: &EtcdStore,
        servers: &[Server],
    ) -> Result<Verdict, StoreError> {
        let members = store.members().await?;
        let seen = self.look(store, servers, &members).await;
        let candidates: Vec<Candidate> = servers.iter().map(candidate).collect();
        let verdict = next(&candidates, &seen, self.rules, Timestamp::now());
        act(store, servers, &members, &seen, verdict.step).await?;
        Ok(verdict)
    }

    async fn look(
        &mut self,
        store: &EtcdStore,
        servers: &[Server],
        members: &[Member],
    ) -> Vec<Seen> {
        let all = join_all(members.iter().map(|m| status(store, m))).await;
        self.down.retain(|id, _| members.iter().any(|m| m.id == *id));
        let (instant, now) = (Instant::now(), Timestamp::now());
        let see = |(member, status): (&Member, Option<MemberStatus>)| {
            let down_since = match status {
                Some(_) => {
                    self.down.remove(&member.id);
                    None
                }
                // The clock may be set meanwhile; what has passed is measured.
                None => {
                    let since = *self.down.entry(member.id).or_insert(instant);
                    let passed = SignedDuration::try_from(instant - since).unwrap_or_default();
                    Some(now.checked_sub(passed).unwrap_or(now))
                }
            };
            let leader = status.is_some_and(|s| s.leader == Some(member.id));
            let host = server_of(servers, member).map(|s| s.host);
            Seen { id: member.id, host, learner: member.learner, leader, down_since }
        };
        members.iter().zip(all).map(see).collect()
    }
}

fn candidate(server: &Server) -> Candidate {
    let Server { host, silent_since, willing, .. } = *server;
    Candidate { host, silent_since, willing }
}

/// One that has started says its name; an address may meanwhile be another server's.
fn server_of<'a>(servers: &'a [Server], member: &Member) -> Option<&'a Server> {
    servers.iter().find(|server| {
        if member.started() {
            server.host.to_string() == member.name
        } else {
            member.peer_urls.contains(&server.peer_url)
        }
    })
}

/// `None`: it is down, or cut off from the others.
async fn status(store: &EtcdStore, member: &Member) -> Option<MemberStatus> {
    let admin = store.admin_at(&member.client_urls).ok()?;
    let status = timeout(STATUS_WITHIN, admin.status()).await.ok()?.ok()?;
    (status.id == member.id && status.leader.is_some()).then_some(status)
}

async fn act(
    store: &EtcdStore,
    servers: &[Server],
    members: &[Member],
    seen: &[Seen],
    step: Step,
) -> Result<(), StoreError> {
    let nearest = store.endpoint().unwrap_or_default();
    // A member that goes does not answer for its own removal.
    let without = |id: Option<u64>| {
        let others: Vec<Member> = members.iter().filter(|m| Some(m.id) != id).cloned().collect();
        store.admin_at(&endpoints_of(&others, &nearest))
    };
    match step {
        Step::AddLearner(host) => match servers.iter().find(|s| s.host == host) {
            Some(server) => without(None)?.add_learner(&server.peer_url).await.map(drop),
            None => Ok(()),
        },
        Step::Promote(id) => without(None)?.promote(id).await.map(drop),
        Step::Remove(id) => without(Some(id))?.remove(id).await,
        Step::MoveLeader(to) => {
            let leads = |m: &&Member| seen.iter().any(|s| s.id == m.id && s.leader);
            match members.iter().find(leads) {
                Some(leader) => store.admin_at(&leader.client_urls)?.move_leader(to).await,
                None => Ok(()),
            }
        }
        Step::Wait | Step::Settled => Ok(()),
    }
}
