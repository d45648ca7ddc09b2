//! Images and uploads as files: found, described, received, deleted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use basin_model::image::{ImageContent, ImageKind};
use basin_model::{Bytes, ImageId};
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::layout::FORMATS;
use super::source::ChunkReader;
use super::space::OVERHEAD;
use super::sparse::pour;
use super::stage::{Staged, remove};
use crate::datastore::{StorageError, UploadId};

fn io_error(what: String) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::Io { what, source }
}

/// The image if it is there, whole.
pub fn find(inner: &Inner, image: ImageId) -> Result<Option<ImageContent>, StorageError> {
    if !FORMATS.iter().any(|format| inner.layout.image(image, *format).exists()) {
        return Ok(None);
    }
    let about = inner.layout.about(image);
    let text = fs::read(&about).map_err(io_error(format!("reading {}", about.display())))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| StorageError::Corrupt {
        what: about.display().to_string(),
        why: e.to_string(),
    })
}

/// The image's file.
pub fn file(inner: &Inner, image: ImageId) -> Result<PathBuf, StorageError> {
    let paths = FORMATS.map(|format| inner.layout.image(image, format));
    let found = paths.into_iter().find(|path| path.exists());
    found.ok_or_else(|| StorageError::NotFound(format!("the file of image {image}")))
}

/// Puts an image in place. Its description comes first: the image is there when
/// its own file is.
pub fn publish(
    inner: &Inner,
    image: ImageId,
    kind: ImageKind,
    staged: Staged,
    content: &ImageContent,
) -> Result<(), StorageError> {
    let mut about = Staged::new(&inner.layout, &inner.space)?;
    serde_json::to_writer(&about.file, content)
        .map_err(io::Error::from)
        .and_then(|()| about.file.write_all(b"\n"))
        .map_err(|e| inner.space.explain("describing the image", OVERHEAD, e))?;
    about.place(&inner.layout.about(image), 0o400, &inner.space)?;
    let mode = match kind {
        // Read by blockd, and by `qemu-img` through a descriptor.
        ImageKind::Disk => 0o440,
        // Opened by QEMU under the VM's user.
        ImageKind::Iso | ImageKind::Kernel | ImageKind::Initrd => 0o444,
    };
    staged.place(&inner.layout.image(image, content.format), mode, &inner.space)
}

/// Idempotent. The image's own file goes first.
pub fn delete(inner: &Inner, image: ImageId) -> Result<(), StorageError> {
    for format in FORMATS {
        let path = inner.layout.image(image, format);
        remove(&path).map_err(io_error(format!("deleting {}", path.display())))?;
    }
    let about = inner.layout.about(image);
    remove(&about).map_err(io_error(format!("deleting {}", about.display())))?;
    Ok(())
}

/// Takes in an upload; one with the same id is replaced.
pub fn receive(
    inner: &Inner,
    upload: UploadId,
    mut from: ChunkReader,
    cancel: &CancellationToken,
) -> Result<Bytes, StorageError> {
    let staged = Staged::new(&inner.layout, &inner.space)?;
    let reservation = inner.space.reserve(OVERHEAD, &staged.path)?;
    let failure = from.failure();
    let mut explain = |source: io::Error| {
        failure.take().unwrap_or(StorageError::Io { what: "receiving the upload".into(), source })
    };
    let length = pour(&mut from, &staged.file, &inner.space, &reservation, cancel, &mut explain)?;
    staged.place(&inner.layout.upload(upload), 0o600, &inner.space)?;
    Ok(Bytes(length))
}

/// An upload's file.
pub fn open_upload(
    inner: &Inner,
    upload: UploadId,
) -> Result<(PathBuf, File, Bytes), StorageError> {
    let path = inner.layout.upload(upload);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => {
            StorageError::NotFound(format!("upload {} (an upload is kept for a day)", upload.0))
        }
        _ => StorageError::Io { what: format!("opening {}", path.display()), source },
    };
    let file = File::open(&path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    Ok((path, file, Bytes(length)))
}

/// Idempotent.
pub fn discard_upload(inner: &Inner, upload: UploadId) -> Result<(), StorageError> {
    let path = inner.layout.upload(upload);
    remove(&path).map_err(io_error(format!("deleting {}", path.display())))?;
    Ok(())
}
