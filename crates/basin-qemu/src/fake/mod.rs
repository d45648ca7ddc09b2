//! An engine without machines: for tests at scale and of what no real guest does on cue.
//!
//! [`FakeWorld`] is what a daemon's death leaves standing. Each daemon gets an engine of
//! it; the engine of the next one adopts what the last one launched. The hooks are on
//! the world (launches) and on [`FakeGuest`] (what a guest or its process does).

mod guest;
mod link;
mod machine;
mod migrate;
mod orders;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use basin_model::hardware::{CpuClass, CpuModels, HardwareFacts, MachineVersion};
use basin_model::{Bytes, VmId};

use crate::engine::{Adopted, Engine, EngineError, Machine, MachineSpec, MachineState};
use crate::hardware::{Flash, Hardware};
use crate::migrate::{Incoming, MigrationSupport};

pub use guest::FakeGuest;
pub use link::{FakeLink, Fault, FaultPoint};
use machine::FakeMachine;

const VERSION: MachineVersion = MachineVersion { major: 7, minor: 2 };
const FLASH: Flash = Flash { code: Bytes::kib(3653), vars: Bytes::kib(528) };

/// The machines of a server, and how they behave. Clones are the same world.
#[derive(Clone, Default)]
pub struct FakeWorld(Arc<World>);

#[derive(Default)]
struct World {
    state: Mutex<WorldState>,
    /// Where console logs are written; nowhere without one.
    dir: Option<PathBuf>,
    link: FakeLink,
}

#[derive(Default)]
struct WorldState {
    machines: HashMap<VmId, Arc<FakeMachine>>,
    launches: HashMap<VmId, u64>,
    forgotten: Vec<VmId>,
    fail_next: Option<(u32, String)>,
    fail_vm: HashMap<VmId, String>,
    delay: Duration,
    last_pid: u32,
}

impl FakeWorld {
    pub fn new() -> FakeWorld {
        FakeWorld::default()
    }

    /// A world whose guests' consoles are logged under `dir`.
    pub fn with_dir(dir: PathBuf) -> FakeWorld {
        FakeWorld(Arc::new(World { dir: Some(dir), ..World::default() }))
    }

    /// A world whose guests can go to the other worlds on this link.
    pub fn on_link(link: &FakeLink, dir: Option<PathBuf>) -> FakeWorld {
        FakeWorld(Arc::new(World { dir, link: link.clone(), ..World::default() }))
    }

    fn link(&self) -> FakeLink {
        self.0.link.clone()
    }

    fn machine(&self, vm: VmId) -> Option<Arc<FakeMachine>> {
        self.state().machines.get(&vm).cloned()
    }

    /// An engine for one life of a daemon.
    pub fn engine(&self) -> FakeEngine {
        FakeEngine { world: self.clone() }
    }

    /// The next `times` launches fail.
    pub fn fail_next_launches(&self, times: u32, why: &str) {
        self.state().fail_next = Some((times, why.to_owned()));
    }

    /// Every launch of `vm` fails, until called with `None`.
    pub fn fail_launches_of(&self, vm: VmId, why: Option<&str>) {
        let mut state = self.state();
        match why {
            Some(why) => state.fail_vm.insert(vm, why.to_owned()),
            None => state.fail_vm.remove(&vm),
        };
    }

    /// Every operation takes this long: half of it before its effect, half after, so that
    /// a caller dropped on the way is seen on either side of the effect.
    pub fn set_delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// VMs that have a process.
    pub fn running(&self) -> Vec<VmId> {
        let mut vms: Vec<VmId> = self.state().machines.keys().copied().collect();
        vms.sort();
        vms
    }

    /// How often `vm` was launched.
    pub fn launches(&self, vm: VmId) -> u64 {
        self.state().launches.get(&vm).copied().unwrap_or(0)
    }

    /// VMs that were forgotten, in order.
    pub fn forgotten(&self) -> Vec<VmId> {
        self.state().forgotten.clone()
    }

    /// The guest in `vm`, while it has a process.
    pub fn guest(&self, vm: VmId) -> Option<FakeGuest> {
        let machine = self.state().machines.get(&vm).cloned()?;
        Some(FakeGuest::new(machine))
    }

    /// The server reboots: every process is gone, nobody is told.
    pub fn reboot(&self) {
        let machines: Vec<_> = self.state().machines.drain().collect();
        for (_, machine) in machines {
            machine.exit("the server rebooted");
        }
    }

    fn state(&self) -> MutexGuard<'_, WorldState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn half_delay(&self) {
        let delay = self.state().delay / 2;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    fn remove(&self, vm: VmId) {
        self.state().machines.remove(&vm);
    }
}

