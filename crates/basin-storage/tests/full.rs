//! A datastore that has no room, has too little, or runs out of it on the way.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use basin_model::image::ImageKind;
use basin_model::volume::VolumeFormat::{Qcow2, Raw};
use basin_model::{Bytes, DatastoreId};
use basin_storage::{
    Datastore, DirDatastore, ImportRequest, ImportSource, LayerFile, StorageError, UploadId,
    VolumeContent,
};
use common::*;
use nix::mount::MsFlags;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Runs with a datastore on a file system of that many MiB, seen by nobody else.
fn on_small_disk<F: Future<Output = ()>>(mib: u64, f: impl FnOnce(Place) -> F + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    in_namespace(move || {
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        mount(&store, "tmpfs", &format!("size={mib}m"), MsFlags::empty());
        let id = DatastoreId::from_uuid(Uuid::new_v4());
        DirDatastore::make(id, &store).unwrap();
        let store = DirDatastore::open(id, &store, None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(f(Place { dir, id, store }));
    })
    .unwrap();
}

fn full<T: std::fmt::Debug>(result: Result<T, StorageError>) {
    assert!(matches!(result, Err(StorageError::Full { .. })), "{result:?}");
}

fn request(path: &Path) -> ImportRequest {
    ImportRequest {
        image: image_id(),
        kind: ImageKind::Disk,
        source: ImportSource::Path { path: path.to_owned() },
        format: None,
        sha256: None,
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    on_small_disk(20, |p| async move {
        // Not even once; then once, but not a second time for the conversion.
        full(p.import(ImageKind::Disk, &p.write("a", &noise(24 << 20))).await);
        full(p.import(ImageKind::Disk, &p.write("b", &noise(12 << 20))).await);
        full(p.store.receive(UploadId(Uuid::new_v4()), &mut &noise(24 << 20)[..]).await);
        let chain = vec![LayerFile { path: p.scratch("a"), format: Raw }];
        for format in [Raw, Qcow2] {
            full(p.create(format, Bytes::mib(24), VolumeContent::Copy(chain.clone())).await);
        }
        // Compressed, so that it is known only on the way.
        run("sh", &["-c", &format!("gzip -c {0} >{0}.gz", text(&p.scratch("a")))]);
        full(p.import(ImageKind::Disk, &p.scratch("a.gz")).await);
        assert_eq!(p.files(), [""; 0]);
        // What is thin fits.
        p.create(Raw, Bytes::gib(1), VolumeContent::Blank).await.unwrap();
        p.import(ImageKind::Disk, &p.write("c", &noise(4 << 20))).await.unwrap();
    });
}

#[test]
fn operations_at_the_same_time_count_each_other() {
    on_small_disk(20, |p| async move {
        let chain = vec![LayerFile { path: p.write("a", &noise(12 << 20)), format: Raw }];
        let copy = || p.create(Raw, Bytes::mib(12), VolumeContent::Copy(chain.clone()));
        let (first, second) = tokio::join!(copy(), copy());
        assert_eq!(first.is_ok() as u8 + second.is_ok() as u8, 1, "{first:?} {second:?}");
        full(first.and(second));
        assert_eq!(p.files().len(), 1);
    });
}

/// Somebody else fills the file system while an operation is on its way.
#[test]
fn room_that_is_gone_meanwhile_is_noticed_and_nothing_stays_behind() {
    on_small_disk(64, |p| async move {
        let (source, filler) = (p.write("a", &noise(16 << 20)), p.root().join("filler"));
        let fill_at = |at: u64| {
            let filler = filler.clone();
            Arc::new(move |done: Bytes, _: Option<Bytes>| {
                if done.get() >= at && !filler.exists() {
                    // Until there is no room.
                    let _ = fs::write(&filler, vec![1; 80 << 20]);
                }
            })
        };
        let result =
            p.store.import(&request(&source), fill_at(1 << 20), CancellationToken::new()).await;
        assert!(filler.exists());
        full(result);
        assert_eq!(p.files(), [""; 0]);
        fs::remove_file(&filler).unwrap();
        p.import(ImageKind::Disk, &source).await.unwrap();
    });
}
