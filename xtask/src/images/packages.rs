//! Debian packages: which version there is, and the package's file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{command, quietly};

/// A package and the version that would be installed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
}

/// The candidates of `names`, in that order. Refreshes the package lists when
/// they do not know one of them.
pub fn candidates(names: &[&str]) -> Result<Vec<Package>> {
    match lookup(names) {
        Ok(packages) => Ok(packages),
        Err(_) => {
            refresh()?;
            lookup(names)
        }
    }
}

/// The newest lists of packages.
pub fn refresh() -> Result<()> {
    quietly(command("apt-get", &[&"update", &"-q"])).map(drop)
}

fn lookup(names: &[&str]) -> Result<Vec<Package>> {
    let mut apt = command("apt-cache", &[&"policy"]);
    apt.args(names).env("LC_ALL", "C");
    let text = String::from_utf8(quietly(apt)?)?;
    let known = parse_policy(&text);
    let find = |name: &&str| {
        let found = known.iter().find(|package| package.name == **name).cloned();
        found.with_context(|| format!("apt knows no package {name}"))
    };
    names.iter().map(find).collect()
}

/// What `apt-cache policy` prints: a line with the name, then indented ones.
fn parse_policy(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(candidate) = line.trim().strip_prefix("Candidate: ")
            && candidate != "(none)"
        {
            packages.push(Package { name: name.to_owned(), version: candidate.to_owned() });
        } else if let Some(title) = line.strip_suffix(':')
            && !line.starts_with(' ')
        {
            name = title;
        }
    }
    packages
}

/// The package that a metapackage such as `linux-image-cloud-amd64` stands for.
pub fn real_kernel(metapackage: &str) -> Result<Package> {
    let mut apt = command("apt-cache", &[&"depends", &metapackage]);
    apt.env("LC_ALL", "C");
    let text = String::from_utf8(quietly(apt)?)?;
    let name = parse_kernel_dependency(&text)
        .with_context(|| format!("{metapackage} depends on no kernel image"))?;
    candidates(&[&name])?.pop().context("no candidate")
}

fn parse_kernel_dependency(text: &str) -> Option<String> {
    let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    depends.into_iter().find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

/// Unpacks `package` below `into`, without installing it.
pub fn unpack(package: &Package, into: &Path) -> Result<()> {
    let downloads = into.join("download");
    fs::create_dir_all(&downloads)?;
    let wanted = format!("{}={}", package.name, package.version);
    let mut apt = command("apt-get", &[&"-q", &"-o", &"APT::Sandbox::User=root", &"download"]);
    apt.arg(wanted).current_dir(&downloads);
    quietly(apt)?;
    let file = only_file(&downloads)?;
    quietly(command("dpkg-deb", &[&"-x", &file, &into]))?;
    fs::remove_dir_all(&downloads)?;
    Ok(())
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    match (entries.pop(), entries.is_empty()) {
        (Some(path), true) => Ok(path),
        _ => bail!("{} should hold one file", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_read() {
        let text = "busybox-static:\n  Installed: (none)\n  Candidate: 1:1.35.0-4\n  Version table:\n     1:1.35.0-4 500\n        500 http://mirror/debian bookworm/main amd64 Packages\ngone:\n  Installed: (none)\n  Candidate: (none)\n";
        let expect = Package { name: "busybox-static".into(), version: "1:1.35.0-4".into() };
        assert_eq!(parse_policy(text), [expect]);
    }

    #[test]
    fn a_kernel_is_found_behind_its_metapackage() {
        let text =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        let expect = Some("linux-image-6.1.0-56-cloud-amd64".to_owned());
        assert_eq!(parse_kernel_dependency(text), expect);
        assert_eq!(parse_kernel_dependency("x\n  Depends: libc6\n"), None);
    }
}
