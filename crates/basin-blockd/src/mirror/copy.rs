//! The copy: once over the disk, without what is not there.

use std::ops::Range;
use std::sync::Arc;

use super::Mirroring;
use super::failure::Failure;
use super::map::CHUNK;
use super::zeros::runs;
use crate::io::plain::{Aligned, Extent};
use crate::nbd::client::Client;

/// Chunks under way at a time.
pub const AT_ONCE: usize = 8;
/// Chunks that are looked at together: holes are long.
const RUN: u64 = (64 << 20) / CHUNK;
/// Extents that are looked at together.
const EXTENTS: usize = 64;

impl Mirroring {
    /// One of several that share the work; ends with the mirror.
    pub(super) async fn copy_all(self: &Arc<Mirroring>) {
        loop {
            let more = self.more.notified();
            let next = self.lock().map.take(RUN);
            let Some(run) = next else {
                more.await;
                continue;
            };
            if let Err(why) = self.copy(run).await {
                return self.fail(why);
            }
            self.look_whether_in_sync();
        }
    }

    async fn copy(self: &Arc<Mirroring>, run: Range<u64>) -> Result<(), Failure> {
        let len = run.end - run.start;
        let first = self.extents(run.start, len, 1).await?;
        let zero = first.first().filter(|e| e.zero && e.len >= CHUNK.min(len)).map(|e| e.len);
        let run = {
            let mut state = self.lock();
            let kept = state.map.keep(&run, zero.unwrap_or(CHUNK));
            // Somebody may wait for what was given back.
            self.more.notify_waiters();
            kept
        };
        let len = run.end - run.start;
        if zero.is_none() {
            // Before it is its turn: a guest's write waits for the turn, not for this.
            self.pay(len).await;
        }
        let mut turn = self.ask(vec![run.clone()]);
        turn.wait().await;
        let client = self.client(run.start).ok_or("the connections are gone")?;
        match zero {
            None => self.copy_data(&client, run.clone()).await?,
            Some(_) => self.copy_hole(&client, run.clone()).await?,
        }
        self.lock().map.settle(&run, true);
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Extent>, String> {
        let block = Arc::clone(&self.block);
        let found = tokio::task::spawn_blocking(move || block.extents(offset, len, most));
        let found = found.await.map_err(|e| e.to_string())?;
        found.map_err(|e| format!("cannot read the disk's map: {e}"))
    }

    /// What was a hole may have been written to before it was our turn.
    async fn copy_hole(&self, client: &Client, run: Range<u64>) -> Result<(), Failure> {
        let mut at = run.start;
        while at < run.end {
            for extent in self.extents(at, run.end - at, EXTENTS).await? {
                let part = at..at + extent.len;
                at = part.end;
                if extent.zero {
                    zero(client, part).await?;
                    continue;
                }
                let mut from = part.start;
                while from < part.end {
                    let to = (from + CHUNK).min(part.end);
                    self.charge(to - from);
                    self.copy_data(client, from..to).await?;
                    from = to;
                }
            }
        }
        Ok(())
    }

    /// At most a chunk.
    async fn copy_data(&self, client: &Client, part: Range<u64>) -> Result<(), Failure> {
        let (block, offset) = (Arc::clone(&self.block), part.start);
        let len = (part.end - part.start) as usize;
        let read = tokio::task::spawn_blocking(move || {
            let mut data = Aligned::new(len);
            block.read_at(&mut data, offset)?;
            let runs = runs(&data);
            Ok::<_, std::io::Error>((Arc::new(data), runs))
        });
        let read = read.await.map_err(|e| e.to_string())?;
        let (data, runs) = read.map_err(|e| format!("cannot read the disk: {e}"))?;
        for (run, is_zero) in runs {
            let at = offset + run.start as u64;
            if is_zero {
                zero(client, at..at + run.len() as u64).await?;
            } else {
                client.write(at, &data, run, false).await?;
            }
        }
        Ok(())
    }
}

/// At most what is copied in one go. Left alone if it is zero already: a new volume is.
async fn zero(client: &Client, part: Range<u64>) -> Result<(), Failure> {
    let len = u32::try_from(part.end - part.start).map_err(|e| e.to_string())?;
    let is_zero = client.is_zero(part.start, len).await?;
    if is_zero {
        return Ok(());
    }
    Ok(client.zero(part.start, len, false).await?)
}
