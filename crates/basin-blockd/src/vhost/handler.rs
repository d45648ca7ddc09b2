//! What a front end may ask, and what it means for the queues.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures as P, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::activate::activate;
use super::arriving::{Arriving, handles_faults, possible};
use super::config;
use super::inflight::{self, InflightArea};
use super::log::DirtyLog;
use super::memory::{GuestMemory, RegionSpec, map_shared};
use super::vring::{MAX_RING, RingSetup};
use crate::disk::Disk;
use crate::worker::inbox::Start;
use crate::worker::{Pool, QueueHandle};

/// How long a worker of its own looks for work.
const POLL: Duration = Duration::from_micros(32);

#[derive(Clone, Copy)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
    used_log: Option<u64>,
}

/// A queue as the front end described it so far.
#[derive(Default)]
struct Conf {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    enabled: bool,
    running: Option<QueueHandle>,
}

impl Conf {
    /// All is known that a queue needs.
    fn startable(&self) -> bool {
        self.kick.is_some() && self.addresses.is_some() && self.enabled && self.size != 0
    }
}

/// Whom the connection is with.
pub struct Peer {
    /// Root.
    pub trusted: bool,
    pub pid: u32,
    pub connection: UnixStream,
    /// Once its guest's memory arrives by post-copy; stays when all has come.
    pub arriving: OnceLock<Arc<Arriving>>,
}

/// The state of one connection.
pub struct Handler {
    disk: Arc<Disk>,
    pool: Arc<Pool>,
    peer: Arc<Peer>,
    features: u64,
    memory: Arc<GuestMemory>,
    inflight: Option<InflightArea>,
    log: Option<Arc<DirtyLog>>,
    queues: Vec<Conf>,
    /// Itself, for whoever finishes what a message began.
    me: Weak<Mutex<Handler>>,
    /// Waits for the disk's file.
    activating: Option<JoinHandle<()>>,
    /// A worker of its own, while the guest's memory arrives: see [`super::arriving`].
    own: Option<Pool>,
    /// The front end has to take note of where the memory is mapped before a fault on it.
    unacknowledged: bool,
}

fn refused<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, why.into())))
}

fn failed(error: io::Error) -> Error {
    Error::ReqHandlerError(error)
}

/// Polling a descriptor that is no eventfd could do anything.
fn eventfd(file: Option<File>) -> Result<Option<File>> {
    let Some(file) = file else { return Ok(None) };
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file.as_fd());
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(failed)?;
    if link.as_os_str() == "anon_inode:[eventfd]" {
        Ok(Some(file))
    } else {
        refused("a descriptor for notices is not an eventfd")
    }
}

impl Handler {
    pub fn new(disk: Arc<Disk>, pool: Arc<Pool>, peer: Arc<Peer>) -> Arc<Mutex<Handler>> {
        let queues = (0..disk.queues).map(|_| Conf::default()).collect();
        Arc::new_cyclic(|me| {
            Mutex::new(Handler {
                disk,
                pool,
                peer,
                features: 0,
                memory: Arc::default(),
                inflight: None,
                log: None,
                queues,
                me: me.clone(),
                activating: None,
                own: None,
                unacknowledged: false,
            })
        })
    }

    /// Stops all queues; returns when nothing is in flight. The rest of the device's
    /// description is forgotten, so that nothing starts any more.
    pub fn stop(&mut self) {
        let stopping: Vec<_> = self
            .queues
            .iter_mut()
            .filter_map(|q| q.running.take().map(QueueHandle::begin_stop))
            .collect();
        for answer in stopping {
            let _ = answer.recv();
        }
        self.queues.iter_mut().for_each(|q| q.kick = None);
        self.note_running();
    }

    /// Whoever waits for the disk's file on behalf of this front end.
    pub fn take_activating(&mut self) -> Option<JoinHandle<()>> {
        self.activating.take()
    }

