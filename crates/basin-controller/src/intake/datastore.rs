//! Pure. New datastores.

use std::path::{Component, PathBuf};

use basin_api::datastore::DatastoreCreate;
use basin_model::datastore::{Datastore, DatastoreKind, DatastoreState, Sharing};
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::{Bytes, DatastoreId, HostId};
use basin_store::records::TxnBuilder;

use super::{Mint, meta};
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// A datastore to make.
pub struct Draft {
    pub datastore: Datastore,
    pub txn: TxnBuilder,
}

/// `asked` is the server that makes it when none is named.
pub fn create(
    request: &DatastoreCreate,
    asked: HostId,
    snapshot: &Snapshot,
    mint: &mut Mint<'_>,
) -> Result<Draft, Problem> {
    let meta = meta::new(
        &snapshot.datastores,
        &request.name,
        &request.description,
        &request.labels,
        mint,
    )?;
    let path = PathBuf::from(&request.path);
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || request.path.contains('\0') {
        return Err(problems::invalid(format!(
            "path: '{}' is not an absolute path without '.' and '..'",
            request.path
        )));
    }
    let maker = match &request.host {
        Some(reference) => snapshot.host(reference)?.value.id,
        None => asked,
    };
    let sharing = if request.shared { Sharing::Shared { maker } } else { Sharing::Local(maker) };
    let others = snapshot.datastores.values().map(|d| &d.value);
    for other in others.filter(|d| meet(d.sharing, sharing)) {
        let DatastoreKind::Dir { path: theirs } = &other.kind;
        if theirs.starts_with(&path) || path.starts_with(theirs) {
            return Err(problems::invalid(format!(
                "path: {} and datastore '{}' at {} would be one inside the other",
                path.display(),
                other.meta.name,
                theirs.display()
            )));
        }
    }
    let overcommit_percent =
        request.overcommit_percent.unwrap_or(Datastore::DEFAULT_OVERCOMMIT_PERCENT);
    if !(1..=10_000).contains(&overcommit_percent) {
        return Err(problems::invalid("overcommit_percent: it is from 1 to 10000"));
    }
    if request.quota_bytes == Some(0) {
        return Err(problems::invalid("quota_bytes: nothing would fit; leave it out for no quota"));
    }
    let id = DatastoreId::from_uuid(mint.uuid());
    let quota = request.quota_bytes.map(Bytes);
    let kind = DatastoreKind::Dir { path };
    let state = DatastoreState::Preparing;
    let datastore = Datastore { id, meta, sharing, kind, quota, overcommit_percent, state };
    let txn = TxnBuilder::new()
        .create(Kind::Datastore.name(&datastore.meta.name), &id)
        .create(keys::datastore(id), &datastore);
    Ok(Draft { datastore, txn })
}

/// Whether some server has both.
fn meet(a: Sharing, b: Sharing) -> bool {
    match (a, b) {
        (Sharing::Local(a), Sharing::Local(b)) => a == b,
        _ => true,
    }
}
