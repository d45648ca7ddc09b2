//! A server whose certificate expired while its daemon did not run. Nobody lets it in with
//! that, etcd neither: it signs a new one itself, if it keeps the state and so the CA's
//! key, or asks the others with the key that it had (`pki::check_expired`).

use std::time::Duration;

use basin_model::HostId;
use basin_model::task::Problem;
use jiff::Timestamp;

use super::wire::{RenewAnswer, RenewAsk};
use super::{ClusterConfig, ClusterDir, KeptAuthority};
use crate::pki::{
    ClusterCa, Material, PkiError, Renewal, Subject, TlsDir, renewal, request, request_again,
};
use crate::problem::problem;
use crate::remote::{Peer, ask_to_renew};

/// Servers that are up answer at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub fn has_expired(material: &Material, now: Timestamp) -> bool {
    let about = material.facts();
    matches!(renewal(now, about.not_before, about.not_after), Renewal::Expired)
}

/// A new certificate, kept. The problem says what the operator can do.
pub async fn renew_expired(
    dir: &ClusterDir,
    config: &ClusterConfig,
    host: HostId,
    name: &basin_model::Name,
    material: &Material,
) -> Result<Material, Problem> {
    let failed = |e: &dyn std::fmt::Display| {
        let advice = "see the daemon's log, and the files in the cluster's directory";
        problem("certificate", e.to_string(), advice)
    };
    let new = match dir.kept_authority().map_err(|e| failed(&e))? {
        Some(kept) => {
            let addresses = vec![config.advertise];
            let subject = Subject { host, name: name.clone(), addresses };
            sign(&kept, &subject, material).map_err(|e| failed(&e))?
        }
        None => ask_others(dir, host, material).await?,
    };
    if has_expired(&new, Timestamp::now()) {
        let detail = format!("the new certificate ended on {} already", new.facts().not_after);
        return Err(problem("certificate", detail, "compare the servers' clocks"));
    }
    TlsDir::store(&dir.tls(), &new).map_err(|e| failed(&e))?;
    Ok(new)
}

fn sign(kept: &KeptAuthority, subject: &Subject, old: &Material) -> Result<Material, PkiError> {
    let ca = ClusterCa::load(&kept.authority.certificate, &kept.authority.key)?;
    let (key, csr) = request(subject)?;
    let chain = ca.sign_for(&csr, subject, kept.life(), Timestamp::now())?;
    Material::parse(&chain, &key, &old.bundle().pem())
}

async fn ask_others(
    dir: &ClusterDir,
    host: HostId,
    material: &Material,
) -> Result<Material, Problem> {
    let failed = |e: PkiError| problem("certificate", e.to_string(), "see the daemon's log");
    let csr = request_again(material).map_err(failed)?;
    let ask = RenewAsk { certificate: material.chain_pem().to_owned(), csr };
    let mut why = "no other server is known".to_owned();
    for server in dir.known_servers().into_iter().filter(|s| s.host != host) {
        for pin in material.bundle().fingerprints() {
            let peer = Peer::pinned(&server.address.to_string(), pin);
            let asked = tokio::time::timeout(ANSWER_WITHIN, ask_to_renew(&peer, &ask)).await;
            let answer: RenewAnswer = match asked {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    why = error.0.detail;
                    continue;
                }
                Err(_) => {
                    why = format!("{} does not answer", peer.server());
                    continue;
                }
            };
            let key = material.key_pem();
            return Material::parse(&answer.chain, key, &answer.bundle).map_err(failed);
        }
    }
    let until = material.facts().not_after;
    Err(problem(
        "certificate-expired",
        format!("this server's certificate has expired on {until}, and it got no new one: {why}"),
        "start the daemons of the servers that keep the state: they renew theirs, and then \
         this one's, by themselves",
    ))
}
