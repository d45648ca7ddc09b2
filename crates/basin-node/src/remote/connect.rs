//! One connection to another server: TCP that notices a cut link, TLS both ways.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{
    KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::trouble::Failure;

/// For TCP, and again for TLS.
const WITHIN: Duration = Duration::from_secs(3);

/// A link that was cut says nothing; the kernel asks now and then.
const ASK_EVERY_SECONDS: u32 = 1;
const ASK_TIMES: u32 = 3;
const SILENT_MS: u32 = 5000;

/// Connects to `HOST:PORT`.
pub async fn connect(
    authority: &str,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Failure> {
    let tcp = within(TcpStream::connect(authority)).await?;
    // Both only make it quicker.
    let _ = tcp.set_nodelay(true);
    let _ = notice_cut(&tcp);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|e| Failure::Unreachable(e.to_string()))?;
    within(TlsConnector::from(config).connect(name, tcp)).await
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(WITHIN, work).await {
        Ok(result) => result.map_err(|e| Failure::of_io(&e)),
        Err(_) => Err(Failure::Unreachable(format!(
            "it does not answer within {} seconds",
            WITHIN.as_secs()
        ))),
    }
}

/// Makes the kernel end a connection whose other end is silent for five seconds.
pub fn notice_cut(tcp: &TcpStream) -> nix::Result<()> {
    setsockopt(tcp, KeepAlive, &true)?;
    setsockopt(tcp, TcpKeepIdle, &(2 * ASK_EVERY_SECONDS))?;
    setsockopt(tcp, TcpKeepInterval, &ASK_EVERY_SECONDS)?;
    setsockopt(tcp, TcpKeepCount, &ASK_TIMES)?;
    setsockopt(tcp, TcpUserTimeout, &SILENT_MS)
}
