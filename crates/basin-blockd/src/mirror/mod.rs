//! A disk that is kept the same on another server while its guest uses it.
//!
//! The copy goes once over the disk, in chunks ([`map`]). A write of the guest goes to
//! the other side too where the copy has been, and is answered when both have it;
//! where the copy has not been yet, it is the copy's business. So one pass is enough,
//! however much the guest writes. What overlaps goes one after the other ([`order`]).
//!
//! While a mirror runs, the guest's writes and flushes do not go straight from the
//! worker into its ring but through [`guest`]: their data must not change between the
//! two sides. Reads are not touched, and a disk without a mirror pays nothing.
//!
//! If anything happens to the other side, the mirror has failed and says so, and the
//! guest goes on with its own disk after at most the time the client waits.

mod bucket;
mod copy;
mod failure;
mod guest;
mod map;
mod order;
#[cfg(test)]
mod tests;
mod zeros;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use basin_model::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::{Mirror, MirrorPhase, MirrorState};
use crate::io::Block;
use crate::nbd::client::{Client, NbdError};
use crate::nbd::tls::Identity;
use bucket::Bucket;
use failure::Failure;
use map::Map;
use order::{Order, Ticket};

/// Connections: one is encrypted by one thread.
const CONNECTIONS: usize = 4;
/// Of the guest's data under way to the other side.
const MEMORY: usize = 64 << 20;

const PING_EACH: Duration = Duration::from_secs(5);

/// What a mirror needs of the disk that it is of. Called on threads that may block.
pub trait Tapped: Send + Sync {
    /// From now on the guest's writes come to the mirror; none of before is under way
    /// when it returns.
    fn attach(&self, mirror: &Arc<Mirroring>);
    /// No longer.
    fn detach(&self);
    /// Both sides have become the same.
    fn in_sync(&self);
    /// From now on the other side may know that it has everything. Noted for ever, or
    /// until the disk is taken back.
    fn leaving(&self) -> Result<(), String>;
}

/// A mirror, until its disk is closed.
pub struct Mirroring {
    mirror: Mirror,
    block: Arc<dyn Block>,
    tapped: Box<dyn Tapped>,
    runtime: Handle,
    state: Mutex<State>,
    bucket: Mutex<Bucket>,
    begin: Instant,
    sent: AtomicU64,
    rate: AtomicU64,
    memory: Arc<Semaphore>,
    /// There is another limit.
    limit: Notify,
    /// There is something to copy again.
    more: Notify,
    /// It has ended.
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct State {
    phase: MirrorPhase,
    map: Map,
    order: Order,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
    clients: Vec<Arc<Client>>,
    /// The connections are about to end in order.
    leaving: bool,
}

/// A right to touch a part of the disk, or the place in the queue for it.
struct Turn {
    mirroring: Arc<Mirroring>,
    ticket: Ticket,
    wait: Option<oneshot::Receiver<()>>,
}

impl Turn {
    async fn wait(&mut self) {
        if let Some(wait) = self.wait.take() {
            let _ = wait.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.mirroring.lock();
        state.waiting.remove(&self.ticket);
        for next in state.order.done(self.ticket) {
            if let Some(waiting) = state.waiting.remove(&next) {
                let _ = waiting.send(());
            }
        }
    }
}

impl Mirroring {
    /// Begins; how it goes is in [`Mirroring::state`].
    pub fn begin(
        mirror: Mirror,
        block: Arc<dyn Block>,
        tapped: Box<dyn Tapped>,
        runtime: Handle,
        identity: Arc<Identity>,
    ) -> Arc<Mirroring> {
        let state = State {
            phase: MirrorPhase::Connecting,
            map: Map::new(block.size()),
            order: Order::default(),
            waiting: HashMap::new(),
            clients: Vec::new(),
            leaving: false,
        };
        let limit = mirror.limit.map(Bytes::get);
        let mirroring = Arc::new(Mirroring {
            mirror,
            block,
            tapped,
            runtime,
            state: Mutex::new(state),
            bucket: Mutex::new(Bucket::new(limit, Duration::ZERO)),
            begin: Instant::now(),
            sent: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            memory: Arc::new(Semaphore::new(MEMORY)),
            limit: Notify::new(),
            more: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let me = Arc::clone(&mirroring);
        mirroring.spawn(async move {
            if let Err(why) = me.start(&identity).await {
                me.fail(why);
            }
        });
        mirroring
    }

    /// Part of the mirror's own work, which ends with it.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let work = async move {
            stop.run_until_cancelled(work).await;
        };
        self.tasks.spawn_on(work, &self.runtime);
    }

