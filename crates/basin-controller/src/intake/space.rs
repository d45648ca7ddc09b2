//! Pure. Thin provisioning: how much a datastore may still promise.

use basin_model::datastore::{Capacity, Datastore};
use basin_model::image::ImageState;
use basin_model::task::Problem;
use basin_model::{Bytes, DatastoreId};

use crate::app::inventory::Snapshot;
use crate::app::problems;

/// What a datastore has promised: the full size of every volume, and its images.
pub fn provisioned(datastore: DatastoreId, snapshot: &Snapshot) -> Bytes {
    let volumes = snapshot.volumes.values().map(|v| &v.value);
    let images = snapshot.images.values().map(|i| &i.value);
    let of_images = images.filter(|i| i.datastore == datastore).map(|i| match &i.state {
        ImageState::Ready { content } => content.file_size,
        ImageState::Importing | ImageState::Deleting => Bytes::ZERO,
    });
    volumes.filter(|v| v.datastore == datastore).map(|v| v.size).sum::<Bytes>()
        + of_images.sum::<Bytes>()
}

/// Refuses to promise more than the capacity times its overcommit.
pub fn admit(
    datastore: &Datastore,
    capacity: Capacity,
    promised: Bytes,
    more: Bytes,
) -> Result<(), Problem> {
    let ceiling = u128::from(capacity.total.get()) * u128::from(datastore.overcommit_percent) / 100;
    let ceiling = Bytes(u64::try_from(ceiling).unwrap_or(u64::MAX));
    let left = ceiling.saturating_sub(promised);
    if more <= left {
        return Ok(());
    }
    Err(problems::no_space(&datastore.meta.name, more, left, datastore.overcommit_percent))
}
