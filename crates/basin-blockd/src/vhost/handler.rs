//! What a front end may ask, and what it means for the queues.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures as P, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::arriving::{Arriving, possible};
use super::config;
use super::device::{Addresses, Conf, Handler, eventfd, failed, refused};
use super::inflight::{self, InflightArea};
use super::log::DirtyLog;
use super::memory::{GuestMemory, RegionSpec, map_shared};
use super::vring::MAX_RING;

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
        if !arrives {
            return Ok(None);
        }
        let base = |region: &VhostUserMemoryRegion| self.memory.base(region.guest_phys_addr);
        let bases: Option<Vec<_>> = regions.iter().map(base).collect();
        bases.map(Some).ok_or(Error::BackendInternalError)
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
        if !arrives {
            return Ok(None);
        }
        self.memory.base(region.guest_phys_addr).map(Some).ok_or(Error::BackendInternalError)
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
            Err(arriving) => {
                arriving.give_up();
                refused("post-copy for the second time")
            }
        }
    }

    fn postcopy_listen(&mut self) -> Result<()> {
        let Some(arriving) = self.peer.arriving.get() else {
            return refused("post-copy that was not announced");
        };
        if !self.memory.is_empty() {
            return refused("post-copy into memory that is in use");
        }
        self.memory = Arc::new(GuestMemory::that_arrives(Arc::clone(arriving)));
        tracing::info!(volume = %self.disk.volume, "the guest's memory arrives by post-copy");
        Ok(())
    }

    fn postcopy_ack_mem_regions(&mut self) -> Result<()> {
        self.unacknowledged = false;
        self.refresh_all()
    }

    /// Nothing is waited for: the front end may ask something else at the same time.
    fn postcopy_end(&mut self) -> Result<()> {
        self.peer.process.note_whole();
        if let Some(arriving) = self.peer.arriving.get() {
            arriving.end();
        }
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
