//! Writes `openapi/basin-v1.json` from what the binary says its API is.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::shell::quietly;
use crate::test::cargo;

pub fn run(workspace: &Path) -> Result<()> {
    let document = quietly(cargo(workspace, &["run", "--quiet", "-p", "basin", "--", "openapi"]))?;
    // Never half a document, and never one that is no JSON.
    serde_json::from_slice::<serde::de::IgnoredAny>(&document)?;
    let folder = workspace.join("openapi");
    fs::create_dir_all(&folder)?;
    let fresh = folder.join(".basin-v1.json.tmp");
    fs::write(&fresh, document)?;
    Ok(fs::rename(fresh, folder.join("basin-v1.json"))?)
}
