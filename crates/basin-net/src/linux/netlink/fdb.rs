//! Forwarding entries: which port of a bridge, and which server behind a VXLAN port.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use basin_model::MacAddr;
use futures::StreamExt;
use rtnetlink::Error;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, refused, unless};
use crate::fabric::NetError;
use crate::overlay::Change;
use crate::state::{Entry, FLOOD, Forward, Link};

impl Netlink {
    /// Adds to each link what bridges and VXLAN ports hold there.
    pub async fn forwarding(&self, links: &mut BTreeMap<String, Link>) -> Result<(), NetError> {
        let names: BTreeMap<u32, String> =
            links.iter().map(|(name, l)| (l.index, name.clone())).collect();
        let ask = || self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        let messages = self.list("listing forwarding entries", || ask().execute()).await?;
        for message in &messages {
            let link = names.get(&message.header.ifindex).and_then(|n| links.get_mut(n));
            let Some(link) = link else { continue };
            match read(message) {
                Some(Found::Entry(mac, entry)) => {
                    link.entries.insert(mac, entry);
                }
                Some(Found::Forward(forward)) => {
                    link.forwards.insert(forward);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Has the bridge send frames for `mac` to this port.
    pub async fn pin(&self, port: &str, mac: MacAddr, sticky: bool) -> Result<(), NetError> {
        let mut message = entry(self.must(port).await?, mac, NeighbourFlags::Controller);
        // Kept, and not the port's own: frames for it still leave through the port.
        message.header.state = NeighbourState::Noarp;
        if sticky {
            message.header.flags |= NeighbourFlags::Sticky;
        }
        let done = self.send(RouteNetlinkMessage::NewNeighbour(message), NLM_F_REPLACE).await;
        done.map_err(refused(&format!("holding {mac} at {port}")))
    }

    pub async fn unpin(&self, port: &str, mac: MacAddr) -> Result<(), NetError> {
        let message = entry(self.must(port).await?, mac, NeighbourFlags::Controller);
        let done = self.send(RouteNetlinkMessage::DelNeighbour(message), 0).await;
        unless(done, &[libc::ENOENT], &format!("letting go of {mac} at {port}"))
    }

    pub async fn set_forwards(&self, port: &str, change: &Change) -> Result<(), NetError> {
        let index = self.must(port).await?;
        let what = |f: &Forward| format!("sending frames for {} to {}", f.mac, f.to);
        for forward in &change.set {
            let how = if forward.mac == FLOOD { NLM_F_APPEND } else { NLM_F_REPLACE };
            let message = RouteNetlinkMessage::NewNeighbour(destination(index, forward));
            let done = self.send(message, how).await;
            unless(done, &[libc::EEXIST], &what(forward))?;
        }
        for forward in &change.remove {
            let message = RouteNetlinkMessage::DelNeighbour(destination(index, forward));
            let done = self.send(message, 0).await;
            unless(done, &[libc::ENOENT], &format!("no longer {}", what(forward)))?;
        }
        Ok(())
    }

    async fn send(&self, message: RouteNetlinkMessage, how: u16) -> Result<(), Error> {
        let create = if how == 0 { 0 } else { NLM_F_CREATE };
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | create | how;
        let mut answer = self.handle.clone().request(request)?;
        while let Some(message) = answer.next().await {
            if let NetlinkPayload::Error(e) = message.payload
                && e.code.is_some()
            {
                return Err(Error::NetlinkError(e));
            }
        }
        Ok(())
    }
}

fn entry(index: u32, mac: MacAddr, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = flags;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn destination(index: u32, forward: &Forward) -> NeighbourMessage {
    let mut message = entry(index, forward.mac, NeighbourFlags::Own);
    message.header.state =
        if forward.fixed { NeighbourState::Permanent } else { NeighbourState::Reachable };
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(forward.to)));
    message
}

enum Found {
    Entry(MacAddr, Entry),
    Forward(Forward),
}

fn read(message: &NeighbourMessage) -> Option<Found> {
    let (mut mac, mut to, mut on_bridge) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => to = Some(*v4),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                to = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::Controller(_) => on_bridge = true,
            _ => {}
        }
    }
    let (mac, state, flags) = (mac?, message.header.state, message.header.flags);
    if on_bridge {
        return match state {
            // The port's own.
            NeighbourState::Permanent => None,
            _ if flags.contains(NeighbourFlags::Sticky) => Some(Found::Entry(mac, Entry::Sticky)),
            NeighbourState::Noarp => Some(Found::Entry(mac, Entry::Fixed)),
            _ => Some(Found::Entry(mac, Entry::Learned)),
        };
    }
    let fixed = matches!(state, NeighbourState::Permanent);
    to.map(|to| Found::Forward(Forward { mac, to, fixed }))
}
