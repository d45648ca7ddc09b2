//! Where OVMF is.

use std::path::{Path, PathBuf};

use basin_model::Bytes;

use crate::hardware::Flash;

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

impl Uefi {
    /// A guest keeps these sizes wherever it goes.
    pub fn flash(&self) -> Option<Flash> {
        let size = |path: &Path| std::fs::metadata(path).ok().map(|meta| Bytes(meta.len()));
        Some(Flash { code: size(&self.code)?, vars: size(&self.vars_template)? })
    }
}

/// Of these sizes, or the newest.
pub fn find(flash: Option<Flash>) -> Result<Uefi, String> {
    let installed =
        KNOWN.iter().filter(|(code, vars)| Path::new(code).exists() && Path::new(vars).exists());
    let mut installed = installed
        .map(|(code, vars)| Uefi { code: code.into(), vars_template: vars.into() })
        .peekable();
    let any = installed.peek().is_some();
    match (installed.find(|uefi| flash.is_none() || uefi.flash() == flash), flash) {
        (Some(uefi), _) => Ok(uefi),
        (None, Some(Flash { code, vars })) if any => Err(format!(
            "UEFI firmware of {code} with {vars} of variables, which the guest has, is not installed"
        )),
        _ => Err(format!(
            "UEFI firmware is not installed: there is no {} (on Debian and Ubuntu: ovmf)",
            KNOWN[0].0
        )),
    }
}
