//! What Basin asks of `qemu-img`. The format of every file is told, never guessed,
//! and no header's word about other files is followed.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use basin_model::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::sandbox::{Ended, Limits, Run, RunError};

/// An open file and the name of its format in QEMU.
pub struct Opened {
    pub file: OwnedFd,
    pub driver: &'static str,
}

/// Why `qemu-img` did not do it.
#[derive(Debug)]
pub enum ImgError {
    Cancelled,
    Full,
    /// What it said.
    Refused(String),
    Io(std::io::Error),
}

impl From<RunError> for ImgError {
    fn from(e: RunError) -> ImgError {
        match e {
            RunError::Cancelled => ImgError::Cancelled,
            RunError::Io(e) => ImgError::Io(e),
        }
    }
}

/// A run of `qemu-img`, as one user and with one eye on cancellation.
pub struct QemuImg<'a> {
    pub uid: Option<u32>,
    pub cancel: &'a CancellationToken,
}

/// Metadata of a format that tables of a hostile file could make grow without end.
const SLACK: u64 = 256 << 20;

impl QemuImg<'_> {
    /// The size that a guest would see.
    pub fn virtual_size(&self, of: &[Opened]) -> Result<Bytes, ImgError> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(rename = "virtual-size")]
            virtual_size: u64,
        }
        let info: Info = self.json(&["info", "--output=json"], of)?;
        Ok(Bytes(info.virtual_size))
    }

    /// About what a qcow2 with this content would occupy.
    pub fn measure(&self, of: &[Opened]) -> Result<Bytes, ImgError> {
        #[derive(Deserialize)]
        struct Measured {
            required: u64,
        }
        let measured: Measured = self.json(&["measure", "--output=json", "-O", "qcow2"], of)?;
        Ok(Bytes(measured.required))
    }

    /// Checks the metadata. Clusters that nobody uses do no harm and are let pass.
    pub fn check(&self, of: &[Opened]) -> Result<(), ImgError> {
        let ended = self.prepare(&["check", "-q"], of, 0).wait(self.cancel, &mut |_| ())?;
        match ended.status.code() {
            Some(0 | 3) => Ok(()),
            _ => Err(failure(&ended)),
        }
    }

    /// Reads all data there are, to nowhere: compressed clusters say then whether
    /// they are whole.
    pub fn read_through(
        &self,
        of: &[Opened],
        size: Bytes,
        percent: &mut dyn FnMut(f64),
    ) -> Result<(), ImgError> {
        let mut run = self.prepare(&["convert", "-p", "-n", "--target-image-opts"], of, 0);
        run.args.push(format!("driver=null-co,size={}", size.get()).into());
        run.limits = limits(size.get());
        success(run.wait(self.cancel, &mut watch(percent))?)
    }

    /// Copies the content into a new image of the format.
    pub fn convert(
        &self,
        of: &[Opened],
        driver: &'static str,
        to: BorrowedFd<'_>,
        size: Bytes,
        percent: &mut dyn FnMut(f64),
    ) -> Result<(), ImgError> {
        let mut run = self.prepare(&["convert", "-p", "-O", driver], of, size.get());
        run.args.push(inherited(to).into());
        run.files.push(to);
        success(run.wait(self.cancel, &mut watch(percent))?)
    }

    /// Makes an empty qcow2; `backing` is what its header names, unseen.
    pub fn create(
        &self,
        to: BorrowedFd<'_>,
        size: Bytes,
        backing: Option<(&Path, &'static str)>,
    ) -> Result<(), ImgError> {
        let mut run = self.prepare(&["create", "-q", "-f", "qcow2"], &[], size.get());
        if let Some((path, driver)) = backing {
            run.args.extend(["-u".into(), "-F".into(), driver.into(), "-b".into(), path.into()]);
        }
        run.args.extend([inherited(to).into(), size.get().to_string().into()]);
        run.files.push(to);
        success(run.wait(self.cancel, &mut |_| ())?)
    }

    /// Grows an image. Its backing file is not opened.
    pub fn resize(&self, of: &Opened, size: Bytes) -> Result<(), ImgError> {
        let mut run = self.prepare(&["resize", "-q"], std::slice::from_ref(of), size.get());
        run.args.push(size.get().to_string().into());
        success(run.wait(self.cancel, &mut |_| ())?)
    }

    fn json<T: for<'de> Deserialize<'de>>(
        &self,
        args: &[&str],
        of: &[Opened],
    ) -> Result<T, ImgError> {
        let ended = self.prepare(args, of, 0).wait(self.cancel, &mut |_| ())?;
        if !ended.status.success() {
            return Err(failure(&ended));
        }
        serde_json::from_slice(&ended.stdout)
            .map_err(|e| ImgError::Refused(format!("qemu-img's answer is not understood: {e}")))
    }

    /// A run on an image, the chain's top first; `size` is what it may write.
    fn prepare<'a>(&self, args: &[&str], of: &'a [Opened], size: u64) -> Run<'a> {
        let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
        if !of.is_empty() {
            args.push(image(of).into());
        }
        Run {
            program: "qemu-img",
            args,
            files: of.iter().map(|o| o.file.as_fd()).collect(),
            uid: self.uid,
            limits: limits(size),
        }
    }
}

