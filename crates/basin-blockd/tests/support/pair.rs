//! Two blockds with a disk on the first that is mirrored to the second.

use std::time::Duration;

use basin_blockd::client::ClientError;
use basin_blockd::control::{Export, Held, Layer, Mirror, MirrorPhase, MirrorState};
use basin_model::volume::VolumeFormat::{self, Qcow2, Raw};

use super::fabric::{Pki, host};
use super::{Daemon, path_str, sh, until};

pub const SIZE: u64 = 32 << 20;

/// Two servers, a disk on the first and a place for it on the second.
pub struct Pair {
    pub source: Daemon,
    pub target: Daemon,
    pub from: Export,
    pub to: Export,
    pub mirror: Mirror,
}

pub fn make(at: &Daemon, name: &str, format: VolumeFormat, base: Option<&str>) -> Export {
    let path = at.path(name);
    let p = path_str(&path).to_owned();
    match (format, base) {
        (Raw, _) => {
            std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
            at.export(name, vec![Layer { path, format }])
        }
        (Qcow2, None) => {
            sh("qemu-img", &["create", "-q", "-f", "qcow2", &p, "32M"]);
            at.export(name, vec![Layer { path, format }])
        }
        (Qcow2, Some(base)) => {
            sh("qemu-img", &["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", &p, "32M"]);
            let layers = vec![Layer { path, format }, Layer { path: base.into(), format: Qcow2 }];
            at.export(name, layers)
        }
    }
}

impl Pair {
    pub fn new(from: VolumeFormat, to: VolumeFormat) -> Pair {
        let pki = Pki::new();
        let (source, target) = (Daemon::start(), Daemon::start());
        source.set_fabric(&pki.fabric(host(1)));
        target.set_fabric(&pki.fabric(host(2)));
        // The content of the whole chain goes over.
        let base = source.path("base.qcow2");
        let base = path_str(&base);
        sh("qemu-img", &["create", "-q", "-f", "qcow2", base, "32M"]);
        sh("qemu-io", &["-c", "write -P 0x33 20M 1M", base]);
        let from = make(&source, "from", from, (from == Qcow2).then_some(base));
        let mut to = make(&target, "to", to, None);
        to.generation = from.generation.next();
        to.held = Held::WhileRunning;
        source.open(&from);
        let address = target.grant(&to, host(1), false);
        let mirror = Mirror {
            volume: from.volume,
            generation: from.generation,
            address,
            export: to.volume,
            host: host(2),
            limit: None,
        };
        Pair { source, target, from, to, mirror }
    }

    pub fn state(&self) -> MirrorState {
        self.source.mirror_state(&self.from).unwrap()
    }

    pub fn in_sync(&self) {
        until("the mirror", || match self.state().phase {
            MirrorPhase::InSync => Some(()),
            MirrorPhase::Connecting | MirrorPhase::Copying => None,
            other => panic!("{other:?}"),
        });
    }

    pub fn hold(&self, held: Held) {
        let (volume, generation) = (self.from.volume, self.from.generation);
        self.source.ask(async |c| c.hold(volume, generation, held).await).unwrap();
    }

    pub fn await_release(&self) -> Result<(), ClientError> {
        self.await_release_of(true)
    }

    pub fn await_release_of(&self, mirrored: bool) -> Result<(), ClientError> {
        let (volume, generation) = (self.from.volume, self.from.generation);
        let limit = Duration::from_secs(60);
        self.source.ask(async |c| c.await_release(volume, generation, mirrored, limit).await)
    }

    /// The mirror has failed; why.
    pub fn failure(&self) -> String {
        until("the failure", || match self.state().phase {
            MirrorPhase::Failed { reason, .. } => Some(reason),
            _ => None,
        })
    }

    /// Nobody has them open any more.
    pub fn compare(&self) {
        let f = |e: &Export| if e.layers[0].format == Raw { "raw" } else { "qcow2" };
        let paths = [&self.from, &self.to].map(|e| path_str(&e.layers[0].path).to_owned());
        sh("qemu-img", &["compare", "-f", f(&self.from), "-F", f(&self.to), &paths[0], &paths[1]]);
        for (export, path) in [(&self.from, &paths[0]), (&self.to, &paths[1])] {
            if export.layers[0].format == Qcow2 {
                sh("qemu-img", &["check", "-q", path]);
            }
        }
    }
}
