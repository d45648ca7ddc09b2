//! Datastores.

use basin_api::datastore::{Datastore, DatastoreServer, Space};
use basin_model::datastore::{self as model, Capacity, DatastoreKind, Sharing};
use basin_store::records::Versioned;

use super::{meta, reference};
use crate::app::inventory::Snapshot;
use crate::intake::reach::trouble;
use crate::intake::space::provisioned;

pub fn datastore(
    record: &Versioned<model::Datastore>,
    capacity: Option<Capacity>,
    snapshot: &Snapshot,
) -> Datastore {
    let datastore = &record.value;
    let DatastoreKind::Dir { path } = &datastore.kind;
    let name = |host| snapshot.hosts.get(&host).map(|h| &h.value.meta.name);
    let server = |host| {
        let problem = trouble(datastore, host, snapshot);
        DatastoreServer { host: reference(host, name(host)), reaches: problem.is_none(), problem }
    };
    let hosts = snapshot.hosts.keys().copied();
    let servers: Vec<_> =
        hosts.filter(|host| datastore.sharing.includes(*host)).map(server).collect();
    let host = match datastore.sharing {
        Sharing::Local(host) => Some(reference(host, name(host))),
        Sharing::Shared { .. } => None,
    };
    let reached = servers.iter().any(|s| s.reaches);
    let problem = servers.iter().find_map(|s| s.problem.clone()).filter(|_| !reached);
    Datastore {
        meta: meta(datastore.id, &datastore.meta, record.revision),
        host,
        shared: datastore.sharing.is_shared(),
        servers,
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
        problem,
    }
}