/// Time and room in proportion to the disk, generous: they stop what never ends.
fn limits(size: u64) -> Limits {
    Limits {
        file_size: size.saturating_add(size / 64).saturating_add(SLACK),
        cpu_seconds: 600 + (size >> 30) * 60,
    }
}

/// How a child opens anew a file that it inherited. It needs no right to any
/// directory for that, only to the file.
fn inherited(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Names a chain to QEMU, with every format and every link told.
fn image(chain: &[Opened]) -> String {
    let node = chain.iter().rev().fold(Value::Null, |below, layer| {
        json!({
            "driver": layer.driver,
            "file": { "driver": "file", "filename": inherited(layer.file.as_fd()) },
            "backing": below,
        })
    });
    format!("json:{node}")
}

fn success(ended: Ended) -> Result<(), ImgError> {
    if ended.status.success() { Ok(()) } else { Err(failure(&ended)) }
}

fn failure(ended: &Ended) -> ImgError {
    let said = |words: &str| ended.stderr.contains(words);
    if said("No space left on device") || said("Disk quota exceeded") {
        return ImgError::Full;
    }
    if said("exceeding the end of the file") && !said("corrupted") {
        return ImgError::Refused("it is truncated: it refers to data beyond its end".to_owned());
    }
    ImgError::Refused(ended.reason())
}

/// Finds the last percentage in the output of `-p`, such as `    (12.34/100%)`.
fn percent_in(output: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(output);
    let (before, _) = text.rsplit_once("/100%)")?;
    before.rsplit_once('(')?.1.trim().parse().ok().filter(|p| (0.0..=100.0).contains(p))
}

fn watch(percent: &mut dyn FnMut(f64)) -> impl FnMut(&[u8]) {
    move |piece| {
        if let Some(p) = percent_in(piece) {
            percent(p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_percentage_counts() {
        assert_eq!(percent_in(b"    (0.00/100%)\r    (12.34/100%)\r"), Some(12.34));
        assert_eq!(percent_in(b"    (100.00/100%)\n"), Some(100.0));
        assert_eq!(percent_in(b"    (12."), None);
        assert_eq!(percent_in(b"(x/100%)"), None);
        assert_eq!(percent_in(b"\xff/100%)"), None);
    }

    /// On a file system of its own, seen by this thread only.
    #[test]
    fn a_file_system_that_is_full_is_told_from_other_failures() {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let result = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let source = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut &source, &[7; 8 << 20]).unwrap();
            let options = Some("size=4m");
            mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), options).unwrap();
            let target = std::fs::File::create_new(dir.path().join("target")).unwrap();
            let qemu = QemuImg { uid: None, cancel: &CancellationToken::new() };
            let image = [Opened { file: source.into(), driver: "raw" }];
            qemu.convert(&image, "qcow2", target.as_fd(), Bytes::mib(8), &mut |_| ())
        });
        let result = result.join().unwrap();
        assert!(matches!(result, Err(ImgError::Full)), "{result:?}");
    }
}
