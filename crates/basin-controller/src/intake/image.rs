//! Pure. New images.

use std::path::PathBuf;

use basin_api::image::{self as api, ImageCreate, ImageSource};
use basin_model::ImageId;
use basin_model::image::{Image, ImageKind, ImageState, SourceFormat};
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_storage::{ImportRequest, ImportSource, UploadId};
use basin_store::records::TxnBuilder;

use super::{Mint, Uses, meta};
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// An image to import.
pub struct Draft {
    pub image: Image,
    pub import: ImportRequest,
    pub txn: TxnBuilder,
}

pub fn create(
    request: &ImageCreate,
    snapshot: &Snapshot,
    mint: &mut Mint<'_>,
) -> Result<Draft, Problem> {
    let meta =
        meta::new(&snapshot.images, &request.name, &request.description, &request.labels, mint)?;
    let datastore = snapshot.ready_datastore(request.datastore.as_deref().unwrap_or("default"))?;
    let kind = match request.kind {
        api::ImageKind::Disk => ImageKind::Disk,
        api::ImageKind::Iso => ImageKind::Iso,
        api::ImageKind::Kernel => ImageKind::Kernel,
        api::ImageKind::Initrd => ImageKind::Initrd,
    };
    if kind != ImageKind::Disk && request.format.is_some() {
        return Err(problems::invalid("format: only a disk has one"));
    }
    let id = ImageId::from_uuid(mint.uuid());
    let import = ImportRequest {
        image: id,
        kind,
        source: source(&request.source)?,
        format: request.format.map(format),
        sha256: request.sha256.as_deref().map(checksum).transpose()?,
    };
    let image =
        Image { id, meta, datastore: datastore.value.id, kind, state: ImageState::Importing };
    let mut uses = Uses::default();
    uses.hold(Kind::Datastore, datastore.value.id, datastore);
    let txn = uses
        .into_txn()
        .create(Kind::Image.name(&image.meta.name), &id)
        .create(keys::image(id), &image);
    Ok(Draft { image, import, txn })
}

fn source(source: &ImageSource) -> Result<ImportSource, Problem> {
    Ok(match source {
        ImageSource::Path { path } if path.starts_with('/') => {
            ImportSource::Path { path: PathBuf::from(path) }
        }
        ImageSource::Path { path } => {
            return Err(problems::invalid(format!("source: '{path}' is not an absolute path")));
        }
        ImageSource::Url { url } if url.starts_with("http://") || url.starts_with("https://") => {
            ImportSource::Url { url: url.clone() }
        }
        ImageSource::Url { url } => {
            return Err(problems::invalid(format!("source: '{url}' is not an http or https URL")));
        }
        ImageSource::Upload { upload } => {
            let id = super::field("source", upload.parse::<uuid::Uuid>())?;
            ImportSource::Upload { upload: UploadId(id) }
        }
    })
}

fn format(format: api::SourceFormat) -> SourceFormat {
    match format {
        api::SourceFormat::Raw => SourceFormat::Raw,
        api::SourceFormat::Qcow2 => SourceFormat::Qcow2,
        api::SourceFormat::Vmdk => SourceFormat::Vmdk,
        api::SourceFormat::Vhdx => SourceFormat::Vhdx,
        api::SourceFormat::Vdi => SourceFormat::Vdi,
    }
}

fn checksum(text: &str) -> Result<String, Problem> {
    if text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(problems::invalid(format!("sha256: '{text}' is not 64 hex digits")))
}
