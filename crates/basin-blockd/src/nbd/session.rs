//! A connection once its export is agreed on: requests in, answers out, in any order.
//!
//! What a connection may have under way is bounded by bytes, so neither a client that
//! asks without end nor one that does not take its answers grows this process.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::grants::Granted;
use super::negotiate::{ALLOCATION_ID, Agreed};
use super::proto::request::{Command, HEADER, Limits, Request};
use super::proto::{Errno, MAX_PAYLOAD, allocation, reply};
use crate::io::plain::Aligned;

/// Of one grant: what each may have under way adds up.
const MAX_CONNECTIONS: u32 = 32;
/// What a client has for the data of its write, and for taking an answer.
const PIECE_WITHIN: Duration = Duration::from_secs(60);
/// Each request counts as this much at least: 64 small ones at a time.
const LEAST: u32 = MAX_PAYLOAD / 64;
/// Extents of one status; sent again from there on if there are more.
const EXTENTS: usize = 512;

/// An answer and what it holds until it is sent.
struct Out {
    head: Vec<u8>,
    data: Option<Aligned>,
    _room: OwnedSemaphorePermit,
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

pub async fn transmit<S>(stream: S, agreed: Agreed) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Agreed { granted, structured, allocation, mirror } = agreed;
    let user = granted.enter(mirror);
    if granted.connections() > MAX_CONNECTIONS {
        return Err("too many connections of one server".into());
    }
    if granted.closing.is_cancelled() {
        return Err("the grant has ended".into());
    }
    let (mut reader, writer) = tokio::io::split(stream);
    let (answers, out) = mpsc::channel(64);
    let writing = tokio::spawn(write_out(writer, out));
    let room = Arc::new(Semaphore::new(MAX_PAYLOAD as usize));
    let tasks = TaskTracker::new();
    let style = Style { structured, allocation };
    let limits = Limits { size: granted.block.size(), read_only: granted.grant.read_only };
    let outcome = loop {
        let next = read_request(&mut reader, &room);
        let next = tokio::select! {
            next = next => next,
            () = granted.closing.cancelled() => Err("the grant has ended".to_owned()),
            () = answers.closed() => Err("it does not take its answers".to_owned()),
        };
        let (request, data, room) = match next {
            Ok(Some(next)) => next,
            Ok(None) => break Ok(()),
            Err(why) => break Err(why),
        };
        if let Err(error) = request.check(limits) {
            let head = style.error(&request, error, "refused");
            if answers.send(Out { head, data: None, _room: room }).await.is_err() {
                break Err("gone".into());
            }
            continue;
        }
        if request.writes() {
            user.wrote();
        }
        let (granted, answers) = (Arc::clone(&granted), answers.clone());
        tasks.spawn(async move {
            let done =
                tokio::task::spawn_blocking(move || carry_out(&granted, style, &request, data));
            let (head, data) = done
                .await
                .unwrap_or_else(|_| (style.error(&request, Errno::Io, "the request failed"), None));
            // A client that is gone needs no answer.
            let _ = answers.send(Out { head, data, _room: room }).await;
        });
    };
    if outcome.is_err() {
        // Nobody waits for answers, and none may hold up the end.
        writing.abort();
    }
    tasks.close();
    tasks.wait().await;
    drop(answers);
    // A client that takes its leave wants no answers any more, but may have to be
    // given those that came before.
    outcome?;
    writing.await.map_err(text)??;
    user.leave();
    Ok(())
}

/// The next request with its data; `None` when the client takes its leave.
async fn read_request<S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    room: &Arc<Semaphore>,
) -> Result<Option<(Request, Aligned, OwnedSemaphorePermit)>, String> {
    let mut head = [0; HEADER];
    reader.read_exact(&mut head).await.map_err(text)?;
    let request = Request::parse(head).map_err(text)?;
    if request.command == Command::Disconnect {
        return Ok(None);
    }
    let carries = matches!(request.command, Command::Read | Command::Write { .. });
    let needed = if carries { request.len.clamp(LEAST, MAX_PAYLOAD) } else { LEAST };
    let room = Arc::clone(room).acquire_many_owned(needed).await.map_err(text)?;
    let mut data = Aligned::new(request.payload());
    timeout(PIECE_WITHIN, reader.read_exact(&mut data)).await.map_err(text)?.map_err(text)?;
    Ok(Some((request, data, room)))
}

