//! What resources have in common: list, get, create, patch and delete.

use std::collections::BTreeMap;

use reqwest::header::IF_MATCH;
use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{Client, ClientError};
use crate::datastore::{Datastore, DatastoreCreate};
use crate::host::Host;
use crate::image::{Image, ImageCreate};
use crate::network::{Network, NetworkCreate};
use crate::reference::{List, MetaPatch};
use crate::task::Task;
use crate::token::{Token, TokenCreate, TokenCreated};
use crate::vm::{Vm, VmCreate, VmPatch};
use crate::volume::{Volume, VolumeCreate};

/// A noun of the API.
pub trait Resource: DeserializeOwned + Serialize {
    /// The segment under `/v1`.
    const PATH: &str;
    /// What people call one.
    const NOUN: &str;
}

/// One that can be read by itself, not only in a list.
pub trait Readable: Resource {}

/// One that can be made.
pub trait Creatable: Resource {
    type Create: Serialize;
    /// The answer: a task, or the resource itself.
    type Created: DeserializeOwned;
}

/// One whose descriptive part, at least, can be changed.
pub trait Patchable: Resource {
    type Patch: Serialize + From<MetaPatch>;
}

/// One that can be deleted.
pub trait Deletable: Resource {
    /// The answer: a task, or nothing of interest.
    type Deleted: DeserializeOwned;
}

/// `resource!(TYPE, NOUN, PATH; get; create BODY => ANSWER; patch BODY; delete => ANSWER)`
macro_rules! resource {
    ($type:ty, $noun:literal, $path:literal $(; $verb:ident $($body:ident)? $(=> $answer:ty)?)*) => {
        impl Resource for $type {
            const PATH: &str = $path;
            const NOUN: &str = $noun;
        }
        $(verb!($verb $type $(, $body)? $(=> $answer)?);)*
    };
}

macro_rules! verb {
    (get $type:ty) => {
        impl Readable for $type {}
    };
    (create $type:ty, $body:ty => $answer:ty) => {
        impl Creatable for $type {
            type Create = $body;
            type Created = $answer;
        }
    };
    (patch $type:ty, $body:ty) => {
        impl Patchable for $type {
            type Patch = $body;
        }
    };
    (delete $type:ty => $answer:ty) => {
        impl Deletable for $type {
            type Deleted = $answer;
        }
    };
}

// A VM's deletion takes options: see `delete_vm`.
resource!(Vm, "vm", "vms"; get; create VmCreate => Task; patch VmPatch);
resource!(Image, "image", "images";
          get; create ImageCreate => Task; patch MetaPatch; delete => Task);
resource!(Volume, "volume", "volumes";
          get; create VolumeCreate => Task; patch MetaPatch; delete => Task);
resource!(Datastore, "datastore", "datastores";
          get; create DatastoreCreate => Datastore; patch MetaPatch; delete => IgnoredAny);
resource!(Network, "network", "networks";
          get; create NetworkCreate => Network; patch MetaPatch; delete => IgnoredAny);
// A server is removed with an option: see `remove_host`.
resource!(Host, "host", "hosts"; get; patch MetaPatch);
resource!(Task, "task", "tasks"; get);
resource!(Token, "token", "tokens"; create TokenCreate => TokenCreated; delete => IgnoredAny);

impl From<MetaPatch> for VmPatch {
    fn from(MetaPatch { name, description, labels }: MetaPatch) -> VmPatch {
        VmPatch { name, description, labels, ..VmPatch::default() }
    }
}

impl Client {
    pub async fn list<R: Resource>(&self) -> Result<List<R>, ClientError> {
        self.list_where(&BTreeMap::new()).await
    }

    /// Those that carry all of `labels`.
    pub async fn list_where<R: Resource>(
        &self,
        labels: &BTreeMap<String, String>,
    ) -> Result<List<R>, ClientError> {
        let query: Vec<_> = labels.iter().map(|(k, v)| ("label", format!("{k}={v}"))).collect();
        self.json(self.request(Method::GET, &[R::PATH])?.query(&query)).await
    }

    /// By name or id.
    pub async fn get<R: Readable>(&self, which: &str) -> Result<R, ClientError> {
        self.json(self.request(Method::GET, &[R::PATH, which])?).await
    }

    pub async fn create<R: Creatable>(&self, it: &R::Create) -> Result<R::Created, ClientError> {
        self.json(self.request(Method::POST, &[R::PATH])?.json(it)).await
    }

    /// Changes it, whatever its revision.
    pub async fn patch<R: Patchable>(
        &self,
        which: &str,
        patch: &R::Patch,
    ) -> Result<R, ClientError> {
        self.json(self.request(Method::PATCH, &[R::PATH, which])?.json(patch)).await
    }

    /// Changes it, and is refused when it is no longer at `revision`.
    pub async fn patch_if<R: Patchable>(
        &self,
        which: &str,
        patch: &R::Patch,
        revision: u64,
    ) -> Result<R, ClientError> {
        let request = self.request(Method::PATCH, &[R::PATH, which])?;
        self.json(if_match(request, revision).json(patch)).await
    }

    pub async fn delete<R: Deletable>(&self, which: &str) -> Result<R::Deleted, ClientError> {
        self.json(self.request(Method::DELETE, &[R::PATH, which])?).await
    }

    /// Deletes it, and is refused when it is no longer at `revision`.
    pub async fn delete_if<R: Deletable>(
        &self,
        which: &str,
        revision: u64,
    ) -> Result<R::Deleted, ClientError> {
        self.json(if_match(self.request(Method::DELETE, &[R::PATH, which])?, revision)).await
    }
}

fn if_match(request: RequestBuilder, revision: u64) -> RequestBuilder {
    request.header(IF_MATCH, format!("\"{revision}\""))
}
