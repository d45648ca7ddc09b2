use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use basin_model::task::Problem;
use basin_node::pki::{ClusterCa, Credentials, Sign, Subject, TlsDir, keep_renewed};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fake::cancelled;
use super::support::*;

/// Signs with the CA at hand, or refuses.
#[derive(Clone)]
struct Signer(Arc<Mutex<Result<ClusterCa, Problem>>>);

#[async_trait]
impl Sign for Signer {
    async fn sign(&self, csr: &str, subject: &Subject) -> Result<(String, String), Problem> {
        let ca = self.0.lock().unwrap();
        let ca = ca.as_ref().map_err(Clone::clone)?;
        Ok((ca.sign(csr, subject, Timestamp::now()).unwrap(), ca.certificate_pem()))
    }
}

fn again(ca: &ClusterCa) -> ClusterCa {
    ClusterCa::load(&ca.certificate_pem(), &ca.key_pem()).unwrap()
}

struct Kept {
    credentials: Credentials,
    dir: TlsDir,
    subject: watch::Sender<Subject>,
    trouble: watch::Receiver<Option<Problem>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _state: tempfile::TempDir,
}

/// A certificate that was signed so many days ago, and what keeps it good.
fn keep(cluster: &Cluster, days: i64, signer: Signer) -> Kept {
    let subject = subject("a");
    let state = tempfile::tempdir().unwrap();
    let dir = TlsDir::at(state.path().join("tls"));
    let (key, csr) = basin_node::pki::request(&subject).unwrap();
    let then = Timestamp::now() - SignedDuration::from_hours(24 * days);
    let chain = cluster.ca.sign(&csr, &subject, then).unwrap();
    let bundle = cluster.ca.certificate_pem();
    let material = basin_node::pki::Material::parse(&chain, &key, &bundle).unwrap();
    let credentials = Credentials::new(material, cluster.admit()).unwrap();
    let (subject, wanted) = watch::channel(subject);
    let (tell, trouble) = watch::channel(None);
    let stop = CancellationToken::new();
    let work = keep_renewed(credentials.clone(), dir.clone(), wanted, signer, tell, stop.clone());
    let task = tokio::spawn(work);
    Kept { credentials, dir, subject, trouble, stop, task, _state: state }
}

impl Kept {
    async fn end(self) {
        self.stop.cancel();
        within(self.task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_when_due_even_if_it_has_expired() {
    let cluster = Cluster::new();
    for days in [300, 400] {
        let signer = Signer(Arc::new(Mutex::new(Ok(again(&cluster.ca)))));
        let kept = keep(&cluster, days, signer);
        let mut changes = kept.credentials.changes();
        within(changes.wait_for(|version| *version == 1)).await.unwrap();
        let left = kept.credentials.expires().duration_since(Timestamp::now());
        assert!(left > SignedDuration::from_hours(24 * 360), "{left}");
        let stored = kept.dir.load().unwrap().unwrap();
        assert_eq!(stored.facts(), kept.credentials.material().facts());
        assert_eq!(*kept.trouble.borrow(), None);
        kept.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_certificate_is_left_alone_until_the_server_moves() {
    let cluster = Cluster::new();
    let signer = Signer(Arc::new(Mutex::new(Ok(again(&cluster.ca)))));
    let kept = keep(&cluster, 10, signer);
    let mut changes = kept.credentials.changes();
    kept.subject.send_modify(|subject| subject.addresses.push("192.0.2.9".parse().unwrap()));
    within(changes.wait_for(|version| *version > 0)).await.unwrap();
    assert_eq!(kept.credentials.version(), 1, "renewed for the address only");
    let chain = kept.credentials.material().chain_pem().to_owned();
    let der = pem::parse(chain).unwrap();
    let (_, x509) = x509_parser::parse_x509_certificate(der.contents()).unwrap();
    let names = format!("{:?}", x509.subject_alternative_name().unwrap().unwrap().value);
    assert!(names.contains("[192, 0, 2, 9]"), "{names}");
    kept.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_being_renewed_is_told() {
    let cluster = Cluster::new();
    let kept = keep(&cluster, 300, Signer(Arc::new(Mutex::new(Err(cancelled())))));
    let mut trouble = kept.trouble.clone();
    let told = within(trouble.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert_eq!(told.code, "cancelled");
    assert!(told.detail.contains("is good until") && told.detail.contains("cannot be renewed"));
    assert_eq!(kept.credentials.version(), 0);
    kept.end().await;

    // A CA that ends in minutes gives a certificate that is due again at once.
    let then =
        Timestamp::now() - SignedDuration::from_hours(24 * 3653) + SignedDuration::from_mins(3);
    let dying = ClusterCa::create("old", then).unwrap();
    let kept = keep(&cluster, 300, Signer(Arc::new(Mutex::new(Ok(dying)))));
    let mut trouble = kept.trouble.clone();
    let told = within(trouble.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert!(told.detail.contains("the new certificate ends on"), "{told:?}");
    kept.end().await;
}
