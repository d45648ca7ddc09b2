//! The micro guest: Debian's cloud kernel, busybox and `guest-tool` in an initrd.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use super::cache::{self, Key};
use super::elf::{kernel_payload, load_order, module_depends};
use super::packages::{Package, candidates, real_kernel, unpack};
use crate::shell::{command, quietly};

/// The kernel has file systems and the serial port built in. `virtio_rng` is left
/// out: on an emulated microvm the answer to its first request is now and then not
/// noticed, and its probe waits for ever. The device is tried by the Debian guest.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "virtio_console",
    "virtio_scsi",
    "virtio_mem",
    "sd_mod",
    "pvpanic_pci",
    "pvpanic_mmio",
    "evdev",
    "button",
];

const SCRIPTS: &[(&str, &str)] = &[
    ("init", include_str!("../../guests/micro-init")),
    ("bin/net-up", include_str!("../../guests/net-up")),
    ("bin/dhcp-event", include_str!("../../guests/dhcp-event")),
];

/// `vmlinuz`, `vmlinux` and `initrd.img`, in a directory of `cache`.
pub fn ensure(cache: &Path, workspace: &Path) -> Result<PathBuf> {
    let kernel = real_kernel("linux-image-cloud-amd64")?;
    let busybox = candidates(&["busybox-static"])?.pop().context("no busybox")?;
    let mut key = Key::default();
    key.add("recipe", include_str!("micro.rs")).add("elf", include_str!("elf.rs"));
    for (name, content) in SCRIPTS {
        key.add(name, content);
    }
    for package in [&kernel, &busybox] {
        key.add(&package.name, &package.version);
    }
    for source in guest_tool_sources(workspace)? {
        key.add(&source.to_string_lossy(), fs::read(workspace.join(&source))?);
    }
    cache::ensure(cache, "micro", &key, |dir| build(dir, workspace, &kernel, &busybox))
}

fn guest_tool_sources(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in WalkDir::new(workspace.join("crates/basin-guest")).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            sources.push(entry.path().strip_prefix(workspace)?.to_owned());
        }
    }
    Ok(sources)
}

fn build(dir: &Path, workspace: &Path, kernel: &Package, busybox: &Package) -> Result<()> {
    let tool = build_guest_tool(workspace)?;
    let unpacked = dir.join("unpacked");
    fs::create_dir(&unpacked)?;
    unpack(kernel, &unpacked)?;
    unpack(busybox, &unpacked)?;

    let image = fs::read(find_kernel(&unpacked.join("boot"))?)?;
    fs::write(dir.join("vmlinuz"), &image)?;
    let payload = kernel_payload(&image)?;
    fs::write(dir.join("vmlinux"), decompress(payload.decompressor, payload.bytes)?)?;

    let root = dir.join("root");
    for folder in ["bin", "lib/modules", "proc", "sys", "dev", "root", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    copy_modules(&unpacked.join("lib/modules"), &root.join("lib/modules"))?;
    fs::copy(unpacked.join("bin/busybox"), root.join("bin/busybox"))?;
    fs::copy(tool, root.join("bin/guest-tool"))?;
    for (name, content) in SCRIPTS {
        let path = root.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    std::os::unix::fs::symlink("/run/resolv.conf", root.join("etc/resolv.conf"))?;
    fs::write(root.join("etc/passwd"), "root::0:0:root:/root:/bin/sh\n")?;
    pack(&root, &dir.join("initrd.img"))?;
    fs::remove_dir_all(&root)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}

/// Static, since the guest has no libraries.
fn build_guest_tool(workspace: &Path) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    // A directory of its own: other flags would rebuild everything in the usual one.
    let target_dir = workspace.join("target/guest-tool");
    let mut build = std::process::Command::new(cargo);
    build
        .args(["build", "--quiet", "--locked", "--release", "-p", "basin-guest"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(workspace);
    quietly(build)?;
    Ok(target_dir.join(TARGET).join("release/guest-tool"))
}

fn find_kernel(boot: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(boot)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    bail!("the kernel package holds no boot/vmlinuz-*")
}

fn decompress(program: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = command(program, &[&"-dc"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut input = child.stdin.take().context("no standard input")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes));
        child.wait_with_output()
    })?;
    if !output.stdout.starts_with(b"\x7fELF") {
        bail!("{program} made no ELF file of the kernel: {}", output.status);
    }
    Ok(output.stdout)
}

/// Copies the modules and writes the order in which the guest loads them.
fn copy_modules(from: &Path, to: &Path) -> Result<()> {
    let mut paths = std::collections::BTreeMap::new();
    for entry in WalkDir::new(from) {
        let path = entry?.into_path();
        if let Some(stem) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko")) {
            paths.insert(stem.replace('-', "_"), path.clone());
        }
    }
    let find = |name: &str| paths.get(name).with_context(|| format!("no module {name}"));
    let builtin = builtin_modules(from)?;
    let wanted: Vec<&str> =
        MODULES.iter().copied().filter(|name| !builtin.iter().any(|have| have == name)).collect();
    let order = load_order(&wanted, |name| Ok(module_depends(&fs::read(find(name)?)?)))?;
    let mut list = String::new();
    for name in &order {
        let file = format!("{name}.ko");
        fs::copy(find(name)?, to.join(&file))?;
        list += &format!("{file}\n");
    }
    Ok(fs::write(to.join("order"), list)?)
}

fn builtin_modules(from: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(from)? {
        let text = fs::read_to_string(entry?.path().join("modules.builtin"))?;
        let stems = text.lines().filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
        names.extend(stems.map(|stem| stem.replace('-', "_")));
    }
    Ok(names)
}

/// An uncompressed archive: under emulation, unpacking costs more than loading.
fn pack(root: &Path, archive: &Path) -> Result<()> {
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in WalkDir::new(root).min_depth(1).sort_by_file_name() {
        names.push(entry?.path().strip_prefix(root)?.to_owned());
    }
    let mut list = Vec::new();
    for name in names {
        list.extend_from_slice(name.as_os_str().as_encoded_bytes());
        list.push(0);
    }
    let mut cpio = command("cpio", &[&"-o", &"-0", &"-H", &"newc", &"--quiet", &"--reproducible"]);
    cpio.args(["--owner", "0:0"]).current_dir(root).stdin(Stdio::piped());
    let mut child = cpio.stdout(fs::File::create(archive)?).spawn().context("cannot start cpio")?;
    child.stdin.take().context("no standard input")?.write_all(&list)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("cpio failed: {status}");
    }
    Ok(())
}
