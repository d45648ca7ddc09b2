//! A server's node: puts the parts together, and is what the controller calls.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use basin_model::host::{Condition, HostStatus, TrunkStatus};
use basin_model::keys;
use basin_model::task::Problem;
use basin_model::vlan::Trunk;
use basin_net::Fabric;
use basin_qemu::Engine;
use basin_store::Store;
use basin_store::records::{self, TxnBuilder};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::NodeError;
use crate::blockd::Supervisor;
use crate::config::{BlockdMode, NodeConfig};
use crate::console::{self, Consoles};
use crate::datastores::Datastores;
use crate::disks::Disks;
use crate::host;
use crate::images::{Cache, Images};
use crate::lockfile::{self, StateLock};
use crate::migration::Migrations;
use crate::networks::Networks;
use crate::problem::{node_error, problem};
use crate::usage::Meter;
use crate::vms::agent::{Agent, Found, traces};
use crate::vms::parts::{Note, Parts};
use crate::vms::{Machines, Vms};

const DATASTORES_OPEN_WITHIN: Duration = Duration::from_secs(30);

/// One server's node. Its tasks run until [`LocalNode::shutdown`]; VMs run on after that.
pub struct LocalNode {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) parts: Arc<Parts>,
    pub(crate) datastores: Arc<Datastores>,
    pub(crate) machines: Machines,
    pub(crate) vms: Vms,
    pub(crate) migrations: Migrations,
    pub(crate) consoles: Consoles,
    pub(crate) meter: Meter,
    pub(crate) status: watch::Sender<HostStatus>,
    /// What others find wrong here, by what it is about.
    troubles: watch::Sender<BTreeMap<&'static str, Problem>>,
    blockd: Option<Supervisor>,
    stop: CancellationToken,
    tasks: TaskTracker,
    lock: std::sync::Mutex<Option<StateLock>>,
}

impl LocalNode {
    /// Claims the state directory, takes over what runs here, and begins to make
    /// the server as the store says it should be.
    pub async fn start(
        config: NodeConfig,
        store: Arc<dyn Store>,
        engine: Arc<dyn Engine>,
        fabric: Arc<dyn Fabric>,
    ) -> Result<Arc<LocalNode>, NodeError> {
        prepare_dirs(&config)?;
        let lock = lockfile::claim(&config.state_dir)?;
        let status = host::status(&config).map_err(|e| unusable("read the server's facts", &e))?;
        let rebooted =
            host::rebooted(&config.state_dir).map_err(|e| unusable("read boot-id", &e))?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());

        let (disks, blockd): (Arc<dyn Disks>, _) = match &config.blockd {
            BlockdMode::Given(disks) => (disks.clone(), None),
            BlockdMode::Process(launcher) => {
                let supervisor = Supervisor::start(launcher.clone(), &config, &tasks, &stop).await;
                (Arc::new(supervisor.clone()), Some(supervisor))
            }
        };
        let vms = Vms::default();
        let before = records::get::<HostStatus>(&*store, &keys::host_status(config.host)).await;
        let before = before.map_err(|e| node_error(&e))?.map(|s| s.value.shared_datastores);
        let (host, peers) = (config.host, config.peers.clone());
        let datastores =
            Datastores::new(host, store.clone(), peers.clone(), before.unwrap_or_default());
        let datastores = Arc::new(datastores);
        let (opened, first_open) = oneshot::channel();
        tasks.spawn(datastores.clone().follow(opened, stop.clone()));
        let cache = Cache::new(config.state_dir.join("images-cache"), config.image_cache);
        let images = Arc::new(Images::new(host, store.clone(), datastores.clone(), peers, cache));
        tasks.spawn(images.clone().follow(stop.clone()));
        let (networks, work) =
            Networks::start(store.clone(), fabric.clone(), vms.clone(), config.host, stop.clone());
        tasks.spawn(work);

