//! The cluster's CA at work: certificates for servers, and the list of those that are
//! worth nothing any more.

use basin_model::cluster::{Authority, ClusterRecord, Issued};
use basin_model::task::Problem;
use basin_model::{HostId, keys};
use basin_node::cluster::KeptAuthority;
use basin_node::cluster::wire::{RenewAnswer, RenewAsk};
use basin_node::pki::{ClusterCa, Facts, PkiError, Revoked, Subject, check_expired};
use basin_store::records::{self, CommitError, TxnBuilder};
use jiff::{SignedDuration, Timestamp};

use super::inventory::Snapshot;
use super::{App, problems, store_problem};

impl App {
    /// Signs a new certificate for a server of the cluster.
    pub async fn renew_certificate(
        &self,
        csr: &str,
        subject: &Subject,
    ) -> Result<(String, String), Problem> {
        let (kept, ca) = self.signer().await?;
        let (chain, issued) = sign(&ca, csr, subject, kept.life())?;
        let txn = TxnBuilder::new().create(keys::issued(&issued.serial), &issued);
        txn.commit(self.store()).await.map_err(problems::store_unavailable)?;
        Ok((chain, ca.certificate_pem()))
    }

    /// Signs a new certificate for a server of the cluster whose own has expired.
    pub async fn renew_expired(&self, ask: &RenewAsk) -> Result<RenewAnswer, Problem> {
        let (_, ca) = self.signer().await?;
        let now = Timestamp::now();
        let host = check_expired(&ca, &ask.certificate, &ask.csr, now).map_err(unsigned)?;
        let subject = {
            let snapshot = self.inventory().read();
            let record = snapshot.hosts.get(&host).map(|h| &h.value);
            let removed = snapshot.removed_hosts.contains_key(&host);
            let record = record.filter(|_| !removed).ok_or_else(|| {
                problems::join_refused("it is no server of this cluster", "Have it join.")
            })?;
            let addresses = record.address.into_iter().collect();
            Subject { host, name: record.meta.name.clone(), addresses }
        };
        let (chain, bundle) = self.renew_certificate(&ask.csr, &subject).await?;
        tracing::info!(%host, name = %subject.name, "an expired certificate was renewed");
        Ok(RenewAnswer { chain, bundle })
    }

    /// A certificate that this server has signed itself is known, too, to be revoked one day.
    pub async fn note_issued(&self, host: HostId, about: &Facts) -> Result<(), Problem> {
        let (serial, expires_at) = (about.serial.clone(), about.not_after);
        let issued = Issued { host, serial, expires_at };
        let txn = TxnBuilder::new().create(keys::issued(&issued.serial), &issued);
        match txn.commit(self.store()).await {
            Ok(_) | Err(CommitError::Refused(_)) => Ok(()),
            Err(error) => Err(problems::store_unavailable(error)),
        }
    }

    /// What signs certificates, as a server that keeps the state has it, too.
    pub async fn kept_authority(&self) -> Result<KeptAuthority, Problem> {
        let authority = self.authority().await?;
        let certificate_life = self.cluster_record().await?.certificate_life;
        Ok(KeptAuthority { authority, certificate_life })
    }

    pub(super) async fn signer(&self) -> Result<(KeptAuthority, ClusterCa), Problem> {
        let kept = self.kept_authority().await?;
        let ca = load(&kept.authority)?;
        Ok((kept, ca))
    }

    pub(super) async fn cluster_record(&self) -> Result<ClusterRecord, Problem> {
        let record = records::get::<ClusterRecord>(self.store(), &keys::cluster()).await;
        Ok(record.map_err(|e| store_problem(&e))?.ok_or_else(problems::no_cluster)?.value)
    }

    /// The list of certificates of servers that were removed, as PEM.
    pub async fn revoked(&self) -> Result<String, Problem> {
        self.revocations(&load(&self.authority().await?)?)
    }

    pub(super) fn revocations(&self, ca: &ClusterCa) -> Result<String, Problem> {
        let now = Timestamp::now();
        let (revoked, number) = {
            let snapshot = self.inventory().read();
            (revoked(&snapshot, now), snapshot.revision.0)
        };
        ca.revocations(&revoked, number.max(1), now).map_err(|e| certificate(&e))
    }

    async fn authority(&self) -> Result<Authority, Problem> {
        let read = records::get::<Authority>(self.store(), &keys::authority()).await;
        let read = read.map_err(|e| store_problem(&e))?;
        read.map(|r| r.value).ok_or_else(problems::no_cluster)
    }
}

/// Certificates of removed servers that somebody could still show.
pub fn revoked(snapshot: &Snapshot, now: Timestamp) -> Vec<Revoked> {
    let issued = snapshot.issued.values().map(|i| &i.value).filter(|i| i.expires_at > now);
    issued
        .filter_map(|issued| {
            let removed = snapshot.removed_hosts.get(&issued.host)?;
            let serial = hex(&issued.serial)?;
            Some(Revoked { serial, at: removed.value.at })
        })
        .collect()
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}

pub(super) fn sign(
    ca: &ClusterCa,
    csr: &str,
    subject: &Subject,
    life: SignedDuration,
) -> Result<(String, Issued), Problem> {
    let chain = ca.sign_for(csr, subject, life, Timestamp::now()).map_err(unsigned)?;
    let facts = basin_node::pki::facts_of_chain(&chain).map_err(|e| certificate(&e))?;
    let issued = Issued { host: subject.host, serial: facts.serial, expires_at: facts.not_after };
    Ok((chain, issued))
}

fn unsigned(error: PkiError) -> Problem {
    match error {
        PkiError::Refused(_) => {
            problems::join_refused(error, "See the daemon's log on both servers.")
        }
        error => certificate(&error),
    }
}

fn load(authority: &Authority) -> Result<ClusterCa, Problem> {
    ClusterCa::load(&authority.certificate, &authority.key).map_err(|e| certificate(&e))
}

fn certificate(error: &PkiError) -> Problem {
    Problem {
        code: "certificate".to_owned(),
        detail: error.to_string(),
        advice: "See the daemon's log.".to_owned(),
    }
}