    async fn start(self: &Arc<Mirroring>, identity: &Identity) -> Result<(), String> {
        let Mirror { address, host, export, .. } = &self.mirror;
        // The id tells this mirror's connections from another's.
        let (name, id) = (export.to_string(), uuid::Uuid::new_v4().simple().to_string());
        let what = |why: NbdError| format!("volume {name} at server {host} ({address}): {why}");
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = Client::connect(*address, identity, *host, &name, &id).await;
            clients.push(Arc::new(client.map_err(what)?));
        }
        let (here, there) = (self.block.size(), clients[0].size);
        if there < here {
            let (here, there) = (Bytes(here), Bytes(there));
            return Err(format!("volume {name} at server {host} has {there}, and needs {here}"));
        }
        clients.iter().for_each(|client| self.watch(Arc::clone(client)));
        self.lock().clients = clients;
        let me = Arc::clone(self);
        let attached = tokio::task::spawn_blocking(move || me.tapped.attach(&me));
        attached.await.map_err(|e| e.to_string())?;
        self.advance(MirrorPhase::Connecting, MirrorPhase::Copying);
        tracing::info!(volume = %self.mirror.volume, %host, %address, "mirroring");
        for _ in 0..copy::AT_ONCE {
            let me = Arc::clone(self);
            self.spawn(async move { me.copy_all().await });
        }
        let me = Arc::clone(self);
        self.spawn(async move { me.measure().await });
        let me = Arc::clone(self);
        self.spawn(async move { me.ping().await });
        self.look_whether_in_sync();
        Ok(())
    }

