//! Keeps a server's certificate good: asks for a new one at two thirds of its life.

use std::time::Duration;

use async_trait::async_trait;
use basin_model::task::Problem;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Credentials, Material, PkiError, Renewal, Subject, TlsDir, renewal, request};
use crate::problem::problem;

/// The clock may be set meanwhile, so no sleep is longer.
const LOOK_EVERY: Duration = Duration::from_secs(600);
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// Where less is left: this part of the time until it expires.
const TRIES_LEFT: u32 = 10;

/// Gets requests signed: by the cluster's CA, wherever its key is.
#[async_trait]
pub trait Sign: Send + Sync {
    /// The answer of [`super::ClusterCa::sign`] and the CA bundle in force, as PEM.
    async fn sign(&self, csr_pem: &str, subject: &Subject) -> Result<(String, String), Problem>;
}

/// Renews the certificate when it is due, or when the subject changes, until told to
/// stop. `trouble` has what keeps it from that, for the server's conditions.
pub async fn keep_renewed(
    credentials: Credentials,
    dir: TlsDir,
    mut subject: watch::Receiver<Subject>,
    signer: impl Sign,
    trouble: watch::Sender<Option<Problem>>,
    stop: CancellationToken,
) {
    let mut anew = false;
    loop {
        let about = credentials.material().facts().clone();
        let verdict = renewal(Timestamp::now(), about.not_before, about.not_after);
        let pause = match verdict {
            Renewal::Later { at } if !anew => {
                trouble.send_if_modified(|old| old.take().is_some());
                let left = at.duration_since(Timestamp::now()).unsigned_abs();
                left.clamp(Duration::from_secs(1), LOOK_EVERY)
            }
            _ => {
                let wanted = subject.borrow_and_update().clone();
                match renew(&credentials, &dir, &wanted, &signer).await {
                    Ok(()) => {
                        anew = false;
                        info!(until = %credentials.expires(), "this server's certificate is new");
                        continue;
                    }
                    Err(why) => {
                        warn!("this server's certificate cannot be renewed: {}", why.detail);
                        trouble.send_replace(Some(condition(&why, about.not_after, verdict)));
                        let left = about.not_after.duration_since(Timestamp::now());
                        let left = left.max(SignedDuration::ZERO).unsigned_abs();
                        (left / TRIES_LEFT).clamp(Duration::from_secs(1), TRY_AGAIN)
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            Ok(()) = subject.changed() => anew = true,
        }
    }
}

async fn renew(
    credentials: &Credentials,
    dir: &TlsDir,
    subject: &Subject,
    signer: &impl Sign,
) -> Result<(), Problem> {
    let failed = |e: PkiError| problem("certificate", e.to_string(), "look at the daemon's log");
    let (key, csr) = request(subject).map_err(failed)?;
    let (chain, bundle) = signer.sign(&csr, subject).await?;
    let material = Material::parse(&chain, &key, &bundle).map_err(failed)?;
    let now = Timestamp::now();
    let about = material.facts();
    // What is due again at once would be asked for without end.
    if !matches!(renewal(now, about.not_before, about.not_after), Renewal::Later { .. }) {
        let detail = format!("the new certificate ends on {} already", about.not_after);
        return Err(problem("certificate", detail, "replace the cluster's CA before it expires"));
    }
    // Used only once it is kept: after a crash the others are met with the same one.
    dir.store(&material).map_err(failed)?;
    credentials.replace(material).map_err(failed)
}

fn condition(why: &Problem, until: Timestamp, verdict: Renewal) -> Problem {
    let state = match verdict {
        Renewal::Expired => "has expired on",
        _ => "is good until",
    };
    let detail =
        format!("this server's certificate {state} {until} and cannot be renewed: {}", why.detail);
    Problem { code: why.code.clone(), detail, advice: why.advice.clone() }
}
