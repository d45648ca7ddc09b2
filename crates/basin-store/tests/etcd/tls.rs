//! Certificates: who is believed, who is let in, and how they are replaced.

use std::fs;
use std::path::PathBuf;

use basin_store::etcd::{EtcdIdentity, EtcdOptions, EtcdStore, EtcdTls};
use basin_store::{Revision, Store, StoreError};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

use super::server::{Cluster, TlsFiles};
use super::{commit, put, shown, until};

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    fn issue(&self, name: &str, addresses: &[std::net::IpAddr]) -> EtcdIdentity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = addresses.iter().map(|a| SanType::IpAddress(*a)).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let certificate = certificate.pem().into_bytes();
        EtcdIdentity { certificate, key: key.serialize_pem().into_bytes() }
    }
}

fn refused(result: Result<impl std::fmt::Debug, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_on_both_sides_and_can_be_replaced() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let address = Cluster::address();
    let server = ours.issue("server", &[address.into()]);
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let files = TlsFiles {
        ca: write("ca.pem", &ours.pem()),
        certificate: write("cert.pem", &server.certificate),
        key: write("key.pem", &server.key),
    };
    let client = |ca: &Ca, issuer: &Ca| EtcdTls {
        ca: ca.pem(),
        identity: Some(issuer.issue("client", &[])),
    };
    let cluster = Cluster::start_tls(address, dir, &files, client(&ours, &ours)).await;
    let connect =
        |tls: EtcdTls| EtcdStore::connect(&EtcdOptions::new(cluster.urls(), Some(tls))).unwrap();

    let why = refused(connect(client(&theirs, &ours)).get("a").await);
    assert!(why.contains("certificate"), "{why}");
    refused(connect(client(&ours, &theirs)).get("a").await);
    refused(connect(EtcdTls { ca: ours.pem(), identity: None }).get("a").await);

    let store = connect(client(&ours, &ours));
    let mut watch = store.watch("a", Revision(1)).await.unwrap();
    commit(&store, vec![put("a", "1")]).await.unwrap();
    assert_eq!(shown(&mut watch).await, ["a=1"]);

    // Both sides get new certificates, without a pause.
    let server = ours.issue("server", &[address.into()]);
    fs::write(&files.certificate, &server.certificate).unwrap();
    fs::write(&files.key, &server.key).unwrap();
    let mut contact = store.contact();
    let before = contact.borrow_and_update().answered;
    store.set_endpoints(&cluster.urls(), Some(&client(&ours, &ours))).unwrap();
    until("it is connected anew", async || store.contact().borrow().answered > before).await;
    commit(&store, vec![put("a", "2")]).await.unwrap();
    assert_eq!(shown(&mut watch).await, ["a=2"]);
}
