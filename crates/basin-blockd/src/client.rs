//! The daemon's side of the control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use basin_model::{Bytes, Generation, VolumeId};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::control::{
    ErrorCode, Export, ExportState, Fabric, Grant, GrantState, Held, Mirror, Reply, Request,
};

/// Why blockd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("blockd does not answer on {path}")]
    Unreachable { path: PathBuf, source: std::io::Error },
    #[error("the connection to blockd broke")]
    Broken(#[source] std::io::Error),
    #[error("blockd answered what was not asked: {0}")]
    Unexpected(String),
    /// It refused, and says why.
    #[error("{message}")]
    Refused { code: ErrorCode, message: String },
}

impl ClientError {
    /// The word of a refusal.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub version: String,
    pub pid: u32,
    /// It can serve a guest whose memory still arrives.
    pub postcopy: bool,
}

/// A connection. Requests are answered one after the other; after
/// [`ClientError::Broken`] it is of no more use.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to `control.sock` in `run_dir`.
    pub async fn connect(run_dir: &Path) -> Result<Client, ClientError> {
        let path = run_dir.join("control.sock");
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(Client { stream: BufReader::new(stream) }),
            Err(source) => Err(ClientError::Unreachable { path, source }),
        }
    }

    async fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|e| ClientError::Broken(e.into()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await.map_err(ClientError::Broken)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer).await.map_err(ClientError::Broken)? == 0 {
            let gone = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "blockd is gone");
            return Err(ClientError::Broken(gone));
        }
        match serde_json::from_str(&answer) {
            Ok(Reply::Error { code, message }) => Err(ClientError::Refused { code, message }),
            Ok(reply) => Ok(reply),
            Err(_) => Err(ClientError::Unexpected(answer)),
        }
    }

    async fn ask_done(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(ClientError::Unexpected(format!("{other:?}"))),
        }
    }

    pub async fn hello(&mut self) -> Result<Hello, ClientError> {
        match self.ask(&Request::Hello).await? {
            Reply::Hello { version, pid, postcopy } => Ok(Hello { version, pid, postcopy }),
            other => Err(ClientError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Serves a disk; see [`Request::Open`].
    pub async fn open(&mut self, export: &Export) -> Result<(), ClientError> {
        self.ask_done(&Request::Open { export: export.clone() }).await
    }

    /// Stops serving a disk; see [`Request::Close`].
    pub async fn close(
        &mut self,
        volume: VolumeId,
        generation: Generation,
    ) -> Result<(), ClientError> {
        self.ask_done(&Request::Close { volume, generation }).await
    }

    pub async fn list(&mut self) -> Result<Vec<ExportState>, ClientError> {
        match self.ask(&Request::List).await? {
            Reply::Exports { exports } => Ok(exports),
            other => Err(ClientError::Unexpected(format!("{other:?}"))),
        }
    }

    /// The disk has a new size; see [`Request::Resize`].
    pub async fn resize(&mut self, volume: VolumeId, size: Bytes) -> Result<(), ClientError> {
        self.ask_done(&Request::Resize { volume, size }).await
    }

    /// See [`Request::Hold`].
    pub async fn hold(
        &mut self,
        volume: VolumeId,
        generation: Generation,
        held: Held,
    ) -> Result<(), ClientError> {
        self.ask_done(&Request::Hold { volume, generation, held }).await
    }

    /// Occupies the connection until it is released; see [`Request::AwaitRelease`].
    pub async fn await_release(
        &mut self,
        volume: VolumeId,
        generation: Generation,
        mirrored: bool,
        limit: Duration,
    ) -> Result<(), ClientError> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.ask_done(&Request::AwaitRelease { volume, generation, mirrored, limit_ms }).await
    }

    /// See [`Request::Fabric`].
    pub async fn fabric(&mut self, fabric: Option<&Fabric>) -> Result<(), ClientError> {
        self.ask_done(&Request::Fabric { fabric: fabric.cloned() }).await
    }

    /// See [`Request::Grant`].
    pub async fn grant(&mut self, grant: &Grant) -> Result<(), ClientError> {
        self.ask_done(&Request::Grant { grant: grant.clone() }).await
    }

    /// See [`Request::Revoke`].
    pub async fn revoke(
        &mut self,
        volume: VolumeId,
        generation: Generation,
    ) -> Result<(), ClientError> {
        self.ask_done(&Request::Revoke { volume, generation }).await
    }

    pub async fn grants(&mut self) -> Result<Vec<GrantState>, ClientError> {
        match self.ask(&Request::Grants).await? {
            Reply::Grants { grants } => Ok(grants),
            other => Err(ClientError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Begins a mirror; its state is in [`Client::list`]. See [`Request::Mirror`].
    pub async fn mirror(&mut self, mirror: &Mirror) -> Result<(), ClientError> {
        self.ask_done(&Request::Mirror { mirror: mirror.clone() }).await
    }

    /// See [`Request::MirrorLimit`].
    pub async fn mirror_limit(
        &mut self,
        volume: VolumeId,
        limit: Option<Bytes>,
    ) -> Result<(), ClientError> {
        self.ask_done(&Request::MirrorLimit { volume, limit }).await
    }

    /// See [`Request::StopMirror`].
    pub async fn stop_mirror(
        &mut self,
        volume: VolumeId,
        generation: Generation,
    ) -> Result<(), ClientError> {
        self.ask_done(&Request::StopMirror { volume, generation }).await
    }

    /// Asks it to end when its last front end is gone.
    pub async fn quit(&mut self) -> Result<(), ClientError> {
        self.ask_done(&Request::Quit).await
    }
}
