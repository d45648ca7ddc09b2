//! QMP: one JSON object a line; requests carry an id, events come in between.
//!
//! The types are those of the crate `qapi`; the transport is not (decision 0020). What
//! runs behind the socket may have been taken over by its guest, so a line has a maximum
//! length, an unknown event is skipped, and every request has a time limit.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use qapi::qmp::{Event, QMPCapability, QapiCapabilities, QmpCommand, qmp_capabilities};
use qapi::{Any, Execute, ExecuteOob};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const MAX_LINE: usize = 4 << 20;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU closed its monitor")]
    Closed,
    #[error("QEMU did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("{0}")]
    Refused(String),
    #[error("QEMU's answer makes no sense: {0}")]
    Garbled(String),
    #[error("QEMU's monitor cannot be reached: {0}")]
    Io(#[from] io::Error),
}

type Answer = Result<Any, String>;

#[derive(Debug, Default)]
struct Pending {
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    next: u64,
    closed: bool,
}

/// A connection to a QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    /// Absent while a request is being written, and for good when one was cut short: half
    /// a line would garble the next.
    writer: tokio::sync::Mutex<Option<OwnedWriteHalf>>,
    pending: Arc<Mutex<Pending>>,
    closed: CancellationToken,
    version: String,
    /// It takes commands that a busy QEMU's main loop does not hold up.
    out_of_band: bool,
    _reader: AbortOnDropHandle<()>,
}

/// One line from QEMU.
#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    #[serde(rename = "return")]
    result: Option<Any>,
    error: Option<LineError>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct LineError {
    desc: String,
}

impl Qmp {
    /// Connects and negotiates, within `limit`. `on_event` is called for every event in
    /// its order, from the task that reads.
    pub async fn connect(
        socket: &Path,
        limit: Duration,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Qmp, QmpError> {
        let connecting = async {
            let stream = UnixStream::connect(socket).await?;
            let (read, write) = stream.into_split();
            let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(MAX_LINE));
            let greeting = match lines.next().await {
                Some(Ok(line)) => line,
                Some(Err(error)) => return Err(QmpError::Garbled(error.to_string())),
                None => return Err(QmpError::Closed),
            };
            let out_of_band = greeting.contains("\"oob\"");
            let greeting: QapiCapabilities = serde_json::from_str(&greeting)
                .map_err(|error| QmpError::Garbled(format!("in its greeting: {error}")))?;
            let version = greeting.QMP.version.qemu;
            let version = format!("{}.{}.{}", version.major, version.minor, version.micro);
            let pending = Arc::new(Mutex::new(Pending::default()));
            let closed = CancellationToken::new();
            let reader = tokio::spawn(read_lines(lines, pending.clone(), closed.clone(), on_event));
            let qmp = Qmp {
                writer: tokio::sync::Mutex::new(Some(write)),
                pending,
                closed,
                version,
                out_of_band,
                _reader: AbortOnDropHandle::new(reader),
            };
            let enable = out_of_band.then(|| vec![QMPCapability::oob]);
            qmp.request(qmp_capabilities { enable }).await?;
            Ok(qmp)
        };
        match tokio::time::timeout(limit, connecting).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::TimedOut(limit)),
        }
    }

    /// QEMU's version, such as `7.2.22`.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Returns when no event will come any more.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Sends a command and waits for its result, within `limit`.
    pub async fn execute<C: QmpCommand>(
        &self,
        command: C,
        limit: Duration,
    ) -> Result<C::Ok, QmpError> {
        match tokio::time::timeout(limit, self.request(command)).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::TimedOut(limit)),
        }
    }

    async fn request<C: QmpCommand>(&self, command: C) -> Result<C::Ok, QmpError> {
        let (ticket, answer) = self.expect_answer().ok_or(QmpError::Closed)?;
        let line = match C::ALLOW_OOB && self.out_of_band {
            true => serde_json::to_vec(&ExecuteOob::new(command, ticket.id)),
            false => serde_json::to_vec(&Execute::new(command, Some(ticket.id))),
        };
        let mut line = line.map_err(|error| QmpError::Garbled(error.to_string()))?;
        line.push(b'\n');
        {
            let mut slot = self.writer.lock().await;
            let mut writer = slot.take().ok_or(QmpError::Closed)?;
            if let Err(error) = writer.write_all(&line).await {
                self.closed.cancel();
                return Err(error.into());
            }
            *slot = Some(writer);
        }
        match answer.await {
            Ok(Ok(value)) => serde_json::from_value(value)
                .map_err(|error| QmpError::Garbled(format!("to {}: {error}", C::NAME))),
            Ok(Err(desc)) => Err(QmpError::Refused(desc)),
            Err(_) => Err(QmpError::Closed),
        }
    }

    fn expect_answer(&self) -> Option<(Ticket<'_>, oneshot::Receiver<Answer>)> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.closed {
            return None;
        }
        pending.next += 1;
        let id = pending.next;
        let (sender, receiver) = oneshot::channel();
        pending.waiting.insert(id, sender);
        Some((Ticket { id, pending: &self.pending }, receiver))
    }
}

/// Stops waiting for an answer when its request is given up.
struct Ticket<'a> {
    id: u64,
    pending: &'a Mutex<Pending>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&self.id);
    }
}

async fn read_lines(
    mut lines: FramedRead<OwnedReadHalf, LinesCodec>,
    pending: Arc<Mutex<Pending>>,
    closed: CancellationToken,
    mut on_event: impl FnMut(Event) + Send,
) {
    while let Some(line) = lines.next().await {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                tracing::warn!(%error, "QEMU's monitor is given up");
                break;
            }
        };
        match serde_json::from_str::<Line>(&line) {
            Ok(Line { event: Some(name), .. }) => match serde_json::from_str::<Event>(&line) {
                Ok(event) => on_event(event),
                Err(_) => tracing::debug!(name, "skipped an event of a newer QEMU"),
            },
            Ok(Line { id: Some(id), result, error, .. }) => {
                let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(waiter) = pending.waiting.remove(&id) {
                    let answer = match error {
                        Some(error) => Err(error.desc),
                        None => Ok(result.unwrap_or(Any::Null)),
                    };
                    let _ = waiter.send(answer);
                }
            }
            Ok(_) => tracing::debug!("skipped an answer to nobody"),
            Err(error) => {
                tracing::warn!(%error, "QEMU's monitor is given up");
                break;
            }
        }
    }
    let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
    pending.closed = true;
    pending.waiting.clear();
    closed.cancel();
}
