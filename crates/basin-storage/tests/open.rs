//! What becomes a datastore, and what does not.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use basin_model::volume::VolumeFormat::Raw;
use basin_model::{Bytes, DatastoreId};
use basin_storage::{Datastore, DirDatastore, StorageError, UploadId, VolumeContent};
use common::*;
use nix::mount::{MntFlags, MsFlags, umount2};
use uuid::Uuid;

fn id() -> DatastoreId {
    DatastoreId::from_uuid(Uuid::new_v4())
}

fn refused(id: DatastoreId, path: &Path, why: &str) {
    let made = DirDatastore::make(id, path);
    match made.and_then(|()| DirDatastore::open(id, path, None)) {
        Err(e @ (StorageError::Invalid(_) | StorageError::Corrupt { .. })) => {
            assert!(e.to_string().contains(why), "{e}");
        }
        Err(e) => panic!("{e:?}"),
        Ok(_) => panic!("{} was taken", path.display()),
    }
}

#[test]
fn only_a_fitting_directory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    refused(id(), Path::new("somewhere"), "absolute");
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(id(), &file, "not a directory");
    refused(id(), &file.join("below"), "not a directory");
    // Somebody's files are in it.
    refused(id(), dir.path(), "not empty");
    let broken = dir.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join(".basin-datastore"), "{").unwrap();
    refused(id(), &broken, "does not name");
}

#[test]
fn a_directory_belongs_to_one_datastore_and_one_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (first, path) = (id(), dir.path().join("a/b"));
    DirDatastore::make(first, &path).unwrap();
    let open = DirDatastore::open(first, &path, None).unwrap();
    refused(first, &path, "in use");
    refused(id(), &path, "another datastore");
    drop(open);
    refused(id(), &path, "another datastore");
    DirDatastore::open(first, &path, None).unwrap();
}

#[test]
fn a_file_system_that_is_not_mounted_is_not_an_empty_datastore() {
    let dir = tempfile::tempdir().unwrap();
    let result = in_namespace(move || {
        let (id, root) = (id(), dir.path().join("store"));
        fs::create_dir(&root).unwrap();
        mount(&root, "tmpfs", "size=4m", MsFlags::empty());
        DirDatastore::make(id, &root).unwrap();
        let open = DirDatastore::open(id, &root, None).unwrap();
        umount2(&root, MntFlags::MNT_DETACH).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let lost = runtime.block_on(open.capacity());
        assert!(matches!(lost, Err(StorageError::NotMounted { .. })), "{lost:?}");
        drop(open);
        let gone = DirDatastore::open(id, &root, None).err();
        assert!(matches!(gone, Some(StorageError::NotMounted { .. })), "{gone:?}");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing is made there");
        fs::remove_dir(&root).unwrap();
        let gone = DirDatastore::open(id, &root, None).err();
        assert!(matches!(gone, Some(StorageError::NotMounted { .. })), "{gone:?}");
        assert!(!root.exists(), "nor the directory itself");
    });
    result.unwrap();
}

#[tokio::test]
async fn an_empty_datastore_gives_its_directory_back() {
    let p = place();
    let (root, first) = (p.root(), p.id);
    let volume = p.create(Raw, Bytes::mib(1), VolumeContent::Blank).await.unwrap();
    let Place { dir: _dir, store, .. } = p;
    DirDatastore::unmake(first, &root).unwrap();
    refused(id(), &root, "another datastore");
    store.delete(volume).await.unwrap();
    drop(store);
    // Somebody else's is not touched.
    DirDatastore::unmake(id(), &root).unwrap();
    refused(id(), &root, "another datastore");
    DirDatastore::unmake(first, &root).unwrap();
    DirDatastore::unmake(first, &root).unwrap();
    let next = id();
    DirDatastore::make(next, &root).unwrap();
    DirDatastore::open(next, &root, None).unwrap();
}

#[test]
fn a_read_only_file_system_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let result = in_namespace(move || {
        mount(dir.path(), "tmpfs", "size=1m", MsFlags::MS_RDONLY);
        refused(id(), dir.path(), "read-only");
        refused(id(), &dir.path().join("below"), "read-only");
    });
    result.unwrap();
}

#[tokio::test]
async fn leftovers_are_swept_and_fresh_uploads_are_not() {
    let p = place();
    let upload = UploadId(Uuid::new_v4());
    p.store.receive(upload, &mut &b"bytes"[..]).await.unwrap();
    let incoming = p.root().join("incoming");
    fs::write(incoming.join("tmp-x"), "x").unwrap();
    let old = incoming.join(format!("upload-{}", Uuid::new_v4()));
    fs::write(&old, "x").unwrap();
    let past = SystemTime::now() - Duration::from_secs(25 * 3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(past).unwrap();
    fs::write(p.root().join("images").join(format!("{}.json", image_id())), "{}").unwrap();
    let (root, id) = (p.root(), p.id);
    let Place { dir, store, .. } = p;
    drop(store);
    let store = DirDatastore::open(id, &root, None).unwrap();
    let p = Place { dir, id, store };
    assert_eq!(p.files(), [format!("incoming/upload-{}", upload.0)]);
}

#[tokio::test]
async fn the_quota_bounds_what_is_free() {
    let p = place_with(Some(Bytes::mib(10)));
    let empty = p.store.capacity().await.unwrap();
    assert_eq!(
        (empty.total, empty.used, empty.free),
        (Bytes::mib(10), Bytes::ZERO, Bytes::mib(10))
    );
    let upload = UploadId(Uuid::new_v4());
    p.store.receive(upload, &mut &noise(4 << 20)[..]).await.unwrap();
    let now = p.store.capacity().await.unwrap();
    assert_eq!(now.free, Bytes(now.total.get() - now.used.get()));
    assert!(now.used >= Bytes::mib(4) && now.used < Bytes::mib(5), "{now:?}");
}
