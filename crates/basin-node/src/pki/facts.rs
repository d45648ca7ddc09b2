//! Pure. What Basin reads off a certificate: whose it is, and how long it is good.

use basin_model::HostId;
use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{Fingerprint, PkiError};

const PREFIX: &str = "basin:host:";

/// The server that a verified certificate belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity(pub HostId);

/// What is in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// None: not a server's certificate of any cluster.
    pub host: Option<HostId>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub is_ca: bool,
    pub fingerprint: Fingerprint,
    /// Serial number, in hex.
    pub serial: String,
}

/// The id as it stands in a certificate.
pub fn host_uri(host: HostId) -> String {
    format!("{PREFIX}{host}")
}

/// The id in a URI; None for a URI that is about something else.
pub fn host_of_uri(uri: &str) -> Option<HostId> {
    uri.strip_prefix(PREFIX)?.parse().ok()
}

/// Reads the first certificate of a chain in PEM.
pub fn facts_of_chain(pem: &str) -> Result<Facts, PkiError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| PkiError::unreadable("the certificate", format!("{e:?}")))?;
    facts(&der)
}

/// Reads a certificate. Says nothing about whether it is to be trusted.
pub fn facts(der: &[u8]) -> Result<Facts, PkiError> {
    let unreadable = |why: String| PkiError::unreadable("the certificate", why);
    let (rest, x509) = X509Certificate::from_der(der).map_err(|e| unreadable(e.to_string()))?;
    if !rest.is_empty() {
        return Err(unreadable("there is something after its end".to_owned()));
    }
    let names = x509.subject_alternative_name().map_err(|e| unreadable(e.to_string()))?;
    let names = names.map(|ext| ext.value.general_names.as_slice()).unwrap_or_default();
    let mut hosts = Vec::new();
    for name in names {
        if let GeneralName::URI(uri) = name
            && uri.starts_with(PREFIX)
        {
            let host = host_of_uri(uri);
            hosts.push(host.ok_or_else(|| unreadable(format!("'{uri}' is no server's id")))?);
        }
    }
    if hosts.len() > 1 {
        return Err(unreadable("it names several servers".to_owned()));
    }
    let time = |at: x509_parser::time::ASN1Time| {
        Timestamp::from_second(at.timestamp()).map_err(|e| unreadable(e.to_string()))
    };
    Ok(Facts {
        host: hosts.pop(),
        not_before: time(x509.validity().not_before)?,
        not_after: time(x509.validity().not_after)?,
        is_ca: x509.is_ca(),
        fingerprint: Fingerprint::of(der),
        serial: x509.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}
