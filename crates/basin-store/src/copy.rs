//! Everything of one store into another: how a single server's state enters etcd.
//!
//! May be cut off anywhere and begun anew. A mark in the target, outside of the
//! records, says that what is there is an unfinished copy; only then is anything in
//! it overwritten or deleted. Leases do not go along, since what held them ends with
//! the old store: the caller says which records to leave behind for that reason.

use std::collections::BTreeMap;

use basin_model::keys::ROOT;
use bytes::Bytes;

use crate::store::{Commit, Compare, Entry, Op, Revision, Store, StoreError, Txn};

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub entries: usize,
    /// Of keys and values.
    pub bytes: usize,
    /// The source's, at the time of the copy.
    pub revision: Revision,
}

/// Outside of [`ROOT`], so that it is no record.
const MARK: &str = "/basin/unfinished-copy";

/// Makes the records of `to` those of `from` that `wanted` wants. The source must not
/// change meanwhile (it is then refused), and the target must be empty, hold an
/// unfinished copy, or hold this very copy already.
pub async fn copy_all(
    from: &dyn Store,
    to: &dyn Store,
    wanted: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Copied, StoreError> {
    let source = from.list(ROOT).await?;
    let entries: Vec<Entry> = source.entries.into_iter().filter(|e| wanted(&e.key)).collect();
    let target = to.list(ROOT).await?.entries;
    let bytes = entries.iter().map(|e| e.key.len() + e.value.len()).sum();
    let copied = Copied { entries: entries.len(), bytes, revision: source.revision };

    if to.get(MARK).await?.is_none() {
        if same(&entries, &target) && !target.is_empty() {
            return Ok(copied);
        }
        if !target.is_empty() {
            return Err(StoreError::Invalid(format!(
                "the target already holds {} records of Basin that are not this copy; nothing \
                 was changed. If they are of no use any more, empty it first",
                target.len()
            )));
        }
        let mark = Op::Put { key: MARK.to_owned(), value: Bytes::new(), lease: None };
        run(to, vec![Compare::Absent(MARK.to_owned())], vec![mark]).await?;
    }
    for batch in batches(changes(&entries, &target)) {
        run(to, vec![Compare::Present(MARK.to_owned())], batch).await?;
    }
    verify(from, to, wanted, &entries).await?;
    let done = vec![Op::Delete { key: MARK.to_owned() }];
    run(to, vec![Compare::Present(MARK.to_owned())], done).await?;
    Ok(copied)
}

async fn run(to: &dyn Store, when: Vec<Compare>, then: Vec<Op>) -> Result<(), StoreError> {
    match to.commit(Txn { when, then }).await? {
        Commit::Done(_) => Ok(()),
        Commit::Refused => {
            let why = "somebody else copies into the same store; wait, and try again";
            Err(StoreError::Unavailable(why.to_owned()))
        }
    }
}

/// What makes the target the same.
fn changes(source: &[Entry], target: &[Entry]) -> Vec<Op> {
    let mut there: BTreeMap<&str, &Bytes> =
        target.iter().map(|e| (e.key.as_str(), &e.value)).collect();
    let mut ops = Vec::new();
    for entry in source {
        if there.remove(entry.key.as_str()) != Some(&entry.value) {
            let (key, value) = (entry.key.clone(), entry.value.clone());
            ops.push(Op::Put { key, value, lease: None });
        }
    }
    ops.extend(there.into_keys().map(|key| Op::Delete { key: key.to_owned() }));
    ops
}

/// In pieces that a transaction takes.
fn batches(ops: Vec<Op>) -> Vec<Vec<Op>> {
    let (mut all, mut batch, mut size) = (Vec::new(), Vec::new(), 0);
    for op in ops {
        let more = op.size();
        if batch.len() == Txn::MAX_OPS || size + more > Txn::MAX_BYTES {
            all.push(std::mem::take(&mut batch));
            size = 0;
        }
        size += more;
        batch.push(op);
    }
    if !batch.is_empty() {
        all.push(batch);
    }
    all
}

fn same(one: &[Entry], two: &[Entry]) -> bool {
    let equal = |(a, b): (&Entry, &Entry)| a.key == b.key && a.value == b.value;
    one.len() == two.len() && one.iter().zip(two).all(equal)
}

async fn verify(
    from: &dyn Store,
    to: &dyn Store,
    wanted: &(dyn Fn(&str) -> bool + Sync),
    entries: &[Entry],
) -> Result<(), StoreError> {
    let arrived = to.list(ROOT).await?.entries;
    if !same(entries, &arrived) {
        return Err(StoreError::Unavailable(format!(
            "of {} records that were copied, the target holds {} or has others; copy again",
            entries.len(),
            arrived.len()
        )));
    }
    let now: Vec<Entry> = from.list(ROOT).await?.entries;
    let now: Vec<Entry> = now.into_iter().filter(|e| wanted(&e.key)).collect();
    if !same(entries, &now) {
        let why = "the source was changed while it was copied: stop what changes it, copy again";
        return Err(StoreError::Unavailable(why.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
