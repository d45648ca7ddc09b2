//! Takes connections, as many as are good for the server.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::grants::Grants;
use super::negotiate::{negotiate, start_tls};
use super::session::transmit;
use super::tls::Identity;

/// The certificates at the moment.
pub type Identities = Arc<RwLock<Arc<Identity>>>;

/// From the first byte to the first request.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that have not come so far, in all and of one address.
const HANDSHAKES: usize = 128;
const HANDSHAKES_EACH: usize = 16;

pub async fn accept(listener: TcpListener, identity: Identities, grants: Arc<Grants>) {
    let waiting = Arc::new(Waiting::default());
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "NBD");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(turn) = waiting.enter(peer.ip()) else {
            tracing::debug!(%peer, "too many NBD connections at once");
            continue;
        };
        let identity = identity.read().unwrap_or_else(PoisonError::into_inner).clone();
        let grants = Arc::clone(&grants);
        tokio::spawn(async move {
            if let Err(why) = converse(stream, peer, turn, &identity, &grants).await {
                tracing::debug!(%peer, why, "NBD connection ended");
            }
        });
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    turn: Turn,
    identity: &Identity,
    grants: &Grants,
) -> Result<(), String> {
    keep_alive(&stream).map_err(|e| e.to_string())?;
    let handshake = async {
        let Some((mut stream, host)) = start_tls(stream, identity).await? else {
            return Ok(None);
        };
        let agreed = negotiate(&mut stream, host, grants).await?;
        Ok::<_, String>(agreed.map(|agreed| (stream, agreed)))
    };
    let agreed = timeout(HANDSHAKE_WITHIN, handshake).await.map_err(|_| "took too long")??;
    drop(turn);
    match agreed {
        Some((stream, agreed)) => {
            tracing::debug!(%peer, volume = %agreed.granted.grant.volume, "NBD client");
            transmit(stream, agreed).await
        }
        None => Ok(()),
    }
}

/// A peer that vanished is noticed within a minute.
pub fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &20)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &10)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

/// Handshakes under way.
#[derive(Default)]
struct Waiting(Mutex<HashMap<IpAddr, usize>>);

struct Turn {
    waiting: Arc<Waiting>,
    address: IpAddr,
}

impl Waiting {
    fn enter(self: &Arc<Waiting>, address: IpAddr) -> Option<Turn> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= HANDSHAKES {
            return None;
        }
        let count = counts.entry(address).or_default();
        if *count >= HANDSHAKES_EACH {
            return None;
        }
        *count += 1;
        Some(Turn { waiting: Arc::clone(self), address })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut counts = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
