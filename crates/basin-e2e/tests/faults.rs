//! The daemon dies in every step of every workflow, before and after the step ran,
//! and in the undo of each step that can be made to fail from outside. The next
//! daemon finishes the task or undoes it, and nothing is left that should not be.
//!
//! Machines are real; most run a BIOS that finds nothing to boot, which is enough to
//! be started, paused and stopped. `workflows.txt` lists what there is to cut off.

#[path = "faults/sound.rs"]
mod sound;

use std::collections::BTreeMap;
use std::fs;

use basin_api::client::{Client, ClientError, DeleteVm, VmAction};
use basin_api::datastore::{Datastore, DatastoreCreate};
use basin_api::image::{Image, ImageKind};
use basin_api::reference::List;
use basin_api::task::{Task, TaskState};
use basin_api::vm::{Boot, Machine, State, Vm, VmCreate};
use basin_api::volume::{CloneKind, Volume, VolumeCreate, VolumeGrow, VolumeSource};
use basin_e2e::images::{MIB, blank, import, micro, new_disk, vm};
use basin_e2e::{BOOT, Server, eventually};

/// The daemon's own switch (basin-controller, `workflow::faults`).
const FAULT: &str = "BASIN_FAULT";

/// The steps of a kind, from the list that a unit test keeps true.
fn steps(kind: &str) -> Vec<&'static str> {
    let list = include_str!("../workflows.txt").lines();
    let mut found = list.filter_map(|l| l.split_once(' ')).filter(|(k, _)| *k == kind);
    let (_, steps) = found.next().unwrap_or_else(|| panic!("{kind} is not in workflows.txt"));
    steps.split(' ').collect()
}

/// Each kind has its test below; one that is added to the list needs another.
#[test]
fn every_kind_is_cut_off_somewhere() {
    // Two servers are needed for it: `tests/workflows.rs` of basin-controller cuts off each
    // of its steps, `migrate_faults.rs` here kills what it is made of.
    let elsewhere = "vm-migrate";
    let covered = [
        "datastore-create",
        "image-delete",
        "image-import",
        "vm-create",
        "vm-delete",
        "vm-disk-add",
        "vm-power-change",
        "vm-power-on",
        "volume-create",
        "volume-delete",
        "volume-grow",
    ];
    let list = include_str!("../workflows.txt").lines().filter(|l| !l.starts_with('#'));
    let listed: Vec<&str> =
        list.filter_map(|l| l.split(' ').next()).filter(|kind| *kind != elsewhere).collect();
    assert_eq!(listed, covered, "write a test that cuts off the new kind");
}

/// Has the daemon die at a place that the operation leads to, starts another, and
/// waits until no task is under way. The last task is returned.
fn cut<F>(server: &Server, place: &str, operation: impl FnOnce(Client) -> F) -> Task
where
    F: Future<Output = Result<Task, ClientError>>,
{
    eprintln!("cut at {place}");
    server.stop();
    server.set_up(|s| s.env(FAULT, place));
    server.boot();
    if let Err(ClientError::Problem(why)) = server.call(operation(server.client())) {
        panic!("{place}: refused: {}", why.detail);
    }
    server.wait_dead();
    server.set_up(|s| s.without_env(FAULT));
    server.boot();
    let task = eventually(&format!("{place}: the task ends"), BOOT, || {
        let tasks: List<Task> = server.ok(server.client().tasks(None));
        let over = |t: &Task| !matches!(t.state, TaskState::Running | TaskState::Undoing);
        if !tasks.items.iter().all(over) {
            return None;
        }
        tasks.items.into_iter().next()
    });
    let kind = place.split('/').next().unwrap_or_default();
    assert_eq!(task.kind, kind, "{place}: {task:?}");
    sound::check(server, place);
    task
}

/// Cuts an operation off before and after each step; it has to come to its end.
fn cut_everywhere<F>(
    server: &Server,
    kind: &str,
    mut prepare: impl FnMut(&str),
    operation: impl Fn(Client, String) -> F,
    check: impl Fn(&str),
) where
    F: Future<Output = Result<Task, ClientError>>,
{
    for step in steps(kind) {
        for point in ["before", "after"] {
            let (place, name) = (format!("{kind}/{step}/{point}"), format!("{step}-{point}"));
            prepare(&name);
            let task = cut(server, &place, |client| operation(client, name.clone()));
            assert_eq!(task.state, TaskState::Done, "{place}: {task:?}");
            check(&name);
        }
    }
}

