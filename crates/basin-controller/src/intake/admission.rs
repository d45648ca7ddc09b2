//! Pure. Whether a server that asks may join, and what is written when it does.

use basin_model::cluster::JoinToken;
use basin_model::datastore::{Datastore, DatastoreKind, DatastoreState, Sharing};
use basin_model::host::Host;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::{DatastoreId, Labels, Meta, Name, TokenId};
use basin_node::cluster::wire::{CLOCKS_DIFFER_AT_MOST, JoinAsk, OwnDatastore};
use basin_sched::movable::adjacent;
use basin_store::records::{TxnBuilder, Versioned};
use jiff::Timestamp;

use crate::app::inventory::Snapshot;
use crate::app::problems;
use crate::app::token::hash;

/// What is written if the server is taken in, on the condition that nothing it was
/// decided from has changed. A server whose answer was lost may ask again, with the
/// same token.
pub fn admit(
    ask: &JoinAsk,
    version: &str,
    snapshot: &Snapshot,
    now: Timestamp,
) -> Result<TxnBuilder, Problem> {
    let token = token(ask, snapshot, now)?;
    if snapshot.removed_hosts.contains_key(&ask.host) {
        return Err(problems::join_refused(
            "it was removed from this cluster before",
            "Restart its daemon: it then leaves, and may join under a new id.",
        ));
    }
    clocks(ask, now)?;
    if !adjacent(&ask.version, version) {
        let why = format!(
            "it runs Basin {}, and the cluster {version}: they are more than one release apart",
            ask.version
        );
        return Err(problems::join_refused(why, "Upgrade the older of the two first."));
    }
    address(ask, snapshot)?;
    let used = JoinToken { used_by: Some(ask.host), ..token.value.clone() };
    let mut txn = TxnBuilder::new().replace(token, &used);
    let joined = snapshot.hosts.get(&ask.host);
    let host = Host {
        id: ask.host,
        meta: joined.map_or_else(|| meta(ask.name.clone(), "", now), |h| h.value.meta.clone()),
        address: Some(ask.address),
        api_port: Some(ask.api_port),
        drain: joined.and_then(|h| h.value.drain),
        trunks: joined.map(|h| h.value.trunks.clone()).unwrap_or_default(),
    };
    txn = match joined {
        Some(joined) => txn.replace(joined, &host),
        None => {
            if snapshot.hosts.values().any(|h| h.value.meta.name == ask.name) {
                let why = format!("there is a server '{}' already", ask.name);
                let advice = "Start its daemon with another --name (or BASIN_NAME), then join.";
                return Err(problems::join_refused(why, advice));
            }
            txn.create(keys::host(ask.host), &host).create(Kind::Host.name(&ask.name), &ask.host)
        }
    };
    for own in &ask.datastores {
        if !snapshot.datastores.contains_key(&own.id) {
            txn = datastore(own, ask, snapshot, now, txn)?;
        }
    }
    Ok(txn)
}

fn token<'a>(
    ask: &JoinAsk,
    snapshot: &'a Snapshot,
    now: Timestamp,
) -> Result<&'a Versioned<JoinToken>, Problem> {
    let found = snapshot.join_tokens.get(&TokenId::from_uuid(ask.token));
    let found = found.filter(|t| t.value.secret_sha256 == hash(&ask.secret));
    let Some(token) = found else {
        return Err(problems::join_refused(
            "the token is not one of this cluster's, or was deleted",
            "Make one on a server of the cluster: 'basin token create --join'.",
        ));
    };
    match token.value.used_by {
        Some(other) if other != ask.host => {
            let name = snapshot.hosts.get(&other).map(|h| h.value.meta.name.to_string());
            let who = name.unwrap_or_else(|| other.to_string());
            Err(problems::join_refused(
                format!("the token has let in server '{who}' already, and lets in one only"),
                "Make another one: 'basin token create --join'.",
            ))
        }
        _ if now >= token.value.expires_at => Err(problems::join_refused(
            format!("the token has expired on {}", token.value.expires_at),
            "Make another one: 'basin token create --join'.",
        )),
        _ => Ok(token),
    }
}

fn clocks(ask: &JoinAsk, now: Timestamp) -> Result<(), Problem> {
    let apart = ask.clock.duration_since(now).unsigned_abs();
    if apart <= CLOCKS_DIFFER_AT_MOST {
        return Ok(());
    }
    let (theirs, ours) = (ask.clock, now);
    Err(problems::join_refused(
        format!("its clock shows {theirs}, and the cluster's {ours}: {} s apart", apart.as_secs()),
        "Set the clock (chrony or systemd-timesyncd keep it right), then join again.",
    ))
}

fn address(ask: &JoinAsk, snapshot: &Snapshot) -> Result<(), Problem> {
    if ask.address.is_unspecified() || ask.address.is_loopback() || ask.address.is_multicast() {
        let why = format!("no other server can reach it at {}", ask.address);
        return Err(problems::join_refused(why, "Name its own address: --advertise ADDRESS."));
    }
    let other = snapshot.hosts.values().find(|h| {
        h.value.id != ask.host
            && h.value.address == Some(ask.address)
            && h.value.api_port == Some(ask.api_port)
    });
    match other {
        Some(other) => Err(problems::join_refused(
            format!("server '{}' has the address {}", other.value.meta.name, ask.address),
            "Name its own address: --advertise ADDRESS.",
        )),
        None => Ok(()),
    }
}

fn datastore(
    own: &OwnDatastore,
    ask: &JoinAsk,
    snapshot: &Snapshot,
    now: Timestamp,
    txn: TxnBuilder,
) -> Result<TxnBuilder, Problem> {
    let taken = |name: &Name| snapshot.datastores.values().any(|d| d.value.meta.name == *name);
    let mut name = own.name.clone();
    for n in 1.. {
        if !taken(&name) {
            break;
        }
        let more = if n == 1 { String::new() } else { format!("-{n}") };
        let long = format!("{}-{}{more}", own.name, ask.name);
        name = long.parse().or_else(|_| format!("datastore-{}", own.id).parse()).map_err(|e| {
            problems::join_refused(format!("datastore '{}': {e}", own.name), "Rename it.")
        })?;
    }
    let datastore = Datastore {
        id: own.id,
        meta: meta(name.clone(), &own.description, now),
        sharing: Sharing::Local(ask.host),
        kind: DatastoreKind::Dir { path: own.path.clone() },
        quota: own.quota,
        overcommit_percent: own.overcommit_percent,
        state: DatastoreState::Ready,
    };
    Ok(txn
        .create(keys::datastore(own.id), &datastore)
        .create(Kind::Datastore.name(&name), &DatastoreId::clone(&own.id)))
}

fn meta(name: Name, description: &str, created_at: Timestamp) -> Meta {
    Meta { name, description: description.to_owned(), labels: Labels::default(), created_at }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
