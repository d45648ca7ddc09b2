//! Where OVMF is.

use std::path::{Path, PathBuf};

/// OVMF's code and the variables a new VM starts with. They belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uefi {
    pub code: PathBuf,
    pub vars_template: PathBuf,
}

/// As packaged: Debian and Ubuntu (4 MiB, then the older 2 MiB).
const KNOWN: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

pub fn find() -> Result<Uefi, String> {
    let found =
        KNOWN.iter().find(|(code, vars)| Path::new(code).exists() && Path::new(vars).exists());
    match found {
        Some((code, vars)) => Ok(Uefi { code: code.into(), vars_template: vars.into() }),
        None => Err(format!(
            "UEFI firmware is not installed: there is no {} (on Debian and Ubuntu: ovmf)",
            KNOWN[0].0
        )),
    }
}