/// The same for the undo of an operation that fails in the step that is named last.
fn cut_undo<F>(
    server: &Server,
    kind: &str,
    steps: &[&str],
    mut prepare: impl FnMut(&str),
    operation: impl Fn(Client, String) -> F,
    check: impl Fn(&str),
) where
    F: Future<Output = Result<Task, ClientError>>,
{
    for step in steps {
        for point in ["undo-before", "undo-after"] {
            let (place, name) = (format!("{kind}/{step}/{point}"), format!("{step}-{point}"));
            prepare(&name);
            let task = cut(server, &place, |client| operation(client, name.clone()));
            assert_eq!(task.state, TaskState::Failed, "{place}: {task:?}");
            assert!(task.problem.is_some(), "{place}: {task:?}");
            check(&name);
        }
    }
}

fn volume(name: &str, source: VolumeSource) -> VolumeCreate {
    let (name, description) = (name.to_owned(), String::new());
    let labels = BTreeMap::default();
    VolumeCreate { name, description, labels, source, format: None, datastore: None }
}

fn datastore(name: &str, path: String) -> DatastoreCreate {
    DatastoreCreate {
        name: name.to_owned(),
        description: String::new(),
        labels: BTreeMap::default(),
        path,
        host: None,
        shared: false,
        quota_bytes: None,
        overcommit_percent: None,
    }
}

fn blank_volume(name: &str) -> VolumeCreate {
    volume(name, VolumeSource::Blank { size_bytes: 8 * MIB })
}

fn image_source(image: &str) -> VolumeSource {
    VolumeSource::Image { image: image.to_owned(), clone: CloneKind::Full, size_bytes: None }
}

fn exists<R: basin_api::client::Readable>(server: &Server, name: &str) -> bool {
    server.call(server.client().get::<R>(name)).is_ok()
}

/// A file of some bytes that are no image of any format but raw.
fn some_file(server: &Server, name: &str) -> std::path::PathBuf {
    let path = server.place.dir.join(name);
    let bytes: Vec<u8> = (0..2 * MIB).map(|n| (n / 512 % 251) as u8 | 1).collect();
    fs::write(&path, bytes).expect("write a file");
    path
}

/// An image whose file somebody took away: cloning it fails.
fn broken_image(server: &Server, name: &str) {
    let file = some_file(server, name);
    server.import(name, ImageKind::Disk, &file);
    let image: Image = server.ok(server.client().get(name));
    let images = server.place.state_dir().join("datastores/default/images");
    for entry in fs::read_dir(images).expect("the images").flatten() {
        if entry.file_name().to_string_lossy().starts_with(&image.meta.id) {
            fs::rename(entry.path(), server.place.dir.join("taken")).expect("take the file");
        }
    }
}

/// Puts it back, so that what is in the store is on the disk again.
fn mend_image(server: &Server, name: &str) {
    let image: Image = server.ok(server.client().get(name));
    let format = image.content.expect("its content").format;
    let images = server.place.state_dir().join("datastores/default/images");
    let file = images.join(format!("{}.{format}", image.meta.id));
    fs::rename(server.place.dir.join("taken"), file).expect("give the file back");
}

/// A VM that runs without anything to boot.
fn idle(name: &str) -> VmCreate {
    let mut idle = vm(name, Machine::Q35, Boot::Bios, 64 * MIB);
    idle.disks.push(blank(8 * MIB));
    idle
}

fn running(name: &str) -> VmCreate {
    VmCreate { start: true, ..idle(name) }
}

