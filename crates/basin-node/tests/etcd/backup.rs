//! A backup begins a cluster of one, whatever is left of the old one.

use std::fs;

use basin_node::etcd::{Beginning, restore};
use basin_store::{Revision, Store, StoreError};
use futures::StreamExt;
use tokio::time::timeout;
use uuid::Uuid;

use super::cluster::{Cluster, Machine, PATIENT};
use super::world::{PATIENCE, World, put, read, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_begins_a_new_cluster() {
    let world = World::new();
    let config = world.first();
    let member = world.start(config.clone()).await;
    let store = world.store(&[&config]);
    put(&store, "a", "in the backup").await;
    let backup = world.dir.path().join("backup.db");
    let admin = member.admin().unwrap();
    admin.snapshot(&backup).await.unwrap();
    let before = admin.status().await.unwrap();
    put(&store, "b", "after it").await;
    let last = store.list("").await.unwrap().revision;
    let mut watch = store.watch("", last).await.unwrap();

    let mut new = config.clone();
    new.beginning = Beginning::New { token: Uuid::new_v4().to_string() };
    let refused = restore(&new, &backup).await.unwrap_err();
    assert!(refused.detail.contains("etcd runs here"), "{refused:?}");
    member.shut_down().await.unwrap();
    let damaged = world.dir.path().join("damaged.db");
    let mut bytes = fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let refused = restore(&new, &damaged).await.unwrap_err();
    assert!(refused.detail.contains("damaged.db"), "{refused:?}");
    assert!(config.data_dir().exists(), "a bad backup costs nothing");

    restore(&new, &backup).await.unwrap();
    let member = world.start(new).await;
    assert_eq!(read(&store, "a").await.as_deref(), Some("in the backup"));
    assert_eq!(read(&store, "b").await, None);
    let after = member.admin().unwrap().status().await.unwrap();
    assert_ne!(before.cluster, after.cluster);
    assert_eq!(member.admin().unwrap().members().await.unwrap().len(), 1);
    // The history that was watched is not this one.
    let told = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(told, Err(StoreError::Compacted(at)) if at == last), "{told:?}");
    assert!(store.watch("", Revision(1)).await.is_ok());
    member.shut_down().await.unwrap();
}

/// All servers are lost but one, which restores; the others come back later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_three_begins_a_cluster_of_one_that_grows_again() {
    let (mut cluster, first) = Cluster::begin().await;
    let all = [first, cluster.add(), cluster.add()];
    cluster.settle(PATIENT, &all).await;
    put(&cluster.store, "a", "in the backup").await;
    let backup = cluster.world.dir.path().join("backup.db");
    let admin = cluster.store.admin().unwrap();
    until("a backup is made", async || admin.snapshot(&backup).await.ok()).await;
    for host in all {
        cluster.machines.get_mut(&host).unwrap().burns();
    }

    let mut config = cluster.machines[&first].config.clone();
    config.beginning = Beginning::New { token: Uuid::new_v4().to_string() };
    until("etcd is gone", async || restore(&config, &backup).await.ok()).await;
    let others = all[1..].iter().map(|host| cluster.machines.remove(host).unwrap());
    let others: Vec<Machine> = others.map(|machine| Machine::new(machine.config.clone())).collect();
    let machine = Machine::new(config);
    machine.resident.resume().await.unwrap();
    cluster.store = cluster.world.store(&[&machine.config]);
    cluster.machines.insert(first, machine);
    cluster.settle(PATIENT, &[first]).await;
    assert_eq!(read(&cluster.store, "a").await.as_deref(), Some("in the backup"));

    // Their old data count for nothing here: they begin anew.
    for back in others {
        assert!(back.resident.resume().await.is_some());
        cluster.machines.insert(back.host(), back);
    }
    cluster.settle(PATIENT, &all).await;
    let newest = cluster.world.store(&[&cluster.machines[&all[2]].config]);
    assert_eq!(read(&newest, "a").await.as_deref(), Some("in the backup"));
    for machine in cluster.machines.values() {
        machine.resident.clear_all().await.unwrap();
    }
}
