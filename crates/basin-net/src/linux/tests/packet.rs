//! A guest in user space: frames in and out of a tap.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use basin_model::{MacAddr, NicId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::fabric::Lease;

pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
/// The header before each frame of a tap with IFF_VNET_HDR.
const VNET: usize = 10;
/// How long a frame may take that must come; how long one is waited for that must not.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(250);

pub struct Guest {
    tap: File,
    pub nic: NicId,
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
}

pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    let bytes: Vec<u8> = parts.concat();
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

pub fn ethernet(to: MacAddr, from: MacAddr, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes(), payload].concat()
}

pub fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    let check = sum(&[&header]);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    [&header, payload].concat()
}

/// A UDP datagram without a checksum, as IPv4 allows.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

pub fn ping(number: u16) -> Vec<u8> {
    let mut echo = vec![8, 0, 0, 0, 0x77, 0x77];
    echo.extend(number.to_be_bytes());
    echo.extend(b"basin");
    let check = sum(&[&echo]);
    echo[2..4].copy_from_slice(&check.to_be_bytes());
    echo
}

/// A TCP SYN with a right checksum.
pub fn syn(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40];
    segment.extend(port.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let check = sum(&[&from.octets(), &to.octets(), &[0, 6, 0, 20], &segment]);
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    segment
}

impl Guest {
    pub fn new(fd: OwnedFd, nic: NicId, lease: &Lease, gateway: Ipv4Addr) -> Guest {
        Guest { tap: fd.into(), nic, mac: lease.mac, address: lease.address, gateway }
    }

    pub fn send(&self, frame: &[u8]) {
        let whole = [&[0u8; VNET][..], frame].concat();
        assert_eq!((&self.tap).write(&whole).unwrap(), whole.len());
    }

    pub fn receive(&self, within: Duration) -> Option<Vec<u8>> {
        let mut watched = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(within).unwrap();
        if poll(&mut watched, wait).unwrap() == 0 {
            return None;
        }
        let mut buffer = vec![0; 65_600];
        let length = (&self.tap).read(&mut buffer).unwrap();
        Some(buffer[VNET..length].to_vec())
    }

