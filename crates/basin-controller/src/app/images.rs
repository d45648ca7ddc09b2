//! Images and uploads.

use basin_api::image::ImageCreate;
use basin_api::reference::MetaPatch;
use basin_model::image::{Image, ImageState};
use basin_model::keys::{self, Kind};
use basin_model::task::{Problem, Task};
use basin_model::{Bytes, DatastoreId, HostId, ImageId};
use basin_storage::{ImportSource, UploadId};
use basin_store::Revision;
use basin_store::records::TxnBuilder;
use tokio::io::AsyncRead;
use uuid::Uuid;

use super::inventory::Snapshot;
use super::{App, nodes, problems, store_problem, unchanged};
use crate::intake::{self, meta, reach};
use crate::workflows::image_delete::ImageDelete;
use crate::workflows::image_import::ImageImport;

impl App {
    /// A path is one on the server that was `asked`.
    pub async fn import_image(
        &self,
        request: &ImageCreate,
        asked: HostId,
    ) -> Result<Task, Problem> {
        self.start(|snapshot, mint| {
            let draft = intake::image::create(request, snapshot, mint)?;
            let host = reach::choose(&[draft.image.datastore], asked, snapshot)?;
            readable(&draft.import.source, asked, host, draft.image.datastore, snapshot)?;
            Ok((ImageImport::new(draft.image, draft.import, host), draft.txn))
        })
        .await
    }

    /// Takes in bytes that an image is to be made of.
    pub async fn upload(
        &self,
        datastore: Option<&str>,
        asked: HostId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<(UploadId, Bytes), Problem> {
        let (id, host) = {
            let snapshot = self.inventory().read();
            let id = snapshot.ready_datastore(datastore.unwrap_or("default"))?.value.id;
            (id, reach::choose(&[id], asked, &snapshot)?)
        };
        let upload = UploadId(Uuid::now_v7());
        let size = self
            .nodes()
            .get(host)?
            .receive_upload(id, upload, bytes)
            .await
            .map_err(nodes::refused)?;
        Ok((upload, size))
    }

    pub async fn patch_image(
        &self,
        reference: &str,
        patch: &MetaPatch,
        expected: Option<Revision>,
    ) -> Result<ImageId, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.image(reference)?;
            unchanged(old, expected)?;
            ready(&old.value)?;
            let mut new = old.value.clone();
            let kind = (Kind::Image, new.id);
            let (meta, txn) = meta::change(kind, &snapshot.images, &old.value.meta, patch.into())?;
            new.meta = meta;
            Ok((new.id, txn.replace(old, &new)))
        })
        .await
    }

    pub async fn delete_image(
        &self,
        reference: &str,
        expected: Option<Revision>,
    ) -> Result<Task, Problem> {
        let guard = self.guard(Kind::Image, |s| s.image(reference).map(|i| i.value.id)).await?;
        self.start(|snapshot, _| {
            let record = snapshot.image(reference)?;
            unchanged(record, expected)?;
            let image = &record.value;
            ready(image)?;
            let users = snapshot.users_of_image(image.id);
            if !users.is_empty() {
                return Err(problems::in_use("image", &image.meta.name, &users));
            }
            let deleting = Image { state: ImageState::Deleting, ..image.clone() };
            let txn = guard.txn().replace(record, &deleting);
            Ok((ImageDelete::new(deleting), txn))
        })
        .await
    }

    /// Notes who last began to use a thing, before its users are looked at: a
    /// deletion is refused if anybody else has begun since.
    pub(super) async fn guard<I: std::fmt::Display>(
        &self,
        kind: Kind,
        find: impl FnOnce(&super::inventory::Snapshot) -> Result<I, Problem>,
    ) -> Result<Guard, Problem> {
        let key = keys::guard(kind, find(&self.inventory().read())?);
        let entry = self.store().get(&key).await.map_err(|e| store_problem(&e))?;
        let modified = entry.map(|e| e.modified);
        if let Some(revision) = modified {
            self.inventory().at_least(revision).await;
        }
        Ok(Guard { key, modified })
    }
}

/// A file is read where whoever named it is, and nowhere else: another server may have
/// another file by that name.
fn readable(
    source: &ImportSource,
    asked: HostId,
    host: HostId,
    datastore: DatastoreId,
    snapshot: &Snapshot,
) -> Result<(), Problem> {
    let ImportSource::Path { path } = source else { return Ok(()) };
    if asked == host {
        return Ok(());
    }
    let name = |id: HostId| {
        snapshot.hosts.get(&id).map_or_else(|| id.to_string(), |h| h.value.meta.name.to_string())
    };
    let datastore = snapshot.datastores.get(&datastore).map(|d| d.value.meta.name.to_string());
    let datastore = datastore.unwrap_or_default();
    Err(problems::file_elsewhere(path.display(), &name(asked), &name(host), &datastore))
}

/// Only a workflow touches an image before it is ready or while it goes.
fn ready(image: &Image) -> Result<(), Problem> {
    if matches!(image.state, ImageState::Ready { .. }) {
        return Ok(());
    }
    let advice = "See 'basin task list'; a running import can be cancelled.";
    Err(problems::wrong_state("image", &image.meta.name, "not ready", advice))
}

/// A guard as it was read.
pub(super) struct Guard {
    key: String,
    modified: Option<Revision>,
}

impl Guard {
    /// Holds if nobody has begun to use the thing since; takes the guard away.
    pub(super) fn txn(&self) -> TxnBuilder {
        let txn = TxnBuilder::new();
        match self.modified {
            None => txn.require_absent(self.key.clone()),
            Some(revision) => txn
                .require(basin_store::Compare::Unchanged(self.key.clone(), revision))
                .delete(self.key.clone()),
        }
    }
}

/// What an import reads, for the task's reader.
pub fn source_words(source: &ImportSource) -> String {
    match source {
        ImportSource::Path { path } => path.display().to_string(),
        ImportSource::Url { url } => url.clone(),
        ImportSource::Upload { .. } => "the upload".to_owned(),
    }
}
