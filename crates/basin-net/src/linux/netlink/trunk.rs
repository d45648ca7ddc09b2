//! VLAN ports, and how the server's answers find the guests of a VLAN.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, IpVersion, LinkUnspec, LinkVlan, RouteMessageBuilder};

use super::{Netlink, refused, unless};
use crate::fabric::NetError;
use crate::names::GROUP;
use crate::state::VlanSettings;
use crate::trunk::{PRIORITY, TABLE};

impl Netlink {
    /// Makes a VLAN port, down, marked as Basin's from its first moment.
    pub async fn create_trunk(&self, name: &str, settings: VlanSettings) -> Result<(), NetError> {
        let VlanSettings { vlan, parent } = settings;
        let message = LinkVlan::new(name, parent, vlan).link_group(GROUP).build();
        let made = self.handle.link().add(message).execute().await;
        made.map_err(|e| match &e {
            Error::NetlinkError(m) if -m.raw_code() == libc::EOPNOTSUPP => NetError::Refused {
                what: format!("making VLAN port {name}"),
                why: "the kernel has no VLANs: load the kernel module 8021q".into(),
            },
            Error::NetlinkError(m) if -m.raw_code() == libc::EEXIST => NetError::Refused {
                what: format!("making VLAN port {name}"),
                why: format!(
                    "another interface of this server has VLAN {vlan} of the same trunk; \
                     `ip -d link show type vlan` names it"
                ),
            },
            _ => refused(&format!("making VLAN port {name}"))(e),
        })
    }

    /// Makes an interface of the operator's a port of the bridge. Its settings are those
    /// that a port has by itself.
    pub async fn join(&self, device: &str, bridge: &str) -> Result<(), NetError> {
        let what = format!("putting {device} on bridge {bridge}");
        let (index, bridge) = (self.must(device).await?, self.must(bridge).await?);
        let join = LinkUnspec::new_with_index(index).controller(bridge).build();
        self.handle.link().set(join).execute().await.map_err(refused(&what))
    }

    /// Gives it back.
    pub async fn leave(&self, device: &str) -> Result<(), NetError> {
        let Some(index) = self.index(device).await? else { return Ok(()) };
        let leave = LinkUnspec::new_with_index(index).nocontroller().build();
        let left = self.handle.link().set(leave).execute().await;
        left.map_err(refused(&format!("taking {device} off its bridge")))
    }

    /// Addresses from which the server looks for its way in the table of answers.
    pub async fn answer_rules(&self) -> Result<BTreeSet<Ipv4Addr>, NetError> {
        let ask = || self.handle.rule().get(IpVersion::V4).execute();
        let rules: Vec<RuleMessage> = self.list("listing routing rules", ask).await?;
        Ok(rules.iter().filter_map(source).collect())
    }

    pub async fn add_answer_rule(&self, from: Ipv4Addr) -> Result<(), NetError> {
        let rule = self.handle.rule().add().v4().source_prefix(from, 32);
        let rule = rule.table_id(TABLE).priority(PRIORITY).action(RuleAction::ToTable);
        unless(rule.execute().await, &[libc::EEXIST], &format!("answering from {from}"))
    }

    pub async fn remove_answer_rule(&self, from: Ipv4Addr) -> Result<(), NetError> {
        let ask = || self.handle.rule().get(IpVersion::V4).execute();
        let rules: Vec<RuleMessage> = self.list("listing routing rules", ask).await?;
        for rule in rules.into_iter().filter(|r| source(r) == Some(from)) {
            let gone = self.handle.rule().del(rule).execute().await;
            unless(gone, &[libc::ENOENT], &format!("no longer answering from {from}"))?;
        }
        Ok(())
    }

    pub async fn add_answer_route(
        &self,
        device: &str,
        to: Ipv4Net,
        from: Ipv4Addr,
    ) -> Result<(), NetError> {
        let index = self.must(device).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .output_interface(index)
            .pref_source(from)
            .scope(RouteScope::Link)
            .table_id(TABLE)
            .build();
        let added = self.handle.route().add(route).execute().await;
        unless(added, &[libc::EEXIST], &format!("answering to {to} by {device}"))
    }
}

/// The address of a rule of the table of answers.
fn source(rule: &RuleMessage) -> Option<Ipv4Addr> {
    let (mut from, mut table) = (None, None);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Source(IpAddr::V4(v4)) => from = Some(*v4),
            RuleAttribute::Table(id) => table = Some(*id),
            _ => {}
        }
    }
    from.filter(|_| table == Some(TABLE) && rule.header.src_len == 32)
}
