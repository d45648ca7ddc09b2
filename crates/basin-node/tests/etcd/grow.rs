//! Servers come, burn, come back and go; the steward keeps the votes where they belong.

use std::time::Duration;

use basin_model::HostId;
use basin_node::etcd::plan::{Rules, Step};

use super::cluster::{Cluster, Machine, PATIENT};
use super::world::{pid, pids_of, put, read, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_replaces_what_it_lost_and_shrinks() {
    let (mut cluster, first) = Cluster::begin().await;
    let (second, third) = (cluster.add(), cluster.add());
    cluster.settle(PATIENT, &[first, second, third]).await;
    put(&cluster.store, "a", "1").await;

    // A server burns down; another one takes its vote.
    cluster.machines.get_mut(&second).unwrap().burns();
    let fourth = cluster.add();
    let impatient = Rules { replace_after: Duration::from_secs(10) };
    cluster.settle(impatient, &[first, third, fourth]).await;
    let newest = cluster.world.store(&[&cluster.machines[&fourth].config]);
    assert_eq!(read(&newest, "a").await.as_deref(), Some("1"));

    // It was a power cut after all: it comes back with its old data, and learns that
    // they are of no use.
    let back = Machine::new(cluster.machines[&second].config.clone());
    assert!(back.resident.resume().await.is_some());
    cluster.machines.insert(second, back);
    cluster.settle(PATIENT, &[first, third, fourth]).await;
    assert!(cluster.is_clean(second));

    // The server that leads is to go: it hands over, and the one that came back votes.
    let (leader, rest) = the_leader_goes(&mut cluster).await;
    assert!(cluster.is_clean(leader));
    assert_eq!(read(&cluster.store, "a").await.as_deref(), Some("1"));

    // One server stays.
    let gone: Vec<Machine> =
        rest[1..].iter().map(|h| cluster.machines.remove(h).unwrap()).collect();
    cluster.settle(PATIENT, &rest[..1]).await;
    let members = cluster.store.members().await.unwrap();
    for machine in &gone {
        assert!(machine.resident.tend(&members).await.unwrap().is_none());
        assert!(pids_of(&machine.config).is_empty() && !machine.config.data_dir().exists());
    }
    let last = &cluster.machines[&rest[0]];
    let alone = cluster.world.store(&[&last.config]);
    assert_eq!(read(&alone, "a").await.as_deref(), Some("1"));
    last.resident.clear_all().await.unwrap();
    assert!(cluster.is_clean(rest[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_begins_is_left_in_peace() {
    let (mut cluster, _) = Cluster::begin().await;
    let second = cluster.add();
    let machine = &cluster.machines[&second];
    let admin = cluster.store.admin().unwrap();
    admin.add_learner(&machine.config.peer_url()).await.unwrap();
    let members = cluster.store.members().await.unwrap();
    let mut pids = Vec::new();
    for _ in 0..3 {
        let member = machine.resident.tend(&members).await.unwrap().expect("it is a member");
        pids.push(pid(&member).await);
    }
    assert_eq!(pids, [pids[0]; 3]);
    until("it has come up", async || {
        let members = cluster.store.members().await.ok()?;
        members.iter().any(|m| m.name == machine.config.name).then_some(())
    })
    .await;
    assert_eq!(pids_of(&machine.config).len(), 1);
}

/// With one server more than votes. On a busy machine another member may be elected
/// before the leader is asked to hand over: then the next one goes.
async fn the_leader_goes(cluster: &mut Cluster) -> (HostId, Vec<HostId>) {
    for _ in 0..10 {
        let leader = cluster.leader().await;
        for (host, machine) in &mut cluster.machines {
            machine.willing = *host != leader;
        }
        let rest: Vec<HostId> = cluster.machines.keys().copied().filter(|h| *h != leader).collect();
        let steps = cluster.settle(PATIENT, &rest).await;
        if steps.iter().any(|s| matches!(s, Step::MoveLeader(_))) {
            return (leader, rest);
        }
    }
    panic!("no leader has ever handed over");
}
