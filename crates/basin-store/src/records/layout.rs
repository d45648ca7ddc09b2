//! Pure. The envelope of a record: the version of its layout beside its value.
//!
//! ```json
//! {"layout":1,"record":{"name":"web-1"}}
//! ```
//!
//! Each kind of record counts its layouts by itself, so that a release that
//! changes one kind shuts out older servers from that kind only. To change the
//! layout of a kind: raise its number in [`current`], add a step to [`migrate`]
//! that turns a value of the number before into one of the new, and keep the
//! steps: a store may skip releases. A field that older code may ignore and
//! newer code defaults needs no new layout: older code keeps it when it changes
//! the record (see [`super::Unknown`]).

use basin_model::keys::Kind;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::unknown::{self, Unknown};
use crate::store::StoreError;

/// Whether a kind of record has several writers, which leave each other's fields alone.
/// An owner says all it knows anew, and what it does not know is not so any more.
fn is_shared(key: &str) -> bool {
    let kind = Kind::parse(key).map(|(kind, _)| kind);
    !matches!(kind, Some(Kind::VmStatus | Kind::HostStatus | Kind::Alive))
}

/// The layout this version writes for records under a key.
pub(crate) fn current(key: &str) -> u32 {
    match Kind::parse(key).map(|(kind, _)| kind) {
        Some(Kind::Vm | Kind::VmStatus | Kind::Host | Kind::HostStatus) => 1,
        Some(Kind::Volume | Kind::Image | Kind::Datastore | Kind::Network) => 1,
        Some(Kind::Task | Kind::Workflow | Kind::Token) => 1,
        Some(Kind::Alive | Kind::JoinToken | Kind::RemovedHost | Kind::Issued) => 1,
        // Reservations of names, addresses and so on.
        None => 1,
    }
}

/// Turns a value of layout `from` into one of `from + 1`.
fn migrate(key: &str, from: u32, _value: Value) -> Result<Value, String> {
    Err(format!("no way from layout {from} of {key} is known"))
}

#[derive(Serialize)]
struct Outgoing<'a, T> {
    layout: u32,
    record: &'a T,
}

/// What is in it is passed over.
#[derive(Deserialize)]
struct Envelope {
    layout: u32,
}

#[derive(Deserialize)]
struct Incoming<T> {
    /// Known already.
    #[serde(rename = "layout")]
    _layout: serde::de::IgnoredAny,
    record: T,
}

/// `unknown` is of the record as it was before; none of a new one.
pub(crate) fn encode<T: Serialize>(
    key: &str,
    record: &T,
    unknown: &Unknown,
) -> Result<Bytes, StoreError> {
    let layout = current(key);
    let bytes = if unknown.is_empty() {
        serde_json::to_vec(&Outgoing { layout, record })
    } else {
        serde_json::to_value(record).and_then(|mut value| {
            unknown.put_into(&mut value);
            serde_json::to_vec(&Outgoing { layout, record: &value })
        })
    };
    bytes
        .map(Bytes::from)
        .map_err(|e| StoreError::Invalid(format!("record {key} has no JSON form: {e}")))
}

pub(crate) fn decode<T: DeserializeOwned>(
    key: &str,
    bytes: &[u8],
) -> Result<(T, Unknown), StoreError> {
    open(key, bytes, current(key), migrate)
}

fn open<T: DeserializeOwned>(
    key: &str,
    bytes: &[u8],
    current: u32,
    migrate: impl Fn(&str, u32, Value) -> Result<Value, String>,
) -> Result<(T, Unknown), StoreError> {
    let unusable = |why: String| StoreError::Unusable(format!("record {key} {why}"));
    let damaged = |e: serde_json::Error| unusable(format!("is damaged: {e}"));
    let Envelope { layout } = serde_json::from_slice(bytes).map_err(damaged)?;
    if layout > current {
        return Err(unusable(format!(
            "was written by a newer Basin (layout {layout}, this version reads up to {current}): \
             upgrade this server"
        )));
    }
    let mut places = Vec::new();
    if layout == current {
        // Read straight: a server that starts reads every record there is.
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let passed_over = |path: serde_ignored::Path<'_>| places.push(unknown::place(&path));
        let read = serde_ignored::deserialize::<_, _, Incoming<T>>(&mut json, passed_over);
        let record = read.and_then(|read| json.end().map(|()| read)).map_err(damaged)?.record;
        if places.is_empty() || !is_shared(key) {
            return Ok((record, Unknown::default()));
        }
        let whole: Incoming<Value> = serde_json::from_slice(bytes).map_err(damaged)?;
        // They begin at the envelope.
        let places: Vec<_> = places.iter().filter_map(unknown::within).collect();
        return Ok((record, Unknown::of(whole.record, &places)));
    }
    let Incoming::<Value> { mut record, .. } = serde_json::from_slice(bytes).map_err(damaged)?;
    for from in layout..current {
        record = migrate(key, from, record)
            .map_err(|e| unusable(format!("cannot be brought to layout {current}: {e}")))?;
    }
    let value = serde_ignored::deserialize(&record, |path| places.push(unknown::place(&path)));
    let value = value.map_err(damaged)?;
    let unknown = if is_shared(key) { Unknown::of(record, &places) } else { Unknown::default() };
    Ok((value, unknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KEY: &str = "/basin/v1/vm/x";

    fn rename(_: &str, from: u32, mut value: Value) -> Result<Value, String> {
        match from {
            1 => {
                let old = value["label"].take();
                Ok(json!({ "name": old }))
            }
            2 => {
                value["size"] = json!(7);
                Ok(value)
            }
            _ => Err("unknown".to_owned()),
        }
    }

    fn check(stored: &Value, expect: Result<Value, &str>) {
        let got = open::<Value>(KEY, stored.to_string().as_bytes(), 3, rename);
        match (got, expect) {
            (Ok((got, _)), Ok(expect)) => assert_eq!(got, expect),
            (Err(StoreError::Unusable(got)), Err(expect)) => {
                assert!(got.contains(expect) && got.contains(KEY), "{got}");
            }
            (got, expect) => panic!("{got:?} is not {expect:?}"),
        }
    }

    #[test]
    fn older_records_are_migrated_and_newer_ones_refused() {
        let new = json!({"name": "a", "size": 7});
        check(&json!({"layout": 1, "record": {"label": "a"}}), Ok(new.clone()));
        check(&json!({"layout": 2, "record": {"name": "a"}}), Ok(new.clone()));
        check(&json!({"layout": 3, "record": new}), Ok(new.clone()));
        check(&json!({"layout": 4, "record": {}}), Err("upgrade this server"));
        check(&json!({"layout": 0, "record": {}}), Err("cannot be brought"));
        check(&json!({"record": {}}), Err("is damaged"));
        check(&json!("x"), Err("is damaged"));
    }

    #[test]
    fn what_is_encoded_decodes() {
        let bytes = encode(KEY, &json!({"a": [1, 2]}), &Unknown::default()).unwrap();
        assert_eq!(decode::<Value>(KEY, &bytes).unwrap().0, json!({"a": [1, 2]}));
    }
}
