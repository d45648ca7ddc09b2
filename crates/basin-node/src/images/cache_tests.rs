//! Copies that break off, are wrong, are too many.

use super::*;
use basin_model::image::{ImageContent, ImageState};
use basin_model::{DatastoreId, Meta};
use tempfile::TempDir;
use uuid::Uuid;

fn image(n: u128) -> Image {
    let (description, labels) = Default::default();
    let created_at = "2026-01-01T00:00:00Z".parse().unwrap();
    let content = ImageContent {
        format: VolumeFormat::Raw,
        virtual_size: Bytes::mib(1),
        file_size: Bytes::mib(1),
        sha256: String::new(),
    };
    Image {
        id: ImageId::from_uuid(Uuid::from_u128(n)),
        meta: Meta { name: "i".parse().unwrap(), description, labels, created_at },
        datastore: DatastoreId::from_uuid(Uuid::from_u128(1)),
        kind: ImageKind::Kernel,
        state: ImageState::Ready { content },
    }
}

fn cache(limit: Bytes) -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("cache"), Some(limit));
    (dir, cache)
}

fn content(n: u128) -> Vec<u8> {
    (0..3 << 20).map(|i: u32| (i / 7) as u8 ^ n as u8).collect()
}

/// What another server sends of a file: from somewhere in it, up to a break.
fn sent(file: &[u8], from: usize, upto: usize, sha256: Option<&str>) -> ImageBytes {
    let hash = Sha256::digest(file).iter().map(|b| format!("{b:02x}")).collect();
    ImageBytes {
        size: Bytes(file.len() as u64),
        sha256: sha256.map_or(hash, str::to_owned),
        bytes: Box::pin(io::Cursor::new(file[from..upto].to_vec())),
    }
}

async fn fetch(cache: &Cache, n: u128, needed: &[u128]) -> Result<LayerFile, StorageError> {
    let (image, file) = (image(n), content(n));
    let needed = needed.iter().map(|n| ImageId::from_uuid(Uuid::from_u128(*n))).collect();
    cache.make_room(Bytes(file.len() as u64), &needed).await?;
    let (silent, all) = (crate::images::silent(), sent(&file, 0, file.len(), None));
    match cache.fetch(&image, VolumeFormat::Raw, Bytes::ZERO, all, &silent).await? {
        Fetched::Whole(file) => Ok(file),
        Fetched::Wrong => panic!("it is right"),
    }
}

#[tokio::test]
async fn a_fetch_that_broke_is_taken_up_where_it_was() {
    let (_dir, cache) = cache(Bytes::gib(1));
    let (image, file) = (image(1), content(1));
    let silent = crate::images::silent();
    cache.make_room(Bytes::mib(3), &BTreeSet::new()).await.unwrap();
    let half = 1 << 20;
    let cut = sent(&file, 0, half + 5, None);
    let broken = cache.fetch(&image, VolumeFormat::Raw, Bytes::ZERO, cut, &silent).await;
    assert!(matches!(broken, Err(StorageError::Io { .. })));
    assert!(cache.find(image.id, VolumeFormat::Raw).await.is_none(), "half is not there");
    let begun = cache.begun(image.id).await;
    assert_eq!(begun, Bytes(half as u64 + 5));
    let rest = sent(&file, half + 5, file.len(), None);
    let whole = cache.fetch(&image, VolumeFormat::Raw, begun, rest, &silent).await.unwrap();
    assert!(matches!(whole, Fetched::Whole(_)));
    let found = cache.find(image.id, VolumeFormat::Raw).await.unwrap();
    assert!(fs::read(&found.path).unwrap() == file);
    let mode = fs::metadata(&found.path).unwrap().mode();
    assert_eq!(mode & 0o777, 0o444, "QEMU reads it under the VM's user");
}

#[tokio::test]
async fn what_is_not_the_image_is_thrown_away() {
    let (_dir, cache) = cache(Bytes::gib(1));
    let (image, file) = (image(1), content(1));
    let silent = crate::images::silent();
    cache.make_room(Bytes::mib(3), &BTreeSet::new()).await.unwrap();
    let mut longer = sent(&file, 0, file.len(), None);
    longer.size = Bytes(file.len() as u64 - 1);
    for bad in [sent(&file, 0, file.len(), Some("00")), longer] {
        let got = cache.fetch(&image, VolumeFormat::Raw, Bytes::ZERO, bad, &silent).await;
        assert!(matches!(got, Ok(Fetched::Wrong)));
        assert_eq!(cache.begun(image.id).await, Bytes::ZERO);
        assert!(cache.find(image.id, VolumeFormat::Raw).await.is_none());
    }
}

#[tokio::test]
async fn copies_go_when_their_room_is_wanted_and_nothing_needs_them() {
    let (_dir, cache) = cache(Bytes::mib(7));
    let there = async |n: u128| cache.find(image(n).id, VolumeFormat::Raw).await.is_some();
    fetch(&cache, 1, &[]).await.unwrap();
    fetch(&cache, 2, &[]).await.unwrap();
    // Wanted last: 1.
    assert!(there(1).await);
    fetch(&cache, 3, &[]).await.unwrap();
    assert!(there(1).await && !there(2).await && there(3).await);
    fetch(&cache, 4, &[1]).await.unwrap();
    assert!(there(1).await && !there(3).await && there(4).await);
    let full = fetch(&cache, 5, &[1, 4]).await.err();
    assert!(matches!(full, Some(StorageError::Full { .. })), "{full:?}");
    assert!(there(1).await && there(4).await);
    // One that is being fetched is not taken away under the one who does.
    let turn = cache.turn(image(1).id).await;
    cache.keep_only(&BTreeSet::new()).await.unwrap();
    assert!(there(1).await && !there(4).await);
    drop(turn);
    cache.keep_only(&BTreeSet::new()).await.unwrap();
    assert!(!there(1).await);
}
