//! A certificate that has expired is good for one thing: to show that a request for a new
//! one comes from who had it. The request is made with the same key, so that the answer
//! is of use to nobody else, and whoever overhears it cannot do anything with it.

use basin_model::HostId;
use jiff::Timestamp;
use rcgen::{CertificateParams, IsCa, KeyPair, PublicKeyData as _, SanType};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::facts::host_uri;
use super::request::unmade;
use super::{ClusterCa, Material, PkiError, facts, provider};

/// A request for a certificate of the key that there is, as PEM. What it is to say, the
/// signer knows from the cluster's records.
pub fn request_again(material: &Material) -> Result<String, PkiError> {
    let what = "a request";
    let key = KeyPair::from_pem(material.key_pem()).map_err(|e| unmade(what, e))?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::NoCa;
    let own = host_uri(material.host()).try_into().map_err(|e| unmade(what, e))?;
    params.subject_alt_names = vec![SanType::URI(own)];
    let request = params.serialize_request(&key).map_err(|e| unmade(what, e))?;
    request.pem().map_err(|e| unmade(what, e))
}

/// Whose certificate it was, if this CA made it for the key of the request. That the
/// request is signed with that key, [`ClusterCa::sign`] checks.
pub fn check_expired(
    ca: &ClusterCa,
    chain_pem: &str,
    csr_pem: &str,
    now: Timestamp,
) -> Result<HostId, PkiError> {
    let refused = |why: String| PkiError::Refused(why);
    let own = CertificateDer::from_pem_slice(chain_pem.as_bytes())
        .map_err(|e| refused(format!("the old certificate cannot be read ({e:?})")))?;
    let about = facts(&own)?;
    let host = about.host.ok_or_else(|| refused("the old certificate is no server's".into()))?;
    if about.not_before > now {
        return Err(refused(format!(
            "the old certificate is good from {} on: compare the servers' clocks",
            about.not_before
        )));
    }
    // As it was while it was good.
    let then = u64::try_from(about.not_before.as_second()).unwrap_or_default();
    let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(then));
    let roots = ca.bundle()?.roots()?;
    let parsed = rustls::server::ParsedCertificate::try_from(&own)
        .map_err(|e| refused(format!("the old certificate cannot be read ({e})")))?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], then, algorithms)
        .map_err(|e| refused(format!("the old certificate is not of this cluster's CA ({e})")))?;
    let csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|e| refused(format!("it cannot be read ({e})")))?;
    let (_, x509) = x509_parser::parse_x509_certificate(&own)
        .map_err(|e| refused(format!("the old certificate cannot be read ({e})")))?;
    if x509.public_key().raw != csr.public_key.subject_public_key_info() {
        return Err(refused("it is not of the old certificate's key".to_owned()));
    }
    Ok(host)
}
