//! What is done in time so that a server with an expired certificate can come back.

use std::sync::Arc;
use std::time::Duration;

use basin_controller::app::App;
use basin_model::HostId;
use basin_node::cluster::ClusterDir;
use basin_node::pki::Credentials;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often what no message tells of is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The CA's key is where etcd's data are, and nowhere else.
pub async fn keep_authority(app: Arc<App>, host: HostId, dir: ClusterDir, stop: CancellationToken) {
    let mut changes = app.inventory().changes();
    let mut kept = None;
    loop {
        let keeps = app.inventory().read().voters.contains_key(&host);
        if kept != Some(keeps) {
            let written = match keeps {
                true => match app.kept_authority().await {
                    Ok(authority) => {
                        dir.keep_authority(Some(&authority)).map_err(|e| e.to_string())
                    }
                    Err(problem) => Err(problem.detail),
                },
                false => dir.keep_authority(None).map_err(|e| e.to_string()),
            };
            match written {
                Ok(()) => kept = Some(keeps),
                Err(why) => warn!("the CA's key is not where it is to be: {why}"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Nobody answers this server any more, etcd neither, so that it cannot be renewed as
/// usual: a daemon that starts knows what to do.
pub async fn when_expired(credentials: Credentials, again: Arc<Notify>, stop: CancellationToken) {
    while credentials.expires() > Timestamp::now() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
    warn!("this server's certificate has expired: the daemon begins anew to replace it");
    again.notify_one();
}

/// One that this server signed itself was not noted by who signed it.
pub async fn note_issued(
    app: Arc<App>,
    host: HostId,
    credentials: Credentials,
    stop: CancellationToken,
) {
    while let Err(problem) = app.note_issued(host, credentials.material().facts()).await {
        warn!("this server's certificate is not noted yet: {}", problem.detail);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}
