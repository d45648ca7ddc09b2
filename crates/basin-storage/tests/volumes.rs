//! Volumes: blank, copied, linked; grown and deleted.

mod common;

use std::fs;

use basin_model::Bytes;
use basin_model::image::ImageKind;
use basin_model::volume::VolumeFormat::{Qcow2, Raw};
use basin_storage::{Datastore, LayerFile, NewVolume, StorageError, VolumeContent};
use common::*;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn blank_volumes_are_thin_and_grow() {
    let p = place();
    for format in [Raw, Qcow2] {
        let id = p.create(format, Bytes::gib(100), VolumeContent::Blank).await.unwrap();
        assert!(p.store.allocated(id, format).await.unwrap() < Bytes::mib(1));
        let new =
            NewVolume { volume: id, format, size: Bytes::gib(100), content: VolumeContent::Blank };
        p.store.create(&new, quiet(), CancellationToken::new()).await.unwrap();
        p.store.grow(id, format, Bytes::gib(200)).await.unwrap();
        p.store.grow(id, format, Bytes::gib(200)).await.unwrap();
        let info = run("qemu-img", &["info", text(&p.store.volume(id, format).path)]);
        assert!(info.contains("200 GiB"), "{info}");
        for bad in [Bytes::gib(100), Bytes(1), Bytes(Bytes::gib(200).get() + 1)] {
            let result = p.store.grow(id, format, bad).await;
            assert!(matches!(result, Err(StorageError::Invalid(_))), "{result:?}");
        }
        let mut note = p.store.volume(id, format).path.into_os_string();
        note.push(".generation");
        fs::write(&note, "what blockd notes beside it").unwrap();
        p.store.delete(id).await.unwrap();
        p.store.delete(id).await.unwrap();
        assert!(!fs::exists(&note).unwrap());
        let gone = p.store.allocated(id, format).await;
        assert!(matches!(gone, Err(StorageError::NotFound(_))), "{gone:?}");
    }
    for bad in [Bytes(0), Bytes(1000), Bytes(1 << 60)] {
        let result = p.create(Raw, bad, VolumeContent::Blank).await;
        assert!(matches!(result, Err(StorageError::Invalid(_))), "{result:?}");
    }
    assert_eq!(p.files(), [""; 0]);
}

#[tokio::test]
async fn copies_hold_what_the_chain_holds() {
    let p = place();
    let (image, found) = p.import(ImageKind::Disk, &p.write("a", &disk())).await.unwrap();
    let image = p.store.image(image, found.format);
    let size = Bytes::mib(16);
    let link = p.create(Qcow2, size, VolumeContent::Linked(vec![image.clone()])).await.unwrap();
    let link = p.store.volume(link, Qcow2);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 3M 1M", text(&link.path)]);
    let mut expect = disk();
    expect.resize(16 << 20, 0);
    expect[3 << 20..4 << 20].fill(7);

    let raw =
        p.create(Raw, size, VolumeContent::Copy(vec![link.clone(), image.clone()])).await.unwrap();
    let raw = p.store.volume(raw, Raw);
    let chains = [vec![link.clone(), image.clone()], vec![raw]];
    for chain in chains {
        for format in [Raw, Qcow2] {
            let size = Bytes::mib(32);
            let copy = p.create(format, size, VolumeContent::Copy(chain.clone())).await.unwrap();
            let path = p.store.volume(copy, format).path;
            let seen = content(&path, format, &p.scratch("out"));
            assert_eq!(seen.len(), 32 << 20);
            assert!(seen[..16 << 20] == expect && seen[16 << 20..].iter().all(|b| *b == 0));
            assert!(p.store.allocated(copy, format).await.unwrap() < Bytes::mib(4));
            let info = run("qemu-img", &["info", text(&path)]);
            assert!(!info.contains("backing"), "{info}");
        }
        let small = p.create(Raw, Bytes::mib(1), VolumeContent::Copy(chain)).await;
        assert!(matches!(small, Err(StorageError::Invalid(_))), "{small:?}");
    }
}

