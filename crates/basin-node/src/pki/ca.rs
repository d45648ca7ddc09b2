//! The cluster's certificate authority: one key, which signs servers' certificates.

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::bundle::pem;
use super::request::{self, Subject, unmade};
use super::{Bundle, Facts, Fingerprint, PkiError, facts};

/// As long as clocks may differ between servers when one joins, and again as much.
const BACKDATED: SignedDuration = SignedDuration::from_mins(10);
const CA_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3653);
/// How long a server's certificate is good, where nothing else was asked for.
pub const SERVER_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);

/// A CA with its key. Its key is the cluster's most precious secret.
pub struct ClusterCa {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    facts: Facts,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterCa({})", self.fingerprint())
    }
}

impl ClusterCa {
    /// Makes a CA. The name is for people; two CAs of the same name are still apart.
    pub fn create(name: &str, now: Timestamp) -> Result<ClusterCa, PkiError> {
        let what = "a CA";
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| unmade(what, e))?;
        let mut params = CertificateParams::default();
        let own = Fingerprint::of(&key.subject_public_key_info()).to_string();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "Basin");
        params.distinguished_name.push(DnType::CommonName, format!("{name} CA {}", &own[..8]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, now - BACKDATED, now + CA_LIFE);
        let certificate = params.self_signed(&key).map_err(|e| unmade(what, e))?;
        let certificate = certificate.der().clone();
        Ok(ClusterCa { facts: facts(&certificate)?, certificate, key })
    }

    /// The CA as it was kept. A key that is not the certificate's is refused.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<ClusterCa, PkiError> {
        let what = "the CA's certificate";
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| PkiError::unreadable(what, format!("{e:?}")))?;
        let key =
            KeyPair::from_pem(key_pem).map_err(|e| PkiError::unreadable("the CA's key", e))?;
        let facts = facts(&certificate)?;
        let (_, x509) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|e| PkiError::unreadable(what, e))?;
        if !facts.is_ca {
            return Err(PkiError::unreadable(what, "it is not a CA's"));
        }
        if x509.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::unreadable("the CA's key", "it is not the certificate's"));
        }
        Ok(ClusterCa { certificate, key, facts })
    }

    pub fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// What join tokens carry.
    pub fn fingerprint(&self) -> Fingerprint {
        self.facts.fingerprint
    }

    pub fn not_after(&self) -> Timestamp {
        self.facts.not_after
    }

    /// Trust in this CA alone.
    pub fn bundle(&self) -> Result<Bundle, PkiError> {
        Bundle::parse(&self.certificate_pem())
    }

    /// Signs a request, if it asks for no more than the subject may have. The answer
    /// is the chain as PEM: the server's certificate, then this CA's, which a joining
    /// server compares with its token.
    pub fn sign(
        &self,
        csr_pem: &str,
        subject: &Subject,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        self.sign_for(csr_pem, subject, SERVER_LIFE, now)
    }

    /// As [`ClusterCa::sign`], for so long.
    pub fn sign_for(
        &self,
        csr_pem: &str,
        subject: &Subject,
        life: SignedDuration,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        if now >= self.facts.not_after {
            let expired = self.facts.not_after;
            return Err(PkiError::Refused(format!("the cluster's CA has expired on {expired}")));
        }
        let request = request::check(csr_pem, subject)?;
        let mut params = subject.params()?;
        params.use_authority_key_identifier_extension = true;
        // Not of the key, as it would be: a key may get a certificate once more.
        params.serial_number = Some(serial());
        let end = (now + life).min(self.facts.not_after);
        // A short one is not renewed before it begins.
        let from = now - BACKDATED.min(life / 6);
        set_life(&mut params, from, end);
        let what = "a certificate";
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key);
        let issuer = issuer.map_err(|e| unmade(what, e))?;
        let signed = params.signed_by(&request.public_key, &issuer).map_err(|e| unmade(what, e))?;
        Ok(pem("CERTIFICATE", signed.der()) + &self.certificate_pem())
    }

    /// The list of certificates that are worth nothing any more, as PEM. `number`
    /// grows from list to list.
    pub fn revocations(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        let what = "a list of revoked certificates";
        let moment = |at| rcgen::date_time_ymd(1970, 1, 1) + since_epoch(at);
        let revoked_certs = revoked.iter().map(|revoked| RevokedCertParams {
            serial_number: SerialNumber::from(revoked.serial.clone()),
            revocation_time: moment(revoked.at),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: moment(now - BACKDATED),
            next_update: moment(self.facts.not_after),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key);
        let issuer = issuer.map_err(|e| unmade(what, e))?;
        let list = list.signed_by(&issuer).map_err(|e| unmade(what, e))?;
        Ok(pem("X509 CRL", list.der()))
    }
}

/// A certificate that is worth nothing any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    pub serial: Vec<u8>,
    pub at: Timestamp,
}

/// Random, positive, and of the same length always.
fn serial() -> SerialNumber {
    let mut bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from(bytes.to_vec())
}

fn since_epoch(at: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0))
}

fn set_life(params: &mut CertificateParams, from: Timestamp, to: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(from);
    params.not_after = epoch + since_epoch(to);
}
