//! The daemon's side of the control socket.

use std::path::{Path, PathBuf};

use basin_model::{Bytes, Generation, VolumeId};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::control::{ErrorCode, Export, ExportState, Reply, Request};

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
            Reply::Hello { version, pid } => Ok(Hello { version, pid }),
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

    /// Asks it to end when its last front end is gone.
    pub async fn quit(&mut self) -> Result<(), ClientError> {
        self.ask_done(&Request::Quit).await
    }
}