    /// The first frame that `pick` makes something of.
    pub fn find<T>(&self, within: Duration, pick: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let frame = self.receive(left)?;
            if let Some(found) = pick(&frame) {
                return Some(found);
            }
        }
    }

    pub fn hears<T>(&self, pick: impl Fn(&[u8]) -> Option<T>) -> T {
        self.find(PATIENCE, pick).expect("a frame that must come did not")
    }

    pub fn hears_nothing<T>(&self, pick: impl Fn(&[u8]) -> Option<T>) {
        assert!(self.find(SILENCE, pick).is_none(), "a frame came that must not");
    }

    pub fn send_ip(&self, via: MacAddr, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let packet = ip(self.address, to, protocol, payload);
        self.send(&ethernet(via, self.mac, 0x0800, &packet));
    }

    pub fn arp(&self, sender: MacAddr, address: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
        body.extend(sender.0);
        body.extend(address.octets());
        body.extend([0; 6]);
        body.extend(target.octets());
        ethernet(BROADCAST, self.mac, 0x0806, &body)
    }

    /// Who has this address?
    pub fn resolve(&self, target: Ipv4Addr) -> MacAddr {
        self.send(&self.arp(self.mac, self.address, target));
        self.hears(|f| {
            let reply = f.get(12..14)? == [8, 6] && f.get(20..22)? == [0, 2];
            (reply && f.get(28..32)? == target.octets())
                .then(|| MacAddr(f[22..28].try_into().unwrap()))
        })
    }

    /// Answers the server's ARP requests for the guest's own address, as its kernel would.
    pub fn announce(&self) {
        self.send(&self.arp(self.mac, self.address, self.address));
    }

    /// Answers whoever asks who has the guest's address.
    pub fn answer_arp(&self) {
        let asker = self.hears(|f| {
            let asks = f.get(12..14)? == [8, 6] && f.get(20..22)? == [0, 1];
            let mine = f.get(38..42)? == self.address.octets();
            (asks && mine).then(|| f[22..32].to_vec())
        });
        let to = MacAddr(asker[..6].try_into().unwrap());
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 2];
        body.extend(self.mac.0);
        body.extend(self.address.octets());
        body.extend(asker);
        self.send(&ethernet(to, self.mac, 0x0806, &body));
    }

    /// What QEMU sends from a machine's new place (RARP, from its own MAC to all).
    pub fn arrive(&self) {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 3];
        body.extend(self.mac.0);
        body.extend([0; 4]);
        body.extend(self.mac.0);
        body.extend([0; 4]);
        body.resize(46, 0);
        self.send(&ethernet(BROADCAST, self.mac, 0x8035, &body));
    }

    /// A datagram straight to another guest of the network.
    pub fn tell(&self, to: &Guest, text: &[u8]) {
        self.send_ip(to.mac, to.address, 17, &udp(1000, 2000, text));
    }

    /// Waits for a datagram with this text.
    pub fn is_told(&self, text: &[u8]) {
        self.hears(|f| told(f, text));
    }

    pub fn is_not_told(&self, text: &[u8]) {
        self.hears_nothing(|f| told(f, text));
    }

    /// Forgets all frames that wait.
    pub fn drain(&self) {
        while self.receive(Duration::ZERO).is_some() {}
    }

    pub fn dhcp(&self, kind: u8, requested: Option<Ipv4Addr>) {
        let mut body = vec![0u8; 236];
        body[0] = 1;
        body[1] = 1;
        body[2] = 6;
        body[4..8].copy_from_slice(&[1, 2, 3, 4]);
        body[10] = 0x80; // answer by broadcast
        body[28..34].copy_from_slice(&self.mac.0);
        body.extend([99, 130, 83, 99, 53, 1, kind, 55, 5, 1, 3, 6, 15, 26]);
        if let Some(address) = requested {
            body.extend([54, 4]);
            body.extend(self.gateway.octets());
            body.extend([50, 4]);
            body.extend(address.octets());
        }
        body.push(255);
        let packet = ip(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &udp(68, 67, &body));
        self.send(&ethernet(BROADCAST, self.mac, 0x0800, &packet));
    }

    /// Discover, offer, request, acknowledgement; the address that was given.
    pub fn acquire(&self) -> Ipv4Addr {
        self.bind().address
    }

    pub fn bind(&self) -> DhcpReply {
        self.bind_by(self.gateway)
    }

    /// Where another machine is the router.
    pub fn bind_by(&self, router: Ipv4Addr) -> DhcpReply {
        self.dhcp(1, None);
        let offer = self.hears(|f| dhcp_reply(f, 2));
        self.dhcp(3, Some(offer.address));
        let ack = self.hears(|f| dhcp_reply(f, 5));
        assert_eq!(ack.address, offer.address);
        assert_eq!(ack.option(3), Some(&router.octets()[..]), "router");
        assert_eq!(ack.option(6), Some(&self.gateway.octets()[..]), "DNS");
        ack
    }

    /// Asks the gateway a question; the answer's data of the first record.
    pub fn ask(&self, name: &str, kind: u16) -> Option<Vec<u8>> {
        let mut query = vec![0xba, 0x51, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.push(0);
        query.extend(kind.to_be_bytes());
        query.extend([0, 1]);
        let gateway = self.resolve(self.gateway);
        self.announce();
        self.send_ip(gateway, self.gateway, 17, &udp(5353, 53, &query));
        let answer = self.hears(|f| {
            (udp_payload(f)?.0 == 53 && udp_payload(f)?.1.get(..2)? == [0xba, 0x51])
                .then(|| udp_payload(f).unwrap().1.to_vec())
        });
        if answer[6..8] == [0, 0] {
            return None;
        }
        // The name is a pointer to the question.
        let record = &answer[query.len()..];
        let length = usize::from(u16::from_be_bytes([record[10], record[11]]));
        Some(record[12..12 + length].to_vec())
    }
}

fn told(frame: &[u8], text: &[u8]) -> Option<()> {
    (udp_payload(frame)? == (1000, text)).then_some(())
}

/// Source port and payload of a UDP datagram.
pub fn udp_payload(frame: &[u8]) -> Option<(u16, &[u8])> {
    let good = frame.get(12..14)? == [8, 0] && *frame.get(23)? == 17;
    let port = u16::from_be_bytes([*frame.get(34)?, *frame.get(35)?]);
    good.then(|| Some((port, frame.get(42..)?))).flatten()
}

/// Who answered an echo request.
pub fn pong(frame: &[u8]) -> Option<Ipv4Addr> {
    let good = frame.get(12..14)? == [8, 0] && *frame.get(23)? == 1 && *frame.get(34)? == 0;
    let from: [u8; 4] = frame.get(26..30)?.try_into().ok()?;
    good.then(|| Ipv4Addr::from(from))
}

pub struct DhcpReply {
    pub address: Ipv4Addr,
    options: Vec<u8>,
}

impl DhcpReply {
    pub fn option(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest = &self.options[..];
        while let [kind, length, tail @ ..] = rest {
            let (data, after) = tail.split_at_checked(usize::from(*length))?;
            if *kind == wanted {
                return Some(data);
            }
            rest = after;
        }
        None
    }
}

pub fn dhcp_reply(frame: &[u8], kind: u8) -> Option<DhcpReply> {
    let (67, body) = udp_payload(frame)? else { return None };
    let address: [u8; 4] = body.get(16..20)?.try_into().ok()?;
    let reply = DhcpReply { address: address.into(), options: body.get(240..)?.to_vec() };
    (reply.option(53)? == [kind]).then_some(reply)
}
