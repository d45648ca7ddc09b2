//! Datastores.

use basin_api::datastore::{Datastore, Space};
use basin_model::datastore::{self as model, Capacity, DatastoreKind};
use basin_store::records::Versioned;

use super::{meta, reference};
use crate::app::inventory::Snapshot;
use crate::intake::space::provisioned;

pub fn datastore(
    record: &Versioned<model::Datastore>,
    capacity: Option<Capacity>,
    snapshot: &Snapshot,
) -> Datastore {
    let datastore = &record.value;
    let host = snapshot.hosts.get(&datastore.host).map(|h| &h.value.meta.name);
    let DatastoreKind::Dir { path } = &datastore.kind;
    let subject = format!("datastore/{}", datastore.id);
    let status = snapshot.host_statuses.get(&datastore.host).map(|s| &s.value);
    let condition = status.and_then(|s| s.conditions.iter().find(|c| c.subject == subject));
    Datastore {
        meta: meta(datastore.id, &datastore.meta, record.revision),
        host: reference(datastore.host, host),
        kind: "dir".to_owned(),
        path: path.display().to_string(),
        quota_bytes: datastore.quota.map(|q| q.get()),
        overcommit_percent: datastore.overcommit_percent,
        space: capacity.map(|c| Space {
            total_bytes: c.total.get(),
            used_bytes: c.used.get(),
            free_bytes: c.free.get(),
            provisioned_bytes: provisioned(datastore.id, snapshot).get(),
        }),
        problem: condition.map(|c| c.problem.detail.clone()),
    }
}
