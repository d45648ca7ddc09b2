//! Makes a port of the namespace one of this machine's loopback, for a browser or a
//! client that is not in there.

use std::fs::File;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Ends with the process.
pub struct Forward {
    address: SocketAddr,
}

impl Forward {
    /// The same port if it is free here, else any.
    pub fn start(netns: &Path, to: SocketAddr) -> Result<Forward> {
        let listener = TcpListener::bind(to)
            .or_else(|_| TcpListener::bind((to.ip(), 0)))
            .context("cannot listen on this machine's loopback")?;
        let address = listener.local_addr()?;
        let netns = netns.to_owned();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let netns = netns.clone();
                thread::spawn(move || carry(client, &netns, to));
            }
        });
        Ok(Forward { address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Only this thread enters the namespace; the socket it makes there stays there.
fn carry(client: TcpStream, netns: &PathBuf, to: SocketAddr) -> Result<()> {
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    let server = TcpStream::connect(to)?;
    let (from, into) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || copy(&from, &into));
    copy(&server, &client)?;
    up.join().map_err(|_| anyhow::anyhow!("a copying thread panicked"))??;
    Ok(())
}

fn copy(mut from: &TcpStream, mut into: &TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut into);
    into.shutdown(Shutdown::Write)?;
    copied.map(drop)
}
