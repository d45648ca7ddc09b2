//! Disks that move between two servers, whose daemons and blockds come and go.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use basin_blockd::BlockdConfig;
use basin_blockd::control::{ErrorCode, Grant, Held, Layer, Mirror, MirrorPhase, MirrorState};
use basin_model::volume::VolumeFormat;
use basin_model::{Generation, HostId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

use super::*;
use crate::disks::Disks;

const SIZE: u64 = 4 << 20;

/// What the launcher below runs: this very program, as blockd.
#[test]
fn blockd_itself() {
    let Some(run_dir) = std::env::var_os("BASIN_TEST_BLOCKD") else { return };
    basin_blockd::run(BlockdConfig { workers: Some(1), ..BlockdConfig::new(run_dir) }).unwrap();
}

fn launcher() -> BlockdLauncher {
    let this = std::env::current_exe().unwrap();
    let run = "BASIN_TEST_BLOCKD=\"$2\" exec \"$0\" --exact blockd::tests::blockd_itself";
    let args = ["-c", run, &this.to_string_lossy()];
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    BlockdLauncher { program: PathBuf::from("/bin/sh"), args }
}

fn host(n: u8) -> HostId {
    format!("000000000000000000000000000000{n:02x}").parse().unwrap()
}

fn volume() -> VolumeId {
    "00000000000000000000000000000009".parse().unwrap()
}

/// A server without VMs; its blockd goes with it.
struct Server {
    dir: TempDir,
    supervisor: Supervisor,
    stop: CancellationToken,
}

impl Server {
    async fn start() -> Server {
        // Short, because a socket's path is.
        let dir = tempfile::Builder::new().prefix("nb").tempdir_in("/tmp").unwrap();
        let (supervisor, stop) = supervise(dir.path()).await;
        Server { dir, supervisor, stop }
    }

    /// As when the daemon is updated.
    async fn restart_daemon(&mut self) {
        self.stop.cancel();
        (self.supervisor, self.stop) = supervise(self.dir.path()).await;
    }

    /// Returns when another one answers.
    async fn kill_blockd(&self) {
        let before = self.supervisor.pid().unwrap();
        kill(Pid::from_raw(i32::try_from(before).unwrap()), Signal::SIGKILL).unwrap();
        until(async || self.supervisor.pid().filter(|now| *now != before)).await;
    }

    fn export(&self, generation: u64, held: Held) -> Export {
        let path = self.dir.path().join("disk.raw");
        if !path.exists() {
            std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        }
        Export {
            volume: volume(),
            generation: Generation(generation),
            socket: self.dir.path().join("disk.s"),
            uid: 0,
            layers: vec![Layer { path, format: VolumeFormat::Raw }],
            read_only: false,
            serial: "disk".into(),
            queues: 1,
            held,
        }
    }

    async fn mirror(&self) -> Option<MirrorState> {
        self.supervisor.list().await.unwrap().into_iter().find_map(|state| state.mirror)
    }

    async fn in_sync(&self) {
        let in_sync = async || {
            let state = self.mirror().await?;
            assert!(!state.phase.has_ended(), "{state:?}");
            (state.phase == MirrorPhase::InSync).then_some(())
        };
        until(in_sync).await;
    }

    async fn failure(&self) -> String {
        let failed = async || match self.mirror().await?.phase {
            MirrorPhase::Failed { reason, .. } => Some(reason),
            _ => None,
        };
        until(failed).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(pid) = self.supervisor.pid().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn supervise(dir: &Path) -> (Supervisor, CancellationToken) {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (run, log) = (dir.join("run"), dir.join("blockd.log"));
    (Supervisor::start_in(launcher(), run, log, &tasks, &stop).await, stop)
}

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), looking).await.expect("waited in vain")
}

/// Certificates for the servers 1 and 2.
fn certificates(dir: &Path) -> [Fabric; 2] {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.as_ref().pem()).unwrap();
    [1, 2].map(|n| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = format!("basin:host:{}", host(n)).try_into().unwrap();
        params.subject_alt_names =
            vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), SanType::URI(uri)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (cert, file) = (dir.join(format!("{n}.pem")), dir.join(format!("{n}.key")));
        std::fs::write(&cert, params.signed_by(&key, &ca).unwrap().pem()).unwrap();
        std::fs::write(&file, key.serialize_pem()).unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Fabric { listen, ca: dir.join("ca.pem"), cert, key: file }
    })
}

#[tokio::test]
async fn a_move_outlives_a_daemon_and_fails_with_a_blockd() {
    let pki = tempfile::tempdir().unwrap();
    let [one, two] = certificates(pki.path());
    let (mut source, target) = (Server::start().await, Server::start().await);
    source.supervisor.fabric(Some(&one)).await.unwrap();
    target.supervisor.fabric(Some(&two)).await.unwrap();
    let export = source.export(1, Held::Always);
    source.supervisor.open(&export).await.unwrap();
    let to = target.export(2, Held::WhileRunning);
    let grant = Grant {
        volume: to.volume,
        generation: to.generation,
        layers: to.layers.clone(),
        read_only: false,
        host: host(1),
    };
    let begin = async |source: &Server| {
        target.supervisor.grant(&grant).await.unwrap();
        let address = target.supervisor.grants().await.unwrap()[0].address.unwrap();
        let mirror = Mirror {
            volume: volume(),
            generation: Generation(1),
            address,
            export: volume(),
            host: host(2),
            limit: None,
        };
        source.supervisor.mirror(&mirror).await.unwrap();
        source.in_sync().await;
    };
    begin(&source).await;

    // The daemon goes, the mirror goes on.
    let before = source.supervisor.pid();
    source.restart_daemon().await;
    assert_eq!(source.supervisor.pid(), before);
    source.supervisor.keep(&export);
    source.supervisor.fabric(Some(&one)).await.unwrap();
    source.in_sync().await;

    // The source's blockd goes, and the mirror with it. The next one speaks to others.
    source.kill_blockd().await;
    assert!(source.failure().await.contains("started again"));
    let limit = Duration::from_secs(30);
    let hold = async |held| source.supervisor.hold(volume(), Generation(1), held).await.unwrap();
    let release =
        async || source.supervisor.await_release(volume(), Generation(1), true, limit).await;
    hold(Held::WhileRunning).await;
    assert_eq!(release().await.unwrap_err().code, Some(ErrorCode::MirrorFailed));
    hold(Held::Always).await;
    begin(&source).await;

    // The target's goes, and its grant with it.
    target.kill_blockd().await;
    source.failure().await;
    assert!(target.supervisor.grants().await.unwrap().is_empty());
    begin(&source).await;

    // All's well.
    target.supervisor.open(&to).await.unwrap();
    hold(Held::WhileRunning).await;
    release().await.unwrap();
    assert_eq!(source.mirror().await.unwrap().phase, MirrorPhase::Finished);
    target.supervisor.hold(volume(), Generation(2), Held::Always).await.unwrap();
    assert!(target.supervisor.list().await.unwrap()[0].holds);
    let late = source.supervisor.open(&export).await.unwrap_err();
    assert_eq!(late.code, Some(ErrorCode::Fenced), "{late}");
}