    /// A connection that breaks while nothing is sent ends the mirror as well.
    fn watch(self: &Arc<Mirroring>, client: Arc<Client>) {
        let me = Arc::clone(self);
        self.spawn(async move {
            let why = client.ended().await;
            if !me.lock().leaving {
                me.fail(format!("the connection to server {} ended: {why}", me.mirror.host));
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> MirrorState {
        let state = self.lock();
        let left = state.map.left();
        MirrorState {
            mirror: self.mirror.clone(),
            phase: state.phase.clone(),
            done: Bytes(self.block.size() - left),
            left: Bytes(left),
            sent: Bytes(self.sent.load(Relaxed)),
            rate: Bytes(self.rate.load(Relaxed)),
        }
    }

    pub fn phase(&self) -> MirrorPhase {
        self.lock().phase.clone()
    }

    pub fn set_limit(&self, limit: Option<Bytes>) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.set_rate(limit.map(Bytes::get), self.begin.elapsed());
        drop(bucket);
        self.limit.notify_waiters();
    }

    /// Charges, and waits until it is paid for.
    async fn pay(&self, bytes: u64) {
        let mut debt = self.charge(bytes);
        while !debt.is_zero() {
            let changed = self.limit.notified();
            // The limit may be another one by then.
            let _ = tokio::time::timeout(debt, changed).await;
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            debt = bucket.debt(self.begin.elapsed());
        }
    }

    /// Counts bytes that go over; how long the copy is to wait before it sends them.
    fn charge(&self, bytes: u64) -> Duration {
        self.sent.fetch_add(bytes, Relaxed);
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(bytes, self.begin.elapsed())
    }

    /// Asks for nothing, so that a server that has fallen silent is noticed.
    async fn ping(self: &Arc<Mirroring>) {
        loop {
            tokio::time::sleep(PING_EACH).await;
            let clients = self.lock().clients.clone();
            let pings = clients.iter().map(|client| client.is_zero(0, 512));
            let pinged = futures::future::try_join_all(pings).await;
            let leaving = self.lock().leaving;
            if let Err(why) = pinged.map(drop)
                && !leaving
            {
                self.fail(format!("server {}: {why}", self.mirror.host));
            }
        }
    }

    async fn measure(&self) {
        const EACH: Duration = Duration::from_millis(1000);
        let mut before = (Instant::now(), 0);
        loop {
            tokio::time::sleep(EACH).await;
            let now = (Instant::now(), self.sent.load(Relaxed));
            let rate = (now.1 - before.1) as f64 / (now.0 - before.0).as_secs_f64();
            self.rate.store(rate as u64, Relaxed);
            before = now;
        }
    }

    /// The place in the order, taken now.
    fn ask(self: &Arc<Mirroring>, parts: Vec<Range<u64>>) -> Turn {
        let mut state = self.lock();
        let (ticket, go) = state.order.ask(parts);
        let wait = (!go).then(|| {
            let (send, receive) = oneshot::channel();
            state.waiting.insert(ticket, send);
            receive
        });
        Turn { mirroring: Arc::clone(self), ticket, wait }
    }

    /// The connection for a part of the disk, while there is one.
    fn client(&self, offset: u64) -> Option<Arc<Client>> {
        let state = self.lock();
        let count = state.clients.len() as u64;
        let n = (offset / map::CHUNK).checked_rem(count)?;
        state.clients.get(n as usize).cloned()
    }

    /// From one phase to the next, unless it is another one already.
    fn advance(&self, from: MirrorPhase, to: MirrorPhase) -> bool {
        let mut state = self.lock();
        let moves = state.phase == from;
        if moves {
            state.phase = to;
        }
        moves
    }

    fn look_whether_in_sync(self: &Arc<Mirroring>) {
        let complete = {
            let mut state = self.lock();
            let complete = state.map.complete() && state.phase == MirrorPhase::Copying;
            if complete {
                state.phase = MirrorPhase::InSync;
            }
            complete
        };
        if complete {
            tracing::info!(volume = %self.mirror.volume, took = ?self.begin.elapsed(),
                sent = self.sent.load(Relaxed), "in sync");
            let me = Arc::clone(self);
            self.runtime.spawn_blocking(move || me.tapped.in_sync());
        }
    }

    /// Both sides may differ there.
    fn spoil(&self, range: &Range<u64>) {
        let mut state = self.lock();
        state.map.spoil(range);
        if state.phase == MirrorPhase::InSync && !state.map.complete() {
            state.phase = MirrorPhase::Copying;
        }
        drop(state);
        self.more.notify_waiters();
    }

    /// The other side is of no use any more.
    fn fail(self: &Arc<Mirroring>, why: impl Into<Failure>) {
        self.end(why.into().into());
    }

    /// What the other side has is old: the guest goes on here.
    pub fn outdated(&self) {
        let mut state = self.lock();
        if state.phase == MirrorPhase::Finished {
            let reason = "the guest goes on here after the mirror had been finished".into();
            state.phase = MirrorPhase::Failed { reason, full: false };
        }
    }

    /// The other side has no room for what the disk has become.
    pub fn outgrown(self: &Arc<Mirroring>) {
        self.fail("the disk has grown since the mirror began");
    }

    /// Ends, unless it has ended. The connections break off, so the other side knows
    /// that it has not got everything.
    fn end(self: &Arc<Mirroring>, phase: MirrorPhase) {
        let clients = {
            let mut state = self.lock();
            if state.phase.has_ended() {
                return;
            }
            tracing::warn!(volume = %self.mirror.volume, ?phase, "the mirror has ended");
            state.phase = phase;
            std::mem::take(&mut state.clients)
        };
        self.stop.cancel();
        clients.iter().for_each(|c| c.abort("the mirror has ended"));
        let me = Arc::clone(self);
        self.runtime.spawn_blocking(move || me.tapped.detach());
    }

    /// Gives up. Nothing of it uses the disk when it returns. Not on the runtime.
    pub fn stop(self: &Arc<Mirroring>) {
        self.end(MirrorPhase::Stopped);
        self.tasks.close();
        self.runtime.block_on(self.tasks.wait());
    }

    /// The device has stopped: the other side gets to know that it has everything.
    /// True if nothing of the mirror uses the disk any more. Not on the runtime.
    pub fn finish(self: &Arc<Mirroring>) -> bool {
        let clients = {
            let state = self.lock();
            match state.phase {
                MirrorPhase::InSync => state.clients.clone(),
                ref phase => return phase.has_ended(),
            }
        };
        let begin = Instant::now();
        match self.take_leave(&clients) {
            Err(why) => self.fail(why),
            Ok(()) if self.advance(MirrorPhase::InSync, MirrorPhase::Finished) => {
                tracing::info!(volume = %self.mirror.volume, took = ?begin.elapsed(),
                    "the mirror is finished");
                self.stop.cancel();
                self.lock().clients.clear();
                let me = Arc::clone(self);
                self.runtime.spawn_blocking(move || me.tapped.detach());
            }
            Ok(()) => {}
        }
        self.phase().has_ended()
    }

    /// The other side has everything on its disk and knows it when this returns.
    fn take_leave(&self, clients: &[Arc<Client>]) -> Result<(), Failure> {
        if let Some(first) = clients.first() {
            self.runtime.block_on(first.flush())?;
        }
        self.lock().leaving = true;
        self.tapped.leaving()?;
        let all = futures::future::try_join_all(clients.iter().map(|c| c.leave()));
        Ok(self.runtime.block_on(all).map(drop)?)
    }
}
