//! What can be done with the cluster only.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde::de::IgnoredAny;
use tokio::io::AsyncWriteExt as _;

use super::{Client, ClientError, Resource};
use crate::cluster::{
    AttemptBegun, Cluster, ClusterCreate, ClusterJoin, DrainRequest, JoinTokenCreate,
    JoinTokenCreated, Mode,
};
use crate::host::{Host, TrunkSet};

/// A server that turns into one of a cluster is away for some seconds.
const FORMED_WITHIN: Duration = Duration::from_secs(120);
const ASK_AGAIN: Duration = Duration::from_millis(200);

impl Client {
    pub async fn cluster(&self) -> Result<Cluster, ClientError> {
        self.json(self.request(Method::GET, &["cluster"])?).await
    }

    /// Makes the server the first of a cluster, and waits until it is.
    pub async fn form_cluster(&self, create: &ClusterCreate) -> Result<Cluster, ClientError> {
        let begun: AttemptBegun =
            self.json(self.request(Method::POST, &["cluster"])?.json(create)).await?;
        self.until_in_cluster(&begun.attempt).await
    }

    /// Has the server join a cluster, and waits until it did.
    pub async fn join_cluster(&self, join: &ClusterJoin) -> Result<Cluster, ClientError> {
        let begun: AttemptBegun =
            self.json(self.request(Method::POST, &["cluster", "join"])?.json(join)).await?;
        self.until_in_cluster(&begun.attempt).await
    }

    async fn until_in_cluster(&self, attempt: &str) -> Result<Cluster, ClientError> {
        let asked = tokio::time::Instant::now();
        loop {
            match self.cluster().await {
                Ok(cluster) if cluster.mode == Mode::Cluster => return Ok(cluster),
                Ok(cluster) => {
                    if let Some(problem) = cluster.failure_of(attempt) {
                        return Err(ClientError::Problem(Box::new(problem)));
                    }
                }
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) if asked.elapsed() > FORMED_WITHIN => return Err(error),
                Err(_) => {}
            }
            if asked.elapsed() > FORMED_WITHIN {
                let detail = "the server has not become one of the cluster within two minutes";
                return Err(ClientError::local(detail, "see its log"));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    pub async fn create_join_token(
        &self,
        create: &JoinTokenCreate,
    ) -> Result<JoinTokenCreated, ClientError> {
        self.json(self.request(Method::POST, &["cluster", "join-tokens"])?.json(create)).await
    }

    /// Saves everything that the servers keep together as a file, which appears whole or
    /// not at all. It holds every secret of the cluster: only its owner may read it.
    pub async fn backup(&self, to: &Path) -> Result<u64, ClientError> {
        let request = self.unlimited(Method::GET, &["cluster", "backup"])?;
        let mut answer = self.send(request).await?;
        let unwritten = |e: std::io::Error| {
            ClientError::local(format!("cannot write {}: {e}", to.display()), "")
        };
        let mut part = to.as_os_str().to_owned();
        part.push(".part");
        let part = Path::new(&part);
        let saved = async {
            let mut options = tokio::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(part).await.map_err(unwritten)?;
            let mut bytes = 0;
            while let Some(chunk) = answer.chunk().await.map_err(|e| self.lost(&e))? {
                file.write_all(&chunk).await.map_err(unwritten)?;
                bytes += chunk.len() as u64;
            }
            file.sync_all().await.map_err(unwritten)?;
            tokio::fs::rename(part, to).await.map_err(unwritten)?;
            Ok(bytes)
        };
        let saved = saved.await;
        if saved.is_err() {
            // The error that counts is the one before.
            let _ = tokio::fs::remove_file(part).await;
        }
        saved
    }

    /// Empties the server of running VMs, and keeps it empty.
    pub async fn drain_host(&self, host: &str, how: &DrainRequest) -> Result<Host, ClientError> {
        self.json(self.request(Method::POST, &[Host::PATH, host, "drain"])?.json(how)).await
    }

    pub async fn undrain_host(&self, host: &str) -> Result<Host, ClientError> {
        self.json(self.request(Method::DELETE, &[Host::PATH, host, "drain"])?).await
    }

    /// Names the interface by which the server has VLANs, or one of them without tags.
    pub async fn set_trunk(&self, host: &str, trunk: &TrunkSet) -> Result<Host, ClientError> {
        self.json(self.request(Method::PUT, &[Host::PATH, host, "trunk"])?.json(trunk)).await
    }

    /// Takes it back.
    pub async fn unset_trunk(
        &self,
        host: &str,
        untagged: Option<u16>,
    ) -> Result<Host, ClientError> {
        let query = untagged.map(|vlan| ("untagged", vlan));
        let request = self.request(Method::DELETE, &[Host::PATH, host, "trunk"])?;
        self.json(request.query(&Vec::from_iter(query))).await
    }

    /// Shuts the server out of the cluster for good. `dead` says that it is not to be
    /// asked, because it never comes back.
    pub async fn remove_host(&self, host: &str, dead: bool) -> Result<(), ClientError> {
        let query = dead.then_some(("dead", true));
        let request =
            self.request(Method::DELETE, &[Host::PATH, host])?.query(&Vec::from_iter(query));
        self.json::<IgnoredAny>(request).await.map(drop)
    }
}
