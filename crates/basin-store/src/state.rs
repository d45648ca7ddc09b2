//! Pure. What a store holds, and what a transaction does to it.
//!
//! [`State`] is what everybody reads. Changes are first made in a [`Draft`] upon
//! it, which yields a [`Delta`]; once the delta is durable, the state takes it in.
//! So nobody reads what a crash could still undo, and a failed write needs no
//! undoing. Time is a [`Duration`] since some moment that the caller chose.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use crate::store::{Change, Commit, Entry, LeaseId, Listing, Op, Revision, StoreError, Txn};

/// An entry and the lease that keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub entry: Entry,
    pub lease: Option<LeaseId>,
}

/// How long a lease lasts unless renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub ttl: Duration,
    pub deadline: Duration,
}

/// All changes of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moment {
    pub revision: Revision,
    pub changes: Vec<Change>,
}

impl Moment {
    fn bytes(&self) -> usize {
        let value = |c: &Change| match c {
            Change::Put(e) => e.value.len(),
            Change::Delete { .. } => 0,
        };
        self.changes.iter().map(|c| c.key().len() + value(c)).sum()
    }
}

/// How much history is kept for watches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryLimits {
    pub moments: usize,
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { moments: 8192, bytes: 8 << 20 }
    }
}

#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub revision: Revision,
    pub entries: BTreeMap<String, Stored>,
    pub leases: BTreeMap<LeaseId, Lease>,
    pub last_lease: i64,
    pub history: VecDeque<Moment>,
    /// Changes up to and including this revision are gone.
    pub compacted: Revision,
    pub limits: HistoryLimits,
    history_bytes: usize,
}

/// What a draft changes in a state.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub revision: Revision,
    pub entries: BTreeMap<String, Option<Stored>>,
    pub leases: BTreeMap<LeaseId, Option<Lease>>,
    pub last_lease: i64,
    pub moments: Vec<Moment>,
    /// The last lease that the state underneath knows.
    base_lease: i64,
}

impl Delta {
    /// Whether the lease is new, rather than renewed.
    pub fn granted(&self, id: LeaseId) -> bool {
        id.0 > self.base_lease
    }

    /// Whether anything of it must survive a restart: a renewal need not.
    pub fn is_durable(&self) -> bool {
        let changed =
            |(id, lease): (&LeaseId, &Option<Lease>)| lease.is_none() || self.granted(*id);
        !self.moments.is_empty() || self.leases.iter().any(changed)
    }
}

impl State {
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|s| s.entry.clone())
    }

    pub fn list(&self, prefix: &str) -> Listing {
        let entries = with_prefix(&self.entries, prefix).map(|(_, s)| s.entry.clone()).collect();
        Listing { entries, revision: self.revision }
    }

    /// The next change after `after` to a key under the prefix, or, if there is
    /// none yet, the revision up to which there is none.
    pub fn next_change(&self, prefix: &str, after: Revision) -> Result<NextChange, StoreError> {
        if after < self.compacted {
            return Err(StoreError::Compacted(after));
        }
        let start = self.history.partition_point(|m| m.revision <= after);
        for moment in self.history.range(start..) {
            let changes: Vec<Change> =
                moment.changes.iter().filter(|c| c.key().starts_with(prefix)).cloned().collect();
            if !changes.is_empty() {
                return Ok(NextChange::Found(moment.revision, changes));
            }
        }
        Ok(NextChange::NoneUpTo(self.revision.max(after)))
    }

    /// Takes in what has become durable.
    pub fn apply(&mut self, delta: Delta) {
        for (key, stored) in delta.entries {
            match stored {
                Some(stored) => self.entries.insert(key, stored),
                None => self.entries.remove(&key),
            };
        }
        for (id, lease) in delta.leases {
            match lease {
                Some(lease) => self.leases.insert(id, lease),
                None => self.leases.remove(&id),
            };
        }
        self.revision = delta.revision;
        self.last_lease = delta.last_lease;
        for moment in delta.moments {
            self.remember(moment);
        }
    }

    /// Adds to the history and forgets what is too old.
    pub fn remember(&mut self, moment: Moment) {
        self.history_bytes += moment.bytes();
        self.history.push_back(moment);
        while self.history.len() > self.limits.moments || self.history_bytes > self.limits.bytes {
            self.forget_oldest();
        }
    }

    /// Forgets the changes up to and including a revision.
    pub fn compact(&mut self, up_to: Revision) {
        while self.history.front().is_some_and(|m| m.revision <= up_to) {
            self.forget_oldest();
        }
        self.compacted = self.compacted.max(up_to.min(self.revision));
    }

    fn forget_oldest(&mut self) {
        if let Some(moment) = self.history.pop_front() {
            self.history_bytes -= moment.bytes();
            self.compacted = moment.revision;
        }
    }

    /// When the next lease ends, if nobody renews it.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.leases.values().map(|l| l.deadline).min()
    }
}

