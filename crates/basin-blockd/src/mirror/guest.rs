//! The guest's writes while its disk is mirrored: to both sides, and answered when
//! both have them. An error here is the guest's; an error there ends the mirror only.

use std::ops::Range as Span;
use std::sync::Arc;

use super::Mirroring;
use crate::io::lane::Job;
use crate::io::plain::Aligned;
use crate::nbd::client::NbdError;
use crate::request::{Op, Range};

/// The guest's data are copied in such pieces, so that both sides get the same.
const PIECE: u64 = 1 << 20;
/// Zeroing may take the other side long.
const ZERO_PIECE: u64 = 64 << 20;

impl Mirroring {
    /// Takes a request that changes the disk or makes it durable. Its place in the
    /// order is that of this call.
    pub fn submit(self: &Arc<Mirroring>, job: Job) {
        let parts = match job.op {
            Op::Write => std::iter::once(job.offset..job.offset + job.data.len()).collect(),
            Op::Discard | Op::WriteZeroes => job.ranges.iter().map(span).collect(),
            Op::Flush | Op::Read | Op::GetId => Vec::new(),
        };
        let mut turn = self.ask(parts);
        let me = Arc::clone(self);
        // Not of the mirror's own tasks: it is answered whatever becomes of the mirror.
        self.runtime.spawn(async move {
            turn.wait().await;
            let result = me.carry_out(&job).await;
            drop(turn);
            let (slot, reply) = (job.slot, Arc::clone(&job.reply));
            drop(job);
            reply.lane_done(slot, result);
        });
    }

    async fn carry_out(self: &Arc<Mirroring>, job: &Job) -> Result<(), i32> {
        match job.op {
            Op::Write => self.write(job).await?,
            Op::Discard | Op::WriteZeroes => {
                for range in &job.ranges {
                    self.zero(job.op, *range).await?;
                }
            }
            Op::Flush => return self.flush().await,
            Op::Read | Op::GetId => return Err(libc::EINVAL),
        }
        if job.durable { self.flush().await } else { Ok(()) }
    }

    async fn write(self: &Arc<Mirroring>, job: &Job) -> Result<(), i32> {
        let (mut done, len) = (0, job.data.len());
        while done < len {
            let n = (len - done).min(PIECE);
            let memory = Arc::clone(&self.memory);
            let _room = memory.acquire_many_owned(n as u32).await.map_err(|_| libc::EIO)?;
            let mut data = Aligned::new(n as usize);
            job.data.read(done as usize, &mut data);
            let (data, at) = (Arc::new(data), job.offset + done);
            let here = {
                let (block, data) = (Arc::clone(&self.block), Arc::clone(&data));
                self.here(at..at + n, move || block.write_at(&data, at))
            };
            let (here, ()) = tokio::join!(here, self.there(at..at + n, &data));
            here?;
            done += n;
        }
        Ok(())
    }

    /// A discard makes zeros here: both sides must read the same afterwards.
    async fn zero(self: &Arc<Mirroring>, op: Op, range: Range) -> Result<(), i32> {
        let Range { offset, len, unmap } = range;
        let block = Arc::clone(&self.block);
        let unmap = unmap || op == Op::Discard;
        let here = self.here(span(&range), move || block.zero_at(offset, len, unmap)).await;
        match here {
            // A hint that cannot be taken.
            Err(libc::EOPNOTSUPP) if op == Op::Discard => return Ok(()),
            other => other?,
        }
        let parts = self.lock().map.parts(&span(&range));
        for part in parts {
            let mut at = part.start;
            while at < part.end {
                let n = (part.end - at).min(ZERO_PIECE);
                let Some(client) = self.client(at) else { return Ok(()) };
                self.note(client.zero(at, n as u32, false).await);
                at += n;
            }
        }
        Ok(())
    }

    async fn flush(self: &Arc<Mirroring>) -> Result<(), i32> {
        let block = Arc::clone(&self.block);
        let here = self.here(0..0, move || block.sync());
        let there = async {
            // One connection speaks for all.
            if let Some(client) = self.client(0) {
                self.note(client.flush().await);
            }
        };
        tokio::join!(here, there).0
    }

    async fn here(
        &self,
        span: Span<u64>,
        work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), i32> {
        let done = match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(_) => Err(std::io::Error::from_raw_os_error(libc::EIO)),
        };
        done.map_err(|e| {
            if !span.is_empty() {
                // Nobody knows what is there now.
                self.spoil(&span);
            }
            match (e.raw_os_error(), e.kind()) {
                (Some(errno), _) => errno,
                (None, std::io::ErrorKind::StorageFull) => libc::ENOSPC,
                (None, std::io::ErrorKind::Unsupported) => libc::EOPNOTSUPP,
                _ => libc::EIO,
            }
        })
    }

    /// To the other side, where the copy has been.
    async fn there(self: &Arc<Mirroring>, span: Span<u64>, data: &Arc<Aligned>) {
        let (parts, begin) = (self.lock().map.parts(&span), span.start);
        let each = parts.into_iter().map(|part| async move {
            let Some(client) = self.client(part.start) else { return };
            let within = (part.start - begin) as usize..(part.end - begin) as usize;
            self.charge(part.end - part.start);
            self.note(client.write(part.start, data, within, false).await);
        });
        futures::future::join_all(each).await;
    }

    fn note(self: &Arc<Mirroring>, outcome: Result<(), NbdError>) {
        if let Err(why) = outcome {
            self.fail(why);
        }
    }
}

fn span(range: &Range) -> Span<u64> {
    range.offset..range.offset + range.len
}
