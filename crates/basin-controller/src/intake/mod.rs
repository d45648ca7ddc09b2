//! Pure. From a request as it came in over HTTP to what is to be done about it.
//!
//! `(request, snapshot, mint) -> draft`: the draft holds the new records and one
//! transaction that reserves all they need (names, MAC addresses, addresses,
//! attachments) on the condition that nothing it was decided from has changed.
//! A refusal is a [`Problem`] that names the thing. Nothing here has an effect.

pub mod admission;
pub mod chain;
pub mod cloud_init;
pub mod datastore;
pub mod image;
pub mod meta;
pub mod mint;
pub mod network;
pub mod reach;
pub mod resolve;
pub mod space;
pub mod trunk;
pub mod uses;
pub mod vlan;
pub mod vm;
pub mod vm_disk;
pub mod vm_nics;
pub mod vm_patch;
pub mod volume;

pub use mint::Mint;

use std::collections::BTreeSet;
use std::fmt::Display;

use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_store::records::{TxnBuilder, Versioned};
use serde::Serialize;

use crate::app::problems;

/// Turns a parser's complaint about one field into a problem.
pub(crate) fn field<T, E: Display>(name: &str, result: Result<T, E>) -> Result<T, Problem> {
    result.map_err(|e| problems::invalid(format!("{name}: {e}")))
}

/// Collects what a request begins to use. Each thing is held to be unchanged,
/// and its guard is touched, so that whoever deletes it meanwhile is refused.
#[derive(Default)]
pub(crate) struct Uses {
    seen: BTreeSet<String>,
    txn: TxnBuilder,
}

impl Uses {
    pub fn hold<T>(&mut self, kind: Kind, id: impl Display, record: &Versioned<T>) {
        let guard = keys::guard(kind, id);
        if self.seen.insert(guard.clone()) {
            let txn = std::mem::take(&mut self.txn);
            self.txn = txn.require_unchanged(record).put(guard, &());
        }
    }

    /// As [`Uses::hold`], and whoever holds the thing at the same time is refused.
    pub fn seal<T: Serialize>(&mut self, kind: Kind, id: impl Display, record: &Versioned<T>) {
        if self.seen.insert(keys::guard(kind, id)) {
            let txn = std::mem::take(&mut self.txn);
            self.txn = txn.replace(record, &record.value);
        }
    }

    /// Takes the thing for one operation alone, until its workflow lets go.
    pub fn lock(&mut self, kind: Kind, id: impl Display) {
        let key = keys::lock(kind, id);
        if self.seen.insert(key.clone()) {
            self.txn = std::mem::take(&mut self.txn).create(key, &());
        }
    }

    pub fn require_absent(&mut self, key: String) {
        self.txn = std::mem::take(&mut self.txn).require_absent(key);
    }

    pub fn into_txn(self) -> TxnBuilder {
        self.txn
    }
}
