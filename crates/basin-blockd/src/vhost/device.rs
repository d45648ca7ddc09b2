//! The state of one connection: queues as their front end described them so far, and
//! when they run. What it may ask is in [`super::handler`].

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use vhost::vhost_user::{Error, Result};

use super::activate::activate;
use super::config;
use super::inflight::InflightArea;
use super::log::DirtyLog;
use super::memory::GuestMemory;
use super::peer::Peer;
use super::vring::RingSetup;
use crate::disk::Disk;
use crate::worker::inbox::Start;
use crate::worker::{Pool, QueueHandle};

#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub used_log: Option<u64>,
}

/// A queue as the front end described it so far.
#[derive(Default)]
pub(super) struct Conf {
    pub size: u16,
    pub base: u16,
    pub addresses: Option<Addresses>,
    pub kick: Option<File>,
    pub call: Option<File>,
    pub err: Option<File>,
    pub enabled: bool,
    pub running: Option<QueueHandle>,
}

impl Conf {
    /// All is known that a queue needs.
    fn startable(&self) -> bool {
        self.kick.is_some() && self.addresses.is_some() && self.enabled && self.size != 0
    }
}

/// The state of one connection.
pub struct Handler {
    pub(super) disk: Arc<Disk>,
    pool: Arc<Pool>,
    pub(super) peer: Arc<Peer>,
    pub(super) features: u64,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) inflight: Option<InflightArea>,
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) queues: Vec<Conf>,
    /// Itself, for whoever finishes what a message began.
    me: Weak<Mutex<Handler>>,
    /// Waits for the disk's file.
    activating: Option<JoinHandle<()>>,
    /// The front end has to take note of where the memory is mapped before a fault on it.
    pub(super) unacknowledged: bool,
}

pub(super) fn refused<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, why.into())))
}

pub(super) fn failed(error: io::Error) -> Error {
    Error::ReqHandlerError(error)
}

/// Polling a descriptor that is no eventfd could do anything.
pub(super) fn eventfd(file: Option<File>) -> Result<Option<File>> {
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
    pub(super) fn note_running(&self) {
        let runs = |q: &Conf| q.running.is_some() || q.startable();
        self.disk.set_running(self.queues.iter().any(runs));
    }

    pub(super) fn conf(&mut self, index: u32) -> Result<&mut Conf> {
        let count = self.queues.len();
        match self.queues.get_mut(index as usize) {
            Some(conf) => Ok(conf),
            None => refused(format!("queue {index} of a disk with {count}")),
        }
    }

    pub(super) fn stopped(&mut self, index: u32) -> Result<&mut Conf> {
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
    pub(super) fn refresh(&mut self, index: usize) -> Result<()> {
        if self.unacknowledged {
            return Ok(());
        }
        let conf = &self.queues[index];
        let Some(ring) = self.setup(conf) else { return Ok(()) };
        let missing = ring.missing();
        if let Some(arriving) = self.memory.arriving().filter(|_| !missing.is_empty()) {
            let me = self.me.clone();
            arriving.fetch(missing, Box::new(move || refresh_later(&me)));
            return Ok(());
        }
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
        match self.pool.add(start) {
            Some(handle) => {
                self.queues[index].running = Some(handle);
                Ok(())
            }
            None => refused(format!("the ring of queue {index} is not within the guest's memory")),
        }
    }

    pub(super) fn refresh_all(&mut self) -> Result<()> {
        (0..self.queues.len()).try_for_each(|n| self.refresh(n))
    }

    /// Refuses the memory of a guest that arrives by post-copy, of which this connection
    /// was not told: of a blockd that was there before. What is missed here would be read
    /// as zeros, and be lost to the guest as well. The front end tries again.
    pub(super) fn check_memory(&self, arrives: bool) -> Result<()> {
        if arrives || self.peer.arriving.get().is_some() {
            return Ok(());
        }
        match self.peer.process.waits_for_memory() {
            Ok(false) => Ok(()),
            Ok(true) => refused("the guest's memory has not all arrived: not before that"),
            Err(e) => Err(failed(e)),
        }
    }

    pub(super) fn take_memory(&mut self, memory: GuestMemory, arrives: bool) -> Result<()> {
        self.memory = Arc::new(memory);
        self.unacknowledged = arrives;
        self.refresh_all()
    }

    pub(super) fn no_memory(&self, arrives: bool) -> GuestMemory {
        match self.peer.arriving.get().filter(|_| arrives) {
            Some(arriving) => GuestMemory::that_arrives(Arc::clone(arriving)),
            None => GuestMemory::default(),
        }
    }
}

/// What a queue needs is there now.
fn refresh_later(handler: &Weak<Mutex<Handler>>) {
    let Some(handler) = handler.upgrade() else { return };
    let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(why) = handler.refresh_all() {
        tracing::warn!(volume = %handler.disk.volume, %why, "cannot start the queues");
    }
}
