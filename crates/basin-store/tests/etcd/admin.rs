//! Members: added, promoted, removed; the leader moved; a backup made.

use std::os::unix::fs::PermissionsExt;

use basin_store::StoreError;

use super::server::{Cluster, Etcd};
use super::{commit, put, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_as_a_learner_leads_and_goes() {
    let mut cluster = Cluster::start(1).await;
    commit(&cluster.patient_store(), vec![put("a", "1")]).await.unwrap();
    let admin = cluster.admin();
    let mut second = Etcd::new("second", cluster.dir.path(), Cluster::address(), None);
    let added = admin.add_learner(&second.peer_url).await.unwrap();
    assert!(added.learner && !added.started());
    assert_eq!(admin.add_learner(&second.peer_url).await.unwrap().id, added.id);
    assert!(!admin.promote(added.id).await.unwrap(), "it has not even started");

    let initial = format!("{},{}", cluster.members[0].initial(), second.initial());
    second.argument(format!("--initial-cluster={initial}"));
    second.argument("--initial-cluster-state=existing".to_owned());
    second.start();
    cluster.members.push(second);
    until("the learner catches up", async || admin.promote(added.id).await.unwrap_or(false)).await;
    assert!(admin.promote(added.id).await.unwrap(), "twice is as good as once");
    let members = admin.members().await.unwrap();
    assert_eq!(members.len(), 2);
    assert!(members.iter().all(|m| !m.learner && m.started()), "{members:?}");

    let first = cluster.leader().await;
    let second = 1 - first;
    let to = cluster.admin_of(second).status().await.unwrap();
    cluster.admin_of(first).move_leader(to.id).await.unwrap();
    until("the other one leads", async || cluster.leader().await == second).await;

    let status = cluster.admin_of(0).status().await.unwrap();
    assert!(!status.full && status.db_bytes > 0 && !status.version.is_empty(), "{status:?}");
    // Never the leader: the other one may not know yet that it is alone.
    let (gone, admin) =
        (cluster.admin_of(first).status().await.unwrap().id, cluster.admin_of(second));
    // etcd trusts a member only after some seconds of contact.
    until("the member is let go", async || admin.remove(gone).await.is_ok()).await;
    cluster.members[first].kill();
    admin.remove(gone).await.unwrap();
    assert_eq!(admin.members().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_whole_or_not_there() {
    let cluster = Cluster::start(1).await;
    let ops = (0..100).map(|n| put(format!("b/{n}"), [b'x'; 5000])).collect();
    commit(&cluster.patient_store(), ops).await.unwrap();
    let path = cluster.dir.path().join("backup.db");
    let info = cluster.admin().snapshot(&path).await.unwrap();
    let about = std::fs::metadata(&path).unwrap();
    assert_eq!((about.len(), about.permissions().mode() & 0o777), (info.bytes, 0o600));
    assert!(info.bytes > 500_000);
    let nowhere = cluster.dir.path().join("missing/backup.db");
    let error = cluster.admin().snapshot(&nowhere).await.unwrap_err();
    assert!(error.to_string().contains("missing/backup.db"), "{error}");
}

/// A database at its quota says what to do, and takes changes again after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_says_so_and_can_be_cleared() {
    let cluster = Cluster::start_with(1, &["--quota-backend-bytes=4194304"]).await;
    let store = cluster.patient_store();
    let mut last = None;
    let error = loop {
        match commit(&store, vec![put("big", vec![7; 500_000])]).await {
            Ok(revision) => last = Some(revision),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("quota")), "{error}");
    assert!(cluster.admin().status().await.unwrap().full);
    store.compact(last.unwrap()).await.unwrap();
    until("there is room again", async || {
        cluster.admin().make_room().await.unwrap();
        commit(&store, vec![put("big", "small")]).await.is_ok()
    })
    .await;
    assert!(!cluster.admin().status().await.unwrap().full);
}
