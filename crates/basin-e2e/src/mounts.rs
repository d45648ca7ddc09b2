//! What a server of several sees mounted: directories of its own at paths that all
//! servers have, and file systems that are full sooner than the machine's.
//!
//! Everything is mounted below a place's directory, so its removal unmounts it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

use crate::place::{PREFIX, Place};

/// The server's mount namespace, if it has one.
pub(crate) fn namespace(place: &Place) -> PathBuf {
    place.dir.join("ns/mnt")
}

/// Gives the server mounts of its own, from now on. What is mounted so far, it sees.
pub(crate) fn separate(place: &Place) {
    let file = namespace(place);
    let dir = file.parent().expect("a parent");
    fs::create_dir(dir).expect("make a directory");
    // A namespace can only be kept where mounts do not spread to.
    mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).expect("private");
    File::create(&file).expect("make a file");
    let flag = format!("--mount={}", file.display());
    run(Command::new("unshare").args([&flag, "--propagation=private", "true"]));
    // It would keep alive what belongs to others, or goes when this server loses power.
    for mount in mounts().into_iter().filter(|m| is_foreign(m, place)) {
        let _ = place.command("umount").arg("--lazy").arg(mount).output();
    }
}

fn is_foreign(mount: &Path, place: &Place) -> bool {
    let servers = mount.to_string_lossy().starts_with(PREFIX);
    mount == Path::new("/run/netns") || (servers && !mount.starts_with(&place.dir))
}

/// All that is mounted, the last first.
pub(crate) fn mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().rev().filter_map(|l| l.split(' ').nth(1)).map(PathBuf::from).collect()
}

/// Has the server see `what` at `path`, as one mounts a share of the network.
#[track_caller]
pub(crate) fn bind(place: &Place, what: &Path, path: &Path) {
    run(place.command("mount").arg("--bind").args([what, path]));
}

/// Takes away what the server sees at `path`; who has files open there keeps them.
#[track_caller]
pub(crate) fn unbind(place: &Place, path: &Path) {
    run(place.command("umount").arg("--lazy").arg(path));
}

/// A file system of a given size in a file.
#[track_caller]
pub(crate) fn limited(place: &Place, path: &Path, bytes: u64) {
    let name = path.file_name().expect("a name").to_string_lossy();
    let image = place.dir.join(format!("{name}.img"));
    File::create(&image).and_then(|f| f.set_len(bytes)).expect("make the image");
    // None of it is kept for root, and no journal keeps it busy.
    let mkfs = ["-q", "-m0", "-O", "^has_journal", "-E", "lazy_itable_init=0"];
    run(Command::new("mkfs.ext4").args(mkfs).arg(&image));
    fs::create_dir_all(path).expect("make the mount point");
    run(Command::new("mount").args(["-o", "loop"]).args([&image, path]));
    let _ = fs::remove_dir(path.join("lost+found"));
}

/// Fills the file system that a directory is in; [`make_room`] undoes it.
#[track_caller]
pub(crate) fn fill(dir: &Path) {
    let file = File::create(filler(dir)).expect("make the file that fills");
    let mut step: i64 = 1 << 40;
    let mut at = 0;
    // Halves until not even a block more fits.
    while step >= 1024 {
        match fallocate(&file, FallocateFlags::empty(), at, step) {
            Ok(()) => at += step,
            Err(_) => step /= 2,
        }
    }
    let left = free(dir);
    assert!(left < 64 << 10, "{} bytes are free in {} still", left, dir.display());
}

#[track_caller]
pub(crate) fn make_room(dir: &Path) {
    fs::remove_file(filler(dir)).expect("remove the file that fills");
}

/// Free bytes of the file system that a directory is in.
pub fn free(dir: &Path) -> u64 {
    let stat = statvfs(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    stat.blocks_available() * stat.fragment_size()
}

fn filler(dir: &Path) -> PathBuf {
    dir.join(".filler")
}

#[track_caller]
fn run(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}
