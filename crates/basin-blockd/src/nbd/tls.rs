//! TLS between servers: the cluster's CA signs all, a certificate says which server
//! it is by the URI `basin:host:ID`.

use std::path::Path;
use std::sync::Arc;

use basin_model::HostId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::control::{ErrorCode, Fabric};
use crate::io::DiskError;

/// What a certificate of a server has as a name.
const URI: &str = "basin:host:";

/// This server's certificates, as read from their files.
pub struct Identity {
    pub server: Arc<ServerConfig>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    pub fn load(fabric: &Fabric) -> Result<Identity, DiskError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for ca in read_certificates(&fabric.ca)? {
            roots.add(ca).map_err(|e| unusable(&fabric.ca, &e))?;
        }
        let roots = Arc::new(roots);
        let chain = read_certificates(&fabric.cert)?;
        let key =
            PrivateKeyDer::from_pem_file(&fabric.key).map_err(|e| unusable(&fabric.key, &e))?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|e| unusable(&fabric.ca, &e))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&fabric.cert, &e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|e| unusable(&fabric.cert, &e))?;
        // Each connection shows its certificate anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Identity { server: Arc::new(server), roots, chain, key, provider })
    }

    /// For a connection to one server, and no other.
    pub fn client(&self, host: HostId) -> Result<Arc<ClientConfig>, Error> {
        let expect =
            Expect { host, roots: Arc::clone(&self.roots), provider: Arc::clone(&self.provider) };
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(expect))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(Arc::new(config))
    }
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> DiskError {
    DiskError::new(ErrorCode::Invalid, format!("{} cannot be used: {why}", path.display()))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, DiskError> {
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|e| unusable(path, &e))?.collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(unusable(path, &"there is no certificate in it")),
        Err(e) => Err(unusable(path, &e)),
    }
}

/// Which server a certificate, whose chain has been verified, is of.
pub fn host_of(certificate: &CertificateDer<'_>) -> Option<HostId> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_uri_names().find_map(|uri| uri.strip_prefix(URI)?.parse().ok())
}

/// Believes one server. Its address does not matter: it may change.
#[derive(Debug)]
struct Expect {
    host: HostId,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Expect {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        match host_of(certificate) {
            Some(host) if host == self.host => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
