//! Whether there is a QEMU that will do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use basin_model::host::QemuInfo;

use super::process::find_program;

const NAME: &str = "qemu-system-x86_64";
/// Debian 12's. Older ones lack what the command line asks for.
const OLDEST: (u32, u32) = (7, 2);

/// Looks at the given program, or the one in the `PATH`.
pub fn inspect(binary: Option<&Path>) -> QemuInfo {
    let wanted = binary.map_or_else(|| PathBuf::from(NAME), Path::to_owned);
    match version_of(&wanted) {
        Ok((path, version)) => QemuInfo::Usable { path: path.display().to_string(), version },
        Err(reason) => QemuInfo::Unusable { reason },
    }
}

fn version_of(wanted: &Path) -> Result<(PathBuf, String), String> {
    let name = wanted.display();
    let path = find_program(wanted).ok_or_else(|| {
        format!("there is no {name}: install it (on Debian and Ubuntu: qemu-system-x86)")
    })?;
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", path.display()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or("it says nothing");
        return Err(format!("{} --version failed: {words}", path.display()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (version, numbers) = parse_version(&text)
        .ok_or_else(|| format!("{} --version does not name a version", path.display()))?;
    if numbers < OLDEST {
        return Err(format!(
            "{} is version {version}, and Basin needs {}.{} or newer",
            path.display(),
            OLDEST.0,
            OLDEST.1
        ));
    }
    Ok((path, version))
}

/// `7.2.22` of `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn parse_version(text: &str) -> Option<(String, (u32, u32))> {
    let version = text.lines().next()?.split_once("version ")?.1.split_whitespace().next()?;
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((version.to_owned(), (major, minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let check = |text: &str, expect: Option<(&str, (u32, u32))>| {
            let found = parse_version(text);
            assert_eq!(found.as_ref().map(|(v, n)| (v.as_str(), *n)), expect, "{text}");
        };
        check("QEMU emulator version 7.2.22 (Debian 1:7.2)\n", Some(("7.2.22", (7, 2))));
        check("QEMU emulator version 10.0.0\nCopyright", Some(("10.0.0", (10, 0))));
        check("QEMU emulator version x.y", None);
        check("", None);
    }
}
