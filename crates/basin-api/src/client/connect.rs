//! Where the server is and how to get there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::ClientError;

/// The default place of a server's socket.
pub const DEFAULT_SOCKET: &str = "/run/basin/api.sock";

/// In answers that may be old: by so many seconds.
pub const STATE_AGE: &str = "basin-state-age";

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// For how long a wait goes on while the server cannot be reached: enough for
/// a restart or an upgrade of the daemon.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which server to talk to, as flags or the environment say. A URL wins over a socket.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub socket: Option<PathBuf>,
    pub url: Option<String>,
    pub token: Option<String>,
    /// A PEM file with the certificates to trust.
    pub ca: Option<PathBuf>,
}

impl Settings {
    /// `BASIN_SOCKET`, `BASIN_URL`, `BASIN_TOKEN`, `BASIN_CA`.
    pub fn from_env() -> Settings {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Settings {
            socket: var("BASIN_SOCKET").map(PathBuf::from),
            url: var("BASIN_URL"),
            token: var("BASIN_TOKEN"),
            ca: var("BASIN_CA").map(PathBuf::from),
        }
    }
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) http: reqwest::Client,
    pub(super) base: Url,
    /// The server's address in words, for messages.
    pub(super) endpoint: String,
    pub(super) patience: Duration,
    local: bool,
    /// See [`Client::state_age`].
    pub(super) oldest: Arc<Mutex<Option<Duration>>>,
}

impl Client {
    /// The server that `settings` name; the one on this machine when they name none.
    pub fn new(settings: &Settings) -> Result<Client, ClientError> {
        match &settings.url {
            None => Client::local(settings.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET))),
            Some(url) => {
                let pem = settings.ca.as_deref().map(read_ca).transpose()?;
                Client::remote(url, settings.token.as_deref(), pem.as_deref())
            }
        }
    }

    /// As the environment says; see [`Settings::from_env`].
    pub fn from_env() -> Result<Client, ClientError> {
        Client::new(&Settings::from_env())
    }

    /// The server on this machine, by its unix socket.
    pub fn local(socket: &Path) -> Result<Client, ClientError> {
        let http = builder().no_proxy().unix_socket(socket);
        // The URL's host only fills the Host header.
        let base = parse_url("http://localhost/")?;
        Client::build(http, base, socket.display().to_string(), true)
    }

    /// A server elsewhere, such as `https://server:7443`. Trusts the certificates in
    /// `ca_pem`, or those of the operating system when there are none.
    pub fn remote(
        url: &str,
        token: Option<&str>,
        ca_pem: Option<&[u8]>,
    ) -> Result<Client, ClientError> {
        let base = parse_url(url)?;
        let mut http = builder();
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                ClientError::local("the token has characters that no token has", "copy it anew")
            })?;
            value.set_sensitive(true);
            http = http.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
        }
        if let Some(pem) = ca_pem {
            let bad = |why: String| {
                ClientError::local(
                    format!("the CA file is not a PEM file of certificates: {why}"),
                    "give --ca the server's ca.pem",
                )
            };
            let certificates =
                reqwest::Certificate::from_pem_bundle(pem).map_err(|e| bad(e.to_string()))?;
            if certificates.is_empty() {
                return Err(bad("it has no certificate".to_owned()));
            }
            http = http.tls_certs_only(certificates);
        }
        let endpoint = base.as_str().trim_end_matches('/').to_owned();
        Client::build(http, base, endpoint, false)
    }

    fn build(
        http: reqwest::ClientBuilder,
        base: Url,
        endpoint: String,
        local: bool,
    ) -> Result<Client, ClientError> {
        let http = http.build().map_err(|e| {
            ClientError::local(format!("cannot set up a connection to {endpoint}: {e}"), "")
        })?;
        Ok(Client { http, base, endpoint, patience: PATIENCE, local, oldest: Arc::default() })
    }

    /// For how long waits and event streams try to reach a server that went away.
    pub fn with_patience(mut self, patience: Duration) -> Client {
        self.patience = patience;
        self
    }

    /// Whether the server shares this machine's files.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// How old the oldest answer so far may be, when the server that gave it did not reach
    /// the servers that keep the state.
    pub fn state_age(&self) -> Option<Duration> {
        *self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_age(&self, headers: &HeaderMap) {
        let seconds = headers.get(STATE_AGE).and_then(|v| v.to_str().ok()?.parse().ok());
        if let Some(seconds) = seconds {
            let mut oldest = self.oldest.lock().unwrap_or_else(PoisonError::into_inner);
            *oldest = (*oldest).max(Some(Duration::from_secs(seconds)));
        }
    }

    /// The socket or the URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// HTTP/1.1 only: the console takes its connection over, which HTTP/2 cannot give.
fn builder() -> reqwest::ClientBuilder {
    // reqwest takes the process's provider; a second installation is refused, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("basin/", env!("CARGO_PKG_VERSION")))
}

fn parse_url(text: &str) -> Result<Url, ClientError> {
    let bad = |why: &str| {
        ClientError::local(
            format!("'{text}' is not the URL of a server: {why}"),
            "write it as https://SERVER:7443",
        )
    };
    let url = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
    match url.scheme() {
        "https" | "http" if url.has_host() => Ok(url),
        "https" | "http" => Err(bad("it names no server")),
        _ => Err(bad("it does not begin with https://")),
    }
}

fn read_ca(path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|e| {
        ClientError::local(
            format!("cannot read the CA file {}: {e}", path.display()),
            "give --ca the server's ca.pem",
        )
    })
}
