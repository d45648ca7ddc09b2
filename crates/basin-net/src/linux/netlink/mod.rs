//! Interfaces, addresses and routes over rtnetlink.

mod fdb;
mod read;
mod trunk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use basin_model::MacAddr;
use futures::{TryStream, TryStreamExt};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{BridgeStpState, LinkAttribute, LinkMessage, Stats64};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{
    Error, Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVxlan,
    RouteMessageBuilder,
};

use crate::fabric::NetError;
use crate::names::GROUP;
use crate::state::{Link, PortSettings, Route, VxlanSettings};
use crate::trunk::TABLE;
use read::{link, routes_of, table_of};

/// A netlink socket in the network namespace that it was opened in.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
    /// The kernel makes one list at a time on a socket, and is busy for all others.
    listing: Arc<tokio::sync::Mutex<()>>,
}

/// How often to ask again while the kernel still makes a list nobody waits for any more.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

fn refused(what: &str) -> impl FnOnce(Error) -> NetError + '_ {
    move |e| NetError::Refused {
        what: what.to_owned(),
        why: match &e {
            Error::NetlinkError(m) => m.to_io().to_string(),
            other => other.to_string(),
        },
    }
}

/// Success when the kernel says that it is so already.
fn unless(result: Result<(), Error>, fine: &[i32], what: &str) -> Result<(), NetError> {
    match result {
        Err(Error::NetlinkError(m)) if fine.contains(&-m.raw_code()) => Ok(()),
        other => other.map_err(refused(what)),
    }
}

