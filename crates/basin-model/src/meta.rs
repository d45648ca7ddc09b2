//! What every named noun carries.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::{Labels, Name};

/// Name, description and labels; the creation time never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub name: Name,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    pub created_at: Timestamp,
}
