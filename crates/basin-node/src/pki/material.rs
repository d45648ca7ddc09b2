//! Pure. What a server shows and whom it trusts: certificate chain, key, CA bundle.

use std::fmt;
use std::sync::Arc;

use basin_model::HostId;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::{Bundle, Facts, PkiError, facts, provider};

/// A server's certificate with its key, checked to belong together, and the CAs.
#[derive(Clone)]
pub struct Material {
    chain_pem: String,
    key_pem: String,
    bundle: Bundle,
    facts: Facts,
    host: HostId,
    pub(super) certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Material({}, until {})", self.host, self.facts.not_after)
    }
}

impl Material {
    /// `chain_pem`: the server's own certificate first, then the CA that signed it.
    pub fn parse(chain_pem: &str, key_pem: &str, bundle_pem: &str) -> Result<Material, PkiError> {
        let unreadable = |what: &str, why: String| PkiError::unreadable(what, why);
        let what = "the server's certificate";
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect();
        let chain = chain.map_err(|e| unreadable(what, format!("{e:?}")))?;
        let own = chain.first().ok_or_else(|| unreadable(what, "it is not there".to_owned()))?;
        let facts = facts(own)?;
        let Some(host) = facts.host else {
            return Err(unreadable(what, "it names no server of Basin".to_owned()));
        };
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|e| unreadable("the server's key", format!("{e:?}")))?;
        let certified = CertifiedKey::from_der(chain.clone(), key, &provider())
            .map_err(|e| unreadable("the server's key", e.to_string()))?;
        Ok(Material {
            chain_pem: chain.iter().map(|der| super::bundle::pem("CERTIFICATE", der)).collect(),
            key_pem: key_pem.to_owned(),
            bundle: Bundle::parse(bundle_pem)?,
            facts,
            host,
            certified: Arc::new(certified),
        })
    }

    /// The same certificate, other trust.
    pub fn trusting(&self, bundle: Bundle) -> Material {
        Material { bundle, ..self.clone() }
    }

    pub fn host(&self) -> HostId {
        self.host
    }

    /// How long it is good, among others.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}
