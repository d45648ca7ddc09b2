//! Images.

use basin_api::image::{Image, ImageContent, ImageKind, ImageState};
use basin_model::image as model;
use basin_store::records::Versioned;

use super::volume::format_word;
use super::{meta, reference};
use crate::app::inventory::Snapshot;

pub fn image(record: &Versioned<model::Image>, snapshot: &Snapshot) -> Image {
    let image = &record.value;
    let datastore = snapshot.datastores.get(&image.datastore).map(|d| &d.value.meta.name);
    let (state, content) = match &image.state {
        model::ImageState::Importing => (ImageState::Importing, None),
        model::ImageState::Ready { content } => (ImageState::Ready, Some(content)),
        model::ImageState::Deleting => (ImageState::Deleting, None),
    };
    Image {
        meta: meta(image.id, &image.meta, record.revision),
        datastore: reference(image.datastore, datastore),
        kind: match image.kind {
            model::ImageKind::Disk => ImageKind::Disk,
            model::ImageKind::Iso => ImageKind::Iso,
            model::ImageKind::Kernel => ImageKind::Kernel,
            model::ImageKind::Initrd => ImageKind::Initrd,
        },
        state,
        content: content.map(|c| ImageContent {
            format: format_word(c.format).to_owned(),
            virtual_size_bytes: c.virtual_size.get(),
            file_size_bytes: c.file_size.get(),
            sha256: c.sha256.clone(),
        }),
    }
}