impl Netlink {
    /// Inside a tokio runtime.
    pub fn open() -> Result<Netlink, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| {
            NetError::Refused { what: "opening netlink".into(), why: e.to_string() }
        })?;
        tokio::spawn(connection);
        Ok(Netlink { handle, listing: Arc::default() })
    }

    async fn list<T, S>(&self, what: &str, ask: impl Fn() -> S) -> Result<Vec<T>, NetError>
    where
        S: TryStream<Ok = T, Error = Error>,
    {
        let _alone = self.listing.lock().await;
        let mut tries = 0;
        loop {
            match ask().try_collect().await {
                Err(Error::NetlinkError(m))
                    if m.raw_code() == -libc::EBUSY && tries < BUSY_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                result => return result.map_err(refused(what)),
            }
        }
    }

    pub async fn links(&self) -> Result<BTreeMap<String, Link>, NetError> {
        const WHAT: &str = "listing network interfaces";
        let messages: Vec<LinkMessage> =
            self.list(WHAT, || self.handle.link().get().execute()).await?;
        let mut links: BTreeMap<String, Link> = messages.iter().filter_map(link).collect();
        let names: BTreeMap<u32, String> =
            links.iter().map(|(name, l)| (l.index, name.clone())).collect();
        let ask = || {
            let mut get = self.handle.address().get();
            get.message_mut().header.family = AddressFamily::Inet;
            get.execute()
        };
        let addresses = self.list(WHAT, ask).await?;
        for message in addresses {
            // The peer of a point-to-point link is `Address`; `Local` is ours.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(v4)) => Some(*v4),
                _ => None,
            });
            let net = local.and_then(|a| Ipv4Net::new(a, message.header.prefix_len).ok());
            let link = names.get(&message.header.index).and_then(|n| links.get_mut(n));
            if let (Some(net), Some(link)) = (net, link) {
                link.addresses.insert(net);
            }
        }
        Ok(links)
    }

    /// Those of all tables, and apart from them those of the table of answers.
    pub async fn routes(
        &self,
        links: &BTreeMap<String, Link>,
    ) -> Result<(Vec<Route>, BTreeSet<Route>), NetError> {
        let names: BTreeMap<u32, &String> = links.iter().map(|(n, l)| (l.index, n)).collect();
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let ask = || self.handle.route().get(request.clone()).execute();
        let messages: Vec<RouteMessage> = self.list("listing routes", ask).await?;
        let (mut routes, mut answers) = (BTreeSet::new(), BTreeSet::new());
        for message in &messages {
            let found = routes_of(message, &names);
            if table_of(message) == TABLE { &mut answers } else { &mut routes }.extend(found);
        }
        Ok((routes.into_iter().collect(), answers))
    }

    pub async fn index(&self, name: &str) -> Result<Option<u32>, NetError> {
        Ok(self.message(name).await?.map(|m| m.header.index))
    }

    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetError> {
        Ok(self.message(name).await?.as_ref().and_then(link).map(|(_, l)| l))
    }

    pub async fn stats(&self, name: &str) -> Result<Option<Stats64>, NetError> {
        let found = self.message(name).await?;
        Ok(found.and_then(|m| {
            m.attributes.into_iter().find_map(|a| match a {
                LinkAttribute::Stats64(stats) => Some(stats),
                _ => None,
            })
        }))
    }

    async fn message(&self, name: &str) -> Result<Option<LinkMessage>, NetError> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Err(Error::NetlinkError(m)) if -m.raw_code() == libc::ENODEV => Ok(None),
            other => other.map_err(refused(&format!("looking at {name}"))),
        }
    }

    async fn must(&self, name: &str) -> Result<u32, NetError> {
        self.index(name).await?.ok_or_else(|| NetError::Refused {
            what: format!("changing interface {name}"),
            why: "it vanished".into(),
        })
    }

    /// Makes a bridge, down, marked as Basin's from its first moment.
    pub async fn create_bridge(&self, name: &str) -> Result<(), NetError> {
        let message = LinkMessageBuilder::<LinkBridge>::new(name)
            .link_group(GROUP)
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
            .no_linklocal_learn(true)
            .build();
        let made = self.handle.link().add(message).execute().await;
        made.map_err(refused(&format!("making bridge {name}")))
    }

    pub async fn configure_bridge(
        &self,
        name: &str,
        alias: &str,
        mac: MacAddr,
        mtu: u32,
    ) -> Result<(), NetError> {
        let index = self.must(name).await?;
        let what = format!("setting up bridge {name}");
        let change = || LinkMessageBuilder::<LinkBridge>::new(name).index(index);
        // STP off first: while it is on, the kernel refuses a delay of nothing.
        let stp = change().stp_state(BridgeStpState::Disabled).build();
        let rest = change().forward_delay(0).mcast_snooping(false).no_linklocal_learn(true).build();
        for settings in [stp, rest] {
            // RTM_NEWLINK without CREATE: the request that carries a kind's own settings.
            let set = self.handle.link().set_port(settings).execute().await;
            set.map_err(refused(&what))?;
        }
        let common =
            LinkUnspec::new_with_index(index).address(mac.0.to_vec()).mtu(mtu).alias(alias).build();
        self.handle.link().set(common).execute().await.map_err(refused(&what))
    }

    pub async fn label_tap(&self, name: &str, alias: &str) -> Result<(), NetError> {
        let index = self.must(name).await?;
        let message = LinkUnspec::new_with_index(index).alias(alias).build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(refused(&format!("labelling tap {name}")))
    }

    /// Makes a VXLAN port, down, marked as Basin's from its first moment.
    pub async fn create_overlay(
        &self,
        name: &str,
        settings: &VxlanSettings,
    ) -> Result<(), NetError> {
        let VxlanSettings { vni, local, port, learning } = *settings;
        let mut message = LinkVxlan::new(name, vni).link_group(GROUP).port(port).learning(learning);
        if let Some(local) = local {
            message = message.local(local);
        }
        let made = self.handle.link().add(message.build()).execute().await;
        made.map_err(|e| match &e {
            Error::NetlinkError(m) if -m.raw_code() == libc::EEXIST => NetError::Refused {
                what: format!("making VXLAN port {name}"),
                why: format!(
                    "another VXLAN interface of this server has the identifier {vni} on UDP port \
                     {port}; `ip -d link show type vxlan` names it"
                ),
            },
            Error::NetlinkError(m) if -m.raw_code() == libc::EOPNOTSUPP => NetError::Refused {
                what: format!("making VXLAN port {name}"),
                why: "the kernel has no VXLAN: load the kernel module vxlan".into(),
            },
            _ => refused(&format!("making VXLAN port {name}"))(e),
        })
    }

    pub async fn attach_port(
        &self,
        name: &str,
        bridge: &str,
        alias: &str,
        mtu: u32,
        settings: PortSettings,
    ) -> Result<(), NetError> {
        let index = self.must(name).await?;
        let message = LinkUnspec::new_with_index(index).alias(alias).build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(refused(&format!("labelling {name}")))?;
        self.attach(name, bridge, mtu, settings).await
    }

    /// Makes an interface a port of a bridge, and brings it up.
    pub async fn attach(
        &self,
        name: &str,
        bridge: &str,
        mtu: u32,
        settings: PortSettings,
    ) -> Result<(), NetError> {
        let what = format!("putting {name} on bridge {bridge}");
        let index = self.must(name).await?;
        let bridge = self.must(bridge).await?;
        let join = LinkUnspec::new_with_index(index).controller(bridge).mtu(mtu).build();
        self.handle.link().set(join).execute().await.map_err(refused(&what))?;
        let PortSettings { learning, flood } = settings;
        let port = LinkBridgePort::new(index).learning(learning).flood(flood).build();
        self.handle.link().set_port(port).execute().await.map_err(refused(&what))?;
        self.up(name).await
    }

    pub async fn up(&self, name: &str) -> Result<(), NetError> {
        let index = self.must(name).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(refused(&format!("bringing up {name}")))
    }

    pub async fn delete(&self, name: &str, index: u32) -> Result<(), NetError> {
        let deleted = self.handle.link().del(index).execute().await;
        unless(deleted, &[libc::ENODEV], &format!("removing {name}"))
    }

    pub async fn add_address(&self, name: &str, address: Ipv4Net) -> Result<(), NetError> {
        let index = self.must(name).await?;
        let what = format!("giving {name} the address {address}");
        let add =
            self.handle.address().add(index, IpAddr::V4(address.addr()), address.prefix_len());
        unless(add.execute().await, &[libc::EEXIST], &what)
    }

    pub async fn remove_address(&self, name: &str, address: Ipv4Net) -> Result<(), NetError> {
        let index = self.must(name).await?;
        let what = format!("taking the address {address} from {name}");
        let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address.addr(), address.prefix_len())
            .build();
        let deleted = self.handle.address().del(message).execute().await;
        unless(deleted, &[libc::EADDRNOTAVAIL], &what)
    }
}
