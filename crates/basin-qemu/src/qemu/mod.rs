//! The real engine: one QEMU process a machine.
//!
//! A machine is in its cgroup before it is QEMU, and `machine.json` is written before
//! that: whenever the daemon dies, [`Engine::adopt`] of the next one finds what there is.

mod adopt;
mod agent;
mod binary;
pub mod cgroup;
mod cmdline;
mod events;
mod facts;
mod files;
mod firmware;
mod images;
mod launch;
mod machine;
mod migrate;
mod paths;
mod process;
mod qmp;
mod record;
mod tsc;
mod uids;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use basin_model::VmId;
use basin_model::hardware::HardwareFacts;
use basin_model::hardware::MachineVersion;
use basin_model::host::{KvmVerdict, QemuInfo};

use crate::engine::{Adopted, BootSpec, Engine, EngineError, Machine, MachineSpec};
use crate::migrate::{Incoming, MigrationSupport};
use crate::probe;
pub use binary::inspect;
use cgroup::Cgroups;
pub use cmdline::{Accelerator, MAX_DISKS, MAX_NICS};
pub use files::trim;
use images::Images;
use machine::Shared;
use paths::Paths;
use record::Record;
use uids::Uids;

/// Which accelerator machines get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where the probe finds it usable, else emulation.
    #[default]
    Auto,
    Kvm,
    Tcg,
}

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// The daemon's cgroup; no two daemons of a host share it.
    pub cgroup_name: String,
    pub accelerator: AcceleratorChoice,
    /// Instead of `qemu-system-x86_64` from the `PATH`.
    pub binary: Option<PathBuf>,
    /// The first of the user ids for machines.
    pub uid_base: u32,
    /// How long QEMU may take to answer a request.
    pub request_limit: Duration,
    /// How long QEMU may take from its start to its first answer.
    pub start_limit: Duration,
}

impl QemuConfig {
    pub fn new(state_dir: PathBuf, run_dir: PathBuf, cgroup_name: &str) -> QemuConfig {
        QemuConfig {
            state_dir,
            run_dir,
            cgroup_name: cgroup_name.to_owned(),
            accelerator: AcceleratorChoice::Auto,
            binary: None,
            uid_base: uids::base_of(cgroup_name),
            request_limit: Duration::from_secs(10),
            start_limit: Duration::from_secs(60),
        }
    }
}

/// The engine of one daemon.
pub struct QemuEngine {
    inner: Arc<Inner>,
}

struct Inner {
    config: QemuConfig,
    info: QemuInfo,
    kvm: KvmVerdict,
    accelerator: Accelerator,
    facts: Option<HardwareFacts>,
    kvm_group: Option<u32>,
    tsc_khz: Option<u32>,
    cgroups: Cgroups,
    uids: Uids,
    images: Images,
    machines: Mutex<Machines>,
    support: tokio::sync::OnceCell<MigrationSupport>,
}

#[derive(Default)]
struct Machines {
    known: HashMap<VmId, Weak<Shared>>,
    starting: HashSet<VmId>,
}

impl QemuEngine {
    /// Looks at the host: QEMU, KVM, cgroups. A missing QEMU is no error here; it is in
    /// [`QemuEngine::info`], and launches are refused.
    pub async fn new(config: QemuConfig) -> Result<QemuEngine, EngineError> {
        let inner = tokio::task::spawn_blocking(move || Inner::open(config)).await;
        let inner = inner.map_err(|error| EngineError::Unusable(error.to_string()))??;
        Ok(QemuEngine { inner: Arc::new(inner) })
    }

    /// The QEMU that is used, or why none is.
    pub fn info(&self) -> &QemuInfo {
        &self.inner.info
    }

    /// Whether KVM is usable here, and why.
    pub fn kvm(&self) -> &KvmVerdict {
        &self.inner.kvm
    }

    /// What machines are run by.
    pub fn accelerator(&self) -> Accelerator {
        self.inner.accelerator
    }

    /// What QEMU can give a guest here; none where it could not be asked.
    pub fn hardware_facts(&self) -> Option<&HardwareFacts> {
        self.inner.facts.as_ref()
    }

    /// The cgroups of this daemon's machines.
    pub fn cgroups(&self) -> &Cgroups {
        &self.inner.cgroups
    }
}

