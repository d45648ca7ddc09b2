//! The mark "open for writing" in a qcow2 header, and the repair of an image that
//! still bears it.
//!
//! The library orders an image's metadata well enough for a clean end, not for a
//! kill (see `docs/decisions/0011-qcow2-imago.md`): refcounts may lag behind the
//! tables. The format knows this state, a bit that says "count again before you
//! allocate", and `qemu-img` knows how. So the bit is set for as long as a disk is
//! open for writing, and an image that bears it is counted again first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Sets or clears the bit, durably. Nothing else writes the header meanwhile.
pub fn mark(file: &File, dirty: bool) -> io::Result<()> {
    // Of the incompatible features, big-endian at 72, the lowest bit.
    const AT: usize = 79;
    let mut block = Block([0; 4096]);
    let n = file.read_at(&mut block.0, 0)?;
    if n < block.0.len() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the header's cluster is cut"));
    }
    block.0[AT] = block.0[AT] & !1 | u8::from(dirty);
    file.write_all_at(&block.0, 0)?;
    file.sync_data()
}

/// Aligned as direct I/O wants it.
#[repr(align(4096))]
pub struct Block(pub [u8; 4096]);

/// Counts the references of an image's clusters again. Nobody has it open.
pub fn repair(path: &Path) -> Result<(), String> {
    // Without its backing file: only this file is looked at.
    let image = serde_json::json!({
        "driver": "qcow2",
        "backing": null,
        "file": { "driver": "file", "filename": path },
    });
    tracing::info!(path = %path.display(), "not closed cleanly: checking the image");
    let out = Command::new("qemu-img")
        .args(["check", "-q", "-r", "all", &format!("json:{image}")])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("it was not closed cleanly, and qemu-img (qemu-utils) cannot be run to repair it: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    let why: String = text.trim().chars().take(500).collect();
    Err(format!("it was not closed cleanly and qemu-img cannot repair it: {why}"))
}
