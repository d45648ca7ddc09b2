//! The store, and word on the output of each VM that a server has paused or resumed:
//! its status is written right after.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use basin_model::keys::Kind;
use basin_store::{Commit, Entry, LeaseId, Listing, Op, Revision, Store, StoreError, Txn, Watch};

pub struct Told(pub Arc<dyn Store>);

fn tell(op: &Op) {
    let Op::Put { key, value, .. } = op else { return };
    let Some((Kind::VmStatus, vm)) = Kind::parse(key) else { return };
    let text = String::from_utf8_lossy(value);
    let states = [("paused", "\"phase\":{\"state\":\"paused\"}")];
    let states = states.into_iter().chain([("running", "\"phase\":{\"state\":\"running\"}")]);
    for (state, _) in states.filter(|(_, mark)| text.contains(mark)) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        println!("did {state} {vm} {}", now.as_nanos());
    }
}

#[async_trait]
impl Store for Told {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.0.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.then.iter().for_each(tell);
        self.0.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.0.watch(prefix, after).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.grant(ttl).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.renew(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.revoke(lease).await
    }
}
