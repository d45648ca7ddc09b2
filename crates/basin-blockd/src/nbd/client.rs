//! A connection to another server's blockd: requests of many tasks at once, answers
//! by cookie. When it breaks, all who wait get the reason, and so does everyone after.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use basin_model::HostId;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::listener::keep_alive;
use super::proto::option::{self, REPLY_HEADER, answer, kind};
use super::proto::reply::{CHUNK_HEADER, Chunk, Head, SIMPLE_HEADER, chunk_len};
use super::proto::request::{Command, Request};
use super::proto::{
    Errno, FIXED_NEWSTYLE, IHAVEOPT, MIRROR_CONTEXT, NBD_MAGIC, NO_ZEROES, allocation, export_flags,
};
use super::tls::Identity;
use crate::io::plain::Aligned;

/// From connecting to the first request.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// An answer that takes longer means that the server is of no use.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The most replies to one option.
const MAX_REPLIES: usize = 64;

/// Why it did not work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NbdError {
    /// The connection is of no more use.
    #[error("{0}")]
    Broken(String),
    /// The server answered with an error.
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("the server has no space left for it")]
    NoSpace,
}

fn broken(why: impl std::fmt::Display) -> NbdError {
    NbdError::Broken(why.to_string())
}

/// What an answer brought.
enum Answer {
    Done,
    Status(Vec<(u32, u32)>),
}

/// Where the answer goes, and the extents that have come so far.
struct Pending {
    reply: oneshot::Sender<Result<Answer, NbdError>>,
    extents: Vec<(u32, u32)>,
    refused: Option<NbdError>,
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, Pending>,
    broken: Option<String>,
    /// The server has closed the connection in order.
    hung_up: bool,
}

struct Outgoing {
    request: Request,
    data: Option<(Arc<Aligned>, std::ops::Range<usize>)>,
}

/// A connection.
pub struct Client {
    pub size: u64,
    state: Arc<Mutex<State>>,
    cookies: AtomicU64,
    out: mpsc::Sender<Outgoing>,
    tasks: [JoinHandle<()>; 2],
    /// Nothing more is read.
    ended: watch::Receiver<bool>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing is expected any more.
fn fail(state: &Mutex<State>, why: &str) {
    let mut state = lock(state);
    let why = state.broken.get_or_insert_with(|| why.to_owned()).clone();
    for (_, pending) in state.pending.drain() {
        let _ = pending.reply.send(Err(NbdError::Broken(why.clone())));
    }
}

impl Client {
    /// Connects to the export of that name, as a mirror of the id given.
    pub async fn connect(
        address: SocketAddr,
        identity: &Identity,
        host: HostId,
        export: &str,
        mirror: &str,
    ) -> Result<Client, NbdError> {
        let config = identity.client(host).map_err(broken)?;
        let connecting = async {
            let stream = TcpStream::connect(address).await.map_err(broken)?;
            keep_alive(&stream).map_err(broken)?;
            let stream = start_tls(stream, TlsConnector::from(config), address).await?;
            begin(stream, export, mirror).await
        };
        let late = |_| NbdError::Broken("no answer in time".into());
        let (stream, size) = timeout(CONNECT_WITHIN, connecting).await.map_err(late)??;
        let (reader, writer) = tokio::io::split(stream);
        let state = Arc::new(Mutex::new(State::default()));
        let (out, outgoing) = mpsc::channel(64);
        let (theirs, others) = (Arc::clone(&state), Arc::clone(&state));
        let (end, ended) = watch::channel(false);
        let reading = tokio::spawn(async move {
            match read_in(reader, &theirs).await {
                Ok(()) => {
                    lock(&theirs).hung_up = true;
                    fail(&theirs, "the server has hung up");
                }
                Err(why) => fail(&theirs, &why.to_string()),
            }
            end.send_replace(true);
        });
        let writing = tokio::spawn(async move {
            if let Err(why) = write_out(writer, outgoing).await {
                fail(&others, &why.to_string());
            }
        });
        let tasks = [reading, writing];
        Ok(Client { size, state, cookies: AtomicU64::new(1), out, tasks, ended })
    }

    pub async fn write(
        &self,
        offset: u64,
        data: &Arc<Aligned>,
        part: std::ops::Range<usize>,
        fua: bool,
    ) -> Result<(), NbdError> {
        let len = part.len() as u32;
        let data = Some((Arc::clone(data), part));
        self.ask(Command::Write { fua }, offset, len, data).await.map(drop)
    }

    pub async fn zero(&self, offset: u64, len: u32, fua: bool) -> Result<(), NbdError> {
        let command = Command::WriteZeroes { fua, keep: false };
        self.ask(command, offset, len, None).await.map(drop)
    }

    pub async fn flush(&self) -> Result<(), NbdError> {
        self.ask(Command::Flush, 0, 0, None).await.map(drop)
    }

