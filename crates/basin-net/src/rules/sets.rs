//! Pure. The sets that change while machines and servers come, go and move.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::Ruleset;
use crate::names::Instance;

/// `elements = { … }`, or nothing for a set without any.
pub fn elements(items: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = items.collect();
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}

/// What is in the sets; `but` leaves out what is in that as well.
#[derive(Default)]
pub struct Sets {
    pub macs: Vec<String>,
    pub owners: Vec<String>,
    pub heard_macs: Vec<String>,
    pub heard: Vec<String>,
    pub kept_macs: Vec<String>,
    pub kept: Vec<String>,
    pub peers: Vec<String>,
    pub paths: Vec<String>,
}

impl Sets {
    pub fn of(rules: &Ruleset, but: &Ruleset) -> Sets {
        let mut sets = Sets::default();
        for (tap, owner) in rules.taps.difference(&but.taps) {
            sets.macs.push(format!("\"{tap}\" . {}", owner.mac));
            sets.owners.push(format!("\"{tap}\" . {} . {}", owner.mac, owner.address));
        }
        let none = BTreeSet::new();
        for (port, all) in &rules.heard {
            for (mac, address) in all.difference(but.heard.get(port).unwrap_or(&none)) {
                sets.heard_macs.push(format!("\"{port}\" . {mac}"));
                sets.heard.push(format!("\"{port}\" . {mac} . {address}"));
            }
        }
        for (port, all) in &rules.kept {
            for (mac, address) in all.difference(but.kept.get(port).unwrap_or(&none)) {
                sets.kept_macs.push(format!("\"{port}\" . {mac}"));
                sets.kept.push(format!("\"{port}\" . {address}"));
            }
        }
        for (peer, local) in rules.peers.difference(&but.peers) {
            sets.paths.push(format!("{peer} . {local}"));
        }
        let peers = |r: &Ruleset| r.peers.iter().map(|(p, _)| *p).collect::<BTreeSet<_>>();
        sets.peers = peers(rules).difference(&peers(but)).map(ToString::to_string).collect();
        sets
    }

    fn all(self) -> [(&'static str, &'static str, Vec<String>); 8] {
        [
            ("bridge", "macs", self.macs),
            ("bridge", "owners", self.owners),
            ("bridge", "heard_macs", self.heard_macs),
            ("bridge", "heard", self.heard),
            ("bridge", "kept_macs", self.kept_macs),
            ("bridge", "kept", self.kept),
            ("inet", "peers", self.peers),
            ("inet", "paths", self.paths),
        ]
    }
}

/// The script that makes the sets of `new` out of those of `old`.
pub fn changes(old: &Ruleset, new: &Ruleset, instance: &Instance) -> String {
    let table = instance.table();
    let mut out = String::new();
    // A set may lose and gain an element of the same MAC: what goes, goes first.
    for (verb, sets) in [("delete", Sets::of(old, new)), ("add", Sets::of(new, old))] {
        for (family, set, items) in sets.all().into_iter().filter(|(_, _, i)| !i.is_empty()) {
            let items = items.join(", ");
            let _ = writeln!(out, "{verb} element {family} {table} {set} {{ {items} }}");
        }
    }
    out
}
