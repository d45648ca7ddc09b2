//! Serial consoles: one connection a VM, shared by any number of readers and writers.
//!
//! The connection is made when somebody first asks and closed after the last has
//! gone. The engine logs what the console says at all times, so nothing is missed
//! while it is closed; while it is open the end of what was said is kept here, so
//! that a new reader gets every byte once.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use basin_model::VmId;
use basin_qemu::{ConsoleStream, EngineError, Machine, MachineEvent};
use nix::fcntl::{FallocateFlags, fallocate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex as AsyncMutex, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::ConsoleLink;
use crate::files;
use crate::vms::Machines;

/// How much of the past a new reader gets.
const HISTORY: usize = 64 << 10;

/// How much of a console's log is kept on disk.
const LOG_KEPT: u64 = 1 << 20;

/// What a dead machine has said is there at once.
const LAST_WORDS: Duration = Duration::from_millis(100);

const TRIM_EVERY: Duration = Duration::from_secs(30);

/// All consoles of a node.
#[derive(Default)]
pub struct Consoles(AsyncMutex<BTreeMap<VmId, Arc<Shared>>>);

/// One open console.
struct Shared {
    said: Mutex<Said>,
    typed: mpsc::Sender<Vec<u8>>,
}

struct Said {
    history: VecDeque<u8>,
    /// None once the connection has ended.
    readers: Option<broadcast::Sender<Vec<u8>>>,
}

impl Consoles {
    pub async fn link(&self, vm: VmId, machine: &dyn Machine) -> Result<ConsoleLink, EngineError> {
        let mut all = self.0.lock().await;
        if let Some(link) = all.get(&vm).and_then(|shared| shared.link()) {
            return Ok(link);
        }
        let stream = machine.open_console().await?;
        let history = log_end(&machine.console_log(), HISTORY).unwrap_or_default();
        let (typed, input) = mpsc::channel(16);
        let readers = Some(broadcast::channel(256).0);
        let said = Mutex::new(Said { history: history.into(), readers });
        let shared = Arc::new(Shared { said, typed });
        let link = shared.link().ok_or(EngineError::Gone)?;
        tokio::spawn(pump(shared.clone(), stream, input, machine.events()));
        all.retain(|_, shared| shared.is_open());
        all.insert(vm, shared);
        Ok(link)
    }
}

impl Shared {
    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.said().readers.is_some()
    }

    fn link(&self) -> Option<ConsoleLink> {
        let (history, mut said) = {
            let said = self.said();
            (said.history.iter().copied().collect(), said.readers.as_ref()?.subscribe())
        };
        let (sender, output) = mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let chunk = tokio::select! {
                    chunk = said.recv() => chunk,
                    () = sender.closed() => return,
                };
                let chunk = match chunk {
                    Ok(chunk) => chunk,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        b"\r\n[some of the output is missing here]\r\n".to_vec()
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Some(ConsoleLink { history, output, input: self.typed.clone() })
    }

    /// Passes on what the console said; false: nobody listens any more.
    fn say(&self, chunk: &[u8]) -> bool {
        let mut said = self.said();
        said.history.extend(chunk);
        let surplus = said.history.len().saturating_sub(HISTORY);
        said.history.drain(..surplus);
        said.readers.as_ref().is_some_and(|readers| readers.send(chunk.to_vec()).is_ok())
    }

    /// Ends the readers, unless one has come meanwhile.
    fn end(&self, only_if_unused: bool) -> bool {
        let mut said = self.said();
        let used = said.readers.as_ref().is_some_and(|r| r.receiver_count() > 0);
        if only_if_unused && used {
            return false;
        }
        said.readers = None;
        true
    }
}

async fn pump(
    shared: Arc<Shared>,
    mut stream: ConsoleStream,
    mut input: mpsc::Receiver<Vec<u8>>,
    mut events: broadcast::Receiver<MachineEvent>,
) {
    let mut buffer = vec![0; 4096];
    let mut idle = tokio::time::interval(Duration::from_secs(2));
    let mut dead = false;
    loop {
        tokio::select! {
            // First, so that a dead machine's last words are read to their end.
            biased;
            read = stream.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(n) => drop(shared.say(&buffer[..n])),
            },
            Some(typed) = input.recv() => {
                if stream.write_all(&typed).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
            }
            event = events.recv(), if !dead => {
                let closed = matches!(event, Err(broadcast::error::RecvError::Closed));
                dead = closed || matches!(event, Ok(MachineEvent::Exited { .. }));
                idle.reset_after(LAST_WORDS);
            }
            _ = idle.tick() => {
                if dead {
                    break;
                }
                if shared.end(true) {
                    return;
                }
            }
        }
    }
    shared.end(false);
}

/// The last bytes of a console's log. A guest's process may write it.
pub fn log_end(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = match files::open_untrusted(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let length = file.metadata()?.len();
    let wanted = (bytes as u64).min(length).min(LOG_KEPT);
    file.seek(SeekFrom::Start(length - wanted))?;
    let mut end = Vec::new();
    file.take(wanted).read_to_end(&mut end)?;
    // What was trimmed away reads as zeroes.
    let start = end.iter().position(|b| *b != 0).unwrap_or(end.len());
    end.drain(..start);
    Ok(end)
}

/// Gives back the space of all but the end of a log. A hole, because the machine
/// goes on appending: cutting the file would lose or garble what it writes meanwhile.
fn trim(path: &Path) -> io::Result<()> {
    let file = files::open_untrusted(path, true)?;
    let surplus = file.metadata()?.len().saturating_sub(LOG_KEPT) & !4095;
    if surplus > 0 {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let length = i64::try_from(surplus).unwrap_or(i64::MAX);
        fallocate(&file, hole, 0, length)?;
    }
    Ok(())
}

/// Keeps the logs of running machines short.
pub async fn keep_trimmed(machines: Machines, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TRIM_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let logs: Vec<PathBuf> = machines.all().iter().map(|(_, m)| m.console_log()).collect();
        let work = move || {
            for log in logs {
                let long = std::fs::symlink_metadata(&log).is_ok_and(|m| m.len() > 2 * LOG_KEPT);
                if long && let Err(error) = trim(&log) {
                    tracing::warn!(log = %log.display(), %error, "cannot trim a console's log");
                }
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_long_log_gives_its_space_back_and_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut text = vec![b'x'; 3 << 20];
        text.extend(b"the end");
        std::fs::write(&path, &text).unwrap();
        trim(&path).unwrap();
        let about = path.metadata().unwrap();
        assert_eq!(about.len(), text.len() as u64);
        assert!(about.blocks() * 512 <= LOG_KEPT + (64 << 10), "{}", about.blocks());
        assert_eq!(log_end(&path, 7).unwrap(), b"the end");
        assert_eq!(log_end(&dir.path().join("none"), 7).unwrap(), b"");
    }
}
