//! The store in etcd: what a cluster uses. Needs etcd 3.4 or newer.
//!
//! - [`EtcdStore`]: the store. [`EtcdAdmin`]: members and their upkeep.
//! - `link`, `keeper`: one connection to a member that has a quorum, kept.
//! - `watching`, `moments`: watches that go on over connections.
//! - `rpc`, `wire`, `errors`: etcd's protocol.

mod admin;
mod errors;
mod keeper;
mod link;
mod moments;
mod options;
mod prefix;
mod rpc;
mod snapshot;
mod watching;
mod wire;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::Rng;
use tokio::sync::watch;
use tonic::Status;

pub use admin::{EtcdAdmin, Member, MemberStatus, endpoints_of};
pub use link::Contact;
pub use options::{EtcdIdentity, EtcdOptions, EtcdTls};
pub use snapshot::SnapshotInfo;

use crate::store::{
    Commit, Compare, Entry, LeaseId, Listing, Op, Revision, Store, StoreError, Txn, Watch,
};
use errors::Failure;
use link::{Again, Link, plain};
use moments::{entry, from_wire, to_wire};
use wire::{
    Against, CREATE, CompactionRequest, DeleteRequest, EQUAL, Empty, GREATER, KeyValue,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseRequest, MOD, PutRequest,
    RangeRequest, RangeResponse, Request, RequestOp, TxnRequest, TxnResponse,
};

/// Reads are answered by the quorum, always. A request that it does not answer in
/// time fails as [`StoreError::Unavailable`]; a commit may then have been made.
///
/// Leases last at least as long as was asked for, often longer: etcd counts whole
/// seconds, raises what is shorter than one and a half elections, and gives every
/// lease its full time anew when its leader changes.
pub struct EtcdStore {
    link: Arc<Link>,
    given: Mutex<Given>,
}

/// Addresses of members, and the certificates for them.
type Given = (Vec<String>, Option<EtcdTls>);

impl EtcdStore {
    /// Begins to connect, and refuses only what can never work
    /// ([`StoreError::Invalid`]): a cluster that does not answer yet may come up
    /// later. Must be called within a Tokio runtime.
    pub fn connect(options: &EtcdOptions) -> Result<Self, StoreError> {
        let endpoints = options::endpoints(&options.endpoints, options.tls.as_ref())?;
        let link = Link::start(endpoints, options.answer_within, options.probe_every);
        let given = Mutex::new((options.endpoints.clone(), options.tls.clone()));
        Ok(Self { link: Arc::new(link), given })
    }

    /// Other members, or other certificates. Takes effect at once: watches move over,
    /// and what has been asked is still answered by the old connection. The same ones
    /// as before: nothing happens.
    pub fn set_endpoints(&self, urls: &[String], tls: Option<&EtcdTls>) -> Result<(), StoreError> {
        let new = (urls.to_vec(), tls.cloned());
        let mut given = link::lock(&self.given);
        if *given != new {
            self.link.replace(options::endpoints(urls, tls)?);
            *given = new;
        }
        Ok(())
    }

    /// Follows the members as they come and go. Asked for now and then; of a cluster
    /// that Basin did not make, only if its members can be reached at the addresses
    /// that they name.
    pub async fn follow_members(&self, nearest: &str) -> Result<Vec<Member>, StoreError> {
        let members = self.members().await?;
        let urls = endpoints_of(&members, nearest);
        // A member that has just begun does not say yet where it serves clients.
        if !urls.is_empty() {
            let tls = self.given().1;
            self.set_endpoints(&urls, tls.as_ref())?;
        }
        Ok(members)
    }

    fn given(&self) -> Given {
        link::lock(&self.given).clone()
    }

    /// Whether the quorum answers. Wakes when that changes, and at the very first answer;
    /// after that `answered` grows silently.
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.link.shared.contact.subscribe()
    }

    /// The member that is in use.
    pub fn endpoint(&self) -> Option<String> {
        let current = self.link.shared.current.borrow();
        current.as_ref().map(|c| c.endpoint.uri().to_string().trim_end_matches('/').to_owned())
    }

    /// Forgets the changes before a revision. Members that Basin runs do so by
    /// themselves.
    pub async fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        let request = CompactionRequest { revision: to_wire(up_to), physical: false };
        match self.link.ask::<_, Empty>(rpc::COMPACT, request, Again::Always).await {
            Ok(_) | Err(Failure::Compacted) => Ok(()),
            Err(failure) => Err(plain(failure)),
        }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        self.link.ask(rpc::RANGE, request, Again::Always).await
    }

    /// All at one revision. Fails with [`Failure::Compacted`] when that revision's
    /// history went while the pages were read.
    async fn pages(&self, prefix: &str) -> Result<(Vec<KeyValue>, Revision), Failure> {
        let range_end = Bytes::from(prefix::range_end(prefix));
        let (mut key, mut limit, mut revision) = (prefix::start(prefix), prefix::FIRST_PAGE, 0);
        let mut all = Vec::new();
        loop {
            let range_end = range_end.clone();
            let request = RangeRequest { key, range_end, limit, revision, count_only: false };
            let page = self.range(request).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |h| h.revision);
            }
            limit = prefix::next_page(&page.kvs);
            let more = page.more;
            all.extend(page.kvs);
            match all.last() {
                Some(last) if more => key = prefix::next_key(&last.key),
                _ => return Ok((all, from_wire(revision))),
            }
        }
    }
}

