//! Members and their upkeep, asked of the members themselves.

use std::time::Duration;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::EtcdStore;
use super::errors::{Failure, chain, failure};
use super::link::{Again, plain, probe};
use super::options::{self, CONNECT_WITHIN, EtcdTls};
use super::rpc::{self, Method};
use super::wire::{
    ALARM_DEACTIVATE, ALARM_GET, ALARM_NOSPACE, AlarmRequest, AlarmResponse, Empty,
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberRequest, MembersResponse,
    StatusResponse, WireMember,
};
use crate::store::StoreError;

/// A member as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// Empty until the member has started once.
    pub name: String,
    pub peer_urls: Vec<String>,
    /// Empty until the member has started once.
    pub client_urls: Vec<String>,
    /// Gets everything and votes for nothing.
    pub learner: bool,
}

impl Member {
    pub fn started(&self) -> bool {
        !self.name.is_empty()
    }
}

/// Where the store's clients find these members: those that can answer, and the
/// nearest one first, if it is among them.
pub fn endpoints_of(members: &[Member], nearest: &str) -> Vec<String> {
    let serving = members.iter().filter(|m| !m.learner);
    let mut urls: Vec<String> = serving.flat_map(|m| m.client_urls.clone()).collect();
    urls.sort_by_key(|url| url != nearest);
    urls
}

/// A member as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub id: u64,
    pub cluster: u64,
    pub version: String,
    pub revision: u64,
    /// The member that leads; `None`: it knows of none.
    pub leader: Option<u64>,
    pub learner: bool,
    pub db_bytes: u64,
    pub db_bytes_in_use: u64,
    pub raft_index: u64,
    pub raft_applied: u64,
    pub errors: Vec<String>,
    /// The database has reached its quota (see [`EtcdAdmin::make_room`]).
    pub full: bool,
}

/// Asks members, one after the other, until one answers. Makes a connection for each
/// question: these are rare.
#[derive(Debug, Clone)]
pub struct EtcdAdmin {
    endpoints: Vec<Endpoint>,
    limit: Duration,
}

/// How long a member may take; etcd itself gives a change of members up after 7 s.
const ANSWERS_WITHIN: Duration = Duration::from_secs(8);
/// The same for a question that may be put to the next member.
const READS_WITHIN: Duration = Duration::from_secs(3);
/// It rewrites the whole database.
const DEFRAGMENTS_WITHIN: Duration = Duration::from_secs(120);

impl EtcdAdmin {
    pub fn new(urls: &[String], tls: Option<&EtcdTls>) -> Result<Self, StoreError> {
        Ok(Self { endpoints: options::endpoints(urls, tls)?, limit: ANSWERS_WITHIN })
    }

    /// As the quorum knows them now.
    pub async fn members(&self) -> Result<Vec<Member>, StoreError> {
        self.each(Again::Always, |channel| members(channel, READS_WITHIN)).await
    }

    /// Makes room for a member that is not started yet. If there is one with this
    /// address, it is given back, so asking twice is as good as once.
    pub async fn add_learner(&self, peer_url: &str) -> Result<Member, StoreError> {
        let has = |m: &Member| m.peer_urls.iter().any(|url| url == peer_url);
        if let Some(there) = self.members().await?.into_iter().find(has) {
            return Ok(there);
        }
        let request = MemberAddRequest { peer_urls: vec![peer_url.to_owned()], learner: true };
        let answer: MemberAddResponse = self.ask(rpc::MEMBER_ADD, request).await?;
        let added = answer.member.map(member);
        added.ok_or_else(|| StoreError::Unavailable("etcd did not name the member".to_owned()))
    }

    /// Gives a learner its vote. `false`: it has not caught up yet, ask later.
    pub async fn promote(&self, id: u64) -> Result<bool, StoreError> {
        let asked = self.ask::<_, MembersResponse>(rpc::MEMBER_PROMOTE, MemberRequest { id }).await;
        match asked {
            Ok(_) => Ok(true),
            // etcd 3.4 says so of one that votes already, too.
            Err(e) if says(&e, "can only promote a learner member") => {
                let members = self.members().await?;
                Ok(members.iter().any(|m| m.id == id && !m.learner))
            }
            Err(e) => Err(e),
        }
    }

