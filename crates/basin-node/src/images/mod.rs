//! Images, wherever they are: the files of those whose datastore this server reaches,
//! and copies of the others.
//!
//! Images never change, so a copy is as good as the image. It is fetched when a
//! volume or VM of this server needs it, checked, and kept for as long as one does;
//! after that until its room is wanted.

mod cache;
mod needed;

use std::collections::BTreeSet;
use std::sync::Arc;

use basin_model::datastore::{Datastore, Sharing};
use basin_model::host::HostStatus;
use basin_model::image::{Image, ImageState};
use basin_model::keys::{self, Kind};
use basin_model::vm::Vm;
use basin_model::volume::{Volume, VolumeFormat};
use basin_model::{HostId, ImageId};
use basin_storage::{LayerFile, Progress};
use basin_store::records::{self, RecordEvent, watch_records};
use basin_store::{Store, StoreError};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

pub use cache::Cache;
use cache::Fetched;
use needed::needed;

use crate::datastores::Datastores;
use crate::peers::Peers;
use crate::problem::{A_FEW_TIMES, Explain, OFTEN, Unready, problem};

/// See the module.
pub struct Images {
    host: HostId,
    store: Arc<dyn Store>,
    pub datastores: Arc<Datastores>,
    peers: Arc<dyn Peers>,
    cache: Cache,
}

/// For those whom nobody asks how far they are.
pub fn silent() -> Progress {
    Arc::new(|_, _| ())
}

impl Images {
    pub fn new(
        host: HostId,
        store: Arc<dyn Store>,
        datastores: Arc<Datastores>,
        peers: Arc<dyn Peers>,
        cache: Cache,
    ) -> Images {
        Images { host, store, datastores, peers, cache }
    }

    /// The image's file, or that of a copy, which is fetched if need be.
    pub async fn file(
        &self,
        image: &Image,
        format: VolumeFormat,
        progress: &Progress,
    ) -> Result<LayerFile, Unready> {
        let here = match self.datastores.get(image.datastore) {
            Ok(place) => return Ok(place.image(image.id, format)),
            Err(here) => here,
        };
        // A copy at work is not fetched twice, and may be whole when its turn comes.
        let _turn = self.cache.turn(image.id).await;
        if let Some(file) = self.cache.find(image.id, format).await {
            return Ok(file);
        }
        let holders = self.holders(image).await.map_err(unready)?;
        if holders.is_empty() {
            return Err(here);
        }
        let mut failures = Vec::new();
        for (host, name) in holders {
            match self.fetch(image, format, host, progress).await {
                Ok(file) => return Ok(file),
                Err(e) => failures.push(format!("{name}: {}", e.problem.detail)),
            }
        }
        let detail = format!(
            "image {} is not on this server, and cannot be fetched from {}",
            image.meta.name,
            failures.join("; ")
        );
        let advice = "see that those servers run and can be reached from here";
        Err(Unready { problem: problem("image-elsewhere", detail, advice), tries: OFTEN })
    }

    /// The servers that have the image's datastore, and their names.
    async fn holders(&self, image: &Image) -> Result<Vec<(HostId, String)>, StoreError> {
        let key = keys::datastore(image.datastore);
        let Some(datastore) = records::get::<Datastore>(&*self.store, &key).await? else {
            return Ok(Vec::new());
        };
        let hosts = match datastore.value.sharing {
            Sharing::Local(host) => vec![host],
            Sharing::Shared { .. } => {
                let statuses = self.list::<HostStatus>(Kind::HostStatus).await?;
                let have = |s: &HostStatus| s.shared_datastores.contains(&image.datastore);
                statuses.into_iter().filter(have).map(|s| s.host).collect()
            }
        };
        let mut named = Vec::new();
        for host in hosts.into_iter().filter(|host| *host != self.host) {
            let key = keys::host(host);
            let record = records::get::<basin_model::host::Host>(&*self.store, &key).await?;
            let name = record.map(|h| h.value.meta.name.to_string());
            named.push((host, name.unwrap_or_else(|| host.to_string())));
        }
        Ok(named)
    }

    async fn fetch(
        &self,
        image: &Image,
        format: VolumeFormat,
        host: HostId,
        progress: &Progress,
    ) -> Result<LayerFile, Unready> {
        let Some(node) = self.peers.get(host) else {
            let problem = problem("host-unreachable", "it cannot be called", "see that it runs");
            return Err(Unready { problem, tries: OFTEN });
        };
        // Once more from the start if what was there before was no good.
        for _ in 0..2 {
            let offset = self.cache.begun(image.id).await;
            let read = node.read_image(image.datastore, image.id, offset);
            let bytes = read.await.map_err(|e| Unready { problem: e.0, tries: OFTEN })?;
            let missing = bytes.size.saturating_sub(offset);
            let wanted = self.needed().await.map_err(unready)?;
            self.cache.make_room(missing, &wanted).await.map_err(unready)?;
            match self.cache.fetch(image, format, offset, bytes, progress).await.map_err(unready)? {
                Fetched::Whole(file) => return Ok(file),
                Fetched::Wrong => {}
            }
        }
        let detail = "what it sent is not what it said it would be";
        let advice = "check that server's disks and memory, and the network between";
        Err(Unready { problem: problem("image-damaged", detail, advice), tries: A_FEW_TIMES })
    }

    /// Images that something on this server stands on.
    async fn needed(&self) -> Result<BTreeSet<ImageId>, StoreError> {
        let volumes = self.list::<Volume>(Kind::Volume).await?;
        let vms = self.list::<Vm>(Kind::Vm).await?;
        let datastores = self.list::<Datastore>(Kind::Datastore).await?;
        Ok(needed(self.host, &vms, &volumes, &datastores))
    }

    async fn list<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<T>, StoreError> {
        let (records, _) = records::list::<T>(&*self.store, &kind.prefix()).await?;
        Ok(records.into_iter().map(|r| r.value).collect())
    }

    /// Removes copies of images that are no more, as they go.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut events = watch_records::<Image>(self.store.clone(), Kind::Image.prefix());
        let mut known = BTreeSet::new();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            let stays = |image: &Image| image.state != ImageState::Deleting;
            match event {
                Some(Ok(RecordEvent::Resync { records, .. })) => {
                    let images = records.into_iter().map(|r| r.value).filter(stays);
                    known = images.map(|i| i.id).collect();
                }
                Some(Ok(RecordEvent::Put(record))) if stays(&record.value) => {
                    known.insert(record.value.id);
                    continue;
                }
                Some(Ok(RecordEvent::Put(record))) => drop(known.remove(&record.value.id)),
                Some(Ok(RecordEvent::Deleted { key, .. })) => {
                    let id = key.rsplit('/').next().and_then(|id| id.parse().ok());
                    id.map(|id| known.remove(&id));
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot watch images");
                    continue;
                }
                None => return,
            }
            if let Err(error) = self.cache.keep_only(&known).await {
                tracing::warn!(%error, "cannot tidy the copies of images");
            }
        }
    }
}

fn unready(error: impl Explain) -> Unready {
    Unready { problem: error.problem(), tries: error.tries() }
}
