//! Requests for certificates: what a server asks for, and whether it may have it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use basin_model::{HostId, Name};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

use super::PkiError;
use super::facts::host_uri;

/// A request is a key and a few names.
const MAX: usize = 16 << 10;

/// What a server's certificate says. The signer gets it from the cluster's records,
/// never from the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub host: HostId,
    pub name: Name,
    /// Where others reach the server.
    pub addresses: Vec<IpAddr>,
}

impl Subject {
    /// The names in the certificate. People on the server itself call it `localhost`.
    fn names(&self) -> Result<Vec<SanType>, PkiError> {
        let text =
            |text: String| text.try_into().map_err(|e: rcgen::Error| unmade("a certificate", e));
        let mut names = vec![
            SanType::URI(text(host_uri(self.host))?),
            SanType::DnsName(text(self.name.to_string())?),
            SanType::DnsName(text("localhost".to_owned())?),
        ];
        let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        for address in self.addresses.iter().copied().chain(local) {
            let name = SanType::IpAddress(address);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// A certificate without its times and signature.
    pub(super) fn params(&self) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "Basin");
        params.distinguished_name.push(DnType::CommonName, self.name.to_string());
        params.subject_alt_names = self.names()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes();
        Ok(params)
    }
}

fn purposes() -> Vec<ExtendedKeyUsagePurpose> {
    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
}

/// Makes a fresh key and a request for its certificate; both as PEM, the key first.
pub fn request(subject: &Subject) -> Result<(String, String), PkiError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| unmade("a key", e))?;
    let mut params = subject.params()?;
    params.is_ca = IsCa::NoCa;
    let request = params.serialize_request(&key).map_err(|e| unmade("a request", e))?;
    Ok((key.serialize_pem(), request.pem().map_err(|e| unmade("a request", e))?))
}

/// Reads a request and holds it against what the server may have. Its signature
/// proves that the asker has the key.
pub(super) fn check(
    pem: &str,
    subject: &Subject,
) -> Result<CertificateSigningRequestParams, PkiError> {
    let refused = |why: String| PkiError::Refused(why);
    if pem.len() > MAX {
        return Err(refused(format!("it is larger than {MAX} bytes")));
    }
    let request = CertificateSigningRequestParams::from_pem(pem).map_err(|e| match e {
        rcgen::Error::InvalidCertificationRequestSignature => {
            refused("its signature is not of its own key".to_owned())
        }
        e => refused(format!("it cannot be read ({e})")),
    })?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(refused("its key is not ECDSA P-256".to_owned()));
    }
    let asked = &request.params;
    if matches!(asked.is_ca, IsCa::Ca(_)) {
        return Err(refused("it asks for a CA's certificate".to_owned()));
    }
    let own = SanType::URI(host_uri(subject.host).try_into().map_err(|e| unmade("a name", e))?);
    if !asked.subject_alt_names.contains(&own) {
        return Err(refused(format!("it is not for server {}", subject.host)));
    }
    let allowed = subject.names()?;
    if let Some(other) = asked.subject_alt_names.iter().find(|name| !allowed.contains(name)) {
        return Err(refused(format!("it asks for {}, which is not this server's", words(other))));
    }
    if asked.extended_key_usages.iter().any(|usage| !purposes().contains(usage)) {
        return Err(refused("it asks for more than to speak TLS".to_owned()));
    }
    Ok(request)
}

fn words(name: &SanType) -> String {
    match name {
        SanType::IpAddress(address) => format!("address {address}"),
        SanType::DnsName(name) => format!("name '{name}'"),
        SanType::URI(uri) => format!("'{uri}'"),
        _ => "a name of another kind".to_owned(),
    }
}

pub(super) fn unmade(what: &'static str, why: impl std::fmt::Display) -> PkiError {
    PkiError::Unmade { what, why: why.to_string() }
}
