//! Guest images for tests and the demo; see `docs/guest-images.md`.

mod cache;
mod debian;
mod disk;
mod elf;
mod grub;
mod micro;
mod packages;

use std::path::{Path, PathBuf};

use anyhow::Result;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Guest {
    Micro,
    Debian,
}

/// Where the images are: `BASIN_GUEST_IMAGES`, or a directory below `target`.
pub fn cache_dir(workspace: &Path) -> PathBuf {
    match std::env::var_os("BASIN_GUEST_IMAGES") {
        Some(dir) => PathBuf::from(dir),
        None => workspace.join("target/guest-images"),
    }
}

/// Builds what is missing or outdated of `guests`; all of them when none is named.
pub fn run(workspace: &Path, guests: &[Guest]) -> Result<()> {
    let cache = cache_dir(workspace);
    let wanted = |guest| guests.is_empty() || guests.contains(&guest);
    if wanted(Guest::Micro) {
        println!("images: micro  {}", micro::ensure(&cache, workspace)?.display());
    }
    if wanted(Guest::Debian) {
        println!("images: debian {}", debian::ensure(&cache)?.display());
    }
    Ok(())
}
