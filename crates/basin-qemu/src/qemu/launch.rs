//! From a specification to a running machine, or to nothing.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Weak};

use basin_model::VmId;
use basin_model::vm::QemuProcess;
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::Inner;
use super::cgroup::MachineCgroup;
use super::cmdline::{self, Accelerator, Fds, Inputs, TapFds};
use super::files::{self, doing};
use super::firmware;
use super::machine::{self, Hub, QemuMachine, Shared};
use super::migrate;
use super::paths::Paths;
use super::process::{self, Launch};
use super::qmp::Qmp;
use super::record::Record;
use crate::engine::{BootSpec, EngineError, Machine, MachineSpec};
use crate::hardware::Hardware;
use crate::migrate::Incoming;

/// Launches in a task of its own: a caller that goes away gets its machine ended, not
/// half started.
pub(super) async fn launch(
    inner: Arc<Inner>,
    spec: MachineSpec,
    taps: Vec<OwnedFd>,
    incoming: Option<Incoming>,
) -> Result<Arc<dyn Machine>, EngineError> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let result =
            run(&inner, spec, taps, incoming).await.map(|machine| Unclaimed(Some(machine)));
        // Not taken: dropped, which ends the machine.
        let _ = sender.send(result);
    });
    match receiver.await {
        Ok(Ok(mut unclaimed)) => match unclaimed.0.take() {
            Some(machine) => Ok(Arc::new(machine)),
            None => Err(EngineError::Gone),
        },
        Ok(Err(error)) => Err(error),
        Err(_) => Err(EngineError::Start("its launch was cut short".to_owned())),
    }
}

/// A machine nobody has yet.
struct Unclaimed(Option<QemuMachine>);

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(machine) = self.0.take() {
            machine.kill_now();
            // Lives on until its process is buried and its remains are removed.
            tokio::spawn(async move { machine.kill().await });
        }
    }
}

/// Holds the right to start a VM.
struct Starting<'a> {
    inner: &'a Inner,
    vm: VmId,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.inner.machines().starting.remove(&self.vm);
    }
}

async fn run(
    inner: &Arc<Inner>,
    spec: MachineSpec,
    taps: Vec<OwnedFd>,
    incoming: Option<Incoming>,
) -> Result<QemuMachine, EngineError> {
    let vm = spec.vm;
    let earlier = {
        let mut machines = inner.machines();
        if !machines.starting.insert(vm) {
            return Err(running_already(vm));
        }
        machines.known.get(&vm).and_then(Weak::upgrade)
    };
    let _starting = Starting { inner, vm };
    if let Some(earlier) = earlier {
        // Its process may have ended this moment; its remains go before the next begins.
        if process::is_alive(earlier.process.pid) && earlier.gone.borrow().is_none() {
            return Err(running_already(vm));
        }
        let mut gone = earlier.gone.subscribe();
        let _ =
            tokio::time::timeout(inner.config.request_limit, gone.wait_for(Option::is_some)).await;
    }
    let blocking = inner.clone();
    let target = incoming.clone();
    let starting = move || Started::begin(&blocking, spec, taps, target.as_ref());
    let started = tokio::task::spawn_blocking(starting).await;
    let started = started.map_err(|error| EngineError::Start(error.to_string()))??;
    let machine = started.connect(inner).await?;
    if let Some(incoming) = incoming
        && let Err(error) = migrate::expect_guest(&machine, &incoming).await
    {
        machine.kill().await?;
        return Err(error);
    }
    Ok(machine)
}

fn running_already(vm: VmId) -> EngineError {
    EngineError::Start(format!("VM {vm} is running already"))
}

/// A process that has begun.
struct Started {
    spec: MachineSpec,
    paths: Paths,
    cgroup: MachineCgroup,
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    log_start: u64,
    images: Vec<Arc<OwnedFd>>,
    hardware: Hardware,
    uid: u32,
    accelerator: Accelerator,
    started_at: Timestamp,
}

/// What the process inherits; open until it has begun.
struct Inherited {
    fds: Fds,
    listeners: [UnixListener; 3],
    files: Vec<OwnedFd>,
    images: Vec<Arc<OwnedFd>>,
    taps: Vec<OwnedFd>,
}

impl Inherited {
    fn numbers(&self) -> Vec<RawFd> {
        let owned = self.files.iter().chain(&self.taps).map(AsRawFd::as_raw_fd);
        let shared = self.images.iter().map(|image| image.as_raw_fd());
        owned.chain(shared).chain(self.listeners.iter().map(AsRawFd::as_raw_fd)).collect()
    }
}