/// A VM whose QEMU refuses its kernel.
fn hopeless(server: &Server, name: &str) -> VmCreate {
    if !exists::<Image>(server, "no-kernel") {
        let file = server.place.dir.join("no-kernel");
        fs::write(&file, elf_without_an_entry()).expect("write a file");
        server.import("no-kernel", ImageKind::Kernel, &file);
        server.import("no-initrd", ImageKind::Initrd, &micro("initrd.img"));
    }
    let boot = Boot::Kernel {
        kernel: "no-kernel".to_owned(),
        initrd: Some("no-initrd".to_owned()),
        command_line: String::new(),
    };
    VmCreate { boot, ..running(name) }
}

/// An ELF file for x86-64 with no programs in it.
fn elf_without_an_entry() -> Vec<u8> {
    let mut elf = vec![0; 64 << 10];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let (executable, x86_64, header) = (2_u16, 62_u16, 64_u16);
    elf[16..18].copy_from_slice(&executable.to_le_bytes());
    elf[18..20].copy_from_slice(&x86_64.to_le_bytes());
    elf[20] = 1;
    elf[52..54].copy_from_slice(&header.to_le_bytes());
    elf
}

#[test]
fn datastore_create() {
    let server = Server::start();
    // Whoever asks waits for the end, and hears nothing more of a daemon that died.
    let create = |client: Client, name: String| {
        let path = server.place.dir.join(&name).display().to_string();
        async move {
            let made = client.create::<Datastore>(&datastore(&name, path)).await;
            made.map(|made| -> Task { panic!("{} was made by a daemon that died", made.meta.name) })
        }
    };
    let there = |name: &str| {
        assert!(exists::<Datastore>(&server, name), "{name}");
        server.ok(server.client().delete::<Datastore>(name));
        // Its directory is free again for another one.
        let path = server.place.dir.join(name).display().to_string();
        server.ok(server.client().create::<Datastore>(&datastore("again", path)));
        server.ok(server.client().delete::<Datastore>("again"));
    };
    cut_everywhere(&server, "datastore-create", |_| (), create, there);
}

#[test]
fn volume_create() {
    let server = Server::start();
    let create = |client: Client, name: String| async move {
        client.create::<Volume>(&blank_volume(&name)).await
    };
    let there = |name: &str| assert!(exists::<Volume>(&server, name), "{name}");
    cut_everywhere(&server, "volume-create", |_| (), create, there);

    broken_image(&server, "broken");
    let clone = |client: Client, name: String| async move {
        client.create::<Volume>(&volume(&name, image_source("broken"))).await
    };
    // The tests of soundness want every image's file: its absence is this test's own.
    let (hide, show) = (|_: &str| (), |name: &str| assert!(!exists::<Volume>(&server, name)));
    sound::without_image_files(|| {
        cut_undo(&server, "volume-create", &["make"], hide, clone, show);
    });
    mend_image(&server, "broken");
    sound::check(&server, "the image is whole again");
}

#[test]
fn volume_delete_and_grow() {
    let server = Server::start();
    let make = |name: &str| {
        server.done(server.client().create::<Volume>(&blank_volume(name)));
    };
    let delete = |client: Client, name: String| async move { client.delete::<Volume>(&name).await };
    let gone = |name: &str| assert!(!exists::<Volume>(&server, name), "{name}");
    cut_everywhere(&server, "volume-delete", make, delete, gone);

    let size_bytes = 16 * MIB;
    let grow = |client: Client, name: String| async move {
        client.grow_volume(&name, VolumeGrow { size_bytes }).await
    };
    let grown = |name: &str| {
        let volume: Volume = server.ok(server.client().get(name));
        assert_eq!(volume.size_bytes, size_bytes);
        // The lock went too: it can grow again, and go.
        let more = VolumeGrow { size_bytes: 2 * size_bytes };
        server.done(server.client().grow_volume(name, more));
        server.done(server.client().delete::<Volume>(name));
    };
    cut_everywhere(&server, "volume-grow", make, grow, grown);
}

