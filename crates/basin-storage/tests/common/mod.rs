//! What the tests of the directory datastore share.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use basin_model::image::{ImageContent, ImageKind, SourceFormat};
use basin_model::volume::VolumeFormat;
use basin_model::{Bytes, DatastoreId, ImageId, VolumeId};
use basin_storage::{
    Datastore, DirDatastore, ImportRequest, ImportSource, NewVolume, Progress, StorageError,
    VolumeContent,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub struct Place {
    pub dir: TempDir,
    pub id: DatastoreId,
    pub store: DirDatastore,
}

pub fn place() -> Place {
    place_with(None)
}

pub fn place_with(quota: Option<Bytes>) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let id = DatastoreId::from_uuid(Uuid::new_v4());
    DirDatastore::make(id, dir.path().join("store")).unwrap();
    let store = DirDatastore::open(id, dir.path().join("store"), quota).unwrap();
    Place { dir, id, store }
}

impl Place {
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A place for sources, outside the datastore.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.scratch(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub async fn import(
        &self,
        kind: ImageKind,
        path: &Path,
    ) -> Result<(ImageId, ImageContent), StorageError> {
        self.import_as(kind, ImportSource::Path { path: path.to_owned() }, None, None).await
    }

    pub async fn import_as(
        &self,
        kind: ImageKind,
        source: ImportSource,
        format: Option<SourceFormat>,
        sha256: Option<String>,
    ) -> Result<(ImageId, ImageContent), StorageError> {
        let request = ImportRequest { image: image_id(), kind, source, format, sha256 };
        let content = self.store.import(&request, quiet(), CancellationToken::new()).await?;
        Ok((request.image, content))
    }

    pub async fn create(
        &self,
        format: VolumeFormat,
        size: Bytes,
        content: VolumeContent,
    ) -> Result<VolumeId, StorageError> {
        let volume = volume_id();
        let new = NewVolume { volume, format, size, content };
        self.store.create(&new, quiet(), CancellationToken::new()).await.map(|()| volume)
    }

    /// The names of all files of the datastore but its own marks.
    pub fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for directory in ["images", "volumes", "incoming"] {
            for entry in fs::read_dir(self.root().join(directory)).unwrap() {
                names.push(format!("{directory}/{}", entry.unwrap().file_name().display()));
            }
        }
        names.sort();
        names
    }
}

pub fn image_id() -> ImageId {
    ImageId::from_uuid(Uuid::new_v4())
}

pub fn volume_id() -> VolumeId {
    VolumeId::from_uuid(Uuid::new_v4())
}

pub fn quiet() -> Progress {
    Arc::new(|_, _| ())
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that do not compress, the same in every run.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A disk with holes, data, and a size that is whole sectors but nothing rounder.
pub fn disk() -> Vec<u8> {
    let mut disk = vec![0; (6 << 20) + 512];
    disk[1 << 20..2 << 20].copy_from_slice(&noise(1 << 20));
    let end = disk.len();
    disk[end - 512..].copy_from_slice(&noise(512));
    disk
}

/// What a guest would read of a chain's file.
pub fn content(path: &Path, format: VolumeFormat, into: &Path) -> Vec<u8> {
    let format = match format {
        VolumeFormat::Raw => "raw",
        VolumeFormat::Qcow2 => "qcow2",
    };
    run("qemu-img", &["convert", "-f", format, "-O", "raw", text(path), text(into)]);
    fs::read(into).unwrap()
}

/// Runs on a thread with mounts of its own, which go away with it.
pub fn in_namespace<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> std::thread::Result<T> {
    std::thread::spawn(|| {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        f()
    })
    .join()
}

/// Mounts a file system of memory, to be used within [`in_namespace`].
pub fn mount(at: &Path, kind: &str, options: &str, flags: nix::mount::MsFlags) {
    nix::mount::mount(Some("none"), at, Some(kind), flags, Some(options)).unwrap();
}