    /// Is all of it zeros, as far as the server can tell?
    pub async fn is_zero(&self, offset: u64, len: u32) -> Result<bool, NbdError> {
        let command = Command::BlockStatus { one: true };
        match self.ask(command, offset, len, None).await? {
            Answer::Status(extents) => Ok(extents
                .first()
                .is_some_and(|(n, flags)| *n >= len && flags & allocation::ZERO != 0)),
            Answer::Done => Err(broken("the server answered without a status")),
        }
    }

    /// Tells the server that all is done. Everything has been answered before.
    pub async fn leave(&self) -> Result<(), NbdError> {
        let request = Request { command: Command::Disconnect, cookie: 0, offset: 0, len: 0 };
        self.out.send(Outgoing { request, data: None }).await.map_err(broken)?;
        let mut ended = self.ended.clone();
        let end = ended.wait_for(|ended| *ended);
        timeout(ANSWER_WITHIN, end).await.map_err(broken)?.map_err(broken)?;
        // The server hangs up once it has understood.
        let state = lock(&self.state);
        match &state.broken {
            Some(why) if !state.hung_up => Err(broken(why)),
            _ => Ok(()),
        }
    }

    /// Returns when nothing more comes, with the reason.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        // An error: whoever read has been stopped.
        let _ = ended.wait_for(|ended| *ended).await;
        lock(&self.state).broken.clone().unwrap_or_else(|| "it was cut off".into())
    }

