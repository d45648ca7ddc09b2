//! Several daemons over one directory: each stands for a server.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use basin_model::image::ImageKind;
use basin_model::volume::VolumeFormat::{Qcow2, Raw};
use basin_model::{Bytes, DatastoreId, HostId, VolumeId};
use basin_storage::{
    Datastore, DirDatastore, ImportRequest, ImportSource, LayerFile, NewVolume, Opening, Progress,
    StorageError, UploadId, VolumeContent,
};
use common::*;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

struct Shared {
    dir: TempDir,
    id: DatastoreId,
}

fn host() -> HostId {
    HostId::from_uuid(Uuid::new_v4())
}

fn open(id: DatastoreId, path: PathBuf, host: HostId) -> Result<DirDatastore, StorageError> {
    let patience = Default::default();
    DirDatastore::open_with(&Opening { id, path, quota: None, sharer: Some(host), patience })
}

impl Shared {
    fn new() -> Shared {
        let shared = Shared {
            dir: tempfile::tempdir().unwrap(),
            id: DatastoreId::from_uuid(Uuid::new_v4()),
        };
        DirDatastore::make(shared.id, shared.root()).unwrap();
        shared
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn join(&self, host: HostId) -> DirDatastore {
        open(self.id, self.root(), host).unwrap()
    }

    fn files(&self, of: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root().join(of)).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

fn disk_from(path: &Path) -> ImportRequest {
    let source = ImportSource::Path { path: path.to_owned() };
    ImportRequest { image: image_id(), kind: ImageKind::Disk, source, format: None, sha256: None }
}

/// Counts how often anything is read or copied.
fn counting() -> (Progress, Arc<std::sync::atomic::AtomicU64>) {
    let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = count.clone();
    (Arc::new(move |_, _| _ = seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst)), count)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_the_same_do_it_once() {
    let shared = Shared::new();
    let stores = [shared.join(host()), shared.join(host()), shared.join(host())];
    let source = shared.dir.path().join("source");
    fs::write(&source, disk()).unwrap();
    let request = disk_from(&source);
    let request = &request;
    let imports = stores.iter().map(|store| async move {
        let (progress, count) = counting();
        let content = store.import(request, progress, CancellationToken::new()).await.unwrap();
        (content, count.load(std::sync::atomic::Ordering::SeqCst) > 0)
    });
    let imports = futures::future::join_all(imports).await;
    assert!(imports.iter().all(|(content, _)| *content == imports[0].0));
    assert_eq!(imports.iter().filter(|(_, worked)| *worked).count(), 1, "one has done the work");

    let image = stores[1].image(request.image, imports[0].0.format);
    let new = NewVolume {
        volume: volume_id(),
        format: Qcow2,
        size: Bytes::mib(64),
        content: VolumeContent::Copy(vec![image]),
    };
    let new = &new;
    let copies = stores.iter().map(|store| async move {
        let (progress, count) = counting();
        store.create(new, progress, CancellationToken::new()).await.unwrap();
        count.load(std::sync::atomic::Ordering::SeqCst) > 0
    });
    let copies = futures::future::join_all(copies).await;
    assert_eq!(copies.iter().filter(|worked| **worked).count(), 1, "one has done the work");
    assert_eq!(shared.files("volumes"), [format!("{}.qcow2", new.volume)]);
    assert_eq!(shared.files("incoming"), [""; 0]);
    let deletions = stores.iter().map(|store| store.delete(new.volume));
    futures::future::join_all(deletions).await.into_iter().for_each(|r| r.unwrap());
    assert_eq!(shared.files("volumes"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_all_sorts_of_things_do_not_disturb_each_other() {
    let shared = Shared::new();
    let stores: Vec<_> = (0..3).map(|_| shared.join(host())).collect();
    let source = shared.dir.path().join("source");
    fs::write(&source, disk()).unwrap();
    let (shared, stores, source) = (&shared, &stores, &source);
    let work = stores.iter().enumerate().map(|(n, store)| async move {
        let other = &stores[(n + 1) % stores.len()];
        for round in 0..4 {
            let request = disk_from(source);
            let cancel = CancellationToken::new;
            let content = store.import(&request, quiet(), cancel()).await.unwrap();
            let volume = volume_id();
            let size = Bytes(content.virtual_size.get());
            let chain = vec![other.image(request.image, content.format)];
            let content = VolumeContent::Linked(chain);
            let new = NewVolume { volume, format: Qcow2, size, content };
            other.create(&new, quiet(), cancel()).await.unwrap();
            store.grow(volume, Qcow2, Bytes::mib(32)).await.unwrap();
            let upload = UploadId(Uuid::new_v4());
            store.receive(upload, &mut &disk()[..]).await.unwrap();
            let source = ImportSource::Upload { upload };
            let uploaded = ImportRequest { image: image_id(), source, ..request.clone() };
            other.import(&uploaded, quiet(), cancel()).await.unwrap();
            // Somebody comes and goes, and sweeps.
            drop(shared.join(host()));
            other.delete(volume).await.unwrap();
            other.delete_image(request.image).await.unwrap();
            if round > 0 {
                store.delete_image(uploaded.image).await.unwrap();
            }
        }
    });
    futures::future::join_all(work).await;
    assert_eq!(shared.files("incoming"), [""; 0]);
    assert_eq!(shared.files("volumes"), [""; 0]);
    assert_eq!(shared.files("images").len(), 2 * stores.len());
    let used = stores[0].capacity().await.unwrap().used;
    assert_eq!(used, stores[1].capacity().await.unwrap().used);
}

#[test]
fn a_server_opens_it_once_and_not_beside_one_that_has_it_alone() {
    let shared = Shared::new();
    let (a, b) = (host(), host());
    let first = shared.join(a);
    let _second = shared.join(b);
    let again = open(shared.id, shared.root(), a).err().unwrap();
    assert!(again.to_string().contains("another daemon of this server"), "{again}");
    drop(first);
    shared.join(a);
}

#[test]
fn only_what_a_dead_server_left_is_swept() {
    let shared = Shared::new();
    let (a, b) = (host(), host());
    let first = shared.join(a);
    let left = shared.root().join(format!("incoming/tmp-{a}_{}", Uuid::new_v4()));
    fs::write(&left, "half").unwrap();
    drop(shared.join(b));
    assert!(left.exists(), "its writer lives");
    drop(first);
    drop(shared.join(b));
    assert!(!left.exists());
}

const TEST: &str = "what_a_killed_server_had_begun_another_takes_over";
const SIZE: usize = 32 << 20;

/// What the child process does: copies, and says so.
fn the_one_who_dies(root: PathBuf) {
    let var = |name: &str| std::env::var(name).unwrap();
    let store = open(var("STORE_ID").parse().unwrap(), root, host()).unwrap();
    let progress: Progress = Arc::new(|_, _| println!("step"));
    let new = copy(var("VOLUME").parse().unwrap(), var("SOURCE").into());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(store.create(&new, progress, CancellationToken::new())).unwrap();
    println!("step");
}

fn copy(volume: VolumeId, source: PathBuf) -> NewVolume {
    let content = VolumeContent::Copy(vec![LayerFile { path: source, format: Raw }]);
    NewVolume { volume, format: Qcow2, size: Bytes(SIZE as u64), content }
}

/// Runs itself again as the process that dies.
#[test]
fn what_a_killed_server_had_begun_another_takes_over() {
    if let Some(root) = std::env::var_os("STORE") {
        return the_one_who_dies(root.into());
    }
    let shared = Shared::new();
    let source = shared.dir.path().join("source");
    fs::write(&source, noise(SIZE)).unwrap();
    let (store, volume) = (shared.join(host()), volume_id());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .envs([("STORE_ID", shared.id.to_string()), ("VOLUME", volume.to_string())])
        .envs([("STORE", shared.root()), ("SOURCE", source.clone())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.take_while(|l| !l.contains("step")).count() < 100);
    // The same volume here waits for the other server, which dies.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let new = copy(volume, source);
    let waiting = async {
        let create = store.create(&new, quiet(), CancellationToken::new());
        let kill = async { child.kill().unwrap() };
        let (created, ()) = tokio::join!(create, kill);
        created.unwrap();
    };
    runtime.block_on(waiting);
    child.wait().unwrap();
    assert_eq!(shared.files("volumes"), [format!("{volume}.qcow2")]);
    let file = store.volume(volume, Qcow2).path;
    assert!(content(&file, Qcow2, &shared.dir.path().join("out")) == noise(SIZE));
    drop(shared.join(host()));
    assert_eq!(shared.files("incoming"), [""; 0]);
}

#[tokio::test]
async fn the_same_storage_is_proven_both_ways() {
    let shared = Shared::new();
    let (a, b) = (host(), host());
    let (first, second) = (shared.join(a), shared.join(b));
    for ((one, by), (other, from)) in [((&first, a), (&second, b)), ((&second, b), (&first, a))] {
        let proof = other.prove().await.unwrap();
        let answer = one.witness(from, proof).await.unwrap();
        other.confirm(by, proof, answer).await.unwrap();
    }
    let left: Vec<_> = shared.files(".basin-servers");
    assert!(left.iter().all(|name| !name.starts_with("answer-")), "{left:?}");
}

fn unshared<T: std::fmt::Debug>(result: Result<T, StorageError>, why: &str) {
    match result {
        Err(e @ StorageError::Unshared { .. }) => assert!(e.to_string().contains(why), "{e}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_copy_does_not_pass_for_the_storage() {
    let shared = Shared::new();
    let (a, b) = (host(), host());
    let first = shared.join(a);
    drop(shared.join(b));
    let copied = shared.dir.path().join("copied");
    run("cp", &["-a", text(&shared.root()), text(&copied)]);
    let second = open(shared.id, copied, b).unwrap();
    let proof = second.prove().await.unwrap();
    unshared(first.witness(b, proof).await, "not to be seen here");
    // One that says it has seen it, and has not.
    let answer = first.prove().await.unwrap();
    unshared(second.confirm(a, proof, answer).await, "not the other way");
}

#[tokio::test]
async fn storage_without_common_locks_is_refused() {
    let shared = Shared::new();
    let (a, b) = (host(), host());
    let (first, second) = (shared.join(a), shared.join(b));
    let proof = second.prove().await.unwrap();
    // What it wrote is there, its lock is not.
    drop(second);
    unshared(first.witness(b, proof).await, "lock");
}
