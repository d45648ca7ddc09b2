//! Where etcd is and how to prove oneself to it.

use std::fmt;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::errors::chain;
use crate::store::StoreError;

/// How to reach a cluster.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// `https://10.0.0.1:2379`, or `http://…` without TLS. The first is tried first:
    /// give the nearest one there.
    pub endpoints: Vec<String>,
    pub tls: Option<EtcdTls>,
    /// A request that the quorum has not answered by then fails as
    /// [`StoreError::Unavailable`].
    pub answer_within: Duration,
    /// How often to ask for a sign of life when nothing else is asked.
    pub probe_every: Duration,
}

impl EtcdOptions {
    pub fn new(endpoints: Vec<String>, tls: Option<EtcdTls>) -> Self {
        let (answer_within, probe_every) = (Duration::from_secs(6), Duration::from_secs(2));
        Self { endpoints, tls, answer_within, probe_every }
    }
}

/// PEM text, as in the files that others use.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// Whom to believe.
    pub ca: Vec<u8>,
    /// This client's certificate and key, where etcd asks for one.
    pub identity: Option<EtcdIdentity>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct EtcdIdentity {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls")
            .field("identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

/// How long a connection may take to come up.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// A watch that nobody reads may hold back this much, and no other stream.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Checks all of them; what is wrong with one is wrong with the request.
pub(crate) fn endpoints(
    urls: &[String],
    tls: Option<&EtcdTls>,
) -> Result<Vec<Endpoint>, StoreError> {
    if urls.is_empty() {
        return Err(StoreError::Invalid("no address of an etcd member is given".to_owned()));
    }
    urls.iter()
        .map(|url| {
            endpoint(url, tls).map_err(|why| StoreError::Invalid(format!("etcd at {url}: {why}")))
        })
        .collect()
}

fn endpoint(url: &str, tls: Option<&EtcdTls>) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| chain(&e))?;
    let uri = endpoint.uri().clone();
    let host = uri.host().filter(|host| !host.is_empty()).ok_or("the address has no host")?;
    let endpoint = match (uri.scheme_str(), tls) {
        (Some("http"), None) => endpoint,
        (Some("https"), Some(tls)) => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let mut config = ClientTlsConfig::new()
                .domain_name(host)
                .ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some(EtcdIdentity { certificate, key }) = &tls.identity {
                config = config.identity(Identity::from_pem(certificate, key));
            }
            endpoint.tls_config(config).map_err(|e| chain(&e))?
        }
        (Some("http"), Some(_)) => return Err("certificates are given, so use https".to_owned()),
        (Some("https"), None) => return Err("https needs the CA's certificate".to_owned()),
        _ => return Err("the address must begin with https:// or http://".to_owned()),
    };
    Ok(endpoint
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, tls: bool, expect: Result<(), &str>) {
        let tls = tls.then(|| {
            let key = rcgen::KeyPair::generate().unwrap();
            let names = vec!["x".to_owned()];
            let certificate =
                rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
            EtcdTls { ca: certificate.pem().into_bytes(), identity: None }
        });
        match (endpoints(&[url.to_owned()], tls.as_ref()), expect) {
            (Ok(_), Ok(())) => (),
            (Err(StoreError::Invalid(got)), Err(expect)) if got.contains(expect) => (),
            (got, expect) => panic!("{url}: {got:?}, expected {expect:?}"),
        }
    }

    #[tokio::test]
    async fn addresses_and_certificates_must_fit() {
        check("http://127.0.0.1:2379", false, Ok(()));
        check("https://10.0.0.1:2379", true, Ok(()));
        check("https://[fd00::1]:2379", true, Ok(()));
        check("https://server-1:2379", true, Ok(()));
        check("http://127.0.0.1:2379", true, Err("use https"));
        check("https://127.0.0.1:2379", false, Err("CA's certificate"));
        check("127.0.0.1:2379", false, Err("must begin with"));
        check("nonsense with spaces", false, Err("etcd at nonsense"));
        assert!(matches!(endpoints(&[], None), Err(StoreError::Invalid(_))));
    }
}
