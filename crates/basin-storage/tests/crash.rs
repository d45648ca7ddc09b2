//! kill -9 at many moments of an import and of a copy; the next try succeeds and
//! nothing else is left.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;

use basin_model::image::ImageKind;
use basin_model::volume::VolumeFormat::{Qcow2, Raw};
use basin_model::{Bytes, DatastoreId, ImageId, VolumeId};
use basin_storage::{
    Datastore, DirDatastore, ImportRequest, ImportSource, LayerFile, NewVolume, Progress,
    VolumeContent,
};
use common::*;
use tokio_util::sync::CancellationToken;

const SIZE: usize = 16 << 20;

fn import(image: ImageId, source: &Path) -> ImportRequest {
    let source = ImportSource::Path { path: source.to_owned() };
    ImportRequest { image, kind: ImageKind::Disk, source, format: None, sha256: None }
}

fn copy(volume: VolumeId, source: &Path) -> NewVolume {
    let content = VolumeContent::Copy(vec![LayerFile { path: source.to_owned(), format: Raw }]);
    NewVolume { volume, format: Qcow2, size: Bytes(SIZE as u64), content }
}

/// What the child process does: says every step, then does the next.
fn the_one_who_dies() {
    let var = |name: &str| std::env::var(name).unwrap();
    let id = DatastoreId::from_str(&var("STORE_ID")).unwrap();
    let store = DirDatastore::open(id, var("STORE"), None).unwrap();
    let progress: Progress = Arc::new(|done, _| println!("step {}", done.get()));
    let (source, cancel) = (var("SOURCE"), CancellationToken::new());
    println!("step begin");
    runtime().block_on(async {
        let image = import(ImageId::from_str(&var("IMAGE")).unwrap(), source.as_ref());
        store.import(&image, progress.clone(), cancel.clone()).await.unwrap();
        let volume = copy(VolumeId::from_str(&var("VOLUME")).unwrap(), source.as_ref());
        store.create(&volume, progress, cancel).await.unwrap();
    });
    println!("step end");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

const TEST: &str = "a_death_at_any_step_is_recovered_from";

/// Runs itself again as the process that dies.
#[test]
fn a_death_at_any_step_is_recovered_from() {
    match std::env::var_os("STORE") {
        Some(_) => the_one_who_dies(),
        None => runtime().block_on(recovery()),
    }
}

async fn recovery() {
    let mut p = place();
    let source = p.write("a", &noise(SIZE));
    let (mut steps, mut done) = (0, false);
    while !done {
        let (image, volume) = (image_id(), volume_id());
        // The parent lets go of the directory for the child.
        let Place { dir, id, store } = p;
        let root = dir.path().join("store");
        drop(store);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .envs([("STORE_ID", id.to_string()), ("STORE", text(&root).to_owned())])
            .envs([("SOURCE", text(&source).to_owned())])
            .envs([("IMAGE", image.to_string()), ("VOLUME", volume.to_string())])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let last = lines.filter(|l| l.contains("step ")).take(steps + 1).last();
        done = last.is_some_and(|l| l.contains("step end"));
        child.kill().unwrap();
        child.wait().unwrap();

        let store = DirDatastore::open(id, &root, None).unwrap();
        p = Place { dir, id, store };
        assert!(p.files().iter().all(|f| !f.starts_with("incoming/")), "{:?}", p.files());
        let cancel = CancellationToken::new();
        let found = p.store.import(&import(image, &source), quiet(), cancel.clone()).await.unwrap();
        p.store.create(&copy(volume, &source), quiet(), cancel).await.unwrap();
        let files = [
            format!("images/{image}.json"),
            format!("images/{image}.qcow2"),
            format!("volumes/{volume}.qcow2"),
        ];
        assert_eq!(p.files(), files);
        for layer in [p.store.image(image, found.format), p.store.volume(volume, Qcow2)] {
            assert!(content(&layer.path, Qcow2, &p.scratch("out")) == noise(SIZE));
        }
        p.store.delete_image(image).await.unwrap();
        p.store.delete(volume).await.unwrap();
        steps += 61;
    }
}
