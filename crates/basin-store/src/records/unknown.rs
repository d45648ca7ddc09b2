//! Pure. What a newer release wrote into a record and this one does not know. While a
//! cluster is upgraded, either release may lead, and a change by the older one must not
//! take away what the newer one has noted.
//!
//! Kept are fields of structures. Within an enum that has a tag they go with its
//! variant, so a field is added there by a new layout only. Elements of a list keep
//! theirs while they are the same, or have the same `id`.

use serde_ignored::Path;
use serde_json::Value;

/// Nothing, as a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unknown(Option<Box<Kept>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    whole: Value,
    /// The same without what is not known.
    known: Value,
}

/// Where in a record.
pub(super) type Place = Vec<Step>;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Field(String),
    Element(usize),
}

/// The place that was passed over when a record was read.
pub(super) fn place(path: &Path<'_>) -> Place {
    let with = |parent: &Path<'_>, step| [place(parent), vec![step]].concat();
    match path {
        Path::Root => Place::new(),
        Path::Seq { parent, index } => with(parent, Step::Element(*index)),
        Path::Map { parent, key } => with(parent, Step::Field(key.clone())),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => place(parent),
    }
}

/// The same place, seen from the record in its envelope.
pub(super) fn within(place: &Place) -> Option<Place> {
    match &place[..] {
        [Step::Field(field), rest @ ..] if field == "record" => Some(rest.to_vec()),
        _ => None,
    }
}

impl Unknown {
    pub(super) fn of(whole: Value, places: &[Place]) -> Unknown {
        if places.is_empty() {
            return Unknown::default();
        }
        let mut known = whole.clone();
        for place in places {
            remove(&mut known, place);
        }
        Unknown(Some(Box::new(Kept { whole, known })))
    }

    /// Puts it into what the record is to be.
    pub(super) fn put_into(&self, new: &mut Value) {
        if let Some(kept) = &self.0 {
            merge(new, &kept.known, &kept.whole);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

fn remove(from: &mut Value, place: &[Step]) {
    match (from, place) {
        (Value::Object(fields), [Step::Field(last)]) => {
            fields.remove(last);
        }
        (Value::Object(fields), [Step::Field(field), rest @ ..]) => {
            fields.get_mut(field).into_iter().for_each(|value| remove(value, rest));
        }
        (Value::Array(all), [Step::Element(n), rest @ ..]) if !rest.is_empty() => {
            all.get_mut(*n).into_iter().for_each(|value| remove(value, rest));
        }
        _ => {}
    }
}

fn merge(new: &mut Value, known: &Value, whole: &Value) {
    match (new, known, whole) {
        (Value::Object(new), Value::Object(known), Value::Object(whole)) => {
            for (field, whole) in whole {
                match (known.get(field), new.get_mut(field)) {
                    (None, None) => {
                        new.insert(field.clone(), whole.clone());
                    }
                    (Some(known), Some(new)) => merge(new, known, whole),
                    _ => {}
                }
            }
        }
        (Value::Array(new), Value::Array(known), Value::Array(whole)) => {
            for new in new {
                let id = new.get("id").cloned();
                let named = |old: &Value| id.is_some() && old.get("id") == id.as_ref();
                let same = known.iter().position(|old| old == new);
                let same = same.or_else(|| known.iter().position(named));
                if let Some((known, whole)) = same.and_then(|n| known.get(n).zip(whole.get(n))) {
                    merge(new, known, whole);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Old {
        size: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        #[serde(default)]
        parts: Vec<Part>,
        #[serde(default)]
        inner: Inner,
        #[serde(default)]
        power: Power,
    }

    #[derive(Serialize, Deserialize, PartialEq)]
    struct Part {
        id: u32,
        wide: bool,
    }

    #[derive(Serialize, Deserialize, Default)]
    struct Inner {
        depth: u32,
    }

    #[derive(Serialize, Deserialize, Default)]
    #[serde(rename_all = "snake_case", tag = "state")]
    enum Power {
        #[default]
        On,
        Off {
            hard: bool,
        },
    }

    /// What an older release makes of a record when it changes it.
    fn check(stored: Value, change: impl FnOnce(&mut Old), expect: Value) {
        let mut places = Vec::new();
        let mut old: Old =
            serde_ignored::deserialize(&stored, |path| places.push(place(&path))).unwrap();
        let unknown = Unknown::of(stored, &places);
        change(&mut old);
        let mut new = serde_json::to_value(&old).unwrap();
        unknown.put_into(&mut new);
        assert_eq!(new, expect);
    }

    fn record(size: u32, parts: &Value, inner: &Value) -> Value {
        json!({"size": size, "parts": parts, "inner": inner, "power": {"state": "on"}})
    }

    #[test]
    fn fields_of_a_newer_release_outlive_a_change_by_an_older_one() {
        let none = json!([]);
        let with = |mut record: Value| {
            record["color"] = json!({"deep": [1]});
            record
        };
        let inner = json!({"depth": 1, "heat": 9});
        check(
            with(record(1, &none, &inner)),
            |old| {
                old.size = 2;
                old.inner.depth = 4;
            },
            with(record(2, &none, &json!({"depth": 4, "heat": 9}))),
        );
        // What this release knows and takes away stays away.
        let mut noted = with(record(1, &none, &inner));
        noted["note"] = json!("x");
        check(noted, |old| old.note = None, with(record(1, &none, &inner)));
    }

    #[test]
    fn elements_keep_theirs_wherever_they_go() {
        let part = |id: u32, wide: bool, extra: u32| json!({"id": id, "wide": wide, "x": extra});
        let inner = json!({"depth": 1});
        check(
            record(1, &json!([part(1, true, 10), part(2, true, 20), part(3, true, 30)]), &inner),
            |old| {
                old.parts.remove(1);
                old.parts.swap(0, 1);
                old.parts[1].wide = false;
                old.parts.push(Part { id: 4, wide: true });
            },
            record(
                1,
                &json!([part(3, true, 30), part(1, false, 10), {"id": 4, "wide": true}]),
                &inner,
            ),
        );
    }

    #[test]
    fn what_belongs_to_a_variant_goes_with_it() {
        let none = json!([]);
        let mut stored = record(1, &none, &json!({"depth": 1}));
        stored["power"] = json!({"state": "off", "hard": true, "why": "x"});
        let on = record(1, &none, &json!({"depth": 1}));
        check(stored, |old| old.power = Power::On, on);
    }
}