#[tokio::test]
async fn a_link_names_its_backing_file_so_that_it_can_be_followed() {
    let p = place();
    let (image, found) = p.import(ImageKind::Disk, &p.write("a", &disk())).await.unwrap();
    let image = p.store.image(image, found.format);
    let size = Bytes(disk().len() as u64);
    let link = p.create(Qcow2, size, VolumeContent::Linked(vec![image.clone()])).await.unwrap();
    let path = p.store.volume(link, Qcow2).path;
    assert_eq!(content(&path, Qcow2, &p.scratch("out")), disk());
    let info = run("qemu-img", &["info", text(&path)]);
    assert!(info.contains("backing file: ../images/"), "{info}");
    assert!(info.contains("backing file format: qcow2"), "{info}");
    // Growing neither follows nor forgets it.
    p.store.grow(link, Qcow2, Bytes::mib(64)).await.unwrap();
    let seen = content(&path, Qcow2, &p.scratch("out"));
    assert!(seen.len() == 64 << 20 && seen[..disk().len()] == disk());
    run("qemu-img", &["check", "-q", text(&path)]);

    let raw = VolumeContent::Linked(vec![image.clone()]);
    assert!(matches!(p.create(Raw, Bytes::mib(64), raw).await, Err(StorageError::Invalid(_))));
    let small = VolumeContent::Linked(vec![image]);
    assert!(matches!(p.create(Qcow2, Bytes::mib(1), small).await, Err(StorageError::Invalid(_))));
    let absent = LayerFile { path: p.scratch("absent"), format: Qcow2 };
    let absent = p.create(Qcow2, Bytes::mib(64), VolumeContent::Linked(vec![absent])).await;
    assert!(matches!(absent, Err(StorageError::NotFound(_))), "{absent:?}");
    let none = p.create(Qcow2, Bytes::mib(64), VolumeContent::Copy(vec![])).await;
    assert!(matches!(none, Err(StorageError::Invalid(_))), "{none:?}");
}

#[tokio::test]
async fn a_header_that_lies_is_not_followed_when_a_volume_is_copied() {
    let p = place();
    let secret = p.write("secret", &vec![0x53; 1 << 20]);
    let liar = p.scratch("liar.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", text(&secret), "-F", "raw", text(&liar)],
    );
    let chain = vec![LayerFile { path: liar, format: Qcow2 }];
    let copy = p.create(Raw, Bytes::mib(1), VolumeContent::Copy(chain)).await.unwrap();
    let seen = fs::read(p.store.volume(copy, Raw).path).unwrap();
    assert!(seen.iter().all(|b| *b == 0));
}

#[tokio::test]
async fn a_cancelled_or_abandoned_copy_leaves_nothing() {
    let p = place();
    let source = LayerFile { path: p.write("a", &noise(32 << 20)), format: Raw };
    let new = NewVolume {
        volume: volume_id(),
        format: Qcow2,
        size: Bytes::mib(32),
        content: VolumeContent::Copy(vec![source]),
    };
    let cancel = CancellationToken::new();
    cancel.cancel();
    let result = p.store.create(&new, quiet(), cancel).await;
    assert!(matches!(result, Err(StorageError::Cancelled)), "{result:?}");
    assert_eq!(p.files(), [""; 0]);
    // The caller goes away at the first sign of progress; the next one waits its turn.
    let (begun, begin) = tokio::sync::oneshot::channel();
    let begun = std::sync::Mutex::new(Some(begun));
    let progress = std::sync::Arc::new(move |_, _| {
        if let Some(begun) = begun.lock().unwrap().take() {
            begun.send(()).unwrap();
        }
    });
    tokio::select! {
        biased;
        _ = begin => {}
        result = p.store.create(&new, progress, CancellationToken::new()) => result.unwrap(),
    }
    p.store.create(&new, quiet(), CancellationToken::new()).await.unwrap();
    assert_eq!(p.files().len(), 1);
}
