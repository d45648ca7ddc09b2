//! Certificates of a cluster that does not exist, and mirrors between two blockds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use basin_blockd::control::{Export, Fabric, Grant, GrantState, Mirror, MirrorState};
use basin_model::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

use super::Daemon;

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A CA and what it has signed.
pub struct Pki {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

pub fn host(n: u8) -> HostId {
    format!("000000000000000000000000000000{n:02x}").parse().unwrap()
}

impl Pki {
    pub fn new() -> Pki {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.as_ref().pem()).unwrap();
        Pki { dir, ca }
    }

    /// A directory as the standard tools want it, for a server with that name.
    pub fn sign(&self, name: &str, uri: Option<String>) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(LOCALHOST)];
        params.subject_alt_names.extend(uri.map(|u| SanType::URI(u.try_into().unwrap())));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.ca).unwrap();
        std::fs::write(dir.join("client-cert.pem"), cert.pem()).unwrap();
        std::fs::write(dir.join("client-key.pem"), key.serialize_pem()).unwrap();
        std::fs::copy(self.dir.path().join("ca.pem"), dir.join("ca-cert.pem")).unwrap();
        dir
    }

    pub fn of(&self, host: HostId) -> PathBuf {
        self.sign(&host.to_string(), Some(format!("basin:host:{host}")))
    }

    pub fn fabric(&self, host: HostId) -> Fabric {
        fabric(&self.of(host))
    }
}

pub fn fabric(dir: &Path) -> Fabric {
    Fabric {
        listen: SocketAddr::new(LOCALHOST, 0),
        ca: dir.join("ca-cert.pem"),
        cert: dir.join("client-cert.pem"),
        key: dir.join("client-key.pem"),
    }
}

impl Daemon {
    pub fn set_fabric(&self, fabric: &Fabric) {
        self.ask(async |c| c.fabric(Some(fabric)).await).unwrap();
    }

    /// Lets a host use the disk of an export; where it is served.
    pub fn grant(&self, export: &Export, host: HostId, read_only: bool) -> SocketAddr {
        let grant = Grant {
            volume: export.volume,
            generation: export.generation,
            layers: export.layers.clone(),
            read_only,
            host,
        };
        self.ask(async |c| c.grant(&grant).await).unwrap();
        self.granted(export).unwrap().address.unwrap()
    }

    pub fn granted(&self, export: &Export) -> Option<GrantState> {
        let all = self.ask(async |c| c.grants().await).unwrap();
        all.into_iter().find(|g| g.grant.volume == export.volume)
    }

    pub fn revoke(&self, export: &Export) {
        self.ask(async |c| c.revoke(export.volume, export.generation).await).unwrap();
    }

    pub fn mirror(&self, mirror: &Mirror) {
        self.ask(async |c| c.mirror(mirror).await).unwrap();
    }

    pub fn mirror_state(&self, export: &Export) -> Option<MirrorState> {
        self.state(export).unwrap().mirror
    }
}