/// What fake machines can be: as QEMU 7.2 emulates, as far as Basin asks for it.
pub fn hardware_facts() -> HardwareFacts {
    let models = ["Nehalem-v1", "qemu64-v1"].map(|model| (model.to_owned(), Vec::new()));
    let aliases = ["Nehalem", "qemu64"].map(|name| (name.to_owned(), format!("{name}-v1")));
    HardwareFacts {
        class: CpuClass::Tcg,
        cpus: CpuModels::new(models, aliases.into()),
        q35: vec![MachineVersion::new(7, 2)],
    }
}

/// The engine of one daemon in a [`FakeWorld`].
pub struct FakeEngine {
    world: FakeWorld,
}

impl FakeEngine {
    /// An engine in a world of its own.
    pub fn new() -> FakeEngine {
        FakeWorld::new().engine()
    }

    pub fn world(&self) -> &FakeWorld {
        &self.world
    }

    fn start(
        &self,
        spec: &MachineSpec,
        taps: usize,
        incoming: Option<&Incoming>,
    ) -> Result<Arc<FakeMachine>, EngineError> {
        let hardware = match incoming {
            Some(incoming) => incoming.hardware.clone(),
            None => Hardware::choose(spec, "fake", VERSION, Some(FLASH)),
        };
        hardware.fits(spec).map_err(EngineError::Start)?;
        let mut state = self.world.state();
        if state.machines.contains_key(&spec.vm) {
            return Err(EngineError::Start(format!("VM {} is running already", spec.vm)));
        }
        if taps != spec.nics.len() {
            let nics = spec.nics.len();
            return Err(EngineError::Start(format!("{taps} taps were given for {nics} nics")));
        }
        if let Some(why) = state.fail_vm.get(&spec.vm) {
            return Err(EngineError::Start(why.clone()));
        }
        if let Some((times, why)) = &mut state.fail_next
            && *times > 0
        {
            *times -= 1;
            return Err(EngineError::Start(why.clone()));
        }
        state.last_pid += 1;
        *state.launches.entry(spec.vm).or_default() += 1;
        let pid = state.last_pid;
        let machine = FakeMachine::new(self.world.clone(), spec.clone(), hardware, pid);
        let machine = Arc::new(machine);
        if let Some(incoming) = incoming {
            machine.expect(incoming.key.clone(), incoming.channel);
        }
        state.machines.insert(spec.vm, machine.clone());
        Ok(machine)
    }
}

impl Default for FakeEngine {
    fn default() -> Self {
        FakeEngine::new()
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn launch(
        &self,
        spec: &MachineSpec,
        taps: Vec<OwnedFd>,
    ) -> Result<Arc<dyn Machine>, EngineError> {
        self.world.half_delay().await;
        let machine = self.start(spec, taps.len(), None)?;
        self.world.half_delay().await;
        Ok(machine)
    }

    async fn launch_incoming(
        &self,
        spec: &MachineSpec,
        taps: Vec<OwnedFd>,
        incoming: &Incoming,
    ) -> Result<Arc<dyn Machine>, EngineError> {
        self.world.half_delay().await;
        let machine = self.start(spec, taps.len(), Some(incoming))?;
        self.world.half_delay().await;
        Ok(machine)
    }

    async fn migration_support(&self) -> Result<MigrationSupport, EngineError> {
        self.world.half_delay().await;
        Ok(MigrationSupport {
            version: "fake".to_owned(),
            machines: [format!("pc-q35-{VERSION}"), "microvm".to_owned()].into(),
            capabilities: ["postcopy-ram".to_owned()].into(),
            compression: false,
            no_postcopy: None,
            disks_by_postcopy: false,
            accelerator: "fake".to_owned(),
            flash: Some(FLASH),
        })
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, EngineError> {
        self.world.half_delay().await;
        let machines: Vec<_> = self.world.state().machines.values().cloned().collect();
        Ok(machines
            .into_iter()
            .map(|machine| Adopted {
                vm: machine.spec.vm,
                generation: machine.spec.generation,
                machine,
            })
            .collect())
    }

    async fn uid(&self, _: VmId) -> Result<u32, EngineError> {
        // No process, no user: sockets made for a fake machine stay with root.
        Ok(0)
    }

    async fn forget(&self, vm: VmId) -> Result<(), EngineError> {
        self.world.half_delay().await;
        let mut state = self.world.state();
        if let Some(machine) = state.machines.get(&vm)
            && machine.current() != MachineState::Gone
        {
            return Err(EngineError::Refused { what: "forget", why: format!("VM {vm} runs") });
        }
        state.forgotten.push(vm);
        Ok(())
    }
}
