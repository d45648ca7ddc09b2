//! An image's file for other servers, which keep copies of it.
//!
//! A copy is checked by the SHA-256 of the file as it is stored. It is worked out
//! when the first server asks, and kept with the image's description.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};

use basin_model::image::ImageContent;
use basin_model::{Bytes, ImageId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::images;
use super::space::OVERHEAD;
use super::stage::Staged;
use super::{Inner, source::hex};
use crate::datastore::{ImageBytes, StorageError};

const BLOCK: usize = 1 << 20;

/// An image's description, with what only its copies need.
#[derive(Serialize, Deserialize)]
struct About {
    #[serde(flatten)]
    content: ImageContent,
    #[serde(default)]
    stored_sha256: Option<String>,
}

pub fn read(
    inner: &Inner,
    image: ImageId,
    offset: Bytes,
    cancel: &CancellationToken,
) -> Result<ImageBytes, StorageError> {
    let path = images::file(inner, image)?;
    let failed = |source| StorageError::Io { what: format!("reading {}", path.display()), source };
    let mut file = File::open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if offset.get() > size {
        return Err(StorageError::Invalid(format!(
            "image {image} ends at {size}; there is nothing from {} on",
            offset.get()
        )));
    }
    let sha256 = digest(inner, image, &mut file, cancel)?;
    file.seek(SeekFrom::Start(offset.get())).map_err(failed)?;
    let bytes = Box::pin(tokio::fs::File::from_std(file));
    Ok(ImageBytes { size: Bytes(size), sha256, bytes })
}

fn digest(
    inner: &Inner,
    image: ImageId,
    file: &mut File,
    cancel: &CancellationToken,
) -> Result<String, StorageError> {
    let path = inner.layout.about(image);
    let failed = |source| StorageError::Io { what: format!("reading {}", path.display()), source };
    let text = fs::read(&path).map_err(failed)?;
    let mut about: About = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
    if let Some(known) = about.stored_sha256 {
        return Ok(known);
    }
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        if cancel.is_cancelled() {
            return Err(StorageError::Cancelled);
        }
        match file.read(&mut block).map_err(failed)? {
            0 => break,
            n => hash.update(&block[..n]),
        }
    }
    let sha256 = hex(&hash.finalize());
    about.stored_sha256 = Some(sha256.clone());
    // A full disk costs the next one who asks the same work, no more.
    if let Err(error) = write(inner, image, &about) {
        tracing::warn!(%image, %error, "cannot note the checksum of an image's file");
    }
    Ok(sha256)
}

fn write(inner: &Inner, image: ImageId, about: &About) -> Result<(), StorageError> {
    let staged = Staged::new(&inner.layout, &inner.space)?;
    serde_json::to_writer(&staged.file, about)
        .map_err(io::Error::from)
        .map_err(|e| inner.space.explain("describing the image", OVERHEAD, e))?;
    staged.place(&inner.layout.about(image), 0o400, &inner.space)
}