#[test]
fn images() {
    let server = Server::start();
    let file = some_file(&server, "file");
    let fetch = |client: Client, name: String| {
        let image = import(&name, ImageKind::Disk, &file);
        async move { client.create::<Image>(&image).await }
    };
    let there = |name: &str| {
        let image: Image = server.ok(server.client().get(name));
        assert!(image.content.is_some(), "{image:?}");
    };
    cut_everywhere(&server, "image-import", |_| (), fetch, there);

    let wrong = |client: Client, name: String| {
        let mut image = import(&name, ImageKind::Disk, &file);
        image.sha256 = Some("0".repeat(64));
        async move { client.create::<Image>(&image).await }
    };
    let absent = |name: &str| assert!(!exists::<Image>(&server, name), "{name}");
    cut_undo(&server, "image-import", &["fetch"], |_| (), wrong, absent);

    let prepare = |name: &str| server.import(name, ImageKind::Disk, &file);
    let delete = |client: Client, name: String| async move { client.delete::<Image>(&name).await };
    cut_everywhere(&server, "image-delete", prepare, delete, absent);
}

#[test]
fn vm_create() {
    let server = Server::start();
    let create =
        |client: Client, name: String| async move { client.create::<Vm>(&running(&name)).await };
    let runs = |name: &str| {
        let guest = server.guest(name);
        guest.wait_state(State::Running);
        guest.delete(true);
    };
    cut_everywhere(&server, "vm-create", |_| (), create, runs);

    hopeless(&server, "any");
    let fail = |client: Client, name: String| {
        let create = hopeless(&server, &name);
        async move { client.create::<Vm>(&create).await }
    };
    let gone = |name: &str| assert!(!exists::<Vm>(&server, name), "{name}");
    cut_undo(&server, "vm-create", &["start", "publish", "volumes"], |_| (), fail, gone);
}

#[test]
fn vm_delete() {
    let server = Server::start();
    let make = |name: &str| {
        server.create(&running(name));
    };
    let delete = |client: Client, name: String| async move {
        client.delete_vm(&name, DeleteVm { force: true, keep_disks: false }).await
    };
    let gone = |name: &str| assert!(!exists::<Vm>(&server, name), "{name}");
    cut_everywhere(&server, "vm-delete", make, delete, gone);
}

#[test]
fn vm_disk_add() {
    let server = Server::start();
    let make = |name: &str| {
        server.create(&idle(name));
    };
    let add = |client: Client, name: String| async move {
        client.attach_disk(&name, &blank(16 * MIB)).await
    };
    let has = |name: &str| {
        let guest = server.guest(name);
        assert_eq!(guest.vm().disks.len(), 2, "{name}");
        guest.start();
        guest.delete(true);
    };
    cut_everywhere(&server, "vm-disk-add", make, add, has);

    broken_image(&server, "broken");
    let fail = |client: Client, name: String| async move {
        client.attach_disk(&name, &new_disk(image_source("broken"))).await
    };
    let has_not = |name: &str| assert_eq!(server.guest(name).vm().disks.len(), 1, "{name}");
    sound::without_image_files(|| {
        cut_undo(&server, "vm-disk-add", &["make"], make, fail, has_not);
    });
}

#[test]
fn vm_power() {
    let server = Server::start();
    let make = |name: &str| {
        server.create(&idle(name));
    };
    let start = |client: Client, name: String| async move {
        client.vm_action(&name, VmAction::Start).await
    };
    let runs = |name: &str| {
        let guest = server.guest(name);
        guest.wait_state(State::Running);
        guest.delete(true);
    };
    cut_everywhere(&server, "vm-power-on", make, start, runs);

    let hopeless = |name: &str| {
        server.create(&VmCreate { start: false, ..hopeless(&server, name) });
    };
    let stays_off = |name: &str| {
        server.guest(name).wait_state(State::Stopped);
        server.guest(name).delete(false);
    };
    cut_undo(&server, "vm-power-on", &["watch"], hopeless, start, stays_off);

    let make = |name: &str| {
        if !exists::<Vm>(&server, name) {
            server.create(&running(name));
        }
    };
    for (action, state) in [
        (VmAction::Pause, State::Paused),
        (VmAction::Resume, State::Running),
        (VmAction::Reset, State::Running),
        (VmAction::PowerOff, State::Stopped),
    ] {
        let act =
            |client: Client, name: String| async move { client.vm_action(&name, action).await };
        let is = |name: &str| server.guest(name).wait_state(state);
        cut_everywhere(&server, "vm-power-change", make, act, is);
    }
}
