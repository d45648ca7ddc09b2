//! Pure. Why the other end of a connection is not trusted, in plain words.

use std::fmt;
use std::sync::Arc;

use basin_model::HostId;
use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, OtherError};

use super::Fingerprint;

/// What is wrong with a certificate. Reads on after "its certificate".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error("has expired: it was good until {until}, and the clock here says {now}")]
    Expired { until: Timestamp, now: Timestamp },
    #[error("is not good yet: it is from {from} on, and the clock here says {now}")]
    NotYet { from: Timestamp, now: Timestamp },
    #[error("is of no certificate authority that this cluster trusts")]
    Foreign,
    #[error("does not lead to the certificate authority of the join token (SHA-256 {0})")]
    NotPinned(Fingerprint),
    #[error("is that of server {found}, not of server {expected}")]
    OtherHost { expected: HostId, found: HostId },
    #[error("names no server of Basin")]
    NoHost,
    #[error("is that of a server which was removed from the cluster")]
    Removed,
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("is not for this use")]
    Purpose,
    #[error("is refused: {0}")]
    Other(String),
}

impl Distrust {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Distrust::Expired { .. } => {
                "compare the clocks of both servers (timedatectl); if they are right, its daemon \
                 could not renew the certificate: its log and 'basin host show' say why"
            }
            Distrust::NotYet { .. } => {
                "one of the two clocks is wrong: compare them (timedatectl) and set them by NTP"
            }
            Distrust::Foreign | Distrust::NoHost | Distrust::Purpose => {
                "check the address: what answers there is another cluster's server, or none of Basin"
            }
            Distrust::NotPinned(_) => {
                "check the address and the token: the token is of another cluster, or somebody \
                 stands between the two servers"
            }
            Distrust::OtherHost { .. } => {
                "check the address that the cluster has for this server ('basin host show'): \
                 another one has it now"
            }
            Distrust::Removed => {
                "nothing, if that was meant; a removed server comes back by a new 'basin join'"
            }
            Distrust::Unreadable(_) | Distrust::Other(_) => {
                "check that a daemon of Basin answers at this address, and look at its log"
            }
        }
    }

    /// For rustls, which tells the other end by an alert. What it has a word for goes
    /// in that word, so that the other end can tell its people.
    pub(super) fn into_rustls(self) -> rustls::Error {
        let error = match self {
            Distrust::Removed => CertificateError::Revoked,
            Distrust::Foreign => CertificateError::UnknownIssuer,
            Distrust::Unreadable(_) => CertificateError::BadEncoding,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        error.into()
    }

    fn of_certificate(error: &CertificateError) -> Distrust {
        match error {
            CertificateError::ExpiredContext { time, not_after } => {
                Distrust::Expired { until: stamp(*not_after), now: stamp(*time) }
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Distrust::NotYet { from: stamp(*not_before), now: stamp(*time) }
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Distrust::Foreign,
            CertificateError::Revoked => Distrust::Removed,
            CertificateError::BadEncoding => Distrust::Unreadable("it is damaged".to_owned()),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Distrust::Purpose
            }
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Distrust>() {
                Some(distrust) => distrust.clone(),
                None => Distrust::Other(inner.to_string()),
            },
            other => Distrust::Other(other.to_string()),
        }
    }
}

/// What a TLS failure means. `Err`: it is not about certificates.
pub fn spoken(error: &rustls::Error) -> Result<Spoken, String> {
    match error {
        rustls::Error::InvalidCertificate(e) => Ok(Spoken::Here(Distrust::of_certificate(e))),
        rustls::Error::NoCertificatesPresented => Ok(Spoken::Here(Distrust::NoHost)),
        rustls::Error::AlertReceived(alert) => match verdict(*alert) {
            Some(words) => Ok(Spoken::There(words)),
            None => Err(format!("it ended the TLS handshake with {alert:?}")),
        },
        rustls::Error::InvalidMessage(_) => Err("what answers there does not speak TLS".to_owned()),
        other => Err(other.to_string()),
    }
}

/// Who does not trust whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spoken {
    /// This end does not trust the other.
    Here(Distrust),
    /// The other end does not trust this one.
    There(&'static str),
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spoken::Here(distrust) => write!(f, "its certificate {distrust}"),
            Spoken::There(words) => write!(f, "it refuses this server's certificate: {words}"),
        }
    }
}

impl Spoken {
    pub fn advice(&self) -> &'static str {
        match self {
            Spoken::Here(distrust) => distrust.advice(),
            Spoken::There(_) => {
                "compare the clocks of both servers (timedatectl), and see 'basin host list' on a \
                 server of the cluster for whether this one still belongs to it"
            }
        }
    }
}

fn verdict(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => "it has expired, or is not good yet, by its clock",
        AlertDescription::CertificateRevoked => "this server was removed from the cluster",
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is of no certificate authority that it trusts"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "it is none of its cluster's servers'",
        _ => return None,
    })
}

fn stamp(time: UnixTime) -> Timestamp {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}