impl Inner {
    fn open(config: QemuConfig) -> Result<Inner, EngineError> {
        let info = binary::inspect(config.binary.as_deref());
        let kvm = match config.accelerator {
            AcceleratorChoice::Tcg => KvmVerdict {
                usable: false,
                reason: "not tried: emulation was chosen in the configuration".to_owned(),
            },
            _ => probe::kvm(),
        };
        let accelerator = match config.accelerator {
            AcceleratorChoice::Kvm => Accelerator::Kvm,
            AcceleratorChoice::Auto if kvm.usable => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        };
        let kvm_group = probe::kvm_group();
        let facts = match &info {
            QemuInfo::Usable { path, .. } => {
                let ask = facts::Ask {
                    program: Path::new(path),
                    accelerator,
                    kvm_group,
                    limit: config.start_limit,
                };
                facts::of_qemu(&ask, &config.state_dir.join("qemu-facts.json"))
                    .inspect_err(|why| tracing::warn!("QEMU does not say what it can do: {why}"))
                    .ok()
            }
            QemuInfo::Unusable { .. } => None,
        };
        let cgroups =
            files::doing(Cgroups::open(&config.cgroup_name), || "set up cgroups".to_owned())?;
        let vms = config.state_dir.join("vms");
        let uids = files::doing(Uids::open(vms, config.uid_base), || {
            "read the machines' user ids".to_owned()
        })?;
        Ok(Inner {
            info,
            kvm,
            accelerator,
            facts,
            kvm_group,
            tsc_khz: tsc::frequency_khz(),
            cgroups,
            uids,
            images: Images::default(),
            machines: Mutex::default(),
            support: tokio::sync::OnceCell::new(),
            config,
        })
    }

    fn paths(&self, vm: VmId) -> Paths {
        Paths::new(&self.config.state_dir, &self.config.run_dir, vm)
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn program(&self) -> Result<&Path, EngineError> {
        match &self.info {
            QemuInfo::Usable { path, .. } => Ok(Path::new(path)),
            QemuInfo::Unusable { reason } => Err(EngineError::Unusable(reason.clone())),
        }
    }

    /// The newest machine that the QEMU here has.
    fn machine_version(&self) -> Result<MachineVersion, EngineError> {
        self.version()?.parse().map_err(|e| EngineError::Unusable(format!("{e}")))
    }

    fn version(&self) -> Result<&str, EngineError> {
        match &self.info {
            QemuInfo::Usable { version, .. } => Ok(version),
            QemuInfo::Unusable { reason } => Err(EngineError::Unusable(reason.clone())),
        }
    }

    fn forget(&self, vm: VmId) -> Result<(), EngineError> {
        let what = || format!("remove what VM {vm} left");
        let cgroup = self.cgroups.machine(vm);
        if !files::doing(cgroup.procs(), what)?.is_empty() {
            return Err(EngineError::Refused { what: "be forgotten", why: "it runs".to_owned() });
        }
        let paths = self.paths(vm);
        let mut leftovers =
            vec![paths.nvram(), paths.console_log(), paths.qemu_log(), paths.record()];
        if let Ok(Record { spec: MachineSpec { boot: BootSpec::Uefi { vars }, .. }, .. }) =
            Record::read(&paths.record())
        {
            leftovers.insert(0, vars);
        }
        machine::remove_remains(&paths, &cgroup);
        // The record goes after the variables it names, the uid last of all.
        for file in leftovers {
            files::doing(files::remove(&file), what)?;
        }
        files::doing(self.uids.forget(vm), what)?;
        // Stays while somebody else's file is in it.
        let _ = std::fs::remove_dir(&paths.state);
        Ok(())
    }
}

#[async_trait]
impl Engine for QemuEngine {
    async fn launch(
        &self,
        spec: &MachineSpec,
        taps: Vec<OwnedFd>,
    ) -> Result<Arc<dyn Machine>, EngineError> {
        launch::launch(self.inner.clone(), spec.clone(), taps, None).await
    }

    async fn launch_incoming(
        &self,
        spec: &MachineSpec,
        taps: Vec<OwnedFd>,
        incoming: &Incoming,
    ) -> Result<Arc<dyn Machine>, EngineError> {
        let reasons = self.migration_support().await?.refuse(&incoming.hardware);
        if !reasons.is_empty() {
            return Err(EngineError::Start(reasons.join("; ")));
        }
        if incoming.channel.postcopy {
            migrate::permit_postcopy()?;
        }
        launch::launch(self.inner.clone(), spec.clone(), taps, Some(incoming.clone())).await
    }

    async fn migration_support(&self) -> Result<MigrationSupport, EngineError> {
        let asking = self.inner.support.get_or_try_init(|| migrate::support(&self.inner));
        asking.await.cloned()
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, EngineError> {
        adopt::adopt(&self.inner).await
    }

    async fn uid(&self, vm: VmId) -> Result<u32, EngineError> {
        files::doing(self.inner.uids.get(vm), || format!("find a user id for VM {vm}"))
    }

    async fn forget(&self, vm: VmId) -> Result<(), EngineError> {
        let inner = self.inner.clone();
        let forgetting = tokio::task::spawn_blocking(move || inner.forget(vm)).await;
        forgetting.unwrap_or_else(|error| {
            Err(EngineError::Refused { what: "be forgotten", why: error.to_string() })
        })
    }
}