impl Started {
    fn begin(
        inner: &Inner,
        spec: MachineSpec,
        taps: Vec<OwnedFd>,
        incoming: Option<&Incoming>,
    ) -> Result<Started, EngineError> {
        let program = inner.program()?;
        let vm = spec.vm;
        let paths = inner.paths(vm);
        paths.check().map_err(EngineError::Start)?;
        let cgroup = inner.cgroups.machine(vm);
        let procs = doing(cgroup.procs(), || format!("look for processes of VM {vm}"))?;
        if !procs.is_empty() {
            return Err(running_already(vm));
        }
        let uid = doing(inner.uids.get(vm), || format!("find a user id for VM {vm}"))?;
        let wanted = Wanted { spec: &spec, incoming, uid };
        let started = begin_process(inner, program, &wanted, taps, &paths, &cgroup);
        if started.is_err() {
            machine::remove_remains(&paths, &cgroup);
        }
        let (pid, pidfd, log_start, images, record) = started?;
        let accelerator = inner.accelerator;
        let pidfd = doing(process::watch(pidfd), || "watch QEMU".to_owned())?;
        let Record { hardware, started_at, .. } = record;
        let hardware = hardware.ok_or(EngineError::Gone)?;
        Ok(Started {
            spec,
            paths,
            cgroup,
            pid,
            pidfd,
            log_start,
            images,
            hardware,
            uid,
            accelerator,
            started_at,
        })
    }

    /// Waits for QEMU's first answer or its end, whichever comes.
    async fn connect(self, inner: &Inner) -> Result<QemuMachine, EngineError> {
        let hub = Hub::new(self.paths.migration());
        let told = hub.clone();
        let socket = self.paths.qmp();
        let connecting = Qmp::connect(&socket, inner.config.start_limit, move |event| {
            told.qemu_said(&event);
        });
        let failure = tokio::select! {
            biased;
            connected = connecting => match connected {
                Ok(qmp) => return Ok(self.into_machine(inner, qmp, hub)),
                Err(error) => error.to_string(),
            },
            _ = self.pidfd.readable() => String::new(),
        };
        Err(self.give_up(failure).await)
    }

    fn into_machine(self, inner: &Inner, qmp: Qmp, hub: Arc<Hub>) -> QemuMachine {
        let shared = Arc::new(Shared {
            vm: self.spec.vm,
            paths: self.paths,
            cgroup: self.cgroup,
            process: QemuProcess {
                pid: self.pid,
                version: qmp.version().to_owned(),
                accelerator: self.accelerator.as_str().to_owned(),
                started_at: self.started_at,
            },
            pidfd: self.pidfd,
            log_start: self.log_start,
            hardware: self.hardware,
            memory: self.spec.memory,
            uid: self.uid,
            _images: self.images,
            limit: inner.config.request_limit,
            hub,
            switch: tokio::sync::Mutex::default(),
            gone: watch::Sender::new(None),
        });
        inner.machines().known.insert(shared.vm, Arc::downgrade(&shared));
        QemuMachine::new(shared, qmp)
    }

    /// Ends the process and says why there is no machine.
    async fn give_up(self, failure: String) -> EngineError {
        // When the monitor closed because the process is ending, let it end by itself:
        // its own status says more than our signal.
        let grace = std::time::Duration::from_secs(1);
        if tokio::time::timeout(grace, self.pidfd.readable()).await.is_err() {
            if let Err(source) = process::kill(self.pidfd.get_ref()) {
                return EngineError::Io { what: "kill QEMU".to_owned(), source };
            }
            let limit = std::time::Duration::from_secs(30);
            let _ = tokio::time::timeout(limit, self.pidfd.readable()).await;
        }
        let status = process::reap(self.pidfd.get_ref());
        let words = files::last_words(&self.paths.qemu_log(), self.log_start);
        machine::remove_remains(&self.paths, &self.cgroup);
        EngineError::Start(match (words, failure.is_empty()) {
            (Some(words), true) => words,
            (Some(words), false) => format!("{failure}; its last words: {words}"),
            (None, true) => machine::end_detail(status, None),
            (None, false) => failure,
        })
    }
}

type Begun = (u32, OwnedFd, u64, Vec<Arc<OwnedFd>>, Record);

/// What shall run, and as whom.
struct Wanted<'a> {
    spec: &'a MachineSpec,
    incoming: Option<&'a Incoming>,
    uid: u32,
}

