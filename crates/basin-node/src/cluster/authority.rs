//! The CA's key on the servers that keep the state. It is in their etcd's data anyway, as
//! readable as this file: but when all servers were off until their certificates had
//! expired, etcd's members let nobody in, not even each other.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use basin_model::cluster::Authority;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::ClusterDir;
use crate::files;
use crate::pki::SERVER_LIFE;

/// What signs certificates, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAuthority {
    #[serde(flatten)]
    pub authority: Authority,
    /// See [`basin_model::cluster::ClusterRecord`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_life: Option<Duration>,
}

impl KeptAuthority {
    pub fn life(&self) -> SignedDuration {
        let life = self.certificate_life.and_then(|life| SignedDuration::try_from(life).ok());
        life.unwrap_or(SERVER_LIFE)
    }
}

impl ClusterDir {
    fn authority(&self) -> PathBuf {
        self.path().join("tls").join("authority.json")
    }

    /// None on a server that does not keep the state.
    pub fn kept_authority(&self) -> io::Result<Option<KeptAuthority>> {
        match std::fs::read(self.authority()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
        }
    }

    pub fn keep_authority(&self, kept: Option<&KeptAuthority>) -> io::Result<()> {
        match kept {
            Some(kept) => {
                let text = serde_json::to_vec(kept).map_err(io::Error::other)?;
                files::write(&self.authority(), &text, 0o600, None)
            }
            None => match std::fs::remove_file(self.authority()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_roots_alone_and_goes_with_the_vote() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let dir = ClusterDir::current(state.path());
        std::fs::create_dir_all(dir.path().join("tls")).unwrap();
        assert_eq!(dir.kept_authority().unwrap(), None);
        let authority = Authority { certificate: "c".into(), key: "k".into() };
        let mut kept = KeptAuthority { authority, certificate_life: None };
        assert_eq!(kept.life(), SERVER_LIFE);
        for life in [None, Some(Duration::from_secs(90))] {
            kept.certificate_life = life;
            dir.keep_authority(Some(&kept)).unwrap();
            assert_eq!(dir.kept_authority().unwrap(), Some(kept.clone()));
        }
        assert_eq!(kept.life(), SignedDuration::from_secs(90));
        let mode = dir.authority().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for _ in 0..2 {
            dir.keep_authority(None).unwrap();
        }
        assert_eq!(dir.kept_authority().unwrap(), None);
    }
}