        let parts = Arc::new(Parts {
            store: store.clone(),
            engine: engine.clone(),
            fabric,
            disks,
            images,
            networks,
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
            starts: Semaphore::new(starts_at_once()),
        });
        let adopted = engine.adopt().await.map_err(|e| node_error(&e))?;
        let notes = parts.notes().map_err(|e| unusable("read what runs here", &e))?;
        let ran: BTreeSet<_> = adopted.iter().map(|a| a.vm).collect();
        take_over_disks(&*parts.disks, &notes, &ran).await;
        let mut traces = traces(&*store, config.host).await.map_err(|e| node_error(&e))?;
        traces.extend(notes.iter().map(|note| note.vm));

        let machines = Machines::default();
        let migrations = Migrations::new(
            config.host,
            parts.clone(),
            machines.clone(),
            vms.clone(),
            stop.clone(),
            tasks.clone(),
        );
        let agent = Agent::new(config.host, parts.clone(), machines.clone(), vms.clone())
            .receiving(migrations.clone());
        let found = Found { adopted, rebooted, traces };
        let (settled, all_settled) = oneshot::channel();
        // Most VMs stand on a datastore, and tasks of an earlier daemon go on as soon
        // as this returns. A file system that hangs must not keep all the rest down.
        if timeout(DATASTORES_OPEN_WITHIN, first_open).await.is_err() {
            tracing::warn!("datastores take long to open; going on without");
        }
        tasks.spawn(agent.run(found, settled, stop.clone()));
        let state_dir = config.state_dir.clone();
        tasks.spawn(async move {
            if all_settled.await.is_ok()
                && let Err(error) = host::note_boot(&state_dir)
            {
                tracing::warn!(%error, "cannot note the server's boot");
            }
        });
        tasks.spawn(console::keep_trimmed(machines.clone(), stop.clone()));

        let node = Arc::new(LocalNode {
            store,
            parts,
            datastores,
            machines,
            vms,
            migrations,
            consoles: Consoles::default(),
            meter: Meter::default(),
            status: watch::channel(status).0,
            troubles: watch::Sender::default(),
            blockd,
            stop,
            tasks,
            lock: std::sync::Mutex::new(Some(lock)),
        });
        // Before anybody asks: what an earlier daemon wrote may be true no longer.
        let mut written = None;
        node.write_status(&mut written).await;
        node.tasks.spawn(node.clone().report(written));
        Ok(node)
    }

    /// Stops the daemon's own tasks. VMs, their disks and networks go on.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.datastores.close_all().await;
        // From here on another daemon may take over.
        drop(self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }

    /// How this server's I/O daemon and those of others know each other.
    pub async fn speak_nbd(&self, fabric: Option<&basin_blockd::control::Fabric>) {
        if let Err(error) = self.parts.disks.fabric(fabric).await {
            tracing::warn!(%error, "disks cannot be moved to and from this server yet");
        }
    }

    /// Shows what somebody else finds wrong here among the server's conditions.
    pub fn watch_trouble(
        self: &Arc<Self>,
        subject: &'static str,
        mut trouble: watch::Receiver<Option<Problem>>,
    ) {
        let node = self.clone();
        self.tasks.spawn(async move {
            loop {
                let now = trouble.borrow_and_update().clone();
                node.troubles.send_modify(|all| match now {
                    Some(problem) => drop(all.insert(subject, problem)),
                    None => drop(all.remove(subject)),
                });
                tokio::select! {
                    () = node.stop.cancelled() => return,
                    changed = trouble.changed() => if changed.is_err() { return },
                }
            }
        });
    }

    /// The host's status with the conditions of this moment.
    fn look(&self) -> HostStatus {
        let about = |subject: &str, problem: Option<Problem>| {
            problem.map(|problem| Condition { subject: subject.to_owned(), problem })
        };
        let (mut conditions, shared_datastores) = self.datastores.report();
        conditions.extend(about("networks", self.parts.networks.problem()));
        let overlay_mtu = self.parts.networks.overlay_mtu();
        let trunks = self.parts.networks.trunks();
        conditions.extend(trunks.iter().filter_map(|t| about("trunk", trunk_trouble(t))));
        conditions.extend(self.blockd.as_ref().and_then(|b| about("blockd", b.problem())));
        let troubles = self.troubles.borrow();
        conditions.extend(troubles.iter().filter_map(|(s, p)| about(s, Some(p.clone()))));
        drop(troubles);
        self.status.send_modify(|status| {
            status.conditions = conditions;
            status.shared_datastores = shared_datastores;
            status.overlay_mtu = overlay_mtu;
            status.trunks = trunks;
        });
        self.status.borrow().clone()
    }

    /// Brings the host's status up to date, and the store's copy of it unless that is
    /// what was `written`. False: it has to be tried again.
    async fn write_status(&self, written: &mut Option<HostStatus>) -> bool {
        let status = self.look();
        if written.as_ref() == Some(&status) {
            return true;
        }
        let key = keys::host_status(status.host);
        match TxnBuilder::new().put(key, &status).commit(&*self.store).await {
            Ok(_) => *written = Some(status),
            Err(error) => {
                tracing::warn!(%error, "cannot write the host's status");
                return false;
            }
        }
        true
    }

    /// Keeps the host's status in the store right when a condition comes or goes.
    async fn report(self: Arc<Self>, mut written: Option<HostStatus>) {
        let mut networks = self.parts.networks.changes();
        let mut datastores = self.datastores.changes();
        let mut troubles = self.troubles.subscribe();
        let mut blockd = self.blockd.as_ref().map(Supervisor::changes);
        loop {
            let done = self.write_status(&mut written).await;
            let again = (!done).then_some(Duration::from_secs(5));
            let blockd = async {
                match &mut blockd {
                    Some(changes) => drop(changes.changed().await),
                    None => std::future::pending().await,
                }
            };
            let timer = async {
                match again {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                Ok(()) = networks.changed() => {}
                Ok(()) = datastores.changed() => {}
                Ok(()) = troubles.changed() => {}
                () = blockd => {}
                () = timer => {}
                else => return,
            }
        }
    }
}

