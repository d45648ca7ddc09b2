//! The full guest: Debian 12 with cloud-init, the guest agent and an SSH server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::cache::{self, Key};
use super::disk::{Layout, assemble};
use super::packages::{candidates, refresh};
use crate::shell::{command, quietly};

const SUITE: &str = "bookworm";
const SIZE: u64 = 2 << 30;
const ROOT_UUID: &str = "8d3c1f0a-5b1e-4c58-9a5e-b1a51b1a51b1";

const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "lz4",
    "cloud-init",
    "cloud-guest-utils",
    "qemu-guest-agent",
    "openssh-server",
    "sudo",
    "iproute2",
    "iputils-ping",
    "netbase",
    "e2fsprogs",
];

const PREPARE: &str = include_str!("../../guests/debian-prepare");
const CUSTOMIZE: &str = include_str!("../../guests/debian-customize");

/// `disk.qcow2`, in a directory of `cache`.
pub fn ensure(cache: &Path) -> Result<PathBuf> {
    let mut key = Key::default();
    key.add("recipe", include_str!("debian.rs"))
        .add("disk", include_str!("disk.rs"))
        .add("grub", include_str!("grub.rs"))
        .add("prepare", PREPARE)
        .add("customize", CUSTOMIZE);
    if host_is_the_suite()? {
        // Another release's lists know nothing of the versions that will be installed.
        for package in candidates(PACKAGES)? {
            key.add(&package.name, &package.version);
        }
    }
    cache::ensure(cache, "debian", &key, build)
}

fn build(dir: &Path) -> Result<()> {
    let root = dir.join("root");
    if install(dir, &root).is_err() {
        // The lists may name versions that the mirror has replaced since.
        refresh()?;
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        install(dir, &root)?;
    }
    let raw = dir.join("disk.raw");
    assemble(&Layout { root: &root, root_uuid: ROOT_UUID, size: SIZE }, dir, &raw)?;
    let image = dir.join("disk.qcow2");
    quietly(command("qemu-img", &[&"convert", &"-O", &"qcow2", &raw, &image]))?;
    fs::remove_file(raw)?;
    fs::remove_dir_all(root)?;
    for name in ["prepare", "customize", "early.cfg"] {
        fs::remove_file(dir.join(name))?;
    }
    Ok(())
}

fn install(dir: &Path, root: &Path) -> Result<()> {
    for (name, script) in [("prepare", PREPARE), ("customize", CUSTOMIZE)] {
        fs::write(dir.join(name), script)?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let mut debstrap = command("mmdebstrap", &[&"--mode=root", &"--variant=minbase"]);
    debstrap
        .arg("--quiet")
        .arg(format!("--include={}", PACKAGES.join(",")))
        // Nobody reads manuals in a test guest.
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/usr/share/info/*")
        .arg(format!("--essential-hook={} \"$1\"", dir.join("prepare").display()))
        .arg(format!(
            "--customize-hook=ROOT_UUID={ROOT_UUID} {} \"$1\"",
            dir.join("customize").display()
        ))
        .env("TMPDIR", dir)
        .arg(SUITE)
        .arg(root);
    let sources = host_sources()?;
    if !sources.is_empty() {
        let path = dir.join("sources.list");
        fs::write(&path, sources.join("\n") + "\n")?;
        debstrap.arg(&path);
        quietly(debstrap)?;
        return Ok(fs::remove_file(path)?);
    }
    quietly(debstrap).map(drop)
}

fn host_is_the_suite() -> Result<bool> {
    Ok(!host_sources()?.is_empty())
}

/// The mirrors that this machine uses, if it runs the same release.
fn host_sources() -> Result<Vec<String>> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN) $(CODENAME)";
    let targets = quietly(command(
        "apt-get",
        &[&"indextargets", &"--format", &format, &"Created-By: Packages"],
    ))?;
    Ok(parse_sources(&String::from_utf8_lossy(&targets)))
}

fn parse_sources(targets: &str) -> Vec<String> {
    let mut sources: Vec<String> = Vec::new();
    for line in targets.lines() {
        let [uri, release, component, "Debian", codename] =
            line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            continue;
        };
        let usual = ["", "-updates", "-security"];
        if component == "main" && usual.iter().any(|end| codename == format!("{SUITE}{end}")) {
            let source = format!("deb {uri} {release} {component}");
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
    }
    // Updates alone are no release.
    let base = targets.lines().any(|line| line.ends_with(&format!(" Debian {SUITE}")));
    if base { sources } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_release_of_debian_counts() {
        let targets = "http://mirror/debian/ bookworm main Debian bookworm\n\
            http://mirror/debian/ bookworm main Debian bookworm\n\
            http://mirror/debian/ bookworm-backports main Debian bookworm-backports\n\
            http://mirror/security/ bookworm-security main Debian bookworm-security\n\
            http://other/ stable main Other stable\n";
        let expect = [
            "deb http://mirror/debian/ bookworm main",
            "deb http://mirror/security/ bookworm-security main",
        ];
        assert_eq!(parse_sources(targets), expect);
        assert!(parse_sources("http://mirror/debian/ trixie main Debian trixie\n").is_empty());
    }
}
