//! The certificate's files in the state directory. The key and the chain are one
//! file, because a crash between two would leave a key without its certificate.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::bundle::pem;
use super::{Bundle, Material, PkiError};
use crate::files;

/// `tls` in the directory of what makes a server one of a cluster.
#[derive(Debug, Clone)]
pub struct TlsDir(PathBuf);

impl TlsDir {
    pub fn at(dir: PathBuf) -> TlsDir {
        TlsDir(dir)
    }

    /// Key and chain in one file; other programs take it for either.
    pub fn server(&self) -> PathBuf {
        self.0.join("server.pem")
    }

    /// The CAs that are trusted.
    pub fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// What was stored last; None before the first time.
    pub fn load(&self) -> Result<Option<Material>, PkiError> {
        let server = match fs::read_to_string(self.server()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| refused(&self.server(), &e))?,
        };
        let ca = fs::read_to_string(self.ca()).map_err(|e| refused(&self.ca(), &e))?;
        // A damaged block must not be passed over as if it had not been there.
        let blocks = CertificateDer::pem_slice_iter(server.as_bytes());
        let chain: String = blocks
            .map(|der| der.map(|der| pem("CERTIFICATE", &der)))
            .collect::<Result<_, _>>()
            .map_err(|e| PkiError::unreadable("the server's certificate", format!("{e:?}")))?;
        let key = server.split("-----BEGIN CERTIFICATE-----").next().unwrap_or_default();
        Material::parse(&chain, key, &ca).map(Some)
    }

    /// Each file is the old one or the new one at any moment. Trust comes first: a
    /// certificate of a new CA is never there without it.
    pub fn store(&self, material: &Material) -> Result<(), PkiError> {
        self.store_bundle(material.bundle())?;
        let both = format!("{}{}", material.key_pem(), material.chain_pem());
        write(&self.server(), both.as_bytes())
    }

    pub fn store_bundle(&self, bundle: &Bundle) -> Result<(), PkiError> {
        fs::create_dir_all(&self.0)
            .and_then(|()| fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)))
            .map_err(|e| refused(&self.0, &e))?;
        write(&self.ca(), bundle.pem().as_bytes())
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    files::write(path, content, 0o600, None).map_err(|e| refused(path, &e))
}

fn refused(path: &Path, error: &io::Error) -> PkiError {
    PkiError::File { path: path.display().to_string(), why: error.to_string() }
}
