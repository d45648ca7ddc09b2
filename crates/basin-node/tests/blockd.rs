//! The node and a real blockd: started, adopted, and started again when it dies.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basin_blockd::BlockdConfig;
use basin_blockd::client::Client;
use basin_blockd::control::ExportState;
use basin_model::vm::{Phase, VmStatus};
use basin_node::{BlockdLauncher, BlockdMode, LocalNode, NodeApi, NodeConfig};
use common::{OFF, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the launcher below runs: this very program, as blockd. Run by itself it
/// has nothing to serve, and nothing to say.
#[test]
fn blockd_itself() {
    let Some(run_dir) = std::env::var_os("BASIN_TEST_BLOCKD") else { return };
    basin_blockd::run(BlockdConfig { workers: Some(1), ..BlockdConfig::new(run_dir) }).unwrap();
}

fn launcher() -> BlockdLauncher {
    let this = std::env::current_exe().unwrap();
    let run = "BASIN_TEST_BLOCKD=\"$2\" exec \"$0\" --exact blockd_itself --nocapture";
    let args = ["-c", run, &this.to_string_lossy()];
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    BlockdLauncher { program: PathBuf::from("/bin/sh"), args }
}

fn config(server: &Server) -> NodeConfig {
    NodeConfig { blockd: BlockdMode::Process(launcher()), ..server.config() }
}

async fn start(server: &Server) -> Arc<LocalNode> {
    let (store, engine) = (server.store.clone(), Arc::new(server.world.engine()));
    LocalNode::start(config(server), store, engine, server.fabric.clone()).await.unwrap()
}

async fn exports(dir: &Path) -> Option<(u32, Vec<ExportState>)> {
    let mut client = Client::connect(dir).await.ok()?;
    let hello = client.hello().await.ok()?;
    Some((hello.pid, client.list().await.ok()?))
}

/// Ends whatever blockd of this test is left, also when the test fails.
struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let mark = format!("BASIN_TEST_BLOCKD={}", self.0.display());
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let ours = environ.split(|b| *b == 0).any(|variable| variable == mark.as_bytes());
            if let Some(pid) = entry.file_name().to_string_lossy().parse().ok().filter(|_| ours) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn end(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

fn running(status: &VmStatus) -> bool {
    status.phase == Phase::Running
}

#[tokio::test]
async fn blockd_outlives_the_daemon_and_is_replaced_when_it_dies() {
    let server = Server::new().await;
    let dir = server.dir.path().join("run/blockd");
    let _cleanup = Cleanup(dir.clone());
    let node = start(&server).await;
    let mut vm = server.vm(1);
    vm.spec.disks = vec![server.disk(&node).await, server.disk(&node).await];
    server.run(&mut vm).await;
    server.wait(vm.id, running).await;
    let (first, served) = exports(&dir).await.unwrap();
    assert_eq!(served.len(), 2);
    assert!(served.iter().all(|e| e.export.socket.exists()));
    node.shutdown().await;

    // Adopted, with what it serves.
    let node = start(&server).await;
    assert_eq!(exports(&dir).await.unwrap().0, first);
    // The first reading of the store is done once a change has been seen to.
    vm.run.resets = 1;
    server.write(&vm).await;
    server.wait(vm.id, |s| s.resets_seen == 1).await;
    assert_eq!(exports(&dir).await.unwrap().1.len(), 2);

    // Killed, and back with the same disks.
    end(first);
    let (second, served) =
        server.until(async || exports(&dir).await.filter(|(pid, _)| *pid != first)).await;
    assert_ne!(first, second);
    assert_eq!(served.len(), 2);
    assert_eq!(node.status().await.unwrap().conditions, []);

    // Killed while nobody watches, with a lost note of what it served.
    node.shutdown().await;
    end(second);
    std::fs::remove_dir_all(dir.join("exports")).unwrap();
    let node = start(&server).await;
    let all = async || exports(&dir).await.filter(|(_, served)| served.len() == 2);
    server.until(all).await;

    server.power(&mut vm, OFF).await;
    server.wait(vm.id, |s| s.phase == Phase::Stopped).await;
    assert_eq!(exports(&dir).await.unwrap().1.len(), 0);
    node.shutdown().await;
}

#[tokio::test]
async fn a_blockd_that_cannot_start_is_a_condition_of_the_host() {
    let server = Server::new().await;
    let program = server.dir.path().join("no-such-program");
    let launcher = BlockdLauncher { program: program.clone(), args: vec![] };
    let config = NodeConfig { blockd: BlockdMode::Process(launcher), ..server.config() };
    let (store, engine) = (server.store.clone(), Arc::new(server.world.engine()));
    let node = LocalNode::start(config, store, engine, server.fabric.clone()).await.unwrap();
    let condition =
        server.until(async || node.status().await.unwrap().conditions.into_iter().next()).await;
    assert_eq!(
        (condition.subject.as_str(), condition.problem.code.as_str()),
        ("blockd", "blockd-down")
    );
    assert!(condition.problem.detail.contains(&*program.to_string_lossy()));
    node.shutdown().await;
}