/// How often a list begins anew when the history goes under it.
const LIST_ATTEMPTS: usize = 5;

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if key.is_empty() {
            return Ok(None);
        }
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request = RangeRequest { key, ..RangeRequest::default() };
        let answer = self.range(request).await.map_err(plain)?;
        answer.kvs.into_iter().next().map(entry).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        for _ in 0..LIST_ATTEMPTS {
            let (kvs, revision) = match self.pages(prefix).await {
                Err(Failure::Compacted) => continue,
                other => other.map_err(plain)?,
            };
            let entries = kvs.into_iter().map(entry).collect::<Result<_, _>>()?;
            return Ok(Listing { entries, revision });
        }
        let why = "its history is compacted faster than a list can be read".to_owned();
        Err(StoreError::Unavailable(why))
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        let lease = txn.then.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        let request = TxnRequest {
            compare: txn.when.into_iter().map(compare).collect(),
            success: txn.then.into_iter().map(op).collect(),
        };
        let answer: Result<TxnResponse, _> =
            self.link.ask(rpc::TXN, request, Again::IfNotDone).await;
        match (answer, lease) {
            (Ok(answer), _) if answer.succeeded => {
                Ok(Commit::Done(from_wire(answer.header.map_or(0, |h| h.revision))))
            }
            (Ok(_), _) => Ok(Commit::Refused),
            // etcd does not say which one.
            (Err(Failure::LeaseGone), Some(lease)) => Err(StoreError::LeaseGone(lease)),
            (Err(failure), _) => Err(plain(failure)),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        watching::watch(Arc::clone(&self.link), prefix, after).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let ttl = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        // Chosen here, so that asking twice makes one lease.
        let id = rand::rng().random_range(1..i64::MAX);
        let request = LeaseGrantRequest { ttl, id };
        match self.link.ask::<_, LeaseGrantResponse>(rpc::GRANT, request, Again::Always).await {
            Ok(_) | Err(Failure::LeaseExists) => Ok(LeaseId(id)),
            Err(failure) => Err(plain(failure)),
        }
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        let renewed = self.link.repeat(Again::Always, |conn, limit| async move {
            let request = LeaseRequest { id: lease.0 };
            let ask = async {
                let answers = rpc::server_streaming::<_, LeaseKeepAliveResponse>(
                    conn.channel,
                    rpc::KEEP_ALIVE,
                    request,
                    limit,
                );
                answers.await?.message().await
            };
            let answer = tokio::time::timeout(limit, ask).await;
            let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))??;
            answer.ok_or_else(|| Status::unavailable("the stream ended without an answer"))
        });
        match renewed.await {
            Ok(answer) if answer.ttl > 0 => Ok(()),
            Ok(_) | Err(Failure::LeaseGone) => Err(StoreError::LeaseGone(lease)),
            Err(failure) => Err(plain(failure)),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRequest { id: lease.0 };
        match self.link.ask::<_, Empty>(rpc::REVOKE, request, Again::IfNotDone).await {
            Ok(_) => Ok(()),
            Err(Failure::LeaseGone) => Err(StoreError::LeaseGone(lease)),
            Err(failure) => Err(plain(failure)),
        }
    }
}

fn compare(condition: Compare) -> wire::Compare {
    let (key, result, target, against) = match condition {
        Compare::Absent(key) => (key, EQUAL, CREATE, Against::CreateRevision(0)),
        Compare::Present(key) => (key, GREATER, CREATE, Against::CreateRevision(0)),
        // A key that is not there has revision 0 in etcd; none that is there has.
        Compare::Unchanged(key, Revision(0)) => (key, EQUAL, MOD, Against::ModRevision(-1)),
        Compare::Unchanged(key, at) => (key, EQUAL, MOD, Against::ModRevision(to_wire(at))),
    };
    wire::Compare { result, target, key: key.into(), against: Some(against) }
}

fn op(op: Op) -> RequestOp {
    let request = match op {
        Op::Put { key, value, lease } => {
            Request::Put(PutRequest { key: key.into(), value, lease: lease.map_or(0, |l| l.0) })
        }
        Op::Delete { key } => Request::Delete(DeleteRequest { key: key.into() }),
    };
    RequestOp { request: Some(request) }
}