    /// Ends the connection without taking leave; whoever waits gets the reason.
    pub fn abort(&self, why: &str) {
        fail(&self.state, why);
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    async fn ask(
        &self,
        command: Command,
        offset: u64,
        len: u32,
        data: Option<(Arc<Aligned>, std::ops::Range<usize>)>,
    ) -> Result<Answer, NbdError> {
        let cookie = self.cookies.fetch_add(1, Relaxed);
        let (reply, answer) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            if let Some(why) = &state.broken {
                return Err(broken(why));
            }
            state.pending.insert(cookie, Pending { reply, extents: Vec::new(), refused: None });
        }
        let request = Request { command, cookie, offset, len };
        let asking = async {
            let gone = |_| broken("the connection has ended");
            self.out.send(Outgoing { request, data }).await.map_err(gone)?;
            answer.await.map_err(|_| broken("the connection has ended"))?
        };
        match timeout(ANSWER_WITHIN, asking).await {
            Ok(answer) => answer,
            Err(_) => {
                let why = format!("no answer within {ANSWER_WITHIN:?}");
                fail(&self.state, &why);
                Err(broken(why))
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn write_out<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut outgoing: mpsc::Receiver<Outgoing>,
) -> Result<(), NbdError> {
    while let Some(Outgoing { request, data }) = outgoing.recv().await {
        writer.write_all(&request.bytes()).await.map_err(broken)?;
        if let Some((data, part)) = data {
            writer.write_all(data.get(part).unwrap_or(&[])).await.map_err(broken)?;
        }
        let leaves = request.command == Command::Disconnect;
        if leaves || outgoing.is_empty() {
            writer.flush().await.map_err(broken)?;
        }
        if leaves {
            // The server hangs up. Our own goodbye, unread there, could make it reset
            // the connection, and its goodbye would be lost.
            return Ok(());
        }
    }
    Ok(())
}

async fn read_in<S: AsyncRead>(
    mut reader: ReadHalf<S>,
    state: &Mutex<State>,
) -> Result<(), NbdError> {
    let mut payload = Vec::new();
    loop {
        let mut head = [0; SIMPLE_HEADER];
        let n = reader.read(&mut head).await.map_err(broken)?;
        if n == 0 {
            return Ok(());
        }
        reader.read_exact(&mut head[n..]).await.map_err(broken)?;
        match Head::parse(head).map_err(broken)? {
            Head::Simple { cookie, error } => {
                let refused = (error != 0).then(|| refusal(error, ""));
                settle(state, cookie, refused)?;
            }
            Head::Chunk { cookie, kind, done } => {
                let mut len = [0; CHUNK_HEADER - SIMPLE_HEADER];
                reader.read_exact(&mut len).await.map_err(broken)?;
                let len = chunk_len(len).map_err(broken)?;
                // Nothing is read over this connection, so all chunks are small.
                if len > 64 << 10 {
                    return Err(broken(format!("a chunk of {len} bytes that nobody asked for")));
                }
                payload.resize(len, 0);
                reader.read_exact(&mut payload).await.map_err(broken)?;
                take_chunk(state, cookie, Chunk::parse(kind, &payload).map_err(broken)?)?;
                if done {
                    settle(state, cookie, None)?;
                }
            }
        }
    }
}

fn take_chunk(state: &Mutex<State>, cookie: u64, chunk: Chunk<'_>) -> Result<(), NbdError> {
    let mut state = lock(state);
    let nobody = || broken("an answer that nobody asked for");
    let pending = state.pending.get_mut(&cookie).ok_or_else(nobody)?;
    match chunk {
        Chunk::None => Ok(()),
        Chunk::Error { error, why } => {
            pending.refused = Some(refusal(error, &why));
            Ok(())
        }
        Chunk::Status { extents, .. } => {
            pending.extents = extents;
            Ok(())
        }
        Chunk::Data { .. } | Chunk::Hole { .. } => Err(broken("data that nobody asked for")),
    }
}

fn refusal(error: u32, why: &str) -> NbdError {
    match error {
        _ if error == Errno::NoSpc as u32 => NbdError::NoSpace,
        _ if why.is_empty() => NbdError::Refused(format!("error {error}")),
        _ => NbdError::Refused(format!("error {error} {why}")),
    }
}

/// The answer is whole.
fn settle(state: &Mutex<State>, cookie: u64, refused: Option<NbdError>) -> Result<(), NbdError> {
    let pending = lock(state).pending.remove(&cookie);
    let pending = pending.ok_or_else(|| broken("an answer that nobody asked for"))?;
    let answer = match refused.or(pending.refused) {
        Some(why) => Err(why),
        None if pending.extents.is_empty() => Ok(Answer::Done),
        None => Ok(Answer::Status(pending.extents)),
    };
    // Whoever asked may have given up.
    let _ = pending.reply.send(answer);
    Ok(())
}

async fn start_tls(
    mut stream: TcpStream,
    connector: TlsConnector,
    address: SocketAddr,
) -> Result<TlsStream<TcpStream>, NbdError> {
    let (magic, style) =
        (stream.read_u64().await.map_err(broken)?, stream.read_u64().await.map_err(broken)?);
    let flags = stream.read_u16().await.map_err(broken)?;
    let wanted = FIXED_NEWSTYLE | NO_ZEROES;
    if magic != NBD_MAGIC || style != IHAVEOPT || flags & wanted != wanted {
        return Err(broken("what answers there does not speak NBD as blockd does"));
    }
    stream.write_u32(wanted.into()).await.map_err(broken)?;
    ask_option(&mut stream, kind::STARTTLS, &[]).await?;
    let name = ServerName::IpAddress(address.ip().into());
    connector.connect(name, stream).await.map_err(|e| broken(format!("TLS: {e}")))
}

/// Sends an option; the data of all replies before the last, which must be good.
async fn ask_option(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    kind: u32,
    data: &[u8],
) -> Result<Vec<(u32, Vec<u8>)>, NbdError> {
    stream.write_all(&option::ask(kind, data)).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut replies = Vec::new();
    while replies.len() < MAX_REPLIES {
        let mut head = [0; REPLY_HEADER];
        stream.read_exact(&mut head).await.map_err(broken)?;
        let (answered, len) = option::reply_header(head, kind).map_err(broken)?;
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).await.map_err(broken)?;
        match answered {
            answer::ACK => return Ok(replies),
            bad if bad & answer::ERROR != 0 => {
                let why = String::from_utf8_lossy(&data).into_owned();
                return Err(NbdError::Refused(if why.is_empty() {
                    format!("{bad:#x}")
                } else {
                    why
                }));
            }
            other => replies.push((other, data)),
        }
    }
    Err(broken("the server's answers have no end"))
}

/// Agrees on the export; its size.
async fn begin(
    mut stream: TlsStream<TcpStream>,
    export: &str,
    mirror: &str,
) -> Result<(TlsStream<TcpStream>, u64), NbdError> {
    ask_option(&mut stream, kind::STRUCTURED_REPLY, &[]).await?;
    let own = format!("{MIRROR_CONTEXT}{mirror}");
    let data = option::contexts_data(export, &[allocation::NAME, &own]);
    let contexts = ask_option(&mut stream, kind::SET_META_CONTEXT, &data).await?;
    let has = |name: &str| {
        let named = |data: &[u8]| option::parse_context(data).is_ok_and(|(_, n)| n == name);
        contexts.iter().any(|(kind, data)| *kind == answer::META_CONTEXT && named(data))
    };
    if !has(allocation::NAME) || !has(&own) {
        return Err(broken("what answers there is no blockd that takes mirrors"));
    }
    let replies = ask_option(&mut stream, kind::GO, &option::go_data(export)).await?;
    let mut found = None;
    for (_, data) in replies.iter().filter(|(kind, _)| *kind == answer::INFO) {
        found = option::parse_export_info(data).map_err(broken)?.or(found);
    }
    let (size, flags) = found.ok_or_else(|| broken("the server does not tell the size"))?;
    let needed =
        export_flags::SEND_FLUSH | export_flags::SEND_FUA | export_flags::SEND_WRITE_ZEROES;
    if flags & export_flags::READ_ONLY != 0 || flags & needed != needed {
        return Err(NbdError::Refused("the export cannot be written".into()));
    }
    Ok((stream, size))
}
