//! Checks of the other end's certificate: signed by a trusted CA, its time right, of
//! a server that belongs to the cluster and, when dialling, of the one that was dialled.

use std::fmt;
use std::sync::Arc;

use basin_model::HostId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::{Distrust, Fingerprint, PkiError, facts, provider};

/// Whether a server belongs to the cluster, by its id.
pub type Admit = Arc<dyn Fn(HostId) -> bool + Send + Sync>;

/// Whom a dialler expects.
pub(super) enum Expect {
    /// This server, by one of these CAs.
    Host { host: HostId, roots: Arc<RootCertStore>, admit: Admit },
    /// Any server whose chain leads to this CA.
    Pinned(Fingerprint),
}

/// For the dialling end.
pub(super) struct ServerCheck {
    expect: Expect,
    provider: Arc<CryptoProvider>,
}

impl ServerCheck {
    pub(super) fn new(expect: Expect) -> Arc<ServerCheck> {
        Arc::new(ServerCheck { expect, provider: provider() })
    }
}

impl fmt::Debug for ServerCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerCheck")
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned;
        let roots = match &self.expect {
            Expect::Host { roots, .. } => &**roots,
            Expect::Pinned(pin) => {
                pinned = pinned_root(*pin, chain)?;
                &pinned
            }
        };
        let parsed = rustls::server::ParsedCertificate::try_from(own)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, chain, now, algorithms)?;
        let found = host_of(own)?;
        match &self.expect {
            Expect::Host { host, .. } if *host != found => {
                Err(Distrust::OtherHost { expected: *host, found }.into_rustls())
            }
            Expect::Host { admit, .. } if !admit(found) => Err(Distrust::Removed.into_rustls()),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The CA of the token, which the server has to show: the token has its hash only.
fn pinned_root(pin: Fingerprint, chain: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
    let ca = chain.iter().find(|der| Fingerprint::of(der) == pin);
    let ca = ca.ok_or_else(|| Distrust::NotPinned(pin).into_rustls())?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(roots)
}

fn host_of(own: &CertificateDer<'_>) -> Result<HostId, Error> {
    let facts = facts(own).map_err(|e| Distrust::Unreadable(e.to_string()).into_rustls())?;
    facts.host.ok_or_else(|| Distrust::NoHost.into_rustls())
}

/// For the listening end: people come without a certificate, servers with theirs.
pub(super) struct ClientCheck {
    chain: Arc<dyn ClientCertVerifier>,
    admit: Admit,
}

impl ClientCheck {
    pub(super) fn new(roots: Arc<RootCertStore>, admit: Admit) -> Result<Arc<Self>, PkiError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| PkiError::unreadable("the CA bundle", e))?;
        Ok(Arc::new(ClientCheck { chain, admit }))
    }
}

impl fmt::Debug for ClientCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCheck")
    }
}

impl ClientCertVerifier for ClientCheck {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    // Browsers ask their user for a certificate only if they have one of these CAs.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(own, chain, now)?;
        let host = host_of(own)?;
        if (self.admit)(host) { Ok(verified) } else { Err(Distrust::Removed.into_rustls()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
