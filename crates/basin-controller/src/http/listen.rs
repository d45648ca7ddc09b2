//! Where the API is served: the server's own socket for root, HTTPS for all others.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use basin_node::remote;
pub use basin_node::remote::Tls;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::auth::FromLocalRoot;

/// How long open requests have to end when the daemon does.
const GRACE: Duration = Duration::from_secs(3);

/// Binds the unix socket. A socket that a dead daemon left is replaced: the lock
/// on the state directory says that there is no other one.
pub fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => debug!(path = %path.display(), "removed the socket of an earlier daemon"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => bail!("cannot replace the socket {}: {e}", path.display()),
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot listen on the socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot make {} root's only", path.display()))?;
    Ok(listener)
}

/// Serves root on the unix socket until the token is cancelled.
pub async fn serve_socket(listener: UnixListener, router: Router, stop: CancellationToken) {
    let router = router.layer(axum::Extension(FromLocalRoot));
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) if is_root(&stream) => {
                let service = TowerToHyperService::new(router.clone());
                let builder = Builder::new(TokioExecutor::new());
                let connection = builder
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .into_owned();
                let watched = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(e) = watched.await {
                        debug!("a connection on the socket ended: {e}");
                    }
                });
            }
            Ok(_) => warn!("somebody who is not root was refused on the socket"),
            Err(e) => {
                // Out of descriptors, most likely: others may close some.
                warn!("cannot accept on the socket: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
}

fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

/// Files of the server's certificate.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    /// Those in the directory; a self-signed pair is made when there is none.
    pub fn ensure(directory: &Path, names: Vec<String>) -> anyhow::Result<TlsFiles> {
        let files = TlsFiles {
            certificate: directory.join("server.pem"),
            key: directory.join("server.key"),
        };
        if files.certificate.exists() && files.key.exists() {
            return Ok(files);
        }
        std::fs::create_dir_all(directory)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
        let pair =
            rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
        write_private(&files.key, pair.signing_key.serialize_pem().as_bytes())?;
        write_private(&files.certificate, pair.cert.pem().as_bytes())?;
        info!(path = %files.certificate.display(), "made a certificate for HTTPS");
        Ok(files)
    }
}

impl TlsFiles {
    /// What is shown to those who connect, of a server that belongs to no cluster.
    pub fn load(&self) -> anyhow::Result<Tls> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        Tls::fixed(&read(&self.certificate)?, &read(&self.key)?)
            .map_err(anyhow::Error::msg)
            .context("the certificate for HTTPS cannot be used")
    }
}

/// All or nothing, for root's eyes only.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

/// Binds the HTTPS port, so that a port in use is known before anything starts.
pub fn bind_https(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).with_context(|| {
        format!(
            "cannot listen on {address}: is it another program's? '--listen' chooses another \
             address, '--listen none' does without"
        )
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves HTTPS until the token is cancelled: people by token, and, in a cluster,
/// servers by certificate.
pub async fn serve_https(
    listener: std::net::TcpListener,
    tls: Tls,
    router: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("HTTPS ended")?;
    remote::serve(listener, tls, router, stop, GRACE).await;
    Ok(())
}