/// What [`State::next_change`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextChange {
    Found(Revision, Vec<Change>),
    NoneUpTo(Revision),
}

fn with_prefix<'a, V>(
    map: &'a BTreeMap<String, V>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a V)> {
    map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

/// Changes being made upon a state.
pub(crate) struct Draft<'a> {
    base: &'a State,
    delta: Delta,
}

impl<'a> Draft<'a> {
    pub fn new(base: &'a State) -> Self {
        let (revision, lease) = (base.revision, base.last_lease);
        let delta = Delta { revision, last_lease: lease, base_lease: lease, ..Delta::default() };
        Self { base, delta }
    }

    pub fn finish(self) -> Delta {
        self.delta
    }

    fn stored(&self, key: &str) -> Option<&Stored> {
        match self.delta.entries.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.base.entries.get(key),
        }
    }

    fn lease(&self, id: LeaseId) -> Option<&Lease> {
        match self.delta.leases.get(&id) {
            Some(changed) => changed.as_ref(),
            None => self.base.leases.get(&id),
        }
    }

    /// Conditions are judged first: a refused transaction fails for nothing else.
    pub fn commit(&mut self, txn: &Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        let holds = |c: &crate::Compare| c.holds(self.stored(c.key()).map(|s| &s.entry));
        if !txn.when.iter().all(holds) {
            return Ok(Commit::Refused);
        }
        for op in &txn.then {
            if let Op::Put { lease: Some(id), .. } = op
                && self.lease(*id).is_none()
            {
                return Err(StoreError::LeaseGone(*id));
            }
        }
        let revision = Revision(self.delta.revision.0 + 1);
        let changes: Vec<Change> =
            txn.then.iter().filter_map(|op| self.change(op, revision)).collect();
        Ok(Commit::Done(self.close_moment(revision, changes)))
    }

    fn change(&mut self, op: &Op, revision: Revision) -> Option<Change> {
        match op {
            Op::Put { key, value, lease } => {
                let created = self.stored(key).map_or(revision, |s| s.entry.created);
                let (key, value) = (key.clone(), value.clone());
                let entry = Entry { key: key.clone(), value, created, modified: revision };
                let stored = Stored { entry: entry.clone(), lease: *lease };
                self.delta.entries.insert(key, Some(stored));
                Some(Change::Put(entry))
            }
            Op::Delete { key } => {
                self.stored(key)?;
                self.delta.entries.insert(key.clone(), None);
                Some(Change::Delete { key: key.clone(), revision })
            }
        }
    }

    fn close_moment(&mut self, revision: Revision, changes: Vec<Change>) -> Revision {
        if !changes.is_empty() {
            self.delta.revision = revision;
            self.delta.moments.push(Moment { revision, changes });
        }
        self.delta.revision
    }

    pub fn grant(&mut self, ttl: Duration, now: Duration) -> LeaseId {
        self.delta.last_lease += 1;
        let id = LeaseId(self.delta.last_lease);
        self.delta.leases.insert(id, Some(Lease { ttl, deadline: now.saturating_add(ttl) }));
        id
    }

    /// A lease whose time is up stays lost, also before its keys are gone.
    pub fn renew(&mut self, id: LeaseId, now: Duration) -> Result<(), StoreError> {
        let lease = *self.lease(id).ok_or(StoreError::LeaseGone(id))?;
        if lease.deadline <= now {
            return Err(StoreError::LeaseGone(id));
        }
        let deadline = lease.deadline.max(now.saturating_add(lease.ttl));
        self.delta.leases.insert(id, Some(Lease { deadline, ..lease }));
        Ok(())
    }

    /// Ends the lease; its keys go in one revision.
    pub fn revoke(&mut self, id: LeaseId) -> Result<(), StoreError> {
        self.lease(id).ok_or(StoreError::LeaseGone(id))?;
        self.delta.leases.insert(id, None);
        let held = |s: &Stored| s.lease == Some(id);
        let unchanged = self
            .base
            .entries
            .iter()
            .filter(|(key, s)| held(s) && !self.delta.entries.contains_key(key.as_str()));
        let changed = self.delta.entries.iter().filter(|(_, s)| s.as_ref().is_some_and(held));
        let mut keys: Vec<String> =
            unchanged.map(|(k, _)| k.clone()).chain(changed.map(|(k, _)| k.clone())).collect();
        keys.sort();
        let revision = Revision(self.delta.revision.0 + 1);
        let changes =
            keys.into_iter().filter_map(|key| self.change(&Op::Delete { key }, revision)).collect();
        self.close_moment(revision, changes);
        Ok(())
    }

    /// Ends every lease whose time is up.
    pub fn expire(&mut self, now: Duration) {
        let mut due: Vec<LeaseId> =
            self.base.leases.keys().chain(self.delta.leases.keys()).copied().collect();
        due.retain(|id| self.lease(*id).is_some_and(|l| l.deadline <= now));
        due.dedup();
        for id in due {
            // A lease that is in both maps comes twice; the second finds it gone.
            let _ = self.revoke(id);
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
