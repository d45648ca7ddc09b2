//! Network interfaces as files: taps, and the frames that arrive at an interface.
//! Both carry the header in which the kernel notes checksums that are not made yet.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::net::if_::if_nametoindex;

/// A new tap in the network this thread is in; it goes when it is closed.
pub fn tap(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an ifreq is plain data, and zeroes are one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: an open descriptor and a request that outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file.into())
}

/// Gets what arrives at an interface of the network this thread is in, and sends from it.
pub(crate) fn frames(interface: &str) -> io::Result<File> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved. Without a protocol, nothing arrives before bind.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: a descriptor that was just made and that nobody else has.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        let (on, size) = (1i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: an int that outlives the call, and its size.
        check(unsafe {
            libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const on).cast(), size)
        })?;
    }
    // SAFETY: a sockaddr_ll is plain data, and zeroes are one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = if_nametoindex(interface)? as i32;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: an address that outlives the call, and its size.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), size) })?;
    Ok(file)
}

/// Reads and writes return at once.
pub(crate) fn never_wait(file: &File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
