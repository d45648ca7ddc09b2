//! Pure. The nftables ruleset of one daemon, as text for `nft -f`.
//!
//! Two tables, both replaced as a whole in one transaction. The bridge table
//! holds each guest to its own MAC and IPv4 address; the inet table keeps the
//! networks apart, hides the server's own services and translates addresses.
//! Rules name interfaces by text, so they are in force before an interface is up.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::names::{ANY_BRIDGE, Instance, TapOwner};

/// Whether a foreign interface's name means just itself inside a ruleset.
pub fn quotable(device: &str) -> bool {
    !device.is_empty()
        && device.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Drops both tables, whether or not they exist.
pub fn removal(instance: &Instance) -> String {
    let table = instance.table();
    let mut out = String::new();
    for family in ["bridge", "inet"] {
        // Adding first makes the deletion succeed when there was none.
        let _ = writeln!(out, "add table {family} {table}\ndelete table {family} {table}");
    }
    out
}

/// What the tables say, apart from what they always say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub networks: BTreeSet<Guarded>,
    /// Taps by name, and whom each is held to.
    pub taps: BTreeSet<(String, TapOwner)>,
    /// Interfaces on which Basin turned forwarding on: the server routes from them
    /// to guests and nowhere else.
    pub uplinks: BTreeSet<String>,
}

/// A network as the rules know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guarded {
    pub bridge: String,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
}

impl Ruleset {
    /// Replaces both tables.
    pub fn text(&self, instance: &Instance) -> String {
        let mut out = removal(instance);
        bridge_table(&mut out, instance, &self.taps);
        inet_table(&mut out, instance, &self.networks, &self.uplinks);
        out
    }

    /// Makes these rules of `old` ones where only taps differ. Replacing tables makes
    /// the kernel wait until no packet is in them; on the way of a machine's start
    /// that is too long.
    pub fn change(&self, old: &Ruleset, instance: &Instance) -> Option<String> {
        if self.networks != old.networks || self.uplinks != old.uplinks {
            return None;
        }
        let table = instance.table();
        let mut out = String::new();
        for (set, element) in [("macs", mac_of as fn(&_) -> _), ("owners", owner_of)] {
            let all = |r: &Ruleset| r.taps.iter().map(element).collect::<BTreeSet<String>>();
            let (was, is) = (all(old), all(self));
            for (verb, gone, left) in [("delete", &was, &is), ("add", &is, &was)] {
                let items: Vec<_> = gone.difference(left).cloned().collect();
                if !items.is_empty() {
                    let items = items.join(", ");
                    let _ = writeln!(out, "{verb} element bridge {table} {set} {{ {items} }}");
                }
            }
        }
        Some(out)
    }
}

fn mac_of((tap, owner): &(String, TapOwner)) -> String {
    format!("\"{tap}\" . {}", owner.mac)
}

fn owner_of((tap, owner): &(String, TapOwner)) -> String {
    format!("\"{tap}\" . {} . {}", owner.mac, owner.address)
}

fn elements(items: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = items.collect();
    if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(", ")) }
}

fn bridge_table(out: &mut String, instance: &Instance, taps: &BTreeSet<(String, TapOwner)>) {
    let macs = elements(taps.iter().map(mac_of));
    let owners = elements(taps.iter().map(owner_of));
    let (table, taps) = (instance.table(), instance.tap_prefix());
    let _ = write!(
        out,
        r#"table bridge {table} {{
  set macs {{
    type ifname . ether_addr
    {macs}
  }}
  set owners {{
    type ifname . ether_addr . ipv4_addr
    {owners}
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{taps}*" goto guest
  }}
  chain guest {{
    vlan id 0-4095 drop
    iifname . ether saddr != @macs drop
    ether type arp goto guest_arp
    ether type ip goto guest_ip
    drop
  }}
  chain guest_arp {{
    arp htype != 1 drop
    arp ptype != ip drop
    arp hlen != 6 drop
    arp plen != 4 drop
    iifname . arp saddr ether . arp saddr ip @owners accept
    iifname . arp saddr ether @macs arp saddr ip 0.0.0.0 accept
    drop
  }}
  chain guest_ip {{
    udp sport 67 udp dport 68 drop
    iifname . ether saddr . ip saddr @owners accept
    ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
    drop
  }}
}}
"#
    );
}

fn inet_table(
    out: &mut String,
    instance: &Instance,
    networks: &BTreeSet<Guarded>,
    uplinks: &BTreeSet<String>,
) {
    let (mut input, mut forward, mut nat) = (String::new(), String::new(), String::new());
    for Guarded { bridge, subnet, gateway } in networks {
        let _ =
            writeln!(input, "    iifname != {{ \"lo\", \"{bridge}\" }} ip daddr {gateway} drop");
        let _ = writeln!(forward, "    iifname \"{bridge}\" oifname \"{bridge}\" accept");
        let _ = writeln!(forward, "    iifname \"{bridge}\" ip saddr != {subnet} drop");
        let _ = writeln!(nat, "    ip saddr {subnet} oifname != \"{bridge}\" masquerade");
    }
    let gateways = elements(networks.iter().map(|n| format!("\"{}\" . {}", n.bridge, n.gateway)));
    let guard = elements(uplinks.iter().filter(|d| quotable(d)).map(|d| format!("\"{d}\"")));
    let (table, bridges) = (instance.table(), instance.bridge_prefix());
    let _ = write!(
        out,
        r#"table inet {table} {{
  set gateways {{
    type ifname . ipv4_addr
    {gateways}
  }}
  set guarded {{
    type ifname
    {guard}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
{input}    iifname "{bridges}*" goto guest_input
  }}
  chain guest_input {{
    ct state established,related accept
    meta nfproto ipv4 udp sport 68 udp dport 67 accept
    iifname . ip daddr @gateways meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname . ip daddr @gateways icmp type echo-request accept
    pkttype != host drop
    reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
{forward}    oifname "{bridges}*" goto to_guest
    iifname "{bridges}*" goto from_guest
    iifname @guarded oifname != "{ANY_BRIDGE}*" ct state new drop
  }}
  chain from_guest {{
    meta nfproto ipv6 drop
    ct state invalid drop
    tcp flags syn tcp option maxseg size set rt mtu
    accept
  }}
  chain to_guest {{
    tcp flags syn tcp option maxseg size set rt mtu
    ct state established,related accept
    reject with icmpx admin-prohibited
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{nat}  }}
}}
"#
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_cannot_change_the_ruleset() {
        for (name, expect) in [("eth0", true), ("eth0.5", true), ("a\"b", false), ("eth*", false)] {
            assert_eq!(quotable(name), expect, "{name}");
        }
        let instance = Instance::new("a").unwrap();
        let guarded = BTreeSet::from(["eth*".to_owned(), "eth1".to_owned()]);
        let (networks, taps) = Default::default();
        let text = Ruleset { networks, taps, uplinks: guarded }.text(&instance);
        assert!(text.contains("elements = { \"eth1\" }"));
        assert!(!text.contains("eth*"));
    }
}
