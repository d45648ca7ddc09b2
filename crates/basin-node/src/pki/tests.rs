use std::os::unix::fs::PermissionsExt;

use basin_model::HostId;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use uuid::Uuid;

use super::facts::host_uri;
use super::*;

fn subject(address: &str) -> Subject {
    let host = HostId::from_uuid(Uuid::now_v7());
    Subject { host, name: "srv1".parse().unwrap(), addresses: vec![address.parse().unwrap()] }
}

fn now() -> Timestamp {
    Timestamp::now()
}

fn material(ca: &ClusterCa, subject: &Subject) -> Material {
    let (key, csr) = request(subject).unwrap();
    let chain = ca.sign(&csr, subject, now()).unwrap();
    Material::parse(&chain, &key, &ca.certificate_pem()).unwrap()
}

#[test]
fn a_certificate_says_what_the_signer_was_told() {
    let ca = ClusterCa::create("prod", now()).unwrap();
    let subject = subject("192.0.2.7");
    let made = material(&ca, &subject);
    assert_eq!(made.host(), subject.host);
    let life = made.facts().not_after.duration_since(now());
    assert!(life > SignedDuration::from_hours(24 * 364), "{life}");
    assert!(made.facts().not_before < now() - SignedDuration::from_mins(5));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(made.chain_pem().as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(Fingerprint::of(&chain[1]), ca.fingerprint(), "the CA comes with it");
    let (_, x509) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let usage = x509.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    assert!(!x509.is_ca());
    let names = format!("{:?}", x509.subject_alternative_name().unwrap().unwrap().value);
    for name in [&host_uri(subject.host), "srv1", "[192, 0, 2, 7]", "localhost"] {
        assert!(names.contains(name), "{name}: {names}");
    }
}

#[test]
fn a_ca_is_kept_as_pem_and_its_key_must_fit() {
    let ca = ClusterCa::create("prod", now()).unwrap();
    let again = ClusterCa::load(&ca.certificate_pem(), &ca.key_pem()).unwrap();
    assert_eq!(again.fingerprint(), ca.fingerprint());
    let subject = subject("192.0.2.7");
    let (key, csr) = request(&subject).unwrap();
    let chain = again.sign(&csr, &subject, now()).unwrap();
    let other = ClusterCa::create("prod", now()).unwrap();
    assert_ne!(other.fingerprint(), ca.fingerprint());
    assert!(ClusterCa::load(&ca.certificate_pem(), &other.key_pem()).is_err());
    assert!(ClusterCa::load(&chain, &key).is_err(), "a server's certificate is no CA's");
    assert!(ClusterCa::load("", &ca.key_pem()).is_err());
    assert!(!format!("{ca:?}").contains("PRIVATE"));
}

/// A request that asks for something else than it may.
fn refused(why: &str, change: impl FnOnce(&mut CertificateParams)) {
    let ca = ClusterCa::create("prod", now()).unwrap();
    let subject = subject("192.0.2.7");
    let key = KeyPair::generate().unwrap();
    let mut params = subject.params().unwrap();
    params.is_ca = IsCa::NoCa;
    change(&mut params);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let error = ca.sign(&csr, &subject, now()).unwrap_err();
    assert!(matches!(error, PkiError::Refused(_)), "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn a_request_gets_nothing_that_is_not_its_servers() {
    let uri = |host| SanType::URI(host_uri(host).try_into().unwrap());
    let other = HostId::from_uuid(Uuid::now_v7());
    refused("not for server", |params| params.subject_alt_names = vec![uri(other)]);
    refused("is not this server's", |params| params.subject_alt_names.push(uri(other)));
    refused("address 192.0.2.8", |params| {
        params.subject_alt_names.push(SanType::IpAddress("192.0.2.8".parse().unwrap()));
    });
    refused("name 'srv2'", |params| {
        params.subject_alt_names.push(SanType::DnsName("srv2".try_into().unwrap()));
    });
    refused("a CA's certificate", |params| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    refused("more than to speak TLS", |params| {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning);
    });
}

#[test]
fn a_request_must_be_signed_by_a_good_key_of_its_own() {
    let ca = ClusterCa::create("prod", now()).unwrap();
    let subject = subject("192.0.2.7");
    let refused = |csr: &str, why: &str| {
        let error = ca.sign(csr, &subject, now()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused("nonsense", "cannot be read");
    refused(&"x".repeat(20 << 10), "larger than");
    let (_, csr) = request(&subject).unwrap();
    let mut der = pem::parse(&csr).unwrap().into_contents();
    *der.last_mut().unwrap() ^= 1;
    refused(&bundle::pem("CERTIFICATE REQUEST", &der), "signature");
    let weak = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = subject.params().unwrap();
    params.is_ca = IsCa::NoCa;
    refused(&params.serialize_request(&weak).unwrap().pem().unwrap(), "not ECDSA P-256");
    let late = now() + SignedDuration::from_hours(24 * 366 * 11);
    let error = ca.sign(&csr, &subject, late).unwrap_err().to_string();
    assert!(error.contains("CA has expired"), "{error}");
}

#[test]
fn files_are_roots_alone_and_come_back_as_they_were() {
    let state = tempfile::tempdir().unwrap();
    let dir = TlsDir::at(state.path().join("tls"));
    assert!(dir.load().unwrap().is_none());
    let ca = ClusterCa::create("prod", now()).unwrap();
    let subject = subject("192.0.2.7");
    for _ in 0..2 {
        let made = material(&ca, &subject);
        dir.store(&made).unwrap();
        let back = dir.load().unwrap().unwrap();
        assert_eq!(back.facts(), made.facts());
        assert_eq!(back.chain_pem(), made.chain_pem());
        assert_eq!(back.bundle(), made.bundle());
    }
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.server()), 0o600);
    assert_eq!(mode(dir.server().parent().unwrap()), 0o700);
    let names = std::fs::read_dir(dir.server().parent().unwrap()).unwrap().count();
    assert_eq!(names, 2, "no temporary file is left");

    let whole = std::fs::read_to_string(dir.server()).unwrap();
    std::fs::write(dir.server(), &whole[..whole.len() / 2]).unwrap();
    assert!(dir.load().is_err(), "half a file is not taken for a whole one");
}

#[test]
fn a_key_must_be_the_certificates() {
    let ca = ClusterCa::create("prod", now()).unwrap();
    let subject = subject("192.0.2.7");
    let (one, other) = (material(&ca, &subject), material(&ca, &subject));
    let error = Material::parse(one.chain_pem(), other.key_pem(), &ca.certificate_pem());
    assert!(error.unwrap_err().to_string().contains("key"));
}

#[test]
fn a_bundle_takes_in_and_gives_up_cas() {
    let (old, new) =
        (ClusterCa::create("a", now()).unwrap(), ClusterCa::create("b", now()).unwrap());
    let both = old.bundle().unwrap().with(&new.bundle().unwrap()).with(&old.bundle().unwrap());
    assert_eq!(both.fingerprints(), [old.fingerprint(), new.fingerprint()]);
    assert_eq!(Bundle::parse(&both.pem()).unwrap(), both);
    let later = both.without(old.fingerprint()).unwrap();
    assert!(later.contains(new.fingerprint()) && !later.contains(old.fingerprint()));
    assert!(later.without(new.fingerprint()).is_err(), "the only CA stays");
    let server = material(&old, &subject("192.0.2.7"));
    assert!(Bundle::parse(server.chain_pem()).is_err(), "a server is no CA");
    assert!(Bundle::parse("").is_err());
}

#[test]
fn short_lives_are_renewed_in_time() {
    let ca = ClusterCa::create("prod", now()).unwrap();
    for seconds in [60, 3600, 90 * 24 * 3600] {
        let subject = subject("192.0.2.7");
        let (key, csr) = request(&subject).unwrap();
        let (life, made) = (SignedDuration::from_secs(seconds), now());
        let chain = ca.sign_for(&csr, &subject, life, made).unwrap();
        let about = Material::parse(&chain, &key, &ca.certificate_pem()).unwrap().facts().clone();
        let Renewal::Later { at } = renewal(made, about.not_before, about.not_after) else {
            panic!("{seconds}: due at once")
        };
        let (waits, left) = (at.duration_since(made), about.not_after.duration_since(at));
        assert!(waits > life / 2 && left > life / 4, "{seconds}: {waits} {left}");
    }
}

#[test]
fn an_expired_certificate_proves_whose_the_request_is_and_nothing_else() {
    let ca = ClusterCa::create("prod", now()).unwrap();
    let subject = subject("192.0.2.7");
    let then = now() - SignedDuration::from_hours(24 * 400);
    let signed = |ca: &ClusterCa, at: Timestamp| {
        let (key, csr) = request(&subject).unwrap();
        let chain = ca.sign(&csr, &subject, at).unwrap();
        Material::parse(&chain, &key, &ca.certificate_pem()).unwrap()
    };
    let old = signed(&ca, then);
    let csr = request_again(&old).unwrap();
    assert_eq!(check_expired(&ca, old.chain_pem(), &csr, now()).unwrap(), subject.host);
    // What comes of it is for the same key, and says what the records say.
    let chain = ca.sign(&csr, &subject, now()).unwrap();
    let new = Material::parse(&chain, old.key_pem(), &ca.certificate_pem()).unwrap();
    assert!(new.facts().not_after > now() && new.host() == subject.host);
    assert_ne!(new.facts().serial, old.facts().serial);

    let refused = |chain: &str, csr: &str, why: &str| {
        let error = check_expired(&ca, chain, csr, now()).unwrap_err();
        assert!(matches!(error, PkiError::Refused(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    // Somebody who has seen the certificate, and not its key.
    let thief = request_again(&signed(&ca, then)).unwrap();
    refused(old.chain_pem(), &thief, "not of the old certificate's key");
    let other = ClusterCa::create("prod", then).unwrap();
    let foreign = signed(&other, then);
    let foreign_csr = request_again(&foreign).unwrap();
    refused(foreign.chain_pem(), &foreign_csr, "not of this cluster's CA");
    refused(&ca.certificate_pem(), &csr, "no server's");
    let early = signed(&ca, now() + SignedDuration::from_hours(1));
    refused(early.chain_pem(), &request_again(&early).unwrap(), "compare the servers' clocks");
    refused("x", &csr, "cannot be read");
}
