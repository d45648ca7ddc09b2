//! The images that the demo's guests are made of.

use std::path::Path;

use anyhow::Result;

use super::run::Runner;

/// Imports them, as a newcomer would. `kernel` is what the machine in question boots.
pub fn all(runner: &Runner, images: &Path, kernel: &str) -> Result<()> {
    let text = |file: &str| images.join(file).display().to_string();
    let files = [
        (text(kernel), "micro-kernel", "kernel"),
        (text("micro/initrd.img"), "micro-initrd", "initrd"),
        (text("debian/disk.qcow2"), "debian-12", "disk"),
    ];
    for (file, name, kind) in &files {
        runner.basin(&["image", "import", file, "--name", name, "--kind", kind])?;
    }
    let list = runner.basin(&["image", "list"])?;
    files.iter().try_for_each(|(_, name, _)| list.expect(name))
}
