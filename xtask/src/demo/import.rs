//! The images that the demo's guests are made of.

use std::path::Path;

use anyhow::Result;

use super::run::Runner;

/// A file of the guest images, the image's name, and its kind.
pub type File = (&'static str, &'static str, &'static str);

pub const INITRD: File = ("micro/initrd.img", "micro-initrd", "initrd");
/// For q35.
pub const KERNEL: File = ("micro/vmlinuz", "micro-kernel", "kernel");
/// For microvm.
pub const ELF_KERNEL: File = ("micro/vmlinux", "micro-kernel", "kernel");
pub const DEBIAN: File = ("debian/disk.qcow2", "debian-12", "disk");

/// Imports some, as a newcomer would.
pub fn all(runner: &Runner, images: &Path, files: &[File]) -> Result<()> {
    for (file, name, kind) in files {
        let file = images.join(file).display().to_string();
        runner.basin(&["image", "import", &file, "--name", name, "--kind", kind])?;
    }
    let list = runner.basin(&["image", "list"])?;
    files.iter().try_for_each(|(_, name, _)| list.expect(name))
}
