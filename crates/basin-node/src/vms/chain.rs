//! Follows a volume's sources through the store's records.

use std::collections::BTreeSet;

use basin_model::image::{Image, ImageContent, ImageKind, ImageState};
use basin_model::volume::{Volume, VolumeFormat, VolumeSource, VolumeState};
use basin_model::{ImageId, VolumeId, keys};
use basin_storage::LayerFile;
use basin_store::{Store, records};
use serde::de::DeserializeOwned;

use crate::images::{Images, silent};
use crate::problem::{Explain, ONCE, Unready, problem};

/// Deeper chains are refused: each layer costs the guest's reads a lookup.
const DEEPEST: usize = 32;

/// The files of a volume, top first.
pub async fn layers(
    store: &dyn Store,
    images: &Images,
    id: VolumeId,
) -> Result<Vec<LayerFile>, Unready> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = volume(store, id).await?;
    loop {
        if !seen.insert(next.id) || files.len() >= DEEPEST {
            return Err(broken(format!("volume {id} stands on a chain of more than {DEEPEST}")));
        }
        let place = images.datastores.get(next.datastore)?;
        files.push(place.volume(next.id, next.format));
        match next.source {
            VolumeSource::LinkedVolume { volume: below } => next = volume(store, below).await?,
            VolumeSource::LinkedImage { image: below } => {
                let (image, content) = ready_image(store, below).await?;
                files.push(images.file(&image, content.format, &silent()).await?);
                break;
            }
            VolumeSource::Blank | VolumeSource::Image { .. } | VolumeSource::Volume { .. } => break,
        }
    }
    Ok(files)
}

/// The file of an image that is of the kind wanted.
pub async fn image_file(
    store: &dyn Store,
    images: &Images,
    id: ImageId,
    kind: ImageKind,
) -> Result<LayerFile, Unready> {
    let (image, _) = ready_image(store, id).await?;
    if image.kind != kind {
        let name = &image.meta.name;
        return Err(broken(format!("image {name} is a {:?}, not a {kind:?}", image.kind)));
    }
    images.file(&image, VolumeFormat::Raw, &silent()).await
}

async fn ready_image(store: &dyn Store, id: ImageId) -> Result<(Image, ImageContent), Unready> {
    let image: Image = read(store, &keys::image(id), "image").await?;
    match &image.state {
        ImageState::Ready { content } => {
            let content = content.clone();
            Ok((image, content))
        }
        _ => Err(broken(format!("image {} is not ready", image.meta.name))),
    }
}

async fn volume(store: &dyn Store, id: VolumeId) -> Result<Volume, Unready> {
    let volume: Volume = read(store, &keys::volume(id), "volume").await?;
    match volume.state {
        VolumeState::Ready => Ok(volume),
        _ => Err(broken(format!("volume {} is not ready", volume.meta.name))),
    }
}

async fn read<T: DeserializeOwned>(store: &dyn Store, key: &str, what: &str) -> Result<T, Unready> {
    match records::get(store, key).await {
        Ok(Some(record)) => Ok(record.value),
        Ok(None) => {
            let id = key.rsplit('/').next().unwrap_or(key);
            Err(broken(format!("{what} {id} does not exist")))
        }
        Err(error) => Err(Unready { problem: error.problem(), tries: error.tries() }),
    }
}

fn broken(detail: String) -> Unready {
    let advice = "change the VM's disks, or bring back what is missing";
    Unready { problem: problem("vm-incomplete", detail, advice), tries: ONCE }
}
