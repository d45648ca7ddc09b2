//! Pure. Names, descriptions and labels.

use std::collections::BTreeMap;

use basin_model::keys::Kind;
use basin_model::task::Problem;
use basin_model::{Labels, Meta, Name};
use basin_store::records::TxnBuilder;
use jiff::Timestamp;
use serde::Serialize;

use super::resolve::Named;
use super::{Mint, field};
use crate::app::inventory::Table;
use crate::app::problems;

const DESCRIPTION_MAX: usize = 1024;

/// Checks the descriptive part of a new thing. That the name is free is checked
/// here for a clear refusal, and again by the transaction, which decides.
pub fn new<I: std::str::FromStr + Ord, T: Named>(
    table: &Table<I, T>,
    name: &str,
    description: &str,
    labels: &BTreeMap<String, String>,
    mint: &Mint<'_>,
) -> Result<Meta, Problem> {
    let name: Name = field("name", name.parse())?;
    free(table, &name)?;
    checked(name, description, labels.clone(), mint.now)
}

fn checked(
    name: Name,
    description: &str,
    labels: BTreeMap<String, String>,
    created_at: Timestamp,
) -> Result<Meta, Problem> {
    if description.len() > DESCRIPTION_MAX {
        return Err(problems::invalid(format!(
            "description: it has {} bytes, and at most {DESCRIPTION_MAX} are kept",
            description.len()
        )));
    }
    let labels: Labels = field("labels", labels.try_into())?;
    Ok(Meta { name, description: description.to_owned(), labels, created_at })
}

/// That nothing of this kind has the name.
pub fn free<I, T: Named>(table: &Table<I, T>, name: &Name) -> Result<(), Problem> {
    match table.values().any(|r| r.value.meta().name == *name) {
        true => Err(problems::name_taken(T::KIND, name)),
        false => Ok(()),
    }
}

/// A change to the descriptive part; what is absent stays.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub name: Option<&'a str>,
    pub description: Option<&'a str>,
    pub labels: &'a BTreeMap<String, Option<String>>,
}

/// The descriptive part after the change, and the transaction that moves the name.
pub fn change<I: std::str::FromStr + Ord + Serialize, T: Named>(
    (kind, id): (Kind, I),
    table: &Table<I, T>,
    old: &Meta,
    change: Change<'_>,
) -> Result<(Meta, TxnBuilder), Problem> {
    let name = change.name.map(|n| field("name", n.parse())).transpose()?;
    let mut labels = BTreeMap::from(old.labels.clone());
    for (key, value) in change.labels {
        match value {
            Some(value) => labels.insert(key.clone(), value.clone()),
            None => labels.remove(key),
        };
    }
    let description = change.description.unwrap_or(&old.description);
    let new_name = name.unwrap_or_else(|| old.name.clone());
    let mut txn = TxnBuilder::new();
    if new_name != old.name {
        free(table, &new_name)?;
        txn = txn.create(kind.name(&new_name), &id).delete(kind.name(&old.name));
    }
    Ok((checked(new_name, description, labels, old.created_at)?, txn))
}

impl<'a> From<&'a basin_api::reference::MetaPatch> for Change<'a> {
    fn from(patch: &'a basin_api::reference::MetaPatch) -> Self {
        Change {
            name: patch.name.as_deref(),
            description: patch.description.as_deref(),
            labels: &patch.labels,
        }
    }
}
