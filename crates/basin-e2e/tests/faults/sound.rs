//! Whether a server has what its API says it has, and nothing else.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use basin_api::image::{Image, ImageState};
use basin_api::vm::{State, Vm};
use basin_api::volume::{Volume, VolumeState};
use basin_e2e::{Server, process, until};

thread_local! {
    static IMAGE_FILES: Cell<bool> = const { Cell::new(true) };
}

/// For a test that took one away.
pub fn without_image_files(test: impl FnOnce()) {
    IMAGE_FILES.set(false);
    test();
    IMAGE_FILES.set(true);
}

/// All of it; waits for what a daemon does after a task, such as removing a tap.
pub fn check(server: &Server, when: &str) {
    let client = server.client();
    let volumes = server.ok(client.list::<Volume>()).items;
    let images = server.ok(client.list::<Image>()).items;
    let vms = server.ok(client.list::<Vm>()).items;
    for volume in &volumes {
        assert_eq!(volume.state, VolumeState::Ready, "{when}: {volume:?}");
    }
    for image in &images {
        assert_eq!(image.state, ImageState::Ready, "{when}: {image:?}");
    }
    let datastore = server.place.state_dir().join("datastores/default");
    let ids = |of: Vec<&String>| of.into_iter().cloned().collect::<BTreeSet<String>>();
    let wanted = ids(volumes.iter().map(|v| &v.meta.id).collect());
    // Beside each that was used: who wrote to it last.
    let mut files = stems(&datastore.join("volumes"));
    files.retain(|name| !name.ends_with(".raw") && !name.ends_with(".qcow2"));
    same(when, "volumes' files", &wanted, &files);
    if IMAGE_FILES.get() {
        let wanted = ids(images.iter().map(|i| &i.meta.id).collect());
        same(when, "images' files", &wanted, &stems(&datastore.join("images")));
    }
    assert_eq!(stems(&datastore.join("incoming")), BTreeSet::new(), "{when}: incoming");

    let on = |vm: &&Vm| matches!(vm.status.state, State::Running | State::Paused);
    let running = ids(vms.iter().filter(on).map(|v| &v.meta.id).collect());
    let disks = ids(vms.iter().filter(on).flat_map(|v| &v.disks).map(|d| &d.volume.id).collect());
    let nics: usize = vms.iter().filter(on).map(|v| v.nics.len()).sum();
    until(&format!("{when}: exactly the machines {running:?} have processes"), || {
        machines(server) == running
    });
    until(&format!("{when}: exactly the disks {disks:?} are exported"), || {
        stems(&server.place.run_dir().join("blockd/exports")) == disks
    });
    until(&format!("{when}: there are {nics} taps"), || taps(server) == nics);
    let all = ids(vms.iter().map(|v| &v.meta.id).collect());
    let kept = stems(&server.place.state_dir().join("vms"));
    let strays: Vec<_> = kept.difference(&all).collect();
    assert!(strays.is_empty(), "{when}: directories of VMs that are gone: {strays:?}");
}

fn same(when: &str, what: &str, wanted: &BTreeSet<String>, found: &BTreeSet<String>) {
    assert_eq!(wanted, found, "{when}: {what}: wanted on the left, found on the right");
}

/// The names of what is in a directory, without their last extension.
fn stems(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let stem = |e: fs::DirEntry| Some(e.path().file_stem()?.to_string_lossy().into_owned());
    entries.filter_map(stem).collect()
}

/// The VMs that have a process in their cgroup, and those that left a cgroup behind.
fn machines(server: &Server) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for cgroup in server.place.cgroups() {
        for entry in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(id) = name.strip_prefix("vm-") {
                let alive = process::in_cgroup(&entry.path()).into_iter().any(process::alive);
                found.insert(if alive { id.to_owned() } else { format!("{id} (empty)") });
            }
        }
    }
    found
}

fn taps(server: &Server) -> usize {
    server.sh("ip -o link show type tun").lines().count()
}