    /// The disk's file is held now, or not needed any more.
    pub fn activated(&mut self) {
        self.activating = None;
        if let Err(why) = self.refresh_all() {
            tracing::warn!(volume = %self.disk.volume, %why, "cannot start the queues");
        }
    }

    /// The device runs while a queue runs or would, if the file were held.
    fn note_running(&self) {
        let runs = |q: &Conf| q.running.is_some() || q.startable();
        self.disk.set_running(self.queues.iter().any(runs));
    }

    fn conf(&mut self, index: u32) -> Result<&mut Conf> {
        let count = self.queues.len();
        match self.queues.get_mut(index as usize) {
            Some(conf) => Ok(conf),
            None => refused(format!("queue {index} of a disk with {count}")),
        }
    }

    fn stopped(&mut self, index: u32) -> Result<&mut Conf> {
        let conf = self.conf(index)?;
        if conf.running.is_some() {
            return refused(format!("queue {index} is running"));
        }
        Ok(conf)
    }

    fn setup(&self, conf: &Conf) -> Option<RingSetup> {
        let a = conf.addresses?;
        let logs = self.features & config::LOG_ALL != 0;
        Some(RingSetup {
            memory: Arc::clone(&self.memory),
            size: conf.size,
            descriptors: a.descriptors,
            available: a.available,
            used: a.used,
            event_idx: self.features & config::EVENT_IDX != 0,
            log: self.log.clone().filter(|_| logs),
            used_log: a.used_log.filter(|_| logs),
        })
    }

    /// Starts a queue once everything is known, and keeps a running one up to date.
    fn refresh(&mut self, index: usize) -> Result<()> {
        if self.unacknowledged {
            return Ok(());
        }
        let conf = &self.queues[index];
        let Some(ring) = self.setup(conf) else { return Ok(()) };
        if let Some(running) = &conf.running {
            if !running.relocate(ring) {
                tracing::debug!(volume = %self.disk.volume, queue = index,
                    "the ring is not within the new memory; the old mapping is kept");
            }
            return Ok(());
        }
        let Some(kick) = conf.kick.as_ref().filter(|_| conf.startable()) else { return Ok(()) };
        self.disk.set_running(true);
        let Some(block) = self.disk.block() else {
            if self.activating.is_none() {
                let disk = Arc::clone(&self.disk);
                self.activating = Some(activate(self.me.clone(), disk).map_err(failed)?);
            }
            return Ok(());
        };
        let clone = |f: &Option<File>| f.as_ref().map(File::try_clone).transpose();
        let start = Start {
            disk: Arc::clone(&self.disk),
            block,
            index: index as u16,
            next_avail: conf.base,
            kick: kick.try_clone().map_err(failed)?,
            call: clone(&conf.call).map_err(failed)?,
            err: clone(&conf.err).map_err(failed)?,
            inflight: match &self.inflight {
                Some(area) => match area.queue(index as u16, conf.size) {
                    Some(record) => Some(record),
                    None => return refused("the in-flight memory has no room for the queue"),
                },
                None => None,
            },
            writethrough: self.features & config::FLUSH == 0,
            ring,
        };
        match self.own.as_ref().unwrap_or(&*self.pool).add(start) {
            Some(handle) => {
                self.queues[index].running = Some(handle);
                Ok(())
            }
            None => refused(format!("the ring of queue {index} is not within the guest's memory")),
        }
    }

    fn refresh_all(&mut self) -> Result<()> {
        (0..self.queues.len()).try_for_each(|n| self.refresh(n))
    }

    /// Refuses the memory of a guest that arrives by post-copy, of which this connection
    /// was not told: of a blockd that was there before. What is missed here would be read
    /// as zeros, and be lost to the guest as well. The front end tries again.
    fn check_memory(&self, arrives: bool) -> Result<()> {
        if arrives || self.peer.arriving.get().is_some() {
            return Ok(());
        }
        match handles_faults(self.peer.pid) {
            Ok(false) => Ok(()),
            Ok(true) => refused("the guest's memory has not all arrived: not before that"),
            Err(e) => Err(failed(e)),
        }
    }

