//! Pure. Turns a watch's answers into moments: all changes of one revision together.
//!
//! etcd ends an answer only between revisions, but was asked to send long answers in
//! fragments, and a fragment may end anywhere. So the changes of the latest revision
//! are held back until a later revision or the end of the answer shows that they are
//! all there.

use super::wire::{DELETE, Event, KeyValue, WatchResponse};
use crate::store::{Change, Entry, Revision, StoreError};

/// Where a watch is.
#[derive(Debug)]
pub(crate) struct Moments {
    /// Everything up to here has been handed out.
    after: Revision,
    /// Of one revision, perhaps not all of them.
    held: Vec<Change>,
}

impl Moments {
    pub fn new(after: Revision) -> Self {
        Self { after, held: Vec::new() }
    }

    pub fn after(&self) -> Revision {
        self.after
    }

    /// Another stream begins, at [`Moments::first`]: what is held will come again.
    pub fn reopen(&mut self) {
        self.held.clear();
    }

    /// The revision to ask from: one that has been handed out already. etcd takes a
    /// watch from the very revision it is compacted to, but may have dropped a
    /// deletion of it (etcd issue 18089); one revision earlier that cannot hurt, and
    /// etcd says `compacted` exactly when a change may be missing.
    pub fn first(&self) -> i64 {
        to_wire(self.after).max(1)
    }

    /// Takes in an answer and gives the moments that are whole.
    pub fn take(&mut self, answer: WatchResponse) -> Result<Vec<Vec<Change>>, StoreError> {
        let mut whole = Vec::new();
        let progress = answer.events.is_empty() && !answer.created && !answer.fragment;
        for event in answer.events {
            let change = change(event)?;
            let revision = change.revision();
            if revision <= self.after {
                continue;
            }
            if self.held.first().is_some_and(|held| held.revision() != revision) {
                whole.extend(self.release());
            }
            self.held.push(change);
        }
        if !answer.fragment {
            whole.extend(self.release());
        }
        // An answer without changes says that there are none up to its revision.
        if progress && let Some(header) = answer.header {
            self.after = self.after.max(from_wire(header.revision));
        }
        Ok(whole)
    }

    fn release(&mut self) -> Option<Vec<Change>> {
        let changes = std::mem::take(&mut self.held);
        self.after = changes.first()?.revision();
        Some(changes)
    }
}

fn change(event: Event) -> Result<Change, StoreError> {
    let kv = event.kv.unwrap_or_default();
    if event.kind == DELETE {
        Ok(Change::Delete { key: text(&kv.key)?, revision: from_wire(kv.mod_revision) })
    } else {
        Ok(Change::Put(entry(kv)?))
    }
}

pub(crate) fn entry(kv: KeyValue) -> Result<Entry, StoreError> {
    Ok(Entry {
        key: text(&kv.key)?,
        value: kv.value,
        created: from_wire(kv.create_revision),
        modified: from_wire(kv.mod_revision),
    })
}

fn text(key: &[u8]) -> Result<String, StoreError> {
    std::str::from_utf8(key).map(str::to_owned).map_err(|_| {
        let key = String::from_utf8_lossy(key);
        StoreError::Unusable(format!("etcd holds a key that is not Basin's: {key}"))
    })
}

/// No revision of etcd is negative.
pub(crate) fn from_wire(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

/// A revision that no store ever had is one that etcd will not have either.
pub(crate) fn to_wire(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::etcd::wire::Header;

    fn event(revision: i64, key: &str) -> Event {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let kv = KeyValue { key, mod_revision: revision, ..KeyValue::default() };
        Event { kind: DELETE, kv: Some(kv) }
    }

    fn answer(events: &[(i64, &str)], fragment: bool) -> WatchResponse {
        let events = events.iter().map(|(revision, key)| event(*revision, key)).collect();
        WatchResponse { events, fragment, ..WatchResponse::default() }
    }

    fn show(moments: &[Vec<Change>]) -> Vec<String> {
        let one = |changes: &Vec<Change>| {
            let keys: Vec<&str> = changes.iter().map(Change::key).collect();
            format!("{}:{}", changes[0].revision().0, keys.join(","))
        };
        moments.iter().map(one).collect()
    }

    #[test]
    fn fragments_of_one_revision_become_one_moment() {
        let mut moments = Moments::new(Revision(4));
        let got = moments.take(answer(&[(4, "old"), (5, "a"), (6, "b")], true)).unwrap();
        assert_eq!(show(&got), ["5:a"]);
        assert_eq!(moments.after(), Revision(5));
        assert!(moments.take(answer(&[(6, "c")], true)).unwrap().is_empty());
        let got = moments.take(answer(&[(6, "d"), (9, "a")], false)).unwrap();
        assert_eq!(show(&got), ["6:b,c,d", "9:a"]);
        assert_eq!(moments.after(), Revision(9));
    }

    #[test]
    fn what_is_held_comes_again_after_a_reopening() {
        let mut moments = Moments::new(Revision(4));
        assert!(moments.take(answer(&[(5, "a")], true)).unwrap().is_empty());
        moments.reopen();
        assert_eq!(moments.first(), 4);
        let got = moments.take(answer(&[(5, "a"), (5, "b")], false)).unwrap();
        assert_eq!(show(&got), ["5:a,b"]);
    }

    #[test]
    fn progress_moves_the_start() {
        let mut moments = Moments::new(Revision(4));
        let header = Header { revision: 70, ..Header::default() };
        let answer = WatchResponse { header: Some(header), ..WatchResponse::default() };
        let created = WatchResponse { created: true, ..answer.clone() };
        assert!(moments.take(created).unwrap().is_empty());
        assert_eq!(moments.after(), Revision(4));
        assert!(moments.take(answer).unwrap().is_empty());
        assert_eq!((moments.after(), moments.first()), (Revision(70), 70));
    }

    proptest! {
        /// However the answers are cut into fragments, and however often the stream
        /// is opened anew in between, every moment comes once, whole and in order.
        #[test]
        fn any_cut_gives_the_same_moments(
            sizes in prop::collection::vec(1usize..5, 1..20),
            cuts in prop::collection::vec((1usize..6, any::<bool>(), 0u8..8), 1..60),
        ) {
            let all: Vec<(i64, String)> = sizes.iter().enumerate()
                .flat_map(|(n, size)| (0..*size).map(move |k| (n as i64 + 2, format!("k{k}"))))
                .collect();
            let expect: Vec<String> = sizes.iter().enumerate().map(|(n, size)| {
                let keys: Vec<String> = (0..*size).map(|k| format!("k{k}")).collect();
                format!("{}:{}", n + 2, keys.join(","))
            }).collect();
            let (mut moments, mut got, mut at) = (Moments::new(Revision(1)), Vec::new(), 0);
            let mut cuts = cuts.iter().cycle();
            let mut reopenings = 0;
            while at < all.len() {
                let (take, fragment, dice) = cuts.next().unwrap();
                let end = (at + take).min(all.len());
                let part: Vec<(i64, &str)> =
                    all[at..end].iter().map(|(r, k)| (*r, k.as_str())).collect();
                // A whole answer ends between revisions, as etcd's do.
                let between = end == all.len() || all[end].0 != all[end - 1].0;
                let fragment = (*fragment || !between) && end < all.len();
                got.extend(show(&moments.take(answer(&part, fragment)).unwrap()));
                at = end;
                if *dice == 0 && reopenings < 30 {
                    reopenings += 1;
                    moments.reopen();
                    at = all.iter().position(|(r, _)| *r >= moments.first()).unwrap_or(all.len());
                }
            }
            prop_assert_eq!(got, expect);
        }
    }
}