    /// One that is not there is removed. etcd refuses ([`StoreError::Unavailable`]) for
    /// some seconds after a change or an election: ask again. Never remove the leader
    /// (move it first): of two members the other may never learn that it is alone.
    pub async fn remove(&self, id: u64) -> Result<(), StoreError> {
        let asked = self.ask::<_, MembersResponse>(rpc::MEMBER_REMOVE, MemberRequest { id }).await;
        match asked {
            Ok(_) => Ok(()),
            Err(e) if says(&e, "member not found") => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Of the first endpoint that answers.
    pub async fn status(&self) -> Result<MemberStatus, StoreError> {
        let status: StatusResponse = self.ask(rpc::STATUS, Empty {}).await?;
        let header = status.header.unwrap_or_default();
        let full = status.errors.iter().any(|e| e.contains("NOSPACE"));
        Ok(MemberStatus {
            id: header.member_id,
            cluster: header.cluster_id,
            version: status.version,
            revision: u64::try_from(header.revision).unwrap_or(0),
            leader: Some(status.leader).filter(|id| *id != 0),
            learner: status.learner,
            db_bytes: u64::try_from(status.db_size).unwrap_or(0),
            db_bytes_in_use: u64::try_from(status.db_size_in_use).unwrap_or(0),
            raft_index: status.raft_index,
            raft_applied: status.raft_applied_index,
            errors: status.errors,
            full,
        })
    }

    /// Makes another member the leader. The endpoint must be the leader's.
    pub async fn move_leader(&self, to: u64) -> Result<(), StoreError> {
        self.ask::<_, Empty>(rpc::MOVE_LEADER, MemberRequest { id: to }).await.map(drop)
    }

    /// Gives the room of what was compacted back to the file system and lets a full
    /// database take changes again. The member does not answer meanwhile.
    pub async fn make_room(&self) -> Result<(), StoreError> {
        let patient = EtcdAdmin { limit: DEFRAGMENTS_WITHIN, ..self.clone() };
        patient.ask::<_, Empty>(rpc::DEFRAGMENT, Empty {}).await?;
        let get = AlarmRequest { action: ALARM_GET, ..AlarmRequest::default() };
        let raised: AlarmResponse = self.ask(rpc::ALARM, get).await?;
        for alarm in raised.alarms.iter().filter(|a| a.alarm == ALARM_NOSPACE) {
            let (action, alarm, member) = (ALARM_DEACTIVATE, alarm.alarm, alarm.member);
            let request = AlarmRequest { action, member, alarm };
            self.ask::<_, AlarmResponse>(rpc::ALARM, request).await?;
        }
        Ok(())
    }

    async fn ask<Q, A>(&self, method: Method, request: Q) -> Result<A, StoreError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let ask = |channel| rpc::unary(channel, method, request.clone(), self.limit);
        self.each(Again::IfNotDone, ask).await
    }

    /// The first member that can be connected to, and answers.
    async fn each<T, F>(&self, again: Again, ask: impl Fn(Channel) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut failed = Vec::new();
        for endpoint in &self.endpoints {
            let name = endpoint.uri().to_string();
            let name = name.trim_end_matches('/');
            let channel = match connect(endpoint).await {
                Ok(channel) => channel,
                Err(why) => {
                    failed.push(format!("{name}: {why}"));
                    continue;
                }
            };
            match (ask(channel).await.map_err(|status| failure(&status)), again) {
                (Ok(answer), _) => return Ok(answer),
                (Err(Failure::NotDone(why)), _) | (Err(Failure::Unknown(why)), Again::Always) => {
                    failed.push(format!("{name}: {why}"));
                }
                (Err(other), _) => return Err(plain(other)),
            }
        }
        Err(StoreError::Unavailable(failed.join("; ")))
    }

    pub(crate) async fn first_channel(&self) -> Result<Channel, StoreError> {
        let mut failed = Vec::new();
        for endpoint in &self.endpoints {
            match connect(endpoint).await {
                Ok(channel) => return Ok(channel),
                Err(why) => failed.push(format!("{}: {why}", endpoint.uri())),
            }
        }
        Err(StoreError::Unavailable(failed.join("; ")))
    }
}

impl EtcdStore {
    /// As the quorum knows them now, by the connection in use.
    pub async fn members(&self) -> Result<Vec<Member>, StoreError> {
        let ask = |conn: super::link::Conn, limit| members(conn.channel, limit);
        self.link.repeat(Again::Always, ask).await.map_err(plain)
    }

    /// For the upkeep of all members.
    pub fn admin(&self) -> Result<EtcdAdmin, StoreError> {
        let (urls, tls) = self.given();
        EtcdAdmin::new(&urls, tls.as_ref())
    }

    /// To ask certain members, with this store's certificates.
    pub fn admin_at(&self, urls: &[String]) -> Result<EtcdAdmin, StoreError> {
        EtcdAdmin::new(urls, self.given().1.as_ref())
    }
}

/// etcd 3.4 lists what the member that is asked knows, which may be old; after a read
/// that the quorum confirmed it knows all that was decided before.
async fn members(channel: Channel, limit: Duration) -> Result<Vec<Member>, Status> {
    probe(channel.clone(), limit).await?;
    let request = MemberListRequest { linearizable: true };
    let answer: MembersResponse = rpc::unary(channel, rpc::MEMBER_LIST, request, limit).await?;
    Ok(answer.members.into_iter().map(member).collect())
}

fn says(error: &StoreError, part: &str) -> bool {
    error.to_string().contains(part)
}

async fn connect(endpoint: &Endpoint) -> Result<Channel, String> {
    let connected = tokio::time::timeout(CONNECT_WITHIN, endpoint.connect()).await;
    connected
        .map_err(|_| format!("no connection within {CONNECT_WITHIN:?}"))?
        .map_err(|e| chain(&e))
}

fn member(wire: WireMember) -> Member {
    let WireMember { id, name, peer_urls, client_urls, learner } = wire;
    Member { id, name, peer_urls, client_urls, learner }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_go_to_voters_and_to_the_nearest_first() {
        let member = |name: &str, learner| {
            let client_urls = vec![format!("https://{name}:2379")];
            Member { id: 1, name: name.to_owned(), peer_urls: Vec::new(), client_urls, learner }
        };
        let coming = Member { client_urls: Vec::new(), ..member("d", false) };
        let all = [member("a", false), member("b", true), member("c", false), coming];
        let check = |nearest: &str, expect: &[&str]| {
            assert_eq!(endpoints_of(&all, nearest), expect);
        };
        check("https://c:2379", &["https://c:2379", "https://a:2379"]);
        check("https://b:2379", &["https://a:2379", "https://c:2379"]);
    }
}