    fn take_memory(&mut self, memory: GuestMemory, arrives: bool) -> Result<()> {
        self.memory = Arc::new(memory);
        self.unacknowledged = arrives;
        self.refresh_all()
    }

    fn no_memory(&self, arrives: bool) -> GuestMemory {
        match self.peer.arriving.get().filter(|_| arrives) {
            Some(arriving) => GuestMemory::that_arrives(Arc::clone(arriving)),
            None => GuestMemory::default(),
        }
    }

    /// From its own worker to those of all.
    fn go_among_the_others(&mut self) -> Result<()> {
        let Some(own) = self.own.take() else { return Ok(()) };
        self.memory = Arc::new(self.memory.arrived());
        for conf in &mut self.queues {
            if let Some(running) = conf.running.take()
                && let Some(base) = running.stop()
            {
                conf.base = base;
            }
        }
        drop(own);
        self.refresh_all()
    }

    fn base(&self, gpa: u64) -> Result<u64> {
        self.memory.base(gpa).ok_or(Error::BackendInternalError)
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop();
        self.queues.fill_with(Conf::default);
        self.features = 0;
        self.log = None;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::features(self.disk.read_only))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !config::features(self.disk.read_only) != 0 {
            return refused("features that were not offered");
        }
        self.features = features;
        if features & config::PROTOCOL == 0 {
            self.queues.iter_mut().for_each(|q| q.enabled = true);
        }
        self.refresh_all()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        postcopy: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let arrives = postcopy == Some(true);
        self.check_memory(arrives)?;
        let mut memory = self.no_memory(arrives);
        for (region, file) in regions.iter().zip(files) {
            memory = memory.with(spec(region), file, self.peer.trusted).map_err(failed)?;
        }
        self.take_memory(memory, arrives)?;
        let bases = regions.iter().map(|region| self.base(region.guest_phys_addr));
        if arrives { bases.collect::<Result<_>>().map(Some) } else { Ok(None) }
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(GuestMemory::MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        postcopy: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        let arrives = postcopy == Some(true);
        self.check_memory(arrives)?;
        let memory = self.memory.with(spec(region), file, self.peer.trusted).map_err(failed)?;
        self.take_memory(memory, arrives)?;
        if arrives { self.base(region.guest_phys_addr).map(Some) } else { Ok(None) }
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let s = spec(region);
        match self.memory.without(s.gpa, s.uva, s.len) {
            Some(memory) => {
                self.memory = Arc::new(memory);
                self.refresh_all()
            }
            None => refused("there is no such memory region"),
        }
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|n| n.is_power_of_two() && *n <= MAX_RING);
        let Some(size) = size else {
            return refused(format!("a ring of {num}: at most {MAX_RING}, a power of two"));
        };
        self.stopped(index)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let used_log = logged.then_some(log);
        let addresses = Addresses { descriptors, available, used, used_log };
        self.conf(index)?.addresses = Some(addresses);
        self.refresh(index as usize)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.stopped(index)?.base = base as u16;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let conf = self.conf(index)?;
        if let Some(running) = conf.running.take()
            && let Some(base) = running.stop()
        {
            conf.base = base;
        }
        conf.kick = None;
        let base = u32::from(conf.base);
        self.note_running();
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let Some(file) = eventfd(file)? else {
            return refused("a queue without kicks: polling all the time is not supported");
        };
        self.stopped(index.into())?.kick = Some(file);
        self.refresh(index.into())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = eventfd(file)?;
        let conf = self.conf(index.into())?;
        if let Some(running) = &conf.running {
            running.set_call(file.as_ref().map(File::try_clone).transpose().map_err(failed)?);
        }
        conf.call = file;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = eventfd(file)?;
        let conf = self.conf(index.into())?;
        if let Some(running) = &conf.running {
            running.set_err(file.as_ref().map(File::try_clone).transpose().map_err(failed)?);
        }
        conf.err = file;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let conf = self.conf(index)?;
        conf.enabled = enable;
        match &conf.running {
            Some(running) => running.pause(!enable),
            None => self.refresh(index as usize)?,
        }
        self.note_running();
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<P> {
        Ok(P::MQ
            | P::CONFIG
            | P::REPLY_ACK
            | P::BACKEND_REQ
            | P::INFLIGHT_SHMFD
            | P::CONFIGURE_MEM_SLOTS
            | P::RESET_DEVICE
            | P::LOG_SHMFD
            | if possible() { P::PAGEFAULT } else { P::empty() })
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(config::read(self.disk.size().get(), self.disk.queues, offset as usize, size as usize))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        // Nothing in it can be written; a guest that tries changes nothing.
        Ok(())
    }

