//! Members as Basin keeps them: real etcd with TLS, adopted, killed, replaced, restored.

mod backup;
mod cluster;
mod founding;
mod grow;
mod world;

use std::fs;

use basin_node::etcd::EtcdMember;
use basin_qemu::qemu::cgroup::Cgroups;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use world::{PATIENCE, World, pid, pids_of, put, read, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_outlives_the_daemon_is_adopted_and_started_again() {
    let world = World::new();
    let config = world.first();
    let groups = Cgroups::open(&format!("basin-etcd-{}", std::process::id()));
    let groups = groups.unwrap();
    let stop = CancellationToken::new();
    let member = EtcdMember::start(config.clone(), Some(groups.service("etcd")), &stop).await;
    let store = world.store(&[&config]);
    put(&store, "a", "1").await;
    let first = pid(&member).await;
    assert_eq!(groups.service("etcd").procs().unwrap(), [first]);
    let state = member.state().borrow().clone();
    assert!(!state.adopted && !state.outdated && state.problem.is_none(), "{state:?}");

    // The daemon goes, the member stays, and the next daemon has it.
    stop.cancel();
    drop(member);
    let mut changed = config.clone();
    changed.peer_port += 1;
    let stop = CancellationToken::new();
    let member = EtcdMember::start(changed, Some(groups.service("etcd")), &stop).await;
    assert_eq!(pid(&member).await, first);
    let state = member.state().borrow().clone();
    assert!(state.adopted && state.outdated, "{state:?}");
    stop.cancel();
    let stop = CancellationToken::new();
    let member = EtcdMember::start(config.clone(), Some(groups.service("etcd")), &stop).await;
    assert_eq!(read(&store, "a").await.as_deref(), Some("1"));

    kill(Pid::from_raw(i32::try_from(first).unwrap()), Signal::SIGKILL).unwrap();
    let mut state = member.state();
    let again = timeout(PATIENCE, state.wait_for(|s| s.pid.is_some_and(|pid| pid != first))).await;
    again.expect("it is started again").unwrap();
    assert_eq!(read(&store, "a").await.as_deref(), Some("1"));
    assert_eq!(pids_of(&config).len(), 1);
    let version = until("it answers", async || member.admin().unwrap().status().await.ok()).await;
    assert!(version.version.starts_with("3."), "{version:?}");

    member.remove().await.unwrap();
    assert!(pids_of(&config).is_empty() && !config.dir.join("data").exists());
    assert!(member.state().borrow().pid.is_none());
    groups.remove().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_run_says_why_and_is_tried_again() {
    let world = World::new();
    let mut config = world.first();
    config.program = world.dir.path().join("missing/etcd");
    let member = world.start(config.clone()).await;
    let mut state = member.state();
    let down = timeout(PATIENCE, state.wait_for(|s| s.problem.is_some())).await.unwrap();
    let problem = down.unwrap().problem.clone().unwrap();
    assert!(problem.detail.contains("apt-get install etcd-server"), "{problem:?}");
    member.shut_down().await.unwrap();

    let config = world.first();
    fs::write(&config.tls.as_ref().unwrap().certificate, "not a certificate").unwrap();
    let member = world.start(config.clone()).await;
    let mut state = member.state();
    let down = timeout(PATIENCE, state.wait_for(|s| s.problem.is_some())).await.unwrap();
    let problem = down.unwrap().problem.clone().unwrap();
    assert!(problem.detail.contains("PEM"), "{problem:?}");
    member.shut_down().await.unwrap();
}
