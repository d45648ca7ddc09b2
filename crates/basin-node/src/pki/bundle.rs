//! Pure. The CAs that the cluster trusts: one, or several while the CA is replaced.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{Fingerprint, PkiError, facts};

/// CA certificates, each once, in the order in which they were added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle(Vec<CertificateDer<'static>>);

impl Bundle {
    /// Reads a file of CA certificates. None at all, or one that is not a CA's, is refused.
    pub fn parse(pem: &str) -> Result<Bundle, PkiError> {
        let mut all: Vec<CertificateDer<'static>> = Vec::new();
        for item in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = item.map_err(|e| PkiError::unreadable("the CA bundle", format!("{e:?}")))?;
            if !facts(&der)?.is_ca {
                let why = "one of its certificates is not a CA's";
                return Err(PkiError::unreadable("the CA bundle", why));
            }
            if !all.contains(&der) {
                all.push(der);
            }
        }
        if all.is_empty() {
            return Err(PkiError::unreadable("the CA bundle", "no certificate is in it"));
        }
        Ok(Bundle(all))
    }

    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.0.iter().map(|der| Fingerprint::of(der)).collect()
    }

    pub fn contains(&self, ca: Fingerprint) -> bool {
        self.fingerprints().contains(&ca)
    }

    /// Both bundles' CAs: the first step of replacing a CA.
    pub fn with(&self, more: &Bundle) -> Bundle {
        let new = more.0.iter().filter(|der| !self.0.contains(der));
        Bundle(self.0.iter().chain(new).cloned().collect())
    }

    /// Without that CA: the last step, once no server's certificate is of it. The
    /// only one stays.
    pub fn without(&self, ca: Fingerprint) -> Result<Bundle, PkiError> {
        let left: Vec<_> =
            self.0.iter().filter(|der| Fingerprint::of(der) != ca).cloned().collect();
        if left.is_empty() {
            return Err(PkiError::Refused("nothing would be trusted without this CA".to_owned()));
        }
        Ok(Bundle(left))
    }

    pub fn pem(&self) -> String {
        self.0.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    pub(super) fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        for der in &self.0 {
            roots.add(der.clone()).map_err(|e| PkiError::unreadable("a CA's certificate", e))?;
        }
        Ok(roots)
    }
}

/// DER as PEM.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let unix = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), unix)
}
