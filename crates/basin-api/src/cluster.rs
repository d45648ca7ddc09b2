//! The cluster: several servers that are one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::reference::Reference;

/// The cluster, as the server that answers sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    pub mode: Mode,
    /// Absent while the server is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The server that answers.
    pub answered_by: Reference,
    /// The server that leads; absent when there is none now, or none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    /// How long servers' certificates are good; each is replaced after two thirds of that.
    /// Absent while the server is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_life_seconds: Option<u64>,
    /// The last attempt to form or join a cluster from this server, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_attempt: Option<FailedAttempt>,
}

/// How a server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It belongs to no cluster.
    Single,
    Cluster,
}

/// The cluster's etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Store {
    /// etcd is not Basin's.
    pub external: bool,
    /// Servers with a member of it that votes.
    pub members: Vec<Reference>,
    /// Where this server asks; absent when no member answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<String>,
    /// How old what this server knows may be, in milliseconds.
    pub age_ms: u64,
    /// Why the store does not answer, when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// An attempt that failed. Nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailedAttempt {
    pub attempt: String,
    pub code: String,
    pub detail: String,
    pub advice: String,
}

/// A cluster to form, with the server that is asked as its first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterCreate {
    /// The server's address, where the others are to reach it.
    pub advertise: String,
    /// An etcd to use instead of one that Basin runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<ExternalEtcd>,
    /// How long servers' certificates are to be good, from a minute to ten years; a year,
    /// when absent. A server whose daemon does not run for a third of it has to be given
    /// a new one by the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_life_seconds: Option<u64>,
}

/// An etcd that Basin does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalEtcd {
    /// Such as `https://10.0.0.9:2379`.
    pub endpoints: Vec<String>,
    /// The CA to trust, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// What to show to it, as PEM: a certificate and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A cluster to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterJoin {
    /// Any of its servers, such as `https://10.0.0.1:7443`.
    pub url: String,
    pub token: String,
    /// This server's address, where the others are to reach it.
    pub advertise: String,
}

/// It has begun: the server's API goes away for a moment. `GET /v1/cluster` tells when
/// it is done, or why the attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptBegun {
    pub attempt: String,
}

/// A token to make that lets one server join.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenCreate {
    /// An hour, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

/// A new join token. It is shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenCreated {
    pub token: String,
    pub expires_at: String,
}

/// How a server is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Disks that only this server reaches move along.
    #[serde(default)]
    pub move_local_disks: bool,
}

impl Cluster {
    /// Why the attempt failed, if it was this one.
    pub fn failure_of(&self, attempt: &str) -> Option<Problem> {
        let failed = self.failed_attempt.as_ref().filter(|f| f.attempt == attempt)?;
        Some(Problem {
            kind: format!("urn:basin:problem:{}", failed.code),
            title: "It failed, and nothing has changed".to_owned(),
            status: 409,
            code: failed.code.clone(),
            detail: failed.detail.clone(),
            advice: failed.advice.clone(),
        })
    }
}
