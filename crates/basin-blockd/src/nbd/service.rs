//! The runtime, the certificates and the listener: what there is while this server
//! speaks to others.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

use super::grants::Grants;
use super::listener::{Identities, accept};
use super::tls::Identity;
use crate::control::{ErrorCode, Fabric};
use crate::io::DiskError;

/// Encryption takes the time; more than this would be at the cost of the guests.
const THREADS: usize = 2;
/// Blocking disk I/O.
const BLOCKING: usize = 32;

#[derive(Default)]
pub struct Service {
    pub grants: Arc<Grants>,
    live: Mutex<Option<Live>>,
    runtime: OnceLock<Runtime>,
}

struct Live {
    listen: SocketAddr,
    address: SocketAddr,
    identity: Identities,
    stop: CancellationToken,
}

impl Service {
    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> Result<Handle, DiskError> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime.handle().clone());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING)
            .thread_name("fabric")
            .enable_all()
            .build()
            .map_err(|e| DiskError::new(ErrorCode::Io, format!("cannot start threads: {e}")))?;
        let handle = self.runtime.get_or_init(|| runtime).handle().clone();
        self.grants.set_runtime(handle.clone());
        Ok(handle)
    }

    /// See [`crate::control::Request::Fabric`].
    pub fn set(&self, fabric: Option<&Fabric>) -> Result<(), DiskError> {
        let mut live = self.lock();
        let Some(fabric) = fabric else {
            if let Some(live) = live.take() {
                live.stop.cancel();
            }
            return Ok(());
        };
        let identity = Arc::new(Identity::load(fabric)?);
        if let Some(live) = live.as_ref().filter(|l| l.listen == fabric.listen) {
            *live.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
            return Ok(());
        }
        let runtime = self.runtime()?;
        let listen = fabric.listen;
        let failed = |e| {
            let message = format!("cannot listen on {listen}: {e}");
            DiskError::new(ErrorCode::Io, message)
        };
        if let Some(older) = live.take() {
            older.stop.cancel();
        }
        let listener = runtime.block_on(TcpListener::bind(listen)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, identity) = (CancellationToken::new(), Arc::new(RwLock::new(identity)));
        let accepting = accept(listener, Arc::clone(&identity), Arc::clone(&self.grants));
        let until = stop.clone();
        runtime.spawn(async move { until.run_until_cancelled(accepting).await });
        tracing::info!(%address, "serving NBD");
        *live = Some(Live { listen, address, identity, stop });
        Ok(())
    }

    /// Where others find this server.
    pub fn address(&self) -> Option<SocketAddr> {
        self.lock().as_ref().map(|l| l.address)
    }

    /// What is needed to speak to others.
    pub fn outgoing(&self) -> Result<(Handle, Arc<Identity>), DiskError> {
        let live = self.lock();
        let Some(live) = &*live else {
            let message = "blockd has no certificates for other servers yet";
            return Err(DiskError::new(ErrorCode::Invalid, message));
        };
        let identity = live.identity.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((self.runtime()?, identity))
    }
}
