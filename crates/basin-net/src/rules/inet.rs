//! Pure. The inet table: networks apart, the server hidden, addresses translated.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::sets::{Sets, elements};
use super::{Guarded, Ruleset, quotable};
use crate::names::{ANY_BRIDGE, Instance};

pub fn table(out: &mut String, instance: &Instance, rules: &Ruleset) {
    let (mut input, mut forward, mut nat) = (String::new(), String::new(), String::new());
    let (hear, tunnel) = overlays(rules);
    for Guarded { bridge, subnet, gateway, trunk, .. } in &rules.networks {
        let _ =
            writeln!(input, "    iifname != {{ \"lo\", \"{bridge}\" }} ip daddr {gateway} drop");
        let _ = writeln!(forward, "    iifname \"{bridge}\" oifname \"{bridge}\" accept");
        if trunk.is_some() {
            // The physical network has a router, and this server is none for it.
            let _ = writeln!(forward, "    iifname \"{bridge}\" drop");
            let _ = writeln!(forward, "    oifname \"{bridge}\" drop");
            continue;
        }
        let _ = writeln!(forward, "    iifname \"{bridge}\" ip saddr != {subnet} drop");
        let _ = writeln!(nat, "    ip saddr {subnet} oifname != \"{bridge}\" masquerade");
    }
    let networks = &rules.networks;
    let gateways = elements(networks.iter().map(|n| format!("\"{}\" . {}", n.bridge, n.gateway)));
    let guard = rules.uplinks.iter().filter(|d| quotable(d)).map(|d| format!("\"{d}\""));
    let guard = elements(guard);
    let sets = Sets::of(rules, &Ruleset::default());
    let [peers, paths] = [sets.peers, sets.paths].map(|s| elements(s.into_iter()));
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
  set peers {{
    type ipv4_addr
    {peers}
  }}
  set paths {{
    type ipv4_addr . ipv4_addr
    {paths}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
{hear}{input}    iifname "{bridges}*" goto guest_input
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
{tunnel}    tcp flags syn tcp option maxseg size set rt mtu
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

/// Rules that hear this daemon's networks from its servers only, and keep a guest
/// from speaking to another server as if it were this one, whose address it has
/// outside. Other software's VXLAN on the same port is left alone.
fn overlays(rules: &Ruleset) -> (String, String) {
    let mut vnis: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for (_, span) in rules.spans() {
        vnis.entry(span.port).or_default().push(span.vni.to_string());
    }
    let (mut hear, mut tunnel) = (String::new(), String::new());
    for (port, vnis) in vnis {
        // The identifier is 24 bits behind the headers of UDP (64) and VXLAN (32).
        let vnis = vnis.join(", ");
        let _ = writeln!(
            hear,
            "    udp dport {port} @th,96,24 {{ {vnis} }} ip saddr . ip daddr != @paths drop"
        );
        let _ = writeln!(tunnel, "    udp dport {port} ip daddr @peers drop");
    }
    (hear, tunnel)
}
