//! The suite, run for what this crate has.

use std::sync::Arc;

use futures::FutureExt;

use crate::conformance::Subject;
use crate::{Fanout, MemStore, SqliteStore};

mod mem {
    use super::*;

    pub async fn fresh() -> Subject {
        let store = Arc::new(MemStore::new());
        let compacted = Arc::clone(&store);
        Subject {
            store,
            prefix: "/test/".to_owned(),
            compact: Box::new(move |revision| {
                compacted.compact(revision);
                async {}.boxed()
            }),
            keep: Box::new(()),
        }
    }

    crate::conformance!(fresh);
}

mod shared_watch {
    use super::*;

    async fn fresh() -> Subject {
        let mut subject = super::mem::fresh().await;
        subject.store = Arc::new(Fanout::new(subject.store, &subject.prefix));
        subject
    }

    crate::conformance!(fresh);
}

mod sqlite {
    use super::*;

    async fn fresh() -> Subject {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("store.sqlite")).unwrap());
        let compacted = Arc::clone(&store);
        Subject {
            store,
            prefix: "/test/".to_owned(),
            compact: Box::new(move |revision| {
                compacted.compact(revision);
                async {}.boxed()
            }),
            keep: Box::new(dir),
        }
    }

    crate::conformance!(fresh);
}

mod etcd {
    use super::*;
    use crate::etcd_server::Cluster;

    /// Each case has an etcd of its own: they compact.
    async fn fresh() -> Subject {
        let cluster = Cluster::start(1).await;
        let store = Arc::new(cluster.patient_store());
        let compacted = Arc::clone(&store);
        Subject {
            store,
            prefix: "/test/".to_owned(),
            compact: Box::new(move |revision| {
                let store = Arc::clone(&compacted);
                async move { store.compact(revision).await.expect("etcd compacts") }.boxed()
            }),
            keep: Box::new(cluster),
        }
    }

    crate::conformance!(fresh);
}