fn begin_process(
    inner: &Inner,
    program: &Path,
    wanted: &Wanted<'_>,
    taps: Vec<OwnedFd>,
    paths: &Paths,
    cgroup: &MachineCgroup,
) -> Result<Begun, EngineError> {
    let Wanted { spec, incoming, uid } = *wanted;
    let vm = spec.vm;
    let context = |what: &str| format!("{what} of VM {vm}");
    doing(files::private_dir(&paths.state), || context("make the state directory"))?;
    doing(run_dir(&paths.run), || context("make the run directory"))?;
    let uefi = match &spec.boot {
        BootSpec::Uefi { .. } => {
            let flash = incoming.and_then(|incoming| incoming.hardware.flash);
            Some(firmware::find(flash).map_err(EngineError::Start)?)
        }
        _ => None,
    };
    let hardware = match incoming {
        Some(incoming) => incoming.hardware.clone(),
        None => {
            let flash = uefi.as_ref().and_then(firmware::Uefi::flash);
            Hardware::choose(spec, inner.accelerator.as_str(), inner.machine_version()?, flash)
        }
    };
    if hardware.accelerator != inner.accelerator.as_str() {
        let (has, runs) = (inner.accelerator.as_str(), &hardware.accelerator);
        return Err(EngineError::Start(format!(
            "the guest runs under {runs}, this server has {has}"
        )));
    }
    let inherited = open_files(inner, spec, taps, paths, uid, uefi.as_ref())?;
    let arguments = cmdline::arguments(&Inputs {
        spec,
        hardware: &hardware,
        incoming: incoming.is_some(),
        accelerator: inner.accelerator,
        tsc_khz: inner.tsc_khz,
        uefi_code: uefi.map(|uefi| uefi.code),
        fds: &inherited.fds,
    })
    .map_err(EngineError::Start)?;
    let log = doing(files::open_log(&paths.qemu_log(), 0), || context("open the log"))?;
    let log_start = doing(log.metadata(), || context("open the log"))?.len();
    let record = Record {
        version: Record::VERSION,
        spec: spec.clone(),
        uid,
        accelerator: inner.accelerator.as_str().to_owned(),
        hardware: Some(hardware),
        incoming: incoming.map(|incoming| incoming.channel),
        started_at: Timestamp::now(),
    };
    doing(record.write(&paths.record()), || context("write the record"))?;
    let cgroups = doing(cgroup.create(), || context("make the cgroup"))?;
    let kvm = inner.accelerator == Accelerator::Kvm;
    let (pid, pidfd) = doing(
        process::spawn(Launch {
            program,
            arguments: &arguments,
            uid,
            group: inner.kvm_group.filter(|_| kvm),
            cgroups: &cgroups,
            inherit: &inherited.numbers(),
            log,
        }),
        || format!("start {}", program.display()),
    )?;
    Ok((pid, pidfd, log_start, inherited.images, record))
}

/// Passable for the machine's user, who connects to nothing in it.
fn run_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)
}

fn open_files(
    inner: &Inner,
    spec: &MachineSpec,
    taps: Vec<OwnedFd>,
    paths: &Paths,
    uid: u32,
    uefi: Option<&firmware::Uefi>,
) -> Result<Inherited, EngineError> {
    let listen =
        |path: &Path| doing(files::listen(path, uid), || format!("listen at {}", path.display()));
    let listeners = [listen(&paths.qmp())?, listen(&paths.serial())?, listen(&paths.agent())?];
    let [qmp, serial, agent] = [0, 1, 2].map(|n: usize| listeners[n].as_raw_fd());
    let mut files: Vec<OwnedFd> = Vec::new();
    let mut keep = |file: File| {
        files.push(file.into());
        files.last().map_or(-1, AsRawFd::as_raw_fd)
    };
    let log = paths.console_log();
    let console_log =
        keep(doing(files::open_log(&log, uid), || format!("open {}", log.display()))?);
    let mut fds = Fds { qmp, serial, agent, console_log, ..Fds::default() };
    let mut images = Vec::new();
    match (&spec.boot, uefi) {
        (BootSpec::Uefi { vars }, Some(uefi)) => {
            let nvram = files::open_nvram(vars, &uefi.vars_template, uid);
            fds.nvram = Some(keep(doing(nvram, || format!("open {}", vars.display()))?));
        }
        (BootSpec::Kernel { kernel, initrd, .. }, _) => {
            let mut image = |path: &Path| {
                let copy = inner.images.open(path);
                let copy = doing(copy, || format!("read {}", path.display()))?;
                images.push(copy.clone());
                Ok::<_, EngineError>(copy.as_raw_fd())
            };
            fds.kernel = Some(image(kernel)?);
            fds.initrd = initrd.as_deref().map(&mut image).transpose()?;
        }
        _ => {}
    }
    for cdrom in &spec.cdroms {
        let file = doing(File::open(&cdrom.path), || format!("open {}", cdrom.path.display()))?;
        fds.cdroms.push(keep(file));
    }
    for tap in &taps {
        // One worker for each tap, where the host's kernel has them.
        let vhost = File::options().read(true).write(true).open("/dev/vhost-net").ok();
        fds.taps.push(TapFds { tap: tap.as_raw_fd(), vhost: vhost.map(&mut keep) });
    }
    Ok(Inherited { fds, listeners, files, images, taps })
}
