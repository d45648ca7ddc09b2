//! Pure. The bridge table: what a guest may send, and what crosses to other servers and
//! to VLANs of the physical network.

use std::fmt::Write;

use super::sets::{Sets, elements};
use super::{Ruleset, quotable};
use crate::names::Instance;

pub fn table(out: &mut String, instance: &Instance, rules: &Ruleset) {
    let sets = Sets::of(rules, &Ruleset::default());
    let [macs, owners, heard_macs, heard, kept_macs, kept] =
        [sets.macs, sets.owners, sets.heard_macs, sets.heard, sets.kept_macs, sets.kept]
            .map(|s| elements(s.into_iter()));
    let spans = rules.spans().map(|(n, s)| (n, &s.device));
    let ways: Vec<_> = spans.chain(rules.trunks()).collect();
    let gateway_macs = elements(ways.iter().map(|(n, port)| format!("\"{port}\" . {}", n.mac)));
    let gateways = elements(ways.iter().map(|(n, port)| format!("\"{port}\" . {}", n.gateway)));
    let (table, taps) = (instance.table(), instance.tap_prefix());
    let overlays = instance.overlay_prefix();
    let (mut from_trunk, mut to_trunk) = (String::new(), String::new());
    for (_, port) in rules.trunks().filter(|(_, port)| quotable(port)) {
        let _ = writeln!(from_trunk, "    iifname \"{port}\" goto from_trunk");
        let _ = writeln!(to_trunk, "    oifname \"{port}\" goto to_others");
    }
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
  set heard_macs {{
    type ifname . ether_addr
    {heard_macs}
  }}
  set heard {{
    type ifname . ether_addr . ipv4_addr
    {heard}
  }}
  set kept_macs {{
    type ifname . ether_addr
    {kept_macs}
  }}
  set kept {{
    type ifname . ipv4_addr
    {kept}
  }}
  set gateway_macs {{
    type ifname . ether_addr
    {gateway_macs}
  }}
  set gateways {{
    type ifname . ipv4_addr
    {gateways}
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{taps}*" goto guest
    iifname "{overlays}*" goto from_servers
{from_trunk}  }}
  chain guest {{
    vlan id 0-4095 drop
    iifname . ether saddr != @macs drop
    ether type arp goto guest_arp
    ether type ip goto guest_ip
    ether type 0x8035 ether daddr ff:ff:ff:ff:ff:ff accept
    drop
  }}
  chain guest_arp {{
    jump arp_form
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
  chain arp_form {{
    arp htype != 1 drop
    arp ptype != ip drop
    arp hlen != 6 drop
    arp plen != 4 drop
  }}
  chain from_servers {{
    vlan id 0-4095 drop
    iifname . ether saddr != @heard_macs drop
    iifname . ether daddr @gateway_macs drop
    ether type arp goto from_servers_arp
    ether type ip goto from_servers_ip
    ether type 0x8035 ether daddr ff:ff:ff:ff:ff:ff accept
    drop
  }}
  chain from_servers_arp {{
    jump arp_form
    iifname . arp daddr ip @gateways drop
    iifname . arp saddr ether . arp saddr ip @heard accept
    iifname . arp saddr ether @heard_macs arp saddr ip 0.0.0.0 accept
    drop
  }}
  chain from_servers_ip {{
    udp dport {{ 67, 68 }} drop
    iifname . ether saddr . ip saddr @heard accept
    drop
  }}
  chain from_trunk {{
    vlan id 0-4095 drop
    pkttype host drop
    iifname . ether saddr @kept_macs drop
    iifname . ether saddr @gateway_macs drop
    iifname . ether daddr @gateway_macs drop
    ether type arp goto from_trunk_arp
    ether type ip goto from_trunk_ip
    ether type 0x8035 ether daddr ff:ff:ff:ff:ff:ff accept
    drop
  }}
  chain from_trunk_arp {{
    jump arp_form
    iifname . arp saddr ether @kept_macs drop
    iifname . arp saddr ether @gateway_macs drop
    iifname . arp saddr ip @kept drop
    iifname . arp saddr ip @gateways drop
    iifname . arp daddr ip @gateways drop
    accept
  }}
  chain from_trunk_ip {{
    udp dport {{ 67, 68 }} drop
    iifname . ip saddr @kept drop
    iifname . ip saddr @gateways drop
    iifname . ip daddr @gateways drop
    accept
  }}
  chain postrouting {{
    type filter hook postrouting priority 300; policy accept;
    oifname "{overlays}*" goto to_others
{to_trunk}  }}
  chain to_others {{
    oifname . ether saddr @gateway_macs drop
    ether type arp oifname . arp daddr ip @gateways drop
    ether type ip udp dport {{ 67, 68 }} drop
  }}
}}
"#
    );
}