fn trunk_trouble(trunk: &TrunkStatus) -> Option<Problem> {
    let TrunkStatus { trunk: Trunk { interface, .. }, problem: why, .. } = trunk;
    Some(problem(
        "trunk-unusable",
        format!("trunk interface {interface}: {}", why.as_ref()?),
        "name the interface that has the VLANs: basin host set-trunk",
    ))
}

/// Starting more at once than there are CPUs makes each of them slower.
fn starts_at_once() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get()).max(2)
}

/// Disks of machines that run on stay; those of nobody are closed.
async fn take_over_disks(disks: &dyn Disks, notes: &[Note], ran: &BTreeSet<basin_model::VmId>) {
    let mut wanted = BTreeSet::new();
    for note in notes {
        wanted.extend(note.exports.iter().map(|e| e.volume));
        if ran.contains(&note.vm) {
            note.exports.iter().for_each(|export| disks.keep(export));
        }
    }
    // A blockd that is down serves nothing; it is not waited for.
    if !disks.up() {
        return;
    }
    let exports = disks.list().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot ask which disks are served");
        Vec::new()
    });
    for state in exports.into_iter().filter(|s| !wanted.contains(&s.export.volume)) {
        let (volume, generation) = (state.export.volume, state.export.generation);
        if let Err(error) = disks.close(volume, generation).await {
            tracing::warn!(%volume, %error, "cannot close a disk that nobody uses");
        }
    }
}

fn unusable(what: &str, error: &std::io::Error) -> NodeError {
    let advice = "run the daemon as root, and check the state and run directories' file systems";
    NodeError(problem("node-unusable", format!("cannot {what}: {error}"), advice))
}

/// QEMU runs as other users and must pass through to what is theirs.
fn prepare_dirs(config: &NodeConfig) -> Result<(), NodeError> {
    let make = |path: &Path, mode: u32| {
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    let (state, run) = (&config.state_dir, &config.run_dir);
    let dirs = [
        (state.clone(), 0o711),
        (state.join("vms"), 0o711),
        (run.clone(), 0o711),
        (run.join("vms"), 0o711),
        (run.join("blockd"), 0o711),
        (run.join("parts"), 0o700),
    ];
    for (path, mode) in dirs {
        make(&path, mode).map_err(|e| unusable(&format!("prepare {}", path.display()), &e))?;
    }
    Ok(())
}
