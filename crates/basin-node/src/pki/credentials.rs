//! The certificate and trust in force, replaced at run time: connections that are
//! open go on, new ones use what is new.

use std::sync::{Arc, PoisonError, RwLock};

use basin_model::HostId;
use jiff::Timestamp;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::sync::watch;

use super::verify::{ClientCheck, Expect, ServerCheck};
use super::{Fingerprint, Material, PkiError, provider};

pub use super::verify::Admit;

/// What [`Credentials`] hold at one time.
struct Current {
    material: Material,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
}

/// A server's identity towards the others, and its trust in them. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    host: HostId,
    current: RwLock<Arc<Current>>,
    admit: Admit,
    clock: Arc<dyn TimeProvider>,
    version: watch::Sender<u64>,
}

impl Credentials {
    /// `admit` says which servers belong to the cluster; it is asked at every
    /// connection and now and then while one lasts.
    pub fn new(material: Material, admit: Admit) -> Result<Credentials, PkiError> {
        Credentials::with_clock(material, admit, Arc::new(DefaultTimeProvider))
    }

    /// As [`Credentials::new`], by another clock.
    pub fn with_clock(
        material: Material,
        admit: Admit,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Credentials, PkiError> {
        let host = material.host();
        let current = RwLock::new(Arc::new(current(material, &admit, &clock)?));
        let version = watch::Sender::new(0);
        Ok(Credentials(Arc::new(Inner { host, current, admit, clock, version })))
    }

    /// From now on this certificate and this trust. Another server's is refused.
    pub fn replace(&self, material: Material) -> Result<(), PkiError> {
        if material.host() != self.host() {
            let (found, own) = (material.host(), self.host());
            let why = format!("it is that of server {found}, and this is server {own}");
            return Err(PkiError::unreadable("the server's certificate", why));
        }
        let new = Arc::new(current(material, &self.0.admit, &self.0.clock)?);
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.0.version.send_modify(|version| *version += 1);
        Ok(())
    }

    /// This server.
    pub fn host(&self) -> HostId {
        self.0.host
    }

    pub fn admits(&self, host: HostId) -> bool {
        (self.0.admit)(host)
    }

    pub fn material(&self) -> Material {
        self.current().material.clone()
    }

    /// Until when others accept this server's certificate.
    pub fn expires(&self) -> Timestamp {
        self.current().material.facts().not_after
    }

    /// Grows with every [`Credentials::replace`].
    pub fn version(&self) -> u64 {
        *self.0.version.borrow()
    }

    /// Woken at every [`Credentials::replace`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// For the next connection that is accepted. People and servers may come.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// For dialling that server; `protocols` as ALPN names them.
    pub fn client_config(
        &self,
        host: HostId,
        protocols: &[&str],
    ) -> Result<Arc<ClientConfig>, PkiError> {
        let current = self.current();
        let (roots, admit) = (current.roots.clone(), self.0.admit.clone());
        let own = Some(current.material.certified.clone());
        client(Expect::Host { host, roots, admit }, own, protocols, self.0.clock.clone())
    }

    fn current(&self) -> Arc<Current> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// For dialling a cluster that this server does not belong to yet: any of its
/// servers, if its certificate leads to the CA with this hash.
pub fn pinned_client(pin: Fingerprint, protocols: &[&str]) -> Result<Arc<ClientConfig>, PkiError> {
    client(Expect::Pinned(pin), None, protocols, Arc::new(DefaultTimeProvider))
}

fn current(
    material: Material,
    admit: &Admit,
    clock: &Arc<dyn TimeProvider>,
) -> Result<Current, PkiError> {
    let roots = Arc::new(material.bundle().roots()?);
    let check = ClientCheck::new(roots.clone(), admit.clone())?;
    let mut server = ServerConfig::builder_with_details(provider(), clock.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(check)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(material.certified.clone())));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would not ask whether the server still belongs to the cluster.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Current { material, roots, server: Arc::new(server) })
}

fn client(
    expect: Expect,
    own: Option<Arc<CertifiedKey>>,
    protocols: &[&str],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(ServerCheck::new(expect));
    let mut config = match own {
        Some(own) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn unusable(error: rustls::Error) -> PkiError {
    PkiError::unreadable("the server's certificate", error)
}

/// For a server that belongs to no cluster: nobody is asked for a certificate.
pub fn fixed_server(chain_pem: &str, key_pem: &str) -> Result<Arc<ServerConfig>, PkiError> {
    let unreadable = |e| PkiError::unreadable("the certificate for HTTPS", format!("{e:?}"));
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(unreadable)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain.map_err(unreadable)?, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
