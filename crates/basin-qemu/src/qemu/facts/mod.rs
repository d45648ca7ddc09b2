//! What QEMU can give a guest here: asked of QEMU itself, once for each binary and boot.
//!
//! The answer takes a tenth of a second and a process. It is kept in a file beside what
//! it depends on: the binary, and under KVM the kernel and microcode, which a boot fixes.

mod ask;
mod parse;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use basin_model::hardware::HardwareFacts;
use serde::{Deserialize, Serialize};

use super::cmdline::Accelerator;
use super::files;

/// Whom to ask.
pub struct Ask<'a> {
    pub program: &'a Path,
    pub accelerator: Accelerator,
    /// The group that may open /dev/kvm.
    pub kvm_group: Option<u32>,
    pub limit: Duration,
}

/// What the answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    /// Of this layout, and of what is asked.
    version: u32,
    program: PathBuf,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    accelerator: String,
    boot_id: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    origin: Origin,
    facts: HardwareFacts,
}

const VERSION: u32 = 1;

/// The facts: kept ones where nothing has changed, else QEMU's answer.
pub fn of_qemu(ask: &Ask<'_>, kept_at: &Path) -> Result<HardwareFacts, String> {
    let origin = origin(ask)?;
    if let Some(kept) = read(kept_at)
        && kept.origin == origin
    {
        return Ok(kept.facts);
    }
    let answers = ask::qemu(ask)?;
    let facts = parse::facts(&answers, ask.accelerator, &cpu_vendor())?;
    let kept = Kept { origin, facts };
    let written = serde_json::to_vec(&kept).map_err(std::io::Error::other).and_then(|json| {
        fs::create_dir_all(kept_at.parent().unwrap_or(Path::new("/")))?;
        files::replace_durably(kept_at, &json)
    });
    // Then it is asked again at the next start.
    if let Err(error) = written {
        tracing::warn!(%error, "cannot write {}", kept_at.display());
    }
    Ok(kept.facts)
}

/// A damaged file is as good as none.
fn read(path: &Path) -> Option<Kept> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn origin(ask: &Ask<'_>) -> Result<Origin, String> {
    let program = fs::canonicalize(ask.program);
    let program = program.map_err(|error| format!("{}: {error}", ask.program.display()))?;
    let meta = fs::metadata(&program).map_err(|error| format!("{}: {error}", program.display()))?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Ok(Origin {
        version: VERSION,
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        program,
        accelerator: ask.accelerator.as_str().to_owned(),
        boot_id: boot_id.trim().to_owned(),
    })
}

/// `GenuineIntel` and the like.
fn cpu_vendor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("vendor_id"));
    line.map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':'])).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use basin_model::hardware::{CpuClass, MachineVersion};
    use std::os::unix::fs::PermissionsExt;

    fn ask(program: &Path) -> Ask<'_> {
        let limit = Duration::from_secs(120);
        Ask { program, accelerator: Accelerator::Tcg, kvm_group: None, limit }
    }

    /// A program that notes each of its runs beside it and then is QEMU.
    fn counted(dir: &Path) -> (PathBuf, impl Fn() -> usize + use<>) {
        let real = super::super::process::find_program(Path::new("qemu-system-x86_64")).unwrap();
        let (program, runs) = (dir.join("qemu"), dir.join("runs"));
        fs::write(&runs, "").unwrap();
        // QEMU is asked as a user that owns nothing.
        fs::set_permissions(&runs, fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let script =
            format!("#!/bin/sh\necho run >> {}\nexec {} \"$@\"\n", runs.display(), real.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        (program, move || fs::read_to_string(&runs).unwrap().lines().count())
    }

    #[test]
    fn qemu_says_what_it_emulates() {
        let dir = tempfile::tempdir().unwrap();
        let found = of_qemu(&ask(Path::new("/usr/bin/qemu-system-x86_64")), &dir.path().join("f"));
        let found = found.unwrap();
        assert_eq!(found.class, CpuClass::Tcg);
        // The model of decision 0022, whole; and one that needs what TCG has not.
        assert!(found.cpus.runs("Nehalem-v1") && found.cpus.runs("qemu64"), "{found:?}");
        let missing = found.cpus.missing("Skylake-Server-v5").unwrap();
        assert!(missing.contains(&"avx512f") && missing.contains(&"xsaves"), "{missing:?}");
        assert!(found.q35.contains(&MachineVersion::new(7, 2)), "{:?}", found.q35);
        assert!(found.q35.is_sorted(), "{:?}", found.q35);
        let size = serde_json::to_vec(&found).unwrap().len();
        assert!(size < 8 << 10, "the record grew to {size} bytes");
    }

    #[test]
    fn it_is_asked_once_for_each_binary() {
        let dir = tempfile::tempdir().unwrap();
        let (program, runs) = counted(dir.path());
        let kept = dir.path().join("facts.json");
        let first = of_qemu(&ask(&program), &kept).unwrap();
        assert_eq!(of_qemu(&ask(&program), &kept).unwrap(), first);
        assert_eq!(runs(), 1);
        // Another file under the same name, as an upgrade puts it there.
        let upgraded = dir.path().join("new");
        fs::copy(&program, &upgraded).unwrap();
        fs::rename(&upgraded, &program).unwrap();
        assert_eq!(of_qemu(&ask(&program), &kept).unwrap(), first);
        assert_eq!(runs(), 2);
        // What was kept is damaged.
        fs::write(&kept, "{").unwrap();
        assert_eq!(of_qemu(&ask(&program), &kept).unwrap(), first);
        assert_eq!(runs(), 3);
    }

    #[test]
    fn a_qemu_that_does_not_answer_is_ended_and_quoted() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let check = |script: &str, limit: Duration, expect: &str| {
            let program = dir.path().join("qemu");
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let ask = Ask { limit, ..ask(&program) };
            let error = of_qemu(&ask, &dir.path().join("facts.json")).unwrap_err();
            assert!(error.contains(expect), "{error}");
            assert!(!dir.path().join("facts.json").exists());
        };
        let long = Duration::from_secs(60);
        check("echo no such accelerator >&2; exit 1", long, "no such accelerator");
        check("exit 0", long, "no answer to query-cpu-definitions");
        check("exec sleep 600", Duration::from_millis(300), "within 300ms");
    }
}