async fn write_out<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut out: mpsc::Receiver<Out>,
) -> Result<(), String> {
    while let Some(answer) = out.recv().await {
        let write = async {
            writer.write_all(&answer.head).await?;
            if let Some(data) = &answer.data {
                writer.write_all(data).await?;
            }
            if out.is_empty() { writer.flush().await } else { Ok(()) }
        };
        timeout(PIECE_WITHIN, write).await.map_err(text)?.map_err(text)?;
    }
    // The client may have gone without waiting for it.
    let _ = timeout(PIECE_WITHIN, writer.shutdown()).await;
    Ok(())
}

/// How answers are to look.
#[derive(Clone, Copy)]
struct Style {
    structured: bool,
    allocation: bool,
}

impl Style {
    fn error(self, request: &Request, error: Errno, why: &str) -> Vec<u8> {
        match self.structured {
            true => reply::error(request.cookie, error, why),
            false => reply::simple(request.cookie, Some(error)),
        }
    }
}

/// On a thread that may block.
fn carry_out(
    granted: &Granted,
    style: Style,
    request: &Request,
    data: Aligned,
) -> (Vec<u8>, Option<Aligned>) {
    match answer(granted, style, request, data) {
        Ok(answer) => answer,
        Err(e) => {
            tracing::warn!(volume = %granted.grant.volume, ?request, error = %e, "NBD");
            (style.error(request, Errno::of(&e), &e.to_string()), None)
        }
    }
}

fn answer(
    granted: &Granted,
    style: Style,
    request: &Request,
    mut data: Aligned,
) -> std::io::Result<(Vec<u8>, Option<Aligned>)> {
    let block = &granted.block;
    let Request { cookie, offset, len, .. } = *request;
    let wide = u64::from(len);
    let fua = match request.command {
        Command::Read => {
            data = Aligned::new(len as usize);
            block.read_at(&mut data, offset)?;
            granted.read_bytes.fetch_add(wide, Relaxed);
            let head = match style.structured {
                true => reply::data_head(cookie, offset, len),
                false => reply::simple(cookie, None),
            };
            return Ok((head, Some(data)));
        }
        Command::BlockStatus { one } => {
            if !style.allocation {
                return Ok((style.error(request, Errno::Inval, "no context was agreed on"), None));
            }
            let most = if one { 1 } else { EXTENTS };
            let flags = |zero| if zero { allocation::HOLE | allocation::ZERO } else { 0 };
            // `len` bounds them all, so each fits.
            let extents: Vec<(u32, u32)> = block
                .extents(offset, wide, most)?
                .iter()
                .map(|e| (u32::try_from(e.len).unwrap_or(len), flags(e.zero)))
                .collect();
            return Ok((reply::status(cookie, ALLOCATION_ID, &extents), None));
        }
        Command::Write { fua } => {
            block.write_at(&data, offset)?;
            granted.write_bytes.fetch_add(wide, Relaxed);
            fua
        }
        // What was trimmed reads as zeros here.
        Command::Trim { fua } => {
            block.zero_at(offset, wide, true)?;
            fua
        }
        Command::WriteZeroes { fua, keep } => {
            block.zero_at(offset, wide, !keep)?;
            fua
        }
        Command::Flush => true,
        Command::Disconnect | Command::Unknown => {
            return Ok((style.error(request, Errno::Inval, "an unknown request"), None));
        }
    };
    if fua {
        block.sync()?;
    }
    Ok((reply::simple(cookie, None), None))
}
