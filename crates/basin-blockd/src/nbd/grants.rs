//! Who may use which disk over NBD. A disk that is granted is open for as long as
//! the grant lasts, or until the export that it was brought for takes it over.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basin_model::{Bytes, Generation, HostId, VolumeId};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::{ErrorCode, Grant, GrantState, Layer};
use crate::generation::Claim;
use crate::io::{self, Block, DiskError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk with its users.
pub struct Granted {
    pub grant: Grant,
    pub block: Arc<dyn Block>,
    pub read_bytes: AtomicU64,
    pub write_bytes: AtomicU64,
    connections: AtomicU32,
    mirror: Mutex<Bringing>,
    /// No more requests.
    pub closing: CancellationToken,
    users: TaskTracker,
}

/// What a mirror has brought so far.
#[derive(Default)]
struct Bringing {
    id: Option<String>,
    open: u32,
    broken: bool,
    complete: bool,
}

/// A connection's part in a grant.
pub struct User {
    pub granted: Arc<Granted>,
    mirror: Option<String>,
    clean: bool,
    _token: tokio_util::task::task_tracker::TaskTrackerToken,
}

impl Granted {
    fn open(grant: &Grant) -> Result<Granted, DiskError> {
        let claim = Claim { volume: grant.volume, generation: grant.generation };
        let block = io::open(&grant.layers, (!grant.read_only).then_some(claim))?;
        Ok(Granted {
            grant: grant.clone(),
            block,
            read_bytes: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
            connections: AtomicU32::new(0),
            mirror: Mutex::default(),
            closing: CancellationToken::new(),
            users: TaskTracker::new(),
        })
    }

    /// A connection begins; `mirror` if it is one of a mirror's.
    pub fn enter(self: &Arc<Granted>, mirror: Option<String>) -> User {
        let token = self.users.token();
        self.connections.fetch_add(1, Relaxed);
        if let Some(id) = &mirror {
            let mut bringing = lock(&self.mirror);
            if bringing.id.as_ref() != Some(id) {
                *bringing = Bringing { id: Some(id.clone()), ..Bringing::default() };
            }
            bringing.open += 1;
            bringing.complete = false;
        }
        User { granted: Arc::clone(self), mirror, clean: false, _token: token }
    }

    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    fn complete(&self) -> bool {
        lock(&self.mirror).complete
    }

    /// Ends all connections; none is left when it returns.
    fn end_users(&self, runtime: Option<&Handle>) {
        self.closing.cancel();
        self.users.close();
        if let Some(runtime) = runtime {
            runtime.block_on(self.users.wait());
        }
    }

    fn state(&self, address: Option<SocketAddr>) -> GrantState {
        GrantState {
            grant: self.grant.clone(),
            address,
            size: Bytes(self.block.size()),
            connections: self.connections(),
            read_bytes: Bytes(self.read_bytes.load(Relaxed)),
            write_bytes: Bytes(self.write_bytes.load(Relaxed)),
            complete: self.complete(),
        }
    }
}

impl User {
    /// The client took its leave, and everything it asked has been answered.
    pub fn leave(mut self) {
        self.clean = true;
    }

    /// Something was written by someone who is no mirror.
    pub fn wrote(&self) {
        if self.mirror.is_none() {
            lock(&self.granted.mirror).complete = false;
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.granted.connections.fetch_sub(1, Relaxed);
        if let Some(id) = &self.mirror {
            let mut bringing = lock(&self.granted.mirror);
            if bringing.id.as_ref() == Some(id) {
                bringing.open -= 1;
                bringing.broken |= !self.clean;
                bringing.complete = bringing.open == 0 && !bringing.broken;
            }
        }
    }
}

/// All grants.
#[derive(Default)]
pub struct Grants {
    /// Held while grants come and go. Connections wait for `entries` only.
    turn: Mutex<()>,
    entries: Mutex<BTreeMap<VolumeId, Arc<Granted>>>,
    /// Of the connections, once there can be any.
    runtime: Mutex<Option<Handle>>,
}

impl Grants {
    pub fn set_runtime(&self, runtime: Handle) {
        *lock(&self.runtime) = Some(runtime);
    }

    fn runtime(&self) -> Option<Handle> {
        lock(&self.runtime).clone()
    }

    fn held(&self, volume: VolumeId) -> Option<Arc<Granted>> {
        lock(&self.entries).get(&volume).cloned()
    }

    fn remove(&self, granted: &Granted) {
        lock(&self.entries).remove(&granted.grant.volume);
    }

    pub fn add(&self, grant: &Grant) -> Result<(), DiskError> {
        let _turn = lock(&self.turn);
        if let Some(held) = self.held(grant.volume) {
            if held.grant == *grant {
                return Ok(());
            }
            fence(&held.grant, grant.generation)?;
            if held.grant.generation == grant.generation {
                let message = format!(
                    "volume {} is already granted otherwise under generation {}: revoke it first",
                    grant.volume, grant.generation
                );
                return Err(DiskError::new(ErrorCode::Invalid, message));
            }
            self.close(&held)?;
        }
        let granted = Arc::new(Granted::open(grant)?);
        lock(&self.entries).insert(grant.volume, granted);
        tracing::info!(volume = %grant.volume, host = %grant.host, read_only = grant.read_only,
            "granted");
        Ok(())
    }

    pub fn revoke(&self, volume: VolumeId, generation: Generation) -> Result<(), DiskError> {
        let _turn = lock(&self.turn);
        let Some(granted) = self.held(volume) else { return Ok(()) };
        fence(&granted.grant, generation)?;
        self.close(&granted)
    }

    fn close(&self, granted: &Granted) -> Result<(), DiskError> {
        self.remove(granted);
        granted.end_users(self.runtime().as_ref());
        tracing::info!(volume = %granted.grant.volume, "no longer granted");
        granted.block.close().map_err(|e| {
            DiskError::new(ErrorCode::Io, format!("cannot write the disk's data out: {e}"))
        })
    }

    /// The disk as a mirror has brought it, for the export it was brought for; `None`
    /// if it is not granted. Refused while it is not complete, unless `anyway`.
    pub fn take_over(
        &self,
        claim: Option<Claim>,
        volume: VolumeId,
        layers: &[Layer],
        anyway: bool,
    ) -> Result<Option<Arc<dyn Block>>, DiskError> {
        let _turn = lock(&self.turn);
        let Some(granted) = self.held(volume) else { return Ok(None) };
        if let Some(claim) = claim {
            fence(&granted.grant, claim.generation)?;
        }
        if !granted.grant.read_only && !anyway && !granted.complete() {
            let message = format!(
                "volume {volume} is still being brought by server {}: its mirror has not finished",
                granted.grant.host
            );
            return Err(DiskError::new(ErrorCode::Locked, message));
        }
        let same = claim.is_some_and(|c| c.generation == granted.grant.generation)
            && !granted.grant.read_only
            && granted.grant.layers == layers;
        if !same {
            return self.close(&granted).map(|()| None);
        }
        self.remove(&granted);
        granted.end_users(self.runtime().as_ref());
        tracing::info!(%volume, "the grant's disk is the export's now");
        Ok(Some(Arc::clone(&granted.block)))
    }

    /// What `host` may use under that name.
    pub fn find(&self, name: &str, host: HostId) -> Option<Arc<Granted>> {
        let granted = lock(&self.entries).get(&name.parse().ok()?)?.clone();
        (granted.grant.host == host && !granted.closing.is_cancelled()).then_some(granted)
    }

    /// The names of all that `host` may use.
    pub fn names(&self, host: HostId) -> Vec<String> {
        let entries = lock(&self.entries);
        let theirs = entries.values().filter(|g| g.grant.host == host);
        theirs.map(|g| g.grant.volume.to_string()).collect()
    }

    pub fn list(&self, address: Option<SocketAddr>) -> Vec<GrantState> {
        lock(&self.entries).values().map(|g| g.state(address)).collect()
    }

    /// Ends all.
    pub fn shut_down(&self) {
        let _turn = lock(&self.turn);
        let all = lock(&self.entries).clone();
        for (volume, granted) in all {
            if let Err(why) = self.close(&granted) {
                tracing::error!(%volume, %why, "closing");
            }
        }
    }

    pub fn any(&self) -> bool {
        !lock(&self.entries).is_empty()
    }
}

fn fence(grant: &Grant, generation: Generation) -> Result<(), DiskError> {
    if generation >= grant.generation {
        return Ok(());
    }
    let message = format!(
        "generation {generation} no longer holds volume {}: generation {} does",
        grant.volume, grant.generation
    );
    Err(DiskError::new(ErrorCode::Fenced, message))
}
