//! Who asks, and what they may do. There is only the administrator yet; roles
//! bound to places in the pool tree come here, and nowhere else.

use std::sync::Arc;

use basin_model::TokenId;
use basin_model::task::Problem;
use serde::{Deserialize, Serialize};

use super::problems;

/// Who asks. Servers tell each other so when they pass requests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Actor {
    /// Root, over the server's own socket.
    Root,
    Token {
        id: TokenId,
        name: String,
    },
}

/// What an endpoint lets one do, coarse enough to be granted by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read anything but secrets.
    View,
    /// Change how VMs run, and type on their consoles.
    Operate,
    /// Make, change and delete VMs, volumes, images and networks.
    Configure,
    /// Servers, datastores and tokens.
    Administer,
}

impl Action {
    pub const fn words(self) -> &'static str {
        match self {
            Action::View => "read this",
            Action::Operate => "operate virtual machines",
            Action::Configure => "change virtual machines, disks, images and networks",
            Action::Administer => "administer servers, datastores and tokens",
        }
    }
}

/// Decides what an actor may do.
pub trait Authorizer: Send + Sync + 'static {
    fn allows(&self, actor: &Actor, action: Action) -> bool;

    /// Refuses with the reason, or lets pass.
    fn check(&self, actor: &Actor, action: Action) -> Result<(), Problem> {
        if self.allows(actor, action) { Ok(()) } else { Err(problems::forbidden(action.words())) }
    }
}

/// Everybody who is known may do everything: tokens have one role so far.
pub struct Administrators;

impl Authorizer for Administrators {
    fn allows(&self, _: &Actor, _: Action) -> bool {
        true
    }
}

/// The authorizer in force.
pub type SharedAuthorizer = Arc<dyn Authorizer>;