    fn get_inflight_fd(&mut self, ask: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (ask.num_queues, ask.queue_size);
        if queues == 0 || usize::from(queues) > self.queues.len() || size == 0 || size > MAX_RING {
            return refused(format!("in-flight memory for {queues} queues of {size}"));
        }
        let file = inflight::create(queues).map_err(failed)?;
        let len = inflight::area_len(queues);
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, area: &VhostUserInflight, file: File) -> Result<()> {
        let map = map_shared(file, area.mmap_offset, area.mmap_size, self.peer.trusted);
        match InflightArea::new(map.map_err(failed)?, area.num_queues) {
            Some(area) => {
                self.inflight = Some(area);
                Ok(())
            }
            None => refused("the in-flight memory is too small for its queues"),
        }
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let map = map_shared(file, log.mmap_offset, log.mmap_size, self.peer.trusted);
        self.log = Some(Arc::new(DirtyLog::new(map.map_err(failed)?)));
        self.refresh_all()
    }

    fn postcopy_advice(&mut self) -> Result<File> {
        let arriving = Arriving::new().map_err(failed)?;
        let descriptor = arriving.descriptor().map_err(failed)?;
        match self.peer.arriving.set(arriving) {
            Ok(()) => Ok(descriptor),
            Err(_) => refused("post-copy for the second time"),
        }
    }

    fn postcopy_listen(&mut self) -> Result<()> {
        let Some(arriving) = self.peer.arriving.get() else {
            return refused("post-copy that was not announced");
        };
        if !self.memory.is_empty() {
            return refused("post-copy into memory that is in use");
        }
        arriving.guard(self.peer.connection.try_clone().map_err(failed)?).map_err(failed)?;
        self.own = Some(Pool::start(1, POLL).map_err(failed)?);
        self.memory = Arc::new(GuestMemory::that_arrives(Arc::clone(arriving)));
        self.disk.set_arriving(true);
        tracing::info!(volume = %self.disk.volume, "the guest's memory arrives by post-copy");
        Ok(())
    }

    fn postcopy_ack_mem_regions(&mut self) -> Result<()> {
        self.unacknowledged = false;
        self.refresh_all()
    }

    fn postcopy_end(&mut self) -> Result<()> {
        let Some(arriving) = self.peer.arriving.get() else {
            return refused("the end of a post-copy that was not announced");
        };
        arriving.end();
        self.unacknowledged = false;
        self.go_among_the_others()?;
        self.disk.set_arriving(false);
        tracing::info!(volume = %self.disk.volume, "the guest's memory is there");
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        refused("a disk has no display")
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        refused("a disk has no shared objects")
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        refused("a disk has no state to transfer")
    }
    fn check_device_state(&mut self) -> Result<()> {
        refused("a disk has no state to transfer")
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refused("a disk has no shared memory regions")
    }
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        gpa: region.guest_phys_addr,
        uva: region.user_addr,
        len: region.memory_size,
        offset: region.mmap_offset,
    }
}
