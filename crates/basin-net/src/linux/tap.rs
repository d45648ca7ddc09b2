//! Taps: interfaces whose other end is a file that QEMU holds.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::fabric::NetError;

/// A request about the interface of this name.
fn named(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero bytes are a valid ifreq, which is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Has the kernel act on a bridge's new carrier now. By itself it may take up to a
/// second to, and until then drops what the server sends into the network.
pub fn settle(bridge: &str) -> io::Result<()> {
    const ETHTOOL_GLINK: u32 = 0xa;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut answer = [ETHTOOL_GLINK, 0];
    let mut request = named(bridge)?;
    request.ifr_ifru.ifru_data = (&raw mut answer).cast();
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the socket is open; the kernel reads the ifreq and writes a struct
    // ethtool_value, two u32, to where its pointer points. Both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a tap that lives as long as the returned file is open anywhere.
pub fn create(name: &str) -> Result<OwnedFd, NetError> {
    let refused = |e: io::Error| NetError::Refused {
        what: format!("making tap {name}"),
        why: match e.raw_os_error() {
            Some(libc::EBUSY) => "a running machine holds an interface of this name".into(),
            Some(libc::ENOENT) => "/dev/net/tun is missing: load the kernel module tun".into(),
            _ => e.to_string(),
        },
    };
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(refused)?;
    let mut request = named(name).map_err(refused)?;
    // Exclusive: never the tap of something else.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the file is open and TUNSETIFF reads and writes one ifreq, which lives
    // until the call returns.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    Ok(file.into())
}
